"""The join of Darshan's segments to attempts: rows of a worker and of a log in, claims out."""

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recup import schema
from recup.fuse_io import ATTRIBUTIONS
from recup.store import open_run
from tests.unit.spooled import write
from tests.unit.written_runs import START_NS, A, at, row

S, W = "Scheduler-1", "Worker-a"
LOG = "job-100_1.darshan"
START_S = START_NS / 1e9
BEACON = "/run/beacon-100"
DATA = Path(__file__).parents[3] / "shared" / "data"


def process(role, pid=1, **values):
    return row(schema.Process, role=role, host_id="host", scheduler_id=S, pid=pid, **values)


def ran(key, start, stop, *, thread=7, run_id=0, kind="task", read=(10, 1), written=(20, 2)):
    """An attempt whose thread was counted, in seconds from the start of the run; read and written are (bytes, calls)."""
    return row(
        schema.ThreadCounter, time_ns=at(start), key=key, run_id=run_id, kind=kind, outcome="returned", thread=thread,
        wall_ns=round((stop - start) * 1e9), read_chars_bytes=read[0], read_call_count=read[1],
        written_chars_bytes=written[0], write_call_count=written[1],
    )  # fmt: skip


def told(key, start, stop, *, thread=7, delay=0.0, executing=None, heard=None, run_id=0):
    """An attempt as the worker told Dask of it: its times carry Dask's shift."""
    return [
        schema.WorkerTransition(
            at(start - 0.001 if executing is None else executing), key, run_id, "ready", "executing", None, "s"
        ),
        row(
            schema.Result, time_ns=at(stop + 0.001 if heard is None else heard), key=key, run_id=run_id,
            outcome="memory", worker=A, thread=thread, compute_start_s=START_S + start + delay,
            compute_stop_s=START_S + stop + delay, scheduler_delay_s=delay,
        ),
    ]  # fmt: skip


def segment(
    start, stop=None, *, thread=7, path="/data/x", direction="read", nbytes=100, file_id=None, offset=0, log=LOG
):
    return schema.IoSegment(
        log, "POSIX", direction, len(path) * 1000 + sum(map(ord, path)) if file_id is None else file_id, path, -1,
        offset, nbytes, start, start + 0.001 if stop is None else stop, -1 if thread is None else thread,
    )  # fmt: skip


def file_of(path, *, module="POSIX", counters=(), **values):
    return row(
        schema.IoFile, log=LOG, module=module, file_id=len(path) * 1000 + sum(map(ord, path)), path=path,
        counters=json.dumps(dict(counters)), **values,
    )  # fmt: skip


def beacon(seconds, offset=0, *, zero=0.0, late_ns=1000):
    """A byte between two readings of the worker's clock, and the same byte as Darshan saw it."""
    place = at(seconds)
    return (
        schema.ClockBeacon(place - late_ns, place + late_ns, 1, offset, BEACON),
        segment(seconds - zero, seconds - zero, thread=1, path=BEACON, direction="write", nbytes=1, offset=offset),
    )


def asked(path, query, *, worker=(), log=(), has_threads=True, has_beacon=True, scheduler=(), start=0.01, **about_log):
    """Write a run of one worker and one Darshan log, and return the answer to a query."""
    write(path, "scheduler", S, [row(schema.Host, host_id="host", hostname="node"), process("scheduler"), *scheduler])
    shone = [beacon(0.0, 0), beacon(0.5, 1)] if has_beacon else []
    write(path, "worker", W, [process("worker", 100, address=A), *(b for b, _ in shone), *worker])
    about = row(
        schema.IoLog, log=LOG, format_version="3.41", hostname="node", pid=100, start_s=START_S + start,
        has_thread_ids=has_threads, **{"modules": "{}"} | about_log,
    )  # fmt: skip
    write(path, "launcher", "Ingest-1", [about, *(s for _, s in shone), *log])
    with open_run(path) as run:
        return run.sql(query).fetchall()


CLAIMS = f"select key, attribution, candidate_count from task_io where path <> '{BEACON}' order by start_s, nbytes"


