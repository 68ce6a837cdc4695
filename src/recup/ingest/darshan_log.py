"""The container of a Darshan log: header, regions, job, mounts and names.

A log is a header of fixed size, then compressed regions: the job, the table of names, and
one region per module.  Covers log formats 3.00 to 3.41 in both byte orders and any damage:
what cannot be read is said in words, and memory stays bounded whatever the log claims.
It does not cover what stands in the regions of modules (`darshan_dxt`, `darshan_counters`).

Layouts follow `include/darshan-log-format.h` and `darshan-util/darshan-logutils.c` of Darshan.
"""

from __future__ import annotations

import bz2
import dataclasses
import os
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from recup.errors import RecupError

MAGIC = 6567223
FORMATS = ("3.00", "3.10", "3.20", "3.21", "3.41")
MODULES = (
    "NULL", "POSIX", "MPI-IO", "H5F", "H5D", "PNETCDF_FILE", "PNETCDF_VAR", "BG/Q", "LUSTRE", "STDIO",
    "DXT_POSIX", "DXT_MPIIO", "MDHIM", "APXC", "APMPI", "HEATMAP", "DFS", "DAOS",
)  # fmt: skip
"""Names of modules by their index in the newest format."""

PIECE_BYTES = 1 << 22
NAMES_CAP_BYTES = 64 << 20
NAME_COUNT_CAP = 500_000
_JOB_CAP_BYTES = 4096
_INPUT_BYTES = 1 << 16
_FINE_INPUT_BYTES = 64
_METADATA_BYTES = 1024
_ZLIB, _BZIP2, _PLAIN = 0, 1, 2


