"""Whether storage was the bottleneck, on runs written for it."""

import pytest

from recup.analyse.storage import storage
from recup.analyse.storage_rows import file_totals, storage_by, storage_files
from recup.rundir import create_run
from recup.store import open_run
from tests.unit.flow_runs import T, flow_run
from tests.unit.test_fuse_io import file_of, ran, segment, stream_of, told
from tests.unit.test_io_question import made
from tests.unit.written_runs import A, write_run

MB = 1_000_000


def computed(key, start, stop, **values):
    return [ran(key, start, stop, **values), *told(key, start, stop, **values)]


def answer(path):
    with open_run(path) as run:
        return storage(run)


def test_a_prefix_that_spends_its_time_in_small_requests_is_named_with_both(tmp_path):
    log = [segment(1 + n * 1e-3, 1 + n * 1e-3 + 9e-4, nbytes=1000, offset=n * 1000) for n in range(1001)]
    worker = [*computed("x1", 0.9, 2.1), *computed("y1", 3.0, 3.5)]
    found = answer(made(tmp_path, worker=worker, log=log))
    (conclusion,) = found.conclusions
    assert (conclusion.subject, conclusion.certainty) == ("x", "likely")
    assert conclusion.thread_s == pytest.approx(0.9009, abs=1e-4)
    assert conclusion.statement == (
        "x spends 901 ms in reads and writes of files (75% of its computing): 977.5 KiB read, 0 B written. 100% of its "
        "1,001 requests are below 1 MiB and take 901 ms."
    )
    assert found.headline.startswith("Tasks spent 901 ms in reads and writes of files, 53.0% of their computing time;")


def test_a_few_large_requests_bind_a_prefix_and_are_not_called_small(tmp_path):
    log = [segment(1.0, 1.9, nbytes=2**24)]
    (conclusion,) = answer(made(tmp_path, worker=computed("x1", 0.9, 2.1), log=log)).conclusions
    assert "below 1 MiB" not in conclusion.statement
    assert (conclusion.thread_s, conclusion.evidence["small_io_s"]) == (pytest.approx(0.9, abs=1e-4), 0.0)


def test_bytes_read_again_by_several_tasks_are_told_with_the_file(tmp_path):
    worker = [each for n, key in enumerate(("x1", "x2", "y1")) for each in computed(key, 1.0 + n, 1.9 + n)]
    log = [segment(1.1 + n, 1.3 + n, nbytes=2**24, path="/data/shared") for n in range(3)]
    path = made(tmp_path, worker=worker, log=log)
    (again,) = [each for each in answer(path).conclusions if each.subject == "/data/shared"]
    assert again.statement == (
        "At least 32.0 MiB of 48.0 MiB read from files had been read before, in 1 file; most of /data/shared: 32.0 MiB "
        "again, by 3 tasks on 1 worker."
    )
    assert again.thread_s == pytest.approx(0.4, abs=1e-4)
    with open_run(path) as run:
        (row,) = storage_files(run).to_pylist()
    assert (row["reread_bytes"], row["reader_task_count"], row["reader_worker_count"]) == (2**25, 3, 1)


def test_of_files_read_again_equally_much_the_first_by_name_is_told(tmp_path):
    worker = [each for n, key in enumerate(("x1", "x2", "y1")) for each in computed(key, 1.0 + n, 1.9 + n)]
    log = [
        segment(1.1 + n + shift, 1.2 + n + shift, nbytes=2**24, path=f"/data/{name}")
        for n in range(3)
        for name, shift in (("c", 0.0), ("a", 0.2), ("b", 0.4))
    ]
    with open_run(made(tmp_path, worker=worker, log=log)) as run:
        totals = file_totals(run)
    assert (totals["most_reread_path"], totals["most_reread_bytes"]) == ("/data/a", 2**25)


def test_parts_of_a_file_read_by_several_tasks_were_not_read_again(tmp_path):
    worker = [each for n, key in enumerate(("x1", "x2", "y1")) for each in computed(key, 1.0 + n, 1.9 + n)]
    log = [segment(1.1 + n, 1.15 + n, nbytes=2**24, path="/data/shared", offset=n * 2**24) for n in range(3)]
    assert answer(made(tmp_path, worker=worker, log=log)).conclusions == ()


