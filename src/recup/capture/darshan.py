"""Darshan in the processes of a cluster: workers start under it, and their logs get written.

Covers the request that a run be recorded with Darshan, the environment nannies give to the
workers they start, the beacon that ties Darshan's clock to the worker's, and the log of a
worker that is terminated or closed while it is busy.  It does not cover libdarshan itself
(`recup.capture.darshan_library`) nor the files after the run (`recup.capture.darshan_logs`).

Dask configuration read here, each also an environment variable ``DASK_RECUP__DARSHAN__...``:

* ``recup.darshan.library``: ``auto``, or the path of libdarshan or its prefix: record with
  Darshan also without `recup run --darshan`;
* ``recup.darshan.config``: a file whose lines are added to recup's darshan.conf, and win.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import json
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import dask
from distributed import Scheduler, Worker

from recup.capture import session
from recup.capture.darshan_library import (
    HOW_TO_GET_IT,
    REMOVED_VARIABLES,
    Trial,
    config_text,
    find_library,
    library_version,
    log_variables,
    try_library,
    worker_environment,
)
from recup.capture.machine import filesystem_rows
from recup.rundir import local_directory
from recup.schema import ClockBeacon
from recup.spool import Spool, flush_all

logger = logging.getLogger("recup")

_BEACON_WRITES = 8
_FLUSH_S = 10.0
_LATE_FLUSH_S = 2.0
"""How long a worker that was interrupted may take to close in order before its log is written anyway."""
_REMOTE_FILESYSTEMS = {
    "nfs",
    "nfs4",
    "lustre",
    "gpfs",
    "beegfs",
    "fuse.glusterfs",
    "ceph",
    "panfs",
    "pvfs2",
    "afs",
    "cifs",
}


# ---------------------------------------------------------------- the request, in the run directory


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """That a run be recorded with Darshan: ``foreign/darshan/request.json``.

    Attributes
    ----------
    library : str or None
        libdarshan; None where there is none that works.
    reason : str
        Why there is none.
    version : str or None
        Its release.
    variables : tuple of str
        Names of variables it may read its log directory from.
    is_dated : bool
        Whether it writes into <directory>/<year>/<month>/<day>.
    """

    library: str | None
    reason: str = ""
    version: str | None = None
    variables: tuple[str, ...] = ()
    is_dated: bool = False


def foreign(run_directory: str | Path) -> Path:
    """Return where the Darshan logs of a run are."""
    return Path(run_directory) / "foreign" / "darshan"


def request_darshan(run_directory: Path, told: str | None) -> Request:
    """Find libdarshan, try it, write darshan.conf and the request into the run, and return the request.

    Parameters
    ----------
    told : str, optional
        The library or its prefix; by default the usual places are looked at.

    Raises
    ------
    OSError
        The run directory cannot be written.
    """
    directory = foreign(run_directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_config(directory, run_directory)
    request, trial, _ = judge_library(told, directory)
    if trial is not None and trial.log is not None:
        trial.log.unlink(missing_ok=True)
    temporary = directory / f".request.{os.getpid()}"
    temporary.write_text(json.dumps(dataclasses.asdict(request), indent=2) + "\n")
    os.replace(temporary, directory / "request.json")
    return request


def judge_library(told: str | None, directory: Path) -> tuple[Request, Trial | None, tuple[str, ...]]:
    """Return a request for the library found, what trying it showed, and where it was looked for."""
    found = find_library(told, os.environ)
    if found.path is None:
        return Request(None, f"{found.source}. {HOW_TO_GET_IT}"), None, found.looked
    variables = log_variables(found.path, os.environ)
    trial = try_library(found.path, variables, directory)
    is_dated = not trial.reason and trial.is_dated
    if is_dated:
        make_dated(directory)
        trial = try_library(found.path, variables, directory)
    if trial.reason or trial.log is None:
        said = f": {trial.output}" if trial.output else ""
        reason = trial.reason or f"a tiny process under {found.path} left no log in the directory it was told{said}"
        return Request(None, f"{reason.rstrip('.')}. {HOW_TO_GET_IT}"), trial, found.looked
    request = Request(str(found.path), "", library_version(found.path), variables, is_dated)
    return request, trial, found.looked


def read_request(run_directory: str | Path) -> Request | None:
    """Return what was asked for, or None where Darshan was not."""
    try:
        content = json.loads((foreign(run_directory) / "request.json").read_text())
        return Request(**{**content, "variables": tuple(content["variables"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def request_as_configured(run_directory: Path, spool: Spool) -> None:
    """Make the request that Dask's configuration asks for, unless it was made; never raises."""
    try:
        told = dask.config.get("recup.darshan.library", None)
        if told and read_request(run_directory) is None:
            request = request_darshan(run_directory, None if str(told).lower() in ("auto", "true") else str(told))
            if request.library is None:
                spool.lose("not_captured", "io_logs", request.reason)
    except Exception as reason:  # noqa: BLE001 - the scheduler must start
        spool.lose("not_captured", "io_logs", f"Darshan could not be asked for: {reason!r}"[:300])


