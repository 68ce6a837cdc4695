"""Which functions took the time, by Yappi: calls, own and total time per task prefix and thread.

Covers the threads of tasks, from just before a task's own code until just after it, and,
where no prefix is asked for, the event loop of the servers asked for.  Yappi's hook is in a
thread only while something is wanted from it: other threads pay nothing.  It does not cover
threads that tasks start, processes they start, nor single attempts: rows are sums over the
tasks of a prefix.  What is asked for, and how, is in `recup.capture.profile_request`.

Three things about Yappi shape this module:

* It has one state per process.  So has this module: servers of one process share it, and
  gives way to a program that uses Yappi itself, before or later.
* Reading its statistics stops it, and returns missed meanwhile stay on its stacks for ever.
  Read with `list.append` as the callback no byte code runs in between, so under the GIL no
  other thread can run and nothing has to be stopped.
* Reading changes the entries of functions that are running (a count of 0 becomes 1, a
  negative time 0).  So a task's thread is read between tasks only: its counts are exact.
  An event loop is always in some function; what the reading does to it is undone here.

What is written is the growth since the last reading, at most a second old: a killed worker
loses that, and the tasks it was running.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from recup.capture import threads
from recup.capture.function_entries import (
    BUILTIN,
    CHILDREN,
    CONTEXT,
    COUNT,
    INDEX,
    NOTHING,
    OWN,
    PRIMITIVE,
    TAG,
    TOTAL,
    Entry,
    Values,
    called_functions,
    is_coroutine,
    name_of,
    statistics_of,
)
from recup.capture.profile_request import Settings, configured
from recup.schema import FunctionCall
from recup.spool import Spool

try:
    from recup.capture import thread_readings as compiled
except ImportError:  # built without a C compiler, or left over from an older recup
    compiled = None  # type: ignore[assignment]

_READ_INTERVAL_S = 0.5
_EACH_THREAD = sys.version_info < (3, 12)
"""Whether Yappi hooks the calling thread alone; from 3.12 on it hooks all threads at once."""
_ENTRY_POINTS = (
    "start", "clear_stats", "get_func_stats", "get_thread_stats", "set_clock_type", "set_tag_callback",
    "set_context_backend", "set_context_id_callback",
)  # fmt: skip


def attach(
    spool: Spool, role: str, server: Any, settings: Settings | None, run_directory: str | Path
) -> Callable[[], None] | None:
    """Begin to profile a server from its own event loop; returns the way back, or None.

    Nothing is raised; what is asked for and cannot be had is a row of `losses`.
    """
    if settings is None or role not in settings.on:
        return None
    try:
        return _profiler_for(settings).add(_Server(spool, role, server, Path(run_directory)))
    except ImportError as reason:
        hint = "pip install 'recup[yappi]' where this server runs"
        spool.lose("not_captured", "function_calls", f"yappi cannot be imported ({reason}): {hint}")
    except _InUse as reason:
        spool.lose("not_captured", "function_calls", str(reason))
    except Exception as reason:  # noqa: BLE001 - the server must start
        spool.lose("not_captured", "function_calls", f"Yappi could not be started: {reason!r}"[:300])
    return None


def attach_calling_thread() -> None:
    """Profile the calling thread too, where clients are profiled; for the main thread of a program."""
    settings = configured()
    # A task that makes the first client of its process calls this too: its thread is the task's, and not for good.
    if settings is not None and "client" in settings.on and not _runs_a_task():
        with contextlib.suppress(ImportError, _InUse):
            _profiler_for(settings).hook_for_good()


def _runs_a_task() -> bool:
    from distributed.worker import thread_state

    return getattr(thread_state, "execution_state", None) is not None


# ---------------------------------------------------------------- around a task


def task_entered(prefix: str, key: Any = None) -> None:
    """Begin to count for the prefix; called in the task's thread just before its code."""
    profiler = _profiler
    if profiler is not None:
        profiler.enter(prefix)


