"""Recorded runs that are stuck, start slowly, have tiny tasks or stalled event loops: each is told as what it is."""

import pytest

from recup.analyse.overhead import overhead
from recup.analyse.stalls import stalls
from recup.analyse.startup import startup, startup_phases
from recup.analyse.stuck import stuck


def test_a_calm_run_has_nothing_to_say(troubled):
    run = troubled("calm")
    assert stuck(run).headline == "Not stuck: no task was left unfinished (81 tasks began)."
    assert [each for question in (stuck, overhead, stalls) for each in question(run).conclusions] == []


def test_a_run_killed_while_tasks_want_a_resource_was_stuck_on_it(troubled):
    answer = stuck(troubled("no_such_resource"))
    assert answer.headline.startswith("Stuck: 9 tasks not finished")
    said = [each for each in answer.conclusions if each.subject == "slow"]
    assert [each.evidence["held_up_task_count"] for each in said] == [8]
    assert "for resource GPU, which no worker offered when it came; 8 tasks wait for it." in said[0].statement


def test_tiny_tasks_cost_more_between_them_than_in_them_and_their_late_start_is_own_code(troubled):
    run = troubled("tiny_tasks")
    (said,) = [each for each in overhead(run).conclusions if each.subject == "inc"]
    assert said.certainty == "certain"
    assert said.evidence["gap_share"] > 0.5
    phases = startup_phases(run).to_pylist()
    first_s = run.sql(
        "select min(started_s) - any_value(process_started_s) from task_runs, processes p where p.role = 'client'"
    )
    assert sum(each["duration_s"] for each in phases) == pytest.approx(first_s.fetchall()[0][0], abs=1e-3)
    assert not [each["phase"] for each in phases if each["phase"].startswith("unknown")]
    own_code = next(each for each in startup(run).conclusions if each.subject == "own code")
    assert own_code.evidence["duration_s"] >= 1.5


@pytest.mark.parametrize(
    ("name", "prefix", "words"),
    [
        pytest.param("gil_held", "hold", "GIL", marks=pytest.mark.slow),
        ("loop_blocked", "nap", "coroutine"),
    ],
)
def test_the_task_that_stalls_event_loops_is_suspected(troubled, name, prefix, words):
    said = [each for each in stalls(troubled(name)).conclusions if each.subject == prefix]
    assert len(said) == 1
    assert words in said[0].statement
    assert said[0].evidence["stalled_share"] > 0.9
