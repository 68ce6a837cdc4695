"""The runs under a root, told cheaply: from `run.json`, `status.json` and `spools.parquet` alone.

Covers one row per run and the state a run is in.  It opens no table of rows, so a root
with hundreds of large runs lists in a moment; counts are those the servers themselves kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from recup.errors import RecupError
from recup.rundir import find_runs, read_manifest

_SIGN_OF_LIFE_S = 10.0


def list_runs(root: Path) -> list[dict[str, Any]]:
    """Return one row per run under a root, oldest first.

    Columns: run_id, path, started_ns, wall_s, command, state, exit_code, signal, task_count
    (a key submitted twice counts twice), worker_count (those that recorded), is_sealed,
    size_bytes, problem (why the run cannot be read; else null).  What is not known is null.
    """
    return [run_row(path) for path in find_runs(root)]


def run_state(manifest: dict[str, Any], servers: list[dict[str, Any]]) -> str:
    """Return ``running``, ``ended 0``, ``exit N``, ``signal N``, ``ended`` (how is not known) or ``unknown``.

    Unknown: nobody wrote that the run ended, and nobody shows life.
    """
    if manifest.get("state") == "ended":
        if manifest.get("signal") is not None:
            return f"signal {manifest['signal']}"
        code = manifest.get("exit_code")
        return "ended" if code is None else f"exit {code}" if code else "ended 0"
    recent_ns = time.time_ns() - _SIGN_OF_LIFE_S * 1e9
    if manifest.get("state") == "running":
        signs = [manifest.get("started_ns"), *(each["last_sign_ns"] for each in servers if not each["is_closed"])]
        if any(isinstance(sign, int) and sign > recent_ns for sign in signs):
            return "running"
    return "unknown"


def servers_of(path: Path) -> list[dict[str, Any]]:
    """Return one row per spool of a run, as its server told: directory, role, is_closed, last_sign_ns, row_counts."""
    servers: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        servers |= _sealed_servers(path / "tables" / "spools.parquet")
    for directory in sorted(path.glob("spool/*")):
        content: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads((directory / "status.json").read_text(errors="replace"))
        if directory.is_dir():
            content = content if isinstance(content, dict) else {}
            counts = content.get("row_counts")
            servers[directory.name] = {
                "role": directory.name.partition("-")[0],
                "is_closed": content.get("closed") is True,
                "last_sign_ns": content.get("time_ns"),
                "row_counts": counts if isinstance(counts, dict) else {},
            }
    return [{"directory": name, **each} for name, each in servers.items()]


def _sealed_servers(file: Path) -> dict[str, dict[str, Any]]:
    if not file.is_file():
        return {}
    import pyarrow.parquet as pq

    names = ["directory", "role", "is_closed", "last_sign_ns", "file_rows"]
    return {
        row["directory"]: {
            "role": row["role"],
            "is_closed": row["is_closed"],
            "last_sign_ns": row["last_sign_ns"],
            "row_counts": json.loads(row["file_rows"]),
        }
        for row in pq.ParquetFile(file).read(names).to_pylist()
    }


def wall_s(manifest: dict[str, Any], servers: list[dict[str, Any]], state: str) -> float | None:
    """Return how long a run took: to its end, until now while it runs, else to its last sign of life."""
    started, ended = manifest.get("started_ns"), manifest.get("ended_ns")
    if ended is None:
        signs = [each["last_sign_ns"] for each in servers if isinstance(each["last_sign_ns"], int)]
        ended = time.time_ns() if state == "running" else max(signs, default=None)
    if not isinstance(started, int) or not isinstance(ended, int):
        return None
    return max(0, ended - started) / 1e9


def run_row(path: Path) -> dict[str, Any]:
    """Return the row of one run, as `list_runs` has it."""
    manifest: dict[str, Any] = {}
    problem = None
    try:
        manifest = read_manifest(path)
    except RecupError as reason:
        problem = str(reason)
    servers = servers_of(path)
    state = "unreadable" if problem else run_state(manifest, servers)
    tasks = [each["row_counts"].get("tasks", 0) for each in servers if each["role"] == "scheduler"]
    return {
        "run_id": str(manifest.get("run_id") or path.name),
        "path": str(path),
        "started_ns": manifest.get("started_ns"),
        "wall_s": wall_s(manifest, servers, state),
        "command": manifest.get("command"),
        "state": state,
        "exit_code": manifest.get("exit_code"),
        "signal": manifest.get("signal"),
        "task_count": sum(tasks) if tasks else None,
        "worker_count": len({_without_epoch(each["directory"]) for each in servers if each["role"] == "worker"}),
        "is_sealed": bool(manifest.get("sealed")),
        "size_bytes": _size(path),
        "problem": problem,
    }


def _without_epoch(directory: str) -> str:
    """Return what the spools of one server have in common: one whose files were removed began another."""
    return re.sub(r"\.\d+$", "", directory)


def _size(path: Path) -> int:
    """Return what the files of a run take, hard links counted as often as they are there."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_size
    return total
