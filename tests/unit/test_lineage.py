"""Lineage: what is behind a result or a file and what came of it, through tasks and files, and only what is sure."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from recup import schema
from recup.analyse.lineage import find_subject, lineage
from recup.analyse.lineage_graph import Graph, reached
from recup.cli import main
from recup.errors import BadQuery
from recup.store import open_run
from tests.unit import scheduled
from tests.unit.scheduled import A, C, came, graph, nothing, task
from tests.unit.spooled import write
from tests.unit.test_fuse_io import LOG, beacon, segment
from tests.unit.written_runs import START_NS, at, row

PATH = "/data/middle.bin"
IN, OUT, OTHER = "/data/in.bin", "/data/out.bin", "/data/other/out.bin"


def ran(key, run_id, start, stop):
    by_scheduler, by_worker = scheduled.ran(key, run_id, start, stop)
    counted = row(
        schema.ThreadCounter, time_ns=at(start), key=key, run_id=run_id, kind="task", outcome="returned", thread=7,
        wall_ns=round((stop - start) * 1e9),
    )  # fmt: skip
    return by_scheduler, [*by_worker, counted]


def recorded(root, *, has_io=True):
    """`load-0` reads IN and makes `mid-1`, which writes PATH; `back-2` reads it in another graph; `sum-3` writes OUT."""
    runs = [
        ran(key, number, number + 1, number + 1.9) for number, key in enumerate(("load-0", "mid-1", "back-2", "sum-3"))
    ]
    about = {
        "packages_digest": "p",
        "python_version": "3.12.1",
        "dask_version": "2026.8.0",
        "distributed_version": "2026.8.0",
    }
    sent = {"client": C, "expression": "X", "wanted_key_count": 1}
    scheduler = [
        came(), graph(0.5, 0, 2, keys_digest="d0"), graph(2.95, 1, 2, keys_digest="d1"),
        *task("load-0", function="my_package.io.load"), *task("mid-1", "load-0", function="skimage.filters.median"),
        *task("back-2", submission=1), *task("sum-3", "back-2", submission=1),
        schema.FusedTask(0, "mid-1", "inner-1", "numpy.add"), schema.FusedTask(0, "mid-1", "mid-1", "numpy.sum"),
        *(each for by_scheduler, _ in runs for each in by_scheduler),
    ]  # fmt: skip
    packages = [
        schema.Package("p", name, version)
        for name, version in {"numpy": "2.1", "scikit-image": "0.25", "my-package": "7", "pandas": "3"}.items()
    ]
    shone, seen = beacon(0)
    process = row(
        schema.Process,
        time_ns=at(0),
        role="worker",
        address=A,
        host_id="host",
        pid=100,
        scheduler_id=scheduled.S,
        **about,
    )
    worker = [process, *packages, *([shone] if has_io else []), *(each for _, by_worker in runs for each in by_worker)]
    client = [
        scheduled.process("client", C),
        *(
            row(schema.ClientSubmission, time_ns=at(0.4 + 2.5 * n), submission=n, call=call, keys_digest=f"d{n}", **sent)
            for n, call in enumerate(("persist", "compute"))
        ),
        *(
            schema.SubmissionFrame(n, 0, "/home/jane/job.py", 10 + n, "main", f"line {n}", None)
            for n in range(2)
        ),
        schema.Source("s" * 64, "script", "/home/jane/job.py", 1, None),
        schema.Repository("/home/jane", "c" * 40, "main", True, 2, None),
    ]  # fmt: skip
    run = scheduled.made(root, scheduler, {A: worker}, client)
    if has_io:
        segments = [
            segment(1.5, path=IN, nbytes=10), segment(2.5, path=PATH, direction="write", nbytes=20),
            segment(3.5, path=PATH, nbytes=20), segment(4.5, path=OUT, direction="write", nbytes=30),
            segment(4.6, path=OTHER, direction="write", nbytes=5), segment(1.95, path=OUT, nbytes=1),
            segment(1.5, path="/usr/lib/python3.11/x.py", nbytes=1), seen,
        ]  # fmt: skip
        log = row(
            schema.IoLog, log=LOG, format_version="3.41", hostname="node", pid=100, modules="{}", start_s=START_NS / 1e9,
            has_thread_ids=True, segment_count=len(segments), operation_count=len(segments),
        )  # fmt: skip
        write(run.path, "launcher", "Ingest-1", [row(schema.Host, host_id="host", hostname="node"), log, *segments])
    run.close()
    return run.path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with open_run(recorded(tmp_path_factory.mktemp("run"))) as opened:
        yield opened


def keys(reach):
    return [(each["step"], each["key"]) for each in reach["tasks"]]


def files(reach):
    return {(each["use"], each["path"], each["key"]) for each in reach["files"]}


def test_behind_a_result_are_its_tasks_and_through_files_those_of_other_graphs(run):
    found = lineage(run, "sum-3")
    assert keys(found["upstream"]) == [(1, "back-2"), (2, "mid-1"), (3, "load-0")]
    assert files(found["upstream"]) == {
        ("read", IN, "load-0"), ("written", PATH, "mid-1"), ("read", PATH, "back-2"), ("written", OUT, "sum-3"),
        ("written", OTHER, "sum-3"),
    }  # fmt: skip
    assert (found["downstream"]["task_count"], found["kind"], found["name"]) == (0, "task", "sum-3")
    (result,) = found["results"]
    assert [result[name] for name in ("key", "run_id", "outcome", "worker", "host", "nbytes", "stored_at_s")] == [
        "sum-3", 3, "memory", A, "node", 8, pytest.approx(4.9)
    ]  # fmt: skip


def test_code_submissions_and_versions_of_what_made_it_are_told(run):
    found = lineage(run, "sum-3", "up")
    assert found["downstream"] is None
    assert [(each["call"], each["is_own"], each["frames"][0]["line_text"]) for each in found["submissions"]] == [
        ("compute", True, "line 1"), ("persist", False, "line 0")
    ]  # fmt: skip
    assert found["sources"] == [{"kind": "script", "path": "/home/jane/job.py", "source_digest": "s" * 64}]
    assert [(each["commit"], each["is_dirty"], each["changed_file_count"]) for each in found["repositories"]] == [
        ("c" * 40, True, 2)
    ]
    (software,) = found["software"]
    assert (software["python_version"], software["worker_count"]) == ("3.12.1", 1)
    assert software["packages"] == {
        "dask": "2026.8.0", "distributed": "2026.8.0", "my-package": "7", "numpy": "2.1", "scikit-image": "0.25"
    }  # fmt: skip


def test_what_came_of_a_result_is_downstream_and_depth_cuts_it(run):
    found = lineage(run, "load-0", "down", depth=2)
    assert found["upstream"] is None
    assert keys(found["downstream"]) == [(1, "mid-1"), (2, "back-2")]
    assert "Cut at 2 steps." in found["basis"]
    assert lineage(run, "mid-1", "down")["inner_tasks"] == [{"key": "inner-1", "function": "numpy.add"}]


def test_a_file_begins_with_those_that_wrote_and_read_it(run):
    found = lineage(run, "middle.bin")
    assert (found["kind"], found["name"]) == ("file", PATH)
    assert [each["key"] for each in found["results"]] == ["mid-1"]
    assert [each["key"] for each in found["readers"]] == ["back-2"]
    assert keys(found["upstream"]) == [(1, "load-0")]
    assert keys(found["downstream"]) == [(1, "sum-3")]


def test_reads_and_writes_of_no_sure_task_are_told_and_not_followed(run):
    found = lineage(run, OUT)
    assert found["basis"][0] == "1 read and 0 writes of this file are of no task for sure, and not followed."
    assert found["readers"] == []


def test_a_name_is_a_key_first_then_a_file_then_part_of_a_key(run):
    assert find_subject(run, "mid-1") == ("task", "mid-1")
    assert find_subject(run, OUT) == ("file", OUT)
    assert find_subject(run, "data/out.bin") == ("file", OUT)
    assert find_subject(run, "bac") == ("task", "back-2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out.bin", f"2 files of run .* end with 'out.bin'; give more of the one: {OUT}, {OTHER}"),
        ("nowhere", "No task of run .* has 'nowhere' in its key.* No file has this name."),
        ("-", "4 keys of run .* contain '-'"),
        ("inner-1", "'inner-1' was fused into another task before it ran: mid-1"),
        ("x.py", "No task of run"),
    ],
)
def test_what_is_not_one_thing_is_an_error_that_names_candidates(run, text, message):
    with pytest.raises(BadQuery, match=message.replace("/data/out.bin, /data/other", ".*")):
        lineage(run, text)


def test_without_darshan_tasks_are_followed_and_it_is_said(tmp_path):
    path = recorded(tmp_path, has_io=False)
    with open_run(path) as opened:
        found = lineage(opened, "sum-3")
        with pytest.raises(BadQuery, match="Files are not known: `recup run --darshan` records them"):
            lineage(opened, "out.bin")
    assert keys(found["upstream"]) == [(1, "back-2")]
    assert found["basis"][0] == "Files are not known: Darshan was not recorded (`recup run --darshan`)."
    assert found["upstream"]["files"] == []


def test_a_run_without_any_record_has_no_lineage(tmp_path):
    with nothing(tmp_path) as opened, pytest.raises(BadQuery, match="No task of run"):
        lineage(opened, "x-0")


def test_the_page_says_how_many_there_are_beyond_those_shown(run):
    result = CliRunner().invoke(main, ["lineage", "sum-3", "--run", str(run.path), "--limit", "1"], prog_name="recup")
    assert result.exit_code == 0, result.output
    page = result.stdout
    assert "Behind it: 3 tasks in 3 steps, 4 files" in page
    assert "and 2 tasks more; --limit shows more, --json the nearest 1,000" in page
    assert "/home/jane/job.py:11 in main: line 1" in page
    assert "python 3.12.1, dask 2026.8.0, distributed 2026.8.0, my-package 7, numpy 2.1, scikit-image 0.25" in page


def test_json_holds_the_document(run):
    result = CliRunner().invoke(main, ["lineage", "middle.bin", "--run", str(run.path), "--json"], prog_name="recup")
    assert json.loads(result.stdout)["upstream"]["task_count"] == 1


# ---------------------------------------------------------------- the walk


@settings(max_examples=100, deadline=None)
@given(edges=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=25), start=st.integers(0, 9))
def test_what_is_reached_is_what_a_step_by_step_walk_reaches(edges, start):
    """Also on graphs with cycles, which files can make."""
    needers = np.array([each[0] for each in edges], dtype=np.int64)
    needed = np.array([each[1] for each in edges], dtype=np.int64)
    nodes = Graph(np.arange(10) * 7, needers, needed, None, ())
    distances = {start: 0}
    frontier = [start]
    while frontier:
        following = [to for at_, to in edges if at_ in frontier and to not in distances]
        distances |= dict.fromkeys(following, distances[frontier[0]] + 1)
        frontier = list(dict.fromkeys(following))
    found, steps = reached(nodes, np.array([start]), is_upstream=True)
    assert dict(zip(found.tolist(), steps.tolist(), strict=True)) == {
        7 * node: distance for node, distance in distances.items() if distance
    }
