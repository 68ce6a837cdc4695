"""What ended a worker, from how it ended and its memory before; and how sure that is.

Part of `recup.analyse.deaths`.  Rules, first that holds: its nanny killed it for memory; the scheduler
gave it up for want of heartbeats; a signal; an exit code; a connection that broke.
"""

from __future__ import annotations

import dataclasses
import signal as signals

from recup.analyse.rows import Document

NEAR_LIMIT_SHARE = 0.8
"""A process above this part of its limit may pass it before the next sample: Dask pauses workers here."""
HOST_FULL_SHARE = 0.9
"""A machine or control group that is this full is near the kernel's killer: the rest is caches, other programs."""

_NATIVE = {signals.SIGSEGV, signals.SIGBUS, signals.SIGILL, signals.SIGFPE, signals.SIGABRT}


@dataclasses.dataclass(frozen=True, slots=True)
class Cause:
    """What ended a worker.

    Attributes
    ----------
    verdict : str
        What ended it, in a few words.
    certainty : str
        How sure the verdict is.
    how : str
        How it ended, as seen: signal 9 (SIGKILL), exit code 3, ...
    advice : str
        What to do.
    """

    verdict: str
    certainty: str
    how: str
    advice: str


_MORE_MEMORY = (
    "Give workers more memory or fewer threads, or make the tasks that ran then smaller; `recup memory` tells what "
    "filled it."
)


def cause_of(death: Document) -> Cause:
    """Return what ended a worker: see `recup.analyse.death_rows.DEATHS_SQL` for what it is judged by."""
    number, code = death["signal"], death["exit_code"]
    how = _how(death)
    if death["is_memory_kill"]:
        return Cause("memory: its nanny killed it", "certain", how, _MORE_MEMORY)
    if death["is_heartbeat_missed"]:
        return Cause(
            "no heartbeat: the scheduler gave it up", "certain", how,
            "Find what held its event loop or the GIL (`recup stalls`), or raise distributed.scheduler.worker-ttl.",
        )  # fmt: skip
    if number == signals.SIGKILL:
        if full := full_memory(death):
            return Cause(f"memory: killed while {full}", "likely", how, _MORE_MEMORY)
        return Cause(
            "killed from outside, or by the kernel", "possible", how,
            "Look in the kernel's log (dmesg, journalctl -k) for the OOM killer, and in the batch system's for its limits.",
        )  # fmt: skip
    if number in _NATIVE:
        what = "segmentation fault" if number == signals.SIGSEGV else f"crash by {_signal_name(number)}"
        return Cause(
            what, "certain", how,
            "Run the tasks that ran then alone with `python -X faulthandler`; suspect native code that is not thread-safe.",
        )  # fmt: skip
    if number is not None:
        return Cause(
            f"ended from outside by {_signal_name(number)}", "likely", how,
            "Look for who sent it: a user, the batch system at its time limit, a shutdown of the machine.",
        )  # fmt: skip
    if code is not None:
        return Cause(
            f"its process ended itself with code {code}", "certain", how,
            "Look for sys.exit or os._exit in the tasks that ran then, and for a failure of the worker in `recup story` and logs.",
        )  # fmt: skip
    if death["is_alive_after"]:
        return Cause(
            "its connection broke, the process lived on", "likely", how,
            "Look at the network between it and the scheduler; distributed.comm.timeouts and retry settings may bridge it.",
        )  # fmt: skip
    return Cause(
        "gone without a word: process or network", "possible", how,
        "Run workers under a nanny: it tells signal and exit code.",
    )  # fmt: skip


def full_memory(death: Document) -> str | None:
    """Return what was nearly full before a death, in words with numbers; None where nothing is known to be."""
    used = max(filter(None, (death["last_bytes"], death["scheduler_last_bytes"])), default=None)
    if used is not None:
        for limit, name in (
            (death["cgroup_limit_bytes"], "the memory its control group allows"),
            (death["limit_bytes"], "its memory limit"),
        ):
            if limit and used >= NEAR_LIMIT_SHARE * limit:
                return f"at {used / limit:.0%} of {name}"
    host, run = death["host_bytes"], death["host_run_bytes"]
    if host and run and run >= HOST_FULL_SHARE * host:
        return f"this run's processes held {run / host:.0%} of the host's memory"
    return None


def _how(death: Document) -> str:
    if death["signal"] is not None:
        return f"signal {death['signal']} ({_signal_name(death['signal'])})"
    if death["exit_code"] is not None:
        return f"exit code {death['exit_code']}"
    return "restarted or removed by the scheduler" if death["is_heartbeat_missed"] else "its connection closed"


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