def task_left() -> None:
    """Stop counting; called in the task's thread just after its code, whatever came of it."""
    # Calls from here until the hook is out would stay on Yappi's stack.  This one is taken
    # off by the next return Yappi sees in this thread, which is that of `enter`.
    if _hooked.here:
        own = _hooked.own
        is_whole = _profile_hook() == own.profiler.hook_address and sys.getprofile() is None
        if is_whole and not own.profiler._is_off:  # else the hook may be the program's
            _unhook()
        _hooked.here = False
        own.profiler.leave(own, is_whole)


class _Hooked(threading.local):
    """Whether the task of this thread is being profiled."""

    here = False
    own: Any = None


_hooked = _Hooked()
# Without a C compiler only a hook in Python is seen, if it is still in at the end of the task.
_profile_hook: Callable[[], int] = getattr(compiled, "profile_hook", int)
_unhook: Callable[[], None] = functools.partial(sys.setprofile, None) if _EACH_THREAD else (lambda: None)
# Yappi asks for the tag at each call.  A bound method of C costs it 30 ns and no byte code.
_tag: ContextVar[int] = ContextVar("recup_yappi_tag", default=0)

# ---------------------------------------------------------------- the profiler of the process


class _InUse(Exception):
    """The program uses Yappi itself."""


class _Server:
    """A server that is profiled."""

    def __init__(self, spool: Spool, role: str, server: Any, run_directory: Path):
        self.spool = spool
        self.role = role
        self.server = server
        self.run_directory = run_directory
        self.is_ending = False


class _Thread:
    """A thread in which tasks of one server are profiled."""

    def __init__(self, profiler: _Profiler):
        self.profiler = profiler
        self.thread = threading.current_thread()
        self.ident = threading.get_ident()
        self.lock = threading.Lock()
        self.server: _Server | None = None
        self.is_busy = False
        self.is_read = True
        self.read_at_s = 0.0
        self.context: int | None = None


_Identity = tuple[int, int, int]
"""Context, tag and index of an entry."""


