"""Which runs may be opened: those of one directory, by their name in its listing.

Covers finding a run by name, refusing what leads out of the root, and the list of runs,
kept between requests.  A name is looked up among those that are there and never joined to
a path before that.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from recup.analyse.listing import run_row
from recup.errors import RecupError, RunNotFound
from recup.rundir import find_runs

_FRESH_S = {"running": 1.5, "unknown": 10.0}
"""How long the row of a run that may still grow is shown as it is, by its state."""
_CHECKED_S = 5.0
_WAIT_S = 0.25
"""How long a request waits for a list that is being read."""


class NoRoot(RecupError):
    """What should hold runs is no directory of runs."""


class RunsRoot:
    """The directory of runs that is served.

    Raises
    ------
    NoRoot
        It is no directory, or is itself a run.
    """

    def __init__(self, path: Path):
        if not path.is_dir():
            raise NoRoot(f"{path} is no directory. Name one that holds runs: `recup serve ROOT`.")
        if (path / "run.json").is_file():
            raise NoRoot(f"{path} is itself a run. Serve the directory that holds it: `recup serve {path.parent}`.")
        self.path = path.resolve()
        self._rows: dict[str, tuple[Any, float, dict[str, Any]]] = {}
        self._checked: dict[str, tuple[float, str | None]] = {}
        self._reading = threading.Lock()
        self._version = 0
        self._is_complete = False
        self._order: dict[str, int] = {}

    # ------------------------------------------------------------ one run

    def find(self, name: str) -> Path:
        """Return the directory of a run.

        Raises
        ------
        RunNotFound
            The root lists no such run, or something in it leads out of the root.
        """
        found = next((path for path in find_runs(self.path) if path.name == name), None)
        if found is None:
            raise RunNotFound("There is no such run here.")
        if self._way_out(found) is not None:
            raise RunNotFound("The run holds a link that leads out of the root, and is not opened.")
        return found

    def _way_out(self, path: Path) -> str | None:
        """Return a link of a run, or the run itself, that leads out of the root; None where there is none."""
        now = time.monotonic()
        checked = self._checked.get(path.name)
        if checked is None or now - checked[0] > _CHECKED_S:
            way_out = next((each for each in _links(path) if not self._is_inside(each)), None)
            checked = self._checked[path.name] = (now, way_out)
        return checked[1]

    def _is_inside(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self.path)

    # ------------------------------------------------------------ all runs

    def listing(self) -> dict[str, Any]:
        """Return the rows of all runs, newest first: `is_complete` when all have been read once."""
        reader = threading.Thread(target=self._refresh, name="recup-list", daemon=True)
        reader.start()
        reader.join(_WAIT_S)
        rows = [row for _, _, row in list(self._rows.values())]
        order = self._order
        rows.sort(key=lambda row: (order.get(row["name"], len(order)), row["name"]), reverse=True)
        return {
            "root": str(self.path),
            "version": self._version,
            "is_complete": self._is_complete,
            "now_ns": time.time_ns(),
            "runs": rows,
        }

    def _refresh(self) -> None:
        if not self._reading.acquire(blocking=False):
            return
        try:
            paths = find_runs(self.path)
            self._order = {path.name: place for place, path in enumerate(paths)}
            for path in reversed(paths):
                self._refresh_one(path)
            gone = set(self._rows) - {path.name for path in paths}
            for name in gone:
                self._rows.pop(name, None)
                self._checked.pop(name, None)
            self._version += bool(gone)
            self._is_complete = True
        finally:
            self._reading.release()

    def _refresh_one(self, path: Path) -> None:
        kept, now = self._rows.get(path.name), time.monotonic()
        mark = _mark(path)
        if kept is not None and kept[0] == mark and now - kept[1] < _FRESH_S.get(kept[2]["state"], 1e9):
            return
        row = self._row(path)
        if kept is None or kept[2] != row:
            self._version += 1
        self._rows[path.name] = (mark, now, row)

    def _row(self, path: Path) -> dict[str, Any]:
        way_out = self._way_out(path)
        row: dict[str, Any] = {}
        if way_out is None:
            try:
                row = run_row(path)
            except Exception as reason:  # noqa: BLE001 - one damaged run must not hide the others
                row = {"problem": f"{type(reason).__name__}: {reason}"[:300], "state": "unreadable"}
        else:
            row = {"problem": "it holds a link that leads out of the root; it is not opened", "state": "unreadable"}
        row.pop("path", None)
        # Names that are no text have no address.
        is_text = path.name.isprintable() and not any("\ud800" <= c <= "\udfff" for c in path.name)
        return row | {
            "name": path.name,
            "address": f"/runs/{quote(path.name, safe='')}" if is_text else None,
        }


def _links(path: Path) -> Iterator[str]:
    """Yield what in a directory, itself included, is a link; links are not followed."""
    if path.is_symlink():
        yield str(path)
        return
    for place, directories, files in os.walk(path):
        for name in (*directories, *files):
            each = os.path.join(place, name)
            if os.path.islink(each):
                yield each


def _mark(path: Path) -> tuple[Any, ...]:
    """Return what changes when a run does, as far as its directories tell."""
    marks = []
    for name in ("", "run.json", "spool", "tables", "foreign"):
        try:
            status = os.stat(path / name)
            marks.append((status.st_mtime_ns, status.st_size))
        except OSError:
            marks.append((0, 0))
    return tuple(marks)
