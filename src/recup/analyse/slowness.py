"""Which worker, host or thread is slow: durations of the same kind of task here against those elsewhere.

Covers computations that ended with a result.  Tasks are compared within their prefix, and
within their group where it is large enough and ran in several places; threads within their
worker.  What cannot be seen is whether a place was given harder tasks: sizes of results are
compared as a hint, and no more is claimed than that durations differ.  How the ratios and
their intervals come about is `recup.analyse.peers`'.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recup.analyse import peers
from recup.analyse.answers import Answer, AnswerTable, Conclusion, ranked
from recup.analyse.io import io_source
from recup.analyse.rows import Document, ranks, rows_of
from recup.terminal import plural, seconds_text

if TYPE_CHECKING:
    from recup.analyse.peers import Codes, Effect, Floats
    from recup.store import Run

SLOW_RATIO = 1.3
"""A place is slow from this ratio on: below, neighbours on one host differ by chance of the machine."""
SURE_RATIO = 1.15
"""Its interval must lie above this as well."""
SURE_Z = 3.5
"""And it must lie this many standard errors above 1, since many places are looked at."""
COST_S = 0.5
"""Excess below this is not worth a sentence."""
COST_SHARE = 0.01
"""Nor is excess below this part of all computing compared."""
CAUSE_SHARE = 0.6
"""Part of the difference that CPU, waiting for a CPU or being blocked must bear to be named as what grew."""
SIZE_RATIO = 1.2
"""Results larger by this much hint at harder tasks rather than a slow place."""
STRAGGLER_RATIO = 3.0
"""A straggler takes this many times the median of its group and place-independent kind."""
STRAGGLER_COUNT = 10
"""Stragglers of a place that a sentence needs."""
PRESSURE_SHARE = 0.7
"""Dask spills from this part of the memory limit on: the worker was under pressure."""
SHOWN = 200

ATTEMPTS_SQL = """
with hosts as (
    select host_id, any_value(hostname) as host from raw.hosts group by host_id
), lives as (
    select worker_id, any_value(host) as host from worker_lives where worker_id is not null group by worker_id
)
select
    r.prefix,
    r."group",
    r.worker,
    coalesce(r.worker_id, r.worker) as worker_id,
    coalesce(hosts.host, r.host_id, lives.host) as host,
    coalesce(r.worker_id, r.worker) || ' ' || r.thread as thread,
    r.compute_s,
    r.nbytes,
    r.cpu_s,
    r.queue_wait_s,
    r.blocked_s,
    r.major_fault_count::double as major_fault_count
from attempt_facts r
left join hosts on hosts.host_id = r.host_id
left join lives on lives.worker_id = r.worker_id
where r.outcome = 'memory' and r.compute_s > 0 and r.thread is not null and r.prefix is not null
    and r.worker is not null
