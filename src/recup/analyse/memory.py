"""What filled the memory: of each worker over time, by kind, by prefix and result, and what went to disk.

Covers process, managed, unmanaged and spilled memory as workers told the scheduler once a second,
Dask's thresholds, results held (one copy each, by Dask's sizeof) and spilling.  It does not cover memory of
the scheduler and clients, copies of results on further workers, nor scattered data, which no task made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recup.analyse.answers import Answer, AnswerTable, Conclusion, ranked
from recup.analyse.memory_held import held_by_prefix
from recup.analyse.memory_rows import (
    HELD_OVER_TIME_SQL,
    LARGEST_SQL,
    MEMORY_OVER_TIME_SQL,
    SPILLS_SQL,
    SUMMED_SQL,
    WORKERS_SQL,
)
from recup.analyse.rows import Document
from recup.terminal import bytes_text, plural, seconds_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

    from recup.store import Run

NEAR_LIMIT_SHARE = 0.8
"""Above this part of its limit a worker is near it: where Dask by default stops giving it tasks."""
DOMINATES_SHARE = 0.6
"""One kind of memory filled a process where it is this part of it: the other then is well below half."""
SEEN_SHARE = 0.85
"""A sample tells what filled a worker where it saw this part of the peak: the rest came and went between samples."""
NOTABLE_SPILL_BYTES = 1 << 20
"""Less than this on disk costs nothing and tells nothing: a worker at its limit spills whatever small results it has."""
NOTABLE_HELD_SHARE = 0.1
"""Results below this part of a worker's limit are not what filled workers."""
MOMENTS = 240
"""Moments of tables over time: as many as a page is wide, twice."""
LARGEST_SHOWN = 50
"""Largest results that are rows."""


def memory_over_time(run: Run) -> pa.Table:
    """Memory of workers as they told the scheduler: one row per worker and second, in order of time.

    `process_bytes` is what the system booked on the process; of it `managed_bytes` are results, the rest
    unmanaged: for less than Dask's recent-to-old-time `recent`, else `old`.  Values come with
    heartbeats, so they may be a few seconds old, and steep peaks are missed.

    From: samples, worker_lives
    Columns: at_s, worker, worker_id, process_bytes, managed_bytes, unmanaged_old_bytes, unmanaged_recent_bytes,
    spilled_bytes (on disk), limit_bytes (null: none)
    """
    return run.sql(MEMORY_OVER_TIME_SQL).to_arrow_table()


def memory_summed(run: Run, moments: int = MOMENTS) -> pa.Table:
    """Memory of all workers together: one row per moment, about `moments` of them, in order of time.

    Each worker counts with its mean since the moment before.  `fullest_worker_share` is of the
    worker that was fullest then.

    From: samples, worker_lives
    Columns: at_s, worker_count, process_bytes, managed_bytes, unmanaged_old_bytes, unmanaged_recent_bytes,
    spilled_bytes, fullest_worker_share
    """
    return run.sql(SUMMED_SQL, [moments]).to_arrow_table()


def worker_memory(run: Run) -> pa.Table:
    """Memory of workers: one row per life, the fullest part of its limit first.

    `peak_bytes` is the most that was seen: by samples, by the kernel's own peak where that is known to be of this
    process, by the nanny where it killed it.  `managed_bytes` and `unmanaged_bytes` are those of
    the sample `told_bytes`, the largest that workers told the scheduler.  `above_*_at_s` is the first
    sample above a threshold: managed memory for target, the process for the others.
    `managed_most_bytes` is the most that can have been managed at `sampled_at_s`, the moment of the peak,
    where that is known.  `paused_thread_s` is time of paused threads in which no task ran that was begun before.

    From: samples, worker_lives, processes, config, events, fine_metrics, spills, task_runs
    Columns: worker, worker_id, thread_count, managed_most_bytes, limit_bytes, peak_bytes, peak_share, sampled_at_s, told_bytes,
    managed_bytes, unmanaged_bytes, above_target_at_s, above_spill_at_s, above_pause_at_s, above_terminate_at_s,
    pause_count, paused_s, paused_thread_s, spilled_bytes, unspilled_bytes, spill_s, target_share, spill_share,
    pause_share, terminate_share, is_configured (else Dask's defaults are assumed)
    """
    return run.sql(WORKERS_SQL).to_arrow_table()


