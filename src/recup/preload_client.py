"""The preload `recup run` names for clients: `recup.preload`, and a record that survives SIGTERM.

Dask imports a client's preloads in the thread that makes the client, usually the main
one, and only there may Python set a signal handler.  The handler writes what is still in
memory and then lets the signal end the process just as it would have.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from recup.preload import dask_setup, dask_teardown, profile_calling_thread

__all__ = ["dask_setup", "dask_teardown"]


def _write_then_die(number: int, frame: FrameType | None) -> None:
    try:
        from recup.spool import flush_all

        flush_all(timeout_s=2.0)
    finally:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


profile_calling_thread()
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
    signal.signal(signal.SIGTERM, _write_then_die)
