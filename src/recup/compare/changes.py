"""What was not the same in two runs: software, configuration, machines, workers, code and graph.

Covers what was there before a task ran, and the shape of the graph.  It does not cover
what happened then (`recup.compare.differences`).  Of several repeats of a side a value
stands for all where they agree; where they do not, each is told.

What is new in every run by its nature (directories of recup, seeds of hashes, ids of
jobs and processes) is no change.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from recup.analyse.rows import rows_of
from recup.compare.graph_match import Group, graph_groups, matched_groups
from recup.terminal import bytes_text

if TYPE_CHECKING:
    import pyarrow as pa

    from recup.store import Run

WEIGHTS = ("high", "medium", "low")
"""``high``: what ran, or on what, is another.  ``medium``: it may change how things ran.
``low``: it seldom matters, or repeats of one side differ in it too."""

KINDS = (
    "command", "code", "graph", "workers", "hosts", "config", "python", "packages", "environment", "filesystems", "recup",
)  # fmt: skip
"""Kinds of changes, in the order of the table among those of one weight."""

_WEIGHT_OF = {
    "command": "high", "code": "high", "graph": "high", "workers": "high", "hosts": "high", "config": "high",
    "python": "high", "packages": "medium", "environment": "medium", "filesystems": "medium", "recup": "low",
}  # fmt: skip
_TELLING_PACKAGES = {
    "dask",
    "distributed",
    "numpy",
    "pandas",
    "pyarrow",
    "xarray",
    "zarr",
    "cloudpickle",
    "msgpack",
    "tornado",
    "lz4",
}
_QUIET_CONFIG = {"recup.run_directory", "recup.root"}
_QUIET_ENVIRONMENT = re.compile(
    r"^(DASK_RECUP__RUN_DIRECTORY|RECUP_\w*|PYTHONHASHSEED|SHLVL|_|OLDPWD|PWD|WINDOWID|\w*_(JOB_?ID|JOB_?NAME|TASK_PID|STEP_?ID|PID)"
    r"|SLURM_\w*(TIME|PORT|PORTS|JOBID|JOB_ID|LAUNCH\w*|SRUN\w*)|PBS_(COOKIE|JOBCOOKIE|MOMPORT))$"
)

HOSTS_SQL = """
with hosts_once as (
    select host_id, any_value(hostname) as hostname, any_value(cpu_model) as cpu_model, any_value(cpu_count) as cpu_count,
        any_value(core_count) as core_count, any_value(memory_bytes) as memory_bytes, any_value(kernel) as kernel,
        any_value(operating_system) as operating_system, any_value(architecture) as architecture,
        any_value(container) as container
    from raw.hosts
    group by host_id
)
select * exclude (host_id), count(*) over () as host_count from hosts_once order by hostname
"""
WORKERS_SQL = """
with lives as (
    -- A worker that its nanny started again keeps its name.
    select scheduler_id, coalesce(name, address, worker_id) as name, arg_min(thread_count, came_s) as thread_count,
        arg_min(memory_limit_bytes, came_s) as memory_limit_bytes
    from worker_lives
    group by all
)
select count(*) as worker_count, list_sort(list(distinct thread_count)) as threads,
    list_sort(list(distinct memory_limit_bytes)) as limits
from lives
"""
SOFTWARE_SQL = """
select 'python' as kind, 'python' as name, python_version as value from raw.processes
union
select 'recup', 'recup', recup_version from raw.processes
union
select 'packages', name, version from raw.packages
union
select 'environment', name, coalesce(value, '(redacted)') from raw.environment
union
select 'config', c.name, coalesce(c.value, '(redacted)')
from raw.config c
-- The launcher runs no Dask.
where c.config_digest in (select config_digest from raw.processes where role in ('scheduler', 'worker', 'client'))
union
select 'filesystems', purpose, coalesce(filesystem, 'unknown') || ' at ' || coalesce(mount_point, '?')
from raw.filesystems
where purpose <> 'run'
"""
CODE_SQL = """
select 'script ' || parse_filename(path) as name, left(source_digest, 12) as value from raw.sources where kind = 'script'
union
select 'commit', left(commit, 12) from raw.repositories where commit is not null
union
select 'branch', branch from raw.repositories where branch is not null
union
select 'changed files', case when is_dirty then coalesce(changed_file_count::varchar, 'some') else 'none' end
from raw.repositories
where is_dirty is not null
"""
_HOST_FACTS = (
    "cpu_model",
    "cpu_count",
    "core_count",
    "memory_bytes",
    "kernel",
    "operating_system",
    "architecture",
    "container",
)

Facts = dict[tuple[str, str], frozenset[str]]


def changes(a_runs: Sequence[Run], b_runs: Sequence[Run]) -> pa.Table:
    """What is not the same in the runs A and B: one row per fact that differs, the weightiest first.

    a and b are the values as text; null is a fact that the side does not have.  Values that
    were redacted when they were recorded can only be told apart from those that are there.

    From: processes, packages, config, environment, hosts, filesystems, worker_lives, sources, repositories, tasks,
    dependencies, run.json
    Columns: kind (one of `KINDS`), name, a, b, weight (one of `WEIGHTS`), notes (null: nothing to say)
    """
    import pyarrow as pa

    of_a, of_b = [_facts(run) for run in a_runs], [_facts(run) for run in b_runs]
    missing = _not_recorded(a_runs, b_runs)
    rows = []
    for kind, name in sorted({each for facts in (*of_a, *of_b) for each in facts}):
        if kind in missing:
            continue
        left, right = ([facts.get((kind, name), frozenset()) for facts in side] for side in (of_a, of_b))
        if {*left} & {*right}:
            continue
        rows.append(_row(kind, name, left, right))
    if a_runs and b_runs and "graph" not in missing:
        rows += _graph_rows(graph_groups(a_runs[0]), graph_groups(b_runs[0]))
    order = {kind: at for at, kind in enumerate(KINDS)}
    rows.sort(key=lambda row: (WEIGHTS.index(row["weight"] or "low"), order[row["kind"] or ""], row["name"] or ""))
    names = ("kind", "name", "a", "b", "weight", "notes")
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in names]))


_RECORDED_SQL = """
select
    (select count(*) from raw.packages) > 0 as packages,
    (select count(*) from raw.environment) > 0 as environment,
    (select count(*) from raw.config) > 0 as config,
    (select count(*) from raw.hosts) > 0 as hosts,
    (select count(*) from raw.filesystems) > 0 as filesystems,
    (select count(*) from worker_lives) > 0 as workers,
    (select count(*) from raw.processes) > 0 as python,
    (select count(*) from raw.processes) > 0 as recup,
    (select count(*) from raw.tasks) > 0 as graph
