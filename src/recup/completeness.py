"""What of a run is missing: recup's own counts held against Dask's, and against each other.

Covers every loss that can be known from the record: files, spools, counters, servers that
were seen but not recorded, rows that found no counterpart.  It does not cover which cells
of the map were meant to be collected (`recup.analyse`).

Levels: ``loss`` (something is missing), ``warning`` (something may be missing, or cannot be
checked), ``info`` (a fact the reader should know), ``ok`` (checked, and nothing is missing).
What servers say of themselves is checked in `recup.completeness_spools`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from recup.completeness_spools import spool_findings
from recup.findings import LEVELS, LOST, Finding, Number

if TYPE_CHECKING:
    from recup.store import Run


def completeness(run: Run) -> list[Finding]:
    """Return everything that was checked, losses first.

    From: spools, losses, io_logs, workers, clients, task_runs, worker_lives, receptions, results, thread_counters,
    fine_metrics, clock_samples
    """
    spools = [
        dict(zip(relation.columns, row, strict=True))
        for relation in [run.sql("select * from spools order by role, server_id, epoch")]
        for row in relation.fetchall()
    ]
    findings: list[Finding] = []
    findings += _cluster(run, spools)
    findings += spool_findings(spools, run.unreadable)
    checks: tuple[Callable[[Run], list[Finding]], ...] = (
        _losses,
        _darshan_logs,
        _workers,
        _clients,
        _attempts,
        _threads,
        _clocks,
    )
    for check in checks:
        findings += check(run)
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


_NO_SCHEDULER = Finding("loss", "scheduler", "No scheduler recorded into this run.")
_BEGINNING_S = 30.0
"""A program may take so long to have its first server record."""

_WITNESSES_SQL = """
select 1 from spools where role not in ('launcher', 'scheduler')
union all
select 1 from raw.processes where scheduler_id is not null
union all
select 1 from raw.losses
"""
"""Rows where anybody met a scheduler, or something was lost that may have told of one."""


def _cluster(run: Run, spools: list[dict[str, Any]]) -> list[Finding]:
    """Whether a scheduler recorded, and if not, whether one is missing."""
    if any(spool["role"] == "scheduler" for spool in spools):
        return []
    manifest = run.manifest
    started_ns = manifest.get("started_ns")
    age_s = (time.time_ns() - started_ns) / 1e9 if isinstance(started_ns, int) else math.inf
    if manifest.get("state") == "running" and age_s < _BEGINNING_S:
        said = f"It began {max(age_s, 0.0):.0f} s ago, and no scheduler has written anything yet."
        return [Finding("warning", "run", said, {"age_s": age_s})]
    if not spools:
        return [Finding("loss", "run", "No server recorded anything into this run."), _NO_SCHEDULER]
    if run.sql(_WITNESSES_SQL).fetchall():
        return [_NO_SCHEDULER]
    if any(spool["is_alive"] for spool in spools):
        return [Finding("info", "run", "Its program started no Dask cluster so far, as far as recorded.")]
    said = (
        "Its program started no Dask cluster, as far as recorded: there is no record of a scheduler, worker or client."
    )
    # A program that failed has reason to have started none; of one that ended well, whatever it started may be missing.
    failed = manifest.get("exit_code") or manifest.get("signal")
    return [Finding("info" if failed else "warning", "run", said)]


def verdict(findings: Sequence[Finding]) -> str:
    """Return one line: ``complete``, ``complete but for ...`` (cannot be checked) or ``incomplete: ...``."""
    losses = [finding for finding in findings if finding.level == "loss"]
    warnings = [finding for finding in findings if finding.level == "warning"]
    if losses:
        return f"incomplete: {_first(losses)}"
    if warnings:
        return f"complete but for {_first(warnings)}"
    return "complete"


def _first(findings: Sequence[Finding]) -> str:
    statement = findings[0].statement.rstrip(".")
    rest = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
    lowered = statement[:1].lower() + statement[1:]
    return f"{findings[0].subject}: {lowered}{rest}"


# ---------------------------------------------------------------- tables

_LOSSES_SQL = """
select
    server_id,
    kind,
    "table",
    count(*) as loss_count,
    coalesce(sum(row_count), 0) as row_count,
    count(*) filter (row_count is null) as uncounted_count,
    arg_max(detail, time_ns) as detail
