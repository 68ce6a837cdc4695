"""The chain of attempts that set the wall time, and what the wall time might have been.

Covers the chain that ends with the result the scheduler took last, from there back: the
input that came last, an earlier attempt of the same task, or, where the client submitted
only later, the result that was last there before.  Between these every second has a name.
It does not say what idle threads cost (`budget`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recup.analyse.answers import Answer, AnswerTable, Conclusion
from recup.analyse.budget_record import Window, codes, most_threads, numbers, window
from recup.analyse.critical_path_ideal import Floats, Integers, longest_path, replayed
from recup.analyse.rows import once_per_run
from recup.terminal import plural, seconds_text

if TYPE_CHECKING:
    from recup.store import Run

KINDS: tuple[tuple[str, str], ...] = (
    ("compute", "tasks of the chain computed"),
    ("repeat", "attempts that came to nothing, and results of the chain that were computed again"),
    ("start", "before the first graph of the chain was taken: imports, start of the cluster, graph building"),
    ("client", "all that the chain had was done, and the client had not submitted what comes next"),
    ("slot", "a task of the chain was ready and no thread was free for it, or it was on a worker it was stolen from"),
    ("transfer", "a task of the chain was on its worker and its inputs were not"),
    ("latency", "a task of the chain, or its result, was between scheduler, worker and thread"),
    ("unknown", "not recorded"),
)
"""What a second of the chain can be, and what it means."""

NOTABLE_SHARE = 0.1
"""Share of the chain since its first graph from which on a kind of wait is a conclusion: less is worth little to anyone."""
NOTABLE_S = 1.0
"""And at least so long: shorter is the come and go of any start."""
FULL_SHARE = 0.5
"""Share of the time since the first graph that all computing fills on these threads, from which on tasks have to wait
for threads: that is work, not a fault."""
LINKS_SHOWN = 1000
"""Links in an answer: of longer chains those that took longest."""
REPLAYED_TASKS = 2_000_000
"""Tasks up to which the run is replayed; more would take longer than anyone waits."""

_SUDDEN_S = 0.1  # from last input, or graph, to ready; where it took longer an input may not be in the record
_NAMES = tuple(name for name, _ in KINDS)
_STEPS = ("submitted", "ready", "assigned", "received", "inputs", "executing", "started", "stopped", "done")
_KIND_OF_STEP = ("client", "latency", "slot", "latency", "transfer", "slot", "latency", "compute", "latency")

ATTEMPTS_SQL = """
select
    coalesce(scheduler_id, '') as scheduler_id,
    key_id,
    run_id,
    outcome,
    is_from_steal,
    submitted_s,
    ready_s,
    assigned_s,
    received_s,
    executing_s,
    started_s,
    stopped_s,
    coalesce(stored_s, ended_s, stopped_s) as done_s,
    compute_s
from task_runs
"""

EDGES_SQL = """
select server_id as scheduler_id, key_id, dependency_id from raw.dependencies
"""

PRIORITIES_SQL = """
select
    server_id as scheduler_id,
    key_id,
    max(priority_user) as priority_user,
    max(priority_generation) as priority_generation,
    max(priority_order) as priority_order
from raw.tasks
group by server_id, key_id
"""

LINKS_SQL = """
with reached as (
    select server_id as worker_id, key_id, run_id, min(time_ns) as inputs_ns
    from raw.worker_transitions
    where finish in ('ready', 'constrained') and run_id is not null and key_id in (select unnest(?::bigint[]))
    group by server_id, key_id, run_id
), chosen as (
    select unnest(?::varchar[]) as scheduler_id, unnest(?::bigint[]) as key_id, unnest(?::bigint[]) as run_id,
        unnest(?::bigint[]) as place
)
select t.key, t.prefix, t.worker, t.submission, reached.inputs_ns / 1e9 + coalesce(clocks.offset_s, 0.0) as inputs_s
from chosen
left join task_runs t
    on coalesce(t.scheduler_id, '') = chosen.scheduler_id
    and t.key_id = chosen.key_id
    and t.run_id is not distinct from chosen.run_id
