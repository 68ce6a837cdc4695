"""The join of Darshan's segments to attempts where the log names no threads: only what counters of threads bear out."""

import pytest

from recup import schema
from tests.unit.test_fuse_io import A, claims, file_of, process, ran, segment
from tests.unit.written_runs import at


def unnamed(*arguments, **values):
    return segment(*arguments, thread=None, **values)


def claims_unnamed(tmp_path, worker, log, **how):
    return claims(tmp_path, worker, log, has_threads=False, **how)


def test_without_thread_ids_the_only_task_that_ran_did_it(tmp_path):
    worker = [ran("x", 1, 2, read=(100, 1)), ran("y", 1.5, 3, thread=8, read=(200, 2))]
    assert claims_unnamed(tmp_path, worker, [unnamed(1.2), unnamed(1.8), unnamed(2.5)]) == [
        ("x", "time_unique", 1), (None, "shared", 2), ("y", "time_unique", 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("read", "written", "expected"),
    [
        ((100, 1), (300, 3), ["x", "x"]),
        ((0, 0), (300, 3), [None, "x"]),
        ((100, 1), (0, 0), ["x", None]),
        ((100, 2), (300, 2), [None, None]),
        # What it did besides, on a socket say, may be as much as what it did not do.
        ((9000, 90), (9000, 90), [None, None]),
        ((None, None), (None, None), [None, None]),
    ],
    ids=["all", "no reads", "no writes", "other calls", "more", "not counted"],
)
def test_without_thread_ids_a_task_did_only_what_its_own_thread_counted(tmp_path, read, written, expected):
    log = [unnamed(1.2), *(unnamed(start, direction="write", path="/data/y") for start in (1.3, 1.4, 1.5))]
    found = claims_unnamed(tmp_path, [ran("x", 1, 2, read=read, written=written)], log)
    assert [found[0][0], *{key for key, *_ in found[1:]}] == expected


def test_without_thread_ids_what_a_thread_of_an_earlier_task_does_is_not_the_running_task_s(tmp_path):
    path = "/data/checkpoint"
    worker = [ran("start", 1, 1.1, written=(0, 0)), ran("other", 1.2, 2, written=(0, 0))]
    log = [
        file_of(path, open_count=1, first_s=1.3, last_s=1.6),
        *(unnamed(start, path=path, direction="write") for start in (1.4, 1.5)),
    ]
    assert claims_unnamed(tmp_path, worker, log) == [(None, "shared", 1)] * 2


def test_without_thread_ids_tasks_at_once_are_counted_together(tmp_path):
    worker = [ran("x", 1, 2, read=(100, 1)), ran("y", 1.5, 3, thread=8, read=(100, 1)), ran("z", 4, 5, read=(100, 1))]
    log = [unnamed(1.2), unnamed(1.8), unnamed(2.5), unnamed(4.5)]
    assert claims_unnamed(tmp_path, worker, log) == [
        (None, "shared", 1), (None, "shared", 2), (None, "shared", 1), ("z", "time_unique", 1)
    ]  # fmt: skip


def test_a_file_that_is_used_outside_tasks_is_not_claimed_by_time(tmp_path):
    log = [unnamed(1.5), unnamed(5), unnamed(1.6, path="/data/other")]
    assert claims_unnamed(tmp_path, [ran("x", 1, 2, read=(200, 2))], log) == [
        (None, "shared", 1), ("x", "time_unique", 1), (None, "none", 0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "path", ["/opt/env/lib/python3.12/json/a.json", "/home/jane/tool.py", "/tmp/dask/storage/key", "/proc/meminfo"]
)
def test_files_of_python_and_dask_are_not_claimed_by_time(tmp_path, path):
    own = process("worker", 100, address=A, local_directory="/tmp/dask")
    assert claims_unnamed(tmp_path, [own, ran("x", 1, 2, read=(100, 1))], [unnamed(1.5, path=path)]) == [
        (None, "shared", 1)
    ]


def test_files_of_python_are_claimed_where_the_thread_tells(tmp_path):
    assert claims(tmp_path, [ran("x", 1, 2)], [segment(1.5, path="/home/jane/tool.py")]) == [("x", "thread", 1)]


def test_where_attempts_are_missing_from_the_record_time_tells_nothing(tmp_path):
    lost = schema.Loss(at(3), "dropped", "thread_counters", 10, "full disk")
    assert claims_unnamed(tmp_path, [ran("x", 1, 2, read=(100, 1)), lost], [unnamed(1.5)]) == [(None, "shared", 1)]


def test_a_task_without_an_end_may_have_done_it_too(tmp_path):
    begun = schema.WorkerTransition(at(1.1), "y", 0, "ready", "executing", None, "s")
    assert claims_unnamed(tmp_path, [ran("x", 1, 2, read=(100, 1)), begun], [unnamed(1.5)]) == [(None, "shared", 2)]


def test_a_file_opened_once_and_closed_inside_one_task_is_its_own(tmp_path):
    worker = [ran("x", 1, 3, read=(100, 1)), ran("y", 1.5, 2.5, thread=8, read=(0, 0))]
    opened = file_of("/data/x", open_count=1, first_s=1.2, last_s=2.0)
    assert claims_unnamed(tmp_path, worker, [opened, unnamed(1.7)]) == [("x", "path", 2)]


@pytest.mark.parametrize(
    "record",
    [
        {"open_count": 2, "first_s": 1.2, "last_s": 2.0},
        {"open_count": 1, "first_s": 1.6, "last_s": 2.0},
        {"open_count": 1, "first_s": 0.9, "last_s": 2.0},
        {"open_count": 1, "first_s": 1.2, "last_s": 3.1},
    ],
    ids=["opened twice", "inside both", "opened before", "closed after"],
)
def test_a_file_that_another_task_may_have_opened_is_not_claimed(tmp_path, record):
    worker = [ran("x", 1, 3, read=(100, 1)), ran("y", 1.5, 2.5, thread=8, read=(0, 0))]
    log = [file_of("/data/x", **record), unnamed(1.7)]
    assert claims_unnamed(tmp_path, worker, log) == [(None, "shared", 2)]
