"""Reading one Darshan log: formats, layouts, counters, damage."""

import json
import os
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recup.errors import RecupError
from recup.ingest import darshan_counters, darshan_dxt, darshan_log
from recup.ingest.darshan import DarshanLog, read_log
from recup.ingest.darshan_log import BadDarshanLog
from recup.schema import TABLES
from tests.unit.darshan_logs import BZIP2, PLAIN, START_S, File, Log, counters, log_bytes, two_files, write_log

LAYOUTS = ("plain-32", "thread-40", "text-96", "thread-text-104")
A, B = two_files()[0].record, 12


def heat_map(record, bin_s, written, read):
    """A record of HEATMAP as Darshan writes it: behind the head come its pointers, which mean nothing."""
    head = struct.pack("<QqdqQQ", record, 0, bin_s, len(written), 0x7F0000000010, 0x7F0000000020)
    return head + struct.pack(f"<{len(written) + len(read)}q", *written, *read)


def signed(record):
    return record - (1 << 64) if record >= 1 << 63 else record


def expected(log, files, module="POSIX"):
    """Rows of `io_segments` that a trace must give, in the order of the log."""
    return [
        {
            "log": log, "module": module, "direction": direction, "file_id": signed(file.record), "path": file.path,
            "rank": file.rank, "offset": offset, "nbytes": nbytes, "start_s": start, "stop_s": stop,
            "thread": thread or None,
        }
        for file in files
        for direction, rows in (("write", file.writes), ("read", file.reads))
        for offset, nbytes, start, stop, thread in rows
    ]  # fmt: skip


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_byte_order_gives_the_segments_written(tmp_path, layout, order):
    files = two_files(threads=layout != "plain-32")
    log = read_log(write_log(tmp_path / "a.darshan", Log(files, layout=layout, order=order)))
    assert log.segments().to_pylist() == expected("a.darshan", files)
    assert log.summary.segment_layout == layout
    assert log.summary.has_thread_ids is (layout != "plain-32")
    assert log.summary.lost is None


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("version", ["3.00", "3.10", "3.20", "3.21", "3.41"])
def test_every_format_gives_modules_job_and_names(tmp_path, version, order):
    posix = {"3.00": (1, 68, 15), "3.10": (2, 64, 15), "3.20": (3, 64, 17), "3.21": (3, 64, 17), "3.41": (4, 69, 17)}
    number, integers, floats = posix[version]
    stdio = 1 if version < "3.20" else 2
    regions = {
        "POSIX": (number, counters(order, A, range(1, integers + 1), [0.0] * floats)),
        "STDIO": (stdio, counters(order, B, range(1, 12 + stdio + 1), [0.0] * 15)),
    }
    files = two_files(threads=False)
    made = Log(files, "plain-32", version=version, order=order, regions=regions, partial=("DXT_POSIX",))
    log = read_log(write_log(tmp_path / "py_id4711-99_1-1-1-1.darshan", made))
    assert [region.name for region in log.header.modules] == ["POSIX", "STDIO", "DXT_POSIX"]
    assert log.names == {A: "/scratch/a.dat", B: "/home/b.txt"}
    assert [(row["module"], row["path"], row["open_count"]) for row in log.files().to_pylist()] == [
        ("POSIX", "/scratch/a.dat", 1),
        ("STDIO", "/home/b.txt", 1),
    ]
    summary = log.summary
    precise = version == "3.41"
    modules = json.loads(summary.modules)
    assert (summary.format_version, summary.pid, summary.job_id) == (version, 99, 4711)
    assert summary.start_s == START_S + (0.25 if precise else 0)
    assert summary.run_s == (10.25 if precise else 11)
    assert summary.exe == "python -m dask worker"
    assert {name: each["partial"] for name, each in modules.items()} == {
        "POSIX": False,
        "STDIO": False,
        "DXT_POSIX": True,
    }
    assert log.job.mounts == (("/scratch", "lustre"), ("/", "ext4"))
    assert log.job.metadata == {"lib_ver": "3.5.0", "h": "romio_no_indep_rw=true"}
    assert "DXT_POSIX: Darshan ran out of memory for it, so files or operations are missing" in json.loads(summary.lost)


