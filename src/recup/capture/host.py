"""Step 1 of a run: everything about where, on what and with what software a server runs.

Covers calling the modules that describe the machine, the batch job, the software, the
configuration and the user's code, each guarded on its own: what cannot be told becomes a
loss with its reason, never an exception.  It does not cover what changes while the server
runs (`recup.capture.sampling`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from recup.capture.accelerators import accelerator_rows
from recup.capture.batch import command_facts, environment_facts
from recup.capture.configuration import config_rows
from recup.capture.machine import filesystem_rows, host_id, host_row, network_rows, paths_in_use
from recup.capture.provenance import main_script, records_source, repository_row, script_source
from recup.capture.redaction import redacted_text
from recup.capture.software import Server, environment_rows, installed_packages, process_row
from recup.schema import Repository, Source
from recup.spool import Spool, key_text

__all__ = ["host_id", "record_process", "record_process_in_background", "redacted_text"]

_recorded: dict[tuple[str, str, str], object] = {}
"""(run, table, digest) of what this process has recorded already."""


def record_process(
    spool: Spool,
    *,
    role: str,
    run_directory: Path,
    address: str | None = None,
    name: object = None,
    scheduler_id: str | None = None,
    thread_count: int | None = None,
    memory_limit_bytes: int | None = None,
    local_directory: str | None = None,
    details: dict[str, Any] | None = None,
    script: str | None = None,
) -> None:
    """Record a server's host, software, configuration and code: rows of the eleven tables of step 1.

    Never raises.  Takes about 0.1 s of CPU, and longer by the clock where it waits for git
    or a batch system (3 s at most for each answer), so it belongs in a thread: see
    `record_process_in_background`.  Packages, configurations, sources and repositories that
    several servers of one process share are recorded once per run.

    Parameters
    ----------
    spool : Spool
        Where the rows go.
    role : str
        ``scheduler``, ``worker``, ``nanny``, ``client`` or ``launcher``.  Batch systems are
        asked by schedulers and launchers only, git by all but workers and nannies.
    script : str, optional
        The user's script; by default ``__main__`` of a client or launcher, unless it is
        an installed program.
    details : dict, optional
        Facts only this role has; secrets are redacted by name.
    """
    server = Server(
        spool, role, run_directory, address, name, scheduler_id, thread_count, memory_limit_bytes, local_directory,
        details, script,
    )  # fmt: skip
    for section, table_name, rows in _SECTIONS:
        try:
            for row in rows(server):
                spool.put(row)
        except Exception as reason:  # noqa: BLE001 - the other sections must still be recorded
            text = redacted_text(f"{section}: {type(reason).__name__}: {key_text(reason)}")
            spool.lose("not_captured", table_name, text[:500])


def record_process_in_background(
    spool: Spool,
    *,
    role: str,
    run_directory: Path,
    address: str | None = None,
    name: object = None,
    scheduler_id: str | None = None,
    thread_count: int | None = None,
    memory_limit_bytes: int | None = None,
    local_directory: str | None = None,
    details: dict[str, Any] | None = None,
    script: str | None = None,
) -> threading.Thread:
    """Start `record_process` in a daemon thread and return the thread; never raises.

    Where no thread can be started, that is counted and the thread is returned unstarted.
    A server that ends at once may join it, with a timeout, before it closes its spool.
    """

    def run() -> None:
        record_process(
            spool, role=role, run_directory=run_directory, address=address, name=name, scheduler_id=scheduler_id,
            thread_count=thread_count, memory_limit_bytes=memory_limit_bytes, local_directory=local_directory,
            details=details, script=script,
        )  # fmt: skip

    thread = threading.Thread(target=run, name="recup-host", daemon=True)
    try:
        thread.start()
    except RuntimeError as reason:  # the process may start no more threads, or is ending
        spool.lose("not_captured", "processes", f"process: {reason}")
    return thread


# ---------------------------------------------------------------- sections


def _packages(server: Server) -> Iterable[Any]:
    server.packages_digest, rows = installed_packages()
    return rows if _is_new(server, "packages", server.packages_digest) else ()


def _config(server: Server) -> Iterable[Any]:
    server.config_digest, rows = config_rows()
    return rows if _is_new(server, "config", server.config_digest) else ()


def _batch_commands(server: Server) -> Iterator[Any]:
    if server.role in ("launcher", "scheduler"):
        for row in command_facts(os.environ, with_text=records_source()):
            if not isinstance(row, Source) or _is_new(server, "sources", row.source_digest):
                yield row


def _script(server: Server) -> Iterator[Source]:
    script = main_script(server.script, server.role)
    if script is not None:
        source = script_source(script, with_text=records_source())
        if _is_new(server, "sources", source.source_digest):
            yield source


def _repository(server: Server) -> Iterator[Repository]:
    # A thousand workers asking git about one work tree on a shared disk would be felt.
    if server.role in ("worker", "nanny"):
        return
    script = main_script(server.script, server.role)
    directory = Path(script).absolute().parent if script is not None else Path.cwd()
    if _is_new(server, "repositories", str(directory)):
        repository = repository_row(directory)
        if repository is not None:
            yield repository


def _filesystems(server: Server) -> Iterable[Any]:
    script = main_script(server.script, server.role)
    return filesystem_rows(paths_in_use(server.run_directory, script, server.local_directory))


def _is_new(server: Server, table_name: str, digest: str) -> bool:
    """Whether this process has not recorded that for the run yet; setdefault decides between threads."""
    mark = object()
    return _recorded.setdefault((str(server.spool.run_directory), table_name, digest), mark) is mark


_SECTIONS: tuple[tuple[str, str, Callable[[Server], Iterable[Any]]], ...] = (
    ("packages", "packages", _packages),
    ("config", "config", _config),
    # Needs the digests of the two; all that may wait for something else comes after it.
    ("process", "processes", lambda server: [process_row(server)]),
    ("environment", "environment", lambda server: environment_rows()),
    ("host", "hosts", lambda server: [host_row()]),
    ("batch environment", "batch_jobs", lambda server: environment_facts(os.environ)),
    ("script", "sources", _script),
    ("repository", "repositories", _repository),
    ("network", "network_interfaces", lambda server: network_rows(server.address)),
    ("filesystems", "filesystems", _filesystems),
    ("accelerators", "accelerators", lambda server: accelerator_rows(ask_driver=server.role != "nanny")),
    ("batch commands", "batch_jobs", _batch_commands),
)
