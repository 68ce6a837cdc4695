"""Programs run under recup in processes of their own, and what their spools hold."""

import json
import sys
import textwrap
from collections import defaultdict
from pathlib import Path

import pyarrow as pa

from recup.launch import run_program, wait_for_stragglers

HEADER = """
import os, signal, sys, time
import dask
from distributed import Client, LocalCluster, get_client, get_worker, secede, rejoin, worker_client, wait

def inc(x): return x + 1
def add(*args): return sum(args)
def slow(x, t=0.05):
    time.sleep(t)
    return x
def fail(x): raise ValueError(f"no {x}")

def local(**kwargs):
    options = dict(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    return LocalCluster(**{**options, **kwargs})

if __name__ == "__main__":
"""


def write_program(path, body):
    """Write a program of the usual header and this body; returns its path."""
    path.write_text(HEADER + textwrap.indent(textwrap.dedent(body), "    "))
    return path


def record(tmp_path, body, *arguments):
    """Run a program under recup to its end; returns (run directory, return code)."""
    script = write_program(tmp_path / "program.py", body)
    run, code = run_program([sys.executable, str(script), *arguments], str(script), tmp_path / "runs")
    assert wait_for_stragglers(run) == []
    return run, code


def spools(run, role):
    """Spool directories of a role."""
    return sorted(run.glob(f"spool/{role}-*"))


def read_stream(path):
    """Every complete batch of a stream as a list of rows."""
    rows = []
    try:
        with pa.ipc.open_stream(path.read_bytes()) as reader:
            while True:
                rows += reader.read_next_batch().to_pylist()
    except (StopIteration, pa.ArrowInvalid, OSError, FileNotFoundError):
        return rows


def rows(run, role, table):
    """Rows of a table from all servers of a role, keys as text, with the server's id."""
    found = []
    for directory in spools(run, role):
        keys = {row["key_id"]: row["key"] for row in read_stream(directory / "keys.arrows")}
        for row in read_stream(directory / f"{table}.arrows"):
            for name in ("key", "dependency", "inner_key", "first_key", "blamed_key", "submitting_key"):
                if name in row:
                    row[name] = keys.get(row[name])
            found.append({**row, "server": directory.name.split("-", 1)[1]})
    return found


def statuses(run, role):
    """The status of each server of a role."""
    return [json.loads((directory / "status.json").read_text()) for directory in spools(run, role)]


def assert_complete(run, *, killed=()):
    """Every transition Dask counted is in the files, on every scheduler and worker that was not killed."""
    assert spools(run, "scheduler")
    for role, table in (("scheduler", "scheduler_transitions"), ("worker", "worker_transitions")):
        for directory in spools(run, role):
            status = json.loads((directory / "status.json").read_text())
            if status["server_id"] in killed:
                continue
            counters = defaultdict(int, status["counters"])
            assert status["closed"], directory.name
            assert status["unwritten_losses"] == {}
            assert counters["transitions_recorded"] + counters["transitions_compound"] == counters["transitions_dask"]
            assert len(read_stream(directory / f"{table}.arrows")) >= counters["transitions_recorded"]
            assert losses(directory) == []


def losses(directory):
    """What a spool says it lost."""
    return [(row["kind"], row["table"], row["detail"]) for row in read_stream(Path(directory) / "losses.arrows")]
