"""`recup doctor`: would this environment record everything, and what is to be done where it would not.

Covers this machine, this Python and this configuration; each check is a function that
returns findings.  It starts one tiny cluster, in a process of its own, to see rows arrive.
It cannot see the machines a job will run on: what must hold there is said in words.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

OLDEST_DISTRIBUTED = (2024, 11)
NEWEST_DISTRIBUTED = (2026, 8)
"""Versions of dask and distributed that recup is tested with, both ends included."""
_LIVE_CHECK_S = 90.0
_SMALL_BYTES = 1 << 30
_FULL_BYTES = 100 << 20
_FILES_WANTED = 4096

_TINY_PROGRAM = """
from distributed import Client, LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            assert client.submit(sum, (1, 2)).result(timeout=60) == 3
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """What one check found.

    Attributes
    ----------
    level : str
        ``ok``, ``info`` (good to know), ``warning`` (something may be missing) or ``problem``.
    subject, statement, fix : str
        What was looked at, what is so, and what to do; nothing to do is empty.
    """

    level: str
    subject: str
    statement: str
    fix: str = ""


_ok, _info, _warning, _problem = (functools.partial(Check, level) for level in ("ok", "info", "warning", "problem"))


def examine(root: Path, *, live: bool = True) -> list[Check]:
    """Return what every check found, in the order in which it matters to a reader.

    Parameters
    ----------
    root : Path
        The runs root that would be used.
    live : bool
        Also start a tiny cluster and look whether its rows arrive (a few seconds).
    """
    checks: list[Callable[[], list[Check]]] = [
        python_and_dask,
        fresh_interpreter,
        compiled_parts,
        lambda: live_recording() if live else [],
        lambda: runs_root_place(root),
        preload_settings,
        lambda: batch_and_launchers(root),
        kernel_facts,
        optional_tools,
    ]
    found: list[Check] = []
    for check in checks:
        try:
            found += check()
        except Exception as reason:  # noqa: BLE001 - one check that fails must not hide the others
            found.append(_warning("doctor", f"a check could not be made: {type(reason).__name__}: {reason}"))
    return found


# ---------------------------------------------------------------- Python and Dask


def python_and_dask() -> list[Check]:
    """Check the versions of Python, dask and distributed."""
    version = ".".join(map(str, sys.version_info[:3]))
    versions = {name: _version(name) for name in ("dask", "distributed")}
    return [_ok("Python", f"{version} at {sys.executable}"), *_judge_versions(versions)]


def _judge_versions(versions: Mapping[str, str | None]) -> list[Check]:
    checks = []
    for name, version in versions.items():
        release = _release(version)
        if version is None:
            checks.append(_problem(name, "is not installed", f"pip install '{name}>=2024.11'"))
        elif release < OLDEST_DISTRIBUTED:
            checks.append(
                _problem(
                    name,
                    f"{version} is older than 2024.11",
                    "upgrade it: hooks recup needs are missing",
                )
            )
        elif release > NEWEST_DISTRIBUTED:
            newest = ".".join(map(str, NEWEST_DISTRIBUTED))
            checks.append(_info(name, f"{version} is newer than what this recup is tested with ({newest})"))
        else:
            checks.append(_ok(name, version))
    dask, distributed = versions.get("dask"), versions.get("distributed")
    if dask and distributed and _release(dask) != _release(distributed):
        checks.append(
            _warning(
                "dask",
                f"{dask} does not belong to distributed {distributed}",
                "install the same release of both",
            )
        )
    return checks


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str | None) -> tuple[int, ...]:
    parts = (version or "").split(".")[:2]
    return tuple(int(part) if part.isdigit() else 0 for part in parts)


def fresh_interpreter() -> list[Check]:
    """Check that an interpreter started elsewhere, as workers are, can import recup."""
    program = "import recup, recup.preload; print(recup.__version__, recup.__file__, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        return [
            _problem(
                "recup in workers",
                f"a fresh {sys.executable} cannot import recup: {_last_line(done.stderr)}",
                "install recup into the environment that runs the workers",
            )
        ]
    version, _, file = done.stdout.strip().partition("\n")
    return [_ok("recup in workers", f"{version} from {Path(file).parent}, wherever this Python is started")]