def write_config(directory: Path, run_directory: Path) -> None:
    """Write darshan.conf into a log directory, unless it is there."""
    file = directory / "darshan.conf"
    if not file.exists():
        appended = dask.config.get("recup.darshan.config", None)
        lines = Path(appended).expanduser().read_text() if appended else ""
        spools = {each / "spool" for each in (Path(run_directory), session.spool_root(run_directory))}
        temporary = directory / f".darshan.conf.{os.getpid()}"
        temporary.write_text(config_text(sorted(spools), lines))
        os.replace(temporary, file)


def log_directory(run_directory: str | Path) -> Path:
    """Return where processes of this host write logs: in the run, else beside the spools kept locally."""
    for root in (Path(run_directory), session.spool_root(run_directory)):
        directory = foreign(root)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if os.access(directory, os.W_OK):
                return directory
        except OSError:
            continue
    return foreign(run_directory)


def map_directory(directory: Path, run_name: str) -> Path:
    """Return where Darshan keeps its memory maps: with the logs, or on this host where those are far away.

    A worker that is killed leaves its counters there.
    """
    kind = next(iter(filesystem_rows({"logs": str(directory)}))).filesystem
    if kind not in _REMOTE_FILESYSTEMS:
        return directory
    return local_directory(run_name) / "darshan"


def fetch_map(run_directory: str | Path, pid: int) -> None:
    """Bring the memory map that a killed process of this host left far from the logs to them."""
    directory = log_directory(run_directory)
    maps = map_directory(directory, Path(run_directory).name)
    if maps != directory:
        # Darshan names it by the job where there is one, which others of the host share: those stay.
        for file in maps.glob(f"*_id{pid}_mmap-log-*.darshan"):
            shutil.move(str(file), str(directory / file.name))


def make_dated(directory: Path) -> None:
    """Make the directories of today and tomorrow, where Darshan wants them and makes none itself."""
    for later_s in (0, 86_400):
        day = time.localtime(time.time() + later_s)
        (directory / f"{day.tm_year}/{day.tm_mon}/{day.tm_mday}").mkdir(parents=True, exist_ok=True)


def environment_of(request: Request, run_directory: Path, preloaded: str) -> dict[str, str]:
    """Return the variables that record a process of this host; the places they name are made.

    Raises
    ------
    OSError
        A place cannot be made.
    """
    directory = log_directory(run_directory)
    maps = map_directory(directory, Path(run_directory).name)
    maps.mkdir(parents=True, exist_ok=True)
    write_config(directory, run_directory)
    if request.is_dated:
        make_dated(directory)
    return worker_environment(Path(request.library or ""), directory, maps, request.variables, preloaded)


# ---------------------------------------------------------------- nannies

_starting = 0
_before: dict[str, str | None] = {}


