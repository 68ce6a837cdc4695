"""Data of the time line: every attempt that computed, by thread, as compact columns.

Covers what the page needs to draw, search and tell tasks.  Columns are numbers, sorted by
lane (a thread of a worker) then start, coded as small differences, and compressed each for
itself, so that a million tasks take a few megabytes.  How finely times are told and how
much of a key's text is kept is what fits `SIZE_LIMIT_BYTES`; `about` says which.  Beyond
`EXACT_LIMIT` tasks a lane becomes bins of busy share and of the prefix that took most, and
only the slowest tasks stay.

It does not cover how columns become few bytes (`recup.report.columns`) nor drawing (`assets/timeline.js`).
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from recup.analyse.rows import ranks
from recup.report.columns import (
    Column,
    Numbers,
    Packed,
    bytes_column,
    json_column,
    plain,
    smaller,
    time_columns,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from recup.analyse.rows import Document
    from recup.store import Run

EXACT_LIMIT = 2_000_000
"""Tasks up to which each one is in the file."""
SLOWEST_KEPT = 5_000
"""Tasks kept one by one where there are more than that."""
SIZE_LIMIT_BYTES = 6_400_000
"""Compressed bytes the time line may take; as base64 they are a third more."""
BIN_LIMIT = 2_000_000
"""Bins of all lanes together, where tasks are binned."""
OUTCOMES = ("memory", "error", "rescheduled", "stolen", "cancelled", "lost", "running_at_end", "unknown")
UNFINISHED = 128
"""Added to the number of an outcome where no stop is recorded: the bar ends where the attempt did."""

GROUP, TOKEN, UUID, NUMBER = "\ue000", "\ue001", "\ue002", "\ue003"
"""What stands in a key's template for its group, 32 hex digits, a UUID and a number."""
_NUMBERS_KEPT = 8
_HEX = "[0-9a-f]"
_TOKEN_PATTERN = f"{_HEX}{{32}}"
_UUID_PATTERN = f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"
_NUMBER_PATTERN = "0|[1-9][0-9]{0,8}"
_SHORT_TOKEN = 3
_TOKEN_BYTES = 16

ATTEMPTS_SQL = f"""
with drawn as (
    select
        coalesce(worker_id, worker, '') as worker_id,
        coalesce(thread, -1) as thread,
        coalesce(prefix, '') as prefix,
        coalesce("group", '') as "group",
        outcome,
        stopped_s is null as is_unfinished,
        key_id,
        coalesce(attempt_number, 1)::integer as attempt_number,
        coalesce(nbytes, -1) as nbytes,
        coalesce(started_s, executing_s) - (select started_s from run_times) as start_s,
        coalesce(stopped_s, ended_s, (select ended_s from run_times)) - (select started_s from run_times) as stop_s,
        -- To translate is slow, and a key of as many bytes as characters holds none of these.
        case when strlen(key) = length(key) then key else translate(coalesce(key, ''), '{GROUP}{TOKEN}{UUID}{NUMBER}', '????') end
            as key
    from task_runs
    where started_s is not null or (executing_s is not null and outcome not in ('stolen', 'rescheduled'))
), shaped as (
    select *, case when "group" = '' then key else replace(key, "group", '{GROUP}') end as shape
    from drawn
    where isfinite(start_s) and isfinite(stop_s)
), tokened as (
    select *, regexp_extract(shape, '{_TOKEN_PATTERN}|{_UUID_PATTERN}') as token
    from shaped
), freed as (
    select * replace (case length(token)
        when 0 then shape
        when 32 then replace(shape, token, '{TOKEN}')
        else replace(shape, token, '{UUID}')
    end as shape)
    from tokened
), counted as (
    select *, regexp_extract_all(shape, '{_NUMBER_PATTERN}') as found
    from freed
)
select
    worker_id, thread, prefix, "group", outcome, is_unfinished, key_id, attempt_number, nbytes, start_s,
    greatest(stop_s - start_s, 0.0) as duration_s,
    case when len(found) <= {_NUMBERS_KEPT} then regexp_replace(shape, '{_NUMBER_PATTERN}', '{NUMBER}', 'g') else shape end
        as template,
    unhex(replace(token, '-', '')) as token,
    len(found)::integer as number_count,
    {", ".join(f"coalesce(found[{n + 1}], '0')::uinteger as number_{n}" for n in range(_NUMBERS_KEPT))}
from counted
"""
"""One row per attempt that computed, or had begun to when its record ends.

Its key is told as a template with a token and numbers: put together again they are the key.
"""