from raw.losses
group by all
order by row_count desc, server_id, kind, "table"
"""


def _losses(run: Run) -> list[Finding]:
    """What servers themselves said they lost."""
    found = []
    for server_id, kind, table, loss_count, row_count, uncounted, detail in run.sql(_LOSSES_SQL).fetchall():
        if kind == "damaged":
            continue
        what = (
            f"{row_count} rows"
            if row_count and not uncounted
            else f"At least {row_count} rows"
            if row_count
            else "Rows"
        )
        found.append(
            Finding(
                "warning" if kind == "degraded" else "loss",
                server_id,
                f"{what}{f' of {table}' if table else ''} {LOST.get(kind, kind)}: {detail}",
                {"lost_row_count": row_count if row_count or not uncounted else None, "loss_count": loss_count},
            )
        )
    if not found:
        found.append(Finding("ok", "losses", "No server reported a loss."))
    return found


_LOGS_SQL = """
select log, lost, is_killed, segment_count, operation_count,
    exists (select 1 from raw.losses where contains(detail, log)) as is_told
from raw.io_logs
order by log
"""


def _darshan_logs(run: Run) -> list[Finding]:
    """Whether Darshan's logs hold all files and operations of their processes."""
    found, whole = [], 0
    for log, lost, is_killed, segments, operations, is_told in run.sql(_LOGS_SQL).fetchall():
        reasons = json.loads(lost) if lost else []
        if not reasons and (operations or 0) > segments:
            reasons = [f"{segments} of {operations} operations were traced"]
        if not reasons:
            whole += 1
        elif not (is_killed and is_told):
            numbers: dict[str, Number] = {"segment_count": segments, "operation_count": operations}
            found.append(Finding("loss", log, f"Of this log something is missing: {'; '.join(reasons)}.", numbers))
    if whole and not found:
        found.append(Finding("ok", "Darshan", f"All {whole} logs of Darshan are whole.", {"log_count": whole}))
    return found


_WORKERS_SQL = """
select worker_id, address, ended, is_captured
from worker_lives
order by worker_id, address
"""


def _workers(run: Run) -> list[Finding]:
    """Whether every worker that a scheduler saw recorded, and a scheduler for every worker."""
    lives = run.sql(_WORKERS_SQL).fetchall()
    missing = [worker_id or address for worker_id, address, _, is_captured in lives if not is_captured]
    found = [
        Finding(
            "loss", name, "The scheduler saw this worker, and nothing of its own record is here: it was not captured."
        )
        for name in missing
    ]
    if lives and not missing:
        found.append(
            Finding("ok", "workers", f"All {len(lives)} workers that were seen recorded.", {"worker_count": len(lives)})
        )
    for worker_id, address, ended, _ in lives:
        if ended.startswith("signal"):
            found.append(Finding("info", worker_id or address, f"Its process was ended by {ended}."))
    return found


_CLIENTS_SQL = """
select distinct client
from raw.clients
where client <> 'fire-and-forget'
    and not exists (select 1 from spools where role = 'client' and server_id = client)
order by client
"""


_REMEDY = (
    "start its program with DASK_DISTRIBUTED__CLIENT__PRELOAD=recup.preload, or say `with recup.record(client):` in it"
)
"""How a client joins the run of its scheduler; one under `recup run` writes a run of its own."""


def _clients(run: Run) -> list[Finding]:
    """Whether every client that a scheduler saw recorded."""
    missing = [row[0] for row in run.sql(_CLIENTS_SQL).fetchall()]
    if not missing:
        return [Finding("ok", "clients", "All clients that were seen recorded.")]
    return [
        Finding(
            "loss",
            name,
            "The scheduler saw this client, and it did not record: its graphs before optimization are missing. To have "
            f"them, {_REMEDY}.",
        )
        for name in missing
    ]


_ATTEMPTS_SQL = """
select
    count(*) as attempt_count,
    count(*) filter (outcome = 'unknown') as unknown_count,
    count(*) filter (outcome = 'running_at_end') as running_count,
    count(*) filter (assigned_s is null) as unassigned_count,
    count(*) filter (
        received_s is null and executing_s is null and outcome in ('memory', 'error')
        and worker_id in (select server_id from spools)
    ) as untold_count
from task_runs
"""


def _attempts(run: Run) -> list[Finding]:
    """Whether what scheduler and workers say of attempts goes together."""
    attempts, unknown, running, unassigned, untold = run.sql(_ATTEMPTS_SQL).fetchall()[0]
    found = []
    sentences = (
        ("warning", unknown, "the outcome is not known"),
        ("info", running, "nothing ended them before the record ended"),
        ("warning", unassigned, "workers tell and the scheduler does not: it recorded nothing of their assignment"),
        ("warning", untold, "the scheduler took the end and the worker recorded nothing of them, though it recorded"),
    )
    for level, count, sentence in sentences:
        if count:
            found.append(
                Finding(level, "attempts", f"Of {count} of {attempts} attempts {sentence}.", {"attempt_count": count})
            )
    if attempts and not any(finding.level == "warning" for finding in found):
        found.append(
            Finding(
                "ok", "attempts", f"All {attempts} attempts are known from both sides.", {"attempt_count": attempts}
            )
        )
    return found


