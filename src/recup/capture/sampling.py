"""Once a second: clocks, lag of the event loop, and the state of the process, the scheduler or the worker.

Covers the timer on the event loop and what it reads.  Where a sample of the state takes long
(many workers) it is left out at some ticks, so that sampling stays below half a percent of a
core; clocks and lag are taken at every one, or stalls would go unseen.  It does not cover
changes between samples: those are rows of their own tables.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import time
from collections.abc import Callable
from typing import Any

from recup.schema import ClockSample, Sample
from recup.spool import Spool

Put = Callable[[str, str | None, float], None]
INTERVAL_S = 1.0
_SHARE = 0.005


class Sampler:
    """A timer on the running event loop that calls `read(put)` about once a second.

    Parameters
    ----------
    read : callable
        Takes a function ``put(metric, subject, value)``.
    delay : callable, optional
        Returns Dask's scheduler_delay of a worker.
    """

    def __init__(
        self,
        spool: Spool,
        read: Callable[[Put], None],
        delay: Callable[[], float] | None = None,
    ):
        self._spool = spool
        self._read = spool.guard("sample", read, table_name="samples")
        self._limit = spool.guard("limit", spool.limit)
        self._delay = delay
        self._handle: asyncio.TimerHandle | None = None
        self._due = self._rests_until = 0.0
        self._running = False

    def start(self) -> None:
        """Sample now and from now on."""
        self._loop = asyncio.get_running_loop()
        self._running = True
        self._sample_and_wait(time.time_ns())

    def stop(self) -> bool:
        """Take a last sample and stop; False when it had stopped before."""
        if not self._running:
            return False
        self._running = False
        if self._handle is not None:
            self._handle.cancel()
        self.sample()
        return True

    def sample(self) -> None:
        """Take one sample of everything but the lag, which only a timer has."""
        self._sample(time.time_ns())

    def _tick(self) -> None:
        begun, now = self._loop.time(), time.time_ns()
        self._spool.put(Sample(now, "event_loop_lag_s", None, max(0.0, begun - self._due)))
        if begun >= self._rests_until:
            self._sample_and_wait(now)
        else:
            self._put_clocks(now)
            self._wait()

    def _sample_and_wait(self, now: int) -> None:
        begun_s = time.thread_time()  # of a core, not of a clock: a loop that waits for its GIL does not sample
        self._sample(now)
        self._rests_until = self._loop.time() + (time.thread_time() - begun_s) / _SHARE
        self._wait()

    def _wait(self) -> None:
        self._due = self._loop.time() + INTERVAL_S
        self._handle = self._loop.call_at(self._due, self._tick)

    def _sample(self, now: int) -> None:
        put_row = self._spool.extender("samples")

        def put(metric: str, subject: str | None, value: float) -> None:
            put_row((now, metric, subject, value))

        self._put_clocks(now)
        self._read(put)
        self._limit()

    def _put_clocks(self, now: int) -> None:
        delay = self._delay() if self._delay is not None else None
        self._spool.put(ClockSample(now, time.monotonic_ns(), delay))


def process_samples(put: Put) -> None:
    """Sample this process: CPU, memory, faults, context switches, I/O, garbage collection."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    put("process_user_cpu_s", None, usage.ru_utime)
    put("process_system_cpu_s", None, usage.ru_stime)
    put("process_major_faults_count", None, usage.ru_majflt)
    put("process_involuntary_switches_count", None, usage.ru_nivcsw)
    # Not ru_maxrss: it survives exec, so that a spawned worker begins with the peak of its parent.
    _put_numbers(put, "/proc/self/status", _MEMORY_METRICS, 1024)
    _put_numbers(put, "/proc/self/io", _IO_METRICS, 1)
    put("gc_oldest_generation_count", None, gc.get_stats()[-1]["collections"])


_MEMORY_METRICS = {b"VmHWM:": "process_peak_memory_bytes", b"VmRSS:": "process_memory_bytes"}
_IO_METRICS = {
    b"rchar:": "process_read_bytes",
    b"wchar:": "process_written_bytes",
    b"\nread_bytes:": "process_storage_read_bytes",
    b"\nwrite_bytes:": "process_storage_written_bytes",
}