@pytest.mark.parametrize(("version", "offset"), [(1, None), (2, 0), (3, 0)])
def test_mpi_io_segments_have_offsets_from_version_two_on(tmp_path, version, offset):
    files = [File("/scratch/a.dat", reads=[(0, 9, 1.0, 2.0, 5 if version == 3 else 0)], rank=3)]
    layout = "thread-40" if version == 3 else "plain-32"
    made = Log(files, layout, dxt_module="DXT_MPIIO", dxt_version=version)
    rows = read_log(write_log(tmp_path / "a.darshan", made)).segments().to_pylist()
    assert [(row["module"], row["rank"], row["offset"]) for row in rows] == [("MPI-IO", 3, offset)]


def test_the_layout_is_found_whatever_the_version_says(tmp_path):
    for layout in LAYOUTS:
        for version in (0, 1, 2, 99):
            files = two_files(threads=layout != "plain-32")
            log = read_log(write_log(tmp_path / "a.darshan", Log(files, layout, dxt_version=version)))
            assert (layout, version, log.segments().to_pylist()) == (layout, version, expected("a.darshan", files))


def test_segments_over_many_batches_and_pieces_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(darshan_dxt, "BATCH_ROWS", 7)
    monkeypatch.setattr(darshan_log, "PIECE_BYTES", 1000)
    files = [
        File(f"/scratch/{n}", reads=[(i, n, i / 100, i / 100 + n / 1000, 1 + i % 3) for i in range(n)])
        for n in range(40)
    ]
    log = read_log(write_log(tmp_path / "a.darshan", Log(files, stream_bytes=777)))
    batches = list(log.segment_batches())
    assert {batch.num_rows for batch in batches[:-1]} == {7}
    assert [row for batch in batches for row in batch.to_pylist()] == expected("a.darshan", files)


def test_bzip2_and_several_streams_in_one_region_are_read(tmp_path):
    for compression in (0, BZIP2):
        made = Log(two_files(), compression=compression, stream_bytes=50 if compression else None)
        if compression:
            made.stream_bytes = None
        log = read_log(write_log(tmp_path / "a.darshan", made))
        assert log.segments().num_rows == 4
        assert log.summary.lost is None


@pytest.mark.parametrize(
    ("names", "pid"),
    [
        ([b"/runs/r/foreign/darshan/beacon-42-Worker-1"], 42),
        ([b"/runs/r/foreign/darshan/beacon-42-Worker-1", b"/runs/r/foreign/darshan/beacon-43-Worker-2"], None),
        ([b"/data/beacon-42-Worker-1"], None),
    ],
)
def test_a_memory_map_is_of_the_process_whose_beacon_is_among_its_files(tmp_path, names, pid):
    made = Log(compression=PLAIN, end_s=0, names=dict(enumerate(names, 1)))
    # What follows _id may be the number of a batch job.
    assert read_log(write_log(tmp_path / "py_id7_mmap-log-1-0.darshan", made)).summary.pid == pid


def test_a_memory_map_of_a_killed_process_gives_counters_only(tmp_path):
    region = counters("<", A, range(1, 70), [0.5] * 17) + bytes(704 * 10)
    made = Log(compression=PLAIN, end_s=0, regions={"POSIX": (4, region)}, names={A: b"/scratch/a.dat", 0: b""})
    log = read_log(write_log(tmp_path / "py_id7_mmap-log-1-0.darshan", made))
    assert log.files().num_rows == 1
    summary = log.summary
    assert (summary.is_killed, summary.run_s, summary.segment_layout, summary.pid) == (True, None, None, None)
    assert "the process was killed: no segments, and nothing of its last moments" in json.loads(summary.lost)


def test_counters_of_a_posix_record_become_columns_and_json(tmp_path):
    integers = [0] * 69
    integers[0], integers[3], integers[4], integers[7], integers[14], integers[15] = 2, 5, 3, -1, 500, 300
    floats = [0.0] * 17
    floats[0], floats[7], floats[8], floats[9], floats[10], floats[16] = 0.25, 1.75, 0.1, 0.2, 0.3, float("nan")
    made = Log(regions={"POSIX": (4, counters("<", A, integers, floats))}, names={A: b"/scratch/\xff<a>.dat"})
    (row,) = read_log(write_log(tmp_path / "a.darshan", made)).files().to_pylist()
    assert json.loads(row.pop("counters")) == {
        "POSIX_OPENS": 2, "POSIX_READS": 5, "POSIX_WRITES": 3, "POSIX_MMAPS": -1, "POSIX_BYTES_READ": 500,
        "POSIX_BYTES_WRITTEN": 300, "POSIX_F_OPEN_START_TIMESTAMP": 0.25, "POSIX_F_CLOSE_END_TIMESTAMP": 1.75,
        "POSIX_F_READ_TIME": 0.1, "POSIX_F_WRITE_TIME": 0.2, "POSIX_F_META_TIME": 0.3,
        "POSIX_F_VARIANCE_RANK_BYTES": "nan",
    }  # fmt: skip
    assert row == {
        "log": "a.darshan", "module": "POSIX", "file_id": signed(A), "path": "/scratch/\\xff<a>.dat", "rank": 0,
        "mount": "/scratch", "filesystem": "lustre", "open_count": 2, "read_count": 5, "write_count": 3,
        "read_bytes": 500, "written_bytes": 300, "read_s": 0.1, "write_s": 0.2, "meta_s": 0.3, "first_s": 0.25,
        "last_s": 1.75,
    }  # fmt: skip