def instrument_worker_of(nanny: Any, spool: Spool, run_directory: str) -> None:
    """Have the worker processes a nanny starts from now on run under Darshan, if the run asks for it.

    The variables join those of ``distributed.nanny.pre-spawn-environ`` in this nanny alone.
    Only there do they act: set later, the process would be running already, and set in the
    environment, everything else would be recorded too.
    """
    request = read_request(run_directory)
    if request is None or request.library is None:
        return
    if not os.path.isfile(request.library):
        spool.lose("not_captured", "io_logs", f"{request.library} is not there on {socket.gethostname()}")
        return
    if nanny.process is not None and nanny.process.pid is not None:
        spool.lose("not_captured", "io_logs", "a worker process had started before recup came; its restart is recorded")
    method = dask.config.get("distributed.worker.multiprocessing-method", "spawn")
    if method != "spawn":
        spool.lose(
            "not_captured", "io_logs", f"worker processes start by {method}, which Darshan does not see: use spawn"
        )
        return
    present = getattr(nanny, "pre_spawn_env", None)
    if not isinstance(present, dict):
        spool.lose("not_captured", "io_logs", "this Dask's nanny has no environment for the start of its worker")
        return
    preloaded = present.get("LD_PRELOAD") or os.environ.get("LD_PRELOAD", "")
    added = environment_of(request, Path(run_directory), preloaded)
    nanny.pre_spawn_env = {**present, **added}
    nanny.instantiate = _spared(nanny.instantiate, added)


def _spared(instantiate: Callable[[], Any], added: dict[str, str]) -> Callable[[], Any]:
    """Return a start of the worker after which this process's environment is what it was.

    Dask leaves the variables in `os.environ`: in a LocalCluster that is the user's own
    program, and every command it ran from then on would leave a Darshan log.
    """

    async def starting() -> Any:
        global _starting
        from multiprocessing import resource_tracker

        # Started now, it stays outside; started with the first worker, it would be recorded.
        resource_tracker.ensure_running()
        if _starting == 0:
            _before.update({name: os.environ.get(name) for name in (*added, *REMOVED_VARIABLES)})
        _starting += 1
        try:
            for name in REMOVED_VARIABLES:
                os.environ.pop(name, None)
            return await instantiate()
        finally:
            _starting -= 1
            if _starting == 0:
                for name, value in _before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value
                _before.clear()

    return starting


# ---------------------------------------------------------------- workers


