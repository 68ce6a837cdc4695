"""Which task did which I/O: rows add up, and say where they come from, with and without Darshan."""

import json

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recup import schema
from recup.analyse.io import GROUPS, REST, io_by, io_record, io_source
from recup.cli import main
from recup.errors import BadQuery
from recup.rundir import create_run
from recup.store import open_run
from tests.unit.spooled import write
from tests.unit.test_fuse_io import LOG, S, W, beacon, process, ran, segment, stream_of
from tests.unit.written_runs import A, B, at, row

NO_TASK = "no task: imports, Dask itself, recup"
SEVERAL = "tasks, but not sure which or whether"
HELPERS = "helper threads while tasks ran"


def made(tmp_path, *, worker=(), log=None, operations=None, name="run", has_beacon=True, others=()):
    """Write a run of one worker; without `log` there is no Darshan log."""
    path = create_run(tmp_path, way="run", command=["job.py"], run_id=name)
    came = row(schema.Worker, time_ns=at(0), action="add", address=A, worker_id=W, pid=100)
    tasks = [row(schema.Task, key=key, prefix=key[0], group=key[0]) for key in ("x1", "x2", "y1")]
    graph = row(schema.Submission, time_ns=at(0), submission=0, stimulus_id="s")
    host = row(schema.Host, host_id="host", hostname="node")
    write(path, "scheduler", S, [host, process("scheduler"), came, graph, *tasks])
    shone, seen = beacon(0)
    write(path, "worker", W, [process("worker", 100, address=A), *([shone] if has_beacon else []), *worker])
    if log is not None:
        log = [*([seen] if has_beacon else []), *log]
        count = sum(isinstance(each, schema.IoSegment) for each in log)
        about = row(
            schema.IoLog, log=LOG, format_version="3.41", hostname="node", pid=100, modules="{}", start_s=at(0) / 1e9,
            has_thread_ids=True, segment_count=count, operation_count=count if operations is None else operations,
        )  # fmt: skip
        write(path, "launcher", "Ingest-1", [about, *log, *others])
    return path


def rows_of(run, by, *columns):
    return [tuple(each[name] for name in columns) for each in io_by(run, by).to_pylist()]


