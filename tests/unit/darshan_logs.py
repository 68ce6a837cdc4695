"""Darshan logs made up: every format, byte order and layout of segments, whole or wrong.

Written from the format's description, apart from the reader, so that one checks the other.
`python -m tests.unit.darshan_logs PATH COUNT` writes a large log for benchmarks.
"""

import bz2
import dataclasses
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

OLD_INDEX = {"POSIX": 1, "MPI-IO": 2, "H5F": 3}
MODULES = {
    "3.00": {**OLD_INDEX, "LUSTRE": 6, "STDIO": 7, "DXT_POSIX": 8, "DXT_MPIIO": 9},
    "3.20": {**OLD_INDEX, "H5D": 4, "LUSTRE": 7, "STDIO": 8, "DXT_POSIX": 9, "DXT_MPIIO": 10, "HEATMAP": 14},
    "3.41": {**OLD_INDEX, "H5D": 4, "LUSTRE": 8, "STDIO": 9, "DXT_POSIX": 10, "DXT_MPIIO": 11, "HEATMAP": 15},
}
MODULES["3.10"] = MODULES["3.00"]
MODULES["3.21"] = MODULES["3.20"]
ZLIB, BZIP2, PLAIN = 0, 1, 2
START_S = 1_700_000_000


@dataclasses.dataclass
class File:
    """One file's traced operations: (offset, bytes, start, end, thread) of its writes and reads."""

    path: str
    writes: list = dataclasses.field(default_factory=list)
    reads: list = dataclasses.field(default_factory=list)
    rank: int = 0
    host: bytes = b"node1"
    record: int = 0

    def __post_init__(self):
        self.record = self.record or zlib.crc32(self.path.encode()) << 32 | 0x80000001


@dataclasses.dataclass
class Log:
    """What a log holds; `regions` are further modules: name to (version, bytes before compression)."""

    files: list = dataclasses.field(default_factory=list)
    layout: str = "thread-40"
    dxt_version: int | None = None
    dxt_module: str = "DXT_POSIX"
    version: str = "3.41"
    order: str = "<"
    compression: int = ZLIB
    partial: tuple = ()
    regions: dict = dataclasses.field(default_factory=dict)
    names: dict = dataclasses.field(default_factory=dict)
    exe: str = "python -m dask worker"
    mounts: tuple = (("ext4", "/"), ("lustre", "/scratch"))
    metadata: str = "lib_ver=3.5.0\nh=romio_no_indep_rw=true\n"
    start_s: int = START_S
    end_s: int = START_S + 10
    stream_bytes: int | None = None


def segment(layout, order, row):
    offset, length, start, end, thread = row
    data = struct.pack(f"{order}2q2d", offset, length, start, end)
    if layout.startswith("thread"):
        data += struct.pack(f"{order}Q", thread)
    if "text" in layout:
        # What follows the text is whatever the memory held.
        data += (b"pthread_id=%d\0" % thread + b"\xffleft-over memory 123" * 4)[:64] if thread else bytes(64)
    return data


def dxt_region(log):
    parts = []
    for file in log.files:
        head = struct.pack(f"{log.order}Q2q", file.record, file.rank, 0) + file.host.ljust(64, b"\0")[:64]
        parts.append(head + struct.pack(f"{log.order}2q", len(file.writes), len(file.reads)))
        parts += [segment(log.layout, log.order, row) for row in [*file.writes, *file.reads]]
    return b"".join(parts)


def job_region(log):
    times = [log.start_s, 250_000_000, log.end_s, 500_000_000 if log.end_s else 0]
    if log.version < "3.41":
        times = times[::2]
    job = struct.pack(f"{log.order}{3 + len(times)}q", 1000, *times, 1, 4711) + log.metadata.encode().ljust(1024, b"\0")
    table = "".join(f"\n{kind}\t{point}" for kind, point in log.mounts)
    data = job + (log.exe + table).encode() + b"\0"
    return data.ljust(4096, b"\0") if log.compression == PLAIN else data


def name_region(log):
    names = {file.record: file.path.encode() for file in log.files} | log.names
    if log.version == "3.00":
        return b"".join(struct.pack(f"{log.order}QI", record, len(name)) + name for record, name in names.items())
    return b"".join(struct.pack(f"{log.order}Q", record) + name + b"\0" for record, name in names.items())


