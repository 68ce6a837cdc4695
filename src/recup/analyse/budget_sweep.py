"""How every second of every thread gets its one category.

Covers arithmetic on spans of time, all workers at once; `recup.analyse.budget_record` reads
the spans from a run, `recup.analyse.budget` makes tables of the sums.

At any instant a worker has so many slots: its task threads.  Tasks in its threads fill
them first, in proportion where there are more tasks than slots (tasks that seceded).  Each
slot left gets the first cause that holds, each cause for at most as many slots as it has
cases at that instant:

1. unfinished: tasks were given to it and never ended, as far as recorded
2. spill: its disk was at work for want of memory; then also for tasks that waited there
3. deserialize: it unpacked tasks
4. scheduler_latency: tasks were on the way to it, lay there with all inputs, or were done
   and their results on the way back
5. transfer_wait: tasks lay there without all inputs
6. by the state of the whole cluster: imbalance for as many slots as tasks wait behind busy
   threads or at the scheduler; no_task_ready while any task is wanted; else nothing_submitted.
   Of a paused worker the first two are worker_paused, and 4 and 5 are passed over.

Times are counted in whole ticks, so that no second is lost or told twice by rounding.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from recup.analyse.rows import by_code

if TYPE_CHECKING:
    from collections.abc import Iterator

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Moments = TypeVar("Moments", npt.NDArray[np.float64], npt.NDArray[np.int64])
Mask = npt.NDArray[np.bool_]
Numbers = Integers | Floats

_Placed = tuple[Integers, Integers, Integers, Integers]  # place, begin and end in ticks, number of each span

CATEGORIES: tuple[tuple[str, str], ...] = (
    ("cpu", "a thread ran a task's code on a CPU"),
    ("cpu_wait", "a task was ready to run and had no CPU: more busy threads than CPUs"),
    ("blocked", "a task's thread slept or waited: for the GIL, a lock, the network, memory or a timer"),
    ("io", "a task's thread was in a read or write of a file"),
    ("not_split", "a task computed; what its thread did meanwhile was not recorded, or it was a coroutine"),
    (
        "unfinished",
        "a task computed, or was given to the thread, and never came to an end: its worker died, or it ran when the record ends",
    ),
    ("spill", "no task in the thread, while its worker wrote results to disk or read them back for want of memory"),
    ("deserialize", "no task in the thread, while its worker unpacked one"),
    ("transfer_wait", "no task in the thread, while one waited on its worker for inputs from other workers"),
    ("scheduler_latency", "no task in the thread, while one was between scheduler and worker"),
    ("imbalance", "no task in the thread, while tasks waited for threads of other workers or at the scheduler"),
    ("no_task_ready", "no task in the thread: the graph, or resources that tasks ask for, allowed no more at once"),
    ("nothing_submitted", "no task in the thread, as no task was wanted: the client was busy, or had not begun"),
    ("worker_paused", "no task in the thread, as its worker was paused for want of memory"),
    ("worker_absent", "the worker of the thread had not come yet, or had gone"),
)
"""Every category and what it means, in the order of all tables."""

NAMES: tuple[str, ...] = tuple(name for name, _ in CATEGORIES)
"""Names of the categories, in their order."""

BUSY: tuple[str, ...] = ("cpu", "cpu_wait", "blocked", "io", "not_split", "unfinished")
"""Categories in which a task is in the thread."""

OF_TASKS: tuple[str, ...] = (*BUSY, "spill", "deserialize", "transfer_wait", "scheduler_latency")
"""Categories that are of a task, and so of a prefix."""

_WHOLE = 1 << 40  # a share is held as a whole number of these, so that sums of shares do not drift
_LONGEST = 1 << 62
_CHUNK = 200_000  # spans

WAITS = ("given", "spill", "deserialize", "pending", "returning", "fetching")
"""Kinds of spans that are the cause of idle slots, beside ``paused``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Spans:
    """Spans of time, each at a place (a worker or a cluster) and of a prefix; seconds since the start of the window."""

    place: Integers
    start_s: Floats
    stop_s: Floats
    prefix: Integers

    @classmethod
    def none(cls) -> Spans:
        """Return no spans."""
        return cls(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), np.zeros(0, np.int64))


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What of a run the budget stands on.

    Attributes
    ----------
    wall_s : float
        Length of the window.
    cluster : array
        Cluster (scheduler) of each worker.
    lives, threads : Spans, array
        Lives of workers and their threads.
    executing, shares : Spans, array
        Tasks in threads, and what each second of one is: a column per category of `BUSY`, rows that sum to 1.
    waits : dict of Spans
        By kind: `WAITS` and ``paused``.
    queued, wanted : Spans
        By cluster: tasks held at its scheduler for want of a worker, and tasks not finished.
    prefixes : tuple
        Names of prefixes; None is a prefix that is not known.
    attempts : array
        Attempts of each prefix.
    """

    wall_s: float
    cluster: Integers
    lives: Spans
    threads: Integers
    executing: Spans
    shares: Floats
    waits: dict[str, Spans]
    queued: Spans
    wanted: Spans
    prefixes: tuple[str | None, ...] = (None,)
    attempts: Integers = dataclasses.field(default_factory=lambda: np.zeros(1, np.int64))


@dataclasses.dataclass(frozen=True, slots=True)
class Sums:
    """Thread-seconds by category.

    Attributes
    ----------
    thread_count : int
        Most threads alive at one instant.
    wall_s : float
        Length of the window in whole ticks.
    edges_s : array
        Edges of the bins.
    of_lives, of_bins : array
        A row per life (bin), a column per category of `NAMES`.
    of_prefixes : array
        A row per prefix, a column per category of `OF_TASKS`.
    """

    thread_count: int
    wall_s: float
    edges_s: Floats
    of_lives: Floats
    of_bins: Floats
    of_prefixes: Floats


def most_at_once(start: Integers, stop: Integers, weight: Integers) -> int:
    """Return the largest sum of weights of spans that hold at one instant."""
    lasting = stop > start
    moments = np.concatenate([stop[lasting], start[lasting]])
    changes = np.concatenate([-weight[lasting], weight[lasting]])
    order = np.argsort(moments, kind="stable")  # those that end come before those that begin
    return int(max(np.cumsum(changes[order]).max(initial=0), 0))


def sweep(record: Record, bin_count: int) -> Sums:
    """Return the sums of a record; bins are equal parts of the window."""
    clock = _Clock.of(record)
    edges = np.array([clock.wall * each // bin_count for each in range(bin_count + 1)], np.int64)
    threads = np.maximum(record.threads, 0)
    lives = record.lives
    starts, stops = _apart(lives.place, clock.ticks(lives.start_s), clock.ticks(lives.stop_s), threads)
    thread_count = most_at_once(starts, stops, threads)
    sums = Sums(
        thread_count,
        clock.wall * clock.tick_s,
        np.asarray(edges * clock.tick_s, np.float64),
        np.zeros((len(starts), len(NAMES))),
        np.zeros((bin_count, len(NAMES))),
        np.zeros((len(record.prefixes), len(OF_TASKS))),
    )
    lasting = np.flatnonzero((stops > starts) & (threads > 0))
    placed = {"life": _by_place(lives.place, starts, stops, lasting)}
    for kind, spans in (("executing", record.executing), *record.waits.items()):
        begin, end = clock.ticks(spans.start_s), clock.ticks(spans.stop_s)
        placed[kind] = _by_place(spans.place, begin, end, np.flatnonzero((end > begin) & (spans.place >= 0)))
    rests = []
    for each in _chunks(placed, len(record.cluster)):
        pieces = _Pieces(record, clock, each, threads[each["life"][3]], edges, sums)
        rests.append(_rest(pieces, *_own_causes(pieces, _in_threads(pieces))))
    if rests:
        _cluster_causes(record, clock, rests, edges, sums)
    absent = thread_count * np.diff(edges) * clock.tick_s - sums.of_bins.sum(axis=1)
    sums.of_bins[:, NAMES.index("worker_absent")] = np.maximum(absent, 0.0)
    return sums


@dataclasses.dataclass(frozen=True, slots=True)
class _Clock:
    """Whole ticks of the window: how long one is, and how many there are."""

    tick_s: float
    wall: int

    @classmethod
    def of(cls, record: Record) -> _Clock:
        """Return ticks of a nanosecond, longer where the time lines of all workers would not fit a number."""
        wall_ns = max(round(record.wall_s * 1e9), 0)
        tick_ns = max(-(-(wall_ns + 1) * (len(record.cluster) + 1) // _LONGEST), 1)
        return cls(tick_ns * 1e-9, wall_ns // tick_ns)

    def ticks(self, seconds: Floats) -> Integers:
        """Return moments in ticks, those outside the window at its ends; what is not told at its start."""
        inside = np.clip(np.nan_to_num(seconds, nan=0.0), 0.0, (self.wall + 1) * self.tick_s)
        return np.minimum(np.rint(inside / self.tick_s).astype(np.int64), self.wall)


class _Pieces:
    """Time of some workers cut wherever anything begins or ends: one piece from each boundary to the next.

    Boundaries are in the order of worker, then time.  Beside spans of a kind it holds what
    is summed, so that a category is added in one call.
    """

    def __init__(  # noqa: PLR0917
        self,
        record: Record,
        clock: _Clock,
        spans: dict[str, _Placed],
        threads: Integers,
        edges: Integers,
        sums: Sums,
    ):
        self.record, self.clock, self.spans, self.sums, self.edges = record, clock, spans, sums, edges
        self.step = clock.wall + 1
        moments = np.concatenate(
            [
                part
                for place, begin, end, _ in spans.values()
                for part in (place * self.step + begin, place * self.step + end)
            ]
        )
        # Spans of a kind are nearly in order, of which this kind of sort makes use.
        order = np.argsort(moments, kind="stable")
        moments = moments[order]
        is_first = np.diff(moments, prepend=-1) > 0
        number = np.empty(len(order), np.int64)
        number[order] = np.cumsum(is_first) - 1
        self.moments = moments[is_first]
        self.size = len(self.moments)
        self.counts: dict[str, Integers] = {}
        self.begins: dict[str, Integers] = {}
        self.ends: dict[str, Integers] = {}
        first = 0
        for kind, (place, *_) in spans.items():
            count = len(place)
            self.begins[kind], self.ends[kind] = (
                number[first : first + count],
                number[first + count : first + 2 * count],
            )
            first += 2 * count
        self.slots = self.sum("life", threads)
        self.is_alive = self.slots > 0
        self.lengths = np.where(self.is_alive, np.diff(self.moments, append=self.moments[-1]), 0)
        lives_begun = np.bincount(self.begins["life"], minlength=self.size)
        numbers = spans["life"][3][np.argsort(self.begins["life"])]
        self.life = numbers[np.maximum(np.cumsum(lives_begun) - 1, 0)]
        self.worker = self.moments // self.step
        self.starts = self.moments - self.worker * self.step
        self.seconds = self.lengths * clock.tick_s
        stops = self.starts + self.lengths
        self.bin = _bin_of(edges, self.starts)
        self.over = np.flatnonzero((stops > edges[self.bin + 1]) & (self.lengths > 0))
        piece, begin, end, self.part_bin = _cut(edges, self.starts[self.over], stops[self.over])
        self.part, self.part_seconds = self.over[piece], (end - begin) * clock.tick_s
        # Pieces of one life and bin stand side by side: they are summed at once.
        self.runs = np.flatnonzero((np.diff(self.life, prepend=-1) != 0) | (np.diff(self.bin, prepend=-1) != 0))
        self.run_life, self.run_bin = self.life[self.runs], self.bin[self.runs]

    def count(self, kind: str) -> Integers:
        """Return how many spans of a kind hold in each piece."""
        if kind not in self.counts:
            self.counts[kind] = self.sum(kind, None)
        return self.counts[kind]

    def sum(self, kind: str, weight: Integers | None) -> Integers:
        """Return the sum of weights of the spans of a kind that hold in each piece."""
        if not len(self.begins.get(kind, ())):
            return np.zeros(self.size, np.int64)
        # Sums of whole weights are exact as floats too, as they stay far below 2**53.
        changes = np.bincount(self.begins[kind], weight, self.size) - np.bincount(self.ends[kind], weight, self.size)
        return np.cumsum(changes.astype(np.int64, copy=False))

    def add(self, name: str, slots: Numbers) -> None:
        """Add so many slots in each piece to a category, by life and bin."""
        at = NAMES.index(name)
        seconds = slots * self.seconds
        lives, bins = self.sums.of_lives, self.sums.of_bins
        lives[:, at] += np.bincount(self.run_life, np.add.reduceat(seconds, self.runs), len(lives))
        seconds[self.over] = 0.0
        bins[:, at] += np.bincount(self.run_bin, np.add.reduceat(seconds, self.runs), len(bins))
        bins[:, at] += np.bincount(self.part_bin, slots[self.part] * self.part_seconds, len(bins))

    def add_to_prefixes(self, name: str, kind: str, rate: Floats, shares: Floats | float = 1.0) -> None:
        """Add to a category, by prefix, what each span of a kind has of so many slots in each piece."""
        sums = np.concatenate([[0.0], np.cumsum(rate * self.seconds)])
        seconds = (sums[self.ends[kind]] - sums[self.begins[kind]]) * shares
        spans = self.record.executing if kind == "executing" else self.record.waits[kind]
        prefixes = self.sums.of_prefixes
        prefixes[:, OF_TASKS.index(name)] += np.bincount(spans.prefix[self.spans[kind][3]], seconds, len(prefixes))


def _in_threads(pieces: _Pieces) -> Integers:
    """Add what tasks did in threads; return the slots left."""
    executing = pieces.count("executing")
    busy = np.minimum(executing, pieces.slots)
    scale = busy / np.maximum(executing, 1)
    whole = _whole_shares(pieces.record.shares[pieces.spans["executing"][3]])
    for at, name in enumerate(BUSY):
        share = whole[:, at]
        if share.any():
            pieces.add(name, pieces.sum("executing", share) * (scale / _WHOLE))
            pieces.add_to_prefixes(name, "executing", scale, share / _WHOLE)
    return pieces.slots - busy


def _own_causes(pieces: _Pieces, left: Integers) -> tuple[Integers, Integers]:
    """Add idle slots that their own worker explains; return those left, and the tasks that wait behind busy ones."""

    def take(name: str, cases: Integers, *kinds: str) -> Integers:
        taken = np.minimum(cases, left)
        if taken.any():
            pieces.add(name, taken)
            count = sum((pieces.count(kind) for kind in kinds), np.zeros(1, np.int64))
            for kind in kinds:
                pieces.add_to_prefixes(name, kind, taken / np.maximum(count, 1))
        return left - taken

    is_paused = pieces.count("paused") > 0
    left = take("unfinished", pieces.count("given"), "given")
    pending, spilling, before = pieces.count("pending"), pieces.count("spill"), left
    left = take("spill", np.where(spilling > 0, np.maximum(spilling, pending), 0), "spill")
    pending = np.maximum(pending - (before - left), 0)
    left = take("deserialize", pieces.count("deserialize"), "deserialize")
    waiting = np.where(is_paused, pending, np.maximum(pending - left, 0)) * pieces.is_alive
    on_the_way = np.where(is_paused, 0, pending + pieces.count("returning"))
    left = take("scheduler_latency", on_the_way, "pending", "returning")
    left = take("transfer_wait", np.where(is_paused, 0, pieces.count("fetching")), "fetching")
    return left, waiting


@dataclasses.dataclass(frozen=True, slots=True)
class _Rest:
    """Idle slots that their own worker does not explain, in runs in which nothing changes; on time lines of clusters.

    Attributes
    ----------
    waiting, idle : tuple of arrays
        When the count of waiting tasks (of these slots) changes, and by how much.
    base, begin, end, slots, is_paused, life : arrays
        Of each run: start of its cluster's time line, its ends from there, and what it is.
    """

    waiting: tuple[Integers, Integers]
    idle: tuple[Integers, Integers]
    base: Integers
    begin: Integers
    end: Integers
    slots: Integers
    is_paused: Mask
    life: Integers


def _rest(pieces: _Pieces, left: Integers, waiting: Integers) -> _Rest:
    base = pieces.record.cluster[pieces.worker] * pieces.step
    moments = base + pieces.starts
    is_paused = pieces.count("paused") > 0
    first = np.flatnonzero(
        (np.diff(left, prepend=0) != 0)
        | (np.diff(pieces.life, prepend=-1) != 0)
        | np.diff(is_paused, prepend=False).astype(bool)
    )
    last = np.append(first[1:], pieces.size - 1)
    first, last = first[left[first] > 0], last[left[first] > 0]
    return _Rest(
        _changes(moments, waiting),
        _changes(moments, left),
        base[first],
        pieces.starts[first],
        pieces.moments[last] - pieces.worker[first] * pieces.step,
        left[first],
        is_paused[first],
        pieces.life[first],
    )


def _cluster_causes(record: Record, clock: _Clock, rests: list[_Rest], edges: Integers, sums: Sums) -> None:
    """Add the idle slots that are left, by the state of their cluster."""
    step = clock.wall + 1
    state = _State.of(
        [*(part for rest in rests for part in rest.waiting), *_span_changes(record.queued, clock, step)],
        [part for rest in rests for part in rest.idle],
        [*_union_changes(record.wanted, clock, step)],
    )
    for rest in rests:
        run, begin, end, bins = _cut(edges, rest.begin, rest.end)
        base, idle, held = rest.base[run], rest.slots[run], rest.is_paused[run]
        waits, wants = state.between(base + begin, base + end)
        total = idle * (end - begin) * clock.tick_s
        imbalance = np.minimum(idle * waits * clock.tick_s, total)
        no_task = np.clip(idle * (wants - waits) * clock.tick_s, 0.0, total - imbalance)
        for name, seconds in (
            ("imbalance", np.where(held, 0.0, imbalance)),
            ("no_task_ready", np.where(held, 0.0, no_task)),
            ("nothing_submitted", np.maximum(total - imbalance - no_task, 0.0)),
            ("worker_paused", np.where(held, imbalance + no_task, 0.0)),
        ):
            at = NAMES.index(name)
            sums.of_lives[:, at] += np.bincount(rest.life[run], seconds, len(sums.of_lives))
            sums.of_bins[:, at] += np.bincount(bins, seconds, len(sums.of_bins))


@dataclasses.dataclass(frozen=True, slots=True)
class _State:
    """Sums over time of two shares of the idle slots of a cluster: tasks wait for them; any task is wanted."""

    moments: Integers
    rates: tuple[Floats, Floats]
    sums: tuple[Floats, Floats]

    @classmethod
    def of(cls, waiting: list[Integers], idle: list[Integers], wanted: list[Integers]) -> _State:
        """Return the state from changes: pairs of moments and by how much each count changes then."""
        parts = (waiting, idle, wanted)
        moments = np.concatenate([np.zeros(1, np.int64), *(each for part in parts for each in part[::2])])
        order = np.argsort(moments, kind="stable")  # parts of it are in order
        moments = moments[order]
        counts, first = [], 1
        for part in parts:
            changes = np.zeros(len(moments), np.int64)
            for each in part[1::2]:
                changes[first : first + len(each)] = each
                first += len(each)
            counts.append(np.cumsum(changes[order]))
        tasks, slots, unfinished = counts
        waits = np.minimum(tasks / np.maximum(slots, 1), 1.0)
        wants = np.where((unfinished > 0) | (tasks > 0), 1.0, 0.0)
        lengths = np.diff(moments, append=moments[-1])
        sums = tuple(np.concatenate([[0.0], np.cumsum(rate * lengths)[:-1]]) for rate in (waits, wants))
        return cls(moments, (waits, wants), (sums[0], sums[1]))

    def between(self, begin: Integers, end: Integers) -> tuple[Floats, Floats]:
        """Return both sums between two moments."""
        at_begin = np.searchsorted(self.moments, begin, "right") - 1
        at_end = np.searchsorted(self.moments, end, "right") - 1

        def difference(rate: Floats, sums: Floats) -> Floats:
            after = sums[at_end] + rate[at_end] * (end - self.moments[at_end])
            before = sums[at_begin] + rate[at_begin] * (begin - self.moments[at_begin])
            return np.maximum(after - before, 0.0)

        return difference(self.rates[0], self.sums[0]), difference(self.rates[1], self.sums[1])


def _by_place(place: Integers, begin: Integers, end: Integers, chosen: Integers) -> _Placed:
    """Return the spans chosen, in the order of their places."""
    places = place[chosen]
    if np.any(np.diff(places) < 0):
        chosen = chosen[by_code(places)]
    return place[chosen], begin[chosen], end[chosen], chosen


def _chunks(placed: dict[str, _Placed], worker_count: int) -> Iterator[dict[str, _Placed]]:
    """Return spans of some workers at a time, whole workers each: arrays that stay near the processor."""
    places = np.concatenate([place for place, *_ in placed.values()])
    sizes = np.bincount(places, minlength=worker_count)
    first, size = 0, 0
    for worker in range(worker_count):
        size += int(sizes[worker])
        if size >= _CHUNK or worker == worker_count - 1:
            chunk = {}
            for kind, parts in placed.items():
                low, high = np.searchsorted(parts[0], [first, worker + 1])
                chunk[kind] = (parts[0][low:high], parts[1][low:high], parts[2][low:high], parts[3][low:high])
            if len(chunk["life"][0]):
                yield chunk
            first, size = worker + 1, 0


def _apart(place: Integers, start: Integers, stop: Integers, weight: Integers) -> tuple[Integers, Integers]:
    """Return starts and stops of spans of which none at one place overlaps the next: each ends where that begins.

    Of spans that are told twice the one of most weight stays.
    """
    ends = np.maximum(stop, start)
    order = np.lexsort((weight, stop, start, place))
    order = order[ends[order] > start[order]]
    same = place[order][1:] == place[order][:-1]
    ends[order[:-1][same]] = np.minimum(ends[order[:-1]], start[order[1:]])[same]
    return start, ends


def _bin_of(edges: Integers, moments: Integers) -> Integers:
    return np.clip(np.searchsorted(edges, moments, "right") - 1, 0, len(edges) - 2)


def _cut(edges: Integers, begin: Integers, end: Integers) -> tuple[Integers, Integers, Integers, Integers]:
    """Cut pieces at edges: index of the piece, begin, end and bin of each part."""
    bin_count = len(edges) - 1
    first = _bin_of(edges, begin)
    last = np.clip(np.searchsorted(edges, end, "left") - 1, first, bin_count - 1)
    parts = last - first + 1
    piece = np.repeat(np.arange(len(begin)), parts)
    bin_ = first[piece] + np.arange(len(piece)) - np.repeat(np.cumsum(parts) - parts, parts)
    begins = np.maximum(begin[piece], edges[bin_])
    ends = np.maximum(np.minimum(end[piece], edges[bin_ + 1]), begins)
    return piece, begins, ends, bin_


def _whole_shares(shares: Floats) -> Integers:
    """Return shares as whole numbers that sum to `_WHOLE` in each row."""
    parts = np.floor(np.clip(shares, 0.0, 1.0) * _WHOLE).astype(np.int64)
    largest = np.argmax(parts, axis=1) if len(parts) else np.zeros(0, np.int64)
    rows = np.arange(len(parts))
    parts[rows, largest] += _WHOLE - parts.sum(axis=1)
    return parts


def _changes(moments: Integers, count: Integers) -> tuple[Integers, Integers]:
    """Return when a count changes, and by how much."""
    by = np.diff(count, prepend=0)
    at = np.flatnonzero(by)
    return moments[at], by[at]


def _span_changes(spans: Spans, clock: _Clock, step: int) -> tuple[Integers, ...]:
    """Return when spans begin and end on the time line of all clusters, and by how much that changes their count."""
    begin, end = clock.ticks(spans.start_s), clock.ticks(spans.stop_s)
    there = (end > begin) & (spans.place >= 0)
    base = spans.place[there] * step
    one = np.ones(len(base), np.int64)
    return base + begin[there], one, base + end[there], -one


def united(begin: Moments, end: Moments) -> tuple[Moments, Moments]:
    """Return the union of spans as disjoint ones, in order; spans that touch are one."""
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], np.maximum.accumulate(end[order])
    is_first = np.ones(len(begin), np.bool_)
    is_first[1:] = begin[1:] > end[:-1]
    return begin[is_first], end[np.append(is_first[1:], True)[: len(end)]]


def _union_changes(spans: Spans, clock: _Clock, step: int) -> tuple[Integers, ...]:
    """Return when any of the spans begins to hold on the time line of all clusters, and when none does any more."""
    begin, end = clock.ticks(spans.start_s), clock.ticks(spans.stop_s)
    there = (end > begin) & (spans.place >= 0)
    base = spans.place[there] * step
    # No span reaches into the time line of the next cluster.
    begin, end = united(base + begin[there], base + end[there])
    one = np.ones(len(begin), np.int64)
    return begin, one, end, -one
