"""What is behind a result or a file, and what came of it: tasks, files, code and versions.

Covers one scheduler's tasks by the graph as run, files by Darshan's record where a read or write is surely of one task,
the submission and source line, the script, its repository, and the packages of the workers that took part.
It does not cover other runs, what the client read before it submitted, nor values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recup.analyse.lineage_graph import HAS_IO_SQL, Graph, reached, read_graph
from recup.analyse.rows import Document, rows_of
from recup.analyse.story import find_key
from recup.errors import BadQuery
from recup.terminal import plural

if TYPE_CHECKING:
    import numpy as np

DIRECTIONS = ("up", "down", "both")
TASKS_SHOWN = 1000
"""Tasks of each direction that are rows at most, the nearest."""
FILES_SHOWN = 200
"""Files of each direction that are rows at most, those with most bytes."""
_CANDIDATES = 8
_ALWAYS = ("dask", "distributed", "numpy")
_DISTRIBUTIONS = {
    "skimage": "scikit-image", "sklearn": "scikit-learn", "pil": "pillow", "cv2": "opencv-python", "yaml": "pyyaml",
    "bs4": "beautifulsoup4", "netcdf4": "netcdf4",
}  # fmt: skip
"""Distributions that are called otherwise than their modules."""

if TYPE_CHECKING:
    from recup.store import Run

    Numbers = np.ndarray[Any, np.dtype[Any]]

FILES_SQL = """
select distinct name
from (
    select path as name from io_names where not is_runtime and not is_beacon
    union
    select written_as from io_names where not is_runtime and not is_beacon
)
where name is not null and (name = ? or ends_with(name, ?))
order by name
"""

FILE_TASKS_SQL = """
select path, scheduler_id, key_id, bool_or(direction = 'write') as is_written, bool_or(direction = 'read') as is_read
from (
    select path, scheduler_id, key_id, direction
    from task_io
    where (path = ? or written_as = ?) and key_id is not null and module = 'POSIX' and not is_phantom
    union all
    select path, scheduler_id, key_id, 'read' from task_io_streams where path = ? and key_id is not null and read_count > 0
    union all
    select path, scheduler_id, key_id, 'write' from task_io_streams where path = ? and key_id is not null and write_count > 0
)
group by path, scheduler_id, key_id
"""

UNSURE_SQL = """
select
    count(*) filter (direction = 'read') as read_count,
    count(*) filter (direction = 'write') as write_count
from task_io
where (path = ? or written_as = ?) and key_id is null and module = 'POSIX'
"""

KEY_SQL = """
select scheduler_id, key_id, max(coalesce(assigned_s, 0)) as last_s
from (
    select scheduler_id, key_id, assigned_s from task_runs where key_id in (select key_id from keys where key = ?)
    union all
    select server_id, key_id, null from raw.tasks where key_id in (select key_id from keys where key = ?)
)
group by scheduler_id, key_id
order by last_s desc
"""

TASKS_SQL = """
with chosen as (
    select unnest(?::bigint[]) as key_id
), told as (
    select key_id, any_value(prefix) as prefix, any_value(function) as function
    from raw.tasks
    where server_id = ? and key_id in (from chosen)
    group by key_id
), fused as (
    select key_id, count(distinct inner_key_id) as inner_count
    from raw.fused_tasks
    where server_id = ? and key_id in (from chosen) and inner_key_id <> key_id
    group by key_id
), runs as (
    select *, count(*) over (partition by key_id) as attempt_count
    from task_runs
    where scheduler_id = ? and key_id in (from chosen)
    qualify row_number() over (
        partition by key_id
        order by (outcome = 'memory' and coalesce(stored_s <= ?, true)) desc, outcome = 'memory' desc, attempt_number desc
    ) = 1
), hosts as (
    select host_id, any_value(hostname) as hostname from raw.hosts group by host_id
)
select
    c.key_id,
    keys.key,
    r.run_id,
    coalesce(r.prefix, told.prefix) as prefix,
    coalesce(r.function, told.function) as function,
    r.worker,
    r.worker_id,
    hosts.hostname as host,
    r.started_s - (select started_s from run_times) as started_at_s,
    r.stored_s - (select started_s from run_times) as stored_at_s,
    r.compute_s,
    r.nbytes,
    r.typename,
    coalesce(r.outcome::varchar, case when told.key_id is null then 'data, no task made it' else 'not run' end) as outcome,
    coalesce(r.attempt_count, 0) as attempt_count,
    coalesce(fused.inner_count, 0) as inner_count,
    r.submission,
    r.stored_s
