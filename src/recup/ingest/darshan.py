"""Darshan logs as rows of a run: what each log is, its files, and its reads and writes.

Covers one log from its path to Arrow (`read_log`).  The parts are `darshan_log` (the
container) and `darshan_dxt` (segments).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from recup.ingest.darshan_dxt import (
    DXT_MODULES,
    REGION_CAP_BYTES,
    SEGMENT_SCHEMA,
    Known,
    SegmentRows,
    Trace,
    find_records,
)
from recup.ingest.darshan_log import BadDarshanLog, Header, Inflated, Job, inflate, read_header, read_job, read_names


@dataclasses.dataclass(slots=True)
class DarshanLog:
    """One Darshan log: what its header, job and names say; segments and counters are read when asked for.

    Attributes
    ----------
    name : str
        Name of the file.
    job : Job or None
        None where the job record is damaged.
    names : dict of int to str
        Path by Darshan's record id, unsigned as Darshan writes it.
    lost : list of str
        What of header, job and names is missing or damaged, in words.
    """

    path: Path
    name: str
    header: Header
    job: Job | None
    names: dict[int, str]
    lost: list[str]
    _traces: list[Trace] | None = None

    @property
    def run_s(self) -> float | None:
        """Darshan's run time; None when the process was killed or the job is damaged."""
        return self.job.run_s if self.job else None

    def traces(self) -> list[Trace]:
        """Return what is known of each DXT region once all its segments were read."""
        if self._traces is None:
            for _ in self.segment_batches():
                pass
        return self._traces or []

    def segments(self) -> pa.Table:
        """Return one row per traced read or write, with the columns of `io_segments`."""
        batches = list(self.segment_batches())
        return pa.Table.from_batches(batches, SEGMENT_SCHEMA)

    def segment_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows of `segments` in batches, one region of the log in memory at a time."""
        traces: list[Trace] = []
        known = Known(self.header.byte_order, self.names, self.run_s)
        for region in self.header.modules:
            if region.name in DXT_MODULES:
                inflated = self._inflated(region.name, REGION_CAP_BYTES)
                trace = find_records(inflated, region, known)
                traces.append(trace)
                yield from SegmentRows(self.name, trace, known).batches(inflated)
        self._traces = traces

    def _inflated(self, module: str, cap_bytes: int) -> Inflated:
        region = next(each for each in self.header.modules if each.name == module)
        with _opened(self.path) as file:
            return inflate(file, self.header, region, cap_bytes)


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as reason:
        raise BadDarshanLog(f"{path} cannot be read: {reason.strerror}. Mend that and try again.") from reason


def read_log(path: Path | str) -> DarshanLog:
    """Return a Darshan log, as far as it can be read.

    Raises
    ------
    BadDarshanLog
        It is no Darshan log, or not even its header can be read.
    """
    path = Path(path)
    with _opened(path) as file:
        header = read_header(file, path)
        job, job_loss = read_job(file, header)
        if job is None and header.compression == 2:
            raise BadDarshanLog(
                f"{path} says it is not compressed and holds no job record: its header is damaged. Copy it again."
            )
        names, name_loss = read_names(file, header)
    return DarshanLog(path, path.name, header, job, names, [loss for loss in (job_loss, name_loss) if loss])
