"""`recup doctor --darshan` and `recup darshan-env`: would Darshan record here, and how to switch it on by hand.

Covers the library on this machine, tried in a real process, and the environment for job
scripts.  It cannot see the machines a job will run on; there the same command tells.
"""

from __future__ import annotations

import functools
import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from recup.doctor import Check
from recup.errors import RecupError

if TYPE_CHECKING:
    from recup.capture.darshan import Request
    from recup.capture.darshan_library import Trial

_ok, _info, _warning, _problem = (functools.partial(Check, level) for level in ("ok", "info", "warning", "problem"))
_OVERRIDING = ("DARSHAN_MOD_DISABLE", "DARSHAN_MOD_ENABLE", "DARSHAN_MODMEM", "DARSHAN_NAMEMEM", "DARSHAN_APP_EXCLUDE")


class NoDarshan(RecupError):
    """There is no libdarshan here, or none that works."""


def examine_darshan(told: str | None, root: Path) -> list[Check]:
    """Return what every check of Darshan found, each with what to do.

    Parameters
    ----------
    told : str, optional
        The library or its prefix; by default the usual places are looked at.
    root : Path
        The runs root, where logs would go.
    """
    from recup.capture.darshan import judge_library, write_config

    checks = surroundings(os.environ)
    existing = next((each for each in (root, *root.parents) if each.exists()), Path("/"))
    try:
        with tempfile.TemporaryDirectory(prefix=".recup-doctor-", dir=existing) as place:
            directory = Path(place)
            write_config(directory, directory)
            request, trial, looked = judge_library(told, directory)
            if trial is None:
                return [_problem("libdarshan", f"not found; looked at {', '.join(looked)}", request.reason), *checks]
            return [*judge_trial(request, trial), *checks]
    except OSError as reason:
        fix = "name another place with --root or $RECUP_ROOT"
        return [_problem("log directory", f"{existing} cannot be written: {reason.strerror or reason}", fix), *checks]


def judge_trial(request: Request, trial: Trial) -> list[Check]:
    """Return the checks that a tiny process under the library allows."""
    from recup.capture.darshan_library import HOW_TO_GET_IT

    if trial.reason:
        return [_problem("libdarshan", trial.reason, HOW_TO_GET_IT)]
    if trial.log is None:
        fix = "`darshan-config --log-path-by-env` names the variable it reads; look for DARSHAN_* variables below"
        return [_problem("Darshan log", request.reason, fix)]
    checks = [_ok("libdarshan", f"{request.library}, release {request.version or 'unknown'}: Python runs under it")]
    checks += _judge_log(trial)
    settings = trial.settings
    if not settings:
        checks.append(
            _warning("darshan.conf", "this release does not tell its configuration", "use Darshan 3.4 or newer")
        )
    elif settings.get("MODMEM") != "64 MiB" or settings.get("DXT_POSIX MAX_RECORDS") != "65536":
        fix = "look for DARSHAN_* variables below; releases before 3.4 read no darshan.conf"
        checks.append(_warning("darshan.conf", f"is not in force as recup wrote it: {_shown(settings)}", fix))
    else:
        checks.append(_ok("darshan.conf", f"in force: {_shown(settings)}"))
    left_out = settings.get("EXCLUDE_DIRS")
    if left_out:
        fix = "data there: put `NAME_INCLUDE ^/var/data/ *` into a file named by DASK_RECUP__DARSHAN__CONFIG"
        checks.append(_info("left out", f"Darshan records no file under {left_out.replace(',', ', ')}", fix))
    return checks


def _judge_log(trial: Trial) -> list[Check]:
    from recup.ingest.darshan import read_log

    assert trial.log is not None
    log = read_log(trial.log)
    probed = [row for row in log.segments().to_pylist() if (row["path"] or "").endswith("recup-probe.dat")]
    checks = [_ok("Darshan log", f"a tiny process left one of format {log.header.version}")]
    if not probed:
        fix = "build Darshan with DXT (the default), and unset DARSHAN_MOD_DISABLE"
        return [*checks, _problem("DXT", "the log holds no traced operation: only sums per file would be known", fix)]
    if probed[0]["thread"] is None:
        fix = "Darshan built from its main branch writes them; else run workers with one thread each"
        return [*checks, _warning("DXT", "operations are traced, without the thread that did them", fix)]
    return [*checks, _ok("DXT", "operations are traced, each with its thread")]


def _shown(settings: Mapping[str, str]) -> str:
    names = ("MODMEM", "NAMEMEM", "DXT_POSIX", "DXT_POSIX MAX_RECORDS", "POSIX MAX_RECORDS", "MMAP_LOGPATH")
    return ", ".join(f"{name} {settings[name]}" for name in names if name in settings and name != "MMAP_LOGPATH")


def surroundings(environment: Mapping[str, str]) -> list[Check]:
    """Return what in the environment or in Dask's configuration stands in the way of Darshan."""
    import dask.config

    checks = [
        _info("environment", f"${name} is set: it keeps Darshan from recording", "workers are started without it")
        for name in ("DARSHAN_DISABLE", "DARSHAN_LOGFILE")
        if name in environment
    ]
    checks += [
        _warning("environment", f"${name}={environment[name]} overrides recup's darshan.conf", f"unset {name}")
        for name in _OVERRIDING
        if name in environment
    ]
    if "DARSHAN_CONFIG_PATH" in environment and "recup" not in environment["DARSHAN_CONFIG_PATH"]:
        fix = "name that file in DASK_RECUP__DARSHAN__CONFIG to have its lines added; mind that .py$ also takes x.npy"
        checks.append(_info("environment", "workers do not use the file of $DARSHAN_CONFIG_PATH", fix))
    method = dask.config.get("distributed.worker.multiprocessing-method", "spawn")
    if method != "spawn":
        told = f"distributed.worker.multiprocessing-method is {method}: such workers cannot start under Darshan"
        checks.append(_problem("Dask", told, "set it to spawn"))
    return checks


def darshan_variables(run_directory: Path, told: str | None) -> dict[str, str]:
    """Return the variables under which every process is recorded into a run, with Darshan.

    Raises
    ------
    NoDarshan
        There is no libdarshan that works.
    """
    from recup.capture.darshan import environment_of, request_darshan
    from recup.launch import recording_environment

    try:
        request = request_darshan(run_directory, told)
        if request.library is None:
            raise NoDarshan(request.reason)
        variables = environment_of(request, run_directory, os.environ.get("LD_PRELOAD", ""))
    except OSError as reason:
        raise RecupError(f"{run_directory} cannot be written: {reason.strerror or reason}.") from reason
    before = dict(os.environ)
    added = {n: v for n, v in recording_environment(run_directory, before).items() if before.get(n) != v}
    return variables | added


def shell_lines(run_directory: Path, variables: Mapping[str, str]) -> str:
    """Return the lines that set variables in a POSIX shell, and how to end it in a comment."""
    from recup.capture.darshan_library import REMOVED_VARIABLES

    lines = [
        f"# Records what this shell starts into {run_directory}",
        f"unset {' '.join(REMOVED_VARIABLES)}",
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        "# When all has ended: unset LD_PRELOAD DARSHAN_ENABLE_NONMPI; recup seal $DASK_RECUP__RUN_DIRECTORY",
    ]
    return "\n".join(lines)
