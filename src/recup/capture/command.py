"""Output of another program, in bounded time.

Covers asking git, batch systems and drivers for facts from inside a running server.  It
does not cover programs that are part of the workload.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

TIMEOUT_S = 3.0
"""How long a program may take to answer."""
_OUTPUT_LIMIT = 8 << 20
_DROPPED = ("LD_PRELOAD", "LD_AUDIT", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")


def command_output(
    arguments: Sequence[str], *, timeout_s: float = TIMEOUT_S, environment: Mapping[str, str] | None = None
) -> str:
    """Return what the program wrote to its standard output.

    It runs in the C locale, reads nothing, and is not instrumented like this process is
    (no LD_PRELOAD: an I/O recorder would leave a log of it).

    Raises
    ------
    TimeoutError
        It did not end in time; it and its children have been sent a SIGKILL.
    ChildProcessError
        It ended with another exit code than 0.
    OSError
        It could not be started.
    """
    variables = {n: v for n, v in os.environ.items() if n not in _DROPPED and not n.startswith("DARSHAN_")}
    process = subprocess.Popen(
        list(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**variables, "LC_ALL": "C", **(environment or {})},
        # A group of its own: killing only the program would leave its children holding the pipes.
        start_new_session=True,
    )
    shown = " ".join(arguments[:4])
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _kill(process)
        raise TimeoutError(f"`{shown}` did not answer within {timeout_s:g} s") from None
    if process.returncode:
        reason = errors[:200].decode(errors="replace").strip()
        raise ChildProcessError(f"`{shown}` ended with exit code {process.returncode}: {reason}")
    return output[:_OUTPUT_LIMIT].decode(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.communicate(timeout=1.0)
    except subprocess.TimeoutExpired:
        # In uninterruptible sleep, or a child left the group: not worth more waiting.
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
