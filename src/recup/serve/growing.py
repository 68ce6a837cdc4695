"""The servers of a growing run: one's spool as it grows, and what is known of a worker.

Covers which files of a spool are followed, the prefixes of its keys, and columns of batches
as numbers.  No link is followed: it could lead anywhere on this disk.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recup.serve.lanes import Lanes, Slots
from recup.serve.stream_tail import KeyTail, StreamTail

TABLES_READ = {
    "scheduler": ("workers", "tasks", "scheduler_transitions", "errors", "process_ends", "samples", "losses"),
    "worker": ("processes", "worker_transitions", "samples", "losses"),
    "nanny": ("process_ends", "losses"),
}
"""Tables read of a server by its role; of others the losses alone."""
_KEY_LIMIT = 200_000_000
"""A number of a key above it is damage, and memory for it is not taken."""


class GrowingWorker:
    """What is known of one worker."""

    def __init__(self, number: int, server_id: str, lanes: Lanes):
        self.number = number
        self.server_id = server_id
        self.facts: dict[str, Any] = dict.fromkeys((
            "address", "name", "threads", "memory_limit_bytes", "memory_bytes", "managed_bytes", "spilled_bytes",
            "occupancy_s", "processing", "lag_s", "ended",
        ))  # fmt: skip
        self.slots = Slots(number, lanes)
        self.is_captured = False
        self.gone_ns: int | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        name = self.facts["name"]
        return str(name if name is not None else self.facts["address"] or self.server_id)

    @property
    def order(self) -> tuple[int, str]:
        """Sorts worker 10 after worker 9."""
        return (len(self.name) if self.name.isdecimal() else 99, self.name)


class GrowingSpool:
    """One server's spool as it grows."""

    def __init__(self, path: Path, *, is_held: bool = False):
        self.path = path
        self.role, _, self.server_id = path.name.partition("-")
        self.keys = KeyTail(path / "keys.arrows", is_held=is_held)
        self.tails = {
            name: StreamTail(path / f"{name}.arrows", is_held=is_held)
            for name in TABLES_READ.get(self.role, ("losses",))
        }
        self._prefixes = np.full(1024, -1, dtype=np.int16)
        self._outcomes = np.zeros(1024, dtype=np.uint8)
        self.status: dict[str, Any] = {}
        self.is_there = True

    def read_status(self) -> None:
        """Read `status.json`; what was read before stays where it cannot be."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            descriptor = os.open(self.path / "status.json", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                content = json.loads(os.read(descriptor, 65_536).decode(errors="replace"))
            finally:
                os.close(descriptor)
            if isinstance(content, dict):
                self.status = content
                if isinstance(content.get("server_id"), str):
                    self.server_id = content["server_id"]

    @property
    def last_sign_ns(self) -> int | None:
        """When it last wrote its status, on its own clock."""
        time_ns = self.status.get("time_ns")
        return time_ns if isinstance(time_ns, int) else None

    def set_prefixes(self, ids: npt.NDArray[Any], codes: npt.NDArray[Any]) -> None:
        """Note the prefixes of keys; numbers that cannot be those of keys are left out."""
        real = (ids >= 0) & (ids < _KEY_LIMIT)
        ids, codes = ids[real], codes[real]
        if len(ids) and (top := int(ids.max())) >= len(self._prefixes):
            longer = max(len(self._prefixes), top + 1 - len(self._prefixes))
            self._prefixes = np.append(self._prefixes, np.full(longer, -1, dtype=np.int16))
            self._outcomes = np.append(self._outcomes, np.zeros(longer, dtype=np.uint8))
        self._prefixes[ids] = codes

    def prefixes_of(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the prefixes of keys, -1 where they are not known."""
        inside = (ids >= 0) & (ids < len(self._prefixes))
        return np.where(inside, self._prefixes[np.where(inside, ids, 0)], -1)

    def settle(self, ids: npt.NDArray[Any], outcomes: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
        """Note what came of keys that have a prefix, in order of time, 0 changing nothing.

        Returns keys of which something came, and of each what had come of it before and now.
        """
        ids, outcomes = ids[outcomes > 0][::-1], outcomes[outcomes > 0][::-1]
        ids, places = np.unique(ids, return_index=True)  # of each key the last
        before, after = self._outcomes[ids], outcomes[places]
        self._outcomes[ids] = after
        return ids, before, after


def integers(column: pa.Array) -> npt.NDArray[Any]:
    """Return a column of numbers; null is -1."""
    values: npt.NDArray[Any] = column.fill_null(-1).to_numpy(zero_copy_only=False)
    return values


def mapped(column: pa.Array, number: Callable[[Any], int]) -> npt.NDArray[Any]:
    """Return a number for each text of a category column; `number` is asked once per category, and for null if need be."""
    of_null = number(None) if column.null_count else -1
    numbers = np.array([*map(number, column.dictionary.to_pylist()), of_null], dtype=np.int64)
    values: npt.NDArray[Any] = numbers[codes_in(column)]
    return values


def codes_in(column: pa.Array) -> npt.NDArray[Any]:
    """Return the place of each value of a category column in its dictionary; null is one past its end."""
    codes: npt.NDArray[Any] = column.indices.fill_null(len(column.dictionary)).to_numpy(zero_copy_only=False)
    return codes
