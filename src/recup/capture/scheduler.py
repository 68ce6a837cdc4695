"""The scheduler's side of the record: steps 2 (the graph as run) and 3.

Covers every transition, the graphs the scheduler took, workers and clients coming and
going, steals, events, and samples of state once a second.  It brings the worker and nanny
plugins to every worker.  It does not cover the graph before optimization
(`recup.capture.client`).

Hooks run on the scheduler's event loop, six transitions a task: each reads what it needs,
adds a row in memory and returns.  Nothing of Dask's is kept beyond keys and texts.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from recup.capture import darshan, function_profile, host, logs, profile_request, session
from recup.capture.graphs import keys_digest
from recup.capture.plugins import packed_plugin
from recup.capture.redaction import redacted_json
from recup.capture.sampling import Sampler, process_samples, scheduler_samples
from recup.capture.taskgraph import graph_reader
from recup.capture.text import json_text
from recup.capture.transitions import scheduler_hook
from recup.schema import Client, Event, Steal, Submission, Worker
from recup.spool import Spool, key_text

logger = logging.getLogger("recup")
_UNTIL_STARTED = "recup-until-started"


class RecupScheduler(SchedulerPlugin):
    """Scheduler plugin that records a cluster; give it to `client.register_plugin` or a preload.

    It is pickled when registered by a client, so it holds only a path until `start`.

    Parameters
    ----------
    run_directory : str, optional
        Run to write into, as seen by the scheduler.  By default the configured one, else a
        new run under the runs root of the scheduler's machine.
    way : str
        How recording began, for the manifest of a new run.
    """

    name = "recup"
    idempotent = True

    def __init__(self, run_directory: str | None = None, way: str = "register_plugin"):
        self.run_directory = run_directory
        self.way = way
        self.yappi = profile_request.configured()  # where it is made: a client may ask a scheduler elsewhere

    # ------------------------------------------------------------ life

    async def start(self, scheduler: Any) -> None:
        """Begin recording: set the hooks, describe what is there, bring the other plugins."""
        present = [each for each in scheduler.plugins.values() if isinstance(each, RecupScheduler)]
        if any(each is not self for each in present):
            return  # another client came first
        # Dask adds a plugin when it has started; what comes until then would be missed.
        if not present:
            scheduler.plugins[_UNTIL_STARTED] = self
        try:
            self._begin(scheduler)
            await self._bring_plugins(scheduler)
        except Exception as reason:  # noqa: BLE001 - the scheduler must start
            logger.warning("recup does not record this scheduler: %r", reason)
        finally:
            scheduler.plugins.pop(_UNTIL_STARTED, None)

    async def _bring_plugins(self, scheduler: Any) -> None:
        for kind, register in (
            ("worker", scheduler.register_worker_plugin),
            ("nanny", scheduler.register_nanny_plugin),
        ):
            try:
                wanted = dataclasses.astuple(self.yappi) if self.yappi is not None and kind == "worker" else None
                plugin = packed_plugin(kind, str(self._run_directory), scheduler.id, wanted)
                await register(comm=None, plugin=plugin, name="recup", idempotent=True)
            except Exception as reason:  # noqa: BLE001
                self._spool.lose("not_captured", None, f"the {kind} plugin could not be registered: {reason!r}")

    def _begin(self, scheduler: Any) -> None:
        self.yappi = self.yappi or profile_request.configured()
        directory = Path(self.run_directory) if self.run_directory else session.run_for_new_scheduler(self.way)
        self._run_directory = directory
        self._scheduler = scheduler
        self._spool = spool = Spool(session.spool_root(directory), "scheduler", scheduler.id)
        darshan.request_as_configured(directory, spool)
        self._submission_count = 0
        self._known_workers: dict[str, str | None] = {}
        self._read_graph = graph_reader(spool, scheduler)
        self._set_hooks(scheduler)
        scheduler.handlers["recup_stop"] = self._end
        scheduler.log_event("recup", {"action": "recording", "run_directory": str(directory)})
        logs.attach(spool, lambda: (scheduler.address if scheduler.listeners else None, scheduler.id))
        spool.describing = host.record_process_in_background(
            spool,
            role="scheduler",
            run_directory=directory,
            address=scheduler.address if scheduler.listeners else None,
            scheduler_id=scheduler.id,
            details=_scheduler_details(scheduler),
        )
        self._describe_present(scheduler)
        profile_request.note_request(directory, self.yappi, spool)
        self._stop_profile = function_profile.attach(spool, "scheduler", scheduler, self.yappi, directory)
        self._sampler = Sampler(spool, self._sample)
        self._sampler.start()

    def _set_hooks(self, scheduler: Any) -> None:
        spool = self._spool
        self._counted_before = scheduler.transition_counter

        def switch_off() -> None:
            self.transition = _nothing

        self.transition, self._recorded_count = scheduler_hook(spool, scheduler, switch_off)
        for name in ("update_graph", "add_worker", "remove_worker", "add_client", "remove_client", "log_event"):
            setattr(self, name, spool.guard(name, getattr(self, f"_{name}")))
        self.restart = spool.guard("restart", self._restart)

    async def close(self) -> None:
        """End the recording; called by Dask before remote workers are told to close."""
        await self._end()

    async def before_close(self) -> None:
        """Take a last sample while workers are still known."""
        if hasattr(self, "_sampler"):
            self._sampler.sample()

    async def _end(self) -> None:
        """Write what is in memory and say that the record ends here; also when recup is unplugged."""
        if hasattr(self, "_sampler") and self._sampler.stop():
            logs.detach(self._spool)
            if self._stop_profile is not None:
                self._stop_profile()
            self._scheduler.handlers.pop("recup_stop", None)
            self._scheduler.log_event("recup", {"action": "ended", "run_directory": str(self._run_directory)})
            await session.soon(self._spool.close)
            session.leave_run(self._run_directory)
            await session.soon(functools.partial(session.end_run, self._run_directory))

    # ------------------------------------------------------------ hooks, bound in _set_hooks

    def _update_graph(
        self,
        scheduler: Any,
        *,
        client: Any,
        keys: Any,
        tasks: Any,
        stimulus_id: str = "",
        annotations: Any = None,
        **_: Any,
    ) -> None:
        begun = time.perf_counter_ns()
        submission, self._submission_count = self._submission_count, self._submission_count + 1
        now = time.time_ns()
        new_count, span_id, span = self._read_graph(submission, tasks, client is None)
        names = {name: len(values) for name, values in annotations.items()} if annotations else None
        self._spool.put(
            Submission(
                now,
                submission,
                None if client is None else str(client),
                stimulus_id,
                len(keys),
                keys_digest(keys),
                len(tasks),
                new_count,
                span_id,
                span,
                json_text(names) if names else None,
                time.perf_counter_ns() - begun,
            )
        )

    def _restart(self, scheduler: Any) -> None:
        self._spool.put(Event(time.time_ns(), "recup", "restart", "{}"))

    def _add_worker(self, scheduler: Any, worker: str) -> None:
        self._put_worker("add", worker, scheduler.workers.get(worker), None)

    def _remove_worker(self, scheduler: Any, worker: str, *, stimulus_id: str | None = None, **_: Any) -> None:
        self._put_worker("remove", worker, None, stimulus_id)
        self._spool.put(_gone_worker(time.time_ns(), worker, self._known_workers.pop(worker, None), stimulus_id))

    def _put_worker(self, action: str, address: str, state: Any, stimulus_id: str | None) -> None:
        if state is not None:
            self._known_workers[address] = getattr(state, "server_id", None)
            self._spool.put(_worker_row(time.time_ns(), action, address, state))

    def _add_client(self, scheduler: Any, client: str) -> None:
        self._put_client("add", client)

    def _remove_client(self, scheduler: Any, client: str) -> None:
        self._put_client("remove", client)

    def _put_client(self, action: str, client: str) -> None:
        state = self._scheduler.clients.get(client)
        versions = getattr(state, "versions", None)
        wanted = len(state.wants_what) if state is not None else None
        details = json_text({"versions": versions}) if versions else None
        self._spool.put(Client(time.time_ns(), action, str(client), wanted, details))

    def _log_event(self, topic: Any, msg: Any) -> None:
        now = time.time_ns()
        if topic == "stealing" and self._put_steals(now, msg):
            return
        action = msg.get("action") if isinstance(msg, dict) else None
        self._spool.put(Event(now, key_text(topic), action if isinstance(action, str) else None, redacted_json(msg)))

    def _put_steals(self, now: int, msg: Any) -> bool:
        """Write a message of the stealing extension as rows; False when its form is not known."""
        try:
            if msg[0] == "request":
                for _, level, key, cost, victim, victim_occupancy, thief, thief_occupancy in msg[1]:
                    self._spool.put(
                        Steal(
                            now, "request", key, victim, thief, None, level, cost, victim_occupancy, thief_occupancy, None, -1
                        )
                    )  # fmt: skip
                return True
            decision, arguments = msg[0], list(msg[1:])
            victim = thief = None
            if decision == "reschedule":
                arguments.pop(0)
            if len(arguments) == 5:
                key, state, victim, thief, stimulus_id = arguments
            else:
                key, state, victim, stimulus_id = arguments
            run_id = -1
            if decision == "confirm":
                task = self._scheduler.tasks.get(key)
                run_id = -1 if task is None or task.run_id is None else task.run_id
            self._spool.put(
                Steal(now, str(decision), key, victim, thief, state, None, None, None, None, stimulus_id, run_id)
            )
            return True
        except (TypeError, ValueError, IndexError, AttributeError):
            return False

    # ------------------------------------------------------------ state

    def _describe_present(self, scheduler: Any) -> None:
        """Record what a scheduler knew before recup came."""
        now = time.time_ns()
        for address, state in list(scheduler.workers.items()):
            self._known_workers[address] = getattr(state, "server_id", None)
            self._spool.put(_worker_row(now, "present", address, state))
        for client in list(scheduler.clients):
            self._put_client("present", client)
        if scheduler.tasks:
            self._update_graph(
                scheduler, client=None, keys=(), tasks=list(scheduler.tasks), stimulus_id="present-before-recup"
            )
            self._spool.lose(
                "not_captured",
                "scheduler_transitions",
                "recup came when tasks were there: what they did before is unknown",
            )

    def _sample(self, put: Callable[[str, str | None, float], None]) -> None:
        process_samples(put)
        scheduler_samples(put, self._scheduler)
        self._spool.counters["transitions_dask"] = self._scheduler.transition_counter - self._counted_before
        self._spool.counters["transitions_recorded"] = self._recorded_count()


def _nothing(*_: Any, **__: Any) -> None:
    """Stand in for a hook that is switched off."""


def _worker_row(now: int, action: str, address: str, state: Any) -> Worker:
    details = {
        name: getattr(state, name, None)
        for name in ("services", "resources", "versions", "extra")
        if getattr(state, name, None)
    }
    status = getattr(state, "status", None)
    return Worker(
        now,
        action,
        address,
        getattr(state, "server_id", None),
        None if state.name is None else key_text(state.name),
        getattr(state, "host", None),
        state.pid,
        state.nthreads,
        state.memory_limit,
        state.nanny,
        getattr(status, "name", None),
        state.local_directory,
        None,
        len(state.processing),
        len(state.has_what),
        state.nbytes,
        json_text(details) if details else None,
    )


def _gone_worker(now: int, address: str, worker_id: str | None, stimulus_id: str | None) -> Worker:
    nothing = (None,) * 8
    return Worker(now, "remove", address, worker_id, *nothing, stimulus_id, None, None, None, None)


def _scheduler_details(scheduler: Any) -> dict[str, Any]:
    """Return what the scheduler fixed at its construction; configuration may change afterwards."""
    names = ("UNKNOWN_TASK_DURATION", "WORKER_SATURATION", "rootish_tg_threshold", "rootish_tg_dependencies_threshold")
    details: dict[str, Any] = {name: getattr(scheduler, name) for name in names if hasattr(scheduler, name)}
    details["extensions"] = sorted(map(str, getattr(scheduler, "extensions", {})))
    details["plugins"] = sorted(map(str, scheduler.plugins))
    details["services"] = {str(k): getattr(v, "port", v) for k, v in getattr(scheduler, "services", {}).items()}
    return details
