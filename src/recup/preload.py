"""The module Dask loads into schedulers, workers and clients to have them recorded.

Named in ``distributed.scheduler.preload`` and ``distributed.client.preload`` by `recup
run`, or in ``dask scheduler --preload recup.preload``.  An exception while this module is
imported would end the server, so it imports nothing before it is needed.
"""

from __future__ import annotations

from typing import Any


def _roles(server: Any) -> set[str]:
    return {each.__name__ for each in type(server).__mro__}


async def dask_setup(server: Any) -> None:
    """Begin recording a scheduler or client; never raises.

    A worker or nanny needs nothing here: the scheduler's plugin brings theirs.
    """
    roles = _roles(server)
    try:
        if "Scheduler" in roles:
            from recup.capture.scheduler import RecupScheduler

            if "recup" not in server.plugins:
                server.add_plugin(RecupScheduler(way="preload"), name="recup", idempotent=True)
        elif "Client" in roles:
            from recup.capture.session import client_joins

            await client_joins(server)
    except Exception as reason:  # noqa: BLE001 - the workload starts with or without recup
        import logging

        logging.getLogger("recup").warning("recup records nothing of this %s: %r", type(server).__name__, reason)


async def dask_teardown(server: Any) -> None:
    """End the recording of a client; schedulers and workers end theirs in their plugins."""
    try:
        if "Client" in _roles(server):
            from recup.capture.session import client_leaves

            await client_leaves(server)
    except Exception as reason:  # noqa: BLE001
        import logging

        logging.getLogger("recup").warning("recup could not end the recording of a client: %r", reason)


def profile_calling_thread() -> None:
    """Have Yappi count in the thread that makes a client, if clients are to be profiled; never raises."""
    try:
        from recup.capture.function_profile import attach_calling_thread

        attach_calling_thread()
    except Exception as reason:  # noqa: BLE001 - an exception here would end the client
        import logging

        logging.getLogger("recup").warning("recup does not profile this thread: %r", reason)
