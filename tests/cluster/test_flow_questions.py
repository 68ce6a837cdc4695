"""Storage, transfers, slow places and order: what is said of real runs made to have each trouble, and of a calm one."""

import pytest

from recup.analyse.movement import transfers
from recup.analyse.order import order
from recup.analyse.slowness import slowness
from recup.analyse.stealing import steals_by_prefix
from recup.analyse.storage import storage
from recup.analyse.storage_rows import storage_counted


@pytest.mark.parametrize("question", [storage, transfers, slowness, order])
def test_a_calm_run_gives_no_conclusion(troubled, question):
    run = troubled("calm")
    assert question(run).conclusions == ()


def test_the_slow_worker_is_named_with_its_ratio_and_its_waiting(troubled):
    run = troubled("slow_worker")
    ((address,),) = run.sql("select address from worker_lives where name = '0'").fetchall()
    (conclusion,) = slowness(run).conclusions
    assert (conclusion.subject, conclusion.certainty, conclusion.evidence["cause"]) == (address, "likely", "blocked")
    assert conclusion.evidence["ratio"] == pytest.approx(2.5, rel=0.2)
    assert conclusion.evidence["ratio_low"] <= 2.5 <= conclusion.evidence["ratio_high"] * 1.02


def test_inputs_that_had_to_follow_stolen_tasks_are_told_as_its_cost(troubled):
    run = troubled("stealing")
    found = transfers(run)
    (theft,) = steals_by_prefix(run).to_pylist()
    assert theft["fetched_from_victim_bytes"] >= 10 * 3_000_000
    assert theft["steal_count"] >= theft["stolen_task_count"] >= 10
    # Where memory is fast, inputs follow too quickly to be worth a word.
    conclusions = [each for each in found.conclusions if "moved by stealing" in each.statement]
    assert [(each.subject, each.certainty) for each in conclusions] in ([], [("uneven", "likely")])
    for each in conclusions:
        assert each.evidence["fetched_from_victim_bytes"] == theft["fetched_from_victim_bytes"]
        assert 0 < each.thread_s <= theft["wait_s"]


def test_roots_that_ran_ahead_are_named_with_what_their_users_waited_for(troubled):
    run = troubled("overproduced")
    (conclusion,) = order(run).conclusions
    assert conclusion.subject == "load"
    assert conclusion.evidence["need_bytes"] <= 5 * 2_000_000 < 20 * 2_000_000 <= conclusion.evidence["peak_bytes"]
    assert "had to wait for slow as well" in conclusion.statement


def test_without_darshan_calls_are_counted_and_no_seconds_are_claimed(troubled):
    run = troubled("small_io")
    found = storage(run)
    rows = {row["prefix"]: row for row in storage_counted(run).to_pylist()}
    assert rows["write_small"]["written_bytes"] == 16 * 120 * 512
    assert rows["write_small"]["call_count"] >= 16 * 120
    assert rows["read_again"]["read_bytes"] == 16 * 4 * 120 * 512
    assert {(each.subject, each.certainty, each.thread_s) for each in found.conclusions} <= {
        ("write_small", "possible", None)
    }