def claims(tmp_path, worker, log, **how):
    return asked(tmp_path / "run", CLAIMS, worker=worker, log=log, **how)


# ---------------------------------------------------------------- with thread ids


def test_a_segment_belongs_to_the_task_that_held_its_thread(tmp_path):
    worker = [ran("x", 1, 2), ran("y", 1, 2, thread=8)]
    assert claims(tmp_path, worker, [segment(1.5), segment(1.6, thread=8)]) == [("x", "thread", 1), ("y", "thread", 1)]


def test_a_row_says_who_when_where_and_how_sure(tmp_path):
    query = f"select * exclude (key_id, start_s, stop_s, clock_error_s), start_s - {START_S}, stop_s - {START_S}, "
    query += f"round(clock_error_s * 1e6) from task_io where path <> '{BEACON}'"
    tasks = [
        row(schema.Submission, time_ns=at(0), submission=0, stimulus_id="s"),
        row(schema.Task, key="x", prefix="p", group="p"),
    ]
    log = [segment(1.5, 1.75, direction="write", offset=3)]
    (found,) = asked(tmp_path / "run", query, worker=[ran("x", 1, 2)], log=log, scheduler=tasks)
    assert found[:-3] == (
        LOG, "POSIX", "write", "/data/x", None, 3, 100, S, "x", 0, "p", A, W, 7, "thread", 1, False, False
    )  # fmt: skip
    # 1 us of the beacon, 1 us of Darshan's own clock, 1 us between servers of one host.
    assert found[-3:] == (pytest.approx(1.5, abs=1e-6), pytest.approx(1.75, abs=1e-6), 3)


def test_a_segment_between_tasks_is_of_none(tmp_path):
    assert claims(tmp_path, [ran("x", 1, 2), ran("y", 3, 4)], [segment(2.5)]) == [(None, "none", 0)]


def test_a_segment_that_two_tasks_of_a_thread_touch_is_undecided(tmp_path):
    log = [segment(1.9999, 2.0001)]
    assert claims(tmp_path, [ran("x", 1, 2), ran("y", 2, 3)], log) == [(None, "shared", 2)]


def test_a_segment_at_the_border_of_one_task_is_undecided(tmp_path):
    log = [segment(0.999999, 1.1), segment(1.9, 2.000001)]
    assert claims(tmp_path, [ran("x", 1, 2)], log) == [(None, "shared", 1), (None, "shared", 1)]


def test_a_wide_bound_makes_the_borders_of_tasks_undecided(tmp_path):
    worker, log = [ran("x", 1, 2), ran("y", 2, 3)], [segment(1.5), segment(1.99), segment(2.02)]
    assert claims(tmp_path, worker, log, has_beacon=False) == [
        ("x", "thread", 1), (None, "shared", 2), ("y", "thread", 1)
    ]  # fmt: skip


def test_a_thread_used_again_after_it_ended_is_told_apart_by_time(tmp_path):
    log = [segment(1.5), segment(2.5), segment(3.5)]
    assert claims(tmp_path, [ran("x", 1, 2), ran("y", 3, 4)], log) == [
        ("x", "thread", 1), (None, "none", 0), ("y", "thread", 1)
    ]  # fmt: skip


def test_attempts_of_one_task_are_told_apart(tmp_path):
    query = f"select key, run_id from task_io where path <> '{BEACON}' order by start_s"
    worker, log = [ran("x", 1, 2, run_id=3), ran("x", 3, 4, run_id=4)], [segment(1.5), segment(3.5)]
    assert asked(tmp_path / "run", query, worker=worker, log=log) == [("x", 3), ("x", 4)]


def test_a_helper_thread_is_never_claimed_even_for_the_only_task(tmp_path):
    worker, log = [ran("x", 1, 2), ran("y", 1.5, 3, thread=8)], [segment(t, thread=99) for t in (1.2, 1.8, 3.5)]
    assert claims(tmp_path, worker, log) == [(None, "helper", 1), (None, "helper", 2), (None, "none", 0)]


