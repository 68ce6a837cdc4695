"""Darshan logs as rows of a run: what each log is, its files, and its reads and writes.

Covers one log from its path to Arrow (`read_log`), and logs into the spool of a run
(`ingest_darshan`).  The parts are `darshan_log` (the container), `darshan_dxt` (segments)
and `darshan_counters` (files).  It does not cover which task did what (`recup.fuse`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from recup.ingest import darshan_counters, darshan_dxt
from recup.ingest.darshan_counters import COUNTED_MODULES, Counted, Places, file_rows
from recup.ingest.darshan_dxt import DXT_MODULES, SEGMENT_SCHEMA, Known, SegmentRows, Trace, find_records
from recup.ingest.darshan_log import (
    BadDarshanLog,
    Header,
    Inflated,
    Job,
    Region,
    inflate,
    read_header,
    read_job,
    read_names,
)
from recup.ingest.spooling import SpoolFiles, read_spooled, row_batches, spool_schema, unwritable
from recup.rundir import find_run, read_manifest
from recup.schema import IoFile, IoLog, Loss

_PLAIN = 2
_PID = re.compile(r"_id\d+-(?P<pid>\d+)_")
_BEACON = re.compile(r"/foreign/darshan/beacon-(?P<pid>\d+)-[^/]+$")
_SECRETS = re.compile(
    r"(?i)(?P<before>://|\b[\w-]*(?:passw(?:or)?d|secret|token|credential|auth|api-?key)[\w-]*[= ]\s*)"
    r"(?P<value>[^\s/@]+@|(?<!://)[^\s]+)"
)


@dataclasses.dataclass(slots=True)
class DarshanLog:
    """One Darshan log: what its header, job and names say; segments and counters are read when asked for.

    Attributes
    ----------
    name : str
        What the log is called in the rows.
    job : Job or None
        None where the job record is damaged.
    names : dict of int to str
        Path by Darshan's record id, unsigned as Darshan writes it.
    lost : list of str
        What of header, job and names is missing or damaged, in words; `summary` has the whole.
    """

    path: Path
    name: str
    header: Header
    job: Job | None
    names: dict[int, str]
    lost: list[str]
    _traces: list[Trace] | None = None
    _counted: dict[str, Counted] | None = None

    @property
    def run_s(self) -> float | None:
        """Darshan's run time; None when the process was killed or the job is damaged."""
        return self.job.run_s if self.job else None

    @property
    def is_killed(self) -> bool:
        """Whether it is the memory map of a process that did not end in order."""
        return self.job is not None and self.job.end_s is None

    @property
    def traces(self) -> list[Trace]:
        """What is known of each DXT region once all its segments were read."""
        if self._traces is None:
            for _ in self.segment_batches():
                pass
        return self._traces or []

    @property
    def counted(self) -> dict[str, Counted]:
        """What is known of each module with counters once all its records were read, by module."""
        if self._counted is None:
            for _ in self.file_rows():
                pass
        return self._counted or {}

    def segments(self) -> pa.Table:
        """Return one row per traced read or write, with the columns of `io_segments`."""
        return pa.Table.from_batches(list(self.segment_batches()), SEGMENT_SCHEMA)

    def segment_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows of `segments` in batches, one region of the log in memory at a time."""
        traces: list[Trace] = []
        known = Known(self.header.byte_order, self.names, self.run_s)
        for region in self.header.modules:
            if region.name in DXT_MODULES:
                inflated = self._inflated(region, darshan_dxt.REGION_CAP_BYTES)
                trace = find_records(inflated, region, known)
                traces.append(trace)
                yield from SegmentRows(self.name, trace, known).batches(inflated)
        self._traces = traces

    def files(self) -> pa.Table:
        """Return one row per file and module, with the columns of `io_files`."""
        batches = list(row_batches("io_files", self.file_rows()))
        return pa.Table.from_batches(batches, spool_schema("io_files")).unify_dictionaries()

    def file_rows(self) -> Iterator[IoFile]:
        """Yield the rows of `files`, one region of the log in memory at a time."""
        counted: dict[str, Counted] = {}
        places = Places(self.name, self.header.byte_order, self.names, self.job.mounts if self.job else ())
        for region in self.header.modules:
            if region.name in COUNTED_MODULES:
                inflated = self._inflated(region, darshan_counters.REGION_CAP_BYTES)
                counted[region.name] = Counted(is_suspect=inflated.damage is not None and not inflated.is_cut)
                yield from file_rows(region, inflated.whole(), places, counted[region.name])
                counted[region.name].damage = inflated.damage or counted[region.name].damage
        self._counted = counted

    @property
    def summary(self) -> IoLog:
        """The row of `io_logs`; reads what was not read yet."""
        job, traces = self.job, self.traces
        counted = [self.counted[module] for module in DXT_MODULES.values() if module in self.counted]
        operations = [each.operation_count for each in counted if each.record_count or not each.damage]
        lost = self.losses()
        return IoLog(
            log=self.name,
            content_digest=content_digest(self.path),
            format_version=self.header.version,
            hostname=next((trace.hostname for trace in traces if trace.hostname), None),
            pid=self._pid(),
            exe=_redacted(job.exe) if job else None,
            job_id=job.job_id if job else None,
            process_count=job.process_count if job else None,
            start_s=job.start_s if job else None,
            run_s=self.run_s,
            modules=json.dumps({region.name: self._module(region) for region in self.header.modules}),
            segment_layout=", ".join(dict.fromkeys(trace.layout.name for trace in traces)) or None,
            has_thread_ids=any(trace.layout.has_thread for trace in traces),
            segment_count=sum(trace.segment_count for trace in traces),
            operation_count=sum(operations) if operations else None,
            is_killed=self.is_killed,
            lost=json.dumps(lost) if lost else None,
        )

    def losses(self) -> list[str]:
        """Return everything of the log that is missing or damaged, in words."""
        lost = list(self.lost)
        if self.path.name.endswith("_partial"):
            lost.append("Darshan never finished writing it")
        if self.is_killed:
            lost.append("the process was killed: no segments, and nothing of its last moments")
        for trace in self.traces:
            lost += trace.lost()
        for module, counted in self.counted.items():
            if counted.damage:
                lost.append(f"{module}: {counted.damage}; {counted.record_count} records before it were kept")
        for region in self.header.modules:
            if region.is_partial:
                lost.append(f"{region.name}: Darshan ran out of memory for it, so files or operations are missing")
            if region.name not in COUNTED_MODULES and region.name not in DXT_MODULES:
                lost.append(f"{region.name}: recup does not read this module")
        return lost + self._untraced()

    def _pid(self) -> int | None:
        """Return the process: by the log's name, else (a memory map) by that of the beacon a worker under recup wrote."""
        if named := _PID.search(self.name):
            return int(named["pid"][:18])
        pids = {int(beacon["pid"][:18]) for path in self.names.values() if (beacon := _BEACON.search(path))}
        return pids.pop() if len(pids) == 1 else None

    def _untraced(self) -> list[str]:
        """Say how much less DXT traced than was counted."""
        found = []
        regions = {trace.region.name: trace for trace in self.traces}
        cut_short = {region.name for region in self.header.modules if region.is_partial}
        for name, module in DXT_MODULES.items():
            counted = self.counted[module].operation_count if module in self.counted else 0
            traced = regions[name].segment_count if name in regions else 0
            if name not in regions and counted and not self.is_killed:
                found.append(
                    f"{name}: none of {counted} operations was traced: DXT was off, or did not fit Darshan's MODMEM"
                )
            elif name in regions and traced < counted:
                least, most = ("at least ", "at most ") if module in cut_short else ("", "")
                share = f"{most}{traced / counted:.1%}"
                found.append(f"{name}: {traced} of {least}{counted} operations ({share}) were traced")
        return found

    def _module(self, region: Region) -> dict[str, Any]:
        damaged = {t.region.name for t in self.traces if t.damage} | {n for n, c in self.counted.items() if c.damage}
        is_read = region.name in COUNTED_MODULES or region.name in DXT_MODULES
        state = "damaged" if region.name in damaged else "read" if is_read else "not read"
        return {"version": region.version, "bytes": region.length, "partial": region.is_partial, "state": state}

    def _inflated(self, region: Region, cap_bytes: int) -> Inflated:
        with _opened(self.path) as file:
            return inflate(file, self.header, region, cap_bytes)


