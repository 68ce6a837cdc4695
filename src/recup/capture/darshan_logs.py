"""Darshan's files after a run: brought together under ``foreign/darshan``, and who left none.

Covers memory maps that killed processes left, logs in dated or local directories, and logs
that were never finished or never came.  It does not cover what logs hold (`recup.ingest`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from recup.capture import session
from recup.capture.darshan import foreign, map_directory, read_request
from recup.schema import Loss
from recup.spool import Spool

_MARK = "collected.json"
_LOG = re.compile(r"_id(?P<job>\d+)-(?P<pid>\d+)_\d+-\d+-\d+-\d+(_\d+)?\.darshan(?P<partial>_partial)?$")
_MAP = re.compile(r"_id(?P<job>\d+)_mmap-log-\d+-\d+\.darshan$")
_BEACON = re.compile(r"^beacon-(?P<pid>\d+)-(?P<worker>.+)$")


def collect_logs(run_directory: Path) -> list[str]:
    """Bring the Darshan logs of a run together and return what is missing, in words; none is good.

    Each is also a row of `losses`, written once however often this is called.  To be called
    when the processes of the run have ended: the map of a living one is not its log.
    """
    directory = foreign(run_directory)
    if not directory.is_dir():
        return []
    _gather(run_directory, directory)
    missing = list(missing_logs(directory))
    known = _known(directory)
    new = [(table, text) for table, text in missing if text not in known]
    if new:
        spool = Spool(run_directory, "launcher", f"Launcher-{Path(run_directory).name}.darshan{len(known) or ''}")
        for table, text in new:
            spool.put(Loss(time.time_ns(), "not_captured", table, -1, text))
        spool.close()
        temporary = directory / f".{_MARK}.{os.getpid()}"
        temporary.write_text(json.dumps([*known, *(text for _, text in new)], indent=2) + "\n")
        os.replace(temporary, directory / _MARK)
    return [text for _, text in missing]


def _known(directory: Path) -> list[str]:
    try:
        return [str(each) for each in json.loads((directory / _MARK).read_text())]
    except (OSError, ValueError):
        return []


def _gather(run_directory: Path, directory: Path) -> None:
    """Move logs into the directory from wherever processes of this host had to leave them."""
    local = foreign(session.spool_root(run_directory))
    places = [*directory.glob("[0-9]*/[0-9]*/[0-9]*"), map_directory(directory, Path(run_directory).name), local]
    for place in places:
        if place == directory or not place.is_dir():
            continue
        for pattern in ("*.darshan", "*.darshan_partial", "beacon-*"):
            for file in place.glob(pattern):
                if not (directory / file.name).exists():
                    with contextlib.suppress(OSError):
                        shutil.move(str(file), str(directory / file.name))
        with contextlib.suppress(OSError):
            place.rmdir()


def missing_logs(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield (table that lacks rows, what is missing) for each log that did not come whole."""
    names = [file.name for file in directory.iterdir()]
    logs = [match for match in map(_LOG.search, names) if match]
    whole = {match["pid"] for match in logs if not match["partial"]}
    unfinished = {match["pid"]: match.string for match in logs if match["partial"]}
    maps = {match["job"]: match.string for match in map(_MAP.search, names) if match}
    for name in sorted(names):
        beacon = _BEACON.match(name)
        if beacon is None:
            continue
        pid, worker = beacon["pid"], beacon["worker"]
        if pid in whole:
            continue
        text = f"the log of {worker} (process {pid}) never came: it was killed, or its host has it still"
        if pid in unfinished:
            text = f"{unfinished[pid]} of {worker} was never finished: process {pid} died while it wrote"
        if pid in maps:
            yield "io_segments", f"{text}; {maps[pid]} holds its counters, but no segments"
        elif maps:
            yield "io_segments", f"{text}; one of {len(maps)} memory maps may hold its counters, none has segments"
        else:
            yield "io_logs", text
    request = read_request(directory.parent.parent)
    if request is not None and request.library and not (logs or maps or any(map(_BEACON.match, names))):
        yield "io_logs", "no process of a worker ran under Darshan"