def results_held(run: Run) -> pa.Table:
    """Results held, by prefix: one row each, most at the moment when most was held first.

    A result is held from when the scheduler took it until it left memory, and counts once however many
    workers had it.

    From: task_runs, scheduler_transitions, spills
    Columns: prefix (null: its graph is not recorded), result_count, result_bytes (all there ever were), largest_bytes,
    held_at_peak_bytes, held_at_peak_share, run_peak_at_s, run_peak_bytes (of all prefixes), peak_held_bytes,
    peak_at_s (of this prefix), held_mean_s, spilled_bytes
    """
    return held_by_prefix(run)


def results_held_over_time(run: Run, moments: int = MOMENTS, prefixes: int = 8) -> pa.Table:
    """Results held over time: one row per moment and prefix; the largest `prefixes`, the rest as one.

    What is held at the end of each moment; peaks inside one are in `results_held`.

    From: task_runs, scheduler_transitions
    Columns: at_s, prefix, is_rest, held_bytes
    """
    return run.sql(HELD_OVER_TIME_SQL, [moments, prefixes, moments]).to_arrow_table()


def largest_results(run: Run, limit: int = LARGEST_SHOWN) -> pa.Table:
    """The largest results: one row each.

    From: task_runs, scheduler_transitions
    Columns: key, prefix, nbytes, typename, worker (that made it), stored_at_s, held_s, is_held_at_end, run_id
    """
    return run.sql(LARGEST_SQL, [limit]).to_arrow_table()


def spilled_results(run: Run) -> pa.Table:
    """Results written to disk for want of memory: one row per prefix and worker, most bytes first.

    From: spills, tasks
    Columns: prefix, worker, spilled_bytes (by sizeof), disk_bytes, spill_count, unspilled_bytes, unspill_count,
    first_at_s
    """
    return run.sql(SPILLS_SQL).to_arrow_table()


# ---------------------------------------------------------------- the answer


def memory(run: Run) -> Answer:
    """What filled the memory of workers, and what did that cost?"""
    import pyarrow.compute as pc

    workers, held, spilled = worker_memory(run), results_held(run), spilled_results(run)
    rows = workers.to_pylist()
    near = [row for row in rows if (row["peak_share"] or 0) >= (row["pause_share"] or NEAR_LIMIT_SHARE)]
    is_pressed = bool(near) or sum(row["spilled_bytes"] or 0 for row in rows) >= NOTABLE_SPILL_BYTES
    conclusions = [*_near(near, rows), *_pauses(rows), *_spilling(rows, spilled.to_pylist())]
    if is_pressed:
        conclusions += _holders(held.to_pylist(), max((row["limit_bytes"] or 0 for row in rows), default=0))
    unspilled = workers.num_rows and pc.all(pc.is_null(workers["peak_bytes"])).as_py()
    return Answer(
        _headline(rows, near),
        ranked(conclusions),
        (
            AnswerTable("workers", "Workers, the fullest part of their limit first", workers.select(_SHOWN)),
            AnswerTable("prefixes", "Results held by prefix, when most was held", held),
            AnswerTable("largest", "Largest results", largest_results(run)),
            AnswerTable("spilled", "Results written to disk, by prefix and worker", spilled),
            AnswerTable("over-time", "All workers together, over time", memory_summed(run)),
        ),
        _basis(rows, is_unsampled=bool(unspilled)),
    )


_SHOWN = [
    "worker", "limit_bytes", "peak_bytes", "peak_share", "above_target_at_s", "above_spill_at_s", "above_pause_at_s",
    "above_terminate_at_s", "paused_s", "spilled_bytes", "spill_s", "told_bytes", "managed_bytes", "unmanaged_bytes",
    "unspilled_bytes", "sampled_at_s", "pause_count",
]  # fmt: skip