_UNCOUNTED_SQL = """
select count(*) as ended_count, count(*) filter (c.server_id is null) as uncounted_count
from raw.results r
left join raw.thread_counters c on c.server_id = r.server_id and c.key_id = r.key_id and c.run_id = r.run_id
where r.role = 'worker' and r.outcome in ('memory', 'error') and r.thread is not null and r.run_id is not null
"""

_CPU_SQL = """
with counted as (
    select server_id as worker_id, prefix, sum(attempt_count)::bigint as task_count, sum(cpu_ns) / 1e9 as cpu_s
    from counter_sums
    where kind = 'task' and outcome = 'returned' and is_counted
    group by server_id, prefix
), metered as (
    -- What code in the thread meters itself, as P2P shuffles do, Dask takes off thread-cpu, waits too, down to nothing: CPU
    -- by name is the least that comes on top, and all but what goes around the thread the most.
    select
        server_id as worker_id,
        prefix,
        sum(value) filter (activity = 'thread-cpu' or activity like '%-cpu') as cpu_s,
        sum(value) filter (activity not in ('thread-noncpu', 'executor', 'other', 'failed', 'cancelled')) as at_most_s
    from raw.fine_metrics
    where context = 'execute' and unit = 'seconds'
    group by server_id, prefix
    having count(*) filter (activity = 'thread-cpu') > 0
)
select c.worker_id, c.prefix, c.task_count, c.cpu_s,
    case when c.cpu_s > m.cpu_s then least(c.cpu_s, m.at_most_s) else m.cpu_s end as metered_s,
    abs(c.cpu_s - metered_s) > greatest(0.02 * metered_s, 0.001 * c.task_count) as is_apart
from counted c
join metered m on m.worker_id = c.worker_id and m.prefix = c.prefix
order by c.worker_id, c.prefix
"""
"""A millisecond a task, or 2 %, is no difference."""


def _threads(run: Run) -> list[Finding]:
    """Whether every attempt was counted in its thread, and agrees with Dask's own meter of CPU time."""
    ended, uncounted = run.sql(_UNCOUNTED_SQL).fetchall()[0]
    found = []
    if uncounted:
        found.append(
            Finding(
                "warning",
                "threads",
                f"Of {uncounted} of {ended} attempts the counters of their thread are missing; in process pools there "
                "are none.",
                {"attempt_count": uncounted},
            )
        )
    compared = run.sql(_CPU_SQL).fetchall()
    for worker_id, prefix, count, mine, dask, is_apart in compared:
        if is_apart:
            told = f"Of {count} tasks {prefix}, their own code took {mine:.3f} s of CPU and Dask metered {dask:.3f} s"
            numbers: dict[str, Number] = {"counted_s": mine, "dask_s": dask}
            # Dask's meter starts earlier and stops later: the first time it measures a result, imports are in it.
            found.append(
                Finding("info", worker_id, f"{told}: the rest went around it, as into measuring the result.", numbers)
                if dask > mine
                else Finding("warning", worker_id, f"{told}.", numbers)
            )
    if ended and not uncounted:
        equal = sum(not is_apart for *_, is_apart in compared)
        found.append(
            Finding(
                "ok",
                "threads",
                f"All {ended} attempts that ended in a thread were counted there; CPU time agrees with Dask's own meter "
                f"in {equal} of {len(compared)} sums by worker and prefix.",
                {"attempt_count": ended, "compared_count": len(compared), "equal_count": equal},
            )
        )
    return found


_JUMPS_SQL = """
with steps as (
    select
        server_id,
        (time_ns::hugeint - lag(time_ns) over in_order)
            - (monotonic_ns::hugeint - lag(monotonic_ns) over in_order) as jump_ns
    from raw.clock_samples
    window in_order as (partition by server_id order by monotonic_ns)
)
select server_id, arg_max(jump_ns, abs(jump_ns))::double / 1e9 as largest_s, count(*) as jump_count
from steps
where abs(jump_ns) > 10_000_000
group by server_id
order by server_id
"""


def _clocks(run: Run) -> list[Finding]:
    """Whether wall clocks went on evenly, and are known against the scheduler's."""
    found = [
        Finding(
            "warning",
            server_id,
            f"Its wall clock jumped {count} times, by {largest:+.3f} s at most: times around are off by that much.",
            {"jump_count": count, "largest_jump_s": largest},
        )
        for server_id, largest, count in run.sql(_JUMPS_SQL).fetchall()
    ]
    unknown = run.sql("select server_id from clocks where basis = 'unknown' and role = 'worker' order by 1").fetchall()
    found += [
        Finding(
            "info", server_id, "How its clock stands to the scheduler's is not known; its times are taken as they are."
        )
        for (server_id,) in unknown
    ]
    if not found:
        found.append(Finding("ok", "clocks", "No clock jumped."))
    return found
