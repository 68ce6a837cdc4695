"""The nanny's side of the record: worker processes that start, end and are restarted.

Covers the exit code or signal of each worker process, which only its parent learns, and
the reason of kills the nanny makes itself.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import Any

from distributed.core import Status
from distributed.diagnostics.plugin import NannyPlugin

from recup.capture import darshan, host, logs, session
from recup.schema import ProcessEnd
from recup.spool import Spool

logger = logging.getLogger("recup")


class RecupNanny(NannyPlugin):
    """Nanny plugin that records one nanny; brought by the scheduler's plugin."""

    name = "recup"
    idempotent = True
    restart = False

    def __init__(self, run_directory: str, scheduler_id: str):
        self.run_directory = run_directory
        self.scheduler_id = scheduler_id

    def setup(self, nanny: Any) -> None:
        """Begin recording; whatever goes wrong here, the nanny works.

        Dask may set a plugin up twice, without taking it out between: in a nanny that starts
        while the plugin is registered.  What records this run then goes on; what records
        another run ends.
        """
        try:
            recording = getattr(nanny, "recup_recording", None)
            if recording is not None and recording.run_directory == self.run_directory:
                return
            nanny.recup_recording = None
            if recording is not None:
                self._ending = asyncio.get_running_loop().create_task(recording._end())
            self._begin(nanny)
            nanny.recup_recording = self
        except Exception as reason:  # noqa: BLE001 - the nanny must start
            logger.warning("recup does not record this nanny: %r", reason)

    def _begin(self, nanny: Any) -> None:
        self._spool = spool = Spool(session.spool_root(self.run_directory), "nanny", nanny.id)
        self._nanny = nanny
        self._pid: int | None = None
        self._reason: str | None = None
        self._connected: tuple[int | None, Any] = (None, None)
        self._ended_address: Any = None
        logs.attach(spool, lambda: (nanny.address, nanny.id, self._pid and f"process {self._pid} "))
        self._wrap(nanny)
        self._instrument(nanny)
        spool.describing = host.record_process_in_background(
            spool,
            role="nanny",
            run_directory=Path(self.run_directory),
            address=getattr(nanny, "address", None),
            name=nanny.name,
            scheduler_id=self.scheduler_id,
            thread_count=nanny.nthreads,
            local_directory=nanny.local_directory,
        )
        self._loop = asyncio.get_running_loop()
        self._note_pid()

    def _instrument(self, nanny: Any) -> None:
        try:
            darshan.instrument_worker_of(nanny, self._spool, self.run_directory)
        except Exception as reason:  # noqa: BLE001 - the worker starts without Darshan
            self._spool.lose("not_captured", "io_logs", f"worker not started under Darshan: {reason!r}"[:300])

    def _wrap(self, nanny: Any) -> None:
        """See each exit of the worker process, and the reason of each kill by the nanny."""
        on_exit, kill = getattr(nanny, "_on_worker_exit_sync", None), nanny.kill
        if on_exit is None:
            self._spool.lose(
                "not_captured", "process_ends", "this Dask's nanny does not tell exits where recup listens"
            )
            return

        def exited(exit_code: int) -> Any:
            try:
                self._put_end(exit_code)
            except Exception as reason:  # noqa: BLE001 - the nanny must restart its worker
                self._spool.failed("nanny exit", reason, "process_ends")
            return on_exit(exit_code)

        async def killing(*args: Any, **kwargs: Any) -> Any:
            self._reason = str(kwargs.get("reason") or "nanny-kill")
            return await kill(*args, **kwargs)

        nanny._on_worker_exit_sync = exited
        nanny.kill = killing
        process = nanny.process
        if process is not None and process.on_exit is not None:
            process.on_exit = exited

    def _put_end(self, exit_code: int) -> None:
        address = self._address()
        # multiprocessing reports 255 when it could not learn how the process ended.
        known = exit_code != 255
        signal = -exit_code if exit_code < 0 else None
        self._spool.put(
            ProcessEnd(
                time.time_ns(),
                str(address) if address else f"worker of {self._nanny.id}",
                "worker",
                self._pid,
                "signalled" if signal else "exited" if known else "unknown",
                exit_code if known and signal is None else None,
                signal,
                self._reason,
            )
        )
        if signal and self._pid is not None:
            threading.Thread(target=self._fetch_map, args=(self._pid,), name="recup-darshan", daemon=True).start()
        self._pid = self._reason = None

    def _address(self) -> Any:
        """Return the address of the worker that ended; None of one that had not connected: what Dask has is older."""
        address = self._nanny.worker_address
        if address == self._ended_address and self._connected != (self._pid, address):
            return None
        self._ended_address = address
        return address

    def _fetch_map(self, pid: int) -> None:
        try:
            if darshan.read_request(self.run_directory) is not None:
                darshan.fetch_map(self.run_directory, pid)
        except OSError as reason:
            self._spool.lose("not_captured", "io_files", f"Darshan's memory map of process {pid}: {reason}")

    def _note_pid(self) -> None:
        """Remember the worker's process id: it is gone when its exit is told."""
        if self._nanny.pid is not None:
            self._pid = self._nanny.pid
            if getattr(self._nanny.process, "status", None) == Status.running:
                self._connected = (self._pid, self._nanny.worker_address)
        self._timer = self._loop.call_later(1.0, self._note_pid)

    async def teardown(self, nanny: Any) -> None:
        """Write what is in memory; the exit of the worker still follows and is still taken."""
        recording, nanny.recup_recording = getattr(nanny, "recup_recording", None), None
        if recording is not None:
            await recording._end()

    async def _end(self) -> None:
        self._note_pid()
        self._timer.cancel()
        await session.soon(self._spool.close)
        logs.detach(self._spool)