WORKERS_SQL = """
select coalesce(worker_id, address) as worker_id, any_value(address) as address, any_value(hostname) as hostname,
    any_value(name) as name
from (
    select l.worker_id, l.address, h.hostname, p.name
    from worker_lives l
    left join raw.processes p on p.server_id = l.worker_id
    left join (select host_id, any_value(hostname) as hostname from raw.hosts group by host_id) h on h.host_id = p.host_id
)
group by 1
"""

SUMMARY_SQL = "select wall_s from run_times"


@dataclasses.dataclass(frozen=True, slots=True)
class Timeline:
    """What the page gets of the tasks.

    Attributes
    ----------
    about : dict
        Plain values: lanes, prefixes, columns with their place in `data`, resolution, what is left out.
    data : bytes
        Columns, each compressed for itself (gzip), one after the other.
    """

    about: Document
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How finely things are told: times in ticks, durations in so many bits, keys in full or not."""

    tick_s: float
    mantissa_bits: int
    keys: str
    has_sizes: bool


PLANS = (
    Plan(1e-6, 16, "full", True),
    Plan(1e-6, 16, "full", False),
    Plan(1e-5, 8, "full", False),
    Plan(1e-5, 8, "short", False),
    Plan(1e-4, 8, "full", False),
    Plan(1e-4, 8, "short", False),
    Plan(1e-4, 8, "none", False),
    Plan(1e-3, 8, "none", False),
)
"""From the finest to the coarsest; the first that fits is taken, or the last.  Keys are ``full``, ``short`` (the
first six digits of a token) or ``none``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Bars:
    """Attempts in the order they are drawn, lane by lane, as arrays; `order` is their place among the rows."""

    order: Numbers
    lane: Numbers
    start: Numbers
    duration: Numbers
    prefix: Numbers

    def part(self, which: Any) -> Bars:
        """Return some of them."""
        return Bars(*(getattr(self, field.name)[which] for field in dataclasses.fields(self)))


def timeline(run: Run, *, exact_limit: int = EXACT_LIMIT, size_limit_bytes: int = SIZE_LIMIT_BYTES) -> Timeline:
    """Return lanes and tasks of a run as columns for the page.

    From: task_runs, worker_lives, processes, hosts, run_summary
    """
    rows = run.sql(ATTEMPTS_SQL).to_arrow_table()
    ((wall_s,),) = run.sql(SUMMARY_SQL).fetchall()
    start, duration = _floats(rows, "start_s"), _floats(rows, "duration_s")
    lane, lanes = _lanes(run, rows, start)
    prefix, prefixes = _ranked_codes(rows, "prefix", duration)
    about: Document = {
        "wall_s": wall_s or 0.0,
        "task_count": rows.num_rows,
        "outcomes": OUTCOMES,
        "has_failures": any(each != "memory" for each in _codes(rows, "outcome")[1]),
        "lanes": lanes,
        "prefixes": _prefix_rows(prefix, prefixes, duration),
        "bins": None,
    }
    # What began at once is told by key and attempt, so that the same run is the same file.
    key, attempt = (rows[name].to_numpy(zero_copy_only=False) for name in ("key_id", "attempt_number"))
    order = np.lexsort((attempt, key, start, lane))
    bars = Bars(np.arange(rows.num_rows), lane, start, duration, prefix).part(order)
    packed = Packed()
    if rows.num_rows > exact_limit:
        about["bins"] = _binned(packed, bars, about)
        count = min(SLOWEST_KEPT, rows.num_rows)
        bars = bars.part(np.sort(np.argpartition(bars.duration, -count)[-count:]))
    about |= {"shown_count": len(bars.order), "counts": np.bincount(bars.lane, minlength=len(lanes)).tolist()}
    about |= _tasks(packed, rows, bars, size_limit_bytes)
    about |= {"columns": packed.columns}
    return Timeline(about, b"".join(packed.parts))


