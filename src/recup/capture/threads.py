"""What each task used, counted in the thread that ran it: the recording half of step 5.

The node of the graph that a worker is about to run is replaced by one that reads the
kernel's counters of the thread, runs the original, and reads them again: `counting`.  This
sees what no other place sees: plain, failing, retried, rescheduled and seceded tasks, on
any thread pool, each with its key and attempt.  Methods of actors are counted around the
actor's thread pool.  Coroutines have wall time only, as their thread runs other things.

It does not cover tasks in process pools (the original node travels there), asynchronous
methods of actors, nor helper threads: their use is the process's, not a task's.

Nothing here may change a task: what it returns and raises passes through untouched, and
Dask leaves the frames of this module out of tracebacks, as it does its own.  Of errors of
actors, which Dask sends whole, they are taken out here.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from operator import itemgetter
from os import pread
from resource import RUSAGE_THREAD, getrusage
from time import perf_counter_ns, thread_time_ns, time_ns
from types import CodeType, FunctionType, TracebackType
from typing import Any

from recup.schema import Thread
from recup.spool import Spool

try:
    from recup.capture import thread_readings
    from recup.capture.thread_readings import Counting, KnownThreads, counted_call
except ImportError:  # built without a C compiler, or left over from an older recup
    thread_readings = None  # type: ignore[assignment]

    class KnownThreads:  # type: ignore[no-redef]
        """Stands in for what is compiled."""

        def forget_threads(self) -> None:
            """Do nothing: none is remembered."""


try:
    from dask._task_spec import GraphNode
except ImportError:  # pragma: no cover - older than any supported Dask
    GraphNode = None

_WAITING_LIMIT = 100_000
"""Attempts kept raw when the disk does not take them; more are dropped and counted."""
_UNKNOWN = (-1,) * 14

around: list[tuple[Callable[[str, Any], None], Callable[[], None]]] = []
"""Pairs of (enter, leave) called in the task's thread around its own code, e.g. by a profiler."""


class OwnThread:
    """The calling thread: its name, and open files with the kernel's counters of it.

    A file of /proc/thread-self tells of the thread that opened it, as long as it is open.

    Parameters
    ----------
    ident : int
        Its threading.get_ident().
    io, schedstat : int
        Descriptors of these files; closed with this object.
    leave : callable
        Takes what was read, for the writer thread to make a row of.
    """

    def __init__(self, ident: int, io: int, schedstat: int, leave: Callable[[tuple[Any, ...]], None]) -> None:
        self.ident = ident
        self.io = io
        self.schedstat = schedstat
        self._leave = leave

    def __del__(self) -> None:
        os.close(self.io)
        os.close(self.schedstat)

    def begin(self) -> tuple[Any, ...]:
        """Read the counters before a task."""
        # The last reading of I/O is the one that is counted in the next, and taken off it.
        usage = getrusage(RUSAGE_THREAD), pread(self.schedstat, 96, 0), pread(self.io, 512, 0)
        # The clocks side by side: start and wall time are added up when I/O is joined to tasks.
        return *usage, thread_time_ns(), time_ns(), perf_counter_ns()

    def end(self, begun: tuple[Any, ...], key: Any, run_id: int, kind: str, outcome: str) -> None:
        """Read them again after it, and leave both readings."""
        used0, schedstat0, io0, cpu0, start_ns, start = begun
        wall, cpu = perf_counter_ns() - start, thread_time_ns() - cpu0
        io1, used = pread(self.io, 512, 0), getrusage(RUSAGE_THREAD)
        # A thread that was never off its CPU has not waited for one.
        stayed = used[14] == used0[14] and used[15] == used0[15]
        schedstat1 = schedstat0 if stayed else pread(self.schedstat, 96, 0)
        # By place: user, system, voluntary and involuntary switches, minor and major faults.
        self._leave(
            (
                start_ns, key, run_id, kind, outcome, self.ident, wall, cpu,
                schedstat0, schedstat1, io0, io1,
                used[0] - used0[0], used[1] - used0[1], used[14] - used0[14], used[15] - used0[15],
                used[6] - used0[6], used[7] - used0[7],
            )
        )  # fmt: skip