class DarshanWorker:
    """Darshan in the process of one worker: beacons, and the log written before the process is gone.

    Parameters
    ----------
    spool : Spool
        Takes the rows of clock_beacons.
    worker : distributed.Worker
        The worker.
    shutdown : callable
        ``darshan_core_shutdown``, which writes the log.
    directory : Path
        Where the beacon's file is.
    """

    def __init__(self, spool: Spool, worker: Any, shutdown: Callable[[int], Any], directory: Path):
        self._spool = spool
        self._worker = worker
        self._shutdown = shutdown
        self._pid = os.getpid()
        # Names the process and the worker in the log itself: Darshan's records hold neither.
        self._path = directory / f"beacon-{self._pid}-{worker.id}"
        self._offset = 0
        self._lock = threading.RLock()
        self._is_flushed = False
        self._previous: dict[int, Any] = {}

    def begin(self) -> None:
        """Write the first beacon, in a thread of its own, and take signals that would lose the log."""
        threading.Thread(target=self.beacon, name="recup-darshan", daemon=True).start()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                previous = signal.getsignal(number)
                if previous == signal.SIG_DFL or callable(previous):
                    self._previous[number] = previous
                    signal.signal(number, self._signalled)

    def beacon(self) -> None:
        """Write single bytes that Darshan sees too, each between two readings of the clock."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                for offset in range(self._offset, self._offset + _BEACON_WRITES):
                    before = time.time_ns()
                    os.pwrite(descriptor, b".", offset)
                    after = time.time_ns()
                    self._spool.put(ClockBeacon(before, after, threading.get_ident(), offset, str(self._path)))
            finally:
                os.close(descriptor)
            self._offset += _BEACON_WRITES
        except OSError as reason:
            self._spool.lose("not_captured", "clock_beacons", f"{self._path}: {reason.strerror}")

    def flush(self) -> None:
        """Write the log, once; what the process reads and writes afterwards is in none."""
        # A forked child has a copy of the lock, perhaps held by a thread that is not there.
        if not self._lock.acquire(timeout=_FLUSH_S):
            return
        try:
            if not self._is_flushed:
                self._is_flushed = True
                self._hold_exits()
                if os.getpid() == self._pid:
                    self.beacon()
                self._shutdown(1)
        except Exception as reason:  # noqa: BLE001 - the process is ending and must end as it would
            self._spool.lose("not_captured", "io_logs", f"the log could not be written: {reason!r}"[:300])
        finally:
            self._lock.release()

    def _hold_exits(self) -> None:
        """Have `os._exit` wait for the log that is being written.

        Dask ends a worker so when its parent has died, which a signal to the whole group
        brings about in these very moments; the log would be cut.
        """
        leave = os._exit

        def leave_later(status: int) -> NoReturn:
            self._lock.acquire(timeout=_FLUSH_S)
            leave(status)

        os._exit = leave_later

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous[number]
        if callable(previous):
            # Dask closes the worker now, and its teardown writes the log; but not where it hangs.
            if os.getpid() == self._pid:
                timer = threading.Timer(_LATE_FLUSH_S, self._flush_late)
                timer.daemon = True
                timer.start()
            previous(number, frame)
            return
        try:
            self.flush()
            flush_all(timeout_s=2.0)
        finally:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _flush_late(self) -> None:
        self._say_busy()
        self.flush()

    def _say_busy(self) -> None:
        with contextlib.suppress(Exception):
            count = self._worker.state.executing_count
            if count and not self._is_flushed:
                self._spool.lose(
                    "gap",
                    "io_segments",
                    f"Darshan's log was written while {count} tasks still ran: what they did afterwards is not in it",
                )

    async def end(self) -> None:
        """Write the log of a worker that closes, before Dask waits for its tasks and kills it.

        Does nothing where only the recording ends, or where others live in the process:
        their log is written when it exits.
        """
        if os.getpid() != self._pid or not _leaves_alone(self._worker):
            return
        self._say_busy()
        thread = threading.Thread(target=self.flush, name="recup-darshan", daemon=True)
        thread.start()
        deadline = time.monotonic() + _FLUSH_S
        while thread.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(0.005)


def _leaves_alone(worker: Any) -> bool:
    """Whether the worker is closing and nothing else of Dask lives in its process."""
    running = ("running", "paused", "closing_gracefully", "init", "starting")
    if worker.status.name in running or any(Scheduler._instances):
        return False
    return not any(other is not worker and other.status.name in running for other in Worker._instances)


def attach(spool: Spool, worker: Any, run_directory: str) -> DarshanWorker | None:
    """Begin with the worker's part where Darshan is in this process; else None, and a loss if it should be."""
    try:
        shutdown = active_shutdown()
        if shutdown is not None:
            darshan = DarshanWorker(spool, worker, shutdown, log_directory(run_directory))
            darshan.begin()
            return darshan
    except Exception as reason:  # noqa: BLE001 - the worker is recorded without
        spool.lose("not_captured", "clock_beacons", f"Darshan in {worker.id}: {reason!r}"[:300])
        return None
    request = read_request(run_directory)
    if request is not None and request.library is not None:
        spool.lose(
            "not_captured",
            "io_logs",
            f"Darshan is not in process {os.getpid()} of {worker.id}: no nanny of this run started it "
            "(see `recup darshan-env` for workers without a nanny)",
        )
    return None


def active_shutdown() -> Callable[[int], Any] | None:
    """Return Darshan's function that writes the log, or None where Darshan does not record this process."""
    try:
        process = ctypes.CDLL(None)
        shutdown: Callable[[int], Any] = process.darshan_core_shutdown
        with contextlib.suppress(ValueError):  # a build that hides the symbol
            if not ctypes.c_void_p.in_dll(process, "__darshan_core").value:
                return None
        return shutdown
    except (AttributeError, OSError):
        return None
