"""Traced reads and writes (DXT) of a Darshan log, as Arrow batches of `io_segments`.

A DXT region is a row of records, one per file, rank and module: a head of 104 bytes, then
the segments of its writes, then those of its reads.  Four layouts of a segment exist, and
the version in the header does not tell all of them apart; so the layout is found by which
of them makes a whole of the region.

Covers finding the layout, reading it at memory speed, and keeping what stands before
damage.  It does not cover the container (`darshan_log`).
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recup.ingest.darshan_log import Inflated, Region, text_of

REGION_CAP_BYTES = 384 << 20
"""More of one region than this is not read: its rows would need more than 1 GiB."""
RECORD_CAP = 500_000
BATCH_ROWS = 1 << 16
DXT_MODULES = {"DXT_POSIX": "POSIX", "DXT_MPIIO": "MPI-IO"}

_HEAD_BYTES = 104
_HOST_BYTES = 64
_PREFIX = np.frombuffer(b"pthread_id=", np.uint8)
_DIGITS = 20
_LATE_S, _LATE_RATIO = 60.0, 0.1
_SAMPLE = 64
_MOST_RATIO = 0.5
_TICK_S = 1e-9
"""No clock tells less; integers read as floating numbers are far below it."""

Arrays = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """How one segment stands in a log.

    Attributes
    ----------
    name : str
        As shown in `io_logs.segment_layout`: kind and bytes.
    """

    name: str
    size: int
    has_number: bool = False
    text_offset: int | None = None

    @property
    def has_thread(self) -> bool:
        """Whether segments name their thread."""
        return self.has_number or self.text_offset is not None

    def dtype(self, byte_order: str) -> np.dtype[np.void]:
        """Structured type of one segment."""
        fields: list[tuple[str, str, int]] = [("offset", "i8", 0), ("length", "i8", 8), ("start", "f8", 16)]
        fields.append(("end", "f8", 24))
        if self.has_number:
            fields.append(("thread", "i8", 32))
        formats = [byte_order + kind for _, kind, _ in fields]
        names, offsets = [name for name, _, _ in fields], [offset for _, _, offset in fields]
        if self.text_offset is not None:
            names, offsets, formats = [*names, "text"], [*offsets, self.text_offset], [*formats, "(64,)u1"]
        return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": self.size})


LAYOUTS = (
    Layout("plain-32", 32),
    Layout("thread-40", 40, has_number=True),
    Layout("text-96", 96, text_offset=32),
    Layout("thread-text-104", 104, has_number=True, text_offset=40),
)
"""Releases to 3.5.0; after them; two development branches of Darshan that say the version of the first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """The segments of one file and rank: where they stand in the region, and how many."""

    file_id: int
    rank: int
    host: str
    write_count: int
    read_count: int
    start: int


@dataclasses.dataclass(slots=True)
class Trace:
    """One DXT region: its records, and what is wrong with it.

    Attributes
    ----------
    segment_count : int
        Rows given out so far; the count of the region when all batches were taken.
    """

    region: Region
    layout: Layout
    records: list[Record]
    is_whole: bool
    damage: str | None
    segment_count: int = 0
    impossible_count: int = 0

    @property
    def hostname(self) -> str | None:
        """The first host a record names."""
        return next((record.host for record in self.records if record.host), None)

    def lost(self) -> list[str]:
        """What is missing, in words; complete when all batches were taken."""
        found = []
        if self.damage:
            found.append(f"{self.region.name}: {self.damage}; {self.segment_count} segments before it were kept")
        if self.impossible_count:
            found.append(
                f"{self.region.name}: {self.impossible_count} segments with impossible times or sizes left out"
            )
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """What the rest of the log says, which segments have to agree with."""

    byte_order: str
    names: Mapping[int, str]
    run_s: float | None


# ---------------------------------------------------------------- records and layout


def find_records(inflated: Inflated, region: Region, known: Known) -> Trace:
    """Return the records of a region in the layout that fits it best.

    A layout fits when its records fill the region to the last byte, name files the log
    knows, and hold times within the run.  Of a damaged region the layout that explains most
    of its bytes is taken, and the records it has before the damage.
    """
    best: tuple[tuple[bool, float], Trace] | None = None
    for layout in _by_likelihood(region):
        trace, end = _walk(inflated, region, layout, known)
        ratio = _credible_ratio(trace, inflated, known)
        fit = (trace.is_whole and ratio > _MOST_RATIO, ratio * end)
        if best is None or fit > best[0]:
            best = fit, trace
        if fit[0]:
            break
    if best is None:
        raise AssertionError("there are layouts")
    trace = best[1]
    if inflated.damage and not inflated.is_cut:
        _keep_credible(trace, inflated, known)
    return trace