def test_the_other_modules_are_read(tmp_path):
    lustre_2 = struct.pack("<Q3q7q16s2q", A, 0, 1, 2, 1048576, 2, 1, 0, 0, -1, 0, b"pool", 7, 9)
    regions = {
        "MPI-IO": (3, counters("<", A, [1, 2, 3, 4, 5, 6, *[0] * 45], [0.0] * 17)),
        "H5F": (3, counters("<", A, [4, 0, 0], [0.0] * 5)),
        "H5D": (2, counters("<", A, [B, 5, 6, 7, 0, 80, 90, *[0] * 88], [0.0] * 17)),
        "LUSTRE": (2, lustre_2),
        "HEATMAP": (1, heat_map(99, 0.5, [1, 2, 3], [4, 5, 6])),
    }
    log = read_log(write_log(tmp_path / "a.darshan", Log(regions=regions, names={A: b"/a", 99: b"heatmap:POSIX"})))
    rows = {row["module"]: row for row in log.files().to_pylist()}
    shown = {m: [r["open_count"], r["read_count"], r["write_count"], r["read_bytes"]] for m, r in rows.items()}
    assert shown == {
        "MPI-IO": [3, 8, 10, 0],
        "H5F": [4, None, None, None],
        "H5D": [5, 6, 7, 80],
        "LUSTRE": [None] * 4,
        "HEATMAP": [None] * 4,
    }
    assert rows["HEATMAP"]["path"] == "heatmap:POSIX"
    assert json.loads(rows["HEATMAP"]["counters"]) == {
        "bin_s": 0.5,
        "written_bytes": [1, 2, 3],
        "read_bytes": [4, 5, 6],
    }
    striping = json.loads(rows["LUSTRE"]["counters"])
    assert striping["osts"] == [7, 9]
    assert striping["components"][0]["pool"] == "pool"


def test_old_lustre_records_are_read(tmp_path):
    regions = {"LUSTRE": (1, struct.pack("<Q6q3q", A, 0, 16, 1, 0, 65536, 3, 4, 5, 6))}
    (row,) = read_log(write_log(tmp_path / "a.darshan", Log(regions=regions))).files().to_pylist()
    assert json.loads(row["counters"]) == {
        "LUSTRE_OSTS": 16, "LUSTRE_MDTS": 1, "LUSTRE_STRIPE_OFFSET": 0, "LUSTRE_STRIPE_SIZE": 65536,
        "LUSTRE_STRIPE_WIDTH": 3, "osts": [4, 5, 6],
    }  # fmt: skip


def test_rows_have_the_columns_of_the_schema(tmp_path):
    made = Log(two_files(), regions={"POSIX": (4, counters("<", A, range(69), [0.0] * 17))})
    log = read_log(write_log(tmp_path / "a.darshan", made))
    assert tuple(log.segments().column_names) == TABLES["io_segments"].column_names
    assert tuple(log.files().column_names) == TABLES["io_files"].column_names


@given(
    usual=st.integers(0, 1 << 62),
    others=st.lists(
        st.integers(0, 1 << 62).map(lambda number: b"pthread_id=%d" % number) | st.binary(max_size=63), max_size=20
    ),
    rest=st.binary(min_size=64, max_size=64),
)
def test_thread_ids_in_text_are_those_written_whatever_follows(usual, others, rest):
    texts = [b"pthread_id=%d" % usual, *others]
    table = np.frombuffer(b"".join((text + b"\0" + rest)[:64] for text in texts), np.uint8).reshape(-1, 64)
    found = (re.match(rb"pthread_id=(\d{1,20})", (text + b"\0" + rest)[:64]) for text in texts)
    expected = [int(each[1]) if each else 0 for each in found]
    inside = [number if number < 1 << 63 else None for number in expected]
    got = darshan_dxt._threads_in_text(table).tolist()
    assert [g if i is not None else None for g, i in zip(got, inside, strict=True)] == inside