COMPILED = (
    "recup.analyse.critical_path_ideal",
    "recup.capture.taskgraph",
    "recup.capture.thread_readings",
    "recup.capture.transfer_rows",
    "recup.capture.transition_hooks",
    "recup.columns",
)
"""What runs for every task; each has a form in Python that takes its place."""


def compiled_parts() -> list[Check]:
    """Check that what runs for every task was compiled when recup was installed."""
    missing = [name for name in COMPILED if not _is_compiled(name)]
    if not missing:
        return [_ok("compiled parts", "what runs for every task is compiled")]
    return [
        _warning(
            "compiled parts",
            f"not compiled: {', '.join(missing)}; record and answers are the same, at more CPU time per task",
            "with a C compiler and Python's headers at hand: pip install --force-reinstall --no-deps recup",
        )
    ]


def _is_compiled(name: str) -> bool:
    found = importlib.util.find_spec(name)
    return found is not None and isinstance(found.loader, importlib.machinery.ExtensionFileLoader)


# ---------------------------------------------------------------- live check


def live_recording() -> list[Check]:
    """Record a tiny cluster the way `recup run` does, and look whether rows of every role arrive."""
    from recup.launch import recording_environment
    from recup.rundir import create_run

    with tempfile.TemporaryDirectory(prefix="recup-doctor-") as directory:
        run = create_run(Path(directory), way="run", command=["recup", "doctor"])
        script = Path(directory) / "tiny.py"
        script.write_text(_TINY_PROGRAM)
        environment = {**recording_environment(run, os.environ), "DASK_RECUP__SPOOL__DIRECTORY": ""}
        begun = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, str(script)],
                env=environment,
                cwd=directory,
                capture_output=True,
                text=True,
                timeout=_LIVE_CHECK_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [_problem("live check", f"a cluster of one worker did not end within {_LIVE_CHECK_S:.0f} s")]
        if done.returncode:
            fix = "run the same without recup: if it fails too, the Dask installation or configuration is at fault"
            return [_problem("live check", f"a cluster of one worker failed: {_last_line(done.stderr)}", fix)]
        return _judge_recording(recorded_rows(run), done.stderr, time.monotonic() - begun)