def test_a_coroutine_holds_no_thread(tmp_path):
    assert claims(tmp_path, [ran("x", 1, 2, kind="coroutine")], [segment(1.5)]) == [(None, "helper", 1)]


def test_a_task_without_an_end_may_have_done_what_its_worker_did_later(tmp_path):
    worker = [
        ran("x", 1, 2),
        schema.WorkerTransition(at(3), "y", 5, "ready", "executing", None, "s"),
    ]
    assert claims(tmp_path, worker, [segment(1.5), segment(4)]) == [("x", "thread", 1), (None, "shared", 1)]


def test_a_thread_that_began_a_task_without_an_end_is_no_helper(tmp_path):
    worker = [
        row(schema.Thread, time_ns=at(1), thread=7, native_id=1, name="Dask-Default-Threads-1-0"),
        schema.WorkerTransition(at(1), "y", 5, "ready", "executing", None, "s"),
    ]
    log = [segment(0.9), segment(1.5), segment(1.6, thread=99)]
    assert claims(tmp_path, worker, log) == [(None, "none", 0), (None, "shared", 1), (None, "helper", 1)]


def test_a_process_nobody_recorded_is_of_no_task(tmp_path):
    log = [
        row(schema.IoLog, log="other", format_version="3.41", hostname="node", pid=5, modules="{}", start_s=START_S),
        segment(1.5, log="other"),
    ]
    assert claims(tmp_path, [ran("x", 1, 2)], log) == [(None, "none", None)]


def test_the_same_process_id_on_another_host_is_another_process(tmp_path):
    other = row(schema.IoLog, log="o", format_version="3.41", hostname="far", pid=100, modules="{}", start_s=START_S)
    assert claims(tmp_path, [ran("x", 1, 2)], [other, segment(1.5, log="o")]) == [(None, "none", None)]


# ---------------------------------------------------------------- clocks


CLOCK = f"select matched_by, basis, zero_ns - {START_NS}, error_ns, beacon_count from io_clocks"


def test_a_beacon_tells_the_zero_of_the_segments(tmp_path):
    (found,) = asked(tmp_path / "run", CLOCK)
    assert found == ("beacon", "beacon", 0, 2000, 2)


def test_a_memory_map_belongs_to_the_process_that_wrote_the_beacon_it_counts(tmp_path):
    empty = row(schema.IoLog, log="m", format_version="3.41", modules="{}", start_s=START_S, is_killed=True)
    seen = file_of(BEACON, write_count=8, open_count=1)._replace(log="m")
    query = "select log, matched_by, basis, worker_id, beacon_count from io_clocks order by log"
    assert asked(tmp_path / "run", query, log=[empty, seen]) == [
        (LOG, "beacon", "beacon", W, 2), ("m", "beacon", "log start", W, 0)
    ]  # fmt: skip


def test_beacons_that_exclude_each_other_widen_the_bound(tmp_path):
    (late, seen) = beacon(5, 2, zero=0.004)
    (found,) = asked(tmp_path / "run", CLOCK, worker=[late], log=[seen])
    assert found == ("beacon", "beacon", 2_000_000, 2_002_000, 3)


def test_without_a_beacon_the_zero_is_up_to_25_ms_before_the_start_of_the_log(tmp_path):
    (found,) = asked(tmp_path / "run", CLOCK, has_beacon=False, start=0.01)
    assert found == ("host and process id", "log start", pytest.approx(-2_500_000, abs=300), 12_500_000, 0)


def test_an_old_log_knows_its_start_to_the_second(tmp_path):
    old = row(schema.IoLog, log="o", format_version="3.21", hostname="node", pid=100, modules="{}", start_s=START_S)
    query = f"select zero_ns - {START_NS}, error_ns from io_clocks where log = 'o'"
    assert asked(tmp_path / "run", query, log=[old]) == [(487_500_000, 512_500_000)]


