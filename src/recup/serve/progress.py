"""Tasks by state and prefix, and anything over time, in bounded memory.

Covers counts that follow from transitions, whatever their number, and time lines of a fixed
number of points: when a run outgrows them, two become one.  It reads no file.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
from dask.utils import key_split

STATES = ("waiting", "queued", "no-worker", "processing", "memory", "erred")
"""States of a task on the scheduler that are counted; the others are neither work nor result."""
PREFIX_LIMIT = 200
OTHERS = "(other prefixes)"
"""What prefixes beyond the limit are counted under: a run may have one per task."""
_POINTS = 240
_FIRST_STEP_S = 0.5


def prefix_of(key: str | None) -> str:
    """Return the prefix Dask gives a key, from the key as text."""
    if key is None:
        return OTHERS
    if key.startswith(("('", '("')):  # a tuple: Dask takes its first part
        end = key.find(key[1], 2)
        key = key[2:end] if end > 0 else key
    return str(key_split(key))


class Prefixes:
    """Numbers of prefixes, in the order they are met."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._codes: dict[str, int] = {}

    def code(self, name: str) -> int:
        """Return the number of a prefix."""
        found = self._codes.get(name)
        if found is None:
            if len(self.names) >= PREFIX_LIMIT:
                name = OTHERS
            found = self._codes.get(name)
            if found is None:
                found = self._codes[name] = len(self.names)
                self.names.append(name)
        return found

    def codes(self, keys: list[str | None]) -> npt.NDArray[np.int16]:
        """Return the number of the prefix of each key."""
        return np.fromiter((self.code(prefix_of(key)) for key in keys), dtype=np.int16, count=len(keys))


class TimeLines:
    """Values over the time of a run: at most 240 points each, whose distance doubles as the run grows."""

    def __init__(self, start_ns: int):
        self.start_ns = start_ns
        self.step_s = _FIRST_STEP_S
        self._lines: dict[Any, npt.NDArray[np.float64]] = {}
        self._peaks: set[Any] = set()
        self._last = 0

    def put(self, name: Any, time_ns: int, values: Any, *, peak: bool = False) -> None:
        """Set the values at a time; of those that fall on one point the last stays, or the highest (`peak`)."""
        place = self._place(time_ns)
        values = np.atleast_1d(np.asarray(values, dtype=np.float64))
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = np.full((_POINTS, len(values)), np.nan)
            if peak:
                self._peaks.add(name)
        line[place] = np.fmax(line[place], values) if peak else values

    def _place(self, time_ns: int) -> int:
        # A clock that is far ahead must not take all the room.
        seconds = max(0.0, (min(time_ns, time.time_ns() + 60e9) - self.start_ns) / 1e9)
        while seconds >= self.step_s * _POINTS:
            self._halve()
        place = int(seconds / self.step_s)
        self._last = max(self._last, place)
        return place

    def _halve(self) -> None:
        for name, line in self._lines.items():
            first, second = line[0::2], line[1::2]
            merged = np.fmax(first, second) if name in self._peaks else np.where(np.isnan(second), first, second)
            self._lines[name] = np.concatenate([merged, np.full_like(merged, np.nan)])
        self.step_s *= 2
        self._last //= 2

    def reach(self, time_ns: int) -> None:
        """Have the lines go on to a time."""
        self._place(time_ns)

    @property
    def count(self) -> int:
        """Points so far."""
        return self._last + 1

    def names(self) -> list[Any]:
        """Return what there are lines of."""
        return list(self._lines)

    def line(self, name: Any) -> npt.NDArray[np.float64] | None:
        """Return the values of each point so far: a point without one has that before it, peaks have none."""
        line = self._lines.get(name)
        if line is None:
            return None
        line = line[: self.count]
        if name in self._peaks:
            return line
        known = np.where(np.isnan(line[:, 0]), 0, np.arange(len(line)))
        return line[np.maximum.accumulate(known)]


UNSETTLED, DONE, FAILED = 1, 2, 3
"""What came of a task last, however long ago it was let go; 0: nothing yet."""
OUTCOMES = np.array([*(UNSETTLED,) * 4, DONE, FAILED, 0], dtype=np.uint8)
"""What reaching each of `STATES` makes of a task; the last: reaching none of them leaves it as it was."""
SHOWN = (*STATES, "released")
"""What tasks are counted as; `released`: done and let go, and `erred` those let go too."""


class Progress:
    """How many tasks of each prefix are in which state, over time."""

    def __init__(self, prefixes: Prefixes, lines: TimeLines):
        self._prefixes = prefixes
        self._lines = lines
        self._totals = np.zeros(PREFIX_LIMIT + 1, dtype=np.int64)
        self._counts = np.zeros((PREFIX_LIMIT + 1, len(STATES)), dtype=np.int64)
        self._outcomes = np.zeros((PREFIX_LIMIT + 1, 4), dtype=np.int64)

    def submitted(self, codes: npt.NDArray[Any]) -> None:
        """Count tasks of these prefixes as submitted."""
        self._totals += np.bincount(codes, minlength=len(self._totals))

    def moved(
        self, time_ns: int, codes: npt.NDArray[Any], starts: npt.NDArray[Any], finishes: npt.NDArray[Any]
    ) -> None:
        """Count transitions, given as numbers of prefixes and `STATES` (-1: none of them), up to a time."""
        self._counts -= _counted(codes, starts, self._counts.shape)
        self._counts += _counted(codes, finishes, self._counts.shape)
        for code in np.unique(codes).tolist():
            self._lines.put(("states", code), time_ns, self._shown(code))

    def settled(self, codes: npt.NDArray[Any], before: npt.NDArray[Any], after: npt.NDArray[Any]) -> None:
        """Count what came of tasks, each given once, with what had come of it before."""
        self._outcomes -= _counted(codes, before, self._outcomes.shape)
        self._outcomes += _counted(codes, after, self._outcomes.shape)

    def _shown(self, code: int) -> npt.NDArray[np.float64]:
        counts, outcomes = np.maximum(self._counts[code], 0), self._outcomes[code]
        shown = np.append(counts, max(0, outcomes[DONE] - counts[STATES.index("memory")]))
        shown[STATES.index("erred")] = max(shown[STATES.index("erred")], outcomes[FAILED])
        return shown.astype(np.float64)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per prefix that has tasks: how many in each state of `SHOWN`, and in all."""
        rows = []
        for code, name in enumerate(self._prefixes.names):
            shown = self._shown(code).astype(int).tolist()
            total = max(int(self._totals[code]), sum(shown))
            if total:
                rows.append({"code": code, "prefix": name, "total": total, **dict(zip(SHOWN, shown, strict=True))})
        return rows

    def over_time(self, code: int | None) -> dict[str, list[float]]:
        """Return a line for each of `SHOWN`, of one prefix or of all together."""
        total = np.zeros((self._lines.count, len(SHOWN)))
        for name in self._lines.names():
            if name[0] == "states" and code in (None, name[1]):
                line = self._lines.line(name)
                if line is not None:
                    total += np.nan_to_num(line)
        return dict(zip(SHOWN, total.T.tolist(), strict=True))


def _counted(codes: npt.NDArray[Any], states: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    known = states >= 0
    places = codes[known].astype(np.int64) * shape[1] + states[known]
    return np.bincount(places, minlength=shape[0] * shape[1]).reshape(shape)
