"""What a report of one run says, as one document of plain values.

Brings the answers of `recup.analyse` together in the order of the page.  Nothing is
concluded here.  How it looks is the template's (`recup.report.html`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from recup.analyse.answers import Answer, Conclusion, answer, ranked
from recup.analyse.budget import CATEGORIES, NAMES, budget_by_prefix, budget_over_time, budget_totals
from recup.analyse.coverage import STATES, STEPS, coverage
from recup.analyse.durations import durations_by
from recup.analyse.io import io_by, io_record
from recup.analyse.overview import overview
from recup.analyse.profile import HOW_TO_RECORD, function_profile, profile_losses, recorded_functions
from recup.analyse.rows import Document, rows_of
from recup.questions import QUESTIONS, Question
from recup.report.groups import groups
from recup.report.heat import heat_map, ratio_step, share_step
from recup.report.strips import strips
from recup.report.tables import shown_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from recup.store import Run

BIN_COUNT = 200
"""Bins of the budget over time."""
_PATH_WIDTH, _PATH_HEIGHT = 1000.0, 100.0

_ENOUGH_ATTEMPTS = 10
"""Attempts from which on a median is worth a colour."""

_HOSTS_SQL = """
with hosts as (
    select host_id, any_value(hostname) as hostname from raw.hosts group by host_id
), placed as (
    select r.prefix, coalesce(hosts.hostname, r.host_id) as host, r.worker, r.compute_s
    from task_runs r
    left join hosts using (host_id)
    where r.compute_s is not null and r.prefix is not null
), usual as (
    select prefix, median(compute_s) as usual_s, sum(compute_s) as all_s from placed group by prefix
), places as (
    select count(distinct host) > 1 as has_hosts from placed
)
select prefix, case when has_hosts then host else worker end as place, median(compute_s) as median_s,
    median(compute_s) / nullif(any_value(usual_s), 0) as ratio, count(*) as attempt_count, any_value(has_hosts) as has_hosts
from placed
join usual using (prefix)
cross join places
group by 1, 2
order by any_value(all_s) desc, prefix, place
"""
"""One row per prefix and host, or worker where there is one host."""

_REPOSITORIES_SQL = """
select path, any_value("commit") as "commit", any_value(branch) as branch, bool_or(is_dirty) as is_dirty,
    any_value(changed_file_count) as changed_file_count, any_value(remote) as remote