def _opened(path: str) -> int:
    """Open a file of the kernel; where it has none, or keeps it from us, /dev/null stands in and tells nothing."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.pread(number, 1, 0)
        return number
    except OSError:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


class ThreadCounters(KnownThreads):
    """The counters of one worker's tasks, on their way to its spool.

    Where readings are compiled, task threads make the rows.  Else they leave what they read
    of /proc as it is, a tuple per attempt given to `leave`, and the writer thread makes rows
    of it.  It and the event loop, which drops the oldest when the writer thread is stuck,
    take one at a time: `popleft` is atomic.
    """

    def __init__(self, spool: Spool):
        self._spool = spool
        self._waiting: deque[tuple[Any, ...]] = deque()
        self.leave = self._waiting.append
        self.put = spool.extender("thread_counters")
        self.is_off = False
        self._slots = None if thread_readings is None else spool.slots("thread_counters")
        self.local = threading.local()
        guarded = functools.partial(spool.guard, table_name="thread_counters")
        spool.prepare.append(guarded("rows of thread_counters", self._make_rows))
        spool.limits.append(guarded("limit of thread_counters", self._limit))
        # The child must not read counters of its parent; a method of this object would keep it for ever.
        forget = weakref.WeakMethod(self._forget_parent)
        os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    def failed(self, reason: BaseException) -> None:
        """Count a failure; after a hundred no further task is counted."""
        self.is_off = self._spool.failed("thread_counters", reason, "thread_counters")

    def meet_thread(self) -> Any:
        """Return what is known of the calling thread, met for the first time, and record its names."""
        ident, name = threading.get_ident(), threading.current_thread().name
        io = _opened("/proc/thread-self/io")
        try:
            files = io, _opened("/proc/thread-self/schedstat")
        except OSError:  # no descriptor is left: the program needs this one more
            os.close(io)
            raise
        if self._slots is None:
            own: Any = OwnThread(ident, *files, self.leave)
        else:
            own = thread_readings.OwnThread(ident, *files, self._slots)
        self.local.own = own
        self._spool.put(Thread(time.time_ns(), ident, threading.get_native_id(), name))
        return own

    def _forget_parent(self) -> None:
        """In a forked child: the open files tell of the parent's thread."""
        self.forget_threads()
        self.local = threading.local()

    def _taken(self, count: int) -> Iterator[tuple[Any, ...]]:
        """Take the oldest attempts that wait; fewer when another thread has taken them."""
        with contextlib.suppress(IndexError):
            for _ in range(count):
                yield self._waiting.popleft()

    def _limit(self) -> None:
        surplus = sum(1 for _ in self._taken(len(self._waiting) - _WAITING_LIMIT))
        if surplus:
            self._spool.lose("dropped", "thread_counters", "more tasks ended than could be written", surplus)

    def _make_rows(self) -> None:
        self._limit()
        put = self.put
        for attempt in self._taken(len(self._waiting)):
            *who, schedstat0, schedstat, io0, io, user_s, system_s, waits, evictions, minor, major = attempt
            # The kernel tells microseconds; as a difference of floats they are off by less than one.
            user, system = int(user_s * 1e6 + 0.5) * 1000, int(system_s * 1e6 + 0.5) * 1000
            put(
                (
                    *who, user, system, _queue_wait(schedstat0, schedstat),
                    waits, evictions, minor, major, *_moved(io0, io),
                )
            )  # fmt: skip


def _queue_wait(before: bytes, after: bytes) -> int:
    if before is after and before:
        return 0
    try:
        return int(after.split()[1]) - int(before.split()[1])
    except (IndexError, ValueError):
        return -1


