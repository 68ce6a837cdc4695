"""What each verb of the command line prints: documents laid out as pages.

Covers order, headings and words of the pages.  It takes plain documents, as `--json`
prints them, and knows nothing of runs; how lines are drawn is `recup.terminal`'s.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recup.profile_page import profiled_text
from recup.terminal import Page, bytes_text, count_text, inert, moment_text, plural, seconds_text

Row = Mapping[str, Any]

_PREFIXES_SHOWN = 15
_LINES_SHOWN = 5
_FINDINGS_SHOWN = 8
_ERROR_SHOWN = 300
"""Characters of the text of an error; Dask cuts it at 10,000."""
_SURE_S = 1e-5
"""Moments known at least so well are shown without a mark."""


def command_text(command: object) -> str:
    """Return a command line as a shell would take it; the interpreter by its name alone."""
    if not isinstance(command, (list, tuple)) or not command:
        return ""
    first, *others = map(str, command)
    return shlex.join([Path(first).name if "/" in first else first, *others])


# ---------------------------------------------------------------- ls


def runs_page(page: Page, rows: Sequence[Row], root: Path) -> None:
    """Print one line per run."""
    if not rows:
        page.line(f"No runs in {root}. `recup run script.py` makes one.")
        return
    page.table(
        ("run", "started", ">wall", "state", ">tasks", ">workers", "sealed", ">size", "command"),
        [
            (
                row["run_id"],
                moment_text(row["started_ns"]),
                seconds_text(row["wall_s"]),
                row["state"],
                count_text(row["task_count"]),
                count_text(row["worker_count"]),
                "yes" if row["is_sealed"] else "no",
                bytes_text(row["size_bytes"]),
                row["problem"] or command_text(row["command"]),
            )
            for row in rows
        ],
        whole=("run",),
    )


# ---------------------------------------------------------------- info


def info_page(page: Page, document: Mapping[str, Any]) -> None:
    """Print the first page of a run: what is missing comes first."""
    run = document["run"]
    page.title(f"run {run['run_id']}", run["path"])
    page.blank()
    _completeness_lines(page, document["completeness"])
    _what_ran(page, document)
    _clusters(page, document)
    _submissions(page, document["submissions"])
    _tasks(page, document["tasks"])
    _traffic(page, document["traffic"])
    _errors(page, document["errors"])
    _logs(page, document["logs"])
    page.blank()
    page.line(
        f"next: recup summary {run['run_id']}, recup report {run['run_id']}; recup --help has every question", "dim"
    )


def _completeness_lines(page: Page, completeness: Mapping[str, Any]) -> None:
    """Print what is missing; what is in order is for `recup check`."""
    findings = completeness["findings"]
    bad = [finding for finding in findings if finding["level"] in ("loss", "warning")]
    page.statements([_judgement(findings)])
    page.statements((f["level"], f"{f['subject']}: {f['statement']}") for f in bad[:_FINDINGS_SHOWN])
    _note(page, _more(bad, "finding", _FINDINGS_SHOWN))


def _judgement(findings: Sequence[Row]) -> tuple[str, str]:
    """Return in a word and a sentence whether something is missing."""
    losses, warnings = (sum(each["level"] == level for each in findings) for level in ("loss", "warning"))
    doubts = f"{plural(warnings, 'thing')} could not be told for sure"
    if losses:
        return "incomplete", f"{plural(losses, 'loss')} known" + (f"; {doubts}" if warnings else "")
    if warnings:
        return "complete", f"as far as can be told: {doubts}"
    return "complete", f"{plural(len(findings), 'check')} found nothing missing"


def _what_ran(page: Page, document: Mapping[str, Any]) -> None:
    run = document["run"]
    took = f", took {seconds_text(run['wall_s'])}" if run["wall_s"] is not None else ""
    jobs = ", ".join(f"{job['system']} {job['job_id'] or ''}".strip() for job in document["batch_jobs"])
    page.heading("What ran")
    page.facts(
        [
            ("command", command_text(run["command"])),
            ("directory", run["cwd"]),
            ("started", f"{moment_text(run['started_ns'])}{took}"),
            ("state", _state_text(run)),
            ("batch job", jobs),
            ("profiled", profiled_text(document["profile"])),
            *(("host", _host_text(host)) for host in document["hosts"][:_LINES_SHOWN]),
            ("", _more(document["hosts"], "host")),
            *(("software", _software_text(each)) for each in document["software"][:_LINES_SHOWN]),
        ]
    )


def _state_text(run: Row) -> str:
    sealed = "" if run["is_sealed"] else "; not sealed"
    meanings = {
        "ended 0": "ended in order",
        "unknown": "nobody wrote that it ended, and nobody shows life",
        "ended": "ended",
    }
    return f"{meanings.get(run['state'], run['state'])}{sealed}"


def _host_text(host: Row) -> str:
    cores = f"{host['core_count']} cores" if host["core_count"] else ""
    cpus = f"{host['cpu_count']} CPUs" if host["cpu_count"] else ""
    machine = (host["architecture"], host["cpu_model"], host["operating_system"])
    return f"{host['hostname']}: " + ", ".join(filter(None, (cores, cpus, bytes_text(host["memory_bytes"]), *machine)))


def _software_text(row: Row) -> str:
    names = (("Python", "python"), ("dask", "dask"), ("distributed", "distributed"), ("recup", "recup"))
    versions = [f"{label} {row[f'{name}_version']}" for label, name in names if row[f"{name}_version"]]
    return f"{', '.join(versions)} in {plural(row['process_count'], 'process')}"


def _more(rows: Sequence[Any], noun: str, shown: int = _LINES_SHOWN) -> str:
    return f"and {plural(len(rows) - shown, 'more ' + noun)}" if len(rows) > shown else ""


def _clusters(page: Page, document: Mapping[str, Any]) -> None:
    clusters, ends = document["clusters"], document["worker_ends"]
    if not clusters:
        return
    page.heading("Cluster" if len(clusters) == 1 else f"{len(clusters)} clusters")
    for cluster in clusters[:_LINES_SHOWN]:
        memory = f", {bytes_text(cluster['memory_limit_bytes'])}" if cluster["memory_limit_bytes"] else ""
        workers, threads = plural(cluster["worker_count"], "worker"), plural(cluster["thread_count"], "thread")
        mine = [end for end in ends if end["scheduler_id"] == cluster["scheduler_id"]]
        page.facts(
            [
                ("scheduler", cluster["address"] or cluster["scheduler_id"]),
                ("workers", f"{workers} with {threads}{memory}"),
                ("", "; ".join(map(_end_text, mine[:_LINES_SHOWN]))),
                ("clients", f"{plural(cluster['client_count'], 'client')}, {plural(cluster['graph_count'], 'graph')}"),
            ]
        )
    _note(page, _more(clusters, "cluster"))


def _end_text(end: Row) -> str:
    reason = f" ({end['reason']})" if end["reason"] else ""
    return f"{count_text(end['worker_count'])} {end['ended']}{reason}"


def _submissions(page: Page, submissions: Sequence[Row]) -> None:
    if not submissions:
        return
    page.heading("Submissions")
    page.table(
        ("call", ">graphs", ">tasks before", "from", "line"),
        [
            (
                row["call"],
                count_text(row["submission_count"]),
                count_text(row["task_count"]),
                f"{Path(row['path']).name}:{row['line']}" if row["path"] else "",
                (row["line_text"] or "").strip(),
            )
            for row in submissions[: 2 * _LINES_SHOWN]
        ],
    )
    _note(page, _more(submissions, "place", 2 * _LINES_SHOWN))


def _note(page: Page, text: str) -> None:
    if text:
        page.line(text, "dim")


def _tasks(page: Page, tasks: Mapping[str, Any]) -> None:
    if not tasks["task_count"] and not tasks["attempt_count"]:
        return
    outcomes = [f"{count_text(tasks['done_count'])} done"]
    for name, word in (
        ("failed", "failed"),
        ("blocked", "never ran since one they need failed"),
        ("given_up", "given up before they had a result"),
        ("without_result", "without a result"),
    ):
        if tasks[f"{name}_count"]:
            outcomes.append(f"{count_text(tasks[f'{name}_count'])} {word}")
    page.heading("Tasks")
    ends = [
        f"{count_text(tasks[f'{name}_attempt_count'])} {word}"
        for name, word in (("failed", "failed"), ("lost", "lost with their worker"))
        if tasks[f"{name}_attempt_count"]
    ]
    ended = f" ({', '.join(ends)})" if ends else ""
    scattered = (
        f"; beside them {plural(tasks['scattered_count'], 'scattered value')}" if tasks["scattered_count"] else ""
    )
    page.line(
        f"{plural(tasks['task_count'], 'task')}: {', '.join(outcomes)}; "
        f"{plural(tasks['attempt_count'], 'attempt')}{ended} took {seconds_text(tasks['compute_s'])} of computing"
        f"{scattered}"
    )
    page.blank()
    prefixes = tasks["prefixes"]
    page.table(
        ("prefix", ">tasks", ">failed", ">compute", ">mean", ">results"),
        [
            (
                row["prefix"],
                count_text(row["task_count"]),
                count_text((row["failed_count"] + row["blocked_count"]) or None),
                seconds_text(row["compute_s"]),
                seconds_text(row["mean_s"]),
                bytes_text(row["result_bytes"]),
            )
            for row in prefixes[:_PREFIXES_SHOWN]
        ],
    )
    _note(page, _more(prefixes, "prefix", _PREFIXES_SHOWN))


def _traffic(page: Page, traffic: Row) -> None:
    moved = spilled = stolen = "none"
    if traffic["transfer_count"]:
        moved = (
            f"{plural(traffic['transfer_count'], 'request')} brought {bytes_text(traffic['transfer_bytes'])} "
            f"in {seconds_text(traffic['transfer_s'])} (requests overlap)"
        )
    if traffic["spill_count"]:
        spilled = (
            f"{plural(traffic['spill_count'], 'result')} to disk, {bytes_text(traffic['spill_bytes'])}; "
            f"{count_text(traffic['unspill_count'])} read back"
        )
    if traffic["steal_request_count"] or traffic["steal_count"]:
        stolen = (
            f"{plural(traffic['steal_count'], 'task')} moved, of {plural(traffic['steal_request_count'], 'request')}"
        )
    page.heading("Between and beside tasks")
    page.facts(
        [
            ("transfers", moved),
            ("spill", spilled),
            ("stealing", stolen),
            ("peak memory", _peak_text(traffic["worker_peak_memory_bytes"])),
        ]
    )


def _peak_text(peak_bytes: int | None) -> str:
    return "" if peak_bytes is None else f"{bytes_text(peak_bytes)} in one worker, as sampled each second"


def _errors(page: Page, errors: Sequence[Row]) -> None:
    if not errors:
        return
    count, done = errors[0]["error_count"], errors[0]["done_count"]
    page.heading(
        f"{plural(count, 'task')} had a failed attempt, {count_text(done)} of them done by a later one"
        if done
        else f"{plural(count, 'task')} failed"
    )
    page.table(
        ("key", ">times", "worker", "error"),
        [
            (
                row["key"],
                count_text(row["attempt_count"]),
                row["worker"],
                inert(row["exception_text"] or "", _ERROR_SHOWN),
            )
            for row in errors
        ],
        wrap=("error",),
    )
    if any(len(row["exception_text"] or "") > _ERROR_SHOWN for row in errors):
        _note(page, "texts of errors are cut; `recup story KEY` has them whole")
    if errors[0]["error_count"] > len(errors):
        _note(page, f'the first {len(errors)}; `recup sql RUN "from errors"` gives all')


def _logs(page: Page, logs: Sequence[Row]) -> None:
    if not logs:
        return
    page.heading(f"{plural(sum(row['record_count'] for row in logs), 'log record')} of warnings and errors")
    page.table(
        ("level", ">times", "logger", "message"),
        [
            (row["level"].lower(), count_text(row["record_count"]), row["logger"], row["message"])
            for row in logs[:_LINES_SHOWN]
        ],
    )
    _note(page, _more(logs, "message"))


# ---------------------------------------------------------------- check


def check_page(page: Page, run_id: str, findings: Sequence[Row]) -> None:
    """Print the completeness statement: the worst first."""
    page.title(f"completeness of run {run_id}")
    page.blank()
    page.statements([_judgement(findings)])
    page.blank()
    order = ("loss", "warning", "info", "ok")
    ranked = sorted(findings, key=lambda f: order.index(f["level"]) if f["level"] in order else len(order))
    page.table(
        ("level", "subject", "statement"),
        [(f["level"], f["subject"], f["statement"]) for f in ranked],
        wrap=("statement",),
    )


# ---------------------------------------------------------------- map


def map_page(
    page: Page, run_id: str, lines: Sequence[Row], steps: Mapping[int, tuple[str, str, str]], states: Mapping[str, str]
) -> None:
    """Print the map: a table per step, and what the states mean."""
    page.title(f"map of run {run_id}")
    for step, (name, nature, location) in steps.items():
        page.heading(f"{step}  {name}")
        page.line(f"{nature}; {location}", "dim")
        page.table(
            ("level", "metadata", "state", ">rows", "where, or why not"),
            [
                (
                    line["level"],
                    line["metadata"],
                    line["state"],
                    count_text(line["row_count"]) if line["row_count"] else "",
                    line["statement"] or ", ".join(line["tables"]),
                )
                for line in lines
                if line["step"] == step
            ],
            wrap=("where, or why not",),
        )
    page.blank()
    counts = {state: sum(line["state"] == state for line in lines) for state in states}
    page.statements(
        ((state, f"{counts[state]}: {meaning}") for state, meaning in states.items() if counts[state]), label_width=10
    )


# ---------------------------------------------------------------- story


def story_page(page: Page, run_id: str, key: str, lines: Sequence[Row]) -> None:
    """Print what happened to a task, one line each, an empty line between attempts."""
    page.title(key, f"in run {run_id}")
    page.blank()
    rows: list[tuple[Any, ...]] = []
    newest = 1
    for line in lines:
        if (line["attempt"] or 0) > newest:
            newest = line["attempt"]
            rows.append(("",) * 4)
        mark = "" if line["clock_error_s"] is not None and line["clock_error_s"] <= _SURE_S else "~"
        rows.append((f"{mark}{line['time_s']:+.6f}", line["observer"], line["what"], line["details"]))
    page.table((">seconds", "observer", "what", "details"), rows, wrap=("details",))
    doubts = [line["clock_error_s"] for line in lines]
    doubt = max((each for each in doubts if each is not None), default=0.0)
    if None in doubts:
        _note(page, "~ before a moment: nothing bounds by how much its clock was off.")
    elif doubt > _SURE_S:
        _note(page, f"~ before a moment: its clock is known to within {seconds_text(doubt)}, or better.")


# ---------------------------------------------------------------- sql, seal, schema, doctor


def tables_page(page: Page, rows: Sequence[Row]) -> None:
    """Print the tables and views of a run."""
    page.table(("name", "kind", ">rows"), [(row["name"], row["kind"], count_text(row["row_count"])) for row in rows])


def seal_page(page: Page, report: Row) -> None:
    """Print what a seal did."""
    rows, size = sum(report["row_counts"].values()), sum(report["sizes_bytes"].values())
    if report["row_counts"]:
        page.line(
            f"sealed {count_text(rows)} rows of {plural(len(report['row_counts']), 'table')} in "
            f"{seconds_text(report['duration_s'])}, {bytes_text(size)}: {report['path']}"
        )
    else:
        page.line(f"sealed before, nothing new: {report['path']}, {bytes_text(size)}")
    page.statements(
        ("loss", f"{name} has an unreadable end; its whole rows are kept") for name in report["damaged_files"]
    )
    if report["row_counts"] and not report["spool_removed"]:
        page.line("the rows as written stay in spool/", "dim")


def ingest_page(page: Page, report: Row) -> None:
    """Print what became of the logs read into a run."""
    logs = report["logs"]
    known = sum(each["state"] == "known" for each in logs)
    page.line(
        f"{plural(len(logs) - known, 'log')} with {count_text(sum(each['segment_count'] for each in logs))} reads and "
        f"writes into {report['path']}" + (f"; {plural(known, 'log')} were there before" if known else "")
    )
    page.statements(
        ("loss" if each["state"] == "unreadable" else "warning", f"{each['log']}: {'; '.join(each['lost'])}")
        for each in logs
        if each["lost"]
    )


def schema_page(page: Page, tables: Sequence[Row], *, in_full: bool) -> None:
    """Print the data dictionary, in full or one line per table."""
    if not in_full:
        page.table(
            ("name", ">step", "meaning"),
            [(each["name"], each["step"] or each["kind"], each["meaning"]) for each in tables],
            wrap=("meaning",),
        )
        page.blank()
        _note(page, "`recup schema NAME` tells its columns")
        return
    for each in tables:
        page.title(each["name"], f"{each['kind']}" + (f", step {each['step']}" if each["step"] else ""))
        page.line(each["meaning"])
        page.blank()
        page.table(
            ("column", "type", "meaning"),
            [(c["name"], ", ".join(filter(None, (c["type"], c["unit"]))), _meaning(c)) for c in each["columns"]],
            wrap=("meaning",),
        )


def _meaning(column: Row) -> str:
    return f"{column['meaning']}; null: {column['null']}" if column["null"] else str(column["meaning"])


def doctor_page(page: Page, checks: Sequence[Row]) -> None:
    """Print what the checks found, and last what is to be done."""
    page.table(
        ("level", "subject", "finding"),
        [(each["level"], each["subject"], each["statement"]) for each in checks],
        wrap=("finding",),
    )
    fixes = [each for each in checks if each["fix"]]
    if fixes:
        page.heading("What to do")
        page.statements((each["level"], f"{each['subject']}: {each['fix']}") for each in fixes)
    bad = [each["subject"] for each in checks if each["level"] == "problem"]
    page.blank()
    page.line(
        f"Not everything would be recorded: {', '.join(bad)}." if bad else "Everything would be recorded here.", "bold"
    )
