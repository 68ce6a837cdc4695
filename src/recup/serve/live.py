"""A run still growing, as one document: what is done, what runs now, and what is lost so far.

Covers reading what each server's spool has gained (`stream_tail`) and keeping aggregates of
it: counts, lanes of the last minute, values over time.  Rows are not kept: memory grows by
two bytes per task and by some kilobytes per worker.  Where a worker is not captured, what
the scheduler says of it stands alone.  Times are those of the hosts that saw them: a host
whose clock is off shows its tasks shifted.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recup.analyse.listing import run_state
from recup.errors import RecupError
from recup.rundir import read_manifest
from recup.serve.growing import GrowingSpool, GrowingWorker, codes_in, integers, mapped
from recup.serve.lanes import WINDOW_S, Lanes
from recup.serve.progress import OTHERS, OUTCOMES, PREFIX_LIMIT, SHOWN, STATES, Prefixes, Progress, TimeLines
from recup.serve.stream_tail import UNREADABLE, StreamTail

READ_S = 0.7
"""How long one reading may take; what a long run has more comes with the next."""
_SAME_S = 0.2
_STILL_S = 5.0
"""A server that has not closed and wrote no status for this long gives no sign of life."""
_HELD = 20
"""Spools whose files are kept open until the end, which sealing removes; more would need too many."""
_LISTED = 200
_LANES_SHOWN = 256
_ON_THREAD = ("executing", "long-running", "cancelled", "resumed")
_BEGINS = ("executing",)
_SCHEDULER_NAMES = (
    "occupancy_s", "event_loop_lag_s", "memory_process_bytes", "memory_managed_bytes", "memory_spilled_bytes",
    "processing_count",
)  # fmt: skip
_SCHEDULER_METRICS = {name: number for number, name in enumerate(_SCHEDULER_NAMES)}
_WORKER_FACTS = {
    "memory_process_bytes": "memory_bytes",
    "memory_managed_bytes": "managed_bytes",
    "memory_spilled_bytes": "spilled_bytes",
    "occupancy_s": "occupancy_s",
    "processing_count": "processing",
}
_OWN_METRICS = {"process_memory_bytes": 0, "event_loop_lag_s": 1}
_STATE_CODES = {name: code for code, name in enumerate(STATES)}


class LiveRun:
    """One run, read as it grows.  `document` may be asked from several threads."""

    def __init__(self, path: Path):
        self.path = path
        self.follow = secrets.token_hex(6)
        self._lock = threading.Lock()
        self._read_at = 0.0
        self._spools: dict[str, GrowingSpool] = {}
        self._workers: dict[str, GrowingWorker] = {}
        self._by_address: dict[str, GrowingWorker] = {}
        self._prefixes = Prefixes()
        self._lanes = Lanes()
        self._manifest = read_manifest(path)
        started = self._manifest.get("started_ns")
        self._started_ns = started if isinstance(started, int) else time.time_ns()
        self._lines = TimeLines(self._started_ns)
        self._progress = Progress(self._prefixes, self._lines)
        self._last_event_ns = self._started_ns
        self._losses: dict[tuple[str, str], list[Any]] = {}
        self._errors: list[dict[str, Any]] = []
        self._error_count = 0
        self._problems: list[str] = []
        self._is_behind = False
        self._readers: dict[tuple[str, str], Callable[[GrowingSpool, pa.RecordBatch], None]] = {
            ("scheduler", "workers"): self._take_workers,
            ("scheduler", "tasks"): self._take_tasks,
            ("scheduler", "scheduler_transitions"): self._take_transitions,
            ("scheduler", "errors"): self._take_errors,
            ("scheduler", "samples"): self._take_scheduler_samples,
            ("worker", "processes"): self._take_process,
            ("worker", "worker_transitions"): self._take_worker_transitions,
            ("worker", "samples"): self._take_worker_samples,
        }

    # ------------------------------------------------------------ reading

    def read(self) -> None:
        """Take in what was written since the last time."""
        with contextlib.suppress(RecupError):
            self._manifest = read_manifest(self.path)
        deadline = time.monotonic() + READ_S
        unread = [spool for spool in self._spools.values() if spool.is_there or self._is_behind]
        self._is_behind = False
        self._find_spools()
        # One that has just gone is read a last time, as far as its files are held open.
        for spool in list(self._spools.values()):
            if spool.is_there or spool in unread:
                spool.read_status()
                # Files are first measured: keys are written before the rows that hold them.
                sizes = {name: tail.size() for name, tail in spool.tails.items()}
                self._read_keys(spool)
                for name, tail in spool.tails.items():
                    self._read_tail(spool, name, tail, sizes[name], deadline)
        for worker in self._workers.values():  # now that their own rows have been read
            if worker.gone_ns is not None and not self._is_behind:
                worker.slots.stop_all(worker.gone_ns)
        self._lanes.forget_before(self._now_ns() - int((WINDOW_S + 5) * 1e9))
        self._read_at = time.monotonic()

    def _find_spools(self) -> None:
        there = set()
        with contextlib.suppress(OSError):
            if not (self.path / "spool").is_symlink():
                with os.scandir(self.path / "spool") as entries:
                    there = {each.name for each in entries if each.is_dir(follow_symlinks=False)}
        for name in sorted(there - set(self._spools)):
            is_held = name.startswith("scheduler-") or len(self._spools) < _HELD
            self._spools[name] = GrowingSpool(self.path / "spool" / name, is_held=is_held)
        for name, spool in self._spools.items():
            spool.is_there = name in there

    def _read_keys(self, spool: GrowingSpool) -> None:
        for first, texts in spool.keys.read():
            ids = np.arange(first, first + len(texts))
            spool.set_prefixes(ids, self._prefixes.codes(texts))

    def _read_tail(self, spool: GrowingSpool, name: str, tail: StreamTail, upto: int, deadline: float) -> None:
        take = self._readers.get((spool.role, name)) or getattr(self, f"_take_{name}", None)
        while take is not None and tail.offset < upto:
            if time.monotonic() > deadline:
                self._is_behind = True
                return
            batches = tail.read(upto)
            if not batches:
                return
            for batch in batches:
                try:
                    take(spool, batch.rows)
                except UNREADABLE as reason:
                    tail.problem = f"{name} of {spool.path.name} is not as expected: {type(reason).__name__}: {reason}"[
                        :300
                    ]
                    return

    # ------------------------------------------------------------ tables of the scheduler

    def _take_tasks(self, spool: GrowingSpool, batch: pa.RecordBatch) -> None:
        codes = mapped(batch.column("prefix"), lambda name: self._prefixes.code(name or OTHERS))
        spool.set_prefixes(integers(batch.column("key")), codes)
        self._progress.submitted(codes)

    def _take_transitions(self, spool: GrowingSpool, batch: pa.RecordBatch) -> None:
        time_ns = self._seen(batch)
        starts, finishes = (
            mapped(batch.column(name), lambda state: _STATE_CODES.get(state, -1)) for name in ("start", "finish")
        )
        ids = integers(batch.column("key"))
        codes = spool.prefixes_of(ids)
        known = codes >= 0
        settled, before, after = spool.settle(ids[known], OUTCOMES[finishes[known]])
        self._progress.settled(spool.prefixes_of(settled), before, after)
        self._progress.moved(time_ns, codes[known], starts[known], finishes[known])

    def _take_workers(self, spool: GrowingSpool, batch: pa.RecordBatch) -> None:
        self._seen(batch)
        for row in batch.select(
            ["time_ns", "action", "address", "worker_id", "name", "thread_count", "memory_limit_bytes"]
        ).to_pylist():
            if row["action"] == "remove":
                worker = self._by_address.get(row["address"])
                if worker is not None:
                    self._gone(worker, row["time_ns"])
                continue
            worker = self._worker(row["worker_id"] or row["address"])
            facts = {"address": row["address"], "name": row["name"], "threads": row["thread_count"]}
            worker.facts |= facts | {"memory_limit_bytes": row["memory_limit_bytes"] or None}
            worker.gone_ns = None
            self._by_address[row["address"]] = worker

    def _gone(self, worker: GrowingWorker, time_ns: int) -> None:
        worker.gone_ns = time_ns
        self._lines.put(("memory", worker.number), time_ns, 0.0)

    def _take_scheduler_samples(self, spool: GrowingSpool, batch: pa.RecordBatch) -> None:
        self._seen(batch)
        metrics = mapped(batch.column("metric"), lambda name: _SCHEDULER_METRICS.get(name, -1))
        kept = np.flatnonzero(metrics >= 0)
        subjects = batch.column("subject")
        names = [*subjects.dictionary.to_pylist(), None]
        for subject_code, time_ns, value, metric in zip(
            codes_in(subjects)[kept].tolist(),
            integers(batch.column("time_ns"))[kept].tolist(),
            integers(batch.column("value"))[kept].tolist(),
            metrics[kept].tolist(),
            strict=True,
        ):
            self._take_scheduler_sample(spool, _SCHEDULER_NAMES[metric], names[subject_code], time_ns, value)

    def _take_scheduler_sample(
        self, spool: GrowingSpool, metric: str, subject: str | None, time_ns: int, value: float
    ) -> None:
        if subject is None:
            if metric == "occupancy_s":
                self._lines.put(("occupancy", spool.path.name), time_ns, value)
            elif metric == "event_loop_lag_s":
                self._lag(spool, time_ns, value)
        elif (worker := self._by_address.get(subject)) is not None:
            name = _WORKER_FACTS.get(metric)
            if name is not None and not (name == "memory_bytes" and worker.is_captured):
                worker.facts[name] = value
                if name == "memory_bytes":
                    self._lines.put(("memory", worker.number), time_ns, value)

    def _take_errors(self, spool: GrowingSpool, batch: pa.RecordBatch) -> None:
        self._seen(batch)
        self._error_count += batch.num_rows
        newest = batch.slice(max(0, batch.num_rows - 5)).select(["time_ns", "key", "worker", "exception_text"])
        for row in newest.to_pylist():
            self._errors.append(
                {
                    "at_s": self._at_s(row["time_ns"]),
                    "key": spool.keys.text(row["key"]),
                    "worker": row["worker"],
                    "exception": row["exception_text"],
                }
            )
        del self._errors[:-5]

    # ------------------------------------------------------------ tables of workers and others

    def _take_process(self, spool: GrowingSpool, batch: pa.RecordBatch) -> None:
        worker = self._worker_of(spool)
        for row in batch.select(["address", "name", "thread_count", "memory_limit_bytes"]).to_pylist():
            given = {"address": row["address"], "name": row["name"], "threads": row["thread_count"]}
            given["memory_limit_bytes"] = row["memory_limit_bytes"]
            worker.facts |= {name: value for name, value in given.items() if value is not None}

    def _take_worker_transitions(self, spool: GrowingSpool, batch: pa.RecordBatch) -> None:
        worker, last_ns = self._worker_of(spool), self._seen(batch)
        starts = mapped(batch.column("start"), lambda state: int(state in _ON_THREAD))
        finishes = mapped(batch.column("finish"), lambda state: int(state in _ON_THREAD) + (state in _BEGINS))
        telling = np.flatnonzero((finishes == 2) | ((starts == 1) & (finishes == 0)))
        if not len(telling):
            return
        ids, times, attempts = (integers(batch.column(name))[telling] for name in ("key", "time_ns", "run_id"))
        failed = mapped(batch.column("finish"), lambda state: int(state == "error"))[telling]
        columns = (ids, times, attempts, spool.prefixes_of(ids), finishes[telling] == 2, failed)
        shown_ns = self._now_ns() - WINDOW_S * 1e9
        for key_id, time_ns, attempt, prefix, begins, is_failed in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            if begins:
                worker.slots.start(key_id, time_ns, prefix, attempt)
            else:
                shown = time_ns > shown_ns
                worker.slots.stop(key_id, attempt, time_ns, failed=bool(is_failed), shown=shown)
        self._lines.reach(min(last_ns, self._now_ns()))

    def _take_worker_samples(self, spool: GrowingSpool, batch: pa.RecordBatch) -> None:
        worker = self._worker_of(spool)
        self._seen(batch)
        metrics = mapped(batch.column("metric"), lambda name: _OWN_METRICS.get(name, -1))
        for place in np.flatnonzero(metrics >= 0).tolist():
            time_ns, value = batch.column("time_ns")[place].as_py(), batch.column("value")[place].as_py()
            if metrics[place] == 0:
                worker.facts["memory_bytes"] = value
                self._lines.put(("memory", worker.number), time_ns, value)
            else:
                worker.facts["lag_s"] = value
                self._lag(spool, time_ns, value)

    def _take_process_ends(self, spool: GrowingSpool, batch: pa.RecordBatch) -> None:
        for row in batch.select(["subject", "how", "exit_code", "signal", "reason"]).to_pylist():
            worker = self._workers.get(row["subject"]) or self._by_address.get(row["subject"])
            if worker is not None:
                code = row["signal"] if row["signal"] is not None else row["exit_code"]
                how = row["how"] if code is None else f"{row['how']}, {code}"
                if worker.facts["ended"] is None or code is not None:
                    worker.facts["ended"] = how

    def _take_losses(self, spool: GrowingSpool, batch: pa.RecordBatch) -> None:
        for row in batch.select(["kind", "table", "row_count", "detail"]).to_pylist():
            entry = self._losses.setdefault((row["kind"], row["table"] or ""), [0, False, "", ""])
            entry[0] += max(0, row["row_count"] or 0)
            entry[1] = entry[1] or row["row_count"] is None
            entry[2:] = [row["detail"], spool.path.name]

    def _lag(self, spool: GrowingSpool, time_ns: int, value: float) -> None:
        self._lines.put(("lag",), time_ns, value, peak=True)
        if spool.role == "scheduler":
            self._lines.put(("scheduler lag",), time_ns, value, peak=True)

    # ------------------------------------------------------------ who and when

    def _worker(self, server_id: str) -> GrowingWorker:
        worker = self._workers.get(server_id)
        if worker is None:
            worker = self._workers[server_id] = GrowingWorker(len(self._workers), server_id, self._lanes)
        return worker

    def _worker_of(self, spool: GrowingSpool) -> GrowingWorker:
        worker = self._worker(spool.server_id)
        worker.is_captured = True
        return worker

    def _seen(self, batch: pa.RecordBatch) -> int:
        """Return, and note, the latest time of a batch."""
        last = int(integers(batch.column("time_ns")).max()) if batch.num_rows else self._started_ns
        if last < time.time_ns() + 3600e9:
            self._last_event_ns = max(self._last_event_ns, last)
        return last

    def _at_s(self, time_ns: int) -> float:
        return round((time_ns - self._started_ns) / 1e9, 4)

    def _state(self) -> str:
        rows = [
            {"is_closed": spool.status.get("closed") is True, "last_sign_ns": spool.last_sign_ns}
            for spool in self._spools.values()
        ]
        return run_state(self._manifest, rows)

    def _last_sign_ns(self) -> int:
        signs = [spool.last_sign_ns for spool in self._spools.values()]
        return max([self._last_event_ns, *(sign for sign in signs if sign is not None)])

    def _now_ns(self) -> int:
        if self._state() == "running":
            return time.time_ns()
        ended = self._manifest.get("ended_ns")
        return ended if isinstance(ended, int) else self._last_sign_ns()

    # ------------------------------------------------------------ telling

    def document(self, *, since: int = -1, follow: str = "", prefix: int | None = None) -> dict[str, Any]:
        """Read what is new and return all a page shows.

        Parameters
        ----------
        since, follow : int, str
            Number of the newest bar the page has, and of whom; bars after it are sent.
        prefix : int, optional
            The prefix whose tasks are shown over time; all together by default.
        """
        with self._lock:
            if self._is_behind or time.monotonic() - self._read_at > _SAME_S:
                self.read()
            return self._document(since if follow == self.follow else -1, prefix)

    def _document(self, since: int, prefix: int | None) -> dict[str, Any]:
        state, now_ns = self._state(), self._now_ns()
        self._lines.reach(now_ns)
        tails = [tail for spool in self._spools.values() if spool.is_there for tail in spool.tails.values()]
        size = sum(tail.size() for tail in tails if tail.problem is None) if self._is_behind else 0
        workers = self._worker_rows()
        rows = self._progress.rows()
        return {
            "run_id": str(self._manifest.get("run_id") or self.path.name),
            "command": self._manifest.get("command"),
            "state": state,
            "is_running": state == "running",
            "started_ns": self._started_ns,
            "now_s": self._at_s(now_ns),
            "last_sign_ns": self._last_sign_ns(),
            "read_share": sum(tail.offset for tail in tails) / size if size else 1.0,
            "has_rows": any(tail.offset for tail in tails) or bool(rows),
            "is_spool_gone": bool(self._spools) and not any(spool.is_there for spool in self._spools.values()),
            "tasks": {name: sum(row[name] for row in rows) for name in ("total", *SHOWN)},
            "prefixes": sorted(rows, key=lambda row: -row["total"]),
            "prefix_names": self._prefixes.names,
            "prefix_limit": PREFIX_LIMIT,
            "over_time": self._over_time(prefix),
            "lanes": self._lanes_shown(since, now_ns),
            "workers": workers[:_LISTED],
            "worker_count": sum(worker.gone_ns is None for worker in self._workers.values()),
            "worker_left_off": max(0, len(workers) - _LISTED),
            "thread_count": sum(
                worker.facts["threads"] or 0 for worker in self._workers.values() if worker.gone_ns is None
            ),
            "silent": self._silent(now_ns) if state in ("running", "unknown") else [],
            "losses": self._loss_rows(),
            "error_count": self._error_count,
            "errors": self._errors[::-1],
            "problems": [
                problem
                for spool in self._spools.values()
                for problem in (spool.keys.stream.problem, *(tail.problem for tail in spool.tails.values()))
                if problem
            ][:20],
        }

    def _over_time(self, prefix: int | None) -> dict[str, Any]:
        lines = self._lines
        sums: dict[str, Any] = {}
        for name, kind in (("occupancy_s", "occupancy"), ("memory_bytes", "memory")):
            total = np.zeros(lines.count)
            for each in lines.names():
                if each[0] == kind and (line := lines.line(each)) is not None:
                    total += np.nan_to_num(line[:, 0])
            sums[name] = total.tolist()
        for name, kind in (("lag_s", "lag"), ("scheduler_lag_s", "scheduler lag")):
            line = lines.line((kind,))
            sums[name] = [] if line is None else [None if np.isnan(value) else value for value in line[:, 0].tolist()]
        return {"step_s": lines.step_s, "states": self._progress.over_time(prefix), **sums}

    def _lanes_shown(self, since: int, now_ns: int) -> dict[str, Any]:
        oldest_ns = now_ns - WINDOW_S * 1e9
        shown: list[dict[str, Any]] = []
        running: list[list[Any]] = []
        count = left_off = 0
        texts = {spool.server_id: spool.keys for spool in self._spools.values() if spool.role == "worker"}
        for worker in sorted(self._workers.values(), key=lambda each: each.order):
            lanes = max(worker.facts["threads"] or 0, worker.slots.lane_count)
            if worker.gone_ns is not None and worker.gone_ns < oldest_ns:
                continue
            if count + lanes > _LANES_SHOWN:
                left_off += 1
                continue
            count += lanes
            shown.append(
                {
                    "number": worker.number,
                    "name": worker.name,
                    "lanes": lanes,
                    "threads": worker.facts["threads"],
                    "is_captured": worker.is_captured,
                    "gone_s": None if worker.gone_ns is None else self._at_s(worker.gone_ns),
                }
            )
            for key_id, task in worker.slots.running.items():
                keys = texts.get(worker.server_id)
                running.append(
                    [
                        worker.number,
                        task.lane,
                        self._at_s(task.start_ns),
                        task.prefix,
                        None if keys is None else keys.text(key_id),
                    ]
                )
        return {
            "follow": self.follow,
            "last": self._lanes.last,
            "window_s": WINDOW_S,
            "workers": shown,
            "left_off": left_off,
            "running": running,
            "bars": self._lanes.since(since, self._started_ns),
        }

    def _worker_rows(self) -> list[dict[str, Any]]:
        rows = []
        for worker in sorted(self._workers.values(), key=lambda each: (each.gone_ns is not None, *each.order)):
            facts = worker.facts | {"name": worker.name, "executing": len(worker.slots.running)}
            rows.append(
                {
                    **facts,
                    "number": worker.number,
                    "is_captured": worker.is_captured,
                    "gone_s": None if worker.gone_ns is None else self._at_s(worker.gone_ns),
                }
            )
        return rows

    def _silent(self, now_ns: int) -> list[dict[str, Any]]:
        """Return servers that have not closed and give no sign of life: they hang, were killed, or their disk does."""
        gone = {worker.server_id for worker in self._workers.values() if worker.gone_ns is not None}
        late_ns = time.time_ns() - _STILL_S * 1e9
        rows = [
            {"role": spool.role, "server_id": spool.server_id, "last_sign_ns": spool.last_sign_ns}
            for spool in self._spools.values()
            if spool.is_there
            and spool.status.get("closed") is not True
            and spool.server_id not in gone
            and (spool.last_sign_ns or 0) < late_ns
        ]
        return rows[:20]

    def _loss_rows(self) -> list[dict[str, Any]]:
        rows = [
            {"kind": kind, "table": table or None, "row_count": None if unknown else count, "detail": detail, "at": at}
            for (kind, table), (count, unknown, detail, at) in self._losses.items()
        ]
        for spool in self._spools.values():
            unwritten = spool.status.get("unwritten_losses")
            for name, count in unwritten.items() if isinstance(unwritten, dict) else ():
                kind, _, table = str(name).partition(":")
                known = count if isinstance(count, int) and count >= 0 else None
                detail = "not written yet: the disk takes nothing"
                rows.append({"kind": kind, "table": table or None, "row_count": known, "detail": detail, "at": spool.path.name})  # fmt: skip
        return rows[:50]
