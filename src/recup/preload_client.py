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

        # In a thread of its own: the main one may have been interrupted in a flush, holding what this one waits for.
        writing = threading.Thread(target=flush_all, args=(2.0,), daemon=True)
        writing.start()
        writing.join(2.0)
    finally:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _forget_handler() -> None:
    """In a forked child: it has nothing to write, and its parent may wait for its end."""
    if signal.getsignal(signal.SIGTERM) is _write_then_die:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


profile_calling_thread()
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
    signal.signal(signal.SIGTERM, _write_then_die)
    os.register_at_fork(after_in_child=_forget_handler)