def rows(path, by, *columns):
    with open_run(path) as run:
        return rows_of(run, by, *columns)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    return made(
        tmp_path_factory.mktemp("traced"),
        worker=[ran("x1", 1, 2), ran("x2", 3, 4), ran("y1", 1, 2, thread=8)],
        log=[
            segment(1.5, 1.6, nbytes=1000), segment(1.55, 1.7, nbytes=2**21, direction="write", path="/data/z"),
            segment(3.5, 3.6, nbytes=500), segment(1.5, thread=8, nbytes=200, path="/data/z"),
            segment(1.999, 2.001, nbytes=30), segment(1.5, thread=99, nbytes=20), segment(9, nbytes=10),
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def opened(traced):
    with open_run(traced) as run:
        yield run


def test_by_prefix_each_prefix_and_each_reason_for_no_task_is_a_row(opened):
    names = ("prefix", "owner", "read_bytes", "written_bytes", "read_count", "write_count", "file_count", "task_count")
    assert rows_of(opened, "prefix", *names) == [
        ("x", "task", 1500, 2**21, 2, 1, 2, 2),
        ("y", "task", 200, 0, 1, 0, 1, 1),
        (None, SEVERAL, 30, 0, 1, 0, 1, 0),
        (None, HELPERS, 20, 0, 1, 0, 1, 0),
        (None, NO_TASK, 10, 1, 1, 1, 2, 0),
    ]


def test_by_task_time_in_io_counts_overlaps_once(opened):
    found = rows_of(opened, "task", "key", "run_id", "io_s", "small_share")
    assert found[:3] == [
        ("x1", 0, pytest.approx(0.2, abs=1e-6), 0.5),
        ("x2", 0, pytest.approx(0.1, abs=1e-6), 1.0),
        ("y1", 0, pytest.approx(0.001, abs=1e-6), 1.0),
    ]


def test_by_file_a_row_says_how_much_of_it_is_of_tasks(opened):
    found = rows_of(opened, "file", "path", "read_bytes", "written_bytes", "task_count", "attributed_share")
    assert found == [
        ("/data/z", 200, 2**21, 2, 1.0),
        ("/data/x", 1560, 0, 2, pytest.approx(1500 / 1560)),
        ("/run/beacon-100", 0, 1, 0, 0.0),
    ]


def test_by_worker_and_thread_everything_is_of_one(opened):
    assert rows_of(opened, "worker", "worker", "read_bytes", "written_bytes") == [(A, 1760, 2**21 + 1)]
    assert rows_of(opened, "thread", "thread", "read_bytes") == [(7, 1540), (8, 200), (99, 20), (1, 0)]


def test_streams_that_dxt_does_not_trace_are_in_the_rows(tmp_path):
    path = made(
        tmp_path, worker=[ran("x1", 1, 2, written=(872, 1))], log=[stream_of("/data/x.npy"), segment(1.5, nbytes=7)]
    )
    names = ("key", "read_bytes", "written_bytes", "stream_bytes", "write_count")
    assert rows(path, "task", *names)[0] == ("x1", 7, 872, 872, 1)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    segments=st.lists(
        st.tuples(st.integers(0, 50), st.sampled_from((7, 8, 99)), st.sampled_from(("read", "write"))), max_size=12
    )
)
def test_rows_add_up_to_all_that_was_traced_however_they_are_asked(tmp_path_factory, segments):
    log = [
        segment(start / 10, thread=thread, direction=direction, nbytes=2**n, path=f"/data/{n % 3}")
        for n, (start, thread, direction) in enumerate(segments)
    ]
    path = made(
        tmp_path_factory.mktemp("run"), worker=[ran("x1", 1, 2), ran("x2", 2, 3), ran("y1", 1, 4, thread=8)], log=log
    )
    whole = {"read": 0, "write": 1}  # the beacon
    for each in log:
        whole[each.direction] += each.nbytes
    with open_run(path) as run:
        for by in GROUPS:
            table = io_by(run, by).to_pylist()
            assert sum(each["read_bytes"] for each in table) == whole["read"]
            assert sum(each["written_bytes"] for each in table) == whole["write"]
            assert sum(each["read_count"] + each["write_count"] for each in table) == len(log) + 1


def test_methods_of_actors_go_by_the_name_that_profile_gives_them(tmp_path):
    worker = [ran("Act.go", 1, 2, run_id=-1, kind="actor"), ran("x1", 1, 2, thread=8)]
    path = made(tmp_path, worker=worker, log=[segment(1.5), segment(1.5, thread=8, nbytes=7)])
    assert rows(path, "prefix", "prefix", "owner", "read_bytes")[:2] == [("Act.go", "task", 100), ("x", "task", 7)]
    path = made(tmp_path, worker=worker, name="counters")
    assert sorted(rows(path, "prefix", "prefix", "task_count", "read_bytes")) == [("Act.go", 1, 10), ("x", 1, 10)]
    assert sorted(rows(path, "task", "key", "prefix", "read_bytes")) == [("Act.go", "Act.go", 10), ("x1", "x", 10)]


def test_what_no_recorded_process_did_is_told_from_what_dask_did(tmp_path):
    of_a_child = row(
        schema.IoLog, log="cat.darshan", format_version="3.41", hostname="node", pid=101, modules="{}",
        start_s=at(0) / 1e9, has_thread_ids=True, segment_count=1, operation_count=1,
    )  # fmt: skip
    others = [of_a_child, segment(1.5, nbytes=20, log="cat.darshan")]
    path = made(tmp_path, worker=[ran("x1", 1, 2)], log=[segment(3, nbytes=8)], others=others)
    assert rows(path, "prefix", "owner", "read_bytes") == [
        ("no task: processes without recup, e.g. children of tasks", 20), (NO_TASK, 8)
    ]  # fmt: skip


# ---------------------------------------------------------------- without Darshan


def counted(tmp_path, *, has_samples=True):
    samples = [
        row(schema.Sample, time_ns=at(seconds), metric=f"process_{kind}_bytes", value=float(value))
        for seconds, values in ((0, (1000, 2000)), (5, (1100, 2025)))
        for kind, value in zip(("read", "written"), values, strict=True)
    ]
    worker = [ran("x1", 1, 2), ran("x2", 3, 4), ran("y1", 1, 2, thread=8)]
    return made(tmp_path, worker=[*worker, *(samples if has_samples else [])])


def test_counters_of_threads_tell_bytes_and_the_rest_of_the_process_is_a_row(tmp_path):
    path = counted(tmp_path)
    names = ("prefix", "owner", "read_bytes", "written_bytes", "read_count", "io_s", "file_count")
    assert rows(path, "prefix", *names) == [
        (None, REST, 70, 0, None, None, None), ("x", "task", 20, 40, 2, None, None), ("y", "task", 10, 20, 1, None, None)
    ]  # fmt: skip
    assert rows(path, "task", "key", "owner", "read_bytes")[1:] == [
        ("x1", "task", 10), ("x2", "task", 10), ("y1", "task", 10)
    ]  # fmt: skip
    assert rows(path, "thread", "thread", "owner", "read_bytes") == [
        (None, REST, 70), (7, "task", 20), (8, "task", 10)
    ]  # fmt: skip
    with open_run(path) as run:
        assert io_source(run) == "thread counters"
        assert "counters of threads in 1 of 1 workers" in io_record(run)["statement"]


def shared(path, pid=200):
    """Two workers, the scheduler and a client in one process: each samples its counters."""
    path = create_run(path, way="run", command=["job.py"], run_id="run")
    samples = {
        server: [
            row(schema.Sample, time_ns=at(seconds), metric=f"process_{kind}_bytes", value=float(value))
            for seconds, values in moments
            for kind, value in zip(("read", "written"), values, strict=True)
        ]
        for server, moments in {W: ((0, (1000, 2000)), (5, (1100, 2090))), "Worker-b": ((1, (1010, 2000)), (6, (1130, 2095)))}.items()
    }  # fmt: skip
    about = process("scheduler", pid, process_started_s=1.0)
    write(path, "scheduler", S, [row(schema.Host, host_id="host", hostname="node"), about])
    write(path, "client", "Client-1", [process("client", pid, process_started_s=1.0)])
    for server, address, key, started_s in ((W, A, "x1", 1.01), ("Worker-b", B, "x2", 0.99)):
        where = process("worker", pid, address=address, process_started_s=started_s)
        write(path, "worker", server, [where, ran(key, 1, 2), *samples[server]])
    return path


def test_what_a_process_of_several_servers_did_counts_once(tmp_path):
    rest = REST.replace("process", "process of 2 workers", 1) + ", the scheduler, a client"
    path = shared(tmp_path)
    assert rows(path, "worker", "worker", "owner", "read_bytes", "written_bytes") == [
        (None, rest, 110, 55), (A, "task", 10, 20), (B, "task", 10, 20)
    ]  # fmt: skip
    assert rows(path, "prefix", "owner", "read_bytes", "written_bytes") == [(rest, 110, 55), ("task", 20, 40)]
    assert f"[{rest[:60]}" in recup(path, "--by", "worker")


def test_processes_that_had_one_id_after_each_other_are_two(tmp_path):
    path = create_run(tmp_path, way="run", command=["job.py"], run_id="run")
    write(path, "scheduler", S, [row(schema.Host, host_id="host", hostname="node"), process("scheduler")])
    for server, address, began in ((W, A, 100.0), ("Worker-b", B, 400.0)):
        samples = [
            row(schema.Sample, time_ns=at(began + n), metric=f"process_{kind}_bytes", value=began + 17 * n)
            for n in (0, 1)
            for kind in ("read", "written")
        ]
        write(
            path,
            "worker",
            server,
            [process("worker", 5, address=address, process_started_s=began), ran("x1", 1, 2), *samples],
        )
    assert rows(path, "worker", "worker", "owner", "read_bytes") == [
        (A, "task", 10), (B, "task", 10), (A, REST, 7), (B, REST, 7)
    ]  # fmt: skip
    page = recup(path, "--by", "worker")
    assert f"{A} [rest of the process:" in page


def test_without_samples_of_the_process_only_tasks_are_rows(tmp_path):
    assert rows(counted(tmp_path, has_samples=False), "worker", "worker", "owner", "read_bytes") == [(A, "task", 30)]


def test_files_cannot_be_told_without_darshan(tmp_path):
    with open_run(counted(tmp_path)) as run, pytest.raises(BadQuery, match="recup run --darshan"):
        io_by(run, "file")


def test_another_row_than_those_offered_is_refused(tmp_path):
    with open_run(counted(tmp_path)) as run, pytest.raises(BadQuery, match="task, prefix, file"):
        io_by(run, "phase")


# ---------------------------------------------------------------- what is said of the record


def record_of(path):
    with open_run(path) as run:
        return io_record(run)


def test_the_record_says_what_darshan_did_not_trace(tmp_path):
    path = made(tmp_path, worker=[ran("x1", 1, 2)], log=[segment(1.5)], operations=5, has_beacon=False)
    record = record_of(path)
    assert record["is_complete"] is False
    assert record["statement"] == (
        "Darshan traced 1 reads and writes in 1 logs; 4 of 5 operations are not traced; 1 logs are partial or damaged; "
        "1 logs have no beacon, so that times are known to 12.5 ms only."
    )
    assert [(each["attribution"], each["count"], each["bytes_share"]) for each in record["classes"]] == [
        ("thread", 1, 1.0)
    ]


def test_the_record_says_that_tasks_did_not_end(tmp_path):
    begun = schema.WorkerTransition(at(3), "x2", 0, "ready", "executing", None, "s")
    record = record_of(made(tmp_path, worker=[ran("x1", 1, 2), begun], log=[segment(1.5)]))
    assert (record["is_complete"], record["statement"]) == (
        False,
        "Darshan traced 2 reads and writes in 1 logs; 1 tasks have no recorded end, so that what they did is of none "
        "for sure.",
    )


def test_the_record_says_what_a_task_may_have_done_after_the_log_was_written(tmp_path):
    lost = schema.Loss(at(3), "gap", "io_segments", None, "Darshan's log was written while 1 tasks still ran")
    record = record_of(made(tmp_path, worker=[ran("x1", 1, 2), lost], log=[segment(1.5)]))
    assert record["is_complete"] is False
    assert record["statement"] == (
        "Darshan traced 2 reads and writes in 1 logs; of 1 workers: Darshan's log was written while 1 tasks still ran."
    )


def test_the_record_says_where_tasks_moved_more_than_darshan_counted(tmp_path):
    moved = [ran("x1", 1, 2), ran("x2", 2, 3)._replace(read_chars_bytes=3 * 2**20)]
    stream = stream_of("/data/x.npy")
    path = made(tmp_path, worker=moved, log=[segment(1.5, nbytes=2**20), stream])
    record = record_of(path)
    assert record["is_complete"] is False
    assert record["statement"] == (
        "Darshan traced 2 reads and writes in 1 logs; threads of tasks moved 2.0 MiB more than Darshan counted, by "
        "sockets, pipes or calls it does not see (sendfile, copy_file_range)."
    )
    assert record["numbers"]["unseen_bytes"] == 2 * 2**20 + 10 + 2 * 20 - 1 - stream.written_bytes


@pytest.mark.parametrize("has_counters", [True, False])
def test_where_darshan_was_asked_for_in_vain_the_reason_is_told_not_how_to_ask(tmp_path, has_counters):
    reason = "workers in the process of the program cannot be traced"
    loss = row(schema.Loss, kind="not_captured", table="io_segments", detail=reason)
    path = made(tmp_path, worker=[*([ran("x1", 1, 2)] if has_counters else []), loss])
    (path / "foreign" / "darshan").mkdir(parents=True)
    (path / "foreign" / "darshan" / "request.json").write_text("{}")
    with open_run(path) as run:
        statement = io_record(run)["statement"]
        with pytest.raises(BadQuery, match=f"Darshan was asked for: {reason}."):
            io_by(run, "file")
    assert statement.endswith(f" Darshan was asked for: {reason}.")
    assert "recup run --darshan" not in statement


def recup(*arguments):
    result = CliRunner().invoke(main, ["io", *map(str, arguments)], prog_name="recup")
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_page_begins_with_how_complete_the_record_is(traced):
    page = recup(traced, "--by", "task")
    assert page.splitlines()[0].split() == [
        "complete", "Darshan", "traced", "8", "reads", "and", "writes", "in", "1", "logs,", "all", "that", "it", "counted."
    ]  # fmt: skip
    assert page.index("x1") < page.index(f"[{SEVERAL[:10]}")
    assert "How sure the tasks are" in page


def test_what_is_of_no_task_is_shown_however_few_rows_are_asked_for(traced):
    page = recup(traced, "--limit", "1")
    assert "and 1 row more" in page
    assert f"[{NO_TASK}]" in page


def test_a_run_without_io_says_how_to_record_it(tmp_path):
    page = recup(made(tmp_path))
    assert page.startswith("partly")
    assert "recup run --darshan" in page
    assert "Reads and writes" not in page


def test_json_holds_the_same_as_the_page(traced):
    document = json.loads(recup(traced, "--by", "prefix", "--json"))
    assert (document["run_id"], document["by"], document["record"]["source"]) == ("run", "prefix", "darshan")
    assert [(each["prefix"], each["read_bytes"]) for each in document["rows"]][:2] == [("x", 1500), ("y", 200)]


def test_a_path_from_a_log_cannot_act_on_the_terminal(tmp_path):
    path = made(tmp_path, worker=[ran("x1", 1, 2)], log=[segment(1.5, path="/data/\x1b[31m[b]x\n")])
    page = recup(path, "--by", "file")
    assert "\\x1b[31m[b]x\\n" in page
    assert "\x1b" not in page


def test_the_story_of_a_task_tells_its_reads_and_writes_by_file(traced):
    from recup.analyse.story import story

    with open_run(traced) as run:
        found = [
            (round(row["time_s"], 6), row["what"], row["details"])
            for row in story(run, "x1").to_pylist()
            if row["what"].endswith("a file")
        ]
    assert found == [
        (1.5, "reads a file", "/data/x, of 1000 B, in 1 operation, took 100 ms, run 0"),
        (1.55, "writes a file", "/data/z, of 2.0 MiB, in 1 operation, took 150 ms, run 0"),
    ]


def test_the_story_tells_what_went_through_a_stream_as_a_sum(tmp_path):
    from recup.analyse.story import story

    path = made(
        tmp_path, worker=[ran("x1", 1, 2, written=(872, 1))], log=[stream_of("/data/x.npy"), segment(1.5, nbytes=7)]
    )
    with open_run(path) as run:
        found = [(row["what"], row["details"]) for row in story(run, "x1").to_pylist() if "C stream" in row["details"]]
    assert found == [("writes a file", "/data/x.npy, of 872 B, in 1 operation, as C stream, run 0")]
