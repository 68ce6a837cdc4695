"""Recorded runs whose workers are killed, or run out of memory: each is told as what it is, with what it cost."""

import pytest

from recup.analyse.deaths import blamed_tasks, deaths, tasks_at_deaths, worker_deaths
from recup.analyse.lineage import lineage
from recup.analyse.memory import memory
from recup.analyse.recomputed import recomputed, wasted_by_cause


def test_a_calm_run_has_no_deaths_no_losses_and_room_in_memory(troubled):
    run = troubled("calm")
    assert [each for question in (deaths, memory, recomputed) for each in question(run).conclusions] == []


def test_a_worker_killed_from_outside_is_told_with_what_ran_and_what_was_made_again(troubled):
    run = troubled("worker_killed")
    (death,) = worker_deaths(run).to_pylist()
    assert (death["how"], death["verdict"], death["certainty"]) == (
        "signal 9 (SIGKILL)", "killed from outside, or by the kernel", "possible"
    )  # fmt: skip
    assert [(each["prefix"], each["state"] in ("executing", "only task there")) for each in tasks_at_deaths(run).to_pylist()] == [
        ("die_once", True)
    ]  # fmt: skip
    causes = {each["kind"]: each for each in wasted_by_cause(run).to_pylist()}
    assert set(causes) <= {"lost", "lost result", "cancelled"}
    assert causes["lost"]["attempt_count"] == causes["lost"]["again_count"] == 1
    again = causes["lost result"]
    assert again["prefix"] == "slow"
    assert 1 <= again["attempt_count"] <= 7
    assert again["wasted_s"] == pytest.approx(0.05 * again["attempt_count"], rel=0.5)


def test_a_worker_killed_for_memory_is_told_with_the_task_that_filled_it(troubled):
    run = troubled("memory_killed")
    (death,) = worker_deaths(run).to_pylist()
    assert (death["verdict"], death["certainty"], death["executing"]) == (
        "memory: its nanny killed it", "certain", "grow"
    )  # fmt: skip
    assert death["terminated_bytes"] > 0.95 * death["limit_bytes"]
    assert [(each["key"], each["verdict"]) for each in blamed_tasks(run).to_pylist()] == [
        ("grow-1", "there at every death")
    ]
    filled = [
        each for each in memory(run).conclusions if each.subject == death["worker"] and "reached" in each.statement
    ]
    assert ["what filled it is unmanaged" in each.statement for each in filled] == [True]


def test_the_lineage_of_a_result_ends_at_the_line_that_submitted_it(troubled):
    run = troubled("worker_killed")
    (name,) = (each for (each,) in run.sql("select key from tasks where prefix = 'add'").fetchall())
    found = lineage(run, name)
    assert found["upstream"]["task_count"] == 8
    assert {each["prefix"] for each in found["upstream"]["tasks"]} == {"slow"}
    assert "client.submit(add, *kept)" in found["submissions"][0]["frames"][-1]["line_text"]
    # The worker that was killed may have died before it could tell its packages.
    assert any(each["packages"].get("dask") for each in found["software"])
