"""The worker's side of the record: step 4.

Covers every transition with its cause, reception of tasks, the end of every attempt with
its error, transfers in and out, spilling, fine performance metrics, samples, logs.  It
does not cover what the task's thread did meanwhile (step 5).

Hooks run on the worker's event loop; spill callbacks may run in any thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
from distributed import Scheduler
from distributed.diagnostics.plugin import WorkerPlugin

from recup.capture import darshan, function_profile, host, logs, profile_request, session
from recup.capture.sampling import Sampler, process_samples, worker_samples
from recup.capture.threads import count_actor_methods, counting
from recup.capture.transfers import DIRECTIONS, tap_transfers
from recup.capture.transitions import worker_hook
from recup.schema import ProcessEnd
from recup.spool import Spool

logger = logging.getLogger("recup")


class RecupWorker(WorkerPlugin):
    """Worker plugin that records one worker; brought by the scheduler's plugin.

    Parameters
    ----------
    run_directory : str
        Run to write into, as the scheduler sees it.
    scheduler_id : str
        Server id of the scheduler.
    """

    name = "recup"
    idempotent = True
    yappi: profile_request.Settings | None = None
    """What the scheduler's side wants profiled; by default what is configured here."""

    def __init__(self, run_directory: str, scheduler_id: str):
        self.run_directory = run_directory
        self.scheduler_id = scheduler_id

    def setup(self, worker: Any) -> None:
        """Begin recording; whatever goes wrong here, the worker works."""
        try:
            self._begin(worker)
        except Exception as reason:  # noqa: BLE001 - the worker must start
            logger.warning("recup does not record this worker: %r", reason)

    def _begin(self, worker: Any) -> None:
        self._worker = worker
        self._spool = spool = Spool(session.spool_root(self.run_directory), "worker", worker.id)
        self._counted_before = worker.state.transition_counter

        def switch_off() -> None:
            self.transition = _nothing

        counters, count = counting(spool)
        self.transition, self._counts = worker_hook(spool, worker, switch_off, count)
        self._transfers, untap = tap_transfers(spool, worker)
        self._served_before = _served(worker)
        undo = (
            untap,
            _tap_spills(spool, worker),
            _record_clients_of_tasks(self.run_directory),
            count_actor_methods(worker, counters),
            function_profile.attach(
                spool, "worker", worker, self.yappi or profile_request.configured(), self.run_directory
            ),
        )
        self._undo = [each for each in undo if each is not None]
        self._metrics = {name: [*_named_metric(name), value] for name, value in worker.digests_total.items()}
        logs.attach(spool, lambda: (worker.address, worker.id))
        self._darshan = darshan.attach(spool, worker, self.run_directory)
        spool.describing = host.record_process_in_background(
            spool,
            role="worker",
            run_directory=Path(self.run_directory),
            address=worker.address,
            name=worker.name,
            scheduler_id=self.scheduler_id,
            thread_count=worker.state.nthreads,
            memory_limit_bytes=getattr(worker.memory_manager, "memory_limit", None),
            local_directory=worker.local_directory,
            details=_worker_details(worker),
        )
        self._sampler = Sampler(spool, self._sample, delay=lambda: worker.scheduler_delay)
        self._sampler.start()

    async def teardown(self, worker: Any) -> None:
        """Write what is in memory; task threads may still run and their rows are still taken."""
        if hasattr(self, "_sampler") and self._sampler.stop():
            for undo in self._undo:
                undo()
            now = time.time_ns()
            self._spool.put(ProcessEnd(now, worker.id, "worker", None, "closed", None, None, None))
            if self._darshan is not None:
                await self._darshan.end()
            await session.soon(self._spool.close)
            logs.detach(self._spool)

    def _sample(self, put: Callable[[str, str | None, float], None]) -> None:
        worker, spool = self._worker, self._spool
        process_samples(put)
        worker_samples(put, worker)
        recorded, compound = self._counts()
        spool.counters["transitions_dask"] = worker.state.transition_counter - self._counted_before
        spool.counters["transitions_recorded"] = recorded
        spool.counters["transitions_compound"] = compound
        for direction in DIRECTIONS:
            spool.counters[f"transfers_{direction}_recorded"] = getattr(self._transfers, f"{direction}_count")
        spool.counters["transfers_outgoing_dask"] = _served(worker) - self._served_before
        self._put_fine_metrics()

    def _put_fine_metrics(self) -> None:
        """Write by how much each of Dask's fine metrics grew since the last time."""
        now, known, put = time.time_ns(), self._metrics, self._spool.extender("fine_metrics")
        for name, value in list(self._worker.digests_total.items()):
            metric = known.get(name)
            if metric is None:
                metric = known[name] = [*_named_metric(name), 0.0]
            before, metric[-1] = metric[-1], value
            if value != before and metric[0] is not None:
                put((now, *metric[:-1], value - before))