def _keep_credible(trace: Trace, inflated: Inflated, known: Known) -> None:
    """Of bytes that are damaged somewhere, keep the records before the first that cannot be.

    Wrong bytes go on coming for a while before decompression notices.
    """
    dtype = trace.layout.dtype(known.byte_order)
    for index, record in enumerate(trace.records):
        stop = record.start + (record.write_count + record.read_count) * dtype.itemsize
        credible = not known.names or record.file_id in known.names
        for first in range(record.start, stop, BATCH_ROWS * dtype.itemsize):
            data = inflated.span(first, min(first + BATCH_ROWS * dtype.itemsize, stop))
            credible = credible and bool(_possible(np.frombuffer(data, dtype), known.run_s).all())
        if not credible:
            del trace.records[index:]
            break


def _by_likelihood(region: Region) -> list[Layout]:
    declared = LAYOUTS[1] if region.version >= (2 if region.name == "DXT_POSIX" else 3) else LAYOUTS[0]
    return [declared, *(LAYOUTS[i] for i in (2, 1, 3, 0) if LAYOUTS[i] is not declared)]


def _walk(inflated: Inflated, region: Region, layout: Layout, known: Known) -> tuple[Trace, int]:
    """Follow the records from head to head; returns them and where they end."""
    head = struct.Struct(f"{known.byte_order}Qqq64sqq")
    size, place, damage = inflated.size_bytes, 0, None
    records: list[Record] = []
    while place + _HEAD_BYTES <= size:
        file_id, rank, _, host, writes, reads = head.unpack(inflated.span(place, place + _HEAD_BYTES))
        begin, room = place + _HEAD_BYTES, (size - place - _HEAD_BYTES) // layout.size
        if (
            writes < 0
            or reads < 0
            or not _is_host(host)
            or (known.names and file_id not in known.names and _is_blank(host))
        ):
            damage = f"the record at byte {place} is damaged"
            break
        if writes + reads > room:
            if not inflated.is_cut:
                damage = f"the record at byte {place} claims {writes + reads} segments where {room} fit"
                break
            # Where only the end of a region is missing, the segments before it are good.
            kept = (min(writes, room), min(reads, max(room - writes, 0)))
            records.append(Record(file_id, rank, text_of(host), *kept, begin))
            damage = f"{inflated.damage}, inside a record of {writes + reads} segments"
            place = begin + sum(kept) * layout.size
            break
        records.append(Record(file_id, rank, text_of(host), writes, reads, begin))
        place = begin + (writes + reads) * layout.size
        if len(records) == RECORD_CAP:
            damage = f"only the first {RECORD_CAP} records were read"
            break
    if damage is None and place < size:
        damage = f"the last {size - place} bytes are no record"
    if inflated.damage and (damage is None or not inflated.is_cut):
        damage = inflated.damage
    return Trace(region, layout, records, damage is None, damage), place


def _is_host(host: bytes) -> bool:
    """Whether the bytes can be a host name; one cut to 64 bytes has no NUL, and a broken one may hold any text."""
    name = host.split(b"\0", 1)[0]
    return min(name, default=32) >= 32


def _is_blank(host: bytes) -> bool:
    return not host.split(b"\0", 1)[0]