def test_a_segment_lies_on_the_clock_the_beacon_gave(tmp_path):
    query = f"select key, start_s - {START_S} from task_io where path = '/data/x'"
    write(tmp_path / "run", "scheduler", S, [row(schema.Host, host_id="host", hostname="node"), process("scheduler")])
    (shone, seen) = beacon(0, zero=-3.0)
    write(tmp_path / "run", "worker", W, [process("worker", 100, address=A), shone, ran("x", 1, 2)])
    about = row(schema.IoLog, log=LOG, format_version="3.41", pid=100, modules="{}", start_s=1.0, has_thread_ids=True)
    write(tmp_path / "run", "launcher", "Ingest-1", [about, seen, segment(4.5)])
    with open_run(tmp_path / "run") as run:
        assert run.sql(query).fetchall() == [("x", pytest.approx(1.5, abs=1e-6))]


def test_dask_s_shift_is_taken_off_the_times_the_worker_told(tmp_path):
    worker = [*told("x", 1, 2, delay=0.7), *told("y", 2.5, 3, delay=0.7)]
    log = [segment(1.1), segment(1.9), segment(2.2)]
    assert claims(tmp_path, worker, log) == [("x", "thread", 1), ("x", "thread", 1), (None, "none", 0)]


def test_a_shift_that_contradicts_the_worker_s_clock_leaves_what_its_loop_saw(tmp_path):
    worker = told("x", 1.5, 2.5, delay=0.7, executing=1, heard=2.2)
    query = f"select (in_from_ns - {START_NS}) / 1e9, (in_to_ns - {START_NS}) / 1e9 from io_attempts"
    ((begins, ends),) = asked(tmp_path / "run", query, worker=worker)
    assert (begins, ends) == pytest.approx((1.2, 2.0), abs=1e-4)


def test_a_shift_that_changed_at_the_hand_over_widens_the_bound_where_both_are_possible(tmp_path):
    sure = told("x", 1, 2, delay=0.1)
    changed = row(schema.ClockSample, time_ns=at(2.5), monotonic_ns=1, scheduler_delay_s=0.1004)
    query = "select in_from_ns - from_ns from io_attempts"
    assert asked(tmp_path / "a", query, worker=sure) == [(1000,)]
    assert asked(tmp_path / "b", query, worker=[*sure, changed])[0][0] == pytest.approx(401_000, abs=300)


def test_counters_of_the_thread_are_taken_before_what_dask_was_told(tmp_path):
    worker = [ran("x", 1, 2), *told("x", 1.2, 1.8)]
    assert claims(tmp_path, worker, [segment(1.1)]) == [("x", "thread", 1)]


# ---------------------------------------------------------------- traps in the data


def stream_of(path, end=1000, first_s=1.2, last_s=1.6, count=1):
    return file_of(
        path, module="STDIO", counters={"STDIO_FDOPENS": count, "STDIO_MAX_BYTE_WRITTEN": end - 1}, first_s=first_s,
        last_s=last_s, written_bytes=end - 128, write_count=1, read_bytes=0, read_count=0, open_count=count,
    )  # fmt: skip


PLACED = f"""
select nbytes, key, attribution, candidate_count, is_phantom from task_io where path <> '{BEACON}' order by start_s, nbytes
"""


def test_bytes_of_a_descriptor_used_again_are_phantoms_of_the_file(tmp_path):
    path = "/data/x.npy"
    log = [
        file_of(path, open_count=2, first_s=1.1, last_s=1.9, counters={"POSIX_OPENS": 2, "POSIX_DUPS": 1}),
        stream_of(path),
        segment(1.15, path=path, direction="write", nbytes=128),
        segment(1.4, path=path, nbytes=776, offset=40128),
        segment(1.45, path=path, nbytes=100, thread=99),
        segment(1.8, path=path, nbytes=777),
        # Within the life that Darshan tells and the size of the file, by another task: what it did moved the life.
        segment(2.5, path=path, nbytes=500, offset=100),
    ]
    assert asked(tmp_path / "run", PLACED, worker=[ran("x", 1, 2), ran("y", 2.2, 2.8)], log=log) == [
        (128, "x", "thread", 1, False), (776, None, "none", 0, True), (100, None, "none", 0, True),
        (777, None, "none", 0, True), (500, None, "none", 0, True),
    ]  # fmt: skip


