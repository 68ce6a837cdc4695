"""Small runs written row by row, as the capture side writes them."""

import json
import math
from pathlib import Path

from recup import schema
from recup.rundir import create_run, update_manifest
from recup.schema import table_of
from recup.spool import Spool

START_NS = 1_700_000_000_000_000_000
A, B = "tcp://10.0.0.1:4001", "tcp://10.0.0.2:4002"
NASTY = "boom-[red]</script>\x1b[31m\n1"


def row(row_class, **values):
    """Return a row: what is not given is null where the column has nulls, else empty or zero."""
    table = table_of(row_class)
    empty = {"int64": 0, "float64": 0.0, "bool": False, "text": "", "category": "", "key": ""}
    filled = {}
    for column in table.columns:
        null = -1 if column.null_value is not None else None if column.null else empty[column.kind]
        filled[column.name] = values.pop(column.name, null)
    assert not values, f"{table.name} has no {sorted(values)}"
    return row_class(**filled)


def at(seconds):
    return START_NS + round(seconds * 1e9)


def write(path, role, server_id, rows):
    """Write the rows of one server, closed in order."""
    spool = Spool(path, role, server_id)
    for each in rows:
        spool.put(each)
    spool.close()
    let_go(spool)
    return spool


def let_go(spool):
    """Have the writer thread leave a spool at once: for some seconds it would go on to write over its status."""
    spool.closed_at_s = -math.inf
    assert spool.flush()


def write_run(root: Path, *, run_id="20231114T221320Z-abcd", ended=True, skip=()):
    """Write a run of two workers: `inc-1` is computed on A and used by NASTY, which fails twice on B.

    `skip` names servers that leave no spool.
    """
    path = create_run(root, way="run", command=["/usr/bin/python", "job.py"], run_id=run_id)
    servers = {
        "Scheduler-1": ("scheduler", scheduler_rows()),
        "Worker-a": ("worker", worker_a_rows()),
        "Worker-b": ("worker", worker_b_rows()),
        "Client-1": ("client", client_rows()),
    }
    for server_id, (role, rows) in servers.items():
        if server_id not in skip:
            write(path, role, server_id, rows)
    changes = {"started_ns": START_NS, "cwd": "/home/jane"}
    if ended:
        changes |= {"state": "ended", "ended_ns": at(3), "exit_code": 0}
    update_manifest(path, **changes)
    return path


def _process(role, address=None, **values):
    return row(
        schema.Process, time_ns=at(0), role=role, address=address, scheduler_id="Scheduler-1", host_id="host", pid=1,
        python_version="3.12.0", dask_version="2026.8.0", distributed_version="2026.8.0", recup_version="0.1.0",
        arguments="[]", resource_limits="{}", **values,
    )  # fmt: skip


def _host():
    return row(
        schema.Host, host_id="host", hostname="node1", operating_system="Linux", kernel="6", architecture="x86_64",
        cpu_count=8, core_count=4, memory_bytes=2**34,
    )  # fmt: skip


def scheduler_rows():
    def moved(seconds, key, start, finish, stimulus, worker=None, run_id=-1):  # noqa: PLR0917
        return schema.SchedulerTransition(at(seconds), key, start, finish, stimulus, worker, run_id)

    task = {"submission": 0, "prefix": "inc", "group": "inc", "function": "job.inc", "priority_order": 0}
    boom = {"submission": 0, "prefix": "boom", "group": "boom", "function": "job.boom", "retries": 1}
    return [
        _host(),
        _process("scheduler", "tcp://10.0.0.9:8786"),
        row(schema.Worker, time_ns=at(0.1), action="add", address=A, worker_id="Worker-a", thread_count=2),
        row(schema.Worker, time_ns=at(0.1), action="add", address=B, worker_id="Worker-b", thread_count=2),
        row(schema.Client, time_ns=at(0.1), action="add", client="Client-1"),
        row(schema.ClockSample, time_ns=at(0.1), monotonic_ns=1),
        row(schema.Sample, time_ns=at(0.1), metric="tasks_count", value=0.0),
        row(
            schema.Submission, time_ns=at(1.0), submission=0, client="Client-1", stimulus_id="update-graph-1",
            wanted_key_count=1, keys_digest="d", task_count=2, new_task_count=2,
        ),
        row(schema.Task, key="inc-1", **task),
        row(schema.Task, key=NASTY, dependency_count=1, **boom),
        schema.Dependency(0, NASTY, "inc-1"),
        moved(1.0, "inc-1", "released", "waiting", "update-graph-1"),
        moved(1.01, "inc-1", "waiting", "processing", "update-graph-1", A, 0),
        moved(1.5, "inc-1", "processing", "memory", "task-finished-1", A, 0),
        schema.Result(at(1.5), "inc-1", 0, "memory", A, 77, 1000, "int", 1_700_000_001.1, 1_700_000_001.4, None),
        moved(1.0, NASTY, "released", "waiting", "update-graph-1"),
        moved(1.51, NASTY, "waiting", "processing", "task-finished-1", B, 1),
        moved(1.7, NASTY, "processing", "waiting", "task-erred-1", B, 1),
        moved(1.71, NASTY, "waiting", "processing", "task-erred-1", B, 2),
        moved(1.9, NASTY, "processing", "erred", "task-erred-2", B, 2),
        schema.Result(at(1.9), NASTY, 2, "erred", B, 78, -1, None, 1_700_000_001.8, 1_700_000_001.85, None),
        schema.TaskError(at(1.9), NASTY, 2, B, None, "ValueError('[red]\x1b[31m')", "Traceback"),
        row(schema.Event, time_ns=at(1.95), topic="all", action="note", payload=json.dumps({"key": "inc-1"})),
    ]  # fmt: skip