class BadDarshanLog(RecupError):
    """A file is no Darshan log that recup can read."""


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """One region of a log as the header describes it, kept inside the file.

    Attributes
    ----------
    claimed_bytes : int
        Length the header claims; `length` is what of it can be there.
    """

    name: str
    offset: int
    length: int
    claimed_bytes: int
    version: int = 0
    is_partial: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What the uncompressed start of a log says.

    Attributes
    ----------
    byte_order : str
        "<" or ">", as in `struct`.
    modules : tuple of Region
        Modules that have a region, in the order of the newest format.
    """

    version: str
    byte_order: str
    compression: int
    size_bytes: int
    file_bytes: int
    names: Region
    modules: tuple[Region, ...]
    job_end: int

    @property
    def number(self) -> int:
        """The format as a number: 341 for 3.41."""
        return int(self.version.replace(".", ""))


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """The job record: what ran, when, and what was mounted.

    Attributes
    ----------
    end_s : float or None
        None in the memory map of a process that was killed.
    mounts : tuple of (mount point, file system type)
        Longest mount point first.
    """

    uid: int
    start_s: float
    end_s: float | None
    run_s: float | None
    process_count: int
    job_id: int
    metadata: dict[str, str]
    exe: str
    mounts: tuple[tuple[str, str], ...]


# ---------------------------------------------------------------- header


def read_header(file: BinaryIO, path: Path) -> Header:
    """Return the header of an open log.

    Raises
    ------
    BadDarshanLog
        It is no Darshan log, one of an unknown format, or too short.
    """
    file_bytes = os.fstat(file.fileno()).st_size
    start = file.read(16)
    if not file_bytes:
        raise BadDarshanLog(
            f"{path} is empty: Darshan was still writing it, or could not. Nothing can be read from it."
        )
    version = start[:8].split(b"\0")[0].decode("ascii", "replace")
    if len(start) < 16 or not re.fullmatch(r"\d\.\d\d", version):
        raise BadDarshanLog(f"{path} is not a Darshan log: it does not begin with a version. Give Darshan's own files.")
    if version not in FORMATS:
        raise BadDarshanLog(
            f"{path} has Darshan log format {version}; recup reads {', '.join(FORMATS)}. "
            "Convert it with darshan-convert, or upgrade recup."
        )
    order = next((each for each in "<>" if struct.unpack_from(f"{each}q", start, 8)[0] == MAGIC), None)
    if order is None:
        raise BadDarshanLog(f"{path} is not a Darshan log: its magic number is wrong. Copy it again from its source.")
    wide = int(version.replace(".", "")) >= 341
    count = 64 if wide else 16
    layout = struct.Struct(f"{order}B7x{'Q' if wide else ''}2Q{2 * count}Q{count}I" if wide else f"{order}B3xI2Q32Q16I")
    size = 16 + layout.size
    body = file.read(layout.size)
    if len(body) < layout.size:
        raise BadDarshanLog(
            f"{path} is cut inside its header ({file_bytes} of at least {size} bytes). Copy it again from its source."
        )
    compression, partial, *numbers = layout.unpack(body)
    if compression not in (_ZLIB, _BZIP2, _PLAIN):
        raise BadDarshanLog(
            f"{path} is compressed in an unknown way ({compression}): its header is damaged. Copy it again."
        )
    claims = [("names", *numbers[0:2], 0, False)]
    for index in range(count):
        name = _module_name(index, version)
        offset, length = numbers[2 + 2 * index : 4 + 2 * index]
        if length or offset:
            claims.append((name, offset, length, numbers[2 + 2 * count + index], bool(partial >> index & 1)))
    starts = sorted({claim[1] for claim in claims if size <= claim[1] < file_bytes} | {file_bytes})
    regions = [_region(claim, size, starts) for claim in claims]
    return Header(
        version, order, compression, size, file_bytes, regions[0],
        tuple(each for each in regions[1:] if each.claimed_bytes), starts[0],
    )  # fmt: skip


def _module_name(index: int, version: str) -> str:
    # H5D came with format 3.20 at index 4, PNETCDF_VAR with 3.41 at index 6: older logs lack these.
    if version < "3.20" and index >= 4:
        index += 1
    if version < "3.41" and index >= 6:
        index += 1
    return MODULES[index] if index < len(MODULES) else f"MODULE_{index}"


def _region(claim: tuple[str, int, int, int, bool], header_bytes: int, starts: list[int]) -> Region:
    name, offset, claimed, version, is_partial = claim
    inside = header_bytes <= offset < starts[-1]
    end = next((start for start in starts if start > offset), starts[-1])
    length = min(claimed, end - offset) if inside else 0
    return Region(name, offset, length, claimed, version, is_partial)


# ---------------------------------------------------------------- regions


@dataclasses.dataclass(slots=True)
class Inflated:
    """A region's bytes in pieces that can be let go from the front.

    Attributes
    ----------
    damage : str or None
        Why nothing follows, where the region did not end in order.
    is_cut : bool
        Whether the bytes that are here can be trusted and only the rest is missing.
    """

    pieces: list[bytes]
    size_bytes: int
    damage: str | None = None
    is_cut: bool = False

    def span(self, start: int, stop: int) -> bytes | memoryview:
        """Return the bytes from start to stop, which have not been let go."""
        first, last = start // PIECE_BYTES, (stop - 1) // PIECE_BYTES
        if first == last:
            begin = first * PIECE_BYTES
            return memoryview(self.pieces[first])[start - begin : stop - begin]
        whole = b"".join(self.pieces[first : last + 1])
        return memoryview(whole)[start - first * PIECE_BYTES : stop - first * PIECE_BYTES]

    def let_go(self, stop: int) -> None:
        """Give back the memory of whole pieces before `stop`."""
        for index in range(stop // PIECE_BYTES - 1, -1, -1):
            if not self.pieces[index]:
                break
            self.pieces[index] = b""

    def whole(self) -> bytes:
        """Return all bytes."""
        return b"".join(self.pieces)


class _Pieces:
    """Collects output in pieces of one size, up to a cap."""

    def __init__(self, cap_bytes: int):
        self.done: list[bytes] = []
        self._open = bytearray()
        self._cap = cap_bytes
        self.size_bytes = 0

    @property
    def room(self) -> int:
        """Bytes that may still come at once: to the end of a piece, and one past the cap."""
        return min(PIECE_BYTES - len(self._open), self._cap + 1 - self.size_bytes)

    @property
    def is_over(self) -> bool:
        """Whether there is more than the cap."""
        return self.size_bytes > self._cap

    def add(self, data: bytes) -> None:
        """Append bytes, at most `room` of them."""
        self._open += data
        self.size_bytes += len(data)
        if len(self._open) == PIECE_BYTES:
            self.done.append(bytes(self._open))
            self._open = bytearray()

    def inflated(self, damage: str | None = None, *, is_cut: bool = False) -> Inflated:
        """Return what was collected, no more than the cap."""
        if self._open:
            self.done.append(bytes(self._open))
        size = self.size_bytes
        if size > self._cap and self.done:
            self.done[-1] = self.done[-1][: len(self.done[-1]) - (size - self._cap)]
            size = self._cap
        return Inflated(self.done, size, damage, is_cut)


def inflate(file: BinaryIO, header: Header, region: Region, cap_bytes: int, *, one_stream: bool = False) -> Inflated:
    """Return a region decompressed, as far as it goes and at most `cap_bytes` of it.

    A region of an MPI program is several streams one after the other.
    """
    if not region.length:
        return Inflated([], 0, "its place in the header lies outside the file")
    file.seek(region.offset)
    output = _Pieces(cap_bytes)
    left = region.length
    try:
        if header.compression == _PLAIN:
            while left and not output.is_over and (data := file.read(min(left, output.room))):
                left -= len(data)
                output.add(data)
        else:
            left = _decompress(file, region.length, header.compression, output, one_stream)
    except (zlib.error, OSError, ValueError) as reason:
        if isinstance(reason, OSError) and reason.errno is not None:
            raise BadDarshanLog(f"{file.name} cannot be read: {reason.strerror}. Mend that and try again.") from reason
        return output.inflated(f"its bytes are damaged ({str(reason).splitlines()[0]})")
    if output.is_over:
        return output.inflated(f"it holds more than the {cap_bytes >> 20} MiB recup reads of it", is_cut=True)
    if left < 0:
        return output.inflated("it is cut", is_cut=True)
    if left == 0 and region.length < region.claimed_bytes and not one_stream:
        return output.inflated("the header claims more bytes than there are", is_cut=True)
    return output.inflated()


def _decompress(file: BinaryIO, length: int, compression: int, output: _Pieces, one_stream: bool) -> int:
    """Decompress the next `length` bytes; returns how many were not needed, -1 when a stream did not end."""
    stream = _Stream(compression)
    data = b""
    while not output.is_over:
        if stream.has_ended:
            if one_stream:
                return length
            stream, begun = _Stream(compression), bool(data)
            if not begun and not length:
                return 0
        if not data:
            data = file.read(min(_INPUT_BYTES, length))
            length -= len(data)
            if not data and not stream.holds_more:
                return -1
        data = stream.feed(data, output)
    return length


class _Stream:
    """One compressed stream of either kind, fed piecewise.

    zlib reports damage without the good output that came before it, and has then lost it: so
    each input is tried on the stream, and after damage again, finely, on a copy made before.
    """

    def __init__(self, compression: int):
        self._zlib = zlib.decompressobj() if compression == _ZLIB else None
        self._bzip2 = bz2.BZ2Decompressor() if compression == _BZIP2 else None

    @property
    def has_ended(self) -> bool:
        """Whether the stream ended in order."""
        return self._zlib.eof if self._zlib else self._bzip2.eof if self._bzip2 else True

    @property
    def holds_more(self) -> bool:
        """Whether output may come without further input."""
        return self._bzip2 is not None and not self._bzip2.needs_input

    def feed(self, data: bytes, output: _Pieces) -> bytes:
        """Put output of the data where there is room; returns the input left."""
        if self._zlib is None:
            return self._feed_bzip2(data, output)
        before = self._zlib.copy()
        try:
            output.add(self._zlib.decompress(data, output.room))
        except zlib.error:
            for place in range(0, len(data), _FINE_INPUT_BYTES):
                fine = data[place : place + _FINE_INPUT_BYTES]
                while fine and output.room > 0 and not before.eof:
                    output.add(before.decompress(fine, output.room))
                    fine = before.unconsumed_tail
            raise
        return self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail

    def _feed_bzip2(self, data: bytes, output: _Pieces) -> bytes:
        if self._bzip2 is None:
            raise ValueError("no stream")
        output.add(self._bzip2.decompress(data, output.room))
        return self._bzip2.unused_data if self._bzip2.eof else b""


# ---------------------------------------------------------------- job and names


def read_job(file: BinaryIO, header: Header) -> tuple[Job | None, str | None]:
    """Return the job record, None where it is damaged, and what is wrong with it."""
    region = Region("job", header.size_bytes, header.job_end - header.size_bytes, 0)
    inflated = inflate(file, header, region, _JOB_CAP_BYTES, one_stream=True)
    data = inflated.whole()
    precise = header.number >= 341
    layout = struct.Struct(f"{header.byte_order}{7 if precise else 5}q")
    if len(data) < layout.size + _METADATA_BYTES:
        return None, f"the job record cannot be read: {inflated.damage or 'it is too short'}"
    if precise:
        uid, start, start_ns, end, end_ns, process_count, job_id = layout.unpack_from(data)
    else:
        (uid, start, end, process_count, job_id), start_ns, end_ns = layout.unpack_from(data), 0, 0
    start_s, end_s = start + start_ns / 1e9, end + end_ns / 1e9
    # Before 3.41 times are whole seconds and darshan-util counts the last one in.
    run_s = end_s - start_s + (0 if precise else 1) if end else None
    metadata = _text(data[layout.size : layout.size + _METADATA_BYTES]).splitlines()
    exe, _, mounts = _text(data[layout.size + _METADATA_BYTES :]).partition("\n")
    pairs = [(point, kind) for kind, _, point in (line.partition("\t") for line in mounts.splitlines()) if point]
    job = Job(
        uid, start_s, end_s if end else None, run_s, process_count, job_id,
        dict(line.partition("=")[::2] for line in metadata if "=" in line),
        exe, tuple(sorted(pairs, key=lambda pair: -len(pair[0]))),
    )  # fmt: skip
    return job, f"the job record is damaged: {inflated.damage}" if inflated.damage and not inflated.is_cut else None


def _text(data: bytes | memoryview) -> str:
    """Return text up to the first NUL; bytes that are no UTF-8 are shown as escapes."""
    return bytes(data).split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


text_of = _text


def read_names(file: BinaryIO, header: Header) -> tuple[dict[int, str], str | None]:
    """Return record id to name, as far as the table goes, and what is wrong with it."""
    if not header.names.claimed_bytes:
        return {}, None
    inflated = inflate(file, header, header.names, NAMES_CAP_BYTES)
    data = inflated.whole()
    read = _counted_names if header.version == "3.00" else _ended_names
    names, end = read(data, header.byte_order)
    if inflated.damage:
        return names, f"the table of names is damaged after {len(names)} names: {inflated.damage}"
    if len(names) >= NAME_COUNT_CAP:
        return names, f"only the first {NAME_COUNT_CAP} names were read"
    if data[end:].strip(b"\0"):
        return names, f"the table of names ends within a name, after {len(names)}"
    return names, None


def _ended_names(data: bytes, order: str) -> tuple[dict[int, str], int]:
    names: dict[int, str] = {}
    number, place = struct.Struct(f"{order}Q"), 0
    while place + 8 < len(data) and len(names) < NAME_COUNT_CAP:
        end = data.find(b"\0", place + 8)
        if end < 0:
            break
        (record,) = number.unpack_from(data, place)
        if not record and end == place + 8:  # the unused rest of a memory map
            break
        names[record] = names.get(record) or _text(data[place + 8 : end])
        place = end + 1
    return names, place


def _counted_names(data: bytes, order: str) -> tuple[dict[int, str], int]:
    """Read the form of format 3.00, which gives each name's length."""
    names: dict[int, str] = {}
    head, place = struct.Struct(f"{order}QI"), 0
    while place + head.size <= len(data) and len(names) < NAME_COUNT_CAP:
        record, length = head.unpack_from(data, place)
        end = place + head.size + length
        if end > len(data) or not record:
            break
        names[record] = names.get(record) or _text(data[place + head.size : end])
        place = end
    return names, place