# ---------------------------------------------------------------- what is wrong or missing


def test_segments_that_cannot_be_are_left_out_one_by_one_and_counted(tmp_path):
    nan, inf = float("nan"), float("inf")
    good = [(i, 10, 1.0 + i / 100, 1.5 + i / 100, 7) for i in range(6)]
    bad = [(0, 10, nan, 1.0, 7), (0, 10, 1.0, inf, 7), (0, -1, 1.0, 2.0, 7), (0, 1, 2.0, 1.0, 7), (0, 1, -1.0, 1.0, 7)]
    files = [File("/scratch/a.dat", reads=[*good[:3], *bad, *good[3:]])]
    log = read_log(write_log(tmp_path / "a.darshan", Log(files)))
    assert log.segments().to_pylist() == expected("a.darshan", [File("/scratch/a.dat", reads=good)])
    assert json.loads(log.summary.lost) == ["DXT_POSIX: 5 segments with impossible times or sizes left out"]


def test_a_cut_log_keeps_all_segments_before_the_cut(tmp_path):
    files = [
        File(f"/f{n}", reads=[(i, 1, i * 0.01, i * 0.01 + 0.001, 8_000_000 + n) for i in range(50)]) for n in range(20)
    ]
    made = Log(files, regions={"POSIX": (4, counters("<", files[0].record, [0] * 3 + [1000] + [0] * 65, [0.0] * 17))})
    data = log_bytes(made)
    path = tmp_path / "a.darshan"
    path.write_bytes(data[: len(data) - 500])
    log = read_log(path)
    rows = log.segments().to_pylist()
    assert 100 < len(rows) < 1000
    assert rows == expected("a.darshan", files)[: len(rows)]
    cut, few = json.loads(log.summary.lost)
    assert "DXT_POSIX: it is cut, inside a record of 50 segments" in cut
    assert few.startswith(f"DXT_POSIX: {len(rows)} of 1000 operations")
    assert (log.summary.segment_count, log.summary.operation_count) == (len(rows), 1000)


def test_a_trace_that_is_absent_where_operations_were_counted_is_said(tmp_path):
    made = Log(regions={"POSIX": (4, counters("<", A, [0] * 3 + [5, 4] + [0] * 64, [0.0] * 17))})
    assert json.loads(read_log(write_log(tmp_path / "a.darshan", made)).summary.lost) == [
        "DXT_POSIX: none of 9 operations was traced: DXT was off, or did not fit Darshan's MODMEM"
    ]


@pytest.mark.parametrize("counts", [(1 << 40, 0), (1 << 62, 1 << 62), (-1, 5), ((1 << 59) + 2, 0)])
def test_a_count_that_cannot_be_ends_the_reading_there(tmp_path, counts):
    good, bad = two_files()
    whole = log_bytes(Log([good, bad]))
    region = zlib.decompress(whole[read_log(_written(tmp_path, whole)).header.modules[0].offset :])
    place = region.index(struct.pack("<Q", B)) + 88
    region = region[:place] + struct.pack("<2q", *counts) + region[place + 16 :]
    log = read_log(
        write_log(tmp_path / "a.darshan", Log(names={A: b"/scratch/a.dat"}, regions={"DXT_POSIX": (2, region)}))
    )
    assert log.segments().to_pylist() == expected("a.darshan", [good])
    assert "3 segments before it were kept" in log.summary.lost


def _written(tmp_path, data):
    path = tmp_path / "a.darshan"
    path.write_bytes(data)
    return path


def test_a_region_that_blows_up_is_read_to_its_cap(tmp_path, monkeypatch):
    monkeypatch.setattr(darshan_dxt, "REGION_CAP_BYTES", 1 << 20)
    files = [File("/f", reads=[(i, 1, 1.0, 2.0, 5) for i in range(60_000)])]
    log = read_log(write_log(tmp_path / "a.darshan", Log(files)))
    assert log.segments().num_rows == ((1 << 20) - 104) // 40
    assert "DXT_POSIX: it holds more than the 1 MiB recup reads of it" in log.summary.lost


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"3.41", "is not a Darshan log"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not a Darshan log"),
        (log_bytes(Log())[:500], "is cut inside its header (500 of at least 1328 bytes)"),
        (b"9.99\0" + log_bytes(Log())[5:], "has Darshan log format 9.99"),
        (log_bytes(Log())[:8] + bytes(8) + log_bytes(Log())[16:], "its magic number is wrong"),
        (log_bytes(Log())[:16] + b"\x63" + log_bytes(Log())[17:], "unknown way (99)"),
        (log_bytes(Log())[:16] + b"\x02" + log_bytes(Log())[17:], "holds no job record"),
    ],
)
def test_a_file_that_is_no_log_is_refused_with_one_line(tmp_path, content, words):
    with pytest.raises(BadDarshanLog) as caught:
        read_log(_written(tmp_path, content))
    assert words in str(caught.value)
    assert str(tmp_path / "a.darshan") in str(caught.value)


