"""Runs of one scheduler written attempt by attempt, for questions about time."""

import json

from recup import schema
from recup.rundir import create_run, update_manifest
from recup.store import open_run
from tests.unit.written_runs import START_NS, A, B, at, row, write

S, WA, WB, C = "Scheduler-1", "Worker-a", "Worker-b", "Client-1"
PLACES = {A: WA, B: WB}
PIDS = {S: 1, WA: 11, WB: 12, C: 2}


def process(role, server_id, address=None, **values):
    """The process of a server, all on one host."""
    filled = {
        "time_ns": at(0), "role": role, "address": address, "scheduler_id": S, "host_id": "host",
        "pid": PIDS[server_id], "arguments": "[]", "resource_limits": "{}",
    }  # fmt: skip
    return row(schema.Process, **{**filled, **values})


def came(address=A, seconds=0.0, threads=1, **values):
    return row(
        schema.Worker, time_ns=at(seconds), action="add", address=address, worker_id=PLACES[address],
        thread_count=threads, **values,
    )  # fmt: skip


def left(address=A, seconds=0.0, stimulus="handle-worker-cleanup-1"):
    return row(
        schema.Worker, time_ns=at(seconds), action="remove", address=address, worker_id=PLACES[address],
        stimulus_id=stimulus,
    )  # fmt: skip


def graph(seconds=0.0, submission=0, count=1, **values):
    return row(
        schema.Submission, time_ns=at(seconds), submission=submission, client=C, stimulus_id=f"update-graph-{submission}",
        task_count=count, new_task_count=count, **values,
    )  # fmt: skip


def task(key, *dependencies, prefix=None, submission=0, **values):
    """Rows of a task and its inputs."""
    prefix = prefix or key.split("-")[0]
    told = row(
        schema.Task, submission=submission, key=key, prefix=prefix, group=prefix, dependency_count=len(dependencies), **values
    )  # fmt: skip
    return [told, *(schema.Dependency(submission, key, each) for each in dependencies)]


def moved(seconds, key, start, finish, stimulus="s", worker=None, run_id=-1):  # noqa: PLR0917
    return schema.SchedulerTransition(at(seconds), key, start, finish, stimulus, worker, run_id)


def ran(key, run_id, started, stopped, *, assigned=None, worker=A, thread=7, ready=None, stored=None):
    """Rows of an attempt that gave a result: those of the scheduler, and those of the worker."""
    assigned = started if assigned is None else assigned
    stored = stopped if stored is None else stored
    ready = assigned if ready is None else ready
    start_s, stop_s = at(started) / 1e9, at(stopped) / 1e9
    begun = [moved(ready, key, "released", "waiting")]
    if ready < assigned:
        begun += [
            moved(ready, key, "waiting", "queued"),
            moved(assigned, key, "queued", "processing", "s", worker, run_id),
        ]
    else:
        begun += [moved(assigned, key, "waiting", "processing", "s", worker, run_id)]
    by_scheduler = [
        *begun,
        moved(stored, key, "processing", "memory", "task-finished", worker, run_id),
        schema.Result(at(stored), key, run_id, "memory", worker, thread, 8, "int", start_s, stop_s, None),
    ]
    by_worker = [
        schema.Reception(at(assigned), key, run_id, 0, 0, 0),
        schema.WorkerTransition(at(started), key, run_id, "ready", "executing", None, "compute-task"),
        schema.Result(at(stopped), key, run_id, "memory", worker, thread, 8, "int", start_s, stop_s, 0.0),
    ]
    return by_scheduler, by_worker


def counted(key, run_id, started, wall, *, cpu=0.0, kind="task", thread=7):
    """What the thread of an attempt used."""
    return row(
        schema.ThreadCounter, time_ns=at(started), key=key, run_id=run_id, kind=kind, outcome="returned", thread=thread,
        wall_ns=round(wall * 1e9), cpu_ns=-1 if kind == "coroutine" else round(cpu * 1e9), queue_wait_ns=0,
    )  # fmt: skip


def lag(seconds, lag_s, role_rows=True):
    """A sample of a late event loop, with the clocks of that moment."""
    clock = row(schema.ClockSample, time_ns=at(seconds), monotonic_ns=1, scheduler_delay_s=0.0 if role_rows else None)
    return [clock, row(schema.Sample, time_ns=at(seconds), metric="event_loop_lag_s", value=lag_s)]


def made(tmp_path, scheduler=(), workers=None, client=(), *, way="run", ended=10.0, closed=True):
    """Write a run and return it opened; its servers last showed life at `ended`, the scheduler closed or not.

    `workers` maps the address of a worker to its rows.
    """
    path = create_run(tmp_path, way=way, command=["job.py"], run_id="20231114T221320Z-abcd")
    _write(path, "scheduler", S, [process("scheduler", S), *scheduler], ended, closed)
    for address, rows in (workers or {}).items():
        about = process("worker", PLACES[address], address, thread_count=1)
        _write(path, "worker", PLACES[address], [about, *rows], ended, closed)
    if client:
        _write(path, "client", C, client, ended, closed)
    update_manifest(path, started_ns=START_NS, state="ended")
    return open_run(path)


def _write(path, role, server_id, rows, ended, closed):  # noqa: PLR0917
    file = write(path, role, server_id, rows).directory / "status.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "time_ns": at(ended), "closed": closed, "start_ticks": 0})
    )


def nothing(tmp_path):
    """Return a run in which nothing was recorded, opened."""
    return open_run(create_run(tmp_path, way="run", command=["job.py"], run_id="20231114T221320Z-none"))
