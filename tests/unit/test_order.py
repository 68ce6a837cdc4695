"""Results held against what the graph needs, on runs written for it."""

import numpy as np
import pytest

from recup import schema
from recup.analyse.order import _need, order, results_held
from recup.store import open_run
from tests.unit.flow_runs import A, B, T, flow_run, write_little
from tests.unit.written_runs import at

MB = 1_000_000


def ahead(count=20, *, use_at=10.0, **values):
    """All loads first, each used one after the other from a later moment on; the order by priority is in pairs."""
    tasks = []
    for number in range(count):
        begun = use_at + 0.1 * number
        load = T(f"load-{number}", A, 1 + 0.1 * number, 1.05 + 0.1 * number, 10 * MB, released=begun + 0.06, **values)
        tasks += [load, T(f"use-{number}", B, begun, begun + 0.05, 100, (load.key,), released=30.0)]
    return tasks


def answer(tmp_path, tasks, *, memory_limit=100 * MB, **options):
    with open_run(flow_run(tmp_path, tasks, memory_limit=memory_limit, **options)) as run:
        return order(run)


def test_roots_that_ran_ahead_are_named_with_the_peak_and_the_need(tmp_path):
    found = answer(tmp_path, ahead(), saturation='"inf"')
    (conclusion,) = found.conclusions
    assert (conclusion.subject, conclusion.certainty, conclusion.thread_s) == ("load", "likely", None)
    assert conclusion.evidence["peak_bytes"] == 200 * MB + 100  # the first use is stored before its input goes
    # Three threads: three tasks at once, and two of any three in a row are loads.
    assert conclusion.evidence["need_bytes"] == pytest.approx(20 * MB, abs=0.1 * MB)
    assert "worker-saturation` is inf" in conclusion.statement
    assert "Set `distributed.scheduler.worker-saturation` to 1.1" in conclusion.advice


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"restrictions": '{"workers": []}'}, "have restrictions"),
        ({"is_queued": True}, "Lower `distributed.scheduler.worker-saturation` to 1.0"),
        ({}, "None of them was queued"),
    ],
)
def test_why_they_ran_ahead_is_said_as_far_as_it_follows(tmp_path, values, words):
    (conclusion,) = answer(tmp_path, ahead(**values)).conclusions
    assert words in f"{conclusion.statement} {conclusion.advice}"


def test_what_their_users_waited_for_is_named(tmp_path):
    tasks = ahead()
    gate = T("gate-0", B, 1.0, 9.9, 10, released=30.0)
    for task in tasks:
        if task.needs:
            task.needs = (*task.needs, "gate-0")
    (conclusion,) = answer(tmp_path, [gate, *tasks], saturation='"inf"').conclusions
    assert "had to wait for gate as well" in conclusion.statement
    assert conclusion.advice.startswith("Run gate first")


def test_results_used_at_once_give_no_conclusion_and_need_no_less_than_was_held(tmp_path):
    tasks = []
    for number in range(20):
        begun = 1 + 0.2 * number
        tasks.append(T(f"load-{number}", A, begun, begun + 0.05, 10 * MB, released=begun + 0.16))
        tasks.append(T(f"use-{number}", A, begun + 0.1, begun + 0.15, 100, (f"load-{number}",), released=30.0))
    found = answer(tmp_path, tasks, memory_limit=50 * MB)
    assert found.conclusions == ()
    assert "At most 9.5 MiB of results were held at once" in found.headline


def test_results_a_client_keeps_belong_to_the_need_and_are_named_as_kept(tmp_path):
    tasks = ahead(use_at=1.06)
    for task in tasks:
        task.released = None
    found = answer(tmp_path, tasks, memory_limit=100 * MB)
    (conclusion,) = found.conclusions
    assert conclusion.subject == "load"
    assert "a client kept them" in conclusion.statement
    assert conclusion.evidence["peak_used_up_bytes"] == 190 * MB


def test_little_memory_held_gives_no_conclusion_however_far_above_the_need(tmp_path):
    assert answer(tmp_path, ahead(), memory_limit=10_000 * MB).conclusions == ()
    # Without a limit a gigabyte of excess is worth a sentence.
    assert answer(tmp_path / "unlimited", ahead(), memory_limit=0).conclusions == ()