def _credible_ratio(trace: Trace, inflated: Inflated, known: Known) -> float:
    """How many of a sample of segments, 0 to 1, hold what a segment can."""
    samples = []
    dtype, step = trace.layout.dtype(known.byte_order), max(len(trace.records) // _SAMPLE, 1)
    for record in trace.records[::step]:
        count = min(record.write_count + record.read_count, _SAMPLE)
        if count:
            data = inflated.span(record.start, record.start + count * trace.layout.size)
            samples.append(np.frombuffer(data, dtype))
    if not samples:
        return 1.0 if trace.is_whole else 0.0
    rows = np.concatenate(samples)
    good = _possible(rows, known.run_s)
    if trace.layout.text_offset is not None:
        text = rows["text"]
        good &= (text[:, 0] == 0) | ((text[:, 0] >= 32) & (text[:, 0] < 127))
    if trace.layout.has_number:
        good &= rows["thread"] >= 0
    return np.count_nonzero(good) / len(rows)


def _possible(rows: Arrays, run_s: float | None) -> npt.NDArray[np.bool_]:
    """Which segments can be: a time span within the run and a size that is not negative."""
    start, end = rows["start"], rows["end"]
    # Darshan's segment clock and its run time differ by some ms, and clocks get set.
    latest = 1e10 if run_s is None else max(run_s, 0.0) * (1 + _LATE_RATIO) + _LATE_S
    good: npt.NDArray[np.bool_] = (
        ((start >= _TICK_S) | (start == 0)) & (end >= start) & (end <= latest) & (rows["length"] >= 0)
    )
    return good


# ---------------------------------------------------------------- segments to rows


_ARROW_TYPES = {"i4": pa.int32(), "i8": pa.int64(), "f8": pa.float64()}
_CATEGORY = pa.dictionary(pa.int32(), pa.string())
SEGMENT_SCHEMA = pa.schema(
    [
        ("log", _CATEGORY),
        ("module", _CATEGORY),
        ("direction", _CATEGORY),
        ("file_id", pa.int64()),
        ("path", _CATEGORY),
        ("rank", pa.int64()),
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
        ("start_s", pa.float64()),
        ("stop_s", pa.float64()),
        ("thread", pa.int64()),
    ]
)
"""Columns of `io_segments` as they stand in the spool."""


class SegmentRows:
    """Turns the records of one trace into record batches that share their dictionaries."""

    def __init__(self, log: str, trace: Trace, known: Known):
        used = dict.fromkeys(known.names[r.file_id] for r in trace.records if r.file_id in known.names)
        codes = {path: code for code, path in enumerate(used)}
        self._known = known
        self._trace = trace
        self._log = _texts([log])
        self._module = _texts([DXT_MODULES[trace.region.name]])
        self._directions = _texts(["read", "write"])
        self._paths = _texts(list(used))
        records = trace.records
        self._file_ids = np.array([record.file_id for record in records], np.uint64).view(np.int64)
        self._ranks = np.array([record.rank for record in records], np.int64)
        self._codes = np.array([codes.get(known.names.get(record.file_id, ""), -1) for record in records], np.int32)

    def batches(self, inflated: Inflated) -> Iterator[pa.RecordBatch]:
        """Yield the segments in the order of the log, and let go of the region behind them."""
        dtype = self._trace.layout.dtype(self._known.byte_order)
        parts: list[Arrays] = []
        origins: list[tuple[int, int, int]] = []
        pending = 0
        for index, is_write, first, count in _runs(self._trace.records, dtype.itemsize):
            while count:
                taken = min(count, BATCH_ROWS - pending)
                parts.append(np.frombuffer(inflated.span(first, first + taken * dtype.itemsize), dtype))
                origins.append((index, is_write, taken))
                first, count, pending = first + taken * dtype.itemsize, count - taken, pending + taken
                if pending == BATCH_ROWS:
                    yield self._batch(parts, origins)
                    parts, origins, pending = [], [], 0
                    inflated.let_go(first)
        if parts:
            yield self._batch(parts, origins)

    def _batch(self, parts: list[Arrays], origins: list[tuple[int, int, int]]) -> pa.RecordBatch:
        trace = self._trace
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        index, is_write, counts = np.array(origins, np.int32).T
        index, is_write = np.repeat(index, counts), np.repeat(is_write, counts)
        good = _possible(rows, self._known.run_s)
        if not good.all():
            trace.impossible_count += int(len(rows) - np.count_nonzero(good))
            rows, index, is_write = rows[good], index[good], is_write[good]
        trace.segment_count += len(rows)
        zeros = _numbers(np.zeros(len(rows), np.int32))
        codes, offsets = self._codes[index], _int64s(rows["offset"])
        # Version 1 of DXT_MPIIO has no offsets: darshan-util makes them -1.
        has_offsets = trace.region.name != "DXT_MPIIO" or trace.region.version != 1
        no_offset = offsets < 0 if has_offsets else np.ones(len(rows), np.bool_)
        arrays = [
            pa.DictionaryArray.from_arrays(zeros, self._log),
            pa.DictionaryArray.from_arrays(zeros, self._module),
            pa.DictionaryArray.from_arrays(_numbers(is_write), self._directions),
            _numbers(self._file_ids[index]),
            pa.DictionaryArray.from_arrays(_numbers(codes, codes < 0), self._paths),
            _numbers(self._ranks[index]),
            _numbers(offsets, no_offset),
            _numbers(_int64s(rows["length"])),
            _numbers(np.ascontiguousarray(rows["start"], np.float64)),
            _numbers(np.ascontiguousarray(rows["end"], np.float64)),
            _threads(rows, trace.layout),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=SEGMENT_SCHEMA)


def _runs(records: list[Record], item_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (record, whether they are writes, first byte, count) of segments of one direction."""
    for index, record in enumerate(records):
        yield index, 1, record.start, record.write_count
        yield index, 0, record.start + record.write_count * item_bytes, record.read_count


def _int64s(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return values side by side in this machine's byte order."""
    return np.ascontiguousarray(values, np.int64)


# Made from buffers: `pa.array` imports pandas where it is installed, which takes longer than all the rest.


def _numbers(values: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Return numbers that lie side by side as an Arrow array, null where the mask says."""
    validity = None
    if mask is not None and mask.any():
        validity = pa.py_buffer(np.packbits(~mask, bitorder="little"))
    kind = _ARROW_TYPES[values.dtype.str[1:]]
    return pa.Array.from_buffers(kind, len(values), [validity, pa.py_buffer(values)])


def _texts(values: list[str]) -> pa.Array:
    parts = [value.encode("utf-8", "backslashreplace") for value in values]
    offsets = np.cumsum([0, *map(len, parts)]).astype(np.int32)
    return pa.Array.from_buffers(pa.string(), len(parts), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(parts))])


def _threads(rows: Arrays, layout: Layout) -> pa.Array:
    """Return the thread of each segment; no thread is called 0, so 0 says that there is none."""
    if layout.has_number:
        threads = _int64s(rows["thread"])
    elif layout.text_offset is not None:
        threads = _threads_in_text(rows["text"])
    else:
        return pa.nulls(len(rows), pa.int64())
    return _numbers(threads, threads <= 0)


def _threads_in_text(text: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return N of each text `pthread_id=N`; what follows the number is left-over memory, and anything else gives 0.

    Numbers of as many digits as the first row's are read eight digits at a time, the others
    digit by digit.
    """
    first = re.match(rb"pthread_id=(\d{8,16})\0", text[0].tobytes()) if len(text) else None
    if first is None:
        return _threads_by_digit(text)
    end = len(_PREFIX) + len(first[1])
    high, low = _word(text, end - 16), _word(text, end - 8)
    # What stands before the number in its first eight bytes counts as zeros.
    before = np.uint64((1 << 8 * (16 - len(first[1]))) - 1)
    high = (high & ~before) | (_ZEROS & before)
    usual = (_word(text, 0) == _HEAD_WORD) & (_word(text, 3) == _TAIL_WORD) & (text[:, end] == 0)
    usual &= _are_digits(high) & _are_digits(low)
    threads = (_number(high) * np.uint64(10**8) + _number(low)).view(np.int64)
    if not usual.all():
        threads[~usual] = _threads_by_digit(text[~usual])
    return threads


_ZEROS = np.uint64(0x3030303030303030)
_HEAD_WORD, _TAIL_WORD = np.frombuffer(b"pthread_read_id=", "<u8")


def _word(text: npt.NDArray[np.uint8], place: int) -> npt.NDArray[np.uint64]:
    """Return eight characters of each row as one number, the first of them its lowest byte."""
    return np.ascontiguousarray(text[:, place : place + 8].view("<u8")[:, 0], np.uint64)


def _are_digits(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    high_halves, six = np.uint64(0xF0F0F0F0F0F0F0F0), np.uint64(0x0606060606060606)
    digits: npt.NDArray[np.bool_] = ((words & high_halves) == _ZEROS) & (((words + six) & high_halves) == _ZEROS)
    return digits


def _number(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the number eight digits are: neighbours are joined to pairs, pairs to fours, fours to eight."""
    values = words - _ZEROS
    for bits, mask, factor in ((8, 0x00FF00FF00FF00FF, 10), (16, 0x0000FFFF0000FFFF, 100), (32, 0xFFFFFFFF, 10_000)):
        values = (values & np.uint64(mask)) * np.uint64(factor) + ((values >> np.uint64(bits)) & np.uint64(mask))
    return values


def _threads_by_digit(text: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    threads = np.zeros(len(text), np.int64)
    going = (text[:, : len(_PREFIX)] == _PREFIX).all(axis=1)
    for place in range(len(_PREFIX), len(_PREFIX) + _DIGITS):
        digit = text[:, place] - np.uint8(48)
        going &= digit <= 9
        if not going.any():
            break
        threads = np.where(going, threads * 10 + digit, threads)
    return threads
