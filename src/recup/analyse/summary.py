"""One page for a pull request or a notebook: what ran, what is not known, where time went, what was found.

Brings answers together; each is made elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recup.analyse.answers import conclusions
from recup.analyse.budget import budget_totals
from recup.analyse.durations import durations_by
from recup.analyse.overview import finding_rows, run_facts
from recup.analyse.rows import Document, rows_of
from recup.completeness import completeness, verdict

if TYPE_CHECKING:
    from recup.store import Run

NUMBERS_SQL = """
select worker_count, thread_count, host_count, submission_count, task_count, attempt_count, memory_count, error_count,
    lost_count, compute_s, transfer_count, transfer_bytes, spilled_bytes
from run_summary
"""


def summary(run: Run) -> Document:
    """Return the summary of a run as one document of plain values.

    Keys: run, completeness (verdict, findings that are no ``ok``), numbers, budget (one row per category),
    conclusions (ranked), prefixes (one row each)
    """
    findings = completeness(run)
    return {
        "run": run_facts(run),
        "completeness": {
            "verdict": verdict(findings),
            "findings": [each for each in finding_rows(findings) if each["level"] != "ok"],
        },
        "numbers": rows_of(run, NUMBERS_SQL)[0],
        "budget": budget_totals(run).to_pylist(),
        "conclusions": [each.document() for each in conclusions(run)],
        "prefixes": durations_by(run).to_pylist(),
    }
