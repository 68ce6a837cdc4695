"""Runs that make every part of a report show something, with hostile text in all places."""

import json
import uuid

from recup import schema
from recup.rundir import create_run, update_manifest
from tests.unit.written_runs import START_NS, A, B, at, row, write

HOSTILE = "</script><img src=x onerror=alert(1)>"
TOKEN = "0123456789abcdef0123456789abcdef"
START_S = START_NS / 1e9


def write_reported(root, *, run_id="20231114T221320Z-rept", task_count=240, slow=1.0):
    """Write a run of two workers with two threads each; prefixes load, sum and `HOSTILE` take turns.

    Task n starts at 1 + n * 0.01 s on thread n % 4 and takes 15 ms, so threads idle most of the time; the last
    fails.  `slow` stretches the tasks of load.
    """
    path = create_run(root, way="run", command=["/usr/bin/python", f"{HOSTILE}.py"], run_id=run_id)
    tasks = [_task(number) for number in range(task_count)]
    host = row(
        schema.Host, host_id="host", hostname=HOSTILE, operating_system="Linux", kernel="6", architecture="x86_64",
        cpu_count=8, core_count=4, memory_bytes=2**34,
    )  # fmt: skip
    scheduler = [
        host,
        _process("scheduler", "tcp://10.0.0.9:8786"),
        *(
            row(schema.Worker, time_ns=at(0.1), action="add", address=address, worker_id=worker_id, thread_count=2)
            for address, worker_id in ((A, "Worker-a"), (B, "Worker-b"))
        ),
        row(
            schema.Submission, time_ns=at(0.9), submission=0, client="Client-1", stimulus_id="u", wanted_key_count=1,
            task_count=task_count, new_task_count=task_count,
        ),
    ]  # fmt: skip
    workers = {"Worker-a": [_process("worker", A)], "Worker-b": [_process("worker", B)]}
    for number, (key, prefix, group) in enumerate(tasks):
        worker_id = ("Worker-a", "Worker-b")[number % 4 // 2]
        address, thread = (A, B)[number % 4 // 2], 70 + number % 4
        start, took = 1 + number * 0.01, 0.015 * (slow if prefix == "load" else 1.0)
        is_failed = number == task_count - 1
        outcome = "erred" if is_failed else "memory"
        scheduler += [
            row(schema.Task, submission=0, key=key, prefix=prefix, group=group, dependency_count=int(number > 0)),
            schema.SchedulerTransition(at(0.9), key, "released", "waiting", "u", None, -1),
            schema.SchedulerTransition(at(start - 0.002), key, "waiting", "processing", "u", address, number),
            schema.SchedulerTransition(at(start + took + 0.001), key, "processing", outcome, "f", address, number),
        ]
        if number:
            scheduler.append(schema.Dependency(0, key, tasks[number - 1][0]))
        begun, ended = START_S + start, START_S + start + took
        result = (key, number, "error" if is_failed else "memory", address, thread, -1 if is_failed else 1000 + number)
        workers[worker_id] += [
            schema.WorkerTransition(at(start - 0.001), key, number, "ready", "executing", None, "c"),
            schema.Result(at(start + took), *result, None if is_failed else "int", begun, ended, 0.0),
        ]
        if is_failed:
            error = schema.TaskError(at(start + took), key, number, address, None, HOSTILE, HOSTILE)
            scheduler.append(error)
            workers[worker_id].append(error)
    for worker_id, rows in workers.items():
        for second in range(5):
            rows += [
                row(schema.ClockSample, time_ns=at(second), monotonic_ns=second * 10**9 + 1, scheduler_delay_s=0.0),
                row(schema.Sample, time_ns=at(second), metric="process_memory_bytes", value=1e8 + second * 1e7),
                row(schema.Sample, time_ns=at(second), metric="event_loop_lag_s", value=0.001 * second),
                row(schema.Sample, time_ns=at(second), metric="process_read_bytes", value=1e6 * second),
            ]
        if worker_id == "Worker-b":
            rows += [
                schema.Transfer(at(1.6), 0, "incoming", A, START_S + 1.5, START_S + 1.6, 4000, None, 1, 0.0),
                schema.TransferKey(0, tasks[0][0], 4000),
            ]
        rows.append(row(schema.Log, time_ns=at(2), level="WARNING", logger="distributed", message=HOSTILE))
    write(path, "scheduler", "Scheduler-1", scheduler)
    for worker_id, rows in workers.items():
        write(path, "worker", worker_id, rows)
    for file in path.glob("spool/*/status.json"):  # these servers lived when their rows say, not now
        file.write_text(json.dumps(json.loads(file.read_text()) | {"time_ns": at(4)}))
    update_manifest(path, started_ns=START_NS, state="ended", ended_ns=at(4), exit_code=0, cwd=f"/{HOSTILE}")
    return path


def _task(number):
    """Key, prefix and group of a task; keys are of every form that Dask makes."""
    kind = number % 3
    if kind == 0:
        return f"('load-{TOKEN}', {number}, {number * 7})", "load", f"load-{TOKEN}"
    if kind == 1:
        return f"sum-{uuid.uuid5(uuid.NAMESPACE_URL, str(number))}", "sum", "sum"
    return f"{HOSTILE}-{number}", HOSTILE, HOSTILE


def _process(role, address):
    return row(
        schema.Process, time_ns=at(0), role=role, address=address, name=HOSTILE, scheduler_id="Scheduler-1",
        host_id="host", pid=1, python_version="3.12.0", dask_version="2026.8.0", distributed_version="2026.8.0",
        recup_version="0.1.0", arguments="[]", resource_limits="{}", thread_count=2 if role == "worker" else None,
    )  # fmt: skip