"""

PRESSURE_SQL = """
with limits as (
    select address, max(memory_limit_bytes) as limit_bytes from worker_lives where memory_limit_bytes > 0 group by address
)
select s.subject as worker, max(s.value / limits.limit_bytes) as memory_share
from raw.samples s
join limits on limits.address = s.subject
where s.metric = 'memory_process_bytes'
group by s.subject
"""

IO_SQL = """
select prefix, worker_id, sum(io_s) as io_s from task_io_totals group by prefix, worker_id
"""

_PLACES = ("worker", "host", "thread")
_TITLES = (
    ("worker", "Each worker against the others, most excess first"),
    ("host", "Each host against the others, most excess first"),
    ("thread", "Each thread against those of its worker, most excess first"),
)
_PARTS = ("cpu_s", "queue_wait_s", "blocked_s")


@dataclasses.dataclass(slots=True)
class _Tasks:
    """Attempts as arrays, one entry each; places and kinds as codes into their names."""

    names: dict[str, list[Any]]
    codes: dict[str, Codes]
    numbers: dict[str, Floats]
    residual: Floats
    host_of_worker: dict[int, int]

    def __len__(self) -> int:
        return len(self.residual)


@dataclasses.dataclass(slots=True)
class _Compared:
    """What a kind of place (worker, host, thread) came to."""

    place: str
    cells: list[peers.Cell]
    effects: list[Effect]
    straggler_counts: Codes
    straggler_s: Floats
    counts: Codes


def _tasks(run: Run) -> _Tasks:
    rows = run.sql(ATTEMPTS_SQL).to_arrow_table()
    names: dict[str, list[Any]] = {}
    codes: dict[str, Codes] = {}
    for name in ("prefix", "group", "worker", "worker_id", "host", "thread"):
        column = pc.dictionary_encode(rows[name], null_encoding="encode").combine_chunks()
        found = column.dictionary.to_pylist()
        rank = np.array(ranks(found), np.int64)
        names[name] = [found[code] for code in np.argsort(rank)]
        codes[name] = rank[column.indices.to_numpy(zero_copy_only=False)]
    # A worker is its server id, its address is what people know it by.
    firsts = dict(zip(*(codes[name].tolist() for name in ("worker_id", "worker")), strict=True)) if len(rows) else {}
    names["worker"] = [names["worker"][firsts[code]] for code in range(len(names["worker_id"]))]
    codes["worker"] = codes.pop("worker_id")
    numbers = {
        name: rows[name].cast(pa.float64()).to_numpy() for name in ("compute_s", "nbytes", *_PARTS, "major_fault_count")
    }
    log_s = np.log(numbers["compute_s"])
    residual = peers.centred(log_s, codes["worker"], codes["group"], codes["prefix"]) if len(rows) else log_s
    hosts = dict(zip(codes["worker"].tolist(), codes["host"].tolist(), strict=True))
    return _Tasks(names, codes, numbers, residual, hosts)


def _compared(tasks: _Tasks, place: str) -> _Compared:
    kind, code = tasks.codes["prefix"], tasks.codes[place]
    if place == "thread":
        # Threads are held against those of their own worker.
        kind = kind * len(tasks.names["worker"]) + tasks.codes["worker"]
    cells = peers.cells(tasks.residual, tasks.numbers["compute_s"], code, kind)
    is_late = tasks.residual >= np.log(STRAGGLER_RATIO)
    excess = tasks.numbers["compute_s"] * (1.0 - np.exp(-tasks.residual))
    size = len(tasks.names[place])
    return _Compared(
        place,
        cells,
        peers.effects(cells),
        np.bincount(code[is_late], minlength=size),
        np.bincount(code[is_late], weights=excess[is_late], minlength=size).astype(np.float64),
        np.bincount(code, minlength=size),
    )


def _is_slow(effect: Effect, whole_s: float) -> bool:
    return (
        effect.ratio >= SLOW_RATIO
        and effect.low >= SURE_RATIO
        and np.log(effect.ratio) >= SURE_Z * effect.error
        and effect.excess_s >= max(COST_S, COST_SHARE * whole_s)
    )


def _places_table(tasks: _Tasks, compared: _Compared) -> pa.Table:
    """Return one row per place, those not compared last."""
    rows = []
    by_place = {effect.place: effect for effect in compared.effects}
    order = [*by_place, *(code for code in range(len(compared.counts)) if code not in by_place)]
    for code in order:
        effect = by_place.get(code)
        row: Document = _place_names(tasks, compared.place, code)
        row |= {
            "attempt_count": int(compared.counts[code]),
            "compared_attempt_count": effect.count if effect else 0,
            "ratio": effect.ratio if effect else None,
            "ratio_low": effect.low if effect else None,
            "ratio_high": effect.high if effect else None,
            "excess_s": effect.excess_s if effect else None,
            "straggler_count": int(compared.straggler_counts[code]),
            "straggler_excess_s": float(compared.straggler_s[code]),
        }
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=_schema(compared.place))


def _place_names(tasks: _Tasks, place: str, code: int) -> Document:
    if place == "host":
        return {"host": tasks.names["host"][code]}
    if place == "worker":
        return {"worker": tasks.names["worker"][code], "host": tasks.names["host"][tasks.host_of_worker[code]]}
    first = int(np.argmax(tasks.codes["thread"] == code))
    worker = tasks.names["worker"][tasks.codes["worker"][first]]
    return {"worker": worker, "thread": int(tasks.names["thread"][code].rsplit(" ", 1)[1])}


def _schema(place: str) -> pa.Schema:
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    named = {"worker": ("worker", "host"), "host": ("host",), "thread": ("worker", "thread")}[place]
    return pa.schema(
        [(name, whole if name == "thread" else text) for name in named]
        + [("attempt_count", whole), ("compared_attempt_count", whole)]
        + [(name, real) for name in ("ratio", "ratio_low", "ratio_high", "excess_s")]
        + [("straggler_count", whole), ("straggler_excess_s", real)]
    )


def slowness_by(run: Run, place: str = "worker") -> pa.Table:
    """How fast each worker, host or thread ran the same tasks as the others: one row each, most excess first.

    ratio is above 1 where it is slower than all others together (threads: than those of its
    worker), with a 95 % interval; null where fewer than eight tasks of a prefix ran on
    either side.  excess_s is what its tasks took more than at the others' pace.  A straggler
    took three times the median of its group.

    From: task_runs, worker_lives, hosts
    Columns: worker and host, host, or worker and thread; attempt_count, compared_attempt_count, ratio, ratio_low,
    ratio_high, excess_s, straggler_count, straggler_excess_s
    """
    tasks = _tasks(run)
    return _places_table(tasks, _compared(tasks, place))


def slowness(run: Run) -> Answer:
    """Return which worker, host or thread is slow given the same prefix, and what of its time grew."""
    tasks = _tasks(run)
    compared = {place: _compared(tasks, place) for place in _PLACES}
    whole_s = float(tasks.numbers["compute_s"].sum())
    found, slow_workers = [], set()
    for place in ("host", "worker", "thread"):
        for effect in compared[place].effects:
            if not _is_slow(effect, whole_s):
                continue
            if place == "host" and not _is_of_host(tasks, compared["worker"], effect.place):
                continue
            if place == "worker" and effect.place in slow_workers:
                continue
            if place == "host":
                slow_workers |= {w for w, host in tasks.host_of_worker.items() if host == effect.place}
            found.append(_conclusion(run, tasks, compared[place], effect))
    found += _straggler_conclusions(tasks, compared, {each.subject for each in found})
    by_prefix = _cells_table(tasks, compared["worker"])
    return Answer(
        _headline(tasks, compared, found),
        ranked(found),
        (
            *(AnswerTable(f"{place}s", title, _places_table(tasks, compared[place])) for place, title in _TITLES),
            AnswerTable("prefixes", "Prefix by prefix on each worker, most excess first", by_prefix),
        ),
        _basis(tasks, compared["worker"]),
    )


def _is_of_host(tasks: _Tasks, workers: _Compared, host: int) -> bool:
    """Return whether slowness is the host's: it has several workers, and more than half of them are slower."""
    mine = [effect for effect in workers.effects if tasks.host_of_worker[effect.place] == host]
    return len(mine) > 1 and sum(effect.ratio >= SURE_RATIO for effect in mine) * 2 > len(mine)


