"""The graph of task groups, laid out in layers: what was computed from what.

Covers groups (or, where there are too many, prefixes) with their tasks and seconds, edges
with the dependencies they stand for, and places for all of them.  A layer holds what stands
on the layers above it; edges that would go upwards in a graph with circles are told from
their other end.  The layout is our own: longest path, then orders that cross least.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import TYPE_CHECKING

from recup.analyse.rows import Document, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from recup.store import Run

NODE_LIMIT = 200
"""Nodes drawn at most."""
GROUP_LIMIT = 40
"""Groups up to which each is a node; more are drawn by prefix, which a page can hold and a reader take in."""
_PER_LAYER = 8
_SWEEPS = 8
_BEND_LIMIT = 4_000
WIDTH, GAP, LAYER_GAP, TEXT_HEIGHT, BAR_HEIGHT = 190.0, 18.0, 44.0, 34.0, 34.0
"""Of nodes, in units of the picture; the bar of a node grows with its seconds."""

_NODES_SQL = """
with listed as (
    select name, any_value(prefix) as prefix, count(*) as task_count
    from (select any_value(prefix) as prefix, any_value({name}) as name from raw.tasks group by server_id, key_id)
    group by name
), ran as (
    select {name} as name, sum(compute_s) as compute_s, count(*) as attempt_count,
        count(*) filter (outcome = 'error') as error_count
    from task_runs
    group by 1
)
select listed.name, prefix, task_count, coalesce(compute_s, 0.0) as compute_s, coalesce(attempt_count, 0) as attempt_count,
    coalesce(error_count, 0) as error_count