# ---------------------------------------------------------------- lanes and prefixes


def _floats(rows: pa.Table, name: str) -> Numbers:
    return rows[name].to_numpy(zero_copy_only=False).astype(np.float64)


def _codes(rows: pa.Table, name: str) -> tuple[Numbers, list[str]]:
    """Return a column of text as numbers into the list of its distinct values, which is in order."""
    column = rows[name].combine_chunks().dictionary_encode()
    if not len(column):
        return np.zeros(0, np.int64), []
    values = column.dictionary.to_pylist()
    rank = np.array(ranks(values), np.int64)
    return rank[column.indices.to_numpy(zero_copy_only=False)], [values[each] for each in np.argsort(rank)]


def _ranked_codes(rows: pa.Table, name: str, weight: Numbers) -> tuple[Numbers, list[str]]:
    """Return `_codes` in which values of most weight have the smallest numbers."""
    codes, values = _codes(rows, name)
    totals = np.bincount(codes, weights=weight, minlength=len(values))
    ranking = np.argsort(-totals, kind="stable")
    rank = np.empty(len(values), np.int64)
    rank[ranking] = np.arange(len(values))
    return rank[codes] if len(values) else codes, [values[each] for each in ranking]


def _prefix_rows(codes: Numbers, names: Sequence[str], duration: Numbers) -> list[Document]:
    totals = np.bincount(codes, weights=duration, minlength=len(names)).tolist()
    counts = np.bincount(codes, minlength=len(names)).tolist()
    return [
        {"name": name or "(not recorded)", "total_s": round(total, 6), "count": count}
        for name, total, count in zip(names, totals, counts, strict=True)
    ]


