"""The budget: every thread-second in one category, on runs however odd."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recup.analyse.budget import budget, budget_by_prefix, budget_by_worker, budget_over_time, budget_totals
from recup.analyse.budget_sweep import BUSY, NAMES, OF_TASKS, Record, Spans, sweep
from recup.rundir import create_run
from recup.store import open_run
from tests.unit.written_runs import write_run

WALL = 12
BIN_COUNT = 4
WAIT_KINDS = ("given", "spill", "deserialize", "pending", "returning", "fetching", "paused")


def spans(rows):
    """Spans of rows (place, start, stop, prefix)."""
    columns = [list(each) for each in zip(*rows, strict=True)] or [[], [], [], []]
    kinds = (np.int64, np.float64, np.float64, np.int64)
    return Spans(*(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)))


def record(lives, executing=(), queued=(), wanted=(), clusters=(0, 0, 1), **waits):
    """A record of lives (worker, start, stop, threads) and tasks (place, start, stop, prefix, category)."""
    shares = np.zeros((len(executing), len(BUSY)))
    for at_row, task in enumerate(executing):
        shares[at_row, BUSY.index(task[4])] = 1.0
    return Record(
        WALL,
        np.array(clusters),
        spans([(*life[:3], 0) for life in lives]),
        np.array([life[3] for life in lives], np.int64),
        spans([task[:4] for task in executing]),
        shares,
        {kind: spans(waits.get(kind, ())) for kind in WAIT_KINDS},
        spans([(*each, 0) for each in queued]),
        spans([(*each, 0) for each in wanted]),
        ("x", "y"),
        np.array([1, 1]),
    )


def seconds(record, names=NAMES):
    """Categories with any time in the sums of a record."""
    totals = sweep(record, BIN_COUNT).of_bins.sum(axis=0)
    return {name: pytest.approx(total) for name, total in zip(NAMES, totals, strict=True) if total > 0}


def step_by_step(record, instants):
    """The same sums, one short step of time after another, as the text of `budget_sweep` says."""
    totals = dict.fromkeys(NAMES, 0.0)
    step = WALL / instants

    def holding(spans, place, moment):
        return [
            each
            for each in range(len(spans.place))
            if spans.place[each] == place and spans.start_s[each] <= moment < spans.stop_s[each]
        ]

    lives = []
    told = zip(record.lives.place, record.lives.start_s, record.lives.stop_s, record.threads, strict=True)
    clipped = [(place, max(start, 0), min(stop, WALL), count) for place, start, stop, count in told]
    for life in sorted(each for each in clipped if each[2] > each[1]):
        if lives and lives[-1][0] == life[0]:
            # A worker is one at a time: its life ends where the next begins.
            lives[-1] = (*lives[-1][:2], min(lives[-1][2], life[1]), lives[-1][3])
        lives.append(life)
    alive = {}
    for number in range(instants):
        moment = (number + 0.5) * step
        slots = dict.fromkeys(range(len(record.cluster)), 0)
        for worker in slots:
            slots[worker] = sum(
                count for place, start, stop, count in lives if place == worker and start <= moment < stop
            )
        alive[number] = sum(slots.values())
        left, waiting, paused = {}, [0] * 3, {}
        for worker, count in slots.items():
            waits = {kind: len(holding(record.waits[kind], worker, moment)) for kind in WAIT_KINDS}
            paused[worker] = waits["paused"] > 0
            running = holding(record.executing, worker, moment)
            busy = min(len(running), count)
            for each in running:
                totals[BUSY[int(np.argmax(record.shares[each]))]] += busy / len(running) * step
            idle = count - busy
            pending = waits["pending"]

            def take(name, cases, idle):
                taken = min(cases, idle)
                totals[name] += taken * step
                return idle - taken

            idle = take("unfinished", waits["given"], idle)
            before = idle
            idle = take("spill", max(waits["spill"], pending) if waits["spill"] else 0, idle)
            pending = max(pending - (before - idle), 0)
            idle = take("deserialize", waits["deserialize"], idle)
            if count:
                waiting[record.cluster[worker]] += pending if paused[worker] else max(pending - idle, 0)
            if not paused[worker]:
                idle = take("scheduler_latency", pending + waits["returning"], idle)
                idle = take("transfer_wait", waits["fetching"], idle)
            left[worker] = idle
        for cluster in set(map(int, record.cluster)):
            members = [worker for worker in slots if record.cluster[worker] == cluster]
            tasks = waiting[cluster] + len(holding(record.queued, cluster, moment))
            is_wanted = bool(tasks) or bool(holding(record.wanted, cluster, moment))
            slots_left = sum(left[worker] for worker in members)
            for worker in members:
                share = min(tasks / slots_left, 1.0) if slots_left else 0.0
                held = left[worker] * step
                name = "worker_paused" if paused[worker] else None
                totals[name or "imbalance"] += held * share
                totals[name or "no_task_ready"] += held * (is_wanted - share)
                totals["nothing_submitted"] += held * (not is_wanted)
    most = max(alive.values(), default=0)
    totals["worker_absent"] += sum(most - count for count in alive.values()) * step
    return totals


moments = st.integers(-2, WALL + 2).map(float)


def rows_of(*parts):
    return st.lists(st.tuples(st.integers(0, 2), moments, moments, st.integers(0, 1), *parts), max_size=6)


RECORDS = st.builds(
    record,
    st.lists(st.tuples(st.integers(0, 2), moments, moments, st.integers(0, 3)), max_size=5),
    rows_of(st.sampled_from(BUSY)),
    st.lists(st.tuples(st.integers(0, 1), moments, moments), max_size=4),
    st.lists(st.tuples(st.integers(0, 1), moments, moments), max_size=4),
    **{kind: rows_of() for kind in WAIT_KINDS},
)


@settings(max_examples=150, deadline=None)
@given(RECORDS)
def test_every_second_of_every_thread_is_in_one_category_as_told_step_by_step(made):
    sums = sweep(made, BIN_COUNT)
    total = sums.thread_count * WALL
    expected = step_by_step(made, WALL)
    np.testing.assert_allclose(
        sums.of_bins.sum(axis=0), [expected[name] for name in NAMES], rtol=1e-9, atol=1e-9 * max(total, 1)
    )
    assert sums.of_bins.min(initial=0) >= 0 and sums.of_lives.min(initial=0) >= 0 and sums.of_prefixes.min() >= 0
    np.testing.assert_allclose(sums.of_bins.sum(axis=1), total / BIN_COUNT, rtol=1e-9)
    not_absent = NAMES.index("worker_absent")
    np.testing.assert_allclose(
        sums.of_lives.sum(axis=0)[:not_absent], sums.of_bins.sum(axis=0)[:not_absent], rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(
        sums.of_prefixes.sum(axis=0),
        [expected[name] for name in OF_TASKS],
        rtol=1e-9,
        atol=1e-9 * max(total, 1),
    )


def test_tasks_that_seceded_fill_no_more_slots_than_there_are():
    made = record([(0, 0, 12, 1)], [(0, 0, 4, 0, "cpu"), (0, 0, 4, 1, "blocked")], wanted=[(0, 0, 12)])
    assert seconds(made) == {"cpu": 2, "blocked": 2, "no_task_ready": 8}
    assert sweep(made, 1).of_prefixes[:, [0, 2]].tolist() == [[2, 0], [0, 2]]


def test_a_task_behind_a_busy_thread_is_imbalance_for_one_idle_slot_of_its_own_cluster_only():
    made = record(
        [(0, 0, 12, 1), (1, 0, 12, 2), (2, 0, 12, 1)],
        [(0, 0, 12, 0, "cpu")],
        wanted=[(0, 0, 12)],
        pending=[(0, 0, 3, 0)],
    )
    assert seconds(made) == {"cpu": 12, "imbalance": 3, "no_task_ready": 21, "nothing_submitted": 12}


def test_a_worker_that_came_late_is_absent_before():
    made = record([(0, 0, 12, 1), (1, 9, 12, 2)])
    assert seconds(made) == {"nothing_submitted": 18, "worker_absent": 18}


# ---------------------------------------------------------------- whole runs


def check(run):
    """Sums that hold on every run."""
    totals, workers, prefixes = budget_totals(run), budget_by_worker(run), budget_by_prefix(run)
    by_name = dict(zip(totals["category"].to_pylist(), totals["thread_s"].to_pylist(), strict=True))
    assert list(by_name) == list(NAMES)
    assert min(by_name.values()) >= 0
    total, wall_s = sum(by_name.values()), sum(totals["wall_s"].to_pylist())
    if total:
        assert sum(totals["share"].to_pylist()) == pytest.approx(1)
    for bin_count in (20, 7):
        bins = budget_over_time(run, bin_count).to_pylist()
        assert len(bins) == bin_count
        for each in bins:
            assert sum(each[f"{name}_s"] for name in NAMES) == pytest.approx(total / bin_count, rel=1e-9, abs=1e-6)
        if total:
            assert bins[-1]["stop_at_s"] - bins[0]["start_at_s"] == pytest.approx(wall_s)
    for each in workers.to_pylist():
        assert sum(each[f"{name}_s"] for name in NAMES) == pytest.approx(each["total_s"])
    assert sum(workers["total_s"].to_pylist()) == pytest.approx(total - by_name["worker_absent"], rel=1e-9, abs=1e-6)
    for name in OF_TASKS:
        assert sum(prefixes[f"{name}_s"].to_pylist()) == pytest.approx(by_name[name], rel=1e-9, abs=1e-6)
    answer = budget(run)
    assert answer.headline and answer.basis
    return {name: pytest.approx(value, rel=1e-9, abs=1e-6) for name, value in by_name.items() if value > 1e-9}


def test_a_small_run_is_split_to_the_last_second(tmp_path):
    with open_run(write_run(tmp_path)) as run:
        found = check(run)
        # 4 threads from 0.1 s to the end at 3 s; the first was wanted at 1 s, the last ended at 1.9 s.
        assert found == {
            "cpu": 0.15 + 0.01 + 0.01,
            "cpu_wait": 3e-6,
            "blocked": 0.15 + 0.02 + 0.04 - 3e-6,
            "transfer_wait": 0.01,
            "scheduler_latency": 0.01 + 0.07 + 0.1 + 0.1 + 0.06 + 0.09 + 0.05,
            "no_task_ready": 4 * 0.9 - 0.17 - 0.21 - 0.01 - 0.48,
            "nothing_submitted": 4 * (0.9 + 1.1),
            "worker_absent": 4 * 0.1,
        }
        assert sum(each.expected for each in found.values()) == pytest.approx(12)
        prefixes = budget_by_prefix(run).to_pylist()
        assert [(each["prefix"], each["attempt_count"]) for each in prefixes] == [("inc", 1), ("boom", 2)]
        assert budget(run).conclusions == ()


def test_an_empty_record_has_no_time_to_split(tmp_path):
    with open_run(create_run(tmp_path, way="run", run_id="20231114T221320Z-abcd")) as run:
        assert check(run) == {}
        assert budget_totals(run)["share"].null_count == len(NAMES)
        assert budget(run).conclusions == ()
        assert "no time to split" in budget(run).headline


def test_of_a_killed_scheduler_what_the_workers_told_is_counted(tmp_path):
    with open_run(write_run(tmp_path, ended=False, skip=("Scheduler-1", "Client-1"))) as run:
        found = check(run)
        assert found["cpu"] == 0.17
