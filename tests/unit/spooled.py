"""Spools as a killed, damaged or living process leaves them."""

import json
import shutil
import time

import pyarrow as pa

from recup.spool import Spool
from tests.unit.written_runs import let_go, write

__all__ = ["edit_status", "left_by_a_killed_server", "rows", "write"]


def rows(spool, table_name):
    """Rows of a spool's table as the columns say, after everything is written."""
    assert spool.flush()
    path = spool.directory / f"{table_name}.arrows"
    return pa.ipc.open_stream(path.read_bytes()).read_all().to_pylist() if path.exists() else []


def edit_status(directory, **changes):
    """Change what a server said of itself last."""
    path = directory / "status.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content).ljust(4095) + "\n")


def left_by_a_killed_server(run, role, server_id, rows, *, counters=None, seconds_ago=60.0):
    """Write rows into a run as if their process had been killed that long ago; returns the spool directory."""
    elsewhere = run.parent / f"{run.name}-written-by-{server_id}"
    spool = Spool(elsewhere, role, server_id)
    spool.counters.update(counters or {})
    for row in rows:
        spool.put(row)
    assert spool.flush()
    target = run / "spool" / spool.directory.name
    shutil.copytree(spool.directory, target)
    let_go(spool)
    # Its number is that of this process, which began at another time.
    edit_status(target, time_ns=time.time_ns() - round(seconds_ago * 1e9), closed=False, start_ticks=0)
    return target