def _headline(rows: list[Document], near: list[Document]) -> str:
    known = [row for row in rows if row["peak_bytes"] is not None]
    if not known:
        return "The memory of workers is not recorded."
    first = known[0]
    spilled = sum(row["spilled_bytes"] or 0 for row in rows)
    to_disk = f"; {bytes_text(spilled)} of results went to disk" if spilled >= NOTABLE_SPILL_BYTES else ""
    if first["peak_share"] is None:
        return f"Workers have no memory limit; the largest reached {bytes_text(first['peak_bytes'])}{to_disk}."
    if near:
        count = f"{len(near)} of {plural(len(rows), 'worker')} came near {'their' if len(near) > 1 else 'its'} limit"
        return f"{count}, the fullest to {first['peak_share']:.0%} of {bytes_text(first['limit_bytes'])}{to_disk}."
    return f"The fullest worker reached {first['peak_share']:.0%} of its limit of {bytes_text(first['limit_bytes'])}{to_disk}."


def _near(near: list[Document], rows: list[Document]) -> Iterable[Conclusion]:
    """Yield what filled workers that came near their limit: one conclusion per kind of memory."""
    kinds: dict[str, list[Document]] = {}
    for row in near:
        kinds.setdefault(_filler(row), []).append(row)
    for kind, full in kinds.items():
        worst = full[0]
        several = f" (the fullest of {len(full)} like it, of {plural(len(rows), 'worker')})" if len(full) > 1 else ""
        reached = (
            f"Worker {worst['worker']}{several} reached {bytes_text(worst['peak_bytes'])}, {worst['peak_share']:.0%} of its "
            f"limit"
        )
        text, advice = _KINDS[kind]
        certainty = "certain" if kind == "unseen" else "likely"
        if worst["told_bytes"] is None:
            sample = "no sample tells of what"
        elif kind == "unmanaged" and worst["told_bytes"] < SEEN_SHARE * worst["peak_bytes"]:
            sample = f"at most {bytes_text(worst['managed_most_bytes'])} of it can have been results"
        else:
            sample = (
                f"by its fullest sample, {bytes_text(worst['told_bytes'])}: managed {bytes_text(worst['managed_bytes'])}, "
                f"unmanaged {bytes_text(worst['unmanaged_bytes'])}"
            )
        names = ("peak_bytes", "limit_bytes", "peak_share", "told_bytes", "managed_bytes", "unmanaged_bytes")
        evidence = {"worker_count": len(full), **{name: worst[name] for name in names}}
        yield Conclusion(
            "memory", str(worst["worker"]), f"{reached}; {text} ({sample}).", certainty, None, advice, evidence
        )


_KINDS = {
    "unmanaged": (
        "what filled it is unmanaged: temporaries of tasks, libraries, a leak",
        "Give a task less to hold at once (smaller chunks, fewer threads); if it stays when tasks have ended, look for a "
        "leak or trim the allocator (MALLOC_TRIM_THRESHOLD_).",
    ),
    "managed": (
        "what filled it are results",
        "Keep fewer results at once: release futures, persist less, write results out early; `recup order` tells what ran "
        "ahead.",
    ),
    "both": (
        "results and unmanaged memory filled it together",
        "Use smaller chunks or more memory per worker.",
    ),
    "unseen": (
        "it rose between samples, so what filled it is not known: most often temporaries of the tasks that ran",
        "Look at the tasks that ran then (`recup deaths` where it died); use smaller chunks or fewer threads.",
    ),
}


def _filler(row: Document) -> str:
    told, managed, unmanaged = row["told_bytes"], row["managed_bytes"], row["unmanaged_bytes"]
    if not told or managed is None or unmanaged is None or told < SEEN_SHARE * row["peak_bytes"]:
        most = row["managed_most_bytes"]
        return "unmanaged" if most is not None and most <= (1 - DOMINATES_SHARE) * row["peak_bytes"] else "unseen"
    if unmanaged >= DOMINATES_SHARE * told:
        return "unmanaged"
    return "managed" if managed >= DOMINATES_SHARE * told else "both"