def _moved(before: bytes, after: bytes) -> tuple[int, ...]:
    """Return bytes and calls between two readings, less the first reading itself."""
    try:
        middle, end = before.index(b"syscw"), after.index(b"syscw")
        first, last = before[:middle].split(), after[:end].split()
        moved = (
            int(last[1]) - int(first[1]) - len(before),
            int(last[3]) - int(first[3]),
            int(last[5]) - int(first[5]) - 1,
        )
        if before[middle:] == after[end:]:
            return (*moved, 0, 0, 0)
        first, last = before[middle:].split(), after[end:].split()
        return (*moved, *(int(last[place]) - int(first[place]) for place in (1, 3, 5)))
    except (IndexError, ValueError):
        return (-1,) * 6


# ---------------------------------------------------------------- around a task


if GraphNode is not None:

    class CountedNode(GraphNode):
        """A node that counts what its thread uses while the node it stands for runs."""

        __slots__ = ("counters", "inner", "is_coro", "kind", "prefix", "run_id")

        def __init__(self, inner: Any, run_id: int, prefix: str, counters: ThreadCounters, kind: str = "task"):
            self.key = inner.key  # type: ignore[misc]
            self._dependencies = inner._dependencies  # type: ignore[misc]
            self.inner = inner
            self.is_coro = inner.is_coro  # asked twice for each task: not a property
            self.run_id = run_id
            self.prefix = prefix
            self.counters = counters
            self.kind = kind

        @property
        def data_producer(self) -> bool:
            """Whether the node it stands for says so."""
            return bool(self.inner.data_producer)

        @property
        def block_fusion(self) -> bool:
            """Whether the node it stands for says so."""
            return bool(self.inner.block_fusion)

        def __repr__(self) -> str:
            return repr(self.inner)

        def __sizeof__(self) -> int:
            return int(self.inner.__sizeof__())

        def __eq__(self, other: object) -> bool:
            return bool(self.inner == (other.inner if isinstance(other, CountedNode) else other))

        def __hash__(self) -> int:
            return hash(self.inner)

        def __reduce_ex__(self, protocol: Any) -> Any:
            # In a process pool or a dump of the cluster's state: the node itself, where recup may not be installed.
            return itemgetter(0), ((self.inner,),)

        # Named one by one: a `__getattr__` would slow down every attribute, also those above.
        @property
        def func(self) -> Any:
            """Function of the node it stands for."""
            return self.inner.func

        @property
        def args(self) -> Any:
            """Arguments of the node it stands for."""
            return self.inner.args

        @property
        def kwargs(self) -> Any:
            """Keyword arguments of the node it stands for."""
            return self.inner.kwargs


def counting(spool: Spool) -> tuple[ThreadCounters, Callable[[Any], None]]:
    """Return the counters of a worker and a function that has a task of it counted.

    The function takes Dask's TaskState when the worker decided to execute it and puts the
    counting node in place of its own.
    """
    counters = ThreadCounters(spool)
    if GraphNode is None:
        spool.lose("not_captured", "thread_counters", "this Dask has no GraphNode")
        return counters, lambda task: None
    refused = False

    def count(task: Any) -> None:
        nonlocal refused
        if counters.is_off:
            return
        node = task.run_spec
        if type(node) is CountedNode:
            node = node.inner
        if isinstance(node, GraphNode):
            task.run_spec = CountedNode(node, task.run_id, task.prefix, counters)
        elif not refused:
            refused = True
            spool.lose("not_captured", "thread_counters", f"tasks are {type(node).__name__}, not GraphNode")

    if thread_readings is not None:
        return counters, Counting(CountedNode, GraphNode, counters, count)
    return counters, count