class _Profiler:
    """Yappi in this process: whom it serves, what its tags stand for, and what has been written."""

    def __init__(self, settings: Settings):
        import _yappi
        import yappi

        if yappi.is_running() or _yappi._get_start_flags() is not None:
            raise _InUse("the program uses Yappi itself: its statistics are left alone")
        self._yappi, self._c = yappi, _yappi
        self.settings = settings
        self.servers: list[_Server] = []
        self._writing = threading.Lock()
        self._naming = threading.Lock()
        self._tags: dict[tuple[int, str], int] = {}
        self._meanings: dict[int, tuple[_Server, str]] = {}
        self._numbers = itertools.count(1)
        self._is_wanted: dict[str, bool] = {}
        self._threads: list[_Thread] = []
        self._loops: dict[int, _Server | None] = {}
        self._contexts: dict[int, int] = {}
        self._readings: dict[int, tuple[list[Entry], bool]] = {}
        self._written: dict[_Identity, Values] = {}
        self._too_many: set[_Identity] = set()
        self._loops_read_at_s = 0.0
        self._is_off = False
        hook = functools.partial(sys.setprofile, yappi._profile_thread_callback)
        self._hook: Callable[[], None] = hook if _EACH_THREAD else (lambda: None)
        yappi.set_clock_type(settings.clock)
        yappi.set_tag_callback(_tag.get)
        mine = sys.getprofile()
        yappi.start(builtins=True)
        self.hook_address = _profile_hook()
        if _EACH_THREAD:
            # Armed: Yappi counts in the threads that carry its hook, and now none does.
            yappi.stop()
            sys.setprofile(mine)
        self._originals = {name: getattr(yappi, name) for name in _ENTRY_POINTS}
        for name, original in self._originals.items():
            setattr(yappi, name, self._giving_way(original))

    # ------------------------------------------------------------ a program that uses Yappi itself

    def _giving_way(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def entry_point(*args: Any, **kwargs: Any) -> Any:
            try:
                self.give_way()
            except Exception as reason:  # noqa: BLE001 - the program's own call follows
                for each in self.servers:
                    each.spool.failed("yappi", reason, "function_calls")
            return original(*args, **kwargs)

        return entry_point

    def give_way(self) -> None:
        """Leave Yappi as it was found: no hook in any thread, no statistics, its default clock."""
        with self._naming:
            if self._is_off:
                return
            self._read_idle(is_last=True)
            self._read_busy()
            self._is_off = True
        for name, original in self._originals.items():
            setattr(self._yappi, name, original)
        # Yappi must not be cleared with its hook in a thread, and takes it out where it runs only.
        self._originals["start"](builtins=True)
        self._yappi.stop()
        self._originals["clear_stats"]()
        self._originals["set_tag_callback"](None)
        self._originals["set_clock_type"]("cpu")
        for each in self.servers:
            each.spool.lose("not_captured", "function_calls", "the program began to use Yappi itself")

    # ------------------------------------------------------------ servers

    def add(self, server: _Server) -> Callable[[], None]:
        self.servers.append(server)
        if (task_entered, task_left) not in threads.around:
            threads.around.append((task_entered, task_left))
        if server.role != "worker" or not self.settings.prefixes:
            self.hook_for_good(server)
        server.spool.prepare.append(server.spool.guard("yappi", self._written_soon, table_name="function_calls"))

        def undo() -> None:
            server.is_ending = True
            if _EACH_THREAD and all(each.is_ending for each in self.servers):
                sys.setprofile(None)

        return undo

    def hook_for_good(self, server: _Server | None = None) -> None:
        """Count in the calling thread until the process ends; its functions are those of no task."""
        if sys.getprofile() is not None:
            if server is not None:
                server.spool.lose(
                    "not_captured", "function_calls", "another profiler is in the thread of the event loop"
                )
            return
        ident = threading.get_ident()
        known = self._loops.get(ident)
        if known is None or known.is_ending:
            self._loops[ident] = server
        self._hook()

    # ------------------------------------------------------------ in the threads of tasks

    def enter(self, prefix: str) -> None:
        wanted = self._is_wanted.get(prefix)
        if wanted is None:
            patterns = self.settings.prefixes
            wanted = not patterns or any(fnmatchcase(prefix, pattern) for pattern in patterns)
            self._is_wanted[prefix] = wanted
        if not wanted or self._is_off or _hooked.here:
            return
        server = self._server_here()
        if server is None:
            return
        if sys.getprofile() is not None:
            server.spool.lose("not_captured", "function_calls", "tasks in whose thread another profiler is", 1)
            return
        tag = self._tags.get((id(server), prefix))
        if tag is None:
            tag = self._new_tag(server, prefix)
        own = _hooked.own
        if own is None or own.profiler is not self:
            own = _hooked.own = _Thread(self)
            self._threads.append(own)
        with own.lock:
            own.is_busy = True
        own.server = server
        _hooked.here = True
        _tag.set(tag)
        self._hook()

    def leave(self, own: _Thread, is_whole: bool) -> None:
        _tag.set(0)
        if not is_whole and not self._is_off and own.server is not None:
            detail = "tasks that put another profiler into their thread, from where on their functions are missing"
            own.server.spool.lose("not_captured", "function_calls", detail, 1)
        own.server = None
        now = time.monotonic()
        with own.lock:
            own.is_busy = own.is_read = False
            if now - own.read_at_s > _READ_INTERVAL_S and not self._is_off:
                self._read_thread(own, now)

    def _new_tag(self, server: _Server, prefix: str) -> int:
        with self._naming:
            tag = self._tags.get((id(server), prefix))
            if tag is None:
                tag = next(self._numbers)
                self._meanings[tag] = (server, prefix)
                self._tags[id(server), prefix] = tag
            return tag

    def _server_here(self) -> _Server | None:
        """Return the worker whose task this thread is about to run."""
        workers = [each for each in self.servers if each.role == "worker"]
        if len(workers) == 1:
            return workers[0]
        from distributed.worker import thread_state

        current = getattr(thread_state, "execution_state", {}).get("worker")
        for each in workers:
            if each.server is current:
                return each
        thread = threading.current_thread()  # a method of an actor: Dask has told the thread nothing yet
        for each in workers:
            if thread in getattr(each.server.executors.get("actor"), "_threads", ()):
                return each
        return None

    # ------------------------------------------------------------ reading

    def _entries(self, chosen: dict[str, int]) -> list[Entry]:
        """Return Yappi's entries, read while no other thread of the process runs."""
        found: list[Any] = []
        collects = gc.isenabled()
        gc.disable()  # a collection could run byte code of finalizers
        try:
            self._c.enum_func_stats(found.append, chosen)
        finally:
            if collects:
                gc.enable()
        return found

    def _read_thread(self, own: _Thread, now_s: float, *, is_running: bool = False) -> None:
        """Take the entries of a thread; its lock is held.  While a task runs only for the last time."""
        own.read_at_s, own.is_read = now_s, True
        if own.context is None:
            own.context = self._context_of(own.ident)
        if own.context is not None:
            self._readings[own.context] = self._entries({"ctx_id": own.context}), is_running

    def _context_of(self, ident: int) -> int | None:
        """Return Yappi's number of a living thread: the last it gave to one of this ident."""
        found: list[Any] = []
        self._c.enum_context_stats(found.append)
        for _, context, thread, *_ in found:
            self._contexts[context] = thread
        return max((context for _, context, thread, *_ in found if thread == ident), default=None)

    def _read_idle(self, *, is_last: bool) -> None:
        now = time.monotonic()
        for own in self._threads[:]:
            with own.lock:
                if not own.is_busy and not own.is_read:
                    self._read_thread(own, now)
                if own.is_read and not own.is_busy and not own.thread.is_alive():
                    self._threads.remove(own)
        if self._loops and (is_last or now - self._loops_read_at_s > 2 * _READ_INTERVAL_S):
            self._loops_read_at_s = now
            for ident in self._loops:
                context = self._context_of(ident)
                if context is not None:
                    self._readings[context] = self._entries({"ctx_id": context}), True

    def _entries_at_rest(self) -> list[Entry]:
        """Return the entries of event loops and of threads that run no task: other servers' tasks may be running."""
        found: list[Any] = []
        # Contexts first: each is of a thread that is known by now, or has ended.
        self._c.enum_context_stats(found.append)
        contexts = {context for _, context, *_ in found}
        with contextlib.ExitStack() as held:
            for own in self._threads[:]:
                held.enter_context(own.lock)
                if own.is_busy:
                    contexts.discard(own.context or self._context_of(own.ident))
            return [entry for context in sorted(contexts) for entry in self._entries({"ctx_id": context})]

    def _read_busy(self) -> None:
        """Take what threads did whose tasks still run, which changes it: for the last time."""
        now = time.monotonic()
        for own in self._threads:
            with own.lock:
                if own.is_busy:
                    self._read_thread(own, now, is_running=True)

    # ------------------------------------------------------------ writing, by the writer thread

    def _written_soon(self) -> None:
        with self._writing:
            with self._naming:
                if not self._is_off:
                    self._read_idle(is_last=any(each.is_ending for each in self.servers))
            # Later readings of a thread hold what earlier ones held: at most one waits.
            for context in list(self._readings):
                self._put_growth(*self._readings.pop(context))
            for each in self.servers[:]:
                if each.is_ending:
                    self.servers.remove(each)
                    each.server = None
                    if not self._is_off:
                        self._save(each)

    def _put_growth(self, entries: list[Entry], is_loop: bool) -> None:
        now, (own, called) = time.time_ns(), called_functions(entries)
        for entry in entries:
            tag = entry[TAG]
            if entry[INDEX] in own:
                continue
            thread = self._contexts.get(entry[CONTEXT])
            server, prefix = self._meanings.get(tag) or (self._loop_server(thread), None)
            if server is None:
                continue
            identity = (entry[CONTEXT], tag, entry[INDEX])
            if entry[BUILTIN]:
                values = called.get(entry[INDEX], NOTHING)
            else:
                values = self._values(entry, identity, is_loop)
            before = self._written.get(identity, NOTHING)
            if values[0] < before[0]:
                server.spool.lose("gap", "function_calls", "Yappi's statistics were cleared by the program")
                before = NOTHING
            if values != before:
                self._written[identity] = values
                growth = [new - old for new, old in zip(values, before, strict=True)]
                kind = "coroutine" if is_coroutine(entry) and prefix is None else "other" if prefix is None else "task"
                place = (None, None) if entry[BUILTIN] else (str(entry[1]), int(entry[2]))
                row = FunctionCall(now, self.settings.clock, prefix, thread, kind, name_of(entry), *place, *growth)
                server.spool.put(row)

    def _loop_server(self, thread: int | None) -> _Server | None:
        """Return the server the functions of a thread without tasks are written for."""
        if thread not in self._loops:
            return None
        server = self._loops[thread]
        return server or next((each for each in self.servers if each.role == "client"), None)

    def _values(self, entry: Entry, identity: _Identity, is_loop: bool) -> Values:
        """Return calls, calls that were no recursion, own and total time of an entry."""
        count, primitive, total, own = entry[COUNT], entry[PRIMITIVE], entry[TOTAL], entry[OWN]
        if is_loop:
            if count == 1 and primitive == 0:
                self._too_many.add(identity)  # it has been called and has not returned
            if count == primitive or identity in self._too_many:
                # What a running function has called stands against its own time until it returns.
                own = max(0.0, total - sum(child[3] for child in entry[CHILDREN]))
            count -= identity in self._too_many
        return count, primitive, own, total

    # ------------------------------------------------------------ Yappi's own files

    def _save(self, server: _Server) -> None:
        """Write what a server's profile holds as the files other tools read."""
        directory = server.run_directory / "foreign" / "yappi"
        try:
            every = self._entries_at_rest()
            own, called = called_functions(every)
            entries = [
                entry
                for entry in every
                if self._belongs(entry, server)
                and (entry[INDEX] in called if entry[BUILTIN] else entry[INDEX] not in own)
            ]
            if not entries:
                return
            statistics = statistics_of(self._yappi, self.settings.clock, entries)
            directory.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^\w.-]", "_", server.spool.server_id)
            statistics.save(str(directory / f"{name}.pstat"), "pstat")
            callgrind = directory / f"{name}.callgrind"
            statistics.save(str(callgrind), "callgrind")
            # Yappi writes the whole command line of the process, secrets included.
            callgrind.write_text(re.sub(r"(?m)^cmd:.*$", "cmd: recup", callgrind.read_text(), count=1))
        except Exception as reason:  # noqa: BLE001 - the rows are written, the files are an extra
            server.spool.lose("not_captured", None, f"files of Yappi in {directory}: {reason!r}"[:300])

    def _belongs(self, entry: Entry, server: _Server) -> bool:
        meaning = self._meanings.get(entry[TAG])
        owner = meaning[0] if meaning else self._loop_server(self._contexts.get(entry[CONTEXT]))
        return owner is server


_profiler: _Profiler | None = None
_profiler_lock = threading.Lock()


def _profiler_for(settings: Settings) -> _Profiler:
    """Return the profiler of this process, started with the first settings it is asked for."""
    global _profiler
    with _profiler_lock:
        if _profiler is None:
            _profiler = _Profiler(settings)
        elif _profiler.settings.clock != settings.clock:
            raise _InUse(f"this process is profiled with the {_profiler.settings.clock} clock already")
        return _profiler


def _forget_parent() -> None:
    """In a forked child: the profile is the parent's."""
    global _profiler
    if _profiler is not None:
        if _hooked.here or threading.get_ident() in _profiler._loops:
            sys.setprofile(None)
        _profiler = None


os.register_at_fork(after_in_child=_forget_parent)