def read_log(path: Path | str, name: str | None = None) -> DarshanLog:
    """Return a Darshan log, as far as it can be read.

    Parameters
    ----------
    path : Path or str
        The log.
    name : str, optional
        What it is called in the rows; its file's name when not given.

    Raises
    ------
    BadDarshanLog
        It is no Darshan log, or not even its header can be read.
    """
    path = Path(path)
    with _opened(path) as file:
        header = read_header(file, path)
        job, job_loss = read_job(file, header)
        if job is None and header.compression == _PLAIN:
            raise BadDarshanLog(
                f"{path} says it is not compressed and holds no job record: its header is damaged. Copy it again."
            )
        names, name_loss = read_names(file, header)
    return DarshanLog(path, name or path.name, header, job, names, [loss for loss in (job_loss, name_loss) if loss])


# ---------------------------------------------------------------- into a run

ROLE = "darshan"
_ENDINGS = (".darshan", ".darshan_partial")
_DIGEST = re.compile(r"SHA-256 ([0-9a-f]{64})")


@dataclasses.dataclass(frozen=True, slots=True)
class LogReport:
    """What became of one log.

    Attributes
    ----------
    state : str
        ``read``, ``damaged`` (read as far as it goes), ``unreadable`` or ``known`` (read before).
    lost : tuple of str
        What is missing, in words.
    """

    log: str
    state: str
    segment_count: int = 0
    file_count: int = 0
    lost: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class IngestReport:
    """What reading logs into a run did: one entry per log, in the order given."""

    run: Path
    logs: tuple[LogReport, ...]