def _call(node: Any, values: Any) -> Any:
    """Run the node it stands for, and read the counters of the thread before and after."""
    counters, entered = node.counters, 0
    begun = None
    # Written out, without a call more than needed: this is the price of every task.
    try:
        if node.is_coro:
            return _awaited(node, values)
        if around:
            for enter, _ in around:
                enter(node.prefix, node.key)
                entered += 1
        try:
            own = counters.local.own
        except AttributeError:
            own = counters.meet_thread()
        begun = own.begin()
    except Exception as reason:  # noqa: BLE001 - the task must run
        counters.failed(reason)
    outcome = "returned"
    try:
        return node.inner(values)
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        try:
            if begun is not None:
                own.end(begun, node.key, node.run_id, node.kind, outcome)
            if entered:
                for _, leave in around[:entered]:
                    leave()
        except Exception as reason:  # noqa: BLE001 - the task has run and its result must pass
            counters.failed(reason)


async def _await(node: Any, values: Any) -> Any:
    """Run a node that is a coroutine, and take its wall time."""
    start_ns, start, outcome = time_ns(), perf_counter_ns(), "returned"
    try:
        return await node.inner(values)
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        wall, ident = perf_counter_ns() - start, threading.get_ident()
        row = (start_ns, node.key, node.run_id, "coroutine", outcome, ident, wall, *_UNKNOWN)
        node.counters.put(row)


def _unseen(function: Any) -> Any:
    """Return the function under a file name whose frames Dask leaves out of tracebacks (`get_traceback`)."""
    code: CodeType = function.__code__
    name = f"<recup around {os.path.join('distributed', 'worker')}>"
    return FunctionType(code.replace(co_filename=name), function.__globals__, function.__name__)


_awaited, _called = _unseen(_await), _unseen(_call)
if GraphNode is not None:
    CountedNode.__call__ = _called
    if thread_readings is not None:
        CountedNode.__call__ = counted_call(CountedNode, CountedNode.__call__, around)


# ---------------------------------------------------------------- around an actor's methods


class _Method:
    """A call of an actor's method in the form of a node; its key is ``<prefix of the actor>.<method>``."""

    is_coro = False
    _dependencies: frozenset[Any] = frozenset()

    def __init__(self, key: str, call: Callable[[], Any]):
        self.key = key
        self.call = call

    def __call__(self, _: Any) -> Any:
        return self.call()


_actor_frames = {_Method.__call__.__code__, _called.__code__}


def _without(codes: set[CodeType], traceback: TracebackType) -> TracebackType | None:
    """Return a traceback less the frames of these codes; the other entries stay the same objects."""
    kept: list[TracebackType] = []
    entry: TracebackType | None = traceback
    while entry is not None:
        if entry.tb_frame.f_code not in codes:
            kept.append(entry)
        entry = entry.tb_next
    for before, after in zip(kept, [*kept[1:], None], strict=True):
        if before.tb_next is not after:
            before.tb_next = after
    return kept[0] if kept else None


def count_actor_methods(worker: Any, counters: ThreadCounters) -> Callable[[], None] | None:
    """Count methods of actors run in the worker's actor thread; returns the way back.

    Only the instance's `submit` is replaced: Dask tells thread pools by the name of their class.
    """
    executor = getattr(worker, "executors", {}).get("actor")
    if executor is None:
        return None
    original = executor.submit

    def submit(function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if getattr(function, "__name__", "") == "_run_actor" and len(args) > 4:
            future = original(functools.partial(run, function, args[4]), *args, **kwargs)
            # Ours is the first of the future's callbacks: who waits for it sees the error as it would be without recup.
            future.add_done_callback(leave_no_frame)
            return future
        return original(function, *args, **kwargs)

    def leave_no_frame(future: Any) -> None:
        # Dask sends errors of actors with all their frames, its own too.
        try:
            error = None if future.cancelled() else future.exception()
            if error is not None and error.__traceback__ is not None:
                error.__traceback__ = _without(_actor_frames | {run.__code__}, error.__traceback__)
        except Exception as reason:  # noqa: BLE001 - the method has run and its error must pass
            counters.failed(reason)

    def run(function: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        method = _Method(name, functools.partial(function, *args, **kwargs))
        return CountedNode(method, -1, name, counters, "actor")(None)

    executor.submit = submit

    def undo() -> None:
        if executor.__dict__.get("submit") is submit:
            del executor.submit

    return undo
