import json

import pytest

from recup import open_run, schema
from recup.analyse.story import find_key, story
from recup.errors import BadQuery
from recup.sealing import seal
from tests.unit.scheduled import made, task
from tests.unit.written_runs import NASTY, A, B, at, row, write_run


@pytest.fixture(scope="module", params=["spool", "sealed"])
def run(request, tmp_path_factory):
    path = write_run(tmp_path_factory.mktemp("story"))
    if request.param == "sealed":
        seal(path)
    with open_run(path) as opened:
        yield opened


def told(run, key):
    return [(round(line["time_s"], 3), line["observer"], line["what"]) for line in story(run, key).to_pylist()]


def test_a_task_is_told_from_submission_to_the_use_of_its_result(run):
    assert told(run, "inc-1") == [
        (-0.1, "client", "sent"),
        (0.0, "scheduler", "submitted"),
        (0.0, "scheduler", "released -> waiting"),
        (0.01, "scheduler", "waiting -> processing"),
        (0.02, f"worker {A}", "received"),
        (0.02, f"worker {A}", "released -> waiting"),
        (0.03, f"worker {A}", "ready -> executing"),
        (0.1, f"worker {A}", "computes"),
        (0.1, f"worker {A}", "its thread"),
        (0.45, f"worker {A}", "executing -> memory"),
        (0.45, f"worker {A}", "attempt ended"),
        (0.5, "scheduler", "processing -> memory"),
        (0.6, f"worker {A}", "result went"),
        (0.6, f"worker {B}", "result came"),
        (0.95, "scheduler", "event note"),
    ]


def test_lines_say_where_what_and_why(run):
    details = {(line["observer"], line["what"]): line["details"] for line in story(run, "inc-1").to_pylist()}
    assert details["client", "sent"] == "compute, at /home/jane/job.py:12"
    assert details["scheduler", "waiting -> processing"] == f"on {A}, cause update-graph-1, run 0"
    assert details["scheduler", "processing -> memory"] == f"on {A}, result 1000 B int, cause task-finished-1, run 0"
    assert details[f"worker {B}", "result came"] == f"1000 B, took 50 ms, from {A}"


def test_attempts_are_numbered_in_their_order(run):
    lines = story(run, NASTY).to_pylist()
    assert {(line["run_id"], line["attempt"]) for line in lines} == {(None, None), (1, 1), (2, 2)}
    failed = [(line["attempt"], line["details"]) for line in lines if line["what"] == "failed"]
    assert [attempt for attempt, _ in failed] == [1, 2, 2]


def test_what_a_task_needed_is_told_with_the_attempt_that_fetched_it(run):
    (line,) = [line for line in story(run, NASTY).to_pylist() if line["what"] == "needed result came"]
    assert (line["attempt"], line["time_ns"], line["details"]) == (
        1,
        at(1.6),
        f"inc-1, of 1000 B, from {A}, took 50 ms, run 1",
    )


def test_a_task_that_only_its_worker_saw_is_told_too(tmp_path):
    with open_run(write_run(tmp_path, skip=("Scheduler-1", "Client-1"))) as run:
        assert told(run, "inc-1")[0] == (0.0, f"worker {A}", "received")


@pytest.mark.parametrize("text", ["inc-1", "inc", "c-1"])
def test_a_key_is_found_by_any_part_that_no_other_has(run, text):
    assert find_key(run, text) == "inc-1"


def test_a_key_with_strange_characters_is_found(run):
    assert find_key(run, NASTY) == NASTY
    assert find_key(run, "</script>") == NASTY


def test_an_ambiguous_part_names_the_candidates(run):
    with pytest.raises(BadQuery, match=r"2 keys of run .* contain '1'; give more of the one: "):
        find_key(run, "1")


def test_an_unknown_key_says_where_keys_are(run):
    with pytest.raises(BadQuery, match=r"No task of run .* has 'nope' in its key\. `recup sql"):
        find_key(run, "nope")


# ---------------------------------------------------------------- events that name it


def event(seconds, **payload):
    action = payload.get("action")
    return row(schema.Event, time_ns=at(seconds), topic="t", action=action, payload=json.dumps(payload))


def events_of(tmp_path, key, *events):
    """Return moments and details of the events in the story of a task with this key."""
    with made(tmp_path, [*task("inc-1"), schema.Task(0, key, *task("5")[0][2:]), *events]) as run:
        return [
            (round(line["time_ns"] / 1e9 - at(0) / 1e9, 3), line["details"])
            for line in story(run, str(key)).to_pylist()
            if line["what"].startswith("event")
        ]


def test_an_event_names_a_task_only_where_its_key_is_a_whole_value(tmp_path):
    events = [
        event(1, action="compute", started=1795916205.5, n=5, worker="tcp://10.0.0.5:5", note="5 of 5"),
        event(2, action="5", worker="5", stimulus_id="5"),
        event(3, action="lost", **{"lost-computed-tasks": ["inc-1", "5"]}),
        event(4, message={"of": "5"}),
        event(5, **{"5": "as a name"}),
        event(6, key=5),
    ]
    assert events_of(tmp_path, "5", *events) == [(3.0, "topic t"), (4.0, "topic t")]


def test_a_number_that_is_a_key_is_named_only_where_keys_stand(tmp_path):
    events = [
        event(1, metrics={"tasks": 5, "key_collisions": 5}, count=5),
        event(2, key=5),
        event(3, **{"lost-computed-tasks": ["inc-1", 5]}),
        event(4, key="5"),
        event(5, keys=[15, 55]),
    ]
    assert events_of(tmp_path, 5, *events) == [(2.0, "topic t"), (3.0, "topic t")]


def test_a_key_that_is_a_tuple_is_named_by_a_list(tmp_path):
    events = [event(1, task=["x", [1, 2]]), event(2, task=["x", 1]), event(3, task="('x', (1, 2))")]
    assert events_of(tmp_path, ("x", (1, 2)), *events) == [(1.0, "topic t")]


def test_events_beyond_those_told_are_counted(tmp_path):
    events = [event(1 + number, key="k") for number in range(103)]
    assert events_of(tmp_path, "k", *events)[-2:] == [
        (100.0, "topic t"),
        (101.0, "3 more events from here on; `recup sql RUN 'from events'` has all"),
    ]