def ingest_darshan(
    run: str | os.PathLike[str],
    logs: Iterable[str | os.PathLike[str]],
    progress: Callable[[str, float, float], None] | None = None,
) -> IngestReport:
    """Read Darshan logs into the spool of a run, copies of them into its ``foreign/darshan``.

    A log whose content the run holds already, sealed or not, is left alone.  A log that is
    no log becomes a row of `losses`, and the others are read all the same.

    Parameters
    ----------
    run : str or path
        The run, as `find_run` takes it.
    logs : iterable of str or path
        Logs, and directories that hold some at any depth.
    progress : callable, optional
        Called with (log, number of logs done, number of logs).

    Raises
    ------
    BadDarshanLog
        A path given does not exist, or none of them holds a log.
    RecupError
        The run cannot be opened or written.
    """
    path = find_run(run)
    read_manifest(path)
    found = list(_found(Path(each) for each in logs))
    known = _known_digests(path)
    reports = []
    for number, log in enumerate(found):
        if progress is not None:
            progress(log.name, number, len(found))
        reports.append(_ingest(path, log, known))
    return IngestReport(path, tuple(reports))


def ingest_foreign(
    run: str | os.PathLike[str], progress: Callable[[str, float, float], None] | None = None
) -> IngestReport:
    """Read every Darshan log that lies in the ``foreign/darshan`` of a run; see `ingest_darshan`."""
    path = find_run(run)
    directory = _foreign(path)
    if not directory.is_dir() or not any(_logs_below(directory)):
        return IngestReport(path, ())
    return ingest_darshan(path, [directory], progress)


def _foreign(run: Path) -> Path:
    return run / "foreign" / "darshan"


def _found(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            logs = list(_logs_below(path))
            if not logs:
                raise BadDarshanLog(f"{path} holds no file that ends in .darshan. Give the directory Darshan wrote to.")
            yield from logs
        elif path.exists():
            yield path
        else:
            raise BadDarshanLog(f"{path} does not exist. Give a Darshan log or a directory of them.")


def _logs_below(directory: Path) -> Iterator[Path]:
    return (each for each in sorted(directory.rglob("*")) if each.name.endswith(_ENDINGS) and each.is_file())


def _ingest(run: Path, log: Path, known: set[str]) -> LogReport:
    digest = ""
    try:
        digest = content_digest(log)
        if digest in known:
            return LogReport(log.name, "known")
        known.add(digest)
        name, kept = _keep(run, log, digest)
        report = _write(run, read_log(kept, name))
    except BadDarshanLog as reason:
        text = str(reason)
        if log.name.endswith("_partial"):
            text = f"{log.name} was never finished by Darshan: its process was killed while it wrote. {reason}"
        detail = f"{text} (SHA-256 {digest})" if digest else text
        loss = Loss(log.stat().st_mtime_ns, "not_captured", "io_logs", -1, detail)
        with SpoolFiles(run, ROLE, log.name) as spool:
            spool.write_rows("losses", [loss._replace(row_count=None)])  # type: ignore[arg-type]
        report = LogReport(log.name, "unreadable", lost=(text,))
    return report


def _write(run: Path, log: DarshanLog) -> LogReport:
    with SpoolFiles(run, ROLE, log.name) as spool:
        spool.write_batches("io_segments", log.segment_batches())
        spool.write_rows("io_files", log.file_rows())
        spool.write_rows("io_logs", [log.summary])
    lost = tuple(log.losses())
    counts = spool.row_counts
    state = "damaged" if lost else "read"
    return LogReport(log.name, state, counts.get("io_segments", 0), counts.get("io_files", 0), lost)


def _keep(run: Path, log: Path, digest: str) -> tuple[str, Path]:
    """Copy a log into the run unless it lies there; returns its name in the run and where it is."""
    directory = _foreign(run)
    if log.absolute().is_relative_to(directory.absolute()):
        return log.absolute().relative_to(directory.absolute()).as_posix(), log
    target = directory / log.name
    if target.exists() and content_digest(target) != digest:
        target = directory / f"{log.stem}-{digest[:8]}{log.suffix}"
    if not target.exists():
        temporary = directory / f".{target.name}.{os.getpid()}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, temporary)
            os.replace(temporary, target)
        except OSError as reason:
            raise unwritable(run, reason) from reason
        finally:
            temporary.unlink(missing_ok=True)
    return target.name, target


def _known_digests(run: Path) -> set[str]:
    """Return the digests of logs that the run holds rows of, and of those it says cannot be read."""
    digests = set(read_spooled(run, ROLE, "io_logs", "content_digest"))
    for detail in read_spooled(run, ROLE, "losses", "detail"):
        digests.update(_DIGEST.findall(detail))
    return digests


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with _opened(path) as file:
        digest = hashlib.sha256()
        while part := file.read(1 << 20):
            digest.update(part)
        return digest.hexdigest()


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as reason:
        raise BadDarshanLog(f"{path} cannot be read: {reason.strerror}. Mend that and try again.") from reason


def _redacted(command: str) -> str:
    """Return a command line without values of options that look secret and without credentials in URLs."""
    return _SECRETS.sub(r"\g<before>[redacted]", command)
