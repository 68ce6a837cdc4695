"""``status.json``: what a server took, wrote and lost, and whether it may still write.

Covers the file of a spool as its server keeps it, and what it tells of the server's
process.  It does not cover what is concluded from its counts (`recup.completeness`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

import psutil

_HOSTNAME = socket.gethostname()

ALIVE_S = 5.0
"""A server elsewhere that wrote its status this recently may still write."""


class StatusFile:
    """``status.json`` of one spool, rewritten in place at each flush.

    It has a fixed size and its block exists from the start, so it can be kept true on a
    full disk, where nothing can be appended.  Its last time tells when a killed process
    was last alive.
    """

    SIZE = 4096

    def __init__(self) -> None:
        self._descriptor = -1
        self._is_ours = False
        self._start_ticks = start_ticks(os.getpid())
        self._last: tuple[Any, ...] = ()

    @property
    def is_new(self) -> bool:
        """Whether it has never been written."""
        return not self._last

    def write(self, spool: Any) -> None:
        """Bring the file up to date; a flush on request does not write it again at once when nothing changed."""
        closed = spool.closed_at_s is not None
        lost = spool.unwritten_losses()
        state = (closed, spool.row_counts, lost, dict(spool.counters))
        now = time.time_ns()
        if self._last and self._last[1] == state and now - self._last[0] < 700_000_000:
            return
        content = {
            "time_ns": now, "hostname": _HOSTNAME, "role": spool.role, "server_id": spool.server_id, "pid": os.getpid(),
            "start_ticks": self._start_ticks, "closed": closed,
            "row_counts": state[1], "unwritten_losses": lost, "counters": state[3],
        }  # fmt: skip
        try:
            if self._descriptor >= 0 and os.fstat(self._descriptor).st_nlink == 0:
                self.leave()
            if self._descriptor < 0:
                self._open(spool)
            os.pwrite(self._descriptor, json.dumps(content).encode().ljust(self.SIZE - 1)[: self.SIZE - 1] + b"\n", 0)
            self._last = (now, state)
        except OSError:
            self.close()

    def _open(self, spool: Any) -> None:
        while True:
            spool.directory.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if self._is_ours else os.O_EXCL)
            try:
                self._descriptor = os.open(spool.directory / "status.json", flags, 0o644)
                self._is_ours = True
                return
            except FileExistsError:  # of the same server in the same run, recorded before
                spool.begin_epoch()

    def leave(self) -> None:
        """Close the file and have the next write make another."""
        self.close()
        self._is_ours = False

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def start_ticks(pid: int) -> int | None:
    """Return when a process of this host began, in the kernel's ticks since boot; None when it is not, or is a zombie.

    With its number it tells a process from a later one of the same number.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name before may hold spaces and brackets.
            state, *fields = file.read().rpartition(b")")[2].split()
        return None if state in (b"Z", b"X") else int(fields[18])
    except (OSError, ValueError, IndexError):
        return None


def is_written(status: Mapping[str, Any]) -> bool:
    """Whether the server that left this status may still write.

    One of a process of this host may as long as that is there, stopped or held by its disk
    as it may be; one elsewhere, if it wrote a moment ago.
    """
    pid, ticks, time_ns = status.get("pid"), status.get("start_ticks"), status.get("time_ns")
    if status.get("closed") is not False:
        return False
    is_recent = isinstance(time_ns, int) and time_ns > time.time_ns() - ALIVE_S * 1e9
    if status.get("hostname") != _HOSTNAME or not isinstance(pid, int):
        return is_recent
    return start_ticks(pid) == ticks if isinstance(ticks, int) else is_recent and _is_running(pid)


def _is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, ValueError, OverflowError):
        return False
