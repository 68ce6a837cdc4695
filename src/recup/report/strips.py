"""What runs along the time line: busy threads, I/O, memory, network and event-loop lag, on one grid of time.

Covers sums over servers at equal bins of the run.  Counters of processes are sampled about
once a second, so what passed between two samples is spread evenly between them; reads,
writes and transfers that were recorded one by one are spread over their own time.  A server
counts from its first sample to its last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recup.analyse.io import io_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recup.analyse.rows import Document
    from recup.store import Run

Numbers = Any
"""An array of numbers."""

BIN_COUNT = 600
"""Bins of a run, at most; a run shorter than a minute has ten a second."""

_SAMPLES_SQL = """
select s.server_id, s.time_ns / 1e9 + coalesce(c.offset_s, 0.0) - (select started_s from run_times) as at_s, s.value
from raw.samples s
left join clocks c on c.server_id = s.server_id
where s.metric = ? and s.subject is null and s.role = ? and isfinite(s.value)
order by s.server_id, s.time_ns
"""

_HOST_SAMPLES_SQL = """
select any_value(h.hostname) as host, s.time_ns / 1e9 + coalesce(any_value(c.offset_s), 0.0)
    - (select started_s from run_times) as at_s, any_value(s.value) as value
from raw.samples s
join raw.processes p on p.server_id = s.server_id
join (select host_id, any_value(hostname) as hostname from raw.hosts group by host_id) h on h.host_id = p.host_id
left join clocks c on c.server_id = s.server_id
where s.metric = ? and s.role = 'worker' and isfinite(s.value)
group by s.server_id, s.time_ns
order by host, at_s
"""
"""A network meter is of a whole host, so the workers of one host tell the same."""

_PIECES_SQL = {
    "read": """
select start_s - (select started_s from run_times) as start_s, stop_s - start_s as duration_s, nbytes
from task_io where direction = 'read' and module = 'POSIX' and start_s is not null and stop_s is not null
""",
    "write": """
select start_s - (select started_s from run_times) as start_s, stop_s - start_s as duration_s, nbytes
from task_io where direction = 'write' and module = 'POSIX' and start_s is not null and stop_s is not null
""",
    "moved": """
select start_s - (select started_s from run_times) as start_s, duration_s, nbytes
from transfers_distinct where start_s is not null and duration_s is not null and nbytes is not null
""",
    "busy": """