def compressed(log, data):
    if log.compression == PLAIN:
        return data
    compress = bz2.compress if log.compression == BZIP2 else zlib.compress
    step = log.stream_bytes or len(data) or 1
    return b"".join(compress(data[i : i + step]) for i in range(0, len(data), step))


def log_bytes(log):
    """Return the log as Darshan would have written it."""
    wide = log.version >= "3.41"
    count, header_bytes = (64, 1328) if wide else (16, 360)
    index = MODULES[log.version]
    regions = dict(log.regions)
    if log.files:
        version = log.dxt_version
        if version is None:
            version = (2 if log.dxt_module == "DXT_POSIX" else 3) if log.layout == "thread-40" else 1
        regions[log.dxt_module] = (version, dxt_region(log))
    body = compressed(log, job_region(log))
    names = compressed(log, name_region(log))
    places, versions = [(0, 0)] * count, [0] * count
    name_place = (header_bytes + len(body), len(names))
    body += names
    for name, (version, data) in sorted(regions.items(), key=lambda item: index[item[0]]):
        packed = compressed(log, data)
        places[index[name]], versions[index[name]] = (header_bytes + len(body), len(packed)), version
        body += packed
    flags = sum(1 << index[name] for name in log.partial)
    head = struct.pack(f"{log.order}8sqB", log.version.encode(), 6567223, log.compression)
    head += struct.pack(f"{log.order}7xQ" if wide else f"{log.order}3xI", flags)
    numbers = [*name_place, *(each for place in places for each in place)]
    head += struct.pack(f"{log.order}{len(numbers)}Q{count}I", *numbers, *versions)
    assert len(head) == header_bytes
    return head + body


def write_log(path, log):
    path = Path(path)
    path.write_bytes(log_bytes(log))
    return path


def counters(order, record, integers, floats, rank=0):
    """Return one record of a module with counters."""
    numbers = struct.pack(f"{order}Qq{len(integers)}q", record, rank, *integers)
    return numbers + struct.pack(f"{order}{len(floats)}d", *floats)


def two_files(threads=True):
    """Return a small trace: two files, writes and reads of two threads."""
    one, two = (140_000_000_000_001, 140_000_000_000_002) if threads else (0, 0)
    return [
        File("/scratch/a.dat", writes=[(0, 100, 0.5, 0.6, one), (100, 50, 0.7, 0.8, two)], reads=[(0, 150, 1.0, 1.5, one)]),
        File("/home/b.txt", reads=[(0, 7, 2.0, 2.0, two)], record=12),
    ]  # fmt: skip


def large_log(path, count, layout="thread-40", file_count=8):
    """Write a log of `count` reads on some files, as vectors; returns its path."""
    field = {"plain-32": [], "thread-40": [("t", "<i8")], "text-96": [("t", "S64")]}[layout]
    dtype = np.dtype([("o", "<i8"), ("n", "<i8"), ("s", "<f8"), ("e", "<f8"), *field])
    random = np.random.default_rng(1)
    files, parts = [], []
    for number in range(file_count):
        each = count // file_count + (number < count % file_count)
        rows = np.zeros(each, dtype)
        rows["o"] = np.arange(each) * 4096
        rows["n"] = 4096
        # As four threads that do nothing but read from the page cache leave them.
        rows["s"] = 0.1 + np.cumsum(random.exponential(3e-6, each)).round(9)
        rows["e"] = rows["s"] + (4e-7 + random.exponential(1e-7, each)).round(9)
        if field:
            threads = 140_000_000_000_000 + random.integers(0, 4, each) * 8_388_608
            rows["t"] = threads if layout == "thread-40" else np.char.add(b"pthread_id=", threads.astype("S"))
        file = File(f"/scratch/part-{number}.dat")
        files.append(file)
        head = struct.pack("<Q2q", file.record, 0, 0) + b"node1".ljust(64, b"\0")
        parts.append(head + struct.pack("<2q", 0, each) + rows.tobytes())
    log = Log(names={file.record: file.path.encode() for file in files}, layout=layout)
    log.regions["DXT_POSIX"] = (2 if layout == "thread-40" else 1, b"".join(parts))
    return write_log(path, log)


if __name__ == "__main__":
    large_log(sys.argv[1], int(sys.argv[2]), *sys.argv[3:4])
