"""`recup run`: start a program so that its Dask clusters are recorded, and see it to its end.

Covers the environment that switches recording on, signals, the program's exit and the
manifest.  The program runs as its own interpreter started in the ordinary way, with the
same arguments, working directory, input and output: nothing of recup is between them.  It
does not cover what is recorded (`recup.capture`), nor sealing (`recup.store`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import dask.config

from recup.errors import MissingExtra, RecupError
from recup.rundir import create_run, update_manifest

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
_STRAGGLERS_S = 15.0
"""How long workers that outlive the program are waited for before sealing is left to the user."""


class NotRunnable(RecupError):
    """What `recup run` was given is no script, module or command."""


def command_for(target: str, arguments: list[str]) -> tuple[list[str], str | None]:
    """Return the command line that runs a target, and the script in it, if any.

    A file runs with this Python; anything else is looked up as a command on PATH.

    Raises
    ------
    NotRunnable
        It is neither.
    """
    path = Path(target)
    if path.is_file() and (path.suffix in (".py", ".pyw") or not os.access(path, os.X_OK)):
        if path.suffix == ".ipynb":
            raise NotRunnable(f"{target} is a notebook: run it with `recup run jupyter execute {target}`.")
        return [sys.executable, target, *arguments], target
    found = shutil.which(target)
    if found:
        return [target, *arguments], next((a for a in arguments if a.endswith(".py") and Path(a).is_file()), None)
    if path.is_dir():
        raise NotRunnable(f"{target} is a directory: give a script in it, or a package as `-m NAME`.")
    raise NotRunnable(f"{target} is neither a file here ({os.getcwd()}) nor a command on PATH.")


def recording_environment(run_directory: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with recording switched on; the user's own preloads stay first."""
    changed = dict(environment)
    for server, module in (("scheduler", "recup.preload"), ("client", "recup.preload_client")):
        preloads = dask.config.get(f"distributed.{server}.preload", None) or []
        preloads = [preloads] if isinstance(preloads, str) else list(preloads)
        if not any(str(name).startswith("recup.preload") for name in preloads):
            preloads.append(module)
        changed[f"DASK_DISTRIBUTED__{server.upper()}__PRELOAD"] = repr(preloads)
    changed["DASK_RECUP__RUN_DIRECTORY"] = str(run_directory)
    return changed


def run_program(
    command: list[str],
    script: str | None,
    root: Path,
    *,
    darshan: str | None = None,
    yappi: tuple[str, tuple[str, ...], tuple[str, ...]] | None = None,
) -> tuple[Path, int]:
    """Run a command with recording on and wait for it.

    Parameters
    ----------
    command : list of str
        The command line.
    script : str, optional
        The script in it.
    root : Path
        The runs root.
    darshan : str, optional
        Also record workers with Darshan: ``auto``, or the path of libdarshan or its prefix.
        Where there is none that is said on stderr, and the program runs without.
    yappi : tuple, optional
        Also profile functions: the clock, task prefixes (none: all), and roles of servers.

    Returns
    -------
    run directory, return code
        The code as `subprocess` gives it: negative when a signal ended the program.

    Raises
    ------
    RecupError
        The run directory cannot be made, or the program cannot be started.
    """
    from recup.capture.redaction import redacted_arguments

    profile = _profile_variables(*yappi) if yappi is not None else {}
    try:
        run_directory = create_run(root, way="run", command=redacted_arguments(command))
    except OSError as reason:
        raise RecupError(
            f"The run cannot be recorded under {root}: {reason.strerror}. Name another place with --root or $RECUP_ROOT."
        ) from reason
    environment = recording_environment(run_directory, os.environ) | profile
    asked_in_vain = _ask_for_darshan(run_directory, darshan) if darshan is not None else ""
    with _signals_forwarded() as forward_to:
        try:
            process = subprocess.Popen(command, env=environment)
        except OSError as reason:
            shutil.rmtree(run_directory, ignore_errors=True)
            raise NotRunnable(f"{command[0]} could not be started: {reason.strerror}.") from reason
        forward_to(process)
        spool = _describe_launch(run_directory, script)
        if spool is not None and asked_in_vain:
            spool.lose("not_captured", "io_logs", asked_in_vain)
        code = process.wait()
    if spool is not None:
        spool.close()
    with contextlib.suppress(RecupError, OSError):
        update_manifest(
            run_directory,
            state="ended",
            ended_ns=time.time_ns(),
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
        )
    return run_directory, code


