"""Reports of runs, made when they are asked for and kept while the server lives.

Covers making: each in a process of its own, which runs the command line a user would, one
at a time, so that a large run takes neither memory nor time of the server.  A report is kept
for the state of the runs it was made of.  What is in it is `recup.report`'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

KEPT = 30
TIMEOUT_S = 900.0
_RETRY_S = 5.0
"""A report that failed is told for this long and then, when asked for, tried again."""
_RECORDED = ("spool", "tables", "foreign")
_GROWING_S = 60.0
"""A report of a run that has grown since is shown for this long, instead of making it again each time."""


class _Report:
    """One report: being made, made, or failed."""

    def __init__(self, state: str, file: Path):
        self.state = state
        self.file = file
        self.begun_at_s = time.time()
        self.ended_at_s: float | None = None
        self.problem: str | None = None

    def told(self) -> dict[str, Any]:
        """Return it as a page is told of it."""
        ended = self.ended_at_s
        state = "making" if ended is None else "ready" if self.problem is None else "failed"
        taken_s = (ended or time.time()) - self.begun_at_s
        return {"state": state, "taken_s": taken_s, "made_at_s": ended, "problem": self.problem}


class Reports:
    """The reports made so far; `close` ends what is being made and removes them."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="recup-serve-"))
        self._reports: OrderedDict[tuple[str, ...], _Report] = OrderedDict()
        self._one_at_a_time = ThreadPoolExecutor(1, thread_name_prefix="recup-report")
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def ask(self, runs: Sequence[Path], verb: Sequence[str] = ("report",)) -> _Report:
        """Return the report of runs, which may have to be made first.

        Parameters
        ----------
        runs : sequence of Path
            Run directories; two or more are compared.
        verb : sequence of str
            Verb and options of the command line; one with `--json` prints what is kept.
        """
        key = (*verb, *map(str, runs))
        state = _state_of(runs)
        kept = self._reports.get(key)
        if kept is not None:
            age_s = 0.0 if kept.ended_at_s is None else time.time() - kept.ended_at_s
            is_good = age_s < _RETRY_S if kept.problem is not None else kept.state == state or age_s < _GROWING_S
            if is_good:
                self._reports.move_to_end(key)
                return kept
        name = hashlib.sha256("\0".join((*key, state)).encode(errors="surrogateescape")).hexdigest()[:24]
        report = self._reports[key] = _Report(state, self._directory / name)
        self._one_at_a_time.submit(self._make, report, list(verb), [str(run) for run in runs])
        self._forget_old()
        return report

    def _forget_old(self) -> None:
        for key in list(self._reports)[: max(0, len(self._reports) - KEPT)]:
            report = self._reports[key]
            if report.ended_at_s is not None:
                del self._reports[key]
                report.file.unlink(missing_ok=True)

    def _make(self, report: _Report, verb: list[str], runs: list[str]) -> None:
        is_printed = "--json" in verb
        command = [sys.executable, "-m", "recup", *verb, *(() if is_printed else ("-o", str(report.file))), *runs]
        report.begun_at_s = time.time()
        try:
            code, output, errors = self._run(command)
            if code == 0 and is_printed:
                report.file.write_bytes(output)
            if code != 0 or not report.file.is_file():
                lines = errors.decode(errors="replace").strip().splitlines()
                report.problem = lines[-1][:500] if lines else f"it ended with code {code}"
        except subprocess.TimeoutExpired:
            report.problem = f"it took longer than {TIMEOUT_S / 60:.0f} minutes"
        except OSError as reason:
            report.problem = f"{type(reason).__name__}: {reason}"
        finally:
            report.ended_at_s = time.time()

    def _run(self, command: list[str]) -> tuple[int, bytes, bytes]:
        with self._starting:
            if self._is_closed:
                return -1, b"", b"the server has ended"
            process = self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "NO_COLOR": "1"},
            )
        with process:
            try:
                output, errors = process.communicate(timeout=TIMEOUT_S)
            finally:
                process.kill()
        return process.returncode, output, errors

    def close(self) -> None:
        """End what is being made and remove what was made."""
        with self._starting:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()
        self._one_at_a_time.shutdown(cancel_futures=True)
        shutil.rmtree(self._directory, ignore_errors=True)


def _state_of(runs: Sequence[Path]) -> str:
    """Return what changes whenever the record of these runs does."""
    marks = []
    for run in runs:
        for place, directories, files in os.walk(run):
            directories[:] = sorted(each for each in directories if place != str(run) or each in _RECORDED)
            for name in sorted(files):
                if name != "status.json":  # rewritten every second, whatever happens
                    with contextlib.suppress(OSError):
                        status = os.lstat(os.path.join(place, name))
                        marks.append(f"{place}/{name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(marks).encode(errors="surrogateescape")).hexdigest()
