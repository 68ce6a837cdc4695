"""Runs written from a list of tasks: who ran what when, with which inputs, and what its thread used."""

import dataclasses
import json

from recup import schema
from recup.rundir import create_run, update_manifest
from tests.unit.written_runs import START_NS, at, row, write, write_run

START_S = START_NS / 1e9
WORKERS = {
    "tcp://10.0.0.1:4001": "Worker-a",
    "tcp://10.0.0.2:4002": "Worker-b",
    "tcp://10.0.0.3:4003": "Worker-c",
}
A, B, C = WORKERS


@dataclasses.dataclass
class T:
    """One task that ends with a result."""

    key: str
    worker: str
    start: float
    stop: float
    nbytes: int = 100
    needs: tuple = ()
    released: float | None = None
    prefix: str | None = None
    group: str | None = None
    thread: int = 1
    cpu_s: float | None = None
    queue_wait_s: float = 0.0
    restrictions: str | None = None
    is_queued: bool = False
    is_stolen: bool = False
    """Whether no transition sent it, but the confirmation of a steal."""
    calls: tuple = (0, 0, 0, 0)
    """Bytes read and written, read and write calls."""

    @property
    def name(self):
        return self.prefix or self.key.rsplit("-", 1)[0]


def flow_run(
    root, tasks, *, saturation='"1.1"', hosts=None, scheduler=(), workers=None, memory_limit=0, ended=True, threads=1
):
    """Write a run in which these tasks ran, in their order by priority; returns its path."""
    path = create_run(root, way="run", command=["python", "job.py"], run_id="20231114T221320Z-flow")
    hosts = hosts or dict.fromkeys(WORKERS, "host")
    write(path, "scheduler", "Scheduler-1", [*_scheduler(tasks, saturation, memory_limit, threads), *scheduler])
    for address, server_id in WORKERS.items():
        mine = [(number, task) for number, task in enumerate(tasks) if task.worker == address]
        rows = [_process("worker", hosts[address], address), row(schema.ClockSample, time_ns=at(0))]
        if address in {task.worker for task in tasks} or workers:
            write(path, "worker", server_id, [*rows, *_worker(mine), *(workers or {}).get(address, ())])
    if ended:
        update_manifest(path, state="ended", started_ns=START_NS, ended_ns=at(100), exit_code=0)
    return path


def _process(role, host, address=None):
    return row(
        schema.Process, time_ns=at(0), role=role, address=address, scheduler_id="Scheduler-1", host_id=host, pid=1,
        config_digest="c", arguments="[]", resource_limits="{}",
    )  # fmt: skip


def _scheduler(tasks, saturation, memory_limit, threads):
    yield _process("scheduler", "host", "tcp://10.0.0.9:8786")
    yield row(schema.ConfigValue, config_digest="c", name="distributed.scheduler.worker-saturation", value=saturation)
    for address, server_id in WORKERS.items():
        yield row(
            schema.Worker, time_ns=at(0.1), action="add", address=address, worker_id=server_id, thread_count=threads,
            memory_limit_bytes=memory_limit, host=address[6:14],
        )  # fmt: skip
    yield row(schema.Submission, time_ns=at(0.5), submission=0, stimulus_id="update-graph-1", task_count=len(tasks))
    for number, task in enumerate(tasks):
        yield row(
            schema.Task, submission=0, key=task.key, prefix=task.name, group=task.group or task.name,
            priority_user=0.0, priority_generation=0, priority_order=number, dependency_count=len(task.needs),
            restrictions=task.restrictions,
        )  # fmt: skip
        for need in task.needs:
            yield schema.Dependency(0, task.key, need)
    moves = []
    for number, task in enumerate(tasks):
        if task.is_queued:
            moves.append((0.6, task.key, "waiting", "queued", None, -1))
        start = "queued" if task.is_queued else "waiting"
        if not task.is_stolen:
            moves.append((task.start - 0.01, task.key, start, "processing", task.worker, number))
        moves.append((task.stop, task.key, "processing", "memory", task.worker, number))
        if task.released is not None:
            moves.append((task.released, task.key, "memory", "released", None, -1))
    for seconds, key, start, finish, worker, run_id in sorted(moves):
        yield schema.SchedulerTransition(at(seconds), key, start, finish, "s", worker, run_id)


def _worker(tasks):
    for number, task in tasks:
        yield schema.Reception(at(task.start - 0.005), task.key, number, len(task.needs), 0, 0)
        yield row(
            schema.Result, time_ns=at(task.stop), key=task.key, run_id=number, outcome="memory", worker=task.worker,
            thread=task.thread, nbytes=task.nbytes, typename="bytes", compute_start_s=START_S + task.start,
            compute_stop_s=START_S + task.stop, scheduler_delay_s=0.0,
        )  # fmt: skip
        if task.cpu_s is not None:
            read, written, reads, writes = task.calls
            yield row(
                schema.ThreadCounter, time_ns=at(task.start), key=task.key, run_id=number, kind="task",
                outcome="returned", thread=task.thread, wall_ns=round((task.stop - task.start) * 1e9),
                cpu_ns=round(task.cpu_s * 1e9), user_ns=round(task.cpu_s * 1e9), system_ns=0,
                queue_wait_ns=round(task.queue_wait_s * 1e9), major_fault_count=0, minor_fault_count=0,
                read_chars_bytes=read, written_chars_bytes=written, read_call_count=reads, write_call_count=writes,
                storage_read_bytes=0, storage_written_bytes=0,
            )  # fmt: skip


def moved(transfer, source, start, stop, keys, nbytes=1_000_000):  # noqa: PLR0917
    """Rows of a receiver: one movement of results from another worker."""
    return [
        schema.Transfer(
            at(stop),
            transfer,
            "incoming",
            source,
            START_S + start,
            START_S + stop,
            nbytes * len(keys),
            None,
            len(keys),
            0.0,
        ),
        *(schema.TransferKey(transfer, key, nbytes) for key in keys),
    ]


def waited(key, run_id, start, stop):
    """Rows of a worker: an attempt that waited for an input of another worker."""
    return [
        schema.Reception(at(start), key, run_id, 1, 1_000_000, 1),
        schema.WorkerTransition(at(stop), key, run_id, "waiting", "ready", None, "s"),
    ]


def plain(found):
    """An answer as the document it is printed from; it must be JSON."""
    document = found.document()
    json.dumps(document)
    return document


def write_little(root, kind):
    """Write a run with little or nothing in it: empty, killed or ended."""
    if kind == "empty":
        return create_run(root, way="run", command=["job"])
    return write_run(root, ended=kind == "ended")
