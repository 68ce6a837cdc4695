"""What is to be profiled by Yappi, and how that is told to the processes it is asked of.

Configuration, each also an environment variable ``DASK_RECUP__YAPPI__...``:

* ``recup.yappi.clock``: ``wall`` or ``cpu``; nothing is profiled without it;
* ``recup.yappi.prefix``: task prefixes, or patterns of them; default all tasks and the event loop;
* ``recup.yappi.on``: roles of servers, of ``worker``, ``scheduler`` and ``client``; default ``worker``.

It does not cover the profiling (`recup.capture.function_profile`).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import dask

from recup.spool import Spool

CLOCKS = ("wall", "cpu")
ROLES = ("worker", "scheduler", "client")


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What is to be profiled."""

    clock: str
    prefixes: tuple[str, ...] = ()
    on: tuple[str, ...] = ("worker",)


def configured() -> Settings | None:
    """Return what Dask's configuration asks for, or None where it asks for no profile.

    What it says wrongly is taken as not said; `recup run` checks what it is given.
    """
    clock = dask.config.get("recup.yappi.clock", None)
    if clock not in CLOCKS:
        return None
    prefixes = _listed(dask.config.get("recup.yappi.prefix", None))
    roles = tuple(role for role in _listed(dask.config.get("recup.yappi.on", None)) if role in ROLES)
    return Settings(clock, prefixes, roles or ("worker",))


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the variables by which other processes are told these settings."""
    values = {"CLOCK": settings.clock, "PREFIX": repr(list(settings.prefixes)), "ON": repr(list(settings.on))}
    return {f"DASK_RECUP__YAPPI__{name}": value for name, value in values.items()}


def note_request(run_directory: Path, settings: Settings | None, spool: Spool) -> None:
    """Leave in the run what was asked for, so that a run without functions can say why."""
    if settings is None:
        return
    try:
        (run_directory / "foreign" / "yappi").mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(settings))
        (run_directory / "foreign" / "yappi" / "request.json").write_text(text + "\n")
    except OSError as reason:
        spool.lose("not_captured", None, f"that Yappi was asked for could not be noted: {reason}")


def _listed(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else tuple(filter(None, str(value).split(",")))
