"""Darshan logs into a run: rows that every reader of runs sees, once, whatever the logs are."""

import json
import shutil
from collections import Counter

import pytest
from click.testing import CliRunner

from recup.cli import main
from recup.completeness import completeness
from recup.errors import RecupError
from recup.ingest.darshan import LogReport, ingest_darshan, ingest_foreign, read_log
from recup.rundir import create_run
from recup.store import open_run, seal
from tests.unit.darshan_logs import File, Log, counters, two_files, write_log
from tests.unit.real_data import unpacked

A = two_files()[0].record
NAME = "py_id4711-99_1-1-1-1.darshan"


@pytest.fixture
def run(tmp_path_factory):
    return create_run(tmp_path_factory.mktemp("runs"), way="run", run_id="20261124T000000Z-abcd")


def rows(run, table, columns="*"):
    with open_run(run) as opened:
        relation = opened.sql(f"select {columns} from {table}")
        return [dict(zip(relation.columns, each, strict=True)) for each in relation.fetchall()]


def in_table(run, table):
    """Rows of a table as they were written: without the observer's columns, in a fixed order."""
    found = [{k: v for k, v in row.items() if k not in ("server_id", "role")} for row in rows(run, table)]
    return sorted(found, key=str)


def log_with_files(path, **changes):
    region = counters("<", A, [2, 0, 0, 1, 2, *[0] * 64], [0.5] * 17)
    return write_log(path, Log(two_files(), regions={"POSIX": (4, region)}, **changes))


def test_the_rows_of_a_log_are_those_of_the_reader_before_and_after_sealing(run, tmp_path):
    path = log_with_files(tmp_path / NAME)
    log = read_log(path)
    expected = {
        "io_segments": sorted(log.segments().to_pylist(), key=str),
        "io_files": sorted(log.files().to_pylist(), key=str),
        "io_logs": [log.summary._asdict()],
    }
    report = ingest_darshan(run, [path])
    assert report.logs == (LogReport(NAME, "read", 4, 1),)
    assert {table: in_table(run, table) for table in expected} == expected
    assert {(r["server_id"], r["role"]) for t in expected for r in rows(run, t)} == {(NAME, "darshan")}
    seal(run)
    assert {table: in_table(run, table) for table in expected} == expected
    assert {(r["server_id"], r["role"]) for t in expected for r in rows(run, t)} == {(NAME, "darshan")}


def test_a_whole_log_leaves_nothing_to_complain_of(run, tmp_path):
    ingest_darshan(run, [log_with_files(tmp_path / NAME)])
    with open_run(run) as opened:
        assert [f for f in completeness(opened) if f.subject == NAME] == []


def test_a_log_is_read_once_also_after_sealing_and_under_another_name(run, tmp_path):
    first = log_with_files(tmp_path / NAME)
    copy = shutil.copy(first, tmp_path / "copy.darshan")
    assert [log.state for log in ingest_darshan(run, [first, copy]).logs] == ["read", "known"]
    assert [log.state for log in ingest_foreign(run).logs] == ["known"]
    seal(run)
    assert [log.state for log in ingest_darshan(run, [tmp_path]).logs] == ["known", "known"]
    assert [log.state for log in ingest_foreign(run).logs] == ["known"]
    assert len(rows(run, "io_segments")) == 4
    assert [each.name for each in (run / "foreign" / "darshan").iterdir()] == [NAME]


def test_a_log_that_comes_after_sealing_is_added(run, tmp_path):
    ingest_darshan(run, [log_with_files(tmp_path / NAME)])
    seal(run)
    other = write_log(tmp_path / "other.darshan", Log([File("/x", reads=[(0, 1, 1.0, 2.0, 3)])]))
    ingest_darshan(run, [other])
    assert len(rows(run, "io_segments")) == 5
    seal(run)
    assert Counter(row["log"] for row in rows(run, "io_segments")) == {NAME: 4, "other.darshan": 1}