def test_opens_that_take_longer_than_reading_are_told(tmp_path):
    log = [
        segment(1.1, 1.101, nbytes=2**21),
        file_of("/data/x", open_count=900, read_count=1, write_count=0, meta_s=0.5, read_s=0.001, write_s=0.0),
    ]
    (conclusion,) = answer(made(tmp_path, worker=computed("x1", 1.0, 2.0), log=log)).conclusions
    assert (conclusion.subject, conclusion.thread_s) == ("opens and closes", 0.5)
    assert "900 opens of 1 file. /data/x was opened 900 times." in conclusion.statement


def test_a_run_that_reads_little_gives_no_conclusion_though_requests_are_small_and_random(tmp_path):
    log = [segment(1.1 + n * 1e-5, 1.1 + n * 1e-5 + 1e-6, nbytes=10, offset=7 * n % 11) for n in range(2000)]
    assert answer(made(tmp_path, worker=computed("x1", 1.0, 2.0), log=log)).conclusions == ()


def test_by_prefix_worker_and_thread_seconds_are_those_of_tasks(tmp_path):
    worker = [*computed("x1", 1.0, 2.0), *computed("y1", 1.0, 3.0, thread=8)]
    log = [
        segment(1.1, 1.2, nbytes=10),
        segment(1.1, 1.4, nbytes=2**21, thread=8, direction="write"),
        segment(1.1, 1.9, nbytes=5, thread=99),
        stream_of("/data/x.npy"),
    ]
    with open_run(made(tmp_path, worker=worker, log=log)) as run:
        prefixes, threads = (storage_by(run, by).to_pylist() for by in ("prefix", "thread"))
    names = ("prefix", "attempt_count", "compute_s", "io_s", "io_share", "read_bytes", "written_bytes", "small_share")
    assert [tuple(row[name] for name in names) for row in prefixes] == [
        ("y", 1, pytest.approx(2.0), pytest.approx(0.3), pytest.approx(0.15), 0, 2**21, 0.0),
        ("x", 1, pytest.approx(1.0), pytest.approx(0.1), pytest.approx(0.1), 10, 0, 1.0),
    ]
    assert [(row["worker"], row["thread"]) for row in threads] == [(A, 8), (A, 7)]


# ---------------------------------------------------------------- without Darshan


def counted(tmp_path, calls, cpu_s):
    tasks = [T(f"x-{n}", A, 1.0 + n, 1.9 + n, cpu_s=cpu_s, calls=calls) for n in range(4)]
    return flow_run(tmp_path, tasks)


def test_many_small_calls_and_waits_are_a_possibility_without_seconds(tmp_path):
    found = answer(counted(tmp_path, (500_000, 500_000, 1000, 1000), 0.1))
    (conclusion,) = found.conclusions
    assert (conclusion.subject, conclusion.certainty, conclusion.thread_s) == ("x", "possible", None)
    assert "8,000 read and write calls of 500 B on average" in conclusion.statement
    assert "how much of it for files is not known" in conclusion.statement
    assert found.headline.startswith("Without Darshan the time in files is not known")


@pytest.mark.parametrize(("calls", "cpu_s"), [((500_000, 0, 1000, 0), 0.89), ((0, 0, 0, 0), 0.0)])
def test_calls_of_busy_threads_and_waits_without_calls_say_nothing(tmp_path, calls, cpu_s):
    assert answer(counted(tmp_path, calls, cpu_s)).conclusions == ()


@pytest.mark.parametrize("kind", ["empty", "killed", "ended"])
def test_runs_with_little_or_nothing_in_them_are_answered(tmp_path, kind):
    path = (
        create_run(tmp_path, way="run", command=["job"])
        if kind == "empty"
        else write_run(tmp_path, ended=kind == "ended")
    )
    found = answer(path)
    assert found.conclusions == ()
    if kind == "empty":
        assert found.headline == "Whether storage was the bottleneck is not known."
        assert "recup run --darshan" in found.basis
    else:
        assert [table.name for table in found.tables] == ["prefixes", "workers", "threads"]


def test_a_log_of_a_run_without_tasks_is_answered(tmp_path):
    found = answer(made(tmp_path, log=[segment(1.1, 1.2, nbytes=MB)]))
    assert (found.headline, found.conclusions) == (
        "Tasks spent 0 s in reads and writes of files; processes moved 976.6 KiB in 1 file.",
        (),
    )