from raw.repositories
group by path
order by path
"""
_PACKAGES_SQL = """
with used as (
    select packages_digest, string_agg(distinct role, ', ' order by role) as roles, count(*) as process_count
    from raw.processes
    where packages_digest is not null
    group by 1
)
select p.name, p.version, string_agg(distinct u.roles, '; ') as "installed in", sum(u.process_count)::bigint as process_count
from (select distinct packages_digest, name, version from raw.packages) p
join used u using (packages_digest)
group by p.name, p.version
order by lower(p.name), p.version
"""
_CONFIG_SQL = """
select name, value, origin
from (select distinct name, value, origin from raw.config)
order by origin = 'default', name, value
"""
_FACTS_SQL = {
    "hosts": ("Hosts", "from raw.hosts"),
    "processes": (
        "Processes",
        """select p.role, p.name, p.address, p.pid, h.hostname as host, p.thread_count, p.memory_limit_bytes,
            p.python_version, p.dask_version, p.distributed_version, p.server_id
        from raw.processes p
        left join (select host_id, any_value(hostname) as hostname from raw.hosts group by host_id) h using (host_id)
        order by p.role, p.address""",
    ),
    "batch-jobs": ("Batch job", "select distinct system, job_id, name, value from raw.batch_jobs where system <> 'none' order by all"),
    "filesystems": (
        "File systems",
        "select distinct purpose, path, mount_point, filesystem, source, size_bytes, free_bytes from raw.filesystems order by all",
    ),
    "accelerators": ("Accelerators", "select distinct device, kind, model, memory_bytes, driver from raw.accelerators order by all"),
    "repositories": ("Git", _REPOSITORIES_SQL),
    "config": ("Dask configuration, what was set first", _CONFIG_SQL),
    "environment": ("Environment variables", "select distinct name, value from raw.environment order by all"),
    "packages": ("Installed packages", _PACKAGES_SQL),
}  # fmt: skip
_BY_TASK_LIMIT = 200_000
"""Attempts up to which I/O is summed for each of them."""
_HIDDEN = ("server_id", "role", "host_id", "epoch", "time_ns")


def report_document(run: Run) -> Document:
    """Return everything a report of a run says, but its time line.

    Keys: header, completeness, budget (None: there is none), findings, prefixes, heat, groups, transfers, questions,
    io, profile, map, environment, export, strips
    """
    made: dict[str, Callable[[], Any]] = {
        **{question.verb: partial(answer, run, question) for question in QUESTIONS},
        "page": lambda: overview(run),
        "prefixes": lambda: shown_table("prefixes", "Prefixes, most seconds first", _durations(run)),
        "heat": lambda: _heat(run),
        "groups": lambda: _groups(run),
        "io": lambda: _io(run),
        "profile": lambda: _profile(run),
        "map": lambda: _map(run),
        "environment": lambda: [_facts(run, name, title, query) for name, (title, query) in _FACTS_SQL.items()],
        "strips": lambda: strips(run),
    }
    told = dict(zip(made, run.together(list(made.values())), strict=True))
    answers: dict[str, Answer] = {question.verb: told[question.verb] for question in QUESTIONS}
    found = ranked(each for given in answers.values() for each in given.conclusions)
    return {
        "header": _header(run, told["page"]),
        "completeness": told["page"]["completeness"],
        "budget": _budget(run),
        "findings": findings(found),
        "prefixes": told["prefixes"],
        "heat": told["heat"],
        "groups": told["groups"],
        "transfers": _transfers(answers["transfers"]),
        "questions": [_question(question, answers[question.verb]) for question in QUESTIONS],
        "io": told["io"],
        "profile": told["profile"],
        "map": told["map"],
        "environment": [table for table in told["environment"] if table["row_count"]],
        "export": _export(run),
        "strips": told["strips"],
    }


# ---------------------------------------------------------------- parts


def findings(found: tuple[Conclusion, ...]) -> list[Document]:
    """Return conclusions as rows for the page, with the share each has of the most costly."""
    most = max((each.thread_s or 0.0 for each in found), default=0.0)
    return [each.document() | {"of_most": (each.thread_s or 0.0) / most if most > 0 else 0.0} for each in found]


def _header(run: Run, page: Document) -> Document:
    (numbers,) = rows_of(run, "from run_summary")
    repositories = rows_of(run, _REPOSITORIES_SQL)
    names = (
        "run",
        "profile",
        "hosts",
        "software",
        "clusters",
        "worker_ends",
        "submissions",
        "traffic",
        "errors",
        "logs",
    )
    return {
        **{name: page[name] for name in names},
        "tasks": {name: value for name, value in page["tasks"].items() if name != "prefixes"},
        "numbers": numbers,
        "repository": repositories[0] if repositories else None,
        "batch_jobs": page["batch_jobs"],
    }


def _budget(run: Run) -> Document | None:
    totals = budget_totals(run).to_pylist()
    if not any(row["thread_s"] for row in totals):
        return None
    over_time = budget_over_time(run, BIN_COUNT)
    return {
        "totals": totals,
        "areas": areas(over_time.to_pydict()),
        "end_s": over_time["stop_at_s"][-1].as_py() if over_time.num_rows else 0.0,
        "by_prefix": shown_table("budget-prefixes", "Thread-seconds by prefix, most first", budget_by_prefix(run)),
    }


def areas(columns: dict[str, list[float]]) -> list[Document]:
    """Return the budget over time as one closed step line per category, on top of each other, in the order of the budget."""
    starts, stops = columns["start_at_s"], columns["stop_at_s"]
    if not starts or stops[-1] <= 0:
        return []
    per_x = _PATH_WIDTH / stops[-1]
    totals = [sum(columns[f"{name}_s"][place] for name in NAMES) or 1.0 for place in range(len(starts))]
    below = [0.0] * len(starts)
    found = []
    for name, meaning in CATEGORIES:
        shares = [value / total for value, total in zip(columns[f"{name}_s"], totals, strict=True)]
        above = [low + share for low, share in zip(below, shares, strict=True)]
        if any(share > 1e-6 for share in shares):
            upper = _steps(above, starts, stops, per_x)
            lower = _steps(below, starts, stops, per_x)
            found.append(
                {"name": name, "meaning": meaning, "path": f"M{' '.join(upper)} L{' '.join(reversed(lower))}Z"}
            )
        below = above
    return found


def _steps(levels: list[float], starts: list[float], stops: list[float], per_x: float) -> list[str]:
    return [
        f"{moment * per_x:.1f},{_PATH_HEIGHT * (1 - level):.2f}"
        for level, start, stop in zip(levels, starts, stops, strict=True)
        for moment in (start, stop)
    ]


def _durations(run: Run) -> list[Document]:
    names = (
        "prefix", "attempt_count", "compute_s", "compute_share", "min_s", "q25_s", "median_s", "q75_s", "max_s",
        "cpu_share", "result_bytes", "without_result_count",
    )  # fmt: skip
    return [{name: row[name] for name in names} for row in durations_by(run).to_pylist()]


def _heat(run: Run) -> Document:
    rows = rows_of(run, _HOSTS_SQL)
    for row in rows:
        row["hint"] = f"{row['attempt_count']:,} attempts" + (
            f", {row['ratio']:.2g} times the usual" if row["ratio"] else ""
        )
    told = heat_map(rows, ("prefix", "place", "median_s"), _slowness_step, limits=(20, 40))
    return told | {"by": "host" if rows and rows[0]["has_hosts"] else "worker"}


def _slowness_step(row: Document) -> int:
    return ratio_step(row["ratio"]) if row["attempt_count"] >= _ENOUGH_ATTEMPTS else 0


def _groups(run: Run) -> Document:
    told = groups(run)
    names = ("name", "prefix", "task_count", "attempt_count", "error_count", "compute_s")
    rows = [{name: node[name] for name in names} for node in told["nodes"]]
    if told["by"] == "prefix":
        rows = durations_by(run, "group").to_pylist()
    return told | {"table": shown_table("groups", "Groups, most seconds first", rows)}


def _transfers(told: Answer) -> Document:
    (matrix,) = (each.rows for each in told.tables if each.name == "workers")
    rows = matrix.to_pylist()
    most = max((row["moved_bytes"] or 0 for row in rows), default=0)
    for row in rows:
        row["hint"] = f"{row['transfer_count']:,} transfers of {row['result_count']:,} results"
    shown = sorted(rows, key=lambda row: (str(row["source_worker"]), str(row["destination_worker"])))
    kept = _busiest(rows, 30)
    shown = [row for row in shown if row["source_worker"] in kept and row["destination_worker"] in kept]
    shape = heat_map(
        shown,
        ("source_worker", "destination_worker", "moved_bytes"),
        lambda row: share_step((row["moved_bytes"] or 0) / most) if most else 0,
    )
    shape["columns_left_out"] = len(
        {name for row in rows for name in (row["source_worker"], row["destination_worker"])} - kept
    )
    return shape


def _busiest(rows: list[Document], limit: int) -> set[str | None]:
    moved: dict[str | None, float] = {}
    for row in rows:
        for name in (row["source_worker"], row["destination_worker"]):
            moved[name] = moved.get(name, 0.0) + (row["moved_bytes"] or 0)
    return set(sorted(moved, key=lambda name: -moved[name])[:limit])


def _question(question: Question, told: Answer) -> Document:
    return {
        "verb": question.verb,
        "asks": question.asks,
        "covers": question.covers,
        "headline": told.headline,
        "basis": told.basis,
        "findings": findings(told.conclusions),
        "tables": [shown_table(f"{question.verb}-{each.name}", each.title, each.rows) for each in told.tables],
    }


def _io(run: Run) -> Document:
    record = io_record(run)
    ways = {"darshan": ("prefix", "file", "worker", "thread", "task"), "none": ()}.get(
        record["source"], ("prefix", "worker", "thread", "task")
    )
    statement = record["statement"]
    ((attempts,),) = run.sql("select attempt_count from run_summary").fetchall()
    if attempts > _BY_TASK_LIMIT and ways:
        ways = tuple(each for each in ways if each != "task")
        statement += " For single tasks: `recup io --by task`."
    tables = [shown_table(f"io-{by}", f"By {by}, most bytes first", io_by(run, by)) for by in ways]
    if record["classes"]:
        tables.append(shown_table("io-attribution", "How reads and writes got their task", record["classes"]))
    return {"statement": statement, "is_complete": record["is_complete"], "tables": tables}


def _profile(run: Run) -> Document:
    recorded = recorded_functions(run)
    if not recorded:
        return {"statement": HOW_TO_RECORD, "tables": [], "losses": []}
    kinds = {
        "task": "Functions of tasks",
        "coroutine": "Coroutines of event loops",
        "other": "Other functions outside tasks",
    }
    tables = [
        shown_table(f"profile-{kind}", f"{title}, most own time first", rows)
        for kind, title in kinds.items()
        if (rows := function_profile(run, kind=kind)).num_rows
    ]
    clocks = sorted({row["clock"] for row in recorded})
    statement = f"Yappi counted by the {' and '.join(clocks)} clock. It slows what it counts, so times are too long; shares tell more."
    return {"statement": statement, "tables": tables, "losses": profile_losses(run)}


def _map(run: Run) -> Document:
    lines = coverage(run).to_pylist()
    counts = {state: sum(line["state"] == state for line in lines) for state in STATES}
    return {
        "steps": [
            {
                "number": number, "name": name, "nature": nature, "location": location,
                "lines": [line for line in lines if line["step"] == number],
            }
            for number, (name, nature, location) in STEPS.items()
        ],
        "states": [{"name": state, "meaning": meaning, "count": counts[state]} for state, meaning in STATES.items()],
    }  # fmt: skip


def _facts(run: Run, name: str, title: str, query: str) -> Document:
    rows = rows_of(run, query)
    if query.startswith("from"):
        rows = list(
            {str(row): row for row in ({k: v for k, v in row.items() if k not in _HIDDEN} for row in rows)}.values()
        )
    return shown_table(name, title, rows)


def _export(run: Run) -> list[Document]:
    name = run.run_id
    return [
        {"what": "One table to Parquet, CSV or JSON", "how": f'recup sql {name} "from task_runs" -o task_runs.parquet'},
        {
            "what": "Any question in SQL (DuckDB)",
            "how": f'recup sql {name} "select prefix, count(*), sum(compute_s) from task_runs group by all order by 3 desc"',
        },
        {"what": "What tables and columns mean", "how": "recup schema task_runs"},
        {"what": "In Python: Arrow, pandas, DuckDB", "how": f'import recup\nrun = recup.open_run("{name}")\nrun.arrow("task_runs"), run.df("transfers_distinct"), run.sql("from results")'},
        {"what": "Everything that happened to one task", "how": f"recup story KEY --run {name}"},
        {"what": "Every answer as JSON", "how": f"recup budget {name} --json"},
    ]  # fmt: skip
