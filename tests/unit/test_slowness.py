"""Which worker, host or thread is slow, on runs written for it."""

import numpy as np
import pytest

from recup.analyse import peers
from recup.analyse.slowness import slowness, slowness_by
from recup.store import open_run
from tests.unit.flow_runs import A, B, C, T, flow_run, plain, write_little


def spread(count, seconds):
    """Durations around a middle, the same each time."""
    return seconds * (1 + 0.1 * np.sin(np.arange(count) * 2.4))


def tasks_on(worker, prefix, durations, *, cpu=None, thread=1, nbytes=100, start=1.0):
    found = []
    for number, seconds in enumerate(durations):
        used = {} if cpu is None else {"cpu_s": seconds * cpu}
        found.append(
            T(f"{prefix}-{worker[-1]}{thread}{number}", worker, start, start + seconds, nbytes=nbytes, prefix=prefix,
              thread=thread, **used)
        )  # fmt: skip
        start += seconds
    return found


def answer(tmp_path, tasks, **options):
    with open_run(flow_run(tmp_path, tasks, **options)) as run:
        return slowness(run)


def test_a_worker_slow_in_two_prefixes_is_named_with_its_ratio_and_what_grew(tmp_path):
    tasks = []
    for worker, factor in ((A, 1.0), (B, 1.0), (C, 2.0)):
        tasks += tasks_on(worker, "read", spread(20, 0.1 * factor), cpu=0.9)
        tasks += tasks_on(worker, "sum", spread(20, 0.3 * factor), cpu=0.9, start=50.0)
    found = answer(tmp_path, tasks)
    (conclusion,) = found.conclusions
    assert (conclusion.subject, conclusion.certainty) == (C, "likely")
    assert conclusion.evidence["ratio"] == pytest.approx(2.0, rel=0.02)
    assert conclusion.evidence["ratio_low"] < 2.0 < conclusion.evidence["ratio_high"]
    assert conclusion.evidence["cause"] == "cpu"
    assert conclusion.thread_s == pytest.approx(8.0, rel=0.05)
    assert "2 prefixes, 40 tasks" in conclusion.statement
    assert plain(found)["headline"] == f"{conclusion.statement.split(': ')[0]}."


def test_equal_workers_give_no_conclusion(tmp_path):
    tasks = [task for worker in (A, B, C) for task in tasks_on(worker, "read", spread(30, 0.1), cpu=0.5)]
    found = answer(tmp_path, tasks)
    assert found.conclusions == ()
    assert found.headline.startswith("No worker, host or thread is slow for sure")


def test_a_worker_that_got_the_long_group_of_a_prefix_is_not_slow(tmp_path):
    # Both groups run everywhere, with more of the long one on C.
    tasks = []
    for worker, short, long in ((A, 40, 10), (B, 40, 10), (C, 10, 40)):
        for group, count, seconds in (("g1", short, 0.05), ("g2", long, 0.5)):
            for task in tasks_on(worker, "read", spread(count, seconds)):
                task.key, task.group = f"{group}{task.key}", group
                tasks.append(task)
    assert answer(tmp_path, tasks).conclusions == ()


def test_larger_results_make_a_slow_worker_a_possibility_only(tmp_path):
    tasks = [
        task
        for worker, factor in ((A, 1), (B, 1), (C, 2))
        for task in tasks_on(worker, "read", spread(20, 0.1 * factor), nbytes=1000 * factor)
    ]
    (conclusion,) = answer(tmp_path, tasks).conclusions
    assert (conclusion.subject, conclusion.certainty, conclusion.evidence["cause"]) == (C, "possible", "unknown")
    assert "2.0 times as large" in conclusion.statement


def test_a_host_whose_workers_are_all_slow_is_named_instead_of_them(tmp_path):
    tasks = [
        task
        for worker, factor in ((A, 1.0), (B, 2.0), (C, 2.0))
        for task in tasks_on(worker, "read", spread(20, 0.2 * factor), cpu=0.1)
    ]
    found = answer(tmp_path, tasks, hosts={A: "fast", B: "slow", C: "slow"})
    assert [(each.subject, each.evidence["cause"]) for each in found.conclusions] == [("slow", "blocked")]


def test_a_slow_thread_is_held_against_those_of_its_worker(tmp_path):
    tasks = [
        task
        for thread, factor in ((1, 1.0), (2, 1.0), (3, 2.0))
        for task in tasks_on(A, "read", spread(20, 0.1 * factor), thread=thread)
    ]
    (conclusion,) = answer(tmp_path, tasks, threads=3).conclusions
    assert conclusion.subject == "3"
    assert conclusion.statement.startswith(f"Thread 3 of worker {A} takes 2.0 times as long")


def test_too_few_tasks_are_not_compared(tmp_path):
    tasks = [*tasks_on(A, "read", spread(7, 0.1)), *tasks_on(B, "read", spread(30, 1.0))]
    with open_run(flow_run(tmp_path, tasks)) as run:
        rows = slowness_by(run).to_pylist()
    assert {(row["worker"], row["ratio"], row["compared_attempt_count"]) for row in rows} == {
        (A, None, 0),
        (B, None, 0),
    }


@pytest.mark.parametrize("kind", ["empty", "killed", "ended"])
def test_runs_with_little_or_nothing_in_them_are_answered(tmp_path, kind):
    with open_run(write_little(tmp_path, kind)) as run:
        found = slowness(run)
    assert found.conclusions == ()
    assert found.headline == "Nothing can be compared: no prefix has eight tasks with a result on each of two workers."


def test_medians_and_cells_are_those_of_a_plain_reckoning():
    draw = np.random.default_rng(1)
    place, kind = draw.integers(0, 3, 300), draw.integers(0, 2, 300)
    values = draw.normal(size=300) + (place == 2)
    seconds = np.exp(values)
    for cell in peers.cells(values, seconds, place, kind):
        here = values[(kind == cell.kind) & (place == cell.place)]
        there = values[(kind == cell.kind) & (place != cell.place)]
        assert cell.log_ratio == pytest.approx(np.median(here) - np.median(there))
        assert (cell.count, cell.other_count) == (len(here), len(there))
    assert peers.medians(values, kind) == pytest.approx([np.median(values[kind == each]) for each in (0, 1)])


def test_an_interval_holds_the_true_ratio_about_nineteen_times_in_twenty():
    draw = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        values = np.concatenate([draw.exponential(2.0, 40), draw.exponential(1.0, 90)])
        place = np.repeat([0, 1], [40, 90])
        kind = np.zeros(130, dtype=np.int64)
        slow = next(e for e in peers.effects(peers.cells(np.log(values), values, place, kind)) if e.place == 0)
        held += slow.low <= 2.0 <= slow.high
    assert 0.92 <= held / 400 <= 0.99