def test_a_header_read_after_another_task_wrote_the_file_as_a_stream_is_undecided(tmp_path):
    path = "/data/x.npy"
    log = [
        file_of(path, open_count=4, first_s=1.1, last_s=2.6, counters={"POSIX_OPENS": 4, "POSIX_DUPS": 2}),
        stream_of(path, last_s=2.7, count=2),
        segment(1.15, path=path, direction="write", nbytes=128),
        segment(2.5, path=path, nbytes=4096),
    ]
    assert asked(tmp_path / "run", PLACED, worker=[ran("x", 1, 2), ran("y", 2.2, 2.8)], log=log) == [
        (128, "x", "thread", 1, False), (4096, None, "none", 0, True)
    ]  # fmt: skip


@pytest.mark.parametrize("has_threads", [True, False], ids=["thread ids", "no thread ids"])
def test_what_is_written_on_a_file_that_output_was_redirected_to_is_nobodys(tmp_path, has_threads):
    path = "/data/out.log"
    log = [
        file_of(path, open_count=2, first_s=1.1, last_s=1.6, counters={"POSIX_OPENS": 2, "POSIX_DUPS": 1}),
        *(
            segment(start, path=path, direction="write", nbytes=nbytes, thread=7 if has_threads else None)
            for start, nbytes in ((1.5, 100), (2.5, 19))
        ),
    ]
    worker = [ran("x", 1, 2, written=(100, 1)), ran("y", 2.2, 2.8, written=(19, 1))]
    assert asked(tmp_path / "run", PLACED, worker=worker, log=log, has_threads=has_threads) == [
        (100, None, "none", 0, True), (19, None, "none", 0, True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("modules", "claimed"),
    [
        ({"POSIX": {"state": "damaged"}, "STDIO": {"state": "read", "partial": False}}, None),
        ({"POSIX": {"state": "read"}, "STDIO": {"state": "read", "partial": True}}, None),
        ({"POSIX": {"state": "read"}, "STDIO": {"state": "read", "partial": False}}, "x"),
    ],
    ids=["damaged", "partial", "whole"],
)
def test_a_file_whose_counters_the_log_lost_may_have_been_reopened(tmp_path, modules, claimed):
    query = f"select key, is_phantom from task_io where path <> '{BEACON}'"
    found = asked(tmp_path / "run", query, worker=[ran("x", 1, 2)], log=[segment(1.5)], modules=json.dumps(modules))
    assert found == [(claimed, claimed is None)]


OLD_ID = -(2**63) + 5
RENAMED = {"POSIX_OPENS": 1, "POSIX_RENAME_SOURCES": 1}


def renamed(part, last, counters):
    """Records of a file renamed by the process, and a write to the old name."""
    return [
        file_of(part, open_count=counters["POSIX_OPENS"], counters=counters)._replace(file_id=OLD_ID),
        file_of(last, counters={"POSIX_RENAME_TARGETS": 1, "POSIX_RENAMED_FROM": OLD_ID + 2**64}),
        segment(1.5, path=part, file_id=OLD_ID),
    ]


@pytest.mark.parametrize(
    ("part", "counters"),
    [
        ("/data/c.tmp", RENAMED),
        ("/data/c.0123456789abcdef0123456789abcdef.partial", RENAMED | {"POSIX_STATS": 1}),
        ("/data/c-01234567-89ab-cdef-0123-456789abcdef.tmp", RENAMED | {"POSIX_STATS": 2}),
    ],
    ids=["opened first of all", "random name", "uuid"],
)
def test_a_file_that_was_opened_once_and_then_renamed_goes_by_its_new_name(tmp_path, part, counters):
    query = f"select path, written_as, key from task_io where path <> '{BEACON}'"
    log = renamed(part, "/data/c", counters)
    assert asked(tmp_path / "run", query, worker=[ran("x", 1, 2)], log=log) == [("/data/c", part, "x")]


@pytest.mark.parametrize("place", ["/data", "/data/0123456789abcdef0123456789abcdef"])
@pytest.mark.parametrize(
    "counters",
    [
        RENAMED | {"POSIX_OPENS": 3},
        RENAMED | {"POSIX_RENAME_SOURCES": 2},
        RENAMED | {"POSIX_STATS": 1},
        RENAMED | {"POSIX_RENAME_TARGETS": 1},
    ],
    ids=["opened again", "renamed again", "looked at before", "itself a new name"],
)
def test_a_file_that_may_have_been_opened_after_the_old_one_was_renamed_goes_by_the_name_it_was_opened_by(
    tmp_path, counters, place
):
    query = f"select path, written_as, key from task_io where path <> '{BEACON}'"
    log = renamed(f"{place}/log", f"{place}/log.1", counters)
    assert asked(tmp_path / "run", query, worker=[ran("x", 1, 2)], log=log) == [(f"{place}/log", None, "x")]


STREAMS = "select path, key, attribution, written_bytes from task_io_streams order by path"


def test_a_stream_goes_to_the_task_whose_header_was_traced(tmp_path):
    path = "/data/x.npy"
    worker = [ran("x", 1, 2), ran("y", 1, 2, thread=8)]
    log = [stream_of(path), file_of(path, first_s=1.1, last_s=1.6), segment(1.15, path=path, nbytes=128)]
    assert asked(tmp_path / "run", STREAMS, worker=worker, log=log) == [(path, "x", "path", 872)]


def test_a_stream_is_of_nobody_where_a_header_may_be_another_task_s(tmp_path):
    path = "/data/x.npy"
    worker = [ran("x", 1, 2), ran("y", 1, 2, thread=8)]
    log = [
        stream_of(path), segment(1.15, path=path, nbytes=128), segment(1.4, path=path, nbytes=4096, thread=8),
        segment(1.8, path=path, nbytes=3, thread=8),
    ]  # fmt: skip
    assert asked(tmp_path / "a", STREAMS, worker=worker, log=log) == [(path, None, "shared", 872)]
    # Read again by the same task.
    log[2] = segment(1.4, path=path, nbytes=4096)
    assert asked(tmp_path / "b", STREAMS, worker=worker, log=log) == [(path, "x", "path", 872)]


def test_a_stream_two_tasks_may_have_written_is_shared(tmp_path):
    worker = [ran("x", 1, 2), ran("y", 1, 2, thread=8)]
    query = "select key, attribution, candidate_count from task_io_streams"
    assert asked(tmp_path / "run", query, worker=worker, log=[stream_of("/data/x")]) == [(None, "shared", 2)]


@pytest.mark.parametrize(
    ("written", "claimed"),
    [((972, 9), "x"), ((100, 1), None), ((5000, 9), None), ((None, None), None)],
    ids=["its own", "nothing of it", "more", "not counted"],
)
@pytest.mark.parametrize("has_threads", [True, False], ids=["thread ids", "no thread ids"])
def test_a_stream_open_while_one_task_ran_is_its_own_if_its_thread_wrote_just_that(
    tmp_path, written, claimed, has_threads
):
    log = [stream_of("/data/z")]
    if has_threads:
        log.append(segment(1.5, direction="write"))
    else:
        written = (None if written[0] is None else written[0] - 100, 9)
    found = asked(tmp_path / "run", STREAMS, worker=[ran("x", 1, 2, written=written)], log=log, has_threads=has_threads)
    assert found == [("/data/z", claimed, "time_unique" if claimed else "shared", 872)]


def test_beacons_are_rows_of_no_task(tmp_path):
    query = "select distinct path, key, attribution, is_runtime from task_io"
    assert asked(tmp_path / "run", query, worker=[ran("x", -1, 9)]) == [(BEACON, None, "none", True)]


# ---------------------------------------------------------------- totals


def test_time_in_io_of_an_attempt_counts_overlaps_once(tmp_path):
    log = [segment(1.1, 1.3), segment(1.2, 1.25, nbytes=2**21), segment(1.5, 1.6, direction="write", path="/data/y")]
    query = """
        select key, read_bytes, written_bytes, read_count, write_count, small_count, round(io_s, 6), file_count
        from task_io_totals
    """
    assert asked(tmp_path / "run", query, worker=[ran("x", 1, 2)], log=log) == [
        ("x", 2**21 + 100, 100, 2, 1, 2, 0.3, 2)
    ]


times = st.integers(0, 60).map(lambda tenths: tenths / 10)
lengths = st.integers(0, 20).map(lambda tenths: tenths / 10)


def in_turn(attempts):
    """The attempts, each begun when its thread was free: a thread holds one at a time."""
    free, found = {}, []
    for start, length, thread in sorted(attempts):
        begin = max(start, free.get(thread, start))
        free[thread] = begin + length + 0.1
        found.append((begin, length, thread))
    return found


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    attempts=st.lists(st.tuples(times, lengths, st.sampled_from((7, 8))), max_size=6),
    segments=st.lists(st.tuples(times, lengths, st.sampled_from((7, 8, 99, None))), max_size=10),
    has_beacon=st.booleans(),
)
def test_every_segment_is_there_once_and_claimed_only_where_nothing_else_is_possible(attempts, segments, has_beacon):
    attempts = in_turn(attempts)
    # What is named no thread lies in the first attempt that could have done it, as far as counters tell.
    counted = [0] * len(attempts), [0] * len(attempts)
    for n, (start, _, thread) in enumerate(segments):
        inside = (m for m, (begin, lasts, _) in enumerate(attempts) if begin <= start <= begin + lasts)
        if thread is None and (m := next(inside, None)) is not None:
            counted[0][m] += 2**n
            counted[1][m] += 1
    worker = [
        ran(f"k{n}", start, start + length, thread=t, read=read)
        for n, ((start, length, t), read) in enumerate(zip(attempts, zip(*counted, strict=True), strict=True))
    ]
    log = [
        segment(start, start + length, thread=thread, nbytes=2**n, path=f"/data/{n % 3}")
        for n, (start, length, thread) in enumerate(segments)
    ]
    query = f"""
        select nbytes, key, attribution, candidate_count, coalesce(thread, -1)
        from task_io where path <> '{BEACON}' order by nbytes
    """
    with tempfile.TemporaryDirectory() as directory:
        found = asked(Path(directory) / "run", query, worker=worker, log=log, has_beacon=has_beacon)
    assert [each[0] for each in found] == [2**n for n in range(len(segments))]
    slack = 2e-4 if has_beacon else 0.026
    for (start, length, thread), (_, key, attribution, count, _) in zip(segments, found, strict=True):
        assert attribution in ATTRIBUTIONS
        # Of each attempt that could have done it by any zero the bound allows.
        possible = [
            f"k{n}" for n, (begin, lasts, holder) in enumerate(attempts)
            if begin <= start + length + slack and begin + lasts >= start - slack and holder == (thread or holder)
        ]  # fmt: skip
        if key is not None:
            assert (attribution, count, possible) == ("time_unique" if thread is None else "thread", 1, [key])
        elif thread in (7, 8) and any(holder == thread for _, _, holder in attempts):
            assert count <= len(possible)


# ---------------------------------------------------------------- recorded truth


# The second holds neither thread ids nor counters: nothing in it is sure.
@pytest.mark.parametrize(("name", "least_right"), [("imaging", 0.994), ("imaging_nothreadid", 0.0)])
def test_recorded_runs_are_joined_without_a_wrong_claim(tmp_path, monkeypatch, name, least_right):
    archive = DATA / f"{name}.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive.name} is not beside this checkout")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    monkeypatch.delitem(sys.modules, "score_io", raising=False)
    import score_io

    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    source = next(tmp_path.rglob("run.json")).parent
    path = score_io.imaging_run(source, tmp_path / "runs")
    score_io.add_logs(path, score_io.darshan_logs(source))
    counts, _ = score_io.score(score_io.claims_of(path), score_io.true_keys(source))
    assert counts["wrong"] == 0
    assert counts["decidable"] > 0
    assert counts["right"] >= least_right * counts["decidable"]