def test_two_logs_of_one_name_and_other_content_are_both_kept(run, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    logs = [log_with_files(tmp_path / "1" / NAME), log_with_files(tmp_path / "2" / NAME, exe="other")]
    ingest_darshan(run, logs)
    names = {row["log"]: row["exe"] for row in rows(run, "io_logs")}
    assert sorted(names.values()) == ["other", "python -m dask worker"]
    assert sorted(each.name for each in (run / "foreign" / "darshan").iterdir()) == sorted(names)


def test_logs_that_lie_in_the_run_are_read_where_they_are(run, tmp_path):
    directory = run / "foreign" / "darshan" / "2026"
    directory.mkdir(parents=True)
    log_with_files(directory / NAME)
    assert ingest_foreign(run).logs == (LogReport(f"2026/{NAME}", "read", 4, 1),)
    assert rows(run, "io_logs", "log") == [{"log": f"2026/{NAME}"}]
    assert sorted(each.name for each in (run / "foreign" / "darshan").rglob("*") if each.is_file()) == [NAME]


def test_a_run_without_logs_is_left_alone(run):
    assert ingest_foreign(run).logs == ()
    assert not (run / "spool").exists()


def test_what_is_no_log_becomes_a_loss_and_the_others_are_read(run, tmp_path):
    (tmp_path / "a.darshan").write_bytes(b"")
    (tmp_path / "b.darshan").write_text("not a log")
    (tmp_path / "c.darshan_partial").write_bytes(bytes(2000))
    log_with_files(tmp_path / NAME)
    for _ in range(2):
        ingest_darshan(run, [tmp_path])
    assert len(rows(run, "io_logs")) == 1
    losses = {row["server_id"]: row for row in rows(run, "losses")}
    assert sorted(losses) == ["a.darshan", "b.darshan", "c.darshan_partial"]
    assert {(row["kind"], row["table"], row["row_count"]) for row in losses.values()} == {
        ("not_captured", "io_logs", None)
    }
    assert "is empty" in losses["a.darshan"]["detail"]
    assert "was never finished by Darshan" in losses["c.darshan_partial"]["detail"]


def test_a_damaged_log_is_a_row_that_says_what_is_lost(run, tmp_path):
    path = log_with_files(tmp_path / NAME)
    path.write_bytes(path.read_bytes()[:-30])
    (report,) = ingest_darshan(run, [path]).logs
    assert report.state == "damaged"
    (row,) = rows(run, "io_logs", "lost")
    assert tuple(json.loads(row["lost"])) == report.lost
    assert any("DXT_POSIX: it is cut" in each for each in report.lost)


def test_a_path_that_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(RecupError, match="does not exist"):
        ingest_darshan(run, [tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecupError, match=r"holds no file that ends in .darshan"):
        ingest_darshan(run, [tmp_path / "empty"])


def test_an_ingestion_that_fails_leaves_no_rows(run, tmp_path, monkeypatch):
    def fail(self):
        yield from ()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recup.ingest.darshan.DarshanLog.file_rows", fail)
    with pytest.raises(RecupError, match="No space left on device"):
        ingest_darshan(run, [log_with_files(tmp_path / NAME)])
    assert list((run / "spool").glob("*")) == []
    assert list(run.glob(".ingest*")) == []
    monkeypatch.undo()
    assert [log.state for log in ingest_darshan(run, [tmp_path / NAME]).logs] == ["read"]


def test_the_command_reads_a_directory_into_a_run(run, tmp_path):
    log_with_files(tmp_path / NAME)
    (tmp_path / "b.darshan").write_text("not a log")
    done = CliRunner().invoke(main, ["ingest", "darshan", str(tmp_path), "--run", str(run), "--json"])
    assert done.exit_code == 0
    assert [(each["log"], each["state"]) for each in json.loads(done.stdout)["logs"]] == [
        ("b.darshan", "unreadable"),
        (NAME, "read"),
    ]
    done = CliRunner().invoke(main, ["ingest", "darshan", str(tmp_path), "--run", str(run)])
    assert " ".join(done.stdout.split()) == f"0 logs with 0 reads and writes into {run}; 2 logs were there before"
    done = CliRunner().invoke(main, ["ingest", "darshan", str(tmp_path / "nothing"), "--run", str(run)])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)


# ---------------------------------------------------------------- real logs

UNREADABLE = {
    "8bytes", "bad_magic", "comp_99", "comp_none_flag", "empty", "png_renamed", "random", "text", "trunc_header",
    "ver_2.06", "ver_3.42", "ver_9.99", "ver_text", "zeros_64k",
}  # fmt: skip
WHOLE = {
    "ok", "v1_ok", "fork_x96_declared_v1", "dxt_ver_0", "dxt_ver_99", "dxt_v2_as_v1", "name_4k", "name_bad_utf8",
}  # fmt: skip
SEGMENTS = {
    "ok": 1240, "dxt_v2_as_v1": 1240, "flip_names": 1240, "flip_posix": 1240, "name_bad_utf8": 1240,
    "mod_len_huge": 1240, "trunc_dxt": 621, "fork_x96_declared_v1": 1557, "v1_ok": 847, "v1_flip_posix": 847,
    "v1_cut_inside": 429, "v1_flip_dxt": 429, "v1_mod_len_short": 436, "count_huge_2^40": 0, "zbomb_1g": 0,
    "mmap_sigkilled": 0, "seg_nan_times": 0,
}  # fmt: skip


def test_every_damaged_log_ends_in_rows_with_its_loss_or_in_one_line(run, tmp_path_factory):
    logs = {log.log.removesuffix(".darshan"): log for log in _corrupt(run, tmp_path_factory)}
    states = {name: log.state for name, log in logs.items()}
    assert len(states) == 64
    assert {name for name, state in states.items() if state == "unreadable"} == UNREADABLE
    assert {name for name, state in states.items() if state == "read"} == WHOLE
    assert Counter(states.values()) == {"damaged": 42, "unreadable": 14, "read": 8}
    assert {name: logs[name].segment_count for name in SEGMENTS} == SEGMENTS
    with open_run(run) as opened:
        assert opened.sql("select count(*), count(lost) from io_logs").fetchall() == [(50, 42)]
        assert opened.sql("select count(*) from losses where role = 'darshan'").fetchall() == [(14,)]


def _corrupt(run, tmp_path_factory):
    return ingest_darshan(run, [unpacked("darshan-corrupt", tmp_path_factory)]).logs


def test_polaris_gives_all_segments_of_the_fork_with_their_threads(run, tmp_path_factory):
    report = ingest_darshan(run, [unpacked("polaris", tmp_path_factory) / "ImageProcessing_R1"])
    assert sum(log.segment_count for log in report.logs) == 8265
    with open_run(run) as opened:
        assert opened.sql("select sum(segment_count), sum(operation_count), count(lost) from io_logs").fetchall() == [
            (8265, 8265, 0)
        ]
        assert opened.sql("select distinct segment_layout from io_logs where segment_count > 0").fetchall() == [
            ("text-96",)
        ]
        assert opened.sql("select count(*) from io_segments where thread is null or path is null").fetchall() == [(0,)]


def test_polaris_prediction_says_how_much_was_traced(run, tmp_path_factory):
    ingest_darshan(run, [unpacked("polaris", tmp_path_factory) / "Prediction_R1"])
    with open_run(run) as opened:
        totals = opened.sql(
            "select count(*), sum(segment_count), sum(operation_count) from io_logs where lost is not null"
        )
        assert totals.fetchall() == [(8, 5639, 8928)]


def test_imaging_logs_are_whole_in_both_layouts(run, tmp_path_factory):
    logs = [unpacked(name, tmp_path_factory) / "darshan" for name in ("imaging", "imaging_nothreadid")]
    ingest_darshan(run, logs)
    with open_run(run) as opened:
        found = opened.sql(
            "select segment_layout, count(*), sum(segment_count - operation_count), count(lost) from io_logs group by all order by 1"
        )
        assert found.fetchall() == [("plain-32", 2, 0, 0), ("thread-40", 2, 0, 0)]


@pytest.mark.parametrize(("archive", "folder"), [("imaging", "darshan"), ("polaris", "PMDA_R1")])
def test_heat_maps_hold_the_bytes_that_the_counters_of_files_hold(tmp_path_factory, archive, folder):
    logs = sorted((unpacked(archive, tmp_path_factory) / folder).glob("*.darshan"))
    assert logs
    for path in logs:
        files = read_log(path).files().to_pylist()
        maps = {f["path"]: json.loads(f["counters"]) for f in files if f["module"] == "HEATMAP"}
        if "heatmap:POSIX" in maps:
            counted = [sum(f[n] for f in files if f["module"] == "POSIX") for n in ("written_bytes", "read_bytes")]
            assert [sum(maps["heatmap:POSIX"][n]) for n in ("written_bytes", "read_bytes")] == counted