def recorded_rows(run: Path) -> dict[str, dict[str, int]]:
    """Return rows written by role and table, as the `status.json` of each server counts them."""
    rows: dict[str, dict[str, int]] = {}
    for status in sorted(run.glob("spool/*/status.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
            content = json.loads(status.read_text())
            counts = rows.setdefault(str(content["role"]), {})
            for table, count in content["row_counts"].items():
                counts[table] = counts.get(table, 0) + int(count)
    return rows


def _judge_recording(rows: Mapping[str, Mapping[str, int]], stderr: str, took_s: float) -> list[Check]:
    wanted = {
        "scheduler": ("scheduler_transitions", "tasks", "submissions"),
        "worker": ("worker_transitions", "results", "processes"),
        "client": ("client_submissions",),
    }
    missing = [
        f"{role}: {table}" for role, tables in wanted.items() for table in tables if not rows.get(role, {}).get(table)
    ]
    total = sum(sum(counts.values()) for counts in rows.values())
    if missing:
        told = [line for line in stderr.splitlines() if "recup" in line]
        reason = f" ({told[-1].strip()})" if told else ""
        return [
            _problem("live check", f"a cluster of one worker ran, but no rows came: {', '.join(missing)}{reason}",
                "look for distributed.*.preload below; else please report it with what `recup doctor --json` prints",
            )
        ]  # fmt: skip
    roles = ", ".join(sorted(rows))
    return [_ok("live check", f"a cluster of one worker left {total} rows of {roles}, in {took_s:.1f} s")]


# ---------------------------------------------------------------- where runs are written


def runs_root_place(root: Path) -> list[Check]:
    """Check that runs can be written, and what holds them."""
    from recup.capture.machine import filesystem_rows

    existing = next((each for each in (root, *root.parents) if each.exists()), Path("/"))
    name_another = "name another place with --root or $RECUP_ROOT"
    try:
        descriptor, probe = tempfile.mkstemp(prefix=".recup-doctor-", dir=existing)
        os.close(descriptor)
        os.unlink(probe)
    except OSError as reason:
        return [_problem("runs root", f"{root} cannot be written: {reason.strerror}", name_another)]
    place = next(iter(filesystem_rows({"run": str(existing)})))
    kind, free = place.filesystem or "unknown filesystem", place.free_bytes
    room = "free space unknown" if free is None else f"{free / 2**30:.1f} GiB free"
    statement = f"{root} on {kind} ({place.mount_point or 'mount not found'}), {room}"
    if free is not None and free < _FULL_BYTES:
        return [_problem("runs root", statement, f"{name_another}: rows that find no room are lost")]
    if free is not None and free < _SMALL_BYTES:
        return [_warning("runs root", statement, f"a million tasks take about 100 MB; {name_another}")]
    if kind in ("tmpfs", "ramfs"):
        return [_warning("runs root", f"{statement}; it takes memory, and a reboot empties it", name_another)]
    return [_ok("runs root", statement), *_spool_directory()]


def _spool_directory() -> list[Check]:
    import dask.config

    directory = dask.config.get("recup.spool.directory", None)
    if not directory:
        return []
    if os.access(directory, os.W_OK):
        return [_ok("spool directory", f"{directory} is used by servers of this host and collected at the end")]
    return [
        _warning("spool directory", f"{directory} (recup.spool.directory) cannot be written here",
            "servers here write into the run directory instead; make it, or unset it",
        )
    ]  # fmt: skip


# ---------------------------------------------------------------- configuration, batch systems


def preload_settings() -> list[Check]:
    """Check the user's own preloads: `recup run` keeps them, later settings replace recup's."""
    import dask.config

    checks = []
    for server in ("scheduler", "client", "worker", "nanny"):
        preloads = dask.config.get(f"distributed.{server}.preload", None) or []
        preloads = [preloads] if isinstance(preloads, str) else list(preloads)
        if preloads:
            checks.append(
                _info(
                    "preloads",
                    f"distributed.{server}.preload is {', '.join(map(str, preloads))}; `recup run` keeps it",
                    "code that sets it while the program runs takes recup out: add 'recup.preload' there",
                )
            )
    if "recup" in os.environ.get("DASK_DISTRIBUTED__SCHEDULER__PRELOAD", ""):
        checks.append(_info("preloads", "the environment names recup: every cluster started from here is recorded"))
    if checks:
        return checks
    return [_ok("preloads", "none of your own; the scheduler's plugin brings those of workers and nannies")]


def batch_and_launchers(root: Path) -> list[Check]:
    """Say what a batch system, dask-jobqueue or dask-mpi needs."""
    checks = []
    system = batch_system(os.environ)
    if system:
        checks.append(_ok("batch system", f"inside a {system[0]} job, {system[1]}: its facts are recorded"))
    else:
        commands = [name for name in ("sbatch", "qsub", "bsub", "flux") if shutil.which(name)]
        told = f"no job around this shell; {', '.join(commands)} found" if commands else "none detected"
        checks.append(_ok("batch system", told))
    home = Path(__file__).parent.parent
    if importlib.util.find_spec("dask_jobqueue"):
        checks.append(
            _info(
                "dask-jobqueue",
                f"jobs are recorded when their Python imports recup and they can write {root}",
                "where they cannot, set job_script_prologue to "
                f"['export PYTHONPATH={home}:$PYTHONPATH', 'export DASK_RECUP__SPOOL__DIRECTORY=/shared/directory']",
            )
        )
    if importlib.util.find_spec("dask_mpi"):
        checks.append(
            _info(
                "dask-mpi",
                "ranks are recorded when the variables `recup run` sets reach them; there are no nannies, "
                "so how a worker died is known to the scheduler alone",
                "start `recup run mpirun ...`, and pass the variables on where mpirun does not (-x or -genvlist)",
            )
        )
    checks.append(
        _info(
            "nannies",
            "`dask worker` ignores distributed.nanny.preload; recup does not need it",
        )
    )
    return checks


def batch_system(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the batch system and job id that the environment names, or None."""
    for system, name in (
        ("Slurm", "SLURM_JOB_ID"), ("PBS", "PBS_JOBID"), ("LSF", "LSB_JOBID"), ("Flux", "FLUX_JOB_ID"),
    ):  # fmt: skip
        if environment.get(name):
            return system, environment[name]
    if environment.get("JOB_ID") and environment.get("SGE_TASK_ID"):
        return "Grid Engine", environment["JOB_ID"]
    return None


# ---------------------------------------------------------------- kernel and tools


def kernel_facts() -> list[Check]:
    """Check what samples are read from, clocks, and how many files may be open."""
    checks = []
    unreadable = [name for name in ("statm", "io", "mountinfo", "cgroup") if not _readable(Path("/proc/self") / name)]
    if unreadable:
        checks.append(
            _warning(
                "/proc",
                f"/proc/self/{', '.join(unreadable)} cannot be read: samples lack what stands there",
            )
        )
    else:
        checks.append(_ok("/proc", "readable: CPU, memory and I/O of processes are sampled"))
    checks += [_cgroup(), _clock(), _open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))]
    return checks


def _readable(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            file.read(1)
        return True
    except OSError:
        return False


def _cgroup() -> Check:
    from recup.capture.machine import cgroup_limits

    cpus, memory = cgroup_limits()
    limits = [f"{cpus:g} CPUs"] if cpus is not None else []
    limits += [f"{memory / 2**30:.1f} GiB"] if memory is not None else []
    return _ok("cgroup", f"allows {' and '.join(limits)}" if limits else "sets no limit on CPU or memory")


def _clock() -> Check:
    try:
        source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource").read_text().strip()
    except OSError:
        source = "not told"
    begun = time.perf_counter_ns()
    for _ in range(2000):
        time.time_ns()
    cost_ns = (time.perf_counter_ns() - begun) / 2000
    if cost_ns > 500:
        return _warning(
            "clock",
            f"source {source}: reading it takes {cost_ns:.0f} ns",
            "recording costs more than promised here",
        )
    return _ok("clock", f"source {source}, {cost_ns:.0f} ns a reading")


def _open_files(soft: int, hard: int) -> Check:
    shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    if soft == resource.RLIM_INFINITY or soft >= _FILES_WANTED:
        return _ok("open files", f"up to {shown} in a process")
    statement = f"up to {shown} in a process; a recorded server keeps about 20 open"
    allowed = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    if soft < 1024:
        return _warning("open files", statement, f"`ulimit -n {_FILES_WANTED}` (up to {allowed} is allowed)")
    return _ok("open files", f"{statement}: enough for {soft // 25} servers in one")


def optional_tools() -> list[Check]:
    """Say which tools are there that add to the record."""
    git = shutil.which("git")
    checks = [
        _ok("git", git) if git else _info("git", "not found: the commit of your script is read from its files alone")
    ]
    from recup.capture.darshan_library import find_library

    found = find_library(None, os.environ)
    there = f"{found.path} ({found.source})" if found.path else "not found; `recup run --darshan=PATH` may name it"
    checks.append(_info("libdarshan", there, "`recup doctor --darshan` tries it"))
    if importlib.util.find_spec("yappi") is not None:
        checks.append(_ok("yappi", f"{_version('yappi')}: `recup run --yappi cpu` profiles functions"))
    else:
        checks.append(_info("yappi", "not found: `recup run --yappi` needs it", "pip install 'recup[yappi]'"))
    return checks


def _last_line(text: str) -> str:
    lines: list[Any] = [line.strip() for line in text.splitlines() if line.strip()]
    return str(lines[-1]) if lines else "it said nothing"
