"""recup records what a Dask workload did and answers questions about it afterwards.

    recup run script.py            record any script
    recup info last                what happened

    with recup.record(client) as run: ...
    recup.open_run(run.path).sql("from task_runs")

Importing recup imports neither Dask nor any analysis library; each name below brings what
it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recup.capture.scheduler import RecupScheduler
    from recup.capture.session import record
    from recup.errors import RecupError
    from recup.store import Run, open_run, seal

__version__ = "0.1.0"
__all__ = ["RecupError", "RecupScheduler", "Run", "open_run", "record", "seal"]

_HOMES = {
    "RecupError": "recup.errors",
    "RecupScheduler": "recup.capture.scheduler",
    "Run": "recup.store",
    "open_run": "recup.store",
    "record": "recup.capture.session",
    "seal": "recup.store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recup' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def load_ipython_extension(shell: Any) -> None:
    """Make ``%load_ext recup`` add the magics ``%recup`` and ``%%recup``."""
    import_module("recup.ipython").register(shell)