def test_held_bytes_over_time_are_the_most_within_each_stretch(tmp_path):
    with open_run(flow_run(tmp_path, ahead(4))) as run:
        rows = results_held(run).to_pylist()
    assert len(rows) == 200
    assert (rows[0]["held_bytes"], max(row["held_bytes"] for row in rows)) == (10 * MB, 40 * MB + 100)
    assert (max(row["unused_bytes"] for row in rows), rows[-1]["unused_bytes"]) == (40 * MB, 0)
    assert rows[-1]["held_bytes"] == 400


def test_each_prefix_says_how_much_of_it_was_unused_in_use_and_used_up_at_the_peak(tmp_path):
    (table, _) = (each.rows.to_pylist() for each in answer(tmp_path, ahead(4)).tables)
    load, use = table
    assert load == {
        "prefix": "load", "is_root": True, "result_count": 4, "result_bytes": 40 * MB, "peak_held_bytes": 40 * MB,
        "peak_unused_bytes": 30 * MB, "peak_in_use_bytes": 10 * MB, "peak_used_up_bytes": 0, "peak_wanted_bytes": 0,
        "median_until_use_s": pytest.approx(8.95), "median_held_s": pytest.approx(9.01), "queued_task_count": 0,
        "restricted_task_count": 0,
    }  # fmt: skip
    assert (use["prefix"], use["is_root"], use["peak_wanted_bytes"]) == ("use", False, 100)


def test_prefixes_that_held_equally_much_come_by_their_names(tmp_path):
    tasks = [T(f"{name}-0", A, 1 + place, 1.5 + place, 10 * MB, released=20.0) for place, name in enumerate("dbca")]
    table = answer(tmp_path, tasks).tables[0].rows.to_pylist()
    assert [(row["prefix"], row["peak_held_bytes"]) for row in table] == [(name, 10 * MB) for name in "abcd"]


def test_scattered_data_is_said_to_be_left_out(tmp_path):
    scattered = [schema.SchedulerTransition(at(1), "data-0", "released", "memory", "s", None, -1)]
    assert "1 pieces of data that clients scattered" in answer(tmp_path, ahead(4), scheduler=scattered).basis


def test_a_task_of_which_only_waiting_is_known_changes_nothing(tmp_path):
    waits = [schema.SchedulerTransition(at(1), f"late-{n}", "waiting", "queued", "s", None, -1) for n in range(9)]
    found = [answer(tmp_path / name, ahead(4), scheduler=rows) for name, rows in (("with", waits), ("without", []))]
    assert found[0].headline == found[1].headline
    assert found[0].conclusions == found[1].conclusions


@pytest.mark.parametrize("kind", ["empty", "killed", "ended"])
def test_runs_with_little_or_nothing_in_them_are_answered(tmp_path, kind):
    with open_run(write_little(tmp_path, kind)) as run:
        found = order(run)
        assert found.conclusions == ()
        assert {table.name for table in found.tables} == {"prefixes", "over-time"}
        assert results_held(run).num_rows == (0 if kind == "empty" else 200)


def test_the_need_is_that_of_a_plain_walk_through_the_order():
    draw = np.random.default_rng(3)
    for _ in range(50):
        count, threads = 30, int(draw.integers(1, 4))
        last = np.array([draw.integers(p + 1, count + 5) for p in range(count)], dtype=float)
        last[last >= count] = np.inf
        nbytes = draw.integers(1, 100, count)
        held = {
            "place": np.arange(count), "nbytes": nbytes, "last_place": last, "released_s": np.full(count, np.inf),
            "last_use_s": np.full(count, np.inf), "submitted_s": np.zeros(count),
        }  # fmt: skip
        held["released_s"][np.isfinite(last)] = 0.0
        held["last_use_s"][np.isfinite(last)] = 0.0
        walked = max(
            sum(nbytes[p] for p in range(step + 1) if not np.isfinite(last[p]) or step < last[p] + threads)
            for step in range(count)
        )
        assert _need(held, threads) == walked