from listed
left join ran on ran.name is not distinct from listed.name
order by compute_s desc, task_count desc, listed.name
limit {limit}
"""

_EDGES_SQL = """
with listed as (
    select server_id, key_id, any_value({name}) as name
    from raw.tasks
    group by 1, 2
), needing as materialized (
    -- In one go, tasks would first be joined to tasks: they share a server too.
    select d.server_id, d.dependency_id, o.name as target
    from raw.dependencies d
    join listed o on o.server_id = d.server_id and o.key_id = d.key_id
)
select i.name as source, n.target, count(*) as dependency_count
from needing n
join listed i on i.server_id = n.server_id and i.key_id = n.dependency_id
where i.name <> n.target
group by 1, 2
order by dependency_count desc, 1, 2
"""

_COUNT_SQL = 'select count(distinct "group") as group_count, count(distinct prefix) as prefix_count from raw.tasks'


def groups(run: Run, limit: int = NODE_LIMIT) -> Document:
    """Return the graph of groups with a place for each node and a line for each edge.

    From: tasks, dependencies, task_runs
    Keys: by (group or prefix), node_count (of the whole graph), nodes, edges, width, height
    """
    (counts,) = rows_of(run, _COUNT_SQL)
    by = "group" if counts["group_count"] <= GROUP_LIMIT else "prefix"
    told = {"name": '"group"' if by == "group" else "prefix", "limit": limit}
    nodes = rows_of(run, _NODES_SQL.format(**told))
    kept = {each["name"] for each in nodes}
    edges = [e for e in rows_of(run, _EDGES_SQL.format(**told)) if e["source"] in kept and e["target"] in kept]
    width, height = layout(nodes, edges)
    return {
        "by": by,
        "node_count": counts[f"{by}_count"],
        "group_count": counts["group_count"],
        "nodes": nodes,
        "edges": edges,
        "width": width,
        "height": height,
    }


def layout(nodes: Sequence[Document], edges: Sequence[Document]) -> tuple[float, float]:
    """Give every node x, y, width, height and bar, and every edge a path and a weight; return the size of it all."""
    names = [node["name"] for node in nodes]
    downward = _without_circles(names, [(edge["source"], edge["target"]) for edge in edges])
    layer = _layers(names, downward)
    _fold_wide_layers(layer, downward)
    rows, chains = _with_bends(names, layer, downward)
    _order(rows, chains)
    return _place(nodes, edges, rows, chains)


# ---------------------------------------------------------------- layers


Edge = tuple[str, str]


def _without_circles(names: Iterable[str], edges: Sequence[Edge]) -> list[Edge]:
    """Return edges, those that close a circle turned round."""
    after: dict[str, list[str]] = defaultdict(list)
    for source, target in edges:
        after[source].append(target)
    state: dict[str, int] = {}
    turned: set[Edge] = set()
    has_source = {target for _, target in edges}
    for root in sorted(names, key=lambda name: name in has_source):
        if root in state:
            continue
        state[root] = 1
        stack = [(root, iter(after[root]))]
        while stack:
            name, rest = stack[-1]
            for target in rest:
                if state.get(target) == 1:
                    turned.add((name, target))
                elif target not in state:
                    state[target] = 1
                    stack.append((target, iter(after[target])))
                    break
            else:
                state[name] = 2
                stack.pop()
    return list(dict.fromkeys((t, s) if (s, t) in turned else (s, t) for s, t in edges))


def _layers(names: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """Return the layer of each node: the longest way down to it; sources stand right above what needs them."""
    after: dict[str, list[str]] = defaultdict(list)
    waiting = dict.fromkeys(names, 0)
    for source, target in edges:
        after[source].append(target)
        waiting[target] += 1
    layer = dict.fromkeys(names, 0)
    ready = [name for name in names if not waiting[name]]
    done = []
    while ready:
        name = ready.pop()
        done.append(name)
        for target in after[name]:
            layer[target] = max(layer[target], layer[name] + 1)
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    has_source = {target for _, target in edges}
    for name in done:
        if name not in has_source and after[name]:
            layer[name] = min(layer[target] for target in after[name]) - 1
    return layer


def _fold_wide_layers(layer: dict[str, int], edges: Sequence[Edge]) -> None:
    """Put what has no edge at all into rows of its own below, a few each."""
    linked = {name for edge in edges for name in edge}
    alone = [name for name in layer if name not in linked]
    below = max((layer[name] for name in linked), default=-1) + 1
    for place, name in enumerate(alone):
        layer[name] = below + place // _PER_LAYER


def _with_bends(
    names: Sequence[str], layer: dict[str, int], edges: Sequence[Edge]
) -> tuple[list[list[str | tuple[int, int]]], dict[Edge, list[str | tuple[int, int]]]]:
    """Return nodes and the bends of long edges by layer, and each edge as the chain it goes through."""
    rows: list[list[str | tuple[int, int]]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for name in names:
        rows[layer[name]].append(name)
    has_bends = sum(layer[t] - layer[s] - 1 for s, t in edges) <= _BEND_LIMIT
    chains: dict[Edge, list[str | tuple[int, int]]] = {}
    for number, (source, target) in enumerate(edges):
        bends = [(number, place) for place in range(layer[source] + 1, layer[target])] if has_bends else []
        for bend in bends:
            rows[bend[1]].append(bend)
        chains[source, target] = [source, *bends, target]
    return rows, chains


def _order(rows: list[list[str | tuple[int, int]]], chains: dict[Edge, list[str | tuple[int, int]]]) -> None:
    """Sort each layer by the middle of its neighbours above, then below, a few times."""
    above: dict[str | tuple[int, int], list[str | tuple[int, int]]] = defaultdict(list)
    below: dict[str | tuple[int, int], list[str | tuple[int, int]]] = defaultdict(list)
    for chain in chains.values():
        for upper, lower in itertools.pairwise(chain):
            above[lower].append(upper)
            below[upper].append(lower)
    for sweep in range(_SWEEPS):
        is_down = sweep % 2 == 0
        near = above if is_down else below
        for row in rows if is_down else reversed(rows):
            spot = {each: place / max(len(other) - 1, 1) for other in rows for place, each in enumerate(other)}
            spots = {
                each: sum(spot[n] for n in near[each]) / len(near[each]) if near[each] else spot[each] for each in row
            }
            row.sort(key=lambda each: spots[each])


# ---------------------------------------------------------------- places


def _place(
    nodes: Sequence[Document],
    edges: Sequence[Document],
    rows: Sequence[Sequence[str | tuple[int, int]]],
    chains: dict[Edge, list[str | tuple[int, int]]],
) -> tuple[float, float]:
    by_name = {node["name"]: node for node in nodes}
    longest = max((node["compute_s"] for node in nodes), default=0.0) or 1.0
    widths = [sum(WIDTH + GAP if each in by_name else GAP for each in row) - GAP for row in rows]
    width = max(widths, default=0.0)
    at: dict[str | tuple[int, int], tuple[float, float, float]] = {}
    y = 0.0
    for row, row_width in zip(rows, widths, strict=True):
        x, tallest = (width - row_width) / 2, 0.0
        for each in row:
            if each in by_name:
                node = by_name[each]
                node["bar"] = BAR_HEIGHT * math.sqrt(node["compute_s"] / longest)
                node |= {"x": x, "y": y, "width": WIDTH, "height": TEXT_HEIGHT + node["bar"]}
                at[each] = (x + WIDTH / 2, y, y + node["height"])
                tallest = max(tallest, node["height"])
                x += WIDTH + GAP
            else:
                at[each] = (x, y, y)
                x += GAP
        # A line goes straight down past the boxes of a layer.
        at |= {each: (at[each][0], y, y + tallest) for each in row if each not in by_name}
        y += tallest + LAYER_GAP
    most = max((edge["dependency_count"] for edge in edges), default=1)
    for edge in edges:
        ends = (edge["source"], edge["target"])
        chain = chains.get(ends) or list(reversed(chains[ends[1], ends[0]]))
        edge["path"] = _curve([at[each] for each in chain])
        edge["weight"] = round(1 + 4 * math.log1p(edge["dependency_count"]) / math.log1p(most), 2)
    return width, max(y - LAYER_GAP, 0.0)


def _curve(spots: Sequence[tuple[float, float, float]]) -> str:
    is_down = spots[0][1] < spots[-1][1]
    x, top, bottom = spots[0]
    here = bottom if is_down else top
    parts = [f"M{x:.1f} {here:.1f}"]
    for next_x, next_top, next_bottom in spots[1:]:
        there = next_top if is_down else next_bottom
        middle = (here + there) / 2
        parts.append(f"C{x:.1f} {middle:.1f} {next_x:.1f} {middle:.1f} {next_x:.1f} {there:.1f}")
        x, here = next_x, next_bottom if is_down else next_top
        if (next_x, next_top, next_bottom) != spots[-1]:
            parts.append(f"V{here:.1f}")
    return "".join(parts)
