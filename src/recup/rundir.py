"""The run directory: where runs live, what a run is called, and its `run.json`.

Covers naming, creating and finding run directories and the small manifest in each.  It
does not cover the recorded tables (`recup.spool` writes them, `recup.store` reads them).

    <runs root>/<run id>/run.json
                         spool/<role>-<server id>/<table>.arrows, status.json
                         foreign/...
                         tables/<table>.parquet        after `recup seal`
                         tables/columns.parquet        what the columns of those are
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recup import __version__
from recup.errors import RecupError, RunDamaged, RunNotFound, RunTooNew
from recup.schema import VERSION

DEFAULT_ROOT = "recup-runs"
ROOT_VARIABLE = "RECUP_ROOT"


def runs_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the directory that holds runs: the argument, else $RECUP_ROOT, else ./recup-runs."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser().absolute()


def create_run(root: Path, *, way: str, command: list[str] | None = None, run_id: str | None = None) -> Path:
    """Make a new run directory with its manifest and return its path.

    Parameters
    ----------
    root : Path
        The runs root; made when missing.
    way : str
        How recording began: ``run``, ``preload``, ``record`` or ``register_plugin``.
    command : list of str, optional
        The command line that is recorded.

    Raises
    ------
    OSError
        The directory cannot be made.
    """
    now = time.time_ns()
    if run_id is None:
        stamp = datetime.fromtimestamp(now / 1e9, UTC).strftime("%Y%m%dT%H%M%SZ")
        run_id = f"{stamp}-{secrets.token_hex(2)}"
    path = root / run_id
    path.mkdir(parents=True, exist_ok=True)
    manifest = {
        "run_id": run_id,
        "schema_version": VERSION,
        "recup_version": __version__,
        "way": way,
        "command": command,
        "cwd": _cwd(),
        "started_ns": now,
        "ended_ns": None,
        "exit_code": None,
        "signal": None,
        "state": "running",
        "sealed": False,
    }
    write_manifest(path, manifest)
    return path


def local_directory(run_name: str) -> Path:
    """Return where on this host a process puts what it cannot put into a run; each user's own, as hosts are shared."""
    return Path(tempfile.gettempdir()) / f"recup-{os.getuid()}" / run_name


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Replace `run.json` as a whole: readers see the old one or the new one."""
    temporary = path / f".run.json.{os.getpid()}.{secrets.token_hex(4)}"
    temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    os.replace(temporary, path / "run.json")


def update_manifest(path: Path, **changes: Any) -> dict[str, Any]:
    """Change some fields of `run.json` and return the whole."""
    manifest = {**read_manifest(path), **changes}
    write_manifest(path, manifest)
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what `run.json` says; of a run without one, only what its directory tells.

    Raises
    ------
    RunNotFound
        The path is no run directory.
    RunTooNew
        A newer recup wrote it.
    RunDamaged
        `run.json` is there and is not JSON of the expected form.
    """
    file = path / "run.json"
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError:
        if not (path / "spool").is_dir() and not (path / "tables").is_dir():
            raise RunNotFound(
                f"{path} is not a run: it holds no run.json, spool or tables. `recup ls` lists runs."
            ) from None
        return {"run_id": path.name, "schema_version": VERSION, "state": "unknown", "sealed": False}
    except (OSError, ValueError) as reason:
        raise RunDamaged(f"{file} cannot be read: {reason}. Move it away to open the run without it.") from reason
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema_version"), int):
        raise RunDamaged(f"{file} is not a run's manifest. Move it away to open the run without it.")
    if manifest["schema_version"] > VERSION:
        raise RunTooNew(
            f"{path} was written with schema {manifest['schema_version']}; this recup reads up to {VERSION}. Upgrade recup."
        )
    return manifest


def find_run(name: str | os.PathLike[str], root: Path | None = None) -> Path:
    """Return the run directory named by a path, a run id, the start of one, or ``last``.

    Raises
    ------
    RunNotFound
        Nothing has that name, or several do.
    """
    text = os.fspath(name)
    if Path(text).is_dir() and text != "last":
        return Path(text).absolute()
    root = runs_root() if root is None else root
    runs = find_runs(root)
    if text == "last" and runs:
        return runs[-1]
    matches = [run for run in runs if run.name == text] or [run for run in runs if run.name.startswith(text)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise RunNotFound(f"{text!r} names {len(matches)} runs in {root}: {', '.join(m.name for m in matches[:5])}")
    raise RunNotFound(f"No run {text!r}: no such directory, nor a run of that name in {root}. `recup ls` lists runs.")


def find_runs(root: Path) -> list[Path]:
    """Return the run directories under a root, oldest first; an absent root holds none."""
    try:
        entries = list(root.iterdir())
    except OSError:
        return []
    runs = [e for e in entries if (e / "run.json").is_file() or (e / "spool").is_dir() or (e / "tables").is_dir()]
    # A run's id has the second it began in, and chance behind that; a name of the user's own tells nothing.
    second_of = {run: _second(run) for run in runs}
    count_of = Counter(second_of.values())

    def begun(run: Path) -> tuple[int, int, str]:
        second = second_of[run]
        return second, _started_ns(run) if count_of[second] > 1 else 0, run.name

    return sorted(runs, key=begun)


def _second(run: Path) -> int:
    """Return the second a run began in, by its name where that is an id, else by its manifest, else its directory."""
    if re.match(r"\d{8}T\d{6}Z-", run.name):
        with contextlib.suppress(ValueError):
            return int(datetime.strptime(run.name[:16], "%Y%m%dT%H%M%S%z").timestamp())
    started_ns = _started_ns(run)
    if not started_ns:
        with contextlib.suppress(OSError):
            started_ns = run.stat().st_mtime_ns
    return started_ns // 1_000_000_000


def _started_ns(run: Path) -> int:
    """Return when the run began; 0: not told."""
    try:
        return int(read_manifest(run).get("started_ns") or 0)
    except (RecupError, TypeError, ValueError):
        return 0


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None
