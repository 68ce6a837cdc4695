"""Which run a process records into, and how recording begins and ends in a program.

Covers the run directory of this process, `record(client)` and the choice of a directory
for spools.  It does not cover what is recorded (`scheduler`, `worker`, `client`), nor
`recup run` (`recup.launch`), which only sets this module's configuration.

Dask configuration read here, each also an environment variable ``DASK_RECUP__...``:

* ``recup.run-directory``: the run to write into; set by `recup run`;
* ``recup.root``: where new runs are made; default $RECUP_ROOT or ``recup-runs``;
* ``recup.spool.directory``: a node-local directory for spools, collected at the end;
* ``recup.attach``: whether a client records a cluster somebody else started; set by the
  notebook extension (`recup run` always does);
* ``recup.source``: whether source text of the script and submitting frames is recorded.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import dask

from recup.rundir import create_run, local_directory, read_manifest, runs_root, update_manifest
from recup.spool import Spool

logger = logging.getLogger("recup")

_lock = threading.Lock()
_process_run: Path | None = None


def configured_run() -> Path | None:
    """Return the run this process was told to record into, or None."""
    path = dask.config.get("recup.run-directory", None)
    return Path(path) if path else _process_run


def run_for_new_scheduler(way: str) -> Path:
    """Return the run a scheduler of this process records into; a new one if none was told.

    Raises
    ------
    OSError
        No run directory can be made.
    """
    global _process_run
    with _lock:
        told = dask.config.get("recup.run-directory", None)
        if told:
            return Path(told)
        _process_run = create_run(runs_root(dask.config.get("recup.root", None)), way=way)
        return _process_run


def leave_run(path: Path) -> None:
    """Forget a run whose scheduler ended: what this process records next is another."""
    global _process_run
    with _lock:
        if _process_run == path:
            _process_run = None


def spool_root(run_directory: str | Path) -> Path:
    """Return where a server writes its spool: the run directory if it can be written, else a local one.

    A worker on a host that does not share the run's filesystem writes under the temporary
    directory; its rows must then be collected by hand, and the completeness statement
    names the worker as not captured until they are.
    """
    local = dask.config.get("recup.spool.directory", None)
    run = Path(run_directory)
    for candidate in ([Path(local) / run.name] if local else []) + [
        run,
        local_directory(run.name),
    ]:
        try:
            (candidate / "spool").mkdir(parents=True, exist_ok=True)
            if os.access(candidate / "spool", os.W_OK):
                return candidate
        except OSError:
            continue
    return run


def end_run(path: Path, *, exit_code: int | None = 0) -> None:
    """Write into the manifest that the run ended in order, unless its launcher will."""
    try:
        if read_manifest(path).get("way") != "run":
            update_manifest(path, state="ended", ended_ns=time.time_ns(), exit_code=exit_code)
    except Exception as reason:  # noqa: BLE001 - the host program must not notice
        logger.debug("recup could not end the run's manifest: %r", reason)


async def soon(write: Callable[[], None], timeout_s: float = 5.0) -> None:
    """Have something written that ends a record, without holding the event loop; give up when the disk hangs."""
    thread = threading.Thread(target=write, name="recup-close", daemon=True)
    try:
        thread.start()
    except RuntimeError as reason:  # no thread can be had
        logger.warning("recup could not end a record in order: %s", reason)
        return
    for _ in range(int(timeout_s / 0.005)):
        if not thread.is_alive():
            return
        await asyncio.sleep(0.005)


class record:
    """Record everything the client's cluster does inside the block.

    Yields itself; `path` is the run directory, to be given to `recup.open_run`.  Works with
    synchronous clients (``with``) and asynchronous ones (``async with``).  Where the cluster
    is recorded already, its run goes on and this only names it.

    Parameters
    ----------
    client : distributed.Client
        A connected client.
    root : str or Path, optional
        Directory that holds runs; default $RECUP_ROOT, else ``recup-runs``.

    Notes
    -----
    Tasks the scheduler knew before the block are listed, but their earlier transitions are
    gone.  Errors of recup are logged and recorded as losses, not raised; only a run
    directory that cannot be made raises OSError, and what is no client TypeError.
    """

    def __init__(self, client: Any, root: str | os.PathLike[str] | None = None):
        if not hasattr(client, "sync"):
            raise TypeError(f"recup.record takes a distributed.Client, not {type(client).__name__}")
        self.client = client
        self.path: Path | None = None
        self._root = root
        self._plugged = False
        self._capture: Any = None

    def __repr__(self) -> str:
        return f"<recup.record {self.path}>"

    def __enter__(self) -> record:
        self.client.sync(self._start)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.client.sync(self._stop)

    async def __aenter__(self) -> record:
        await self._start()
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self._stop()

    async def _start(self) -> None:
        recorded = await scheduler_run(self.client)
        if recorded:
            self.path = Path(recorded)
        else:
            root = runs_root(self._root or dask.config.get("recup.root", None))
            told = dask.config.get("recup.run-directory", None)
            self.path = Path(told) if told else create_run(root, way="record")
            self._plugged = await plug_in(self.client, self.path, lambda reason: logger.warning("recup: %s", reason))
        self._capture = capture_client(self.client, self.path)

    async def _stop(self) -> None:
        try:
            spool = release_client(self.client) if self._capture is not None else None
            if spool is not None:
                await soon(spool.close)
            if self._plugged:
                await unplug(self.client)
            if self.path is not None and self._plugged:
                await soon(functools.partial(end_run, self.path))
        except Exception as reason:  # noqa: BLE001 - the block's own outcome stands
            logger.warning("recup could not end the recording in order: %r", reason)


# ---------------------------------------------------------------- what a client can arrange


async def scheduler_run(client: Any) -> str | None:
    """Return the run directory the client's scheduler records into, or None.

    The scheduler's plugin says so in an event of topic ``recup``: asking for a topic nobody
    uses is quiet, while a remote call nobody answers is logged there with a traceback.
    """
    try:
        events = await client.get_events("recup")
        last = events[-1][1] if events else {}
        return last["run_directory"] if last.get("action") == "recording" else None
    except Exception as reason:  # noqa: BLE001 - not told is as good as not recorded
        logger.debug("recup: get_events: %r", reason)
        return None


async def plug_in(client: Any, run_directory: Path, complain: Callable[[str], None]) -> bool:
    """Register recup with a running cluster; True when this call did it."""
    try:
        from recup.capture.scheduler import RecupScheduler

        await client.register_plugin(RecupScheduler(str(run_directory)), name="recup")
        return True
    except Exception as reason:  # noqa: BLE001 - e.g. recup is not installed where the scheduler runs
        complain(f"the scheduler could not load recup ({type(reason).__name__}: {reason}); only the client is recorded")
        return False


async def unplug(client: Any) -> None:
    """Take recup out of the cluster it was plugged into."""
    try:
        await client.scheduler.recup_stop()
    except Exception as reason:  # noqa: BLE001 - the scheduler may be gone
        logger.debug("recup_stop: %r", reason)
    for unregister, arguments in (
        ("unregister_worker_plugin", {}),
        ("unregister_worker_plugin", {"nanny": True}),
        ("unregister_scheduler_plugin", {}),
    ):
        try:
            await getattr(client, unregister)("recup", **arguments)
        except Exception as reason:  # noqa: BLE001 - one may be gone already
            logger.debug("recup: %s: %r", unregister, reason)


def capture_client(client: Any, run_directory: Path) -> Any:
    """Begin recording a client's submissions; returns its ClientCapture, or None."""
    try:
        from recup.capture import function_profile, host, logs, profile_request
        from recup.capture.client import ClientCapture

        present = getattr(client, "_recup_capture", None)
        if present is not None:
            return None
        spool = Spool(spool_root(run_directory), "client", client.id)
        capture = ClientCapture(spool, client)
        capture.install()
        client._recup_capture = capture
        logs.attach(spool)
        capture.stop_profile = function_profile.attach(
            spool, "client", client, profile_request.configured(), run_directory
        )
        spool.describing = host.record_process_in_background(
            spool,
            role="client",
            run_directory=run_directory,
            scheduler_id=(client._scheduler_identity or {}).get("id"),
            details={"asynchronous": bool(client.asynchronous), "hostname": socket.gethostname()},
        )
        return capture
    except Exception as reason:  # noqa: BLE001 - the client must start
        logger.warning("recup does not record this client: %r", reason)
        return None