def _pauses(rows: list[Document]) -> Iterable[Conclusion]:
    paused = [row for row in rows if row["paused_s"]]
    if not paused:
        return
    longest = max(paused, key=lambda row: row["paused_s"])
    whole, count = sum(row["paused_s"] for row in paused), sum(row["pause_count"] for row in paused)
    idle = sum(row["paused_thread_s"] or 0.0 for row in paused)
    yield Conclusion(
        "memory", str(longest["worker"]),
        f"{plural(len(paused), 'worker')} paused for want of memory, {plural(count, 'time')}, {seconds_text(whole)} in all; "
        f"longest {longest['worker']}, {seconds_text(longest['paused_s'])}.",
        "certain", idle, "Lower what is held or spill earlier (distributed.worker.memory.target and .spill), or give more memory.",
        {"worker_count": len(paused), "pause_count": count, "paused_s": whole, "idle_thread_s": idle},
    )  # fmt: skip


def _spilling(rows: list[Document], spilled: list[Document]) -> Iterable[Conclusion]:
    out = sum(row["spilled_bytes"] or 0 for row in rows)
    if out < NOTABLE_SPILL_BYTES:
        return
    back = sum(row["unspilled_bytes"] or 0 for row in rows)
    times = [row["spill_s"] for row in rows if row["spill_s"] is not None]
    took = f"; it held event loops for {seconds_text(sum(times))}" if times else "; the time it took is not recorded"
    prefixes: dict[str, int] = {}
    for row in spilled:
        name = row["prefix"] or "(graph not recorded)"
        prefixes[name] = prefixes.get(name, 0) + (row["spilled_bytes"] or 0)
    most = max(prefixes, key=lambda name: prefixes[name], default=None)
    mostly = f", most of it ({bytes_text(prefixes[most])}) of prefix {most}" if most is not None else ""
    again = f" and {bytes_text(back)} read back" if back else ""
    yield Conclusion(
        "memory", most or str(rows[0]["worker"]),
        f"{bytes_text(out)} of results were written to disk for want of memory{again}{mostly}{took}.",
        "certain", sum(times) if times else None,
        "Hold fewer results at once or give workers more memory; a local SSD as local_directory makes it cheaper.",
        {"spilled_bytes": out, "unspilled_bytes": back, "spill_s": sum(times) if times else None},
    )  # fmt: skip


def _holders(held: list[Document], limit_bytes: int) -> Iterable[Conclusion]:
    if not held or (held[0]["run_peak_bytes"] or 0) < max(NOTABLE_HELD_SHARE * limit_bytes, 1):
        return
    first = held[0]
    yield Conclusion(
        "memory", first["prefix"] or "(graph not recorded)",
        f"When most results were held, {bytes_text(first['run_peak_bytes'])} at {first['run_peak_at_s']:.1f} s, "
        f"{first['held_at_peak_share']:.0%} of them were of prefix {first['prefix'] or '(graph not recorded)'}.",
        "certain", None, None,
        {name: first[name] for name in ("run_peak_bytes", "held_at_peak_bytes", "held_at_peak_share", "run_peak_at_s")},
    )  # fmt: skip


def _basis(rows: list[Document], *, is_unsampled: bool) -> str:
    if not rows:
        return "No worker is recorded."
    assumed = sum(not row["is_configured"] for row in rows)
    said = ["Samples once a second, with heartbeats: short peaks may be missed"]
    if is_unsampled:
        said = ["No sample of memory is recorded"]
    if assumed:
        said.append(f"thresholds of {plural(assumed, 'worker')} are not recorded, Dask's defaults are assumed")
    if any(row["limit_bytes"] is None for row in rows):
        said.append("workers without a limit have no thresholds")
    return "; ".join(said) + ". Results count once, by Dask's sizeof; scattered data is not in them."
