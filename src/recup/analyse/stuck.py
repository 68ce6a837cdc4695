"""Whether a run is stuck or was: tasks that did not finish, what each waits for, silences and the tail.

Covers what is said of them.  Unfinished tasks are `recup.analyse.unfinished`'s; silences,
the tail and stragglers `recup.analyse.silences`'.  It does not say why a worker died
(`deaths`), nor where the time of finished tasks went (`budget`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recup.analyse.answers import Answer, AnswerTable, Conclusion, ranked
from recup.analyse.silences import SILENCE_SAID_S, silence_conclusions, silences, stragglers, tail
from recup.analyse.unfinished import Unfinished, state_rows, task_rows
from recup.terminal import count_text, plural, seconds_text

if TYPE_CHECKING:
    import pyarrow as pa

    from recup.store import Run

SHOWN_COUNT = 100
"""Rows of single tasks shown."""
NO_WORKER_S = 1.0
"""From this age on a task without a worker is spoken of: workers that come need about as long."""
PROCESSING_S = 10.0
PROCESSING_FACTOR = 5.0
"""A task on a worker is spoken of when it is there longer than both this time and this many times the longest attempt
of its prefix: shorter is no sign of anything."""
UNKNOWN_S = 600.0
"""The same for a prefix of which nothing finished: its tasks may just be long."""

LONGEST_SQL = """
select prefix, max(compute_s) as longest_s
from task_runs
where outcome = 'memory' and compute_s is not null
group by prefix
"""


# ---------------------------------------------------------------- the answer


def stuck(run: Run) -> Answer:
    """Is it stuck, or was it?"""
    found = Unfinished(run)
    tasks = task_rows(run, found, SHOWN_COUNT)
    quiet, slow, last = silences(run), stragglers(run), tail(run)
    stuck_on = _conclusions(run, found, tasks)
    conclusions = (*stuck_on, *silence_conclusions(quiet, slow, last))
    is_dead = any(
        each["is_at_end"] and not each["computing_task_count"] and not each["hidden_task_count"]
        for each in quiet.to_pylist()
        if each["duration_s"] >= SILENCE_SAID_S
    )
    return Answer(
        _headline(run, found, is_dead or bool(stuck_on)),
        ranked(conclusions),
        (
            AnswerTable("states", "Tasks that did not finish, by state and prefix", state_rows(found)),
            AnswerTable("tasks", "Tasks that did not finish, those that hold up most first", tasks),
            AnswerTable("silences", "Longest stretches in which no task moved though some were not finished", quiet),
            AnswerTable("tail", "End of the computation, with few threads busy", last),
            AnswerTable("stragglers", "Attempts far slower than their prefix, slowest first", slow),
        ),
        _basis(found),
    )


def _headline(run: Run, found: Unfinished, is_stuck: bool) -> str:
    if not found.ends:
        return "No scheduler is in this record: whether it is stuck is not known."
    task_count = sum(each["task_count"] for each in found.ends.values())
    if not task_count:
        return "No task was begun, so none is stuck."
    if not found.count:
        return f"Not stuck: no task was left unfinished ({plural(task_count, 'task')} began)."
    given_up = int(np.count_nonzero(~np.isnan(found.given_up_s)))
    left = found.count - given_up
    parts = []
    if left:
        is_over = run.manifest.get("ended_ns") is not None
        is_growing = not is_over and any(each["is_growing"] for each in found.ends.values())
        quiet_s = min(
            max((each["end_s"] or 0) - (each["last_transition_s"] or 0), 0.0)
            for each in found.ends.values()
            if each["last_transition_s"] is not None
        )
        when = "now" if is_growing else "when the record ended"
        parts.append(f"{plural(left, 'task')} not finished {when}, {seconds_text(quiet_s)} after the last transition")
    if given_up:
        parts.append(f"{plural(given_up, 'task')} given up before finishing")
    said = "; ".join(parts)
    return f"Stuck: {said}." if is_stuck else f"{said[0].upper()}{said[1:]}; nothing shows that it was stuck."


def _conclusions(run: Run, found: Unfinished, tasks: pa.Table) -> list[Conclusion]:
    """Return what holds the unfinished tasks up: wants of workers by prefix, and tasks that are on a worker too long."""
    if not found.count:
        return []
    said: list[Conclusion] = []
    is_certain = not any(each["has_gaps"] for each in found.ends.values())
    wanting: dict[tuple[str | None, str], list[int]] = {}
    for i in np.flatnonzero((found.state == "no-worker") & (found.age_s >= NO_WORKER_S)):
        wanting.setdefault((found.prefix[i], found.waits_on(int(i))), []).append(int(i))
    for (prefix, want), members in sorted(wanting.items(), key=lambda each: -len(each[1]))[:5]:
        held_up = int(found.held_up[members].sum())
        age_s = float(found.age_s[members].max())
        them = _verb(len(members), "it", "them")
        behind = f"; {plural(held_up, 'task')} {_verb(held_up, 'waits', 'wait')} for {them}" if held_up else ""
        one = f"{plural(len(members), 'task')} of {prefix}" if prefix else plural(len(members), "task")
        said.append(
            Conclusion(
                "stuck",
                prefix or "tasks without a worker",
                f"{one} waited {seconds_text(age_s)} for {want}{behind}.",
                "certain" if is_certain else "possible",
                None,
                f"Start a worker that meets it, or lift the restriction of {_verb(len(members), 'this task', 'these tasks')}."
                if any(found.restrictions[i] for i in members)
                else "Start workers; see why none came or stayed (`recup deaths`).",
                {"task_count": len(members), "held_up_task_count": held_up, "age_s": age_s},
            )
        )
    longest = dict(run.sql(LONGEST_SQL).fetchall())
    for each in tasks.to_pylist():
        if each["state"] != "processing" or len(said) >= 10:
            continue
        usual_s = longest.get(each["prefix"])
        if each["age_s"] < (UNKNOWN_S if usual_s is None else max(PROCESSING_S, PROCESSING_FACTOR * usual_s)):
            continue
        usual = f"; the longest finished one took {seconds_text(usual_s)}" if usual_s is not None else ""
        held_up = each["held_up_task_count"]
        behind = f"{plural(held_up, 'task')} {_verb(held_up, 'waits', 'wait')} for it; it" if held_up else "It"
        said.append(
            Conclusion(
                "stuck",
                each["prefix"] or each["key"] or "a task",
                f"{each['key']} is not finished after {seconds_text(each['age_s'])}. {behind} {each['waits_on']}{usual}.",
                "likely" if usual_s is not None and is_certain else "possible",
                None,
                f"`recup story` of {each['key']}; `py-spy dump` of its worker's process while it lasts.",
                {
                    "key": each["key"],
                    "age_s": each["age_s"],
                    "held_up_task_count": held_up,
                    "longest_finished_s": usual_s,
                },
            )
        )
    return said


def _verb(count: int, one: str, many: str) -> str:
    return one if count == 1 else many


def _basis(found: Unfinished) -> str:
    if not found.ends:
        return "It stands on the scheduler's transitions, of which there are none."
    parts = ["It stands on the scheduler's transitions and the attempts of tasks."]
    if any(each["has_gaps"] for each in found.ends.values()):
        parts.append("The scheduler lost transitions or was recorded late: some of these tasks may have finished.")
    if any(not each["is_closed"] and not each["is_growing"] for each in found.ends.values()):
        parts.append("The scheduler's record was cut off: what happened in its last second may be missing.")
    if found.count:
        parts.append(
            f"Each waiting task is counted at one root, though it may wait for more ({count_text(found.count)} tasks)."
        )
    return " ".join(parts)
