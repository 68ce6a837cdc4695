"""Runs whose rows hold together as little as those of real trouble, for what must hold on every run."""

from hypothesis import strategies as st

from recup import schema
from recup.rundir import create_run, update_manifest
from tests.unit.written_runs import START_NS, A, B, at, row, write

FATES = st.sampled_from(("memory", "erred", "released", None))


@st.composite
def odd_runs(draw):  # noqa: PLR0912
    """Rows of schedulers and workers that hold together as little as those of real trouble."""
    seconds_ = st.floats(-1, 4)

    def maybe(strategy):
        return draw(st.none() | strategy)

    scheduler = []
    workers = {"Worker-a": [], "Worker-b": []}
    for server, address in (("Worker-a", A), ("Worker-b", B)):
        if draw(st.booleans()):
            count = maybe(st.integers(0, 3))
            scheduler.append(
                row(schema.Worker, time_ns=at(draw(seconds_)), action="add", address=address, worker_id=server,
                    thread_count=count)
            )  # fmt: skip
        if draw(st.booleans()):
            scheduler.append(
                row(schema.Worker, time_ns=at(draw(seconds_)), action="remove", address=address, worker_id=server)
            )
        if draw(st.booleans()):
            payload = draw(st.sampled_from(('{"status": "paused"}', '{"status": "running"}', "[]", "{")))
            scheduler.append(
                row(schema.Event, time_ns=at(draw(seconds_)), topic=address, action="worker-status-change",
                    payload=payload)
            )  # fmt: skip
    for number in range(draw(st.integers(0, 8))):
        key, run_id = f"x-{number % 3}", number
        server, address = draw(st.sampled_from((("Worker-a", A), ("Worker-b", B))))
        if draw(st.booleans()):
            scheduler.append(
                schema.SchedulerTransition(at(draw(seconds_)), key, "waiting", "processing", "s", address, run_id)
            )
        fate = draw(FATES)
        if fate:
            scheduler.append(
                schema.SchedulerTransition(at(draw(seconds_)), key, "processing", fate, "s", address, run_id)
            )
        told = workers[server]
        if draw(st.booleans()):
            told.append(schema.Reception(at(draw(seconds_)), key, run_id, 0, 0, 0))
        for start, finish in (("waiting", "ready"), ("ready", "executing"), ("executing", "long-running")):
            if draw(st.booleans()):
                told.append(schema.WorkerTransition(at(draw(seconds_)), key, run_id, start, finish, None, "s"))
        if draw(st.booleans()):
            times = [maybe(seconds_.map(lambda moment: START_NS / 1e9 + moment)) for _ in range(2)]
            told.append(
                schema.Result(at(draw(seconds_)), key, run_id, "memory", address, 7, 1, "int", *times, maybe(seconds_))
            )
        if draw(st.booleans()):
            told.append(
                row(schema.ThreadCounter, time_ns=at(draw(seconds_)), key=key, run_id=run_id, kind="task",
                    cpu_ns=draw(st.integers(-1, 10**10)), queue_wait_ns=draw(st.integers(-1, 10**10)))
            )  # fmt: skip
        if draw(st.booleans()):
            action = draw(st.sampled_from(("transfer", "disk-write", "disk-read", "deserialize")))
            begin, end = (START_NS / 1e9 + draw(seconds_) for _ in range(2))
            told.append(schema.StartStop(key, run_id, action, begin, end, None))
    for number in range(draw(st.integers(0, 2))):
        scheduler.append(
            row(schema.Submission, time_ns=at(draw(seconds_)), submission=number, client="Client-1", stimulus_id="s")
        )
        for each in range(draw(st.integers(0, 3))):
            scheduler.append(row(schema.Task, submission=number, key=f"x-{each}", prefix="x", group="x"))
            if draw(st.booleans()):
                scheduler.append(schema.Dependency(number, f"x-{each}", f"x-{draw(st.integers(0, 2))}"))
    delay = draw(st.floats(-2, 2))
    for server, address in (("Worker-a", A), ("Worker-b", B)):
        host = draw(st.sampled_from(("one", "two")))
        workers[server].append(
            row(schema.Process, time_ns=at(draw(seconds_)), role="worker", address=address, scheduler_id="Scheduler-1",
                host_id=host, thread_count=maybe(st.integers(1, 2)), arguments="[]", resource_limits="{}")
        )  # fmt: skip
        workers[server] += [
            row(schema.ClockSample, time_ns=at(each), monotonic_ns=1, scheduler_delay_s=delay) for each in range(3)
        ]
    return scheduler, workers, draw(st.booleans())


def write_odd(root, scheduler, workers, ended):
    """Write such a run and return its directory."""
    path = create_run(root, way="run", run_id="20231114T221320Z-abcd")
    write(path, "scheduler", "Scheduler-1", scheduler)
    for server, rows in workers.items():
        write(path, "worker", server, rows)
    if ended:
        update_manifest(path, state="ended", started_ns=START_NS, ended_ns=at(3))
    return path
