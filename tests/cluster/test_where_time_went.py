"""Budget and critical path of real runs."""

import pytest

from recup.analyse.budget import (
    NAMES,
    OF_TASKS,
    budget,
    budget_by_prefix,
    budget_by_worker,
    budget_over_time,
    budget_totals,
)
from recup.analyse.critical_path import critical_path, critical_path_kinds, critical_path_links, ideal_times


def column(table, name, value):
    return dict(zip(table[name].to_pylist(), table[value].to_pylist(), strict=True))


def sums_hold(run):
    """Check that every second is told once; return thread-seconds by category."""
    totals = budget_totals(run)
    thread_s = column(totals, "category", "thread_s")
    total = sum(thread_s.values())
    assert min(thread_s.values()) >= 0
    assert sum(totals["share"].to_pylist()) == pytest.approx(1)
    for each in budget_over_time(run, 10).to_pylist():
        assert sum(each[f"{name}_s"] for name in NAMES) == pytest.approx(total / 10)
    workers = budget_by_worker(run).to_pylist()
    assert sum(each["total_s"] for each in workers) == pytest.approx(total - thread_s["worker_absent"])
    prefixes = budget_by_prefix(run)
    for name in OF_TASKS:
        assert sum(prefixes[f"{name}_s"].to_pylist()) == pytest.approx(thread_s[name], abs=1e-6)
    path = sum(critical_path_kinds(run)["path_s"].to_pylist())
    cases = column(ideal_times(run), "case", "wall_s")
    assert path == pytest.approx(cases["since the start"])
    assert cases["infinitely many workers"] <= cases["these workers"] <= cases["these workers, replayed"] + 1e-9
    return thread_s


def test_a_calm_run_sums_up_and_gives_no_conclusion(troubled):
    run = troubled("calm")
    thread_s = sums_hold(run)
    assert 40 * 0.02 <= sum(thread_s[name] for name in ("cpu", "cpu_wait", "blocked")) < 2
    assert thread_s["not_split"] == thread_s["unfinished"] == 0
    assert budget(run).conclusions == critical_path(run).conclusions == ()


def test_of_a_killed_worker_the_task_that_never_ended_and_its_absence_are_told(troubled):
    run = troubled("worker_killed")
    thread_s = sums_hold(run)
    assert 0.25 <= thread_s["unfinished"] < 2
    assert thread_s["worker_absent"] > 0
    assert critical_path_links(run)["prefix"].to_pylist()[-1] == "add"
    assert column(critical_path_kinds(run), "kind", "path_s")["repeat"] > 0.2


def test_one_chain_leaves_threads_without_a_task_and_more_threads_cannot_help(troubled):
    run = troubled("one_chain")
    thread_s = sums_hold(run)
    assert thread_s["no_task_ready"] == pytest.approx(2.5, abs=0.7)
    assert [each.subject for each in budget(run).conclusions if each.evidence["category"] == "no_task_ready"]
    cases = column(ideal_times(run), "case", "wall_s")
    assert cases["these workers"] == cases["infinitely many workers"] >= 2.51
    assert len(critical_path_links(run)) == 11
    (found, *_) = critical_path(run).conclusions
    assert (found.subject, found.certainty) == ("slow", "certain")
    assert "more threads cannot help" in found.statement


def test_work_for_one_worker_only_is_imbalance_of_the_other(troubled):
    run = troubled("one_worker_asked")
    thread_s = sums_hold(run)
    assert thread_s["imbalance"] == pytest.approx(23 * 0.12, abs=0.7)
    assert thread_s["imbalance"] > thread_s["no_task_ready"]
    assert [each.evidence["category"] for each in budget(run).conclusions if each.evidence["category"] == "imbalance"]