from chosen c
left join runs r on r.key_id = c.key_id
left join told on told.key_id = c.key_id
left join fused on fused.key_id = c.key_id
left join hosts on hosts.host_id = r.host_id
left join keys on keys.key_id = c.key_id
"""
"""One row per key: the attempt that made its result, no later than given; else its last attempt."""

SUMMARY_SQL = """
with chosen as (
    select unnest(?::bigint[]) as key_id
), told as (
    select key_id, any_value(prefix) as prefix, any_value(function) as function, min(submission) as submission
    from raw.tasks
    where server_id = ? and key_id in (from chosen)
    group by key_id
), runs as (
    select key_id, sum(compute_s) as compute_s, arg_max(nbytes, attempt_number) filter (outcome = 'memory') as nbytes
    from task_runs
    where scheduler_id = ? and key_id in (from chosen)
    group by key_id
)
select
    told.prefix,
    count(*) as task_count,
    sum(runs.compute_s) as compute_s,
    sum(runs.nbytes)::bigint as result_bytes,
    list(distinct told.function order by told.function) filter (told.function is not null) as functions,
    list(distinct told.submission order by told.submission) filter (told.submission is not null) as submissions
from chosen c
left join told on told.key_id = c.key_id
left join runs on runs.key_id = c.key_id
group by told.prefix
order by task_count desc, told.prefix
"""

WORKERS_SQL = """
with chosen as (
    select unnest(?::bigint[]) as key_id
), who as (
    select distinct worker_id from task_runs where scheduler_id = ? and key_id in (from chosen) and outcome = 'memory'
)
select
    p.packages_digest,
    p.python_version,
    p.dask_version,
    p.distributed_version,
    p.recup_version,
    count(distinct who.worker_id) as worker_count
from who
left join (
    select
        server_id,
        max(packages_digest) as packages_digest,
        max(python_version) as python_version,
        max(dask_version) as dask_version,
        max(distributed_version) as distributed_version,
        max(recup_version) as recup_version
    from raw.processes
    where role = 'worker'
    group by server_id
) p on p.server_id = who.worker_id
group by all
order by worker_count desc
"""

PACKAGES_SQL = """
select distinct packages_digest, name, version from raw.packages where name in (select unnest(?::varchar[])) order by name
"""

INNER_SQL = """
select distinct keys.key, f.function
from raw.fused_tasks f
left join keys on keys.key_id = f.inner_key_id
where f.server_id = ? and f.key_id in (select unnest(?::bigint[])) and f.inner_key_id <> f.key_id
order by keys.key
"""

SUBMISSIONS_SQL = """
select distinct s.client, s.client_server_id, s.client_submission, s.call, s.path, s.line, s.function, s.line_text, s.is_exact,
    coalesce(s.sent_s, s.taken_s) - (select started_s from run_times) as sent_at_s, s.submission