def _lanes(run: Run, rows: pa.Table, start: Numbers) -> tuple[Numbers, list[Document]]:
    """Return the lane of each row, and what each lane is, in the order of the page: host, worker, thread."""
    worker, worker_ids = _codes(rows, "worker_id")
    thread = rows["thread"].to_numpy(zero_copy_only=False)
    if not rows.num_rows:
        return worker, []
    told = {row[0]: row[1:] for row in run.sql(WORKERS_SQL).fetchall()}
    threads, thread_code = np.unique(thread, return_inverse=True)
    pairs, lane = np.unique(worker * len(threads) + thread_code, return_inverse=True)
    first = np.full(len(pairs), np.inf)
    np.minimum.at(first, lane, start)
    counts = np.bincount(lane).tolist()
    lanes: list[Document] = []
    for place, pair in enumerate(pairs.tolist()):
        worker_id, ident = worker_ids[pair // len(threads)], int(threads[pair % len(threads)])
        address, hostname, name = told.get(worker_id, (None, None, None))
        lanes.append(
            {
                "worker_id": worker_id,
                "address": address or worker_id or "worker not told",
                "host": hostname or "",
                "name": name,
                "has_thread": ident != -1,
                "count": counts[place],
                "first_s": float(first[place]),
                "place": place,
            }
        )
    lanes.sort(
        key=lambda each: (
            each["host"],
            _natural(each["name"] or each["address"]),
            each["worker_id"],
            not each["has_thread"],
            each["first_s"],
        )
    )
    rank = np.empty(len(lanes), np.int64)
    rank[[each.pop("place") for each in lanes]] = np.arange(len(lanes))
    number = 0
    for before, each in zip([None, *lanes], lanes, strict=False):
        number = number + 1 if before and before["worker_id"] == each["worker_id"] else 1
        each["thread"] = number if each["has_thread"] else None
        del each["first_s"]
    return rank[lane], lanes


def _natural(text: str) -> list[tuple[str, int]]:
    """Return what sorts names as people count: worker 2 before worker 10."""
    return [(words, int(digits or 0)) for words, digits in re.findall(r"(\D*)(\d{0,15})", text)]


# ---------------------------------------------------------------- tasks


def _tasks(packed: Packed, rows: pa.Table, bars: Bars, limit: int) -> Document:
    """Add the columns of tasks by the finest plan that fits, and return what it is."""
    fixed = _fixed_columns(rows, bars)
    room = limit - packed.size - sum(len(part) for part, _ in fixed.values())
    times: dict[tuple[float, int], dict[str, Column]] = {}
    keys: dict[str, dict[str, Column]] = {"none": {}}
    templates: dict[str, Column] = {}
    tokens = _tokens(rows)[bars.order]
    sizes: dict[str, Column] = {}
    for plan in PLANS:
        pace = (plan.tick_s, plan.mantissa_bits)
        if pace not in times:
            told = time_columns(bars.lane, bars.start, bars.duration, tick_s=plan.tick_s, bits=plan.mantissa_bits)
            times[pace] = told
        if plan.keys not in keys:
            templates = templates or _template_columns(rows, bars.order)
            keys[plan.keys] = templates | _token_columns(tokens, plan.keys)
        if plan.has_sizes and not sizes:
            sizes = {"nbytes": _size_column(rows, bars.order)}
        chosen = times[pace] | keys[plan.keys] | (sizes if plan.has_sizes else {})
        if sum(len(part) for part, _ in chosen.values()) <= room:
            break
    packed.put(fixed | chosen)
    return {"tick_s": plan.tick_s, "duration_error_share": 2.0**-plan.mantissa_bits, "keys": plan.keys}


def _fixed_columns(rows: pa.Table, bars: Bars) -> dict[str, Column]:
    group, groups = _codes(rows, "group")
    pairs, pair = np.unique(bars.prefix * max(len(groups), 1) + group[bars.order], return_inverse=True)
    # Numbers of common pairs are small, which compresses better.
    ranking = np.argsort(-np.bincount(pair, minlength=len(pairs)), kind="stable")
    rank = np.empty(len(pairs), np.int64)
    rank[ranking] = np.arange(len(pairs))
    named = [[each // max(len(groups), 1), groups[each % len(groups)]] for each in pairs[ranking].tolist()]
    number = {name: place for place, name in enumerate(OUTCOMES)}
    outcome, outcomes = _codes(rows, "outcome")
    numbers = np.array([number.get(each, len(OUTCOMES) - 1) for each in outcomes] or [0], np.int64)
    ends = (numbers[outcome] if len(outcome) else outcome) + UNFINISHED * rows["is_unfinished"].to_numpy(
        zero_copy_only=False
    ).astype(np.int64)
    attempts = np.clip(rows["attempt_number"].to_numpy(zero_copy_only=False).astype(np.int64), 0, 255)
    return {
        "groups": json_column(named),
        "group": plain(rank[pair] if len(pair) else pair),
        "outcome": plain(ends[bars.order]),
        "attempt": plain(attempts[bars.order]),
    }


def _size_column(rows: pa.Table, order: Numbers) -> Column:
    """Code sizes as 1024 times their logarithm to base 2, exact below a KiB; plus one, so that zero is none."""
    sizes = rows["nbytes"].to_numpy(zero_copy_only=False).astype(np.float64)[order]
    steps = np.where(sizes < 0, 0, np.rint(np.log2(np.maximum(sizes, 0) + 1) * 1024) + 1)
    return plain(steps.astype(np.int64))


def _template_columns(rows: pa.Table, order: Numbers) -> dict[str, Column]:
    template, templates = _codes(rows, "template")
    columns = {
        "templates": json_column(templates),
        "template": plain(template[order]),
    }
    counts = rows["number_count"].to_numpy(zero_copy_only=False)
    most = int(counts[counts <= _NUMBERS_KEPT].max(initial=0)) if len(counts) else 0
    for place in range(most):
        columns[f"number_{place}"] = smaller(rows[f"number_{place}"].to_numpy(zero_copy_only=False)[order])
    return columns


def _token_columns(token: Numbers, how: str) -> dict[str, Column]:
    has_token = token.any(axis=1)
    if not has_token.any():
        return {}
    width = _TOKEN_BYTES if how == "full" else _SHORT_TOKEN
    return {
        "token": bytes_column(token[has_token, :width]),
        "has_token": plain(has_token.astype(np.int64)),
    }


def _tokens(rows: pa.Table) -> Numbers:
    """Return the sixteen bytes of each token, a row each; zeros where a key has none."""
    found = np.zeros((rows.num_rows, _TOKEN_BYTES), np.uint8)
    column = rows["token"].combine_chunks()
    if not rows.num_rows:
        return found
    # One buffer holds all bytes, and offsets say whose they are.
    data = np.frombuffer(column.buffers()[2] or b"", np.uint8)
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + rows.num_rows + 1]
    # A token is sixteen bytes or none: those there are stand one after the other.
    found[np.diff(offsets) > 0] = data[offsets[0] : offsets[-1]].reshape(-1, _TOKEN_BYTES)
    return found


# ---------------------------------------------------------------- bins


def _binned(packed: Packed, bars: Bars, about: Document) -> Document:
    """Add the busy share of each bin of each lane, and the prefix that took most of it."""
    lane_count = max(len(about["lanes"]), 1)
    per_lane = int(np.clip(BIN_LIMIT // lane_count, 64, 4096))
    width_s = max(about["wall_s"], float((bars.start + bars.duration).max(initial=0.0)), 1e-9) / per_lane
    busy = np.zeros(lane_count * per_lane)
    top = np.zeros(lane_count * per_lane, np.int64)
    edges = np.searchsorted(bars.lane, np.arange(lane_count + 1))
    step = max(1, 1_000_000 // max(1, len(bars.lane) // lane_count))
    for begin in range(0, lane_count, step):  # some lanes at a time, for memory
        part = slice(int(edges[begin]), int(edges[min(begin + step, lane_count)]))
        _bin_part(busy, top, bars.part(part), width_s, per_lane)
    packed.put(
        {"bin_busy": plain(np.rint(np.clip(busy / width_s, 0, 1) * 255).astype(np.int64)), "bin_prefix": plain(top)}
    )
    return {"per_lane": per_lane, "width_s": width_s}


def _bin_part(busy: Numbers, top: Numbers, bars: Bars, width_s: float, per_lane: int) -> None:
    start, prefix = bars.start, bars.prefix
    stop, base = start + bars.duration, bars.lane * per_lane
    first = np.clip((start / width_s).astype(np.int64), 0, per_lane - 1)
    last = np.clip((stop / width_s).astype(np.int64), 0, per_lane - 1)
    count = last - first + 1
    task = np.repeat(np.arange(len(start)), count)
    place = np.arange(len(task)) - np.repeat(np.cumsum(count) - count, count) + first[task]
    inside = np.minimum(stop[task], (place + 1) * width_s) - np.maximum(start[task], place * width_s)
    cell, inside = base[task] + place, np.maximum(inside, 0)
    np.add.at(busy, cell, inside)
    prefix_count = int(prefix.max(initial=0)) + 1
    pairs, pair = np.unique(cell * prefix_count + prefix[task], return_inverse=True)
    sums = np.bincount(pair, weights=inside)
    # The last one written to a cell is that of most seconds.
    order = np.argsort(sums, kind="stable")
    top[pairs[order] // prefix_count] = pairs[order] % prefix_count
