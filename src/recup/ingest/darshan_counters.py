"""Counters of a Darshan log's modules, one row of `io_files` per record.

Covers POSIX, STDIO, MPI-IO, H5F, H5D, LUSTRE and HEATMAP in every version of their records:
an older version is the newest without the counters that came later, and those are null.
It does not cover traced segments (`darshan_dxt`) nor the container (`darshan_log`).

Counters follow `include/darshan-*-log-format.h` of Darshan, older records the conversions
in `darshan-util/darshan-*-logutils.c`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from recup.ingest.darshan_log import Region
from recup.schema import IoFile

REGION_CAP_BYTES = 128 << 20
RECORD_CAP = 200_000
_BIN_CAP = 1 << 20
_MOST = 1 << 60


def _words(text: str) -> list[str]:
    return text.split()


_SIZES = ("0_100", "100_1K", "1K_10K", "10K_100K", "100K_1M", "1M_4M", "4M_10M", "10M_100M", "100M_1G", "1G_PLUS")
_TIMES = _words(
    "F_OPEN_START_TIMESTAMP F_READ_START_TIMESTAMP F_WRITE_START_TIMESTAMP F_CLOSE_START_TIMESTAMP"
    " F_OPEN_END_TIMESTAMP F_READ_END_TIMESTAMP F_WRITE_END_TIMESTAMP F_CLOSE_END_TIMESTAMP F_READ_TIME"
    " F_WRITE_TIME F_META_TIME F_MAX_READ_TIME F_MAX_WRITE_TIME F_FASTEST_RANK_TIME F_SLOWEST_RANK_TIME"
    " F_VARIANCE_RANK_TIME F_VARIANCE_RANK_BYTES"
)
_RANKS = _words("FASTEST_RANK FASTEST_RANK_BYTES SLOWEST_RANK SLOWEST_RANK_BYTES")
_ACCESSES = [f"ACCESS{i}_ACCESS" for i in range(1, 5)] + [f"ACCESS{i}_COUNT" for i in range(1, 5)]
_LATE_TIMES = ("F_CLOSE_START_TIMESTAMP", "F_OPEN_END_TIMESTAMP")


def _sizes(form: str) -> list[str]:
    return [form.format(direction, size) for direction in ("READ", "WRITE") for size in _SIZES]


_POSIX = [
    *_words("OPENS FILENOS DUPS READS WRITES SEEKS STATS MMAPS FSYNCS FDSYNCS RENAME_SOURCES RENAME_TARGETS"),
    *_words("RENAMED_FROM MODE BYTES_READ BYTES_WRITTEN MAX_BYTE_READ MAX_BYTE_WRITTEN CONSEC_READS CONSEC_WRITES"),
    *_words("SEQ_READS SEQ_WRITES RW_SWITCHES MEM_NOT_ALIGNED MEM_ALIGNMENT FILE_NOT_ALIGNED FILE_ALIGNMENT"),
    *_words("MAX_READ_TIME_SIZE MAX_WRITE_TIME_SIZE"),
    *_sizes("SIZE_{}_{}"),
    *(f"STRIDE{i}_STRIDE" for i in range(1, 5)),
    *(f"STRIDE{i}_COUNT" for i in range(1, 5)),
    *_ACCESSES,
    *_RANKS,
]
_STDIO = [
    *_words("OPENS FDOPENS READS WRITES SEEKS FLUSHES BYTES_WRITTEN BYTES_READ MAX_BYTE_READ MAX_BYTE_WRITTEN"),
    *_RANKS,
]
_STDIO_TIMES = _words(
    "F_META_TIME F_WRITE_TIME F_READ_TIME F_OPEN_START_TIMESTAMP F_CLOSE_START_TIMESTAMP F_WRITE_START_TIMESTAMP"
    " F_READ_START_TIMESTAMP F_OPEN_END_TIMESTAMP F_CLOSE_END_TIMESTAMP F_WRITE_END_TIMESTAMP F_READ_END_TIMESTAMP"
    " F_FASTEST_RANK_TIME F_SLOWEST_RANK_TIME F_VARIANCE_RANK_TIME F_VARIANCE_RANK_BYTES"
)
_MPIIO = [
    *_words("INDEP_OPENS COLL_OPENS INDEP_READS INDEP_WRITES COLL_READS COLL_WRITES SPLIT_READS SPLIT_WRITES"),
    *_words("NB_READS NB_WRITES SYNCS HINTS VIEWS MODE BYTES_READ BYTES_WRITTEN RW_SWITCHES"),
    *_words("MAX_READ_TIME_SIZE MAX_WRITE_TIME_SIZE"),
    *_sizes("SIZE_{}_AGG_{}"),
    *_ACCESSES,
    *_RANKS,
]
_H5F_TIMES = _words(
    "F_OPEN_START_TIMESTAMP F_CLOSE_START_TIMESTAMP F_OPEN_END_TIMESTAMP F_CLOSE_END_TIMESTAMP F_META_TIME"
)
_H5D = [
    *_words("OPENS READS WRITES FLUSHES BYTES_READ BYTES_WRITTEN RW_SWITCHES REGULAR_HYPERSLAB_SELECTS"),
    *_words("IRREGULAR_HYPERSLAB_SELECTS POINT_SELECTS MAX_READ_TIME_SIZE MAX_WRITE_TIME_SIZE"),
    *_sizes("SIZE_{}_AGG_{}"),
    *(
        f"ACCESS{i}_{each}"
        for i in range(1, 5)
        for each in ["ACCESS", *(f"{what}_D{d}" for what in ("LENGTH", "STRIDE") for d in range(1, 6))]
    ),
    *(f"ACCESS{i}_COUNT" for i in range(1, 5)),
    *_words("DATASPACE_NDIMS DATASPACE_NPOINTS DATATYPE_SIZE"),
    *(f"CHUNK_SIZE_D{d}" for d in range(1, 6)),
    *_words("USE_MPIIO_COLLECTIVE USE_DEPRECATED"),
    *_RANKS,
]


def _without(names: list[str], *absent: str) -> list[str]:
    return [name for name in names if name not in absent]


_POSIX_3 = _without(_POSIX, "FILENOS", "DUPS", "RENAME_SOURCES", "RENAME_TARGETS", "RENAMED_FROM")
_POSIX_1 = [*_POSIX_3[:6], "FOPENS", "FREADS", "FWRITES", "FSEEKS", *_POSIX_3[6:]]
_OLD_TIMES = _without(_TIMES, *_LATE_TIMES)
_RECORDS: dict[tuple[str, int], tuple[list[str], list[str]]] = {
    ("POSIX", 1): (_POSIX_1, _OLD_TIMES),
    ("POSIX", 2): (_POSIX_3, _OLD_TIMES),
    ("POSIX", 3): (_POSIX_3, _TIMES),
    ("POSIX", 4): (_POSIX, _TIMES),
    ("STDIO", 1): (_without(_STDIO, "FDOPENS"), _STDIO_TIMES),
    ("STDIO", 2): (_STDIO, _STDIO_TIMES),
    ("MPI-IO", 1): (_MPIIO, _OLD_TIMES),
    ("MPI-IO", 2): (_MPIIO, _OLD_TIMES),
    ("MPI-IO", 3): (_MPIIO, _TIMES),
    ("H5F", 1): (["OPENS"], ["F_OPEN_START_TIMESTAMP", "F_CLOSE_END_TIMESTAMP"]),
    ("H5F", 2): (["OPENS"], _H5F_TIMES[:4]),
    ("H5F", 3): (["OPENS", "FLUSHES", "USE_MPIIO"], _H5F_TIMES),
    ("H5D", 1): (_H5D, _TIMES),
    ("H5D", 2): (["FILE_REC_ID", *_H5D], _TIMES),
}
"""Integer and floating counters of one record after its id and rank, by module and version."""

_PREFIXES = {"MPI-IO": "MPIIO"}
_ADDED = {
    "open_count": ("OPENS", "INDEP_OPENS", "COLL_OPENS"),
    "read_count": ("READS", "INDEP_READS", "COLL_READS", "SPLIT_READS", "NB_READS"),
    "write_count": ("WRITES", "INDEP_WRITES", "COLL_WRITES", "SPLIT_WRITES", "NB_WRITES"),
    "read_bytes": ("BYTES_READ",),
    "written_bytes": ("BYTES_WRITTEN",),
}
_TIME_COLUMNS = {"read_s": "F_READ_TIME", "write_s": "F_WRITE_TIME", "meta_s": "F_META_TIME"}
_LAST = ("F_CLOSE_END_TIMESTAMP", "F_READ_END_TIMESTAMP", "F_WRITE_END_TIMESTAMP", "F_OPEN_END_TIMESTAMP")
COUNTED_MODULES = (*dict.fromkeys(module for module, _ in _RECORDS), "LUSTRE", "HEATMAP")
"""Modules whose records recup reads."""


@dataclasses.dataclass(frozen=True, slots=True)
class Places:
    """What the rest of the log says about paths.

    Attributes
    ----------
    mounts : tuple of (mount point, file system type)
        Longest mount point first.
    """

    log: str
    byte_order: str
    names: Mapping[int, str]
    mounts: tuple[tuple[str, str], ...]


@dataclasses.dataclass(slots=True)
class Counted:
    """What reading one module gave besides its rows.

    Attributes
    ----------
    operation_count : int
        Reads and writes in the rows.
    damage : str or None
        What is missing, in words.
    is_suspect : bool
        Whether the bytes are damaged somewhere: the first record that cannot be ends the reading.
    """

    is_suspect: bool = False
    record_count: int = 0
    operation_count: int = 0
    damage: str | None = None


def file_rows(region: Region, data: bytes, places: Places, counted: Counted) -> Iterator[IoFile]:
    """Yield one row per record of a module, in the order of the log; `counted` is complete when all were taken."""
    if region.name == "LUSTRE" and region.version in (1, 2):
        records = _lustre(region, data, places)
    elif region.name == "HEATMAP" and region.version == 1:
        records = _heatmap(data, places)
    elif (region.name, region.version) in _RECORDS:
        records = _fixed(region, data, places, counted)
    else:
        counted.damage = f"version {region.version} of its records is not known to recup"
        return
    while counted.record_count < RECORD_CAP:
        try:
            row = next(records, None)
        except (struct.error, _BadRecord) as reason:
            counted.damage = f"the record after the first {counted.record_count} is damaged ({reason})"
            return
        if row is None:
            return
        counted.record_count += 1
        counted.operation_count += (row.read_count or 0) + (row.write_count or 0)
        yield row
    counted.damage = f"only the first {RECORD_CAP} records were read"


class _BadRecord(Exception):
    """A record that cannot be."""


def _fixed(region: Region, data: bytes, places: Places, counted: Counted) -> Iterator[IoFile]:
    integers, floats = _RECORDS[region.name, region.version]
    order = places.byte_order
    dtype = np.dtype(
        [
            ("id", f"{order}u8"),
            ("rank", f"{order}i8"),
            ("integers", f"{order}i8", len(integers)),
            ("floats", f"{order}f8", len(floats)),
        ]
    )
    count, rest = divmod(len(data), dtype.itemsize)
    if rest and data[-rest:].strip(b"\0"):
        counted.damage = f"its last {rest} bytes are no whole record"
    rows, impossible = np.frombuffer(data, dtype, count), 0
    for first in range(0, count, 1024):
        for row in rows[first : first + 1024]:
            # Unused records at the end of a memory map are all zero.
            if not (row["id"] or row["rank"] or row["integers"].any()):
                continue
            made = _counters_row(region, places, (integers, floats), row)
            if _is_credible(made) and not (counted.is_suspect and places.names and made.path is None):
                yield made
            elif counted.is_suspect:
                return
            else:
                impossible += 1
                counted.damage = f"{impossible} records with impossible counters left out"


def _counters_row(region: Region, places: Places, names: tuple[list[str], list[str]], row: Any) -> IoFile:
    values: dict[str, int | float] = dict(zip(names[0], row["integers"].tolist(), strict=True))
    values |= zip(names[1], row["floats"].tolist(), strict=True)
    sums: dict[str, int | None] = {}
    for column, parts in _ADDED.items():
        found = [int(values[part]) for part in parts if part in values]
        # -1 stands for "not recorded" in Darshan; shared records of some versions have it.
        sums[column] = sum(each for each in found if each > 0) if found and max(found) >= 0 else None
    first = values.get("F_OPEN_START_TIMESTAMP", 0.0)
    last = [values[name] for name in _LAST if _is_told(values.get(name))]
    times = {column: _seconds(values.get(name)) for column, name in _TIME_COLUMNS.items()}
    prefix = _PREFIXES.get(region.name, region.name)
    shown = {f"{prefix}_{name}": _shown(value) for name, value in values.items() if value}
    return _row(
        region.name, places, int(row["id"]), int(row["rank"]), shown,
        **sums, **times, first_s=first if _is_told(first) else None, last_s=last[0] if last else None,
    )  # fmt: skip


def _is_credible(row: IoFile) -> bool:
    counts = (row.open_count, row.read_count, row.write_count, row.read_bytes, row.written_bytes)
    return row.rank >= -1 and all(each is None or each < _MOST for each in counts)


def _row(module: str, places: Places, record: int, rank: int, counters: Mapping[str, Any], **values: Any) -> IoFile:
    path = places.names.get(record)
    mount, kind = next((pair for pair in places.mounts if path is not None and _is_below(path, pair[0])), (None, None))
    empty = dict.fromkeys(IoFile._fields)
    return IoFile(**{
        **empty, "log": places.log, "module": module, "file_id": signed(record), "path": path, "rank": rank,
        "mount": mount, "filesystem": kind, "counters": json.dumps(counters), **values,
    })  # fmt: skip


def signed(record: int) -> int:
    """Return a record id, which Darshan takes as unsigned, as the signed number of the same bits."""
    return record - (1 << 64) if record >= 1 << 63 else record


def _is_below(path: str, point: str) -> bool:
    return path.startswith(point) and (point.endswith("/") or path[len(point) : len(point) + 1] in ("/", ""))


def _is_told(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _seconds(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value >= 0 else None


def _shown(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _lustre(region: Region, data: bytes, places: Places) -> Iterator[IoFile]:
    """Yield the stripes of each file; their counts are in `counters` alone."""
    order, place = places.byte_order, 0
    head = struct.Struct(f"{order}Q6q" if region.version == 1 else f"{order}Q3q")
    component = struct.Struct(f"{order}7q16s")
    while place + head.size <= len(data):
        record, rank, *numbers = head.unpack_from(data, place)
        place += head.size
        if not record and not rank and not any(numbers):
            return
        counters: dict[str, Any]
        if region.version == 1:
            names = ("OSTS", "MDTS", "STRIPE_OFFSET", "STRIPE_SIZE", "STRIPE_WIDTH")
            counters = {f"LUSTRE_{name}": value for name, value in zip(names, numbers, strict=True)}
            stripes = numbers[4]
        else:
            count, stripes = numbers
            _check_room(count, component.size, data, place)
            counters = {"LUSTRE_NUM_COMPS": count, "LUSTRE_NUM_STRIPES": stripes}
            parts = [component.unpack_from(data, place + i * component.size) for i in range(min(count, 64))]
            place += count * component.size
            counters["components"] = [
                {
                    "stripe_size": p[0], "stripe_count": p[1], "stripe_pattern": p[2], "flags": p[3],
                    "extent_start": p[4], "extent_end": p[5], "mirror_id": p[6],
                    "pool": p[7].split(b"\0")[0].decode("utf-8", "backslashreplace"),
                }
                for p in parts if p[0] != -1
            ]  # fmt: skip
        _check_room(stripes, 8, data, place)
        counters["osts"] = list(struct.unpack_from(f"{order}{min(stripes, 1024)}q", data, place))
        place += stripes * 8
        yield _row("LUSTRE", places, record, rank, counters)
    if data[place:].strip(b"\0"):
        raise _BadRecord("its end is missing")


def _heatmap(data: bytes, places: Places) -> Iterator[IoFile]:
    """Yield one row per heat map: bytes per bin of time, in `counters`."""
    order, place = places.byte_order, 0
    head = struct.Struct(f"{order}Qqdq16x")  # Darshan writes its two pointers to the bins, too
    while place + head.size <= len(data):
        record, rank, width, count = head.unpack_from(data, place)
        place += head.size
        if not record and not rank and not count:
            return
        _check_room(count, 16, data, place)
        bins: npt.NDArray[np.int64] = np.frombuffer(data, f"{order}i8", 2 * count, place)
        place += 16 * count
        written, read = bins[:count], bins[count:]
        counters = {
            "bin_s": _shown(width),
            "written_bytes": written[:_BIN_CAP].tolist(),
            "read_bytes": read[:_BIN_CAP].tolist(),
        }
        yield _row("HEATMAP", places, record, rank, counters)
    if data[place:].strip(b"\0"):
        raise _BadRecord("its end is missing")


def _check_room(count: int, item_bytes: int, data: bytes, place: int) -> None:
    if not 0 <= count <= (len(data) - place) // item_bytes:
        raise _BadRecord(f"it claims {count} parts of {item_bytes} bytes where {len(data) - place} bytes are left")