def _cells_table(tasks: _Tasks, compared: _Compared) -> pa.Table:
    rows = [
        {
            "prefix": tasks.names["prefix"][cell.kind],
            "worker": tasks.names["worker"][cell.place],
            "attempt_count": cell.count,
            "other_attempt_count": cell.other_count,
            "ratio": float(np.exp(cell.log_ratio)),
            "ratio_low": float(np.exp(cell.log_ratio - peers.INTERVAL_Z * cell.error)),
            "ratio_high": float(np.exp(cell.log_ratio + peers.INTERVAL_Z * cell.error)),
            "excess_s": cell.excess_s,
        }
        for cell in sorted(compared.cells, key=lambda cell: (-cell.excess_s, cell.kind, cell.place))[:SHOWN]
    ]
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    return pa.Table.from_pylist(
        rows,
        schema=pa.schema(
            [("prefix", text), ("worker", text), ("attempt_count", whole), ("other_attempt_count", whole)]
            + [(name, real) for name in ("ratio", "ratio_low", "ratio_high", "excess_s")]
        ),
    )


# ---------------------------------------------------------------- words


def _headline(tasks: _Tasks, compared: dict[str, _Compared], found: list[Conclusion]) -> str:
    if found:
        return f"{max(found, key=lambda each: each.thread_s or 0.0).statement.split(': ', 1)[0]}."
    effects = compared["worker"].effects
    if not effects:
        return "Nothing can be compared: no prefix has eight tasks with a result on each of two workers."
    least, most = min(e.ratio for e in effects), max(e.ratio for e in effects)
    return (
        f"No worker, host or thread is slow for sure: over the same prefixes, {plural(len(effects), 'worker')} took "
        f"{least:.2f} to {most:.2f} times as long as the others."
    )


def _basis(tasks: _Tasks, workers: _Compared) -> str:
    told = int(np.isfinite(tasks.numbers["cpu_s"]).sum())
    used = "" if told == len(tasks) else f" What threads used was recorded for {told:,} of them."
    return (
        f"Computations of {plural(len(tasks), 'attempt')} with a result; {len(workers.effects)} of "
        f"{plural(len(workers.counts), 'worker')} ran enough of the same prefixes to compare. Whether some were given "
        f"harder tasks is not known.{used}"
    )


