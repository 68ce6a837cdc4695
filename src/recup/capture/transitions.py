"""The two hooks that Dask calls most: a task's transitions on the scheduler and on a worker.

Covers the rows of transitions, of attempts' ends, and what comes with them.  It does not
cover the rest of what scheduler and worker say (`recup.capture.scheduler`, `.worker`).

Where `recup.capture.transition_hooks` was compiled, the hooks are made there and record the
same.  Here each is a closure over local names: at six calls a task each attribute not
looked up counts.

Moments are rounded down to whole microseconds: what is below tells nothing of a transition
and takes room on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from recup.capture.redaction import redacted_put
from recup.schema import TABLES
from recup.spool import Spool

try:
    from recup.capture import transition_hooks as compiled
except ImportError:  # built without a C compiler
    compiled = None  # type: ignore[assignment]

Put = Callable[[tuple[Any, ...]], None]
_ENDS = {"ExecuteSuccessEvent", "ExecuteFailureEvent", "RescheduleEvent"}


def scheduler_hook(
    spool: Spool, scheduler: Any, switch_off: Callable[[], None]
) -> tuple[Callable[..., None], Callable[[], int]]:
    """Return the transition hook and a function that tells how often it was called.

    `switch_off` is called when the hook has failed a hundred times.
    """
    if _can_be_compiled(spool, scheduler.tasks):
        hook = compiled.SchedulerHook(spool, switch_off, _put_error(spool), scheduler.tasks)
        return hook.function, lambda: hook.counts
    put, put_result = spool.extender("scheduler_transitions"), spool.extender("results")
    put_startstop, put_error = spool.extender("startstops"), _put_error(spool)
    tasks, time_ns = scheduler.tasks, time.time_ns
    count = 0

    def transition(
        key: Any,
        start: str,
        finish: str,
        *_: Any,
        stimulus_id: str | None = None,
        worker: str | None = None,
        startstops: Any = None,
        nbytes: int | None = None,
        typename: str | None = None,
        thread: int | None = None,
        exception_text: str | None = None,
        traceback_text: str | None = None,
        cause: Any = None,
        metadata: Any = None,
        status: Any = None,
        type: Any = None,
        **__: Any,
    ) -> None:
        nonlocal count
        count += 1
        try:
            now = time_ns() // 1000 * 1000
            if finish == "processing":
                task = tasks[key]
                put((now, key, start, finish, stimulus_id, task.processing_on.address, task.run_id))
            elif start != "processing":
                put((now, key, start, finish, stimulus_id, None, -1))
            else:
                task = tasks.get(key)
                run_id = task.run_id if task is not None else -1
                put((now, key, start, finish, stimulus_id, worker, run_id))
                if worker is None and startstops is None:
                    return
                begin = stop = None
                for each in startstops or ():
                    if begin is None and each["action"] == "compute":
                        begin, stop = each["start"], each["stop"]
                    else:
                        put_startstop((key, run_id, each["action"], each["start"], each["stop"], each.get("source")))
                put_result(
                    (
                        now, key, run_id, finish, worker, -1 if thread is None else thread,
                        -1 if nbytes is None else nbytes, typename, begin, stop, None,
                    )
                )  # fmt: skip
                if exception_text is not None:
                    blamed = None if cause is None or cause == key else cause
                    put_error((now, key, run_id, worker, blamed, exception_text, traceback_text))
        except Exception as reason:  # noqa: BLE001 - the scheduler must go on
            if spool.failed("transition", reason, "scheduler_transitions"):
                switch_off()

    return transition, lambda: count


def worker_hook(
    spool: Spool, worker: Any, switch_off: Callable[[], None], executes: Callable[[Any], None]
) -> tuple[Callable[..., None], Callable[[], tuple[int, int]]]:
    """Return the transition hook and a function telling (calls, compound transitions).

    Dask calls the hook without a cause; the cause is the newest entry of its stimulus log,
    which it appends before handling.  Its transition counter counts a transition that goes
    through ``released`` once more than it calls the hook: where it is one ahead at such a
    call, that is counted here, so that recorded + compound must equal Dask's own count.

    `executes` is given the task when the worker is about to run it.
    """
    if _can_be_compiled(spool, worker.state.tasks):
        hook = compiled.WorkerHook(spool, switch_off, _put_error(spool), worker, _ENDS, executes, _type_name)
        return hook.function, lambda: hook.counts
    put, put_result = spool.extender("worker_transitions"), spool.extender("results")
    put_startstop, put_error = spool.extender("startstops"), _put_error(spool)
    put_reception = spool.extender("receptions")
    state, time_ns = worker.state, time.time_ns
    tasks, stimulus_log = state.tasks, state.stimulus_log
    address = worker.address
    count = compound = counted = 0
    counter = state.transition_counter
    delays: dict[Any, float] = {}
    written_end: Any = None

    def transition(key: Any, start: str, finish: str, **_: Any) -> None:
        nonlocal count, compound, counter, counted, written_end
        count += 1
        try:
            if finish == "released":
                compound += state.transition_counter - counter == count - counted + 1
                counter, counted = state.transition_counter, count
            stimulus = stimulus_log[-1] if stimulus_log else None
            cause = None if stimulus is None else stimulus.stimulus_id
            task = tasks.get(key)
            now = time_ns() // 1000 * 1000
            if task is None:
                put((now, key, -1, start, finish, None, cause))
                run_id = -1
            else:
                reached, run_id = task.state, task.run_id
                put((now, key, run_id, start, finish, None if reached == finish else reached, cause))
            if finish == "executing":
                delays[key] = worker.scheduler_delay
                if task is not None:
                    executes(task)
            elif stimulus is None:
                return
            elif finish == "waiting":
                who_has = getattr(stimulus, "who_has", None)
                if who_has is not None and stimulus.key == key and type(stimulus).__name__ == "ComputeTaskEvent":
                    remote = sum(address not in holders for holders in who_has.values())
                    size = sum(stimulus.nbytes.values())
                    put_reception((now, key, stimulus.run_id, len(who_has), size, remote))
            elif stimulus is not written_end and type(stimulus).__name__ in _ENDS and stimulus.key == key:
                written_end = stimulus
                put_end(now, stimulus, key, task, run_id)
        except Exception as reason:  # noqa: BLE001 - the worker must go on
            if spool.failed("transition", reason, "worker_transitions"):
                switch_off()

    def put_end(now: int, stimulus: Any, key: Any, task: Any, run_id: int) -> None:
        """Record the end of the attempt that this event of the state machine reports."""
        run_id = getattr(stimulus, "run_id", run_id)
        thread = state.threads.get(key, -1)
        failure = getattr(stimulus, "exception_text", None)
        size, kind = getattr(stimulus, "nbytes", None), getattr(stimulus, "type", None)
        outcome = "gone" if task is None else task.state
        put_result(
            (
                now, key, run_id, outcome, address, thread,
                -1 if size is None else size, None if kind is None else _type_name(kind),
                getattr(stimulus, "start", None), getattr(stimulus, "stop", None), delays.pop(key, None),
            )
        )  # fmt: skip
        if task is not None:
            computed = False
            for each in task.startstops:
                if each["action"] == "compute" and not computed and each["start"] == getattr(stimulus, "start", None):
                    computed = True
                else:
                    put_startstop((key, run_id, each["action"], each["start"], each["stop"], each.get("source")))
        if failure is not None:
            put_error((now, key, run_id, address, None, failure, getattr(stimulus, "traceback_text", None)))

    return transition, lambda: (count, compound)


def _put_error(spool: Spool) -> Put:
    """Return what puts rows of errors: texts of exceptions hold URLs with passwords, as logs do."""
    texts = [each.name for each in TABLES["errors"].columns]
    return redacted_put(spool.extender("errors"), texts.index("exception_text"), texts.index("traceback_text"))


def _can_be_compiled(spool: Spool, tasks: Any) -> bool:
    return compiled is not None and spool.slots("results") is not None and type(tasks) is dict


def _type_name(kind: Any) -> str:
    try:
        return f"{kind.__module__}.{kind.__qualname__}" if kind.__module__ != "builtins" else kind.__qualname__
    except Exception:  # noqa: BLE001 - a metaclass may raise from any attribute
        return "<unknown>"
