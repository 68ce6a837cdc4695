"""Comparing runs: matching groups, spread, waterfall, and what must not raise or be concluded."""

import json
import random

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from recup import schema
from recup.analyse.budget import NAMES
from recup.cli import main
from recup.compare.changes import changes
from recup.compare.comparison import comparison
from recup.compare.differences import middle_runs, waterfall
from recup.compare.graph_match import Group, matched_groups, numbered
from recup.compare.measures import Measures, measure, worker_names
from recup.compare.records import Records
from recup.compare.spread import interval, stands_out, wall_statement
from recup.errors import BadQuery
from recup.rundir import create_run
from recup.store import open_run
from tests.unit.flow_runs import T, flow_run
from tests.unit.written_runs import A, at, row, write, write_run

ALIKE = Records((), True, True, True, True, False)


def group(prefix, place, task_count, *needed):
    return Group(prefix, place, task_count, needed)


def measured(wall_s=1.0, **categories):
    split = dict.fromkeys(NAMES, 0.0) | {"cpu": wall_s} | categories
    facts = dict.fromkeys(("worker_count", "captured_count", "counted_count", "log_count"), 0)
    empty = {"stall_s": 0.0, "count": 0, "longest_s": 0.0, "role": None, "prefix": None}
    return Measures(
        "run", sum(split.values()), 2.0, split, {}, {}, {}, {}, {}, {}, [], [],
        {"attempt_count": 0, "compute_s": 0.0}, empty, facts,
    )  # fmt: skip


# ---------------------------------------------------------------- groups


def test_groups_are_matched_whatever_their_keys():
    rows = [
        {"prefix": "load", "task_count": 40, "needed": []},
        {"prefix": "sum", "task_count": 10, "needed": ["load"]},
        {"prefix": "sum", "task_count": 1, "needed": ["sum"]},
    ]
    a = numbered(rows)
    assert a == (group("load", 1, 40), group("sum", 1, 10, "load"), group("sum", 2, 1, "sum"))
    assert matched_groups(a, numbered(rows)) == [(each, each) for each in a]


def test_a_group_of_another_size_is_matched_by_what_it_needs_and_one_without_counterpart_by_none():
    a = (group("sum", 1, 10, "load"), group("sum", 2, 1, "sum"))
    b = (group("sum", 1, 20, "load"), group("sum", 2, 1, "sum"), group("new", 1, 3))
    pairs = matched_groups(a, b)
    assert sorted(pairs, key=str) == sorted([(a[0], b[0]), (a[1], b[1]), (None, b[2])], key=str)


groups = st.lists(
    st.tuples(st.sampled_from("xyz"), st.integers(1, 3), st.sampled_from([(), ("x",), ("y",)])), max_size=8
).map(lambda told: numbered([{"prefix": p, "task_count": n, "needed": d} for p, n, d in told]))


@given(groups, groups)
def test_every_group_is_in_one_pair(a, b):
    pairs = matched_groups(a, b)
    assert sorted(map(str, (left for left, _ in pairs if left))) == sorted(map(str, a))
    assert {right for _, right in pairs if right} == set(b)
    assert sum(right is not None for _, right in pairs) == len(b)
    assert all(left is None or right is None or left.prefix == right.prefix for left, right in pairs)


# ---------------------------------------------------------------- spread


def test_one_run_on_a_side_has_no_spread():
    statement, found = wall_statement([10.0], [20.0, 21.0])
    assert (found.difference, found.low, found.high, found.is_within) == (10.5, None, None, None)
    assert "unknown how far repeats would differ" in statement


def test_a_difference_that_repeats_do_not_show_is_outside_normal_variation():
    statement, found = wall_statement([10.0, 10.1, 10.2], [12.0, 12.1, 12.2])
    assert found.is_within is False
    assert found.low <= found.difference <= found.high
    assert "outside normal variation" in statement
    assert interval([10.0, 10.1, 10.2], [12.0, 12.1, 12.2]) == found