def _named_metric(name: Any) -> tuple[str | None, ...]:
    """Return context, span, prefix, activity and unit of a fine metric; no context: it is none."""
    if not isinstance(name, tuple) or len(name) < 3:
        return (None,) * 5
    span_id, prefix = (name[1], name[2]) if len(name) >= 5 else (None, None)
    return str(name[0]), _text(span_id), _text(prefix), str(name[-2]), str(name[-1])


def _tap_spills(spool: Spool, worker: Any) -> Callable[[], None] | None:
    """Record results that go to disk and come back, through zict's own callbacks."""
    data, put = worker.data, spool.extender("spills")
    slow = getattr(data, "_slow_uncached", None)
    if not hasattr(data, "fast_to_slow_callbacks"):
        if worker.memory_manager.memory_limit and not isinstance(data, dict):
            spool.lose("not_captured", "spills", f"worker.data is a {type(data).__name__}, without zict's callbacks")
        return None

    def size_in_memory(key: Any) -> int:
        return int(data.fast.weights.get(key, -1))

    def sizes_on_disk(key: Any) -> tuple[int, int]:
        sizes = getattr(slow, "weight_by_key", {}).get(key)
        return (-1, -1) if sizes is None else (int(sizes[0]), int(sizes[1]))

    def spilled(key: Any, value: Any) -> None:
        memory, disk = sizes_on_disk(key)
        put((time.time_ns(), key, "spill", size_in_memory(key) if memory < 0 else memory, disk))

    def unspilled(key: Any, value: Any) -> None:
        put((time.time_ns(), key, "unspill", size_in_memory(key), sizes_on_disk(key)[1]))

    callbacks = (
        (data.fast_to_slow_callbacks, spool.guard("spill", spilled, table_name="spills")),
        (data.slow_to_fast_callbacks, spool.guard("unspill", unspilled, table_name="spills")),
    )
    for registered, callback in callbacks:
        registered.append(callback)

    def undo() -> None:
        for registered, callback in callbacks:
            if callback in registered:
                registered.remove(callback)

    return undo


def _record_clients_of_tasks(run_directory: str) -> Callable[[], None]:
    """Have clients that tasks of this process make recorded too; returns the way back.

    A process that also holds the scheduler is the user's own program: its configuration is
    left alone.
    """
    if any(Scheduler._instances):
        return lambda: None
    preloads = dask.config.get("distributed.client.preload", None) or []
    preloads = [preloads] if isinstance(preloads, str) else list(preloads)
    changes: dict[str, Any] = {}
    if not any(str(name).startswith("recup.preload") for name in preloads):
        changes["distributed.client.preload"] = [*preloads, "recup.preload"]
    if dask.config.get("recup.run-directory", None) is None:
        changes["recup.run-directory"] = run_directory
    before = {name: dask.config.get(name, None) for name in changes}
    dask.config.set(changes)

    def undo() -> None:
        dask.config.set(before)

    return undo


def _served(worker: Any) -> int:
    """Return the outgoing transfers that ended: Dask counts one when it begins and logs it when it has gone well."""
    return int(worker.transfer_outgoing_count_total - worker.transfer_outgoing_count)


def _worker_details(worker: Any) -> dict[str, Any]:
    manager = worker.memory_manager
    names = ("memory_target_fraction", "memory_spill_fraction", "memory_pause_fraction", "max_spill")
    return {
        "nanny": getattr(worker, "nanny", None) and str(worker.nanny),
        "resources": dict(worker.state.total_resources),
        "executors": {str(name): getattr(each, "_max_workers", None) for name, each in worker.executors.items()},
        "memory": {name: getattr(manager, name) for name in names if hasattr(manager, name)},
        "data": type(worker.data).__name__,
        "heartbeat_s": getattr(worker, "heartbeat_interval", None),
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _nothing(*_: Any, **__: Any) -> None:
    """Stand in for a hook that is switched off."""
