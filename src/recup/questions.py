"""The questions a run is asked, each with its verb and the function that answers it.

Command line, report and documentation are made from this list.  It imports nothing, since
every `dask` command imports the command line.  What an answer is made of is
`recup.analyse.answers`'; questions with an argument of their own (`story`, `lineage`,
`compare`, ...) are verbs in `recup.cli`.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One question to one run.

    Attributes
    ----------
    verb : str
        Verb of the command line, and anchor of its section in the report.
    asks : str
        The question as a user puts it.
    covers : str
        What the answer holds and on what it stands, a few sentences.
    answered_by : str
        ``module:function``; the function takes a run and returns an `Answer`.
    """

    verb: str
    asks: str
    covers: str
    answered_by: str


QUESTIONS: tuple[Question, ...] = (
    Question(
        "budget",
        "Where did the time go?",
        "Threads times wall time of the run, split without rest into computing, waiting and idling; by prefix, by "
        "worker and over time.",
        "recup.analyse.budget:budget",
    ),
    Question(
        "critical-path",
        "Which chain of tasks set the wall time?",
        "The chain of attempts that ended last, each wait between them named; and what the wall time would be on "
        "infinitely many workers and on these.",
        "recup.analyse.critical_path:critical_path",
    ),
    Question(
        "deaths",
        "Why did a worker die?",
        "For each worker that went before its time: how and why, which tasks ran, its memory before; and whether a task "
        "that Dask blames was there at every death.",
        "recup.analyse.deaths:deaths",
    ),
    Question(
        "memory",
        "What filled the memory?",
        "Managed, unmanaged and spilled memory of each worker over time, first moments above Dask's thresholds, and the "
        "prefixes and results that held most.",
        "recup.analyse.memory:memory",
    ),
    Question(
        "stuck",
        "Is it stuck, or was it?",
        "Tasks that did not finish and what each waits for, silences in which nothing moved, and the tail of slow "
        "tasks.",
        "recup.analyse.stuck:stuck",
    ),
    Question(
        "startup",
        "Why did nothing happen at the start?",
        "From the start of the program to its first task: imports, cluster, graph building, sending, and the "
        "scheduler's own work, each with its share.",
        "recup.analyse.startup:startup",
    ),
    Question(
        "storage",
        "Is storage the bottleneck?",
        "I/O time by prefix, file, worker and thread; small requests, files read again, storms of opens, uneven load; "
        "each with its evidence and what to do.",
        "recup.analyse.storage:storage",
    ),
    Question(
        "overhead",
        "Are tasks too small, is the scheduler saturated?",
        "Duration of tasks against what Dask spends on each, transitions per second, CPU and lag of the scheduler.",
        "recup.analyse.overhead:overhead",
    ),
    Question(
        "order",
        "Were more results held than needed?",
        "Bytes of results held over time against the least that this graph needs, and the prefixes that ran ahead of "
        "those that use them.",
        "recup.analyse.order:order",
    ),
    Question(
        "transfers",
        "What moved between workers, and what was stolen?",
        "Bytes from worker to worker, results that moved more than once, work stealing and the locality it lost.",
        "recup.analyse.movement:transfers",
    ),
    Question(
        "stalls",
        "When did an event loop or the GIL stall, and what ran then?",
        "Every stretch in which a server's event loop was late, with the tasks of its process at that time.",
        "recup.analyse.stalls:stalls",
    ),
    Question(
        "slow",
        "Which worker, host or thread is slow?",
        "Durations of the same prefix on each worker, host and thread, held against the others.",
        "recup.analyse.slowness:slowness",
    ),
    Question(
        "lost",
        "What was lost and computed again, at what cost?",
        "Attempts whose result was lost, failed, cancelled or computed more than once, with the time they took.",
        "recup.analyse.recomputed:recomputed",
    ),
)
"""Every question to one run, in the order of the report."""