def test_with_few_repeats_a_difference_below_their_own_spread_is_within_normal_variation():
    assert interval([10.0, 11.0], [11.1, 11.2]).is_within is True
    assert interval([10.0, 11.0], [13.1, 13.2]).is_within is False


def test_repeats_of_one_kind_are_told_apart_seldom():
    draw = random.Random(7)
    told = [interval([draw.gauss(10, 1) for _ in range(5)], [draw.gauss(10, 1) for _ in range(5)]) for _ in range(40)]
    assert sum(each.is_within is False for each in told) <= 6


def test_a_side_stands_out_only_in_nearly_all_pairs():
    assert stands_out([1, 2], [3, 4])
    assert not stands_out([1, 3], [3, 4])
    assert not stands_out([1], [1])
    assert not stands_out([], [1])


# ---------------------------------------------------------------- waterfall

seconds = st.floats(0, 1e4)
sides = st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, seconds)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=50)
@given(sides, sides, st.booleans(), st.booleans())
def test_the_waterfall_sums_to_the_difference_of_medians(a, b, has_counters, is_io_split):
    left, right = ([measured(**each) for each in side] for side in (a, b))
    same = Records((), has_counters, is_io_split, is_io_split, True, False)
    rows = waterfall(left, right, same).to_pylist()
    medians = [sum(each.wall_s for each in middle_runs(side)) / len(middle_runs(side)) for side in (left, right)]
    assert sum(each["difference_s"] for each in rows) == pytest.approx(medians[1] - medians[0], abs=1e-6)
    assert {each["category"] for each in rows} == set(NAMES)


def test_what_only_one_side_can_split_stands_together():
    rows = waterfall(
        [measured(0, blocked=2.0)], [measured(0, blocked=1.0, io=1.5)], Records((), True, False, False, True, False)
    )
    told = {each["category"]: each["difference_s"] for each in rows.to_pylist()}
    assert (told["blocked"], told["io"]) == (0.5, 0.0)


def test_workers_are_called_by_name_else_by_their_place():
    lives = [
        {"worker_id": "W-1", "address": "tcp://a:1", "name": "alice", "place": 1},
        {"worker_id": "W-2", "address": "tcp://a:2", "name": "tcp://a:2", "place": 2},
        {"worker_id": "W-3", "address": "tcp://a:3", "name": None, "place": 3},
    ]
    assert worker_names(lives) == {"W-1": "alice", "W-2": "worker 2 to come", "W-3": "worker 3 to come"}


# ---------------------------------------------------------------- written runs


def compared(a, b):
    with open_run(a) as left, open_run(b) as right:
        return comparison([left], [right])


def changed(a, b):
    with open_run(a) as left, open_run(b) as right:
        return [
            (each["kind"], each["name"], each["a"], each["b"], each["weight"])
            for each in changes([left], [right]).to_pylist()
        ]


def test_a_run_held_against_itself_has_nothing_that_differs(tmp_path):
    run = write_run(tmp_path)
    found = compared(run, run)
    assert found.conclusions == ()
    assert found.changes.num_rows == 0
    assert set(found.waterfall["difference_s"].to_pylist()) == {0.0}
    assert found.document()["wall_a_s"] == found.wall_b_s


def test_empty_runs_are_compared_as_nothing(tmp_path):
    empty = create_run(tmp_path, way="run", command=["python", "job.py"], run_id="20231114T221320Z-0000")
    full = write_run(tmp_path)
    with open_run(empty) as nothing, open_run(full) as something:
        for a, b in ((nothing, nothing), (nothing, something), (something, nothing)):
            found = comparison([a], [b])
            assert found.conclusions == ()
            assert found.differences == ()
            assert "nothing to compare" in found.headline
            assert any("holds no time" in each for each in found.completeness)
            assert found.slowdown_over(0) is None
    assert CliRunner().invoke(main, ["compare", str(empty), str(full)]).exit_code == 0


