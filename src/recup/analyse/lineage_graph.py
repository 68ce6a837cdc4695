"""The graph of tasks and files of one scheduler, and what can be reached in it from some tasks.

Part of `recup.analyse.lineage`.  An edge leads from a task to one whose result it needs, or to one that had begun to
write a file before it last read that file.  Only I/O whose task is sure makes edges.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from recup.store import Run

    Numbers = np.ndarray[Any, np.dtype[Any]]

PAIRS_FOLLOWED = 1_000_000
"""Readers times writers of one file up to which it is followed: files that thousands share link all to all."""

USES_SQL = """
with uses as (
    select path, key_id, run_id, direction, nbytes, 1 as operation_count, start_s, stop_s
    from task_io
    where key_id is not null and path is not null and module = 'POSIX' and not is_phantom and not is_runtime
        and scheduler_id = ?
    union all
    select s.path, s.key_id, s.run_id, part.direction, part.nbytes, part.operation_count, s.first_s, s.last_s
    from task_io_streams s,
    lateral (
        values ('read', s.read_count, s.read_bytes), ('write', s.write_count, s.written_bytes)
    ) part(direction, operation_count, nbytes)
    where s.key_id is not null and s.path is not null and part.operation_count > 0 and s.scheduler_id = ?
)
select
    path,
    key_id,
    run_id,
    direction = 'write' as is_write,
    sum(nbytes)::bigint as nbytes,
    sum(operation_count)::bigint as operation_count,
    min(start_s) as first_s,
    max(stop_s) as last_s
from uses
group by path, key_id, run_id, direction
"""

EDGES_SQL = """
select distinct key_id, dependency_id from raw.dependencies where server_id = ?
"""

HAS_IO_SQL = """
select (select count(*) from raw.io_segments) + (select count(*) from raw.io_files) > 0
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Graph:
    """Tasks of one scheduler and the edges between them.

    Attributes
    ----------
    keys : int64 array
        Numbers of the keys, ascending; nodes are places in it.
    needers, needed : int64 arrays
        Edges as nodes: the task, and what it stands on.
    uses : dict of arrays or None
        Files that tasks used (`USES_SQL`); None where nothing recorded files.
    unfollowed : tuple of str
        Files that too many tasks share to make edges.
    """

    keys: Numbers
    needers: Numbers
    needed: Numbers
    uses: dict[str, Numbers] | None
    unfollowed: tuple[str, ...]

    def nodes(self, key_ids: Numbers) -> Numbers:
        """Return the nodes of keys; those that are none are left out."""
        places = np.searchsorted(self.keys, key_ids)
        places = places[places < len(self.keys)]
        return places[np.isin(self.keys[places], key_ids)]


def read_graph(run: Run, scheduler_id: str, key_ids: list[int]) -> Graph:
    """Return the graph of a scheduler; `key_ids` are nodes of it even without edges."""
    edges = run.sql(EDGES_SQL, [scheduler_id]).fetchnumpy()
    needers, needed = _filled(edges["key_id"]), _filled(edges["dependency_id"])
    uses: dict[str, Numbers] | None = None
    unfollowed: tuple[str, ...] = ()
    if run.sql(HAS_IO_SQL).fetchall()[0][0]:
        uses = {name: _plain(column) for name, column in run.sql(USES_SQL, [scheduler_id] * 2).fetchnumpy().items()}
        readers, writers, unfollowed = _through_files(uses)
        needers, needed = np.concatenate([needers, readers]), np.concatenate([needed, writers])
    keys = np.unique(np.concatenate([needers, needed, np.asarray(key_ids, dtype=np.int64)]))
    return Graph(keys, np.searchsorted(keys, needers), np.searchsorted(keys, needed), uses, unfollowed)


def reached(graph: Graph, starts: Numbers, *, is_upstream: bool, depth: int | None = None) -> tuple[Numbers, Numbers]:
    """Return keys that are reached from nodes in any number of steps, and each one's fewest steps; starts are left out."""
    sources, targets = (graph.needers, graph.needed) if is_upstream else (graph.needed, graph.needers)
    order = np.argsort(sources, kind="stable")
    targets = targets[order]
    begins = np.searchsorted(sources[order], np.arange(len(graph.keys) + 1))
    steps = np.full(len(graph.keys), -1, dtype=np.int64)
    steps[starts] = 0
    frontier, distance = starts, 0
    while len(frontier) and (depth is None or distance < depth):
        distance += 1
        first, count = begins[frontier], begins[frontier + 1] - begins[frontier]
        places = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
        found = np.unique(targets[places])
        frontier = found[steps[found] < 0]
        steps[frontier] = distance
    nodes = np.flatnonzero(steps > 0)
    return graph.keys[nodes], steps[nodes]


def _through_files(uses: dict[str, Numbers]) -> tuple[Numbers, Numbers, tuple[str, ...]]:
    """Return edges from readers of a file to those that had begun to write it, and files too many share."""
    none = np.zeros(0, dtype=np.int64)
    if not len(uses["path"]):
        return none, none, ()
    names, paths = np.unique(uses["path"].astype(str), return_inverse=True)
    is_write = uses["is_write"].astype(bool)
    both = np.intersect1d(paths[is_write], paths[~is_write])
    order = np.argsort(paths, kind="stable")
    bounds = np.searchsorted(paths[order], np.stack([both, both + 1]))
    readers, writers, unfollowed = [none], [none], []
    for path, begin, end in zip(both, *bounds, strict=True):
        here = order[begin:end]
        written, read = here[is_write[here]], here[~is_write[here]]
        if len(written) * len(read) > PAIRS_FOLLOWED:
            unfollowed.append(str(names[path]))
            continue
        reader, writer = np.repeat(read, len(written)), np.tile(written, len(read))
        holds = (uses["first_s"][writer] < uses["last_s"][reader]) & (uses["key_id"][writer] != uses["key_id"][reader])
        readers.append(uses["key_id"][reader[holds]])
        writers.append(uses["key_id"][writer[holds]])
    return np.concatenate(readers), np.concatenate(writers), tuple(unfollowed)


def _plain(column: Any) -> Numbers:
    """Return a column as an array; what is null is -1, NaN or empty."""
    if isinstance(column, np.ma.MaskedArray):
        empty: Any = {"f": np.nan, "O": "", "b": False}.get(column.dtype.kind, -1)
        return np.asarray(column.filled(empty))
    return np.asarray(column)


def _filled(column: Any) -> Numbers:
    """Return a column of keys without its nulls."""
    kept = column.compressed() if isinstance(column, np.ma.MaskedArray) else column
    return np.asarray(kept, dtype=np.int64)
