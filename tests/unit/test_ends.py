"""How a record and its program end: signals at odd moments, forks, and disks that hang."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading

from recup.capture.session import soon
from recup.launch import _signals_forwarded


def run_python(body):
    """Run a program to its end; returns its return code and output."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(body)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_a_signal_before_the_program_has_started_reaches_it():
    class Program:
        told = []

        def send_signal(self, number):
            self.told.append(number)

    with _signals_forwarded() as forward_to:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        forward_to(Program())
        os.kill(os.getpid(), signal.SIGUSR2)
    assert Program.told == [signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2]


def test_a_signal_in_the_middle_of_a_flush_ends_the_program():
    code, _, error = run_python(
        """
        import os, signal
        import recup.preload_client
        from recup import spool
        spool._WRITER.add(spool.Spool("nowhere", "client", "c"))
        with spool._WRITER._wake._cond:  # as where the signal interrupts Event.set
            os.kill(os.getpid(), signal.SIGTERM)
        """
    )
    assert (code, error) == (-signal.SIGTERM, "")


def test_a_forked_child_ends_at_once_when_it_is_told_to():
    code, output, error = run_python(
        """
        import os, signal
        import recup.preload_client
        assert signal.getsignal(signal.SIGTERM) is recup.preload_client._write_then_die
        child = os.fork()
        if not child:
            os._exit(signal.getsignal(signal.SIGTERM) != signal.SIG_DFL)
        print(os.waitpid(child, 0)[1])
        """
    )
    assert (code, output, error) == (0, "0\n", "")


def test_what_hangs_is_not_waited_for():
    held = threading.Event()
    try:
        asyncio.run(soon(held.wait, timeout_s=0.05))
    finally:
        held.set()