def _ask_for_darshan(run_directory: Path, told: str) -> str:
    """Ask the run's nannies to start workers under Darshan; returns, and says, why that is in vain."""
    from recup.capture.darshan import request_darshan

    try:
        reason = request_darshan(run_directory, None if told == "auto" else told).reason
    except Exception as error:  # noqa: BLE001 - the program runs without
        reason = f"Darshan could not be asked for: {error!r}"
    if reason:
        sys.stderr.write(f"recup: no Darshan in this run, only counters of threads. {reason}\n")
    return reason


def _profile_variables(clock: str, prefixes: tuple[str, ...], roles: tuple[str, ...]) -> dict[str, str]:
    """Return the variables that have the program's servers profiled by Yappi.

    Raises
    ------
    RecupError
        Yappi is not installed here, or a role is not known.
    """
    from recup.capture.profile_request import ROLES, Settings, environment_of

    if importlib.util.find_spec("yappi") is None:
        raise MissingExtra("--yappi needs Yappi: pip install 'recup[yappi]', here and where workers run.")
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise RecupError(f"--yappi-on knows {', '.join(ROLES)}, not {', '.join(unknown)}.")
    return environment_of(Settings(clock, prefixes, roles))


def _describe_launch(run_directory: Path, script: str | None) -> Any:
    """Record the launcher's own process, batch job and script, while the program runs."""
    try:
        from recup.capture import host
        from recup.spool import Spool

        spool = Spool(run_directory, "launcher", f"Launcher-{run_directory.name}")
        spool.describing = host.record_process_in_background(
            spool, role="launcher", run_directory=run_directory, script=script
        )
        return spool
    except Exception as reason:  # noqa: BLE001 - the program runs already and must be waited for
        sys.stderr.write(f"recup: the launch itself is not recorded: {reason!r}\n")
        return None


@contextlib.contextmanager
def _signals_forwarded() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Pass signals on to the program that is named, also those from before.  Ctrl-C reaches it from the terminal by itself.

    One that is ignored here, as under nohup, stays so: the program inherits that, but no handler.
    """
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and _in_foreground():
            return
        if not children:
            early.append(number)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)

    def forward_to(child: subprocess.Popen[bytes]) -> None:
        children.append(child)
        for number in early:
            child.send_signal(number)

    heeded = [number for number in (*_FORWARDED, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, forward) for number in heeded}
    try:
        yield forward_to
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def wait_for_stragglers(run_directory: Path, timeout_s: float = _STRAGGLERS_S) -> list[int]:
    """Wait until no process of this host writes to the run; returns those that still do.

    Workers of a LocalCluster whose script was killed notice it and leave by themselves.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        alive = _writers(run_directory)
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.05)


def _writers(run_directory: Path) -> list[int]:
    """Return the other processes of this host that may still write to the run."""
    from recup.spool_status import is_written

    alive = set()
    for path in run_directory.glob("spool/*/status.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            status = json.loads(path.read_text())
            if status["hostname"] == socket.gethostname() and status["pid"] != os.getpid() and is_written(status):
                alive.add(int(status["pid"]))
    return sorted(alive)


def collect_local_spools(run_directory: Path) -> None:
    """Move spools that servers of this host wrote to a node-local directory into the run."""
    local = dask.config.get("recup.spool.directory", None)
    if not local:
        return
    source = Path(local) / run_directory.name / "spool"
    for each in source.glob("*") if source.is_dir() else ():
        target = run_directory / "spool" / each.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(str(each), str(target))


def end_like(code: int) -> None:
    """End this process as the program ended: with its exit code, or by its signal."""
    if code < 0:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise SystemExit(code)