def _conclusion(run: Run, tasks: _Tasks, compared: _Compared, effect: Effect) -> Conclusion:
    names = _place_names(tasks, compared.place, effect.place)
    cells = [cell for cell in compared.cells if cell.place == effect.place]
    cause, evidence = _cause(run, tasks, compared, cells)
    subject = str(names["thread"] if compared.place == "thread" else names[compared.place])
    name = {
        "worker": f"Worker {names.get('worker')}" + (f" on {names['host']}" if names.get("host") else ""),
        "host": f"Host {names.get('host')}",
        "thread": f"Thread {names.get('thread')} of worker {names.get('worker')}",
    }[compared.place]
    is_harder = (evidence["result_size_ratio"] or 1.0) >= SIZE_RATIO
    size = f" Its results are {evidence['result_size_ratio']:.1f} times as large: it may have had harder tasks."
    rival = "the other threads of its worker" if compared.place == "thread" else "the others"
    over = plural(effect.kind_count, "prefix")
    return Conclusion(
        "slow",
        subject,
        f"{name} takes {effect.ratio:.1f} times as long as {rival} for the same tasks (95 % interval {effect.low:.1f} "
        f"to {effect.high:.1f}, {over}, {plural(effect.count, 'task')}): {_CAUSES[cause][0]}{size if is_harder else ''}",
        "possible" if is_harder else "likely",
        effect.excess_s,
        _CAUSES[cause][1],
        {
            "ratio": effect.ratio,
            "ratio_low": effect.low,
            "ratio_high": effect.high,
            "excess_s": effect.excess_s,
            "cause": cause,
            **evidence,
        },
    )


_CAUSES = {
    "cpu": (
        "its tasks use more CPU time, so its CPU is slower, throttled or shared.",
        "Compare clock rates, power limits and CPU model of the host, and whether another job shares its cores.",
    ),
    "cpu wait": (
        "its tasks were ready to run and had no CPU.",
        "More threads are busy there than it has CPUs: fewer workers or threads on that host, or "
        "OMP_NUM_THREADS=1 for libraries with threads of their own.",
    ),
    "io": (
        "its tasks spend the difference in reads and writes of files.",
        "Look at the storage of that host: `recup storage` names the files.",
    ),
    "faults": (
        "its tasks wait, and pages of memory come from disk: swap, or files mapped into memory.",
        "Give the host more memory or the worker less, and look whether it swaps.",
    ),
    "memory": (
        "its tasks wait, and its memory came near its limit.",
        "See `recup memory`; spill and garbage collection slow a worker near its limit.",
    ),
    "blocked": (
        "its tasks wait: for files, network, locks, the GIL, or they sleep.",
        "`recup run --darshan` tells files, `recup stalls` the event loop and the GIL of that worker.",
    ),
    "mixed": (
        "CPU time, waits for a CPU and other waits all grew.",
        "Look whether another job runs on that host.",
    ),
    "unknown": (
        "what of its time grew was not recorded.",
        "Record its worker, so that CPU time and waits of its tasks are known.",
    ),
}
"""What grew in the time of a slow place, in words, and what to do."""


def _cause(run: Run, tasks: _Tasks, compared: _Compared, cells: list[peers.Cell]) -> tuple[str, Document]:
    """Return which part of the time of a place grew, and the numbers of it."""
    place = tasks.codes[compared.place]
    worker_count = len(tasks.names["worker"])
    grown, total, sizes, faults = dict.fromkeys(_PARTS, 0.0), 0.0, [], [0.0, 0.0]
    counted = 0
    for cell in cells:
        prefix, worker = divmod(cell.kind, worker_count) if compared.place == "thread" else (cell.kind, None)
        of_kind = tasks.codes["prefix"] == prefix
        if worker is not None:
            of_kind &= tasks.codes["worker"] == worker
        here, there = of_kind & (place == cell.place), of_kind & (place != cell.place)
        sizes.append(_ratio(tasks.numbers["nbytes"], here, there))
        told = np.isfinite(tasks.numbers["cpu_s"])
        if (here & told).sum() < peers.LEAST_TASKS or (there & told).sum() < peers.LEAST_TASKS:
            continue
        counted += 1
        difference = _difference(tasks.numbers["compute_s"], here & told, there & told)
        total += difference * cell.count
        for part in _PARTS:
            grown[part] += _difference(tasks.numbers[part], here & told, there & told) * cell.count
        for side, rows in enumerate((here, there)):
            faults[side] += float(np.nanmean(tasks.numbers["major_fault_count"][rows & told]))
    known_sizes = [size for size in sizes if size is not None]
    evidence: Document = {
        "result_size_ratio": float(np.median(known_sizes)) if known_sizes else None,
        **{f"{part.removesuffix('_s')}_grown_share": grown[part] / total if total > 0 else None for part in _PARTS},
    }
    if not counted or total <= 0:
        return "unknown", evidence
    most = max(_PARTS, key=lambda part: grown[part])
    if grown[most] < CAUSE_SHARE * total:
        return "mixed", evidence
    if most != "blocked_s":
        return {"cpu_s": "cpu", "queue_wait_s": "cpu wait"}[most], evidence
    if compared.place == "worker" and _is_io(run, tasks, cells, CAUSE_SHARE * total):
        return "io", evidence
    # A page a task, and more than twice as many as elsewhere, are no few first touches.
    if faults[0] >= counted and faults[0] > 2 * faults[1]:
        return "faults", evidence
    if _is_under_pressure(run, tasks, compared.place, cells[0].place):
        return "memory", evidence
    return "blocked", evidence