select started_s - (select started_s from run_times) as start_s, compute_s as duration_s, compute_s as amount
from task_runs where started_s is not null and compute_s is not null
""",
}
"""Start, duration and amount of what was recorded one by one."""

_LIMIT_SQL = """
select sum(memory_limit_bytes)::double from raw.processes where role = 'worker'
"""


def strips(run: Run) -> Document:
    """Return the strips of a run on one grid.

    From: samples, clocks, task_io, transfers_distinct, task_runs
    Keys: at_s (middle of each bin), strips (rows: name, title, unit, basis, series of name and values; a null is no
    sample)
    """
    ((wall_s,),) = run.sql("select wall_s from run_times").fetchall()
    if not wall_s or wall_s <= 0:
        return {"at_s": [], "strips": []}
    count = int(np.clip(np.ceil(wall_s * 10), 2, BIN_COUNT))
    edges = np.linspace(0.0, wall_s, count + 1)
    found = [
        _strip("threads", "Busy threads", "", "tasks as they were timed", _busy(run, edges)),
        _strip("io", "Files read and written", "bytes_per_s", *_io(run, edges)),
        _strip("memory", "Memory of workers", "bytes", "sampled each second", _memory(run, edges)),
        _strip(
            "network", "Network", "bytes_per_s", "transfers as they were timed; hosts sampled", _network(run, edges)
        ),
        _strip("lag", "Event-loop lag, worst", "s", "sampled each second", _lag(run, edges)),
    ]
    middles = ((edges[:-1] + edges[1:]) / 2).round(6).tolist()
    return {"at_s": middles, "width_s": wall_s / count, "strips": [each for each in found if each["series"]]}


def _strip(name: str, title: str, unit: str, basis: str, series: dict[str, Numbers | None]) -> Document:
    told = {label: values for label, values in series.items() if values is not None and np.isfinite(values).any()}
    rows = [{"name": label, "values": _rounded(values)} for label, values in told.items()]
    return {"name": name, "title": title, "unit": unit, "basis": basis, "series": rows}


def _rounded(values: Numbers) -> list[float | None]:
    return [None if not np.isfinite(each) else float(f"{each:.5g}") for each in values]


# ---------------------------------------------------------------- each strip


def _busy(run: Run, edges: Numbers) -> dict[str, Numbers | None]:
    return {"computing": _rate(run, "busy", edges)}


def _io(run: Run, edges: Numbers) -> tuple[str, dict[str, Numbers | None]]:
    if io_source(run) == "darshan":
        return "as Darshan traced", {"read": _rate(run, "read", edges), "written": _rate(run, "write", edges)}
    return "counters of worker processes: sockets count too", {
        "read": _counter(run, "process_read_bytes", edges),
        "written": _counter(run, "process_written_bytes", edges),
    }


def _memory(run: Run, edges: Numbers) -> dict[str, Numbers | None]:
    series = {
        "in processes": _gauge(run, "process_memory_bytes", edges),
        "of it results": _gauge(run, "results_bytes", edges),
        "spilled to disk": _gauge(run, "spilled_disk_bytes", edges),
    }
    spilled = series["spilled to disk"]
    if spilled is not None and not np.nansum(spilled):
        del series["spilled to disk"]
    return series


def _network(run: Run, edges: Numbers) -> dict[str, Numbers | None]:
    return {
        "results between workers": _rate(run, "moved", edges),
        "received by hosts": _host_gauge(run, "host_network_read_bytes_per_s", edges),
        "sent by hosts": _host_gauge(run, "host_network_write_bytes_per_s", edges),
    }


def _lag(run: Run, edges: Numbers) -> dict[str, Numbers | None]:
    return {
        "scheduler": _worst(run, "scheduler", edges),
        "a worker": _worst(run, "worker", edges),
    }


# ---------------------------------------------------------------- from rows to bins


def _rate(run: Run, pieces: str, edges: Numbers) -> Numbers | None:
    """Return amount per second in each bin, of pieces whose amount is spread over their own time."""
    rows = run.sql(_PIECES_SQL[pieces]).fetchnumpy()
    start, duration, amount = (np.asarray(np.ma.filled(each, np.nan), np.float64) for each in rows.values())
    if not len(start):
        return None
    # A piece shorter than this is a step; it still falls into its bin.
    stop = start + np.maximum(duration, 1e-9)
    slope = amount / (stop - start)
    moments = np.concatenate((start, stop))
    order = np.argsort(moments)
    moments, slopes = moments[order], np.cumsum(np.concatenate((slope, -slope))[order])
    # Steps of billions per second add up to the sum of the amounts only if summed piece by piece.
    begun, ended = np.sort(start), np.sort(stop)
    total = np.concatenate(([0.0], np.cumsum(np.diff(moments) * slopes[:-1])))
    passed: Numbers = np.interp(edges, moments, total)
    passed = np.where(np.searchsorted(ended, edges, side="right") == len(ended), amount.sum(), passed)
    passed = np.where(np.searchsorted(begun, edges, side="left") == 0, 0.0, passed)
    rates = np.diff(passed) / np.diff(edges)
    return np.where(rates > 1e-9 * rates.max(), rates, 0.0)  # what sums leave of rounding is nothing


def _by_server(run: Run, query: str, parameters: list[str]) -> Iterator[tuple[Numbers, Numbers]]:
    rows = run.sql(query, parameters).to_arrow_table()
    if not rows.num_rows:
        return
    codes = rows.column(0).combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    at, value = (rows.column(place).to_numpy(zero_copy_only=False) for place in (1, 2))
    borders = np.flatnonzero(np.diff(codes)) + 1
    yield from zip(np.split(at, borders), np.split(value, borders), strict=True)


def _counter(run: Run, metric: str, edges: Numbers) -> Numbers | None:
    """Return growth per second of counters that only grow, summed over workers."""
    total = None
    for at, value in _by_server(run, _SAMPLES_SQL, [metric, "worker"]):
        passed = np.interp(edges, at, np.maximum.accumulate(value))
        total = np.diff(passed) if total is None else total + np.diff(passed)
    return None if total is None else total / np.diff(edges)


def _gauge(run: Run, metric: str, edges: Numbers) -> Numbers | None:
    """Return the sum over workers of a level; a worker counts from its first sample to its last."""
    return _levels(_by_server(run, _SAMPLES_SQL, [metric, "worker"]), edges)


def _host_gauge(run: Run, metric: str, edges: Numbers) -> Numbers | None:
    return _levels(_by_server(run, _HOST_SAMPLES_SQL, [metric]), edges)


def _levels(series: Iterator[tuple[Numbers, Numbers]], edges: Numbers) -> Numbers | None:
    middles, half = (edges[:-1] + edges[1:]) / 2, (edges[1] - edges[0]) / 2
    total = None
    for at, value in series:
        there = np.interp(middles, at, value)
        there[(middles < at[0] - half) | (middles > at[-1] + half)] = np.nan
        total = there if total is None else np.where(np.isnan(total), there, total + np.nan_to_num(there))
    return total


def _worst(run: Run, role: str, edges: Numbers) -> Numbers | None:
    """Return the largest lag told in each bin; a bin without a sample shows the one before it for two seconds."""
    worst = np.full(len(edges) - 1, -np.inf)
    for at, value in _by_server(run, _SAMPLES_SQL, ["event_loop_lag_s", role]):
        place = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, len(worst) - 1)
        np.maximum.at(worst, place, value)
    is_told = np.isfinite(worst)
    if not is_told.any():
        return None
    told = np.maximum.accumulate(np.where(is_told, np.arange(len(worst)), -1))
    reach = int(np.ceil(2.0 / (edges[1] - edges[0])))
    is_near = (told >= 0) & (np.arange(len(worst)) - told <= reach)
    return np.where(is_near, worst[np.maximum(told, 0)], np.nan)