from submission_story s
where s.scheduler_id = ? and s.submission in (select unnest(?::bigint[]))
order by s.submission
"""

FRAMES_SQL = """
select path, line, function, line_text from raw.submission_frames where server_id = ? and submission = ? order by depth
"""

CODE_SQL = """
select distinct kind, path, source_digest from raw.sources where kind in ('script', 'cell') order by kind desc, path
"""

REPOSITORIES_SQL = """
select distinct path, "commit", branch, is_dirty, changed_file_count, remote from raw.repositories order by path
"""


# ---------------------------------------------------------------- what is meant


def find_subject(run: Run, text: str) -> tuple[str, str]:
    """Return ``("task", key)`` or ``("file", path)``: a key as `story` takes it, or a file by path or its last parts.

    A key or path that is exactly the text comes first, then files that end with it, then parts of
    keys.

    Raises
    ------
    BadQuery
        Nothing, or several things, are meant; the message names some.
    """
    if rows_of(run, "select 1 from keys where key = ? limit 1", [text]):
        return "task", find_key(run, text)
    files = (
        [str(row["name"]) for row in rows_of(run, FILES_SQL, [text, "/" + text.lstrip("/")])] if _has_io(run) else []
    )
    if text in files or len(files) == 1:
        return "file", text if text in files else files[0]
    if files:
        shown = ", ".join(files[:_CANDIDATES]) + (", ..." if len(files) > _CANDIDATES else "")
        raise BadQuery(f"{len(files)} files of run {run.run_id} end with {text!r}; give more of the one: {shown}")
    try:
        return "task", find_key(run, text)
    except BadQuery as reason:
        if not str(reason).startswith("No task"):
            raise
        where = "No file has this name" if _has_io(run) else "Files are not known: `recup run --darshan` records them"
        raise BadQuery(f"{reason} {where}.") from reason


def _has_io(run: Run) -> bool:
    return bool(run.sql(HAS_IO_SQL).fetchall()[0][0])


# ---------------------------------------------------------------- the lineage


def lineage(run: Run, text: str, direction: str = "both", depth: int | None = None) -> Document:
    """Return what is behind a result or file, and what came of it.

    Of a file, `upstream` begins with the tasks that wrote it and `downstream` with those that read it.
    A step of `depth` is from a task to one it needs, or through a file from its reader to its
    writer.  Lists are cut at `TASKS_SHOWN` and `FILES_SHOWN`; their counts are not.

    Keys: run_id, kind (task or file), name, results (the task, or the tasks that wrote the file), readers (of the
    file), inner_tasks, inner_count, upstream, downstream (each with task_count, step_count, prefixes, tasks, files,
    file_count; null if not asked for), submissions, sources, repositories, software, basis (statements)

    Raises
    ------
    BadQuery
        Nothing, or several things, are meant; or the direction is none of `DIRECTIONS`.
    """
    if direction not in DIRECTIONS:
        raise BadQuery(f"A direction is {', '.join(DIRECTIONS)}, not {direction!r}.")
    kind, name = find_subject(run, text)
    basis: list[str] = []
    scheduler_id, makers, users = _roots(run, kind, name, basis)
    graph = read_graph(run, scheduler_id, [*makers, *users])
    results = _tasks(run, scheduler_id, makers[:TASKS_SHOWN], None)
    readers = _tasks(run, scheduler_id, users[:TASKS_SHOWN], None) if kind == "file" else []
    limit_s = results[0]["stored_s"] if kind == "task" and results else None
    above: Document | None = None
    below: Document | None = None
    behind = makers
    if direction != "down":
        reach = reached(graph, graph.nodes(_array(makers)), is_upstream=True, depth=depth)
        above = _reach_document(run, scheduler_id, graph, makers, reach, limit_s)
        behind = [*makers, *reach[0].tolist()]
    if direction != "up":
        starts = makers if kind == "task" else users
        reach = reached(graph, graph.nodes(_array(starts)), is_upstream=False, depth=depth)
        below = _reach_document(run, scheduler_id, graph, starts, reach, None)
    prefixes = above["prefixes"] if above else []
    inner = rows_of(run, INNER_SQL, [scheduler_id, makers])
    document: Document = {
        "run_id": run.run_id,
        "kind": kind,
        "name": name,
        "results": [_without(row, *_INNER_COLUMNS) for row in results],
        "readers": [_without(row, *_INNER_COLUMNS) for row in readers],
        "inner_tasks": inner[:TASKS_SHOWN],
        "inner_count": len(inner),
        "submissions": _submissions(run, scheduler_id, results, prefixes),
        "sources": rows_of(run, CODE_SQL),
        "repositories": rows_of(run, REPOSITORIES_SQL),
        "software": _software(run, scheduler_id, behind, [*results, *prefixes]),
        "upstream": above,
        "downstream": below,
    }
    document["basis"] = [*basis, *_basis(graph, document, depth)]
    return document


_INNER_COLUMNS = ("key_id", "stored_s", "worker_id", "submission")


def _array(key_ids: list[int]) -> Numbers:
    import numpy as np

    return np.asarray(sorted(key_ids), dtype=np.int64)


def _without(row: Document, *names: str) -> Document:
    return {name: value for name, value in row.items() if name not in names}


def _roots(run: Run, kind: str, name: str, basis: list[str]) -> tuple[str, list[int], list[int]]:
    """Return the scheduler, and the keys that made and that used the result or file."""
    if kind == "task":
        found = rows_of(run, KEY_SQL, [name, name])
        schedulers = list(dict.fromkeys(row["scheduler_id"] for row in found))
        if len(schedulers) > 1:
            basis.append(f"{len(schedulers)} schedulers had this key; this is of the last, {schedulers[0]}.")
        if not found:
            raise BadQuery(f"Of {name!r} run {run.run_id} holds no graph and no attempt, so it has no lineage.")
        keys = [row["key_id"] for row in found if row["scheduler_id"] == schedulers[0]]
        return schedulers[0], keys, keys
    found = rows_of(run, FILE_TASKS_SQL, [name] * 4)
    (unsure,) = rows_of(run, UNSURE_SQL, [name] * 2)
    if unsure["read_count"] or unsure["write_count"]:
        basis.append(
            f"{plural(unsure['read_count'], 'read')} and {plural(unsure['write_count'], 'write')} of this file are of no task "
            "for sure, and not followed."
        )
    if not found:
        raise BadQuery(
            f"No task of run {run.run_id} surely read or wrote {name}. `recup io {run.run_id} --by file` tells what is known."
        )
    schedulers = list(dict.fromkeys(row["scheduler_id"] for row in found))
    if len(schedulers) > 1:
        basis.append(f"Tasks of {len(schedulers)} schedulers used this file; this is of {schedulers[0]} only.")
    mine = [row for row in found if row["scheduler_id"] == schedulers[0]]
    return (
        schedulers[0],
        sorted(row["key_id"] for row in mine if row["is_written"]),
        sorted(row["key_id"] for row in mine if row["is_read"]),
    )


def _tasks(run: Run, scheduler_id: str, key_ids: list[int], limit_s: float | None) -> list[Document]:
    """Return one row per key, in order of time; `limit_s`: results no later than this are meant."""
    if not key_ids:
        return []
    rows = rows_of(run, TASKS_SQL, [key_ids, *[scheduler_id] * 3, limit_s])
    return sorted(rows, key=lambda row: (row["stored_at_s"] is None, row["stored_at_s"] or 0.0, str(row["key"])))


def _reach_document(  # noqa: PLR0917
    run: Run, scheduler_id: str, graph: Graph, starts: list[int], reach: tuple[Numbers, Numbers], limit_s: float | None
) -> Document:
    """Return what is reached from some keys: counts, prefixes, the nearest tasks, files they and the starts used."""
    import numpy as np

    found, steps = reach
    order = np.lexsort((found, steps))[:TASKS_SHOWN]
    distance = dict(zip(found[order].tolist(), steps[order].tolist(), strict=True))
    tasks = _tasks(run, scheduler_id, list(distance), limit_s)
    for row in tasks:
        row["step"] = distance[row["key_id"]]
    files = _files(run, graph, np.concatenate([_array(starts), found]))
    return {
        "task_count": len(found),
        "step_count": int(steps.max()) if len(steps) else 0,
        "prefixes": rows_of(run, SUMMARY_SQL, [found.tolist(), scheduler_id, scheduler_id]) if len(found) else [],
        "tasks": [_without(row, *_INNER_COLUMNS) for row in sorted(tasks, key=lambda row: row["step"])],
        "files": files[:FILES_SHOWN],
        "file_count": len({row["path"] for row in files}),
    }


def _files(run: Run, graph: Graph, key_ids: Numbers) -> list[Document]:
    """Return files that tasks read or wrote: one row per file and direction, most bytes first."""
    import numpy as np

    if graph.uses is None or not len(graph.uses["path"]):
        return []
    uses = graph.uses
    chosen = np.flatnonzero(np.isin(uses["key_id"], key_ids))
    files: dict[tuple[str, bool], Document] = {}
    for place in chosen.tolist():
        path, is_write = str(uses["path"][place]), bool(uses["is_write"][place])
        row = files.setdefault(
            (path, is_write),
            {"path": path, "use": "written" if is_write else "read", "nbytes": 0, "operation_count": 0, "keys": set()},
        )
        row["nbytes"] += max(int(uses["nbytes"][place]), 0)
        row["operation_count"] += int(uses["operation_count"][place])
        row["keys"].add(int(uses["key_id"][place]))
    rows = sorted(files.values(), key=lambda row: (-row["nbytes"], row["path"], row["use"]))
    single = {next(iter(row["keys"])) for row in rows[:FILES_SHOWN] if len(row["keys"]) == 1}
    names = dict(
        run.sql(
            "select key_id, key from keys where key_id in (select unnest(?::bigint[]))", [sorted(single)]
        ).fetchall()
        if single
        else []
    )
    for row in rows:
        keys = row.pop("keys")
        row["task_count"] = len(keys)
        row["key"] = names.get(next(iter(keys))) if len(keys) == 1 else None
    return rows


def _submissions(run: Run, scheduler_id: str, results: list[Document], prefixes: list[Document]) -> list[Document]:
    """Return graphs that brought the tasks, those of the results first."""
    own = {row["submission"] for row in results if row["submission"] is not None}
    wanted = sorted(own.union(*(row["submissions"] or () for row in prefixes)))
    rows = rows_of(run, SUBMISSIONS_SQL, [scheduler_id, wanted]) if wanted else []
    for row in rows:
        row["is_own"] = row.pop("submission") in own
        server_id, number = row.pop("client_server_id"), row.pop("client_submission")
        row["frames"] = [] if server_id is None else rows_of(run, FRAMES_SQL, [server_id, number])
    return sorted(rows, key=lambda row: not row["is_own"])


def _software(run: Run, scheduler_id: str, key_ids: list[int], tasks: list[Document]) -> list[Document]:
    """Return versions on the workers that took part: one row per distinct set."""
    if not key_ids:
        return []
    functions = {name for row in tasks for name in row.get("functions") or (row.get("function"),)}
    modules = {name.partition(".")[0].lower().lstrip("_") for name in functions if name} - {
        "main",
        "builtins",
        "operator",
    }
    names = sorted({*_ALWAYS, *(_DISTRIBUTIONS.get(module, module.replace("_", "-")) for module in modules)})
    versions: dict[str, dict[str, str]] = {}
    for row in rows_of(run, PACKAGES_SQL, [names]):
        versions.setdefault(row["packages_digest"], {})[row["name"]] = row["version"]
    rows = rows_of(run, WORKERS_SQL, [key_ids, scheduler_id])
    for row in rows:
        packages = versions.get(row["packages_digest"], {})
        told = {"dask": row.pop("dask_version"), "distributed": row.pop("distributed_version")}
        row["packages"] = {**{name: version for name, version in told.items() if version}, **packages}
    return rows


def _basis(graph: Graph, document: Document, depth: int | None) -> list[str]:
    """Return what the lineage stands on and what it cannot hold, in sentences."""
    said = []
    if graph.uses is None:
        said.append("Files are not known: Darshan was not recorded (`recup run --darshan`).")
    else:
        said.append(
            "Files are those that Darshan saw tasks read or write for sure; what the client used is not in them."
        )
    if graph.unfollowed:
        said.append(f"Not followed, as too many tasks share them: {', '.join(graph.unfollowed[:_CANDIDATES])}.")
    if depth is not None:
        said.append(f"Cut at {plural(depth, 'step')}.")
    if not document["submissions"]:
        said.append("The submission is not recorded.")
    elif any(row["is_exact"] is False for row in document["submissions"]):
        said.append("Submissions are joined to their source line by their order only.")
    if any(row["attempt_count"] > 1 for row in document["results"]):
        said.append("There were several attempts; the one that made the result is shown, `recup story` has all.")
    return said