def test_a_missing_log_is_refused_with_one_line(tmp_path):
    with pytest.raises(BadDarshanLog, match=r"nothing.darshan cannot be read: No such file"):
        read_log(tmp_path / "nothing.darshan")


def test_secrets_of_the_command_line_are_redacted(tmp_path):
    made = Log(exe="python run.py --api-token=abc123 --password hunter2 https://joe:pw@host/x --size 4")
    summary = read_log(write_log(tmp_path / "a.darshan", made)).summary
    assert summary.exe == "python run.py --api-token=[redacted] --password [redacted] https://[redacted]host/x --size 4"


# ---------------------------------------------------------------- whatever the bytes are


def _rich(**changes):
    regions = {
        "POSIX": (4, counters("<", A, range(69), [0.5] * 17)),
        "STDIO": (2, counters("<", B, range(14), [0.5] * 15)),
        "LUSTRE": (2, struct.pack("<Q3q7q16s2q", A, 0, 1, 2, 1048576, 2, 1, 0, 0, -1, 0, b"pool", 7, 9)),
        "HEATMAP": (1, heat_map(99, 0.5, [1, 2, 3], [4, 5, 6])),
    }
    return log_bytes(Log(two_files(), regions=regions, **changes))


WHOLE = [_rich(), _rich(compression=PLAIN), _rich(layout="text-96"), _rich(compression=BZIP2)]


def _read_all(path):
    try:
        log = read_log(path)
    except RecupError as reason:
        return str(reason)
    assert isinstance(log, DarshanLog)
    segments, files = log.segments(), log.files()
    segments.validate(full=True)
    files.validate(full=True)
    assert log.summary.segment_count == segments.num_rows
    return log


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    whole=st.sampled_from(WHOLE),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8),
    cut=st.none() | st.integers(0, 1 << 16),
)
def test_any_flip_or_cut_gives_rows_or_one_line(tmp_path, whole, changes, cut):
    data = bytearray(whole)
    for place, value in changes:
        data[place % len(data)] = value
    path = tmp_path / "a.darshan"
    path.write_bytes(data[: cut % len(data) if cut is not None else None])
    _read_all(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    module=st.sampled_from(["DXT_POSIX", "DXT_MPIIO", "POSIX", "STDIO", "LUSTRE", "HEATMAP", "H5D"]),
    version=st.integers(0, 4),
    data=st.binary(max_size=400)
    | st.lists(st.integers(-2, 1 << 62), max_size=60).map(lambda numbers: struct.pack(f"<{len(numbers)}q", *numbers)),
    order=st.sampled_from("<>"),
)
def test_any_content_of_a_region_gives_rows_or_words(tmp_path, module, version, data, order):
    _read_all(write_log(tmp_path / "a.darshan", Log(regions={module: (version, data)}, order=order)))


def test_an_unreadable_file_is_refused_with_one_line(tmp_path):
    path = write_log(tmp_path / "a.darshan", Log())
    os.chmod(path, 0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read any file")
    with pytest.raises(BadDarshanLog, match="Permission denied"):
        read_log(path)


def test_counters_are_read_to_their_cap(tmp_path, monkeypatch):
    monkeypatch.setattr(darshan_counters, "RECORD_CAP", 3)
    region = counters("<", A, range(69), [0.5] * 17) * 5
    log = read_log(write_log(tmp_path / "a.darshan", Log(regions={"POSIX": (4, region)})))
    assert log.files().num_rows == 3
    assert any("POSIX: only the first 3 records were read" in each for each in log.losses())


def test_records_with_impossible_counters_are_left_out_and_counted(tmp_path):
    good, bad = range(69), [1 << 62] * 69
    region = b"".join(counters("<", A, integers, [0.5] * 17) for integers in (good, bad, good))
    log = read_log(write_log(tmp_path / "a.darshan", Log(regions={"POSIX": (4, region)})))
    assert log.files().num_rows == 2
    assert any("POSIX: 1 records with impossible counters left out" in each for each in log.losses())
