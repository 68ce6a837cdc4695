"""Columns of numbers as few bytes: byte planes, differences, and gzip.

Part of `recup.report.timeline`; `assets/timeline.js` reads what is coded here.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from recup.analyse.rows import Document

Numbers = Any
"""An array of numbers."""

Column = tuple[bytes, dict[str, Any]]
"""Compressed bytes, and what the page must know to read them."""


class Packed:
    """Columns as they are added: their parts, and what the page must know to read them."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.columns: dict[str, Document] = {}
        self.size = 0

    def put(self, columns: dict[str, Column]) -> None:
        """Add columns by their names."""
        for name, (part, how) in columns.items():
            self.columns[name] = {"offset": self.size, "length": len(part), **how}
            self.parts.append(part)
            self.size += len(part)


def compressed(data: bytes) -> bytes:
    """Return bytes as a gzip stream without a moment in it."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def _planes(values: Numbers) -> tuple[bytes, int]:
    """Return unsigned numbers byte plane by byte plane, the lowest first, and how many planes there are."""
    top = int(values.max()) if len(values) else 0
    width = 1 if top < 1 << 8 else 2 if top < 1 << 16 else 3 if top < 1 << 24 else 4
    four = np.ascontiguousarray(values, np.uint32).view(np.uint8).reshape(-1, 4)
    return np.ascontiguousarray(four[:, :width].T).tobytes(), width


def plain(values: Numbers) -> Column:
    """Return unsigned numbers as a column."""
    data, width = _planes(values)
    return compressed(data), {"width": width, "coding": "plain"}


def _folded(values: Numbers) -> Numbers:
    """Return signed numbers as unsigned ones, small where they are near zero."""
    return ((values << 1) ^ (values >> 63)) & 0xFFFFFFFF


def smaller(values: Numbers) -> Column:
    """Return numbers coded plainly or as differences, whichever is smaller."""
    if len(values) and values.max() >= 1 << 31:
        return plain(values)  # a difference would need a bit more than there is
    data, width = _planes(_folded(np.diff(values.astype(np.int64), prepend=0)))
    as_is, differences = plain(values), (compressed(data), {"width": width, "coding": "delta"})
    return as_is if len(as_is[0]) <= len(differences[0]) else differences


def json_column(value: Any) -> Column:
    """Return plain values as a column."""
    return compressed(json.dumps(value).encode()), {"coding": "json"}


def bytes_column(rows: Numbers) -> Column:
    """Return rows of equally many bytes as a column."""
    return compressed(np.ascontiguousarray(rows).tobytes()), {"width": rows.shape[1], "coding": "bytes"}


def wide(gap: Numbers) -> Column:
    """Code gaps, their upper bits in planes of their own: a gap of more than 8 seconds in microseconds has such."""
    folded = (gap << 1) ^ (gap >> 63)
    low, high = folded & 0xFFFFFF, folded >> 24
    low_data, low_width = _planes(low)
    high_data, high_width = _planes(high)
    return compressed(low_data + high_data), {"width": low_width, "high_width": high_width, "coding": "folded"}


def time_columns(lane: Numbers, start: Numbers, duration: Numbers, *, tick_s: float, bits: int) -> dict[str, Column]:
    """Code each duration as mantissa and exponent, and each start as the gap since the bar before in its lane."""
    ticks = np.rint(duration / tick_s).astype(np.int64)
    length = np.where(ticks > 0, np.floor(np.log2(np.maximum(ticks, 1))).astype(np.int64) + 1, 0)
    exponent = np.maximum(length - bits, 0)
    mantissa = (ticks + ((1 << exponent) >> 1)) >> exponent  # rounded, which may take one bit more
    is_over = mantissa >> bits > 0
    mantissa, exponent = np.where(is_over, mantissa >> 1, mantissa), exponent + is_over
    begun = np.rint(start / tick_s).astype(np.int64)
    stop = begun + (mantissa << exponent)
    before = np.concatenate(([0], stop[:-1]))[: len(stop)]
    is_first = np.diff(lane, prepend=-1) != 0
    gap = begun - np.where(is_first, 0, before)
    return {
        "gap": wide(gap),
        "mantissa": plain(mantissa),
        "exponent": plain(exponent),
    }