def _counted(seconds, key, run_id, outcome, thread, cpu_s):  # noqa: PLR0917
    return schema.ThreadCounter(
        at(seconds), key, run_id, "task", outcome, thread, round(cpu_s * 2e9), round(cpu_s * 1e9), round(cpu_s * 1e9), 0,
        1000, 1, 2, 3, 0, 4096, 8192, 1, 2, 0, 0,
    )  # fmt: skip


def worker_a_rows():
    return [
        schema.Thread(at(1.09), 77, 4077, "Dask-Default-Threads-77"),
        _counted(1.1, "inc-1", 0, "returned", 77, 0.15),
        schema.FineMetric(at(2), "execute", None, "inc", "thread-cpu", "seconds", 0.151),
        _host(),
        _process("worker", A, thread_count=2),
        row(schema.ClockSample, time_ns=at(0.1), monotonic_ns=1, scheduler_delay_s=0.0),
        schema.Reception(at(1.02), "inc-1", 0, 0, 0, 0),
        schema.WorkerTransition(at(1.02), "inc-1", 0, "released", "waiting", None, "compute-task-1"),
        schema.WorkerTransition(at(1.03), "inc-1", 0, "ready", "executing", None, "compute-task-1"),
        schema.WorkerTransition(at(1.45), "inc-1", 0, "executing", "memory", None, "task-finished-1"),
        schema.Result(at(1.45), "inc-1", 0, "memory", A, 77, 1000, "int", 1_700_000_001.1, 1_700_000_001.4, 0.0),
        schema.Transfer(at(1.6), 0, "outgoing", B, 1_700_000_001.55, 1_700_000_001.6, 1000, 900, 1, 0.0),
        schema.TransferKey(0, "inc-1", 1000),
        row(
            schema.Log, time_ns=at(2), level="WARNING", logger="distributed.worker", message="[b]slow\x1b]0;x\x07 loop"
        ),
    ]


def worker_b_rows():
    return [
        schema.Thread(at(1.6), 78, 4078, "Dask-Default-Threads-78"),
        _counted(1.61, NASTY, 1, "ValueError", 78, 0.01),
        _counted(1.8, NASTY, 2, "ValueError", 78, 0.01),
        _process("worker", B, thread_count=2),
        row(schema.ClockSample, time_ns=at(0.1), monotonic_ns=1, scheduler_delay_s=0.0),
        schema.Reception(at(1.52), NASTY, 1, 1, 1000, 1),
        schema.Transfer(at(1.6), 0, "incoming", A, 1_700_000_001.55, 1_700_000_001.6, 1000, None, 1, 0.0),
        schema.TransferKey(0, "inc-1", 1000),
        schema.Result(at(1.65), NASTY, 1, "error", B, 78, -1, None, 1_700_000_001.61, 1_700_000_001.64, 0.0),
        schema.TaskError(at(1.65), NASTY, 1, B, None, "ValueError('[red]\x1b[31m')", "Traceback"),
        schema.Reception(at(1.72), NASTY, 2, 1, 1000, 0),
        schema.Result(at(1.86), NASTY, 2, "error", B, 78, -1, None, 1_700_000_001.8, 1_700_000_001.85, 0.0),
        schema.TaskError(at(1.86), NASTY, 2, B, None, "ValueError('[red]\x1b[31m')", "Traceback"),
    ]


def client_rows():
    return [
        _process("client"),
        row(schema.ClockSample, time_ns=at(0.1), monotonic_ns=1),
        row(
            schema.ClientSubmission, time_ns=at(0.9), submission=0, client="Client-1", call="compute", expression="X",
            wanted_key_count=1, keys_digest="d", task_count=2,
        ),
        row(
            schema.SubmissionFrame, submission=0, depth=0, path="/home/jane/job.py", line=12, function="<module>",
            line_text="boom(inc(1)).compute()",
        ),
    ]  # fmt: skip