"""


def _not_recorded(a_runs: Sequence[Run], b_runs: Sequence[Run]) -> set[str]:
    """Return kinds that a run of one of the sides says nothing of: no change follows."""
    return {kind for run in (*a_runs, *b_runs) for kind, there in rows_of(run, _RECORDED_SQL)[0].items() if not there}


def _row(kind: str, name: str, left: list[frozenset[str]], right: list[frozenset[str]]) -> dict[str, str | None]:
    varies = len({*left}) > 1 or len({*right}) > 1
    weight = "low" if varies else _WEIGHT_OF[kind]
    if kind == "packages" and name in _TELLING_PACKAGES and not varies:
        weight = "high"
    if kind == "hosts" and name in ("kernel", "names", "operating system"):
        weight = "medium" if not varies else "low"
    notes = "differs among repeats too" if varies else None
    return {"kind": kind, "name": name, "a": _told(left), "b": _told(right), "weight": weight, "notes": notes}


def _told(values: list[frozenset[str]]) -> str | None:
    told = sorted({value for each in values for value in each})
    return " | ".join(told) if told else None


def _facts(run: Run) -> Facts:
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for kind, name, value in _told_facts(run):
        found[kind, name].add(value)
    return {each: frozenset(values) for each, values in found.items()}


def _told_facts(run: Run) -> Iterator[tuple[str, str, str]]:
    for row in rows_of(run, SOFTWARE_SQL):
        kind, name, value = row["kind"], row["name"], row["value"]
        is_quiet = (kind == "config" and name in _QUIET_CONFIG) or (
            kind == "environment" and _QUIET_ENVIRONMENT.match(name)
        )
        if value is not None and not is_quiet:
            yield kind, name, value.replace(str(run.path), "(run)").replace(run.run_id, "(run)")
    for row in rows_of(run, CODE_SQL):
        yield "code", row["name"], row["value"]
    yield from _command_facts(run)
    hosts = rows_of(run, HOSTS_SQL)
    if hosts:
        yield "hosts", "count", str(hosts[0]["host_count"])
    for row in hosts:
        yield "hosts", "names", str(row["hostname"])
        for name in _HOST_FACTS:
            if row[name] is not None:
                value = bytes_text(row[name]) if name == "memory_bytes" else str(row[name])
                yield "hosts", name.removesuffix("_bytes").replace("_", " "), value
    (workers,) = rows_of(run, WORKERS_SQL)
    if workers["worker_count"]:
        yield "workers", "count", str(workers["worker_count"])
        for value in workers["threads"] or ():
            yield "workers", "threads", str(value)
        for value in workers["limits"] or ():
            yield "workers", "memory limit", bytes_text(value) if value else "none"


def _command_facts(run: Run) -> Iterator[tuple[str, str, str]]:
    command = run.manifest.get("command")
    if isinstance(command, list) and command:
        words = [str(each) for each in command]
        # What the program is called, and where it and its files are, is told by cwd and interpreter.
        yield "command", "arguments", json.dumps([word.rpartition("/")[2] for word in words[:1]] + words[1:])
        yield "command", "interpreter", words[0]
    if run.manifest.get("cwd"):
        yield "command", "directory", str(run.manifest["cwd"])


def _graph_rows(a: Sequence[Group], b: Sequence[Group]) -> list[dict[str, str | None]]:
    rows: list[dict[str, str | None]] = []
    for left, right in matched_groups(a, b):
        if left is not None and right is not None:
            if (left.task_count, left.needed) == (right.task_count, right.needed):
                continue
            notes = "number of tasks" if left.needed == right.needed else "what it depends on"
        else:
            notes = "only in A" if right is None else "only in B"
        one = left or right
        assert one is not None
        name = one.prefix if one.place == 1 else f"{one.prefix} (group {one.place})"
        told = [None if each is None else str(each) for each in (left, right)]
        rows.append({"kind": "graph", "name": name, "a": told[0], "b": told[1], "weight": "high", "notes": notes})
    return rows
