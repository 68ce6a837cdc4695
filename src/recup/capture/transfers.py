"""Transfers between workers, each as a worker logs it.

Covers both directions, with the results moved.  It does not cover requests that failed,
which Dask logs nowhere, nor traffic that is no transfer of results.

Where `recup.capture.transfer_rows` was compiled, rows are made there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from recup.schema import Transfer, TransferKey
from recup.spool import Spool

try:
    from recup.capture import transfer_rows as compiled
except ImportError:  # built without a C compiler
    compiled = None  # type: ignore[assignment]

DIRECTIONS = ("incoming", "outgoing")


class TransferRows:
    """Puts the rows of transfers of one worker.

    Attributes
    ----------
    incoming_count, outgoing_count : int
        Transfers put so far.
    """

    def __init__(self, spool: Spool, worker: Any):
        self._worker = worker
        self._put, self._put_key = spool.extender("transfers"), spool.extender("transfer_keys")
        self._failed = spool.failed
        self._is_off = False
        self.incoming_count = self.outgoing_count = 0

    def put(self, direction: str, entry: dict[str, Any]) -> None:
        """Put the rows of an entry of Dask's log; never raises, and does nothing once it has failed a hundred times."""
        if self._is_off:
            return
        try:
            number, keys, peer = self.incoming_count + self.outgoing_count, entry["keys"], entry["who"]
            self._put(
                Transfer(
                    time.time_ns(), number, direction, None if peer is None else str(peer), entry["start"], entry["stop"],
                    entry["total"], entry.get("compressed"), len(keys), self._worker.scheduler_delay,
                )
            )  # fmt: skip
            if direction == "incoming":
                self.incoming_count += 1
            else:
                self.outgoing_count += 1
            for key, size in keys.items():
                self._put_key(TransferKey(number, key, -1 if size is None else size))
        except Exception as reason:  # noqa: BLE001 - the transfer has gone well
            self._is_off = self._failed("transfer", reason, "transfers")


class _TappedLog(deque[dict[str, Any]]):
    """One of Dask's bounded transfer logs, every entry of which is also recorded.

    Polling the log loses entries beyond its 1,000 between two polls and re-reads old ones;
    this sees each append once.
    """

    put: Callable[[str, dict[str, Any]], None]
    direction: str

    def append(self, entry: dict[str, Any]) -> None:
        super().append(entry)
        self.put(self.direction, entry)


def tap_transfers(spool: Spool, worker: Any) -> tuple[Any, Callable[[], None]]:
    """Record transfers in both directions from now on; returns the rows' counts and the way back."""
    is_compiled = compiled is not None and spool.slots("transfers") is not None
    rows = (compiled.TransferRows if is_compiled else TransferRows)(spool, worker)
    originals: dict[str, Any] = {}
    for direction in DIRECTIONS:
        name = f"transfer_{direction}_log"
        log = getattr(worker, name, None)
        if not isinstance(log, deque):
            spool.lose("not_captured", "transfers", f"this Dask has no worker.{name}")
            continue
        tapped = _TappedLog(log, maxlen=log.maxlen)
        tapped.put, tapped.direction = rows.put, direction
        originals[name] = log
        setattr(worker, name, tapped)

    def undo() -> None:
        for name, original in originals.items():
            current = getattr(worker, name)
            original.clear()
            original.extend(current)
            setattr(worker, name, original)

    return rows, undo