def test_an_attempt_without_a_result_is_not_a_task_that_took_no_time(tmp_path):
    tasks = [T("x-1", A, 1, 2), T("x-2", A, 2, 3)]
    unfinished = [
        row(schema.Task, submission=0, key="x-3", prefix="x", group="x"),
        schema.SchedulerTransition(at(4), "x-3", "waiting", "processing", "s", A, 9),
    ]
    with open_run(flow_run(tmp_path, tasks, scheduler=unfinished)) as run:
        found = measure(run).prefixes["x"]
    assert (found["task_count"], found["told_count"], found["median_s"]) == (3, 2, 1.0)


def test_a_killed_scheduler_and_workers_without_a_record_are_said_first(tmp_path):
    whole = write_run(tmp_path / "a")
    cut = write_run(tmp_path / "b", ended=False, skip=("Worker-a",))
    found = compared(whole, cut)
    assert any(each.startswith("Record B:") and "incomplete" in each for each in found.completeness)
    assert "memory" not in [each.name for each in found.differences]
    assert [each for each in found.conclusions if each.question in ("memory", "stalls")] == []


def test_a_comparison_needs_runs():
    with pytest.raises(BadQuery, match="at least one run"):
        comparison([], [])


def software(root, run_id, version, *, seed, limit=2**31, config="10s"):
    path = create_run(root, way="run", command=["/usr/bin/python", "job.py"], run_id=run_id)
    told = dict(
        time_ns=at(0), scheduler_id="Scheduler-1", host_id="host", pid=1, python_version="3.12.0", recup_version="0.1.0",
        arguments="[]", resource_limits="{}", packages_digest="p", config_digest="c",
    )  # fmt: skip
    write(
        path,
        "scheduler",
        "Scheduler-1",
        [
            row(schema.Process, role="scheduler", **told),
            row(schema.Host, host_id="host", hostname="n1", cpu_model="X", cpu_count=8),
            row(schema.Worker, time_ns=at(0.1), action="add", address="tcp://a:1", worker_id="W-1", name="0", thread_count=2,
                memory_limit_bytes=limit),
            schema.Package("p", "numpy", version),
            schema.Package("p", "six", "1.0" if version == "1.0" else "1.1"),
            row(schema.EnvironmentVariable, name="PYTHONHASHSEED", value=seed),
            row(schema.EnvironmentVariable, name="OMP_NUM_THREADS", value="1"),
            row(schema.ConfigValue, config_digest="c", name="distributed.comm.timeouts.connect", value=config),
            row(schema.ConfigValue, config_digest="c", name="recup.run_directory", value=str(path)),
            row(schema.Submission, time_ns=at(1), submission=0, stimulus_id="u", task_count=2, new_task_count=2),
            row(schema.Task, submission=0, key="inc-1" + seed, prefix="inc", group="inc"),
            *([row(schema.Task, submission=0, key="inc-2" + seed, prefix="inc", group="inc")] if version != "1.0" else []),
        ],
    )  # fmt: skip
    return path


def test_changes_name_software_configuration_workers_and_graph_and_leave_out_what_is_always_new(tmp_path):
    a = software(tmp_path, "20231114T221320Z-000a", "1.0", seed="1")
    b = software(tmp_path, "20231114T221320Z-000b", "2.0", seed="2", limit=2**30, config="30s")
    assert changed(a, b) == [
        ("graph", "inc", "1 task", "2 tasks", "high"),
        ("workers", "memory limit", "2.0 GiB", "1.0 GiB", "high"),
        ("config", "distributed.comm.timeouts.connect", "10s", "30s", "high"),
        ("packages", "numpy", "1.0", "2.0", "high"),
        ("packages", "six", "1.0", "1.1", "medium"),
    ]
    again = software(tmp_path, "20231114T221320Z-000c", "1.0", seed="3")
    assert changed(a, again) == []
    printed = CliRunner().invoke(main, ["changes", str(a), str(b), "--json"])
    assert len(json.loads(printed.output)["changes"]) == 5


def test_what_one_record_does_not_tell_is_no_change(tmp_path):
    a = software(tmp_path, "20231114T221320Z-000a", "1.0", seed="1")
    bare = create_run(tmp_path, way="run", command=["/usr/bin/python", "job.py"], run_id="20231114T221320Z-000d")
    assert changed(a, bare) == []
