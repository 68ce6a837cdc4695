"""Comparing real runs: each trouble is named first, and two runs of the same are told to be alike."""

import json

import pytest
from click.testing import CliRunner

from recup.cli import main
from recup.compare.comparison import comparison
from tests.cluster.test_darshan import LIBRARY, needs_darshan


def held(a, b):
    """The comparison of two runs, or groups of runs."""
    return comparison(*([side] if not isinstance(side, list) else side for side in (a, b)))


def assert_sums(found):
    assert sum(found.waterfall["difference_s"].to_pylist()) == pytest.approx(found.wall_b_s - found.wall_a_s, abs=1e-6)


def first_cause(compared, trouble):
    found = held(compared("none"), compared(trouble))
    assert_sums(found)
    assert found.conclusions, found.headline
    assert found.conclusions[0].statement in found.headline
    assert found.conclusions[0].evidence["slower"] == "B"
    return found, found.conclusions[0]


def test_two_runs_of_the_same_have_no_cause_to_differ(compared):
    found = held(compared("none"), compared("none", 1))
    assert found.conclusions == ()
    assert found.changes.to_pylist() == []
    assert found.completeness == ()
    assert "No cause is found" in found.headline
    assert "unknown how far repeats would differ" in found.spread.statement
    assert_sums(found)


@pytest.mark.slow
def test_repeats_of_the_same_are_within_normal_variation(compared):
    runs = [compared("none", repeat) for repeat in range(3)]
    found = held(runs[:2], [runs[2], runs[0]])
    assert found.conclusions == ()
    assert found.spread.is_within is True
    assert "within normal variation" in found.spread.statement
    assert_sums(found)


def test_tasks_that_sleep_longer_are_the_first_finding(compared):
    found, cause = first_cause(compared, "prefix")
    assert (cause.question, cause.subject, cause.certainty) == ("budget", "work", "certain")
    assert "waiting or sleeping" in cause.statement
    assert cause.thread_s == pytest.approx(40 * 0.04, rel=0.1)
    (prefixes,) = [each for each in found.differences if each.name == "prefixes"]
    assert prefixes.rows["prefix"][0].as_py() == "work"


def test_what_made_a_run_faster_is_told_from_the_other_side(compared):
    found = held(compared("prefix"), compared("none"))
    assert found.conclusions[0].subject == "work"
    assert found.conclusions[0].evidence["slower"] == "A"
    assert found.conclusions[0].thread_s == pytest.approx(-40 * 0.04, rel=0.1)


def test_a_slow_worker_is_the_first_finding(compared):
    _, cause = first_cause(compared, "worker")
    assert (cause.question, cause.subject) == ("slow", "0")
    assert "a task of work takes" in cause.statement


def test_a_slow_disk_is_waiting_in_tasks_that_write_where_files_are_not_recorded(compared):
    _, cause = first_cause(compared, "disk")
    assert (cause.question, cause.subject) == ("budget", "save")
    assert "a task writes 512.0 KiB" in cause.statement
    assert "whether it waits for storage is not recorded" in cause.statement
    assert "--darshan" in cause.advice


@needs_darshan
def test_a_slow_disk_is_the_first_finding_where_darshan_recorded_files(compared):
    found = held(compared("none", darshan=LIBRARY), compared("disk", darshan=LIBRARY))
    cause = found.conclusions[0]
    assert (cause.question, cause.subject) == ("storage", "save")
    assert "in reads and writes of files" in cause.statement
    assert_sums(found)


@needs_darshan
def test_files_recorded_on_one_side_only_are_said_first_and_not_held_against_the_other(compared):
    found = held(compared("none"), compared("none", darshan=LIBRARY))
    assert any("Darshan recorded files in B only" in each for each in found.completeness)
    assert not [row for row in found.waterfall.to_pylist() if row["category"] == "io" and row["b_wall_s"]]
    assert found.conclusions == ()


def test_a_lost_worker_is_the_first_finding(compared):
    found, cause = first_cause(compared, "death")
    assert (cause.question, cause.certainty) == ("deaths", "certain")
    assert "1 worker died" in cause.statement
    assert "signal 9" in cause.statement
    assert any("incomplete" in each for each in found.completeness)


def test_stealing_is_the_first_finding(compared):
    _, cause = first_cause(compared, "steals")
    assert (cause.question, cause.subject) == ("transfers", "churn")
    assert "were stolen" in cause.statement
    assert cause.evidence["moved_bytes"] > 1_000_000


def test_a_smaller_memory_limit_is_the_first_finding(compared):
    found, cause = first_cause(compared, "memory")
    assert (cause.question, cause.subject, cause.certainty) == ("memory", "spilling", "certain")
    assert "their memory limit was 64.0 MiB, in A 2.0 GiB" in cause.statement
    assert ("workers", "memory limit", "2.0 GiB", "64.0 MiB") in [
        (row["kind"], row["name"], row["a"], row["b"]) for row in found.changes.to_pylist()
    ]


def test_a_blocked_event_loop_is_the_first_finding(compared):
    _, cause = first_cause(compared, "loop")
    assert (cause.question, cause.subject) == ("stalls", "pulse")
    assert cause.evidence["longest_s"] > 0.25


def test_the_verbs_print_and_end_as_asked(compared):
    fast, slow = str(compared("none").path), str(compared("prefix").path)
    tolerant = CliRunner().invoke(main, ["compare", fast, slow, "--fail-over", "100000"])
    assert tolerant.exit_code == 0
    assert "A task of work takes" in tolerant.output
    strict = CliRunner().invoke(main, ["compare", fast, "--with", slow, "--json", "--fail-over", "0"])
    document = json.loads(strict.stdout)
    assert document["conclusions"][0]["subject"] == "work"
    took = document["wall_b_s"] / document["wall_a_s"] - 1
    assert strict.exit_code == (3 if took > 0 else 0)
    assert CliRunner().invoke(main, ["compare", fast, fast, fast]).exit_code == 2
    assert CliRunner().invoke(main, ["compare", fast, "--with"]).exit_code == 2
    changed = json.loads(CliRunner().invoke(main, ["changes", fast, slow, "--json"]).output)["changes"]
    assert [(row["kind"], row["name"]) for row in changed] == [("command", "arguments")]
