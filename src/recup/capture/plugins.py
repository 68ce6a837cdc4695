"""Plugins on their way to workers and nannies, packed so that they cannot harm them.

A worker unpickles the plugins it is sent while it registers, unguarded: a plugin whose
module is missing there would keep the worker out of the cluster.  So what is pickled is a
small function, by value, that imports recup where it can and otherwise makes a plugin
that does nothing.  The record then says that this worker was not captured.
"""

from __future__ import annotations

from typing import Any

import cloudpickle

_LOADER = """
def load(kind, run_directory, scheduler_id, yappi=None):
    try:
        if kind == "worker":
            from recup.capture.worker import RecupWorker as Plugin
        else:
            from recup.capture.nanny import RecupNanny as Plugin
        plugin = Plugin(run_directory, scheduler_id)
        if yappi is not None:
            from recup.capture.profile_request import Settings

            plugin.yappi = Settings(*yappi)
        return plugin
    except Exception:
        from distributed.diagnostics.plugin import NannyPlugin, WorkerPlugin

        plugin = (WorkerPlugin if kind == "worker" else NannyPlugin)()
        plugin.name = "recup"
        return plugin
"""


class _Packed:
    def __init__(self, load: Any, arguments: tuple[Any, ...]):
        self._load = load
        self._arguments = arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._load, self._arguments


def packed_plugin(kind: str, run_directory: str, scheduler_id: str, yappi: tuple[Any, ...] | None = None) -> bytes:
    """Return the pickled ``worker`` or ``nanny`` plugin, loadable where recup is not installed.

    `yappi` holds the fields of `profile_request.Settings` for a worker that is to be profiled.
    """
    # A module name that cannot be imported makes cloudpickle send the function itself.
    namespace: dict[str, Any] = {"__name__": "_recup_loader"}
    exec(_LOADER, namespace)
    packed: bytes = cloudpickle.dumps(_Packed(namespace["load"], (kind, run_directory, scheduler_id, yappi)))
    return packed