def _difference(values: Floats, here: np.ndarray[Any, Any], there: np.ndarray[Any, Any]) -> float:
    if np.isnan(values[here]).any() or np.isnan(values[there]).any():
        return 0.0
    return float(np.median(values[here]) - np.median(values[there]))


def _ratio(values: Floats, here: np.ndarray[Any, Any], there: np.ndarray[Any, Any]) -> float | None:
    mine, other = values[here], values[there]
    mine, other = mine[np.isfinite(mine)], other[np.isfinite(other)]
    if not len(mine) or not len(other) or np.median(other) <= 0:
        return None
    return float(np.median(mine) / np.median(other))


def _is_io(run: Run, tasks: _Tasks, cells: list[peers.Cell], enough_s: float) -> bool:
    """Return whether Darshan saw reads and writes of this worker take that much longer than the others'."""
    if io_source(run) != "darshan":
        return False
    spent = {(row["prefix"], row["worker_id"]): row["io_s"] or 0.0 for row in rows_of(run, IO_SQL)}
    ids = tasks.names["worker_id"]
    excess = 0.0
    for cell in cells:
        prefix = tasks.names["prefix"][cell.kind]
        mine = spent.get((prefix, ids[cell.place]), 0.0)
        others = sum(value for (name, _), value in spent.items() if name == prefix) - mine
        excess += mine - others / cell.other_count * cell.count
    return excess >= enough_s


def _is_under_pressure(run: Run, tasks: _Tasks, place: str, code: int) -> bool:
    if place == "thread":
        return False
    workers = {
        tasks.names["worker"][worker]
        for worker, host in tasks.host_of_worker.items()
        if (worker if place == "worker" else host) == code
    }
    shares = {row["worker"]: row["memory_share"] for row in rows_of(run, PRESSURE_SQL)}
    others = [share for worker, share in shares.items() if worker not in workers]
    mine = [share for worker, share in shares.items() if worker in workers]
    return bool(mine) and max(mine) >= PRESSURE_SHARE and max(others, default=0.0) < PRESSURE_SHARE


def _straggler_conclusions(tasks: _Tasks, compared: dict[str, _Compared], named: set[str]) -> list[Conclusion]:
    """Return places in which stragglers gather though their usual task is not slow."""
    found = []
    for place in ("host", "worker"):
        each = compared[place]
        total, whole = int(each.straggler_counts.sum()), int(each.counts.sum())
        for code, (late, count) in enumerate(zip(each.straggler_counts.tolist(), each.counts.tolist(), strict=True)):
            if late < STRAGGLER_COUNT or count == whole:
                continue
            usual = (total - late) / (whole - count) * count
            names = _place_names(tasks, place, code)
            subject = str(names[place])
            # Three times what is usual, and far beyond what chance gives to counts.
            if late < 3 * usual or late - usual < 5 * (usual + 1) ** 0.5 or each.straggler_s[code] < 2 * COST_S:
                continue
            if subject in named or (place == "worker" and str(names["host"]) in named):
                continue
            named.add(subject)
            found.append(
                Conclusion(
                    "slow",
                    subject,
                    f"{late} of {count:,} tasks on {place} {subject} took three times as long as is usual for their "
                    f"group or longer, {seconds_text(float(each.straggler_s[code]))} in excess; elsewhere "
                    f"{total - late} of {whole - count:,} did.",
                    "possible",
                    float(each.straggler_s[code]),
                    "Look at what else ran there at those times; `recup tasks` lists the longest.",
                    {"straggler_count": late, "attempt_count": count, "usual_count": usual},
                )
            )
    return found