left join clocks on clocks.server_id = t.worker_id
left join reached on reached.worker_id = t.worker_id and reached.key_id = t.key_id and reached.run_id = t.run_id
order by chosen.place
"""


@dataclasses.dataclass(frozen=True, slots=True)
class _Graph:
    """Attempts and edges as numbers; a node is a key at a scheduler."""

    node_count: int
    attempts: pa.Table
    node: Integers
    task: Integers
    dependency: Integers
    priorities: pa.Table
    priority_node: Integers


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """The chain of a run and its ideal times."""

    window: Window
    links: pa.Table
    ideal: pa.Table
    thread_count: int
    first_submitted_s: float
    is_cut_off: bool


def critical_path_links(run: Run) -> pa.Table:
    """The chain that set the wall time: one row per attempt in it, in order of time.

    Times of computing and waiting sum to the time from the start of the run to the last
    result.  A wait is before the attempt computed, or after, while its result was on its way.

    From: task_runs, worker_transitions, dependencies, run_summary
    Columns: key, prefix, start_at_s, duration_s, wait_s, wait_kind (the longest of its waits; null: none), worker,
    run_id, outcome, <kind>_s of each of `KINDS`
    """
    return _found(run).links


def critical_path_kinds(run: Run) -> pa.Table:
    """What the seconds of the chain were: one row per kind, in the order of `KINDS`.

    Columns: kind, meaning, path_s, share (null: no chain)
    """
    links = critical_path_links(run)
    seconds = [float(numbers(links[f"{name}_s"]).sum()) for name in _NAMES]
    total = sum(seconds)
    return pa.table(
        {
            "kind": pa.array(_NAMES, pa.string()),
            "meaning": pa.array([meaning for _, meaning in KINDS], pa.string()),
            "path_s": pa.array(seconds, pa.float64()),
            "share": pa.array([each / total if total > 0 else None for each in seconds], pa.float64()),
        }
    )


def critical_path_prefixes(run: Run) -> pa.Table:
    """What the seconds of the chain were by prefix: one row per prefix in it, most first.

    Columns: prefix, link_count, path_s, <kind>_s of each of `KINDS`
    """
    links = critical_path_links(run)
    names = pc.unique(links["prefix"]).to_pylist()
    of = codes(links["prefix"], {name: at for at, name in enumerate(names)}, names.index(None) if None in names else 0)
    columns = {
        f"{name}_s": np.bincount(of, numbers(links[f"{name}_s"]), len(names)) if names else np.zeros(0)
        for name in _NAMES
    }
    total = sum(columns.values(), np.zeros(len(names)))
    rows = pa.table(
        {
            "prefix": pa.array(names, pa.string()),
            "link_count": np.bincount(of, minlength=len(names)),
            "path_s": total,
        }
        | columns
    )
    return rows.take(pa.array(np.argsort(-total, kind="stable")))


def ideal_times(run: Run) -> pa.Table:
    """What the wall time is at least, and was: one row per case, shortest case first.

    All but the last two count only what tasks computed, as if all had been submitted at once
    and nothing else cost time.

    From: task_runs, dependencies, tasks, worker_lives
    Columns: case, meaning, wall_s (null: not known)
    """
    return _found(run).ideal


def critical_path(run: Run) -> Answer:
    """Which chain of tasks set the wall time?"""
    found = _found(run)
    links, kinds = found.links, critical_path_kinds(run)
    if not len(links):
        return Answer("No attempt came to an end in this record, so there is no chain.", (), (), _basis(found))
    seconds = dict(zip(kinds["kind"].to_pylist(), kinds["path_s"].to_pylist(), strict=True))
    total = sum(seconds.values())
    waits = sorted(((part, name) for name, part in seconds.items() if name != "compute" and part > 0), reverse=True)
    ideal = dict(zip(found.ideal["case"].to_pylist(), found.ideal["wall_s"].to_pylist(), strict=True))
    told = ", ".join(f"{seconds_text(part)} {_WORDS[name]}" for part, name in waits[:3])
    bound = (
        f" On {plural(found.thread_count, 'thread')} the tasks take at least {seconds_text(ideal['these workers'])}."
        if ideal["these workers"] is not None
        else ""
    )
    return Answer(
        headline=f"The last result came after {seconds_text(total)} by a chain of {plural(len(links), 'attempt')}: "
        f"{seconds_text(seconds['compute'])} computing" + (f", {told}." if told else ".") + bound,
        conclusions=_conclusions(run, found, seconds, ideal),
        tables=(
            AnswerTable("kinds", "The chain: what its seconds were", kinds.filter(pc.greater(kinds["path_s"], 0.0))),
            AnswerTable("ideal", "Wall time: at least, and as it was", found.ideal),
            AnswerTable("prefixes", "The chain by prefix, longest first", _shown(critical_path_prefixes(run))),
            AnswerTable("links", _links_title(len(links)), _shown(_longest(links))),
        ),
        basis=_basis(found),
    )


_WORDS = {
    "repeat": "on attempts that came to nothing",
    "start": "before the first graph",
    "client": "waiting for the client",
    "slot": "waiting for a free thread",
    "transfer": "waiting for inputs",
    "latency": "between scheduler, worker and thread",
    "unknown": "not known for what",
}


def _links_title(count: int) -> str:
    if count > LINKS_SHOWN:
        return f"The {LINKS_SHOWN} links of {count:,} that took longest, in order of time"
    return "The links of the chain in order of time"


def _longest(links: pa.Table) -> pa.Table:
    if len(links) <= LINKS_SHOWN:
        return links
    took = numbers(links["duration_s"]) + numbers(links["wait_s"])
    return links.take(pa.array(np.sort(np.argsort(-took, kind="stable")[:LINKS_SHOWN])))


def _shown(rows: pa.Table) -> pa.Table:
    """Return a table without kinds that nothing is of."""
    empty = [f"{name}_s" for name in _NAMES if not np.any(numbers(rows[f"{name}_s"]))]
    return rows.drop_columns(empty)


_ADVICE = {
    "repeat": "`recup lost` says what was computed again and why.",
    "client": "Submit what comes next before waiting for results, or wait for fewer results at a time.",
    "slot": "Threads did other tasks first, or stood idle elsewhere: give tasks of the chain a higher priority, and see "
    "`recup budget` for imbalance.",
    "transfer": "Keep inputs and tasks of the chain together, or make results smaller: `recup transfers`.",
    "latency": "Make tasks of the chain longer, or fuse them: `recup overhead` says what each costs.",
}


def _conclusions(
    run: Run, found: _Found, seconds: dict[str, float], ideal: dict[str, float | None]
) -> tuple[Conclusion, ...]:
    total = sum(seconds.values()) - seconds["start"]
    prefixes = critical_path_prefixes(run).to_pylist()
    longest, bound, spread = ideal["infinitely many workers"], ideal["these workers"], ideal["evenly spread"]
    since = ideal["since the first graph"]
    is_full = spread is not None and since is not None and spread >= FULL_SHARE * since
    conclusions = []
    for name, advice in _ADVICE.items():
        part = seconds[name]
        if part < NOTABLE_S or part < NOTABLE_SHARE * total or (name == "slot" and is_full):
            continue
        leading = max(prefixes, key=lambda each: each[f"{name}_s"])
        share = leading[f"{name}_s"] / part
        mostly = f", {share:.0%} of it before or in {leading['prefix']}" if leading["prefix"] and share >= 0.5 else ""
        conclusions.append(
            Conclusion(
                "critical-path",
                leading["prefix"] if mostly else name,
                f"Of the {seconds_text(total)} from its first graph to the last result, the chain spent {seconds_text(part)} "
                f"({part / total:.0%}) {_WORDS[name]}{mostly}.",
                "likely",
                None,
                advice,
                {"kind": name, "path_s": part, "share": part / total},
            )
        )
    if longest is not None and bound is not None and spread is not None and since is not None and longest >= NOTABLE_S:
        leading = max(prefixes, key=lambda each: each["compute_s"])
        if longest >= 0.5 * since and longest >= 1.5 * spread:
            conclusions.append(
                Conclusion(
                    "critical-path",
                    leading["prefix"] or "chain",
                    f"One chain of dependencies computes for {seconds_text(longest)} of the {seconds_text(since)} since "
                    f"the first graph, and all work spread evenly over {plural(found.thread_count, 'thread')} would "
                    f"take {seconds_text(spread)}: more threads cannot help.",
                    "certain",
                    None,
                    "Split the tasks of this chain" + (f", {leading['prefix']} first." if leading["prefix"] else "."),
                    {"path_s": longest, "evenly_spread_s": spread, "since_first_graph_s": since},
                )
            )
    return tuple(sorted(conclusions, key=lambda each: -float(each.evidence["path_s"] or 0.0)))


def _basis(found: _Found) -> str:
    says = "The chain ends with the result that the scheduler took last, and goes back by the input that came last."
    if found.is_cut_off:
        says += " What came before its first link is not in the record."
    return f"{says} Waits for the client follow from what was there when it submitted. {_IDEAL_BASIS}"


_IDEAL_BASIS = (
    "Ideal times take the seconds that tasks computed as given, though other hosts or neighbours would change them."
)


# ---------------------------------------------------------------- finding the chain


@once_per_run
def _found(run: Run) -> _Found:
    frame = window(run)
    graph = _graph(run)
    chain, came_by = _chain(graph)
    links = _links(run, graph, chain, came_by, frame)
    submitted = numbers(graph.attempts["submitted_s"])
    first_s = float(np.nanmin(submitted)) if np.isfinite(submitted).any() else float("nan")
    thread_count = most_threads(run)
    ideal = _ideal(graph, thread_count, first_s, frame)
    return _Found(frame, links, ideal, thread_count, first_s, bool(came_by) and came_by[0] == "unknown")


def _graph(run: Run) -> _Graph:
    attempts, edges, priorities = (
        run.sql(query).to_arrow_table() for query in (ATTEMPTS_SQL, EDGES_SQL, PRIORITIES_SQL)
    )
    tables = (attempts, edges, priorities)
    schedulers = {
        name: at
        for at, name in enumerate(dict.fromkeys(n for t in tables for n in pc.unique(t["scheduler_id"]).to_pylist()))
    }
    keys = [numbers(attempts["key_id"]), *(numbers(edges[name]) for name in ("key_id", "dependency_id"))]
    keys.append(numbers(priorities["key_id"]))
    key_count = int(max((each.max(initial=-1.0) for each in keys), default=-1)) + 1

    def nodes(table: pa.Table, key: Floats) -> Integers:
        return codes(table["scheduler_id"], schedulers) * key_count + key.astype(np.int64)

    return _Graph(
        key_count * len(schedulers),
        attempts,
        nodes(attempts, keys[0]),
        nodes(edges, keys[1]),
        nodes(edges, keys[2]),
        priorities,
        nodes(priorities, keys[3]),
    )


def _bounds(count: int, node: Integers) -> tuple[Integers, Integers]:
    """Return rows in order of their node, and where those of each begin."""
    bounds = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(node, minlength=count), out=bounds[1:])
    return np.argsort(node, kind="stable"), bounds


def _chain(graph: _Graph) -> tuple[list[int], list[str]]:
    """Return attempts of the chain in order of time, and by what each came after the one before.

    ``input``, ``repeat`` (an earlier attempt of the same task), ``client`` (it was submitted
    after), ``start`` (nothing was there before it was submitted) or ``unknown``.
    """
    table = graph.attempts
    done, submitted = numbers(table["done_s"]), numbers(table["submitted_s"])
    assigned, executing, started = (numbers(table[f"{name}_s"]) for name in ("assigned", "executing", "started"))
    outcome = codes(table["outcome"], {"memory": 1, "error": 2})
    taken = np.flatnonzero((outcome > 0) & np.isfinite(done))
    if not len(taken):
        return [], []
    by_time = taken[np.argsort(done[taken], kind="stable")]
    done_by_time = done[by_time]
    begun = np.where(np.isnan(assigned), np.where(np.isnan(executing), started, executing), assigned)
    has_begun = np.isfinite(executing) | np.isfinite(started)
    rows, row_bounds = _bounds(graph.node_count, graph.node)
    edge_order, edge_bounds = _bounds(graph.node_count, graph.task)
    needed = graph.dependency[edge_order]
    del edge_order

    def before(node: int, limit: float) -> tuple[int, str]:
        best, way = -1, "unknown"
        inputs = needed[edge_bounds[node] : edge_bounds[node + 1]]
        if len(inputs):
            counts = row_bounds[inputs + 1] - row_bounds[inputs]
            first = np.repeat(row_bounds[inputs] - np.cumsum(counts) + counts, counts)
            candidates = rows[first + np.arange(len(first))]
            candidates = candidates[(outcome[candidates] == 1) & (done[candidates] <= limit)]
            if len(candidates):
                best, way = int(candidates[np.argmax(done[candidates])]), "input"
        for each in rows[row_bounds[node] : row_bounds[node + 1]]:
            if each not in seen and has_begun[each] and done[each] <= limit and (best < 0 or done[each] > done[best]):
                best, way = int(each), "repeat"
        return best, way

    at = int(by_time[-1])
    seen = {at}
    chain, came_by = [at], []
    while True:
        limit = begun[at] + 1e-6
        best, way = before(int(graph.node[at]), limit)
        asked = submitted[at]
        if np.isfinite(asked) and (best < 0 or done[best] < asked):
            # It could not begin before it was submitted: what the client may have waited for is the last result then.
            place = int(np.searchsorted(done_by_time, asked, "right")) - 1
            best, way = (int(by_time[place]), "client") if place >= 0 else (-1, "start")
        if best < 0 or best in seen:
            came_by.append(way if best < 0 else "unknown")
            break
        came_by.append(way)
        chain.append(best)
        seen.add(best)
        at = best
    return chain[::-1], came_by[::-1]


def _links(run: Run, graph: _Graph, chain: list[int], came_by: list[str], frame: Window) -> pa.Table:
    """Return the chain with every second from the start of the run named."""
    rows = graph.attempts.take(pa.array(chain, pa.int64()))
    schedulers, key_ids = (rows[name].to_pylist() for name in ("scheduler_id", "key_id"))
    run_ids = rows["run_id"].to_pylist()
    texts = run.sql(LINKS_SQL, [key_ids, schedulers, key_ids, run_ids, list(range(len(chain)))]).to_arrow_table()
    outcome = rows["outcome"].to_pylist()
    is_last = np.arange(len(chain)) == len(chain) - 1
    is_vain = np.array([name != "memory" for name in outcome], bool) & ~is_last
    is_vain[:-1] |= np.array([way == "repeat" for way in came_by[1:]], bool)
    told = {name: numbers(rows[f"{name}_s"]) for name in _STEPS if name != "inputs"}
    told["inputs"] = numbers(texts["inputs_s"])
    # What never told its computation had the thread from when it was given one.
    unsaid = np.isnan(told["started"])
    for name in ("executing", "received", "assigned"):
        told["started"] = np.where(np.isnan(told["started"]), told[name], told["started"])
    told["stopped"] = np.where(np.isnan(told["stopped"]), told["done"], told["stopped"])
    moments = np.stack([told[name] for name in _STEPS], axis=1) if len(chain) else np.zeros((0, len(_STEPS)))
    is_told = np.isfinite(moments)
    if len(chain):
        # Where clocks or rows contradict each other, nothing lasts longer than the chain.
        moments = np.minimum(np.minimum(moments, told["done"][:, None]), told["done"][-1])
    ends = np.maximum.accumulate(np.concatenate([[frame.start_s], np.nan_to_num(moments, nan=-np.inf).ravel()]))
    lengths = np.diff(ends).reshape(-1, len(_STEPS))
    kind_of = np.array([[_NAMES.index(name) for name in _KIND_OF_STEP]] * len(chain), np.int64).reshape(lengths.shape)
    unknown, repeat = _NAMES.index("unknown"), _NAMES.index("repeat")
    way = np.array(came_by)
    # A step after one that is not told is not known either: it may have been both.
    skipped = ~is_told[:, :-1] & is_told[:, 1:]
    skipped[:, 0] = False
    kind_of[:, 1:][skipped] = unknown
    stolen = np.array(rows["is_from_steal"].to_pylist(), bool) & np.isnan(told["ready"])
    kind_of[stolen, _STEPS.index("assigned")] = _NAMES.index("slot")
    ready = _STEPS.index("ready")
    kind_of[(way != "repeat") & (lengths[:, ready] > _SUDDEN_S), ready] = unknown
    kind_of[way == "repeat", ready] = repeat
    kind_of[(way == "unknown") & is_told[:, ready], ready] = unknown
    kind_of[way == "start", 0] = _NAMES.index("start")
    kind_of[unsaid, _STEPS.index("stopped")] = unknown
    kind_of[is_vain, _STEPS.index("stopped")] = repeat
    seconds = np.zeros((len(chain), len(_NAMES)))
    np.add.at(seconds, (np.arange(len(chain))[:, None], kind_of), lengths)
    duration = lengths[:, _STEPS.index("stopped")]
    waits = seconds.copy()
    np.add.at(waits, (np.arange(len(chain)), kind_of[:, _STEPS.index("stopped")]), -duration)
    waits = np.maximum(waits, 0.0)
    longest = np.argmax(waits, axis=1) if len(chain) else np.zeros(0, np.int64)
    started = ends[1:].reshape(-1, len(_STEPS))[:, _STEPS.index("started")] - frame.origin_s
    columns: dict[str, object] = {
        "key": texts["key"],
        "prefix": texts["prefix"],
        "start_at_s": started,
        "duration_s": duration,
        "wait_s": lengths.sum(axis=1) - duration,
        "wait_kind": pa.array(
            [_NAMES[kind] if waits[at, kind] > 0 else None for at, kind in enumerate(longest)], pa.string()
        ),
        "worker": texts["worker"],
        "run_id": pa.array(run_ids, pa.int64()),
        "outcome": pa.array(outcome, pa.string()),
    }
    return pa.table(columns | {f"{name}_s": seconds[:, at] for at, name in enumerate(_NAMES)})


# ---------------------------------------------------------------- what might have been


def _ideal(graph: _Graph, thread_count: int, first_s: float, frame: Window) -> pa.Table:
    """Return the ideal times beside those that were."""
    compute = np.nan_to_num(numbers(graph.attempts["compute_s"]), nan=0.0)
    done = numbers(graph.attempts["done_s"])
    # Clocks that contradict each other may tell of less than nothing.
    compute = np.maximum(compute, 0.0)
    taken = np.flatnonzero((codes(graph.attempts["outcome"], {"memory": 1, "error": 1}) == 1) & np.isfinite(done))
    last_s = float(done[taken].max()) if len(taken) else None
    # Of tasks that came to an end more than once the last counts.
    taken = taken[np.argsort(done[taken], kind="stable")]
    of_node = np.zeros(graph.node_count)
    of_node[graph.node[taken]] = compute[taken]
    ran = np.zeros(graph.node_count, bool)
    ran[graph.node[taken]] = True
    longest = spread = bound = replay = None
    if len(taken):
        longest = longest_path(of_node, graph.task, graph.dependency)
        if thread_count:
            spread = float(of_node.sum()) / thread_count
            bound = max(longest, spread)
            if graph.node_count <= REPLAYED_TASKS:
                replay = replayed(of_node, graph.task, graph.dependency, _ranks(graph), thread_count)
                if replay < bound * (1 - 1e-9):  # tasks that are told to need each other were left out
                    replay = None
    cases = (
        ("infinitely many workers", "the chain of dependencies that computes longest", longest),
        ("evenly spread", "all computing, in equal parts on these threads", spread),
        ("these workers", "no order of tasks on these threads can be faster: the larger of the two", bound),
        ("these workers, replayed", "each free thread takes the ready task that Dask puts first", replay),
        (
            "since the first graph",
            "as it was: from the taking of the first graph to the last result",
            None if last_s is None or not np.isfinite(first_s) else max(last_s - first_s, 0.0),
        ),
        (
            "since the start",
            "as it was: from the start of the run to the last result",
            None if last_s is None else max(last_s - frame.start_s, 0.0),
        ),
    )
    return pa.table(
        {
            "case": pa.array([case for case, *_ in cases], pa.string()),
            "meaning": pa.array([meaning for _, meaning, _ in cases], pa.string()),
            "wall_s": pa.array([seconds for *_, seconds in cases], pa.float64()),
        }
    )


def _ranks(graph: _Graph) -> Integers:
    """Return the place of each node in the order of Dask's priorities; those without one come last."""
    user, generation, order = (np.full(graph.node_count, np.inf) for _ in range(3))
    for values, name in ((user, "priority_user"), (generation, "priority_generation"), (order, "priority_order")):
        told = numbers(graph.priorities[name])
        values[graph.priority_node] = np.where(np.isnan(told), np.inf, told)
    ranks = np.empty(graph.node_count, np.int64)
    ranks[np.lexsort((order, generation, user))] = np.arange(graph.node_count)
    return ranks