def release_client(client: Any) -> Spool | None:
    """Stop recording a client; returns its spool, still to be closed."""
    capture = getattr(client, "_recup_capture", None)
    if capture is None:
        return None
    from recup.capture import logs

    client._recup_capture = None
    capture.uninstall()
    logs.detach(capture.spool)
    if capture.stop_profile is not None:
        capture.stop_profile()
    spool: Spool = capture.spool
    return spool


async def client_joins(client: Any) -> None:
    """Begin recording a client that starts in a recorded program, and its cluster if need be.

    A cluster somebody else started is recorded through `plug_in`, when recup can be
    imported there; otherwise the client alone is recorded, and the run says so.
    """
    run_directory = configured_run()
    theirs = await scheduler_run(client)
    if run_directory is None:
        run_directory = Path(theirs) if theirs else None
    if run_directory is None and dask.config.get("recup.attach", False):
        run_directory = run_for_new_scheduler("notebook")
    if run_directory is None:
        return
    if capture_client(client, run_directory) is None:
        return
    spool: Spool = client._recup_capture.spool
    if theirs is None:
        client._recup_plugged = await plug_in(
            client, run_directory, lambda reason: spool.lose("not_captured", "scheduler_transitions", reason)
        )
    elif Path(theirs) != run_directory:
        spool.lose("not_captured", "scheduler_transitions", f"the scheduler is recorded in another run: {theirs}")


async def client_leaves(client: Any) -> None:
    """End the recording of a client that closes, and of a cluster it had plugged recup into."""
    if getattr(client, "_recup_plugged", False):
        client._recup_plugged = False
        await unplug(client)
    spool = release_client(client)
    if spool is not None:
        await soon(spool.close)