def _put_numbers(put: Put, path: str, metrics: dict[bytes, str], unit: int) -> None:
    """Put the numbers behind these names in a file of the kernel; without Python's files and lines, at half the cost."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(descriptor, 16_384)
    finally:
        os.close(descriptor)
    for name, metric in metrics.items():
        place = text.find(name)
        if place >= 0:
            put(metric, None, int(text[place + len(name) : place + len(name) + 24].split(None, 1)[0]) * unit)


def scheduler_samples(put: Put, scheduler: Any) -> None:
    """Sample the scheduler and, per worker, memory by kind, occupancy and queue lengths."""
    put("tasks_count", None, len(scheduler.tasks))
    put("queued_tasks_count", None, len(scheduler.queued))
    put("unrunnable_tasks_count", None, len(scheduler.unrunnable))
    put("workers_count", None, len(scheduler.workers))
    put("idle_workers_count", None, len(scheduler.idle))
    put("saturated_workers_count", None, len(scheduler.saturated))
    put("clients_count", None, len(scheduler.clients))
    put("threads_count", None, scheduler.total_nthreads)
    put("occupancy_s", None, scheduler.total_occupancy)
    put("transitions_count", None, scheduler.transition_counter)
    put("tick_interval_s", None, getattr(scheduler, "_tick_interval_observed", float("nan")))
    for address, worker in scheduler.workers.items():
        memory = worker.memory
        put("memory_process_bytes", address, memory.process)
        put("memory_managed_bytes", address, memory.managed)
        put("memory_spilled_bytes", address, memory.spilled)
        put("memory_unmanaged_old_bytes", address, memory.unmanaged_old)
        put("memory_unmanaged_recent_bytes", address, memory.unmanaged_recent)
        put("occupancy_s", address, worker.occupancy)
        put("processing_count", address, len(worker.processing))
        put("long_running_count", address, len(worker.long_running))
        put("results_count", address, len(worker.has_what))
        put("cpu_percent", address, worker.metrics.get("cpu", float("nan")))


def worker_samples(put: Put, worker: Any) -> None:
    """Sample a worker: queue lengths, memory by place, traffic, Dask's own system monitor."""
    state = worker.state
    put("executing_count", None, state.executing_count)
    put("long_running_count", None, len(state.long_running))
    put("ready_count", None, len(state.ready))
    put("constrained_count", None, len(state.constrained))
    put("waiting_count", None, len(state.waiting))
    put("in_flight_tasks_count", None, state.in_flight_tasks_count)
    put("results_bytes", None, state.nbytes)
    put("transfer_incoming_bytes", None, state.transfer_incoming_bytes)
    put("transfer_incoming_requests_count", None, state.transfer_incoming_count_total)
    put("transfer_outgoing_bytes", None, worker.transfer_outgoing_bytes)
    put("transfer_outgoing_requests_count", None, worker.transfer_outgoing_count_total)
    put("tick_interval_s", None, getattr(worker, "_tick_interval_observed", float("nan")))
    spilled = getattr(worker.data, "spilled_total", None)
    if spilled is not None:
        put("spilled_memory_bytes", None, spilled[0])
        put("spilled_disk_bytes", None, spilled[1])
    monitor = worker.monitor.recent()
    for name, metric in _MONITOR_METRICS.items():
        if name in monitor:
            put(metric, None, monitor[name])


_MONITOR_METRICS = {
    "cpu": "cpu_percent",
    "num_fds": "open_files_count",
    "host_net_io.read_bps": "host_network_read_bytes_per_s",
    "host_net_io.write_bps": "host_network_write_bytes_per_s",
    "host_disk_io.read_bps": "host_disk_read_bytes_per_s",
    "host_disk_io.write_bps": "host_disk_write_bytes_per_s",
    "gil_contention": "gil_contention_ratio",
}
