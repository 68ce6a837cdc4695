import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from dask.utils import key_split
from hypothesis import given, settings
from hypothesis import strategies as st

from recup import schema
from recup.cli import main
from recup.errors import RecupError
from recup.rundir import create_run, find_runs, update_manifest
from recup.serve import root as serve_root
from recup.serve.lanes import Lanes, Slots
from recup.serve.live import LiveRun
from recup.serve.progress import OTHERS, PREFIX_LIMIT, Prefixes, TimeLines, prefix_of
from recup.serve.root import RunsRoot
from recup.serve.server import serve
from recup.serve.stream_tail import KeyTail, StreamTail
from recup.spool import Spool
from tests.unit.served import serving
from tests.unit.written_runs import NASTY, START_NS, A, at, row, scheduler_rows, worker_a_rows, write, write_run

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A root of a run that ended, one that is damaged, and ones that lead out of it; and a secret beside it."""
    base = tmp_path_factory.mktemp("serve")
    root = base / "runs"
    root.mkdir()
    run = write_run(root, run_id="good")
    update_manifest(run, command=["python", HOSTILE])
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{")
    outside = write_run(base / "elsewhere", run_id="outside")
    (root / "linked").symlink_to(outside)
    write_run(root, run_id="leads-out")
    shutil.rmtree(root / "leads-out" / "spool")
    (root / "leads-out" / "spool").symlink_to(outside / "spool")
    (root / "also-good").symlink_to(run)
    (base / "secret.txt").write_text("secret")
    return root


@pytest.fixture(scope="module")
def served(places):
    with serving(places) as server:
        yield server


# ---------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    "path", ["/", "/api/runs", "/runs/good", "/api/runs/good/live", "/assets/pages.css", "/nothing"]
)
def test_who_does_not_show_the_token_is_refused(served, path):
    assert served.ask(path, admitted=False)[0] == 403
    assert served.ask(f"{path}?token=guessed", admitted=False)[0] == 403
    assert served.ask(path, admitted=False, headers={"Cookie": f"recup-{served.port}="})[0] == 403


def test_the_printed_address_leaves_a_cookie_that_no_script_reads_and_no_other_site_sends(served):
    status, headers, body = served.ask(f"/?token={served.token}", admitted=False)
    assert status == 200
    name, *flags = headers["Set-Cookie"].split("; ")
    assert name == f"recup-{served.port}={served.token}"
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(flags)
    assert served.token.encode() not in body
    assert served.ask("/", admitted=False, headers={"Cookie": name})[0] == 200


def test_every_server_has_a_token_of_its_own(served, places):
    with serving(places) as other:
        assert other.token != served.token
        assert len(other.token) >= 32


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", ""]
)
def test_a_name_of_another_site_is_refused_even_with_the_token(served, host):
    assert served.ask("/api/runs", host=host)[0] in (400, 403)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9999", "[::1]:80", "LOCALHOST"])
def test_names_of_this_machine_are_known_whatever_the_port(served, host):
    assert served.ask("/api/runs", host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
def test_nothing_but_get_and_head_is_answered(served, method):
    assert served.ask("/api/runs", method=method)[0] == 405


def test_head_is_answered_as_get_without_the_body(served):
    status, headers, body = served.ask("/", method="HEAD")
    assert (status, body) == (200, b"")
    assert headers["Content-Type"] == "text/html; charset=utf-8"


def test_it_listens_on_this_machine_alone(served):
    assert served.host == "127.0.0.1"


# ---------------------------------------------------------------- what may be read

OUTSIDE = (
    "/../secret.txt",
    "/runs/../../secret.txt",
    "/api/runs/../live",
    "/api/runs/..%2fsecret.txt/live",
    "/api/runs/%2e%2e/live",
    "/api/runs/%2e%2e%2felsewhere%2foutside/live",
    "/api/runs/..%5c..%5c/live",
    "/api/runs/good%2f..%2fgood/live",
    "/api/runs/good%00/live",
    "/api/runs//live",
    "/api/runs/./live",
    "/api/runs/last/live",
    "/api/runs/goo/live",
    "/api/runs/%2fetc/live",
    "/api/runs/linked/live",
    "/api/runs/leads-out/live",
    "/api/runs/leads-out/report",
    "/api/runs/leads-out/overview",
    "/api/compare/report",
    "/api/compare/report?run=good&run=../elsewhere/outside",
    "/api/compare/report?run=good&run=linked",
    "/assets/server.py",
    "/assets/../server.py",
    "/assets/%2e%2e%2fserver.py",
    "/assets/..",
    "//etc/passwd",
)


@pytest.mark.parametrize("path", OUTSIDE)
def test_what_is_no_run_of_the_root_is_not_there(served, path):
    status, _, body = served.ask(path)
    assert status == 404
    assert b"secret" not in body
    assert b"outside" not in body


def test_a_name_that_is_no_text_is_refused(served):
    assert served.ask("/api/runs/%ff/live")[0] in (400, 404)


def test_a_link_that_stays_in_the_root_is_opened(served):
    assert served.json("/api/runs/also-good/live")["run_id"] == "good"


@pytest.mark.parametrize(
    "path", ["/", "/runs/good", "/runs/good/live", "/compare?run=good", "/api/runs", "/assets/live.js", "/none"]
)
def test_every_answer_forbids_what_it_does_not_need(served, path):
    headers = served.ask(path)[1]
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert "Server" not in headers
    assert "Access-Control-Allow-Origin" not in headers


def test_pages_hold_nothing_of_a_run_and_no_address_elsewhere(served):
    pages = [served.ask(path)[2] for path in ("/runs/good", "/runs/none", "/compare?run=" + "%3Cb%3E")]
    assert pages[0] == pages[1] == pages[2]
    for name in ("pages.css", "shared.js", "list.js", "run.js", "live.js", "charts.js", "icon.svg"):
        text = served.ask(f"/assets/{name}")[2].decode().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
        assert "innerHTML" not in text
        assert "eval(" not in text


def test_the_list_shows_every_run_damaged_ones_with_their_problem(served, places):
    listing = served.until("/api/runs", lambda listing: listing["is_complete"])
    shown = {run["name"]: (run["state"], run["problem"] is not None) for run in listing["runs"]}
    assert shown == {
        "good": ("ended 0", False),
        "also-good": ("ended 0", False),
        "broken": ("unreadable", True),
        "linked": ("unreadable", True),
        "leads-out": ("unreadable", True),
    }
    assert [run["name"] for run in listing["runs"]] == [run.name for run in reversed(find_runs(places))]
    good = next(run for run in listing["runs"] if run["name"] == "good")
    assert (good["task_count"], good["worker_count"], good["command"][1]) == (2, 2, HOSTILE)
    assert "path" not in good


def test_text_of_runs_is_escaped_in_documents(served):
    _, headers, body = served.ask("/api/runs")
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    assert b"<" not in body


def test_a_list_that_has_not_changed_is_not_sent_again(served):
    version = served.until("/api/runs", lambda listing: listing["is_complete"])["version"]
    assert "runs" not in served.json(f"/api/runs?version={version}")


def test_what_takes_long_is_made_once_in_a_process_of_its_own(served):
    first = served.json("/api/runs/good/overview")
    assert (first["state"], first["problem"]) == ("making", None)
    assert served.ask("/api/runs/good/overview.json")[0] == 409
    made = served.until("/api/runs/good/overview", lambda told: told["state"] != "making")
    assert made["state"] == "ready"
    assert served.json("/api/runs/good/overview.json")["run"]["command"] == ["python", HOSTILE]
    assert served.json("/api/runs/good/overview")["made_at_s"] == made["made_at_s"]


def test_what_cannot_be_made_says_why(served):
    told = served.until("/api/runs/broken/overview", lambda told: told["state"] != "making")
    assert told["state"] == "failed"
    assert "run.json cannot be read" in told["problem"]


def test_a_report_is_walled_off_whatever_is_in_it(served):
    policy = served.ask("/api/runs/good/report.html")[1]["Content-Security-Policy"].split("; ")
    assert "default-src 'none'" in policy
    assert "sandbox allow-scripts allow-downloads allow-modals" in policy
    assert not [each for each in policy if each.startswith("connect-src")]


# ---------------------------------------------------------------- the list of runs


def test_runs_that_ended_are_read_once(tmp_path, monkeypatch):
    read = []
    row_of = serve_root.run_row
    monkeypatch.setattr(serve_root, "run_row", lambda path: read.append(path.name) or row_of(path))
    for number in range(1000):
        path = create_run(tmp_path, way="run", run_id=f"run-{number:04}")
        update_manifest(path, state="ended", ended_ns=time.time_ns(), exit_code=0)
    root = RunsRoot(tmp_path)
    deadline = time.monotonic() + 60
    while not root.listing()["is_complete"]:
        assert time.monotonic() < deadline
    assert len(read) == 1000
    assert read[0] == "run-0999"  # the newest come first
    assert len(root.listing()["runs"]) == 1000
    assert len(read) == 1000


def test_a_run_removed_meanwhile_leaves_the_list_and_is_not_there(tmp_path):
    path = write_run(tmp_path, run_id="short")
    with serving(tmp_path) as server:
        assert server.until("/api/runs", lambda listing: listing["is_complete"])["runs"]
        assert server.json("/api/runs/short/live")["run_id"] == "short"
        shutil.rmtree(path)
        assert server.ask("/api/runs/short/live")[0] == 404
        assert server.until("/api/runs", lambda listing: not listing["runs"])["root"] == str(tmp_path)


def test_what_is_no_directory_of_runs_is_not_served(tmp_path):
    run = write_run(tmp_path)
    for place, words in ((tmp_path / "none", "no directory"), (run, "is itself a run")):
        done = CliRunner().invoke(main, ["serve", str(place)])
        assert done.exit_code == 1
        assert words in done.output


def test_a_port_that_is_taken_is_said(served, places):
    with pytest.raises(RecupError, match="cannot be listened on"):
        asyncio.run(serve(places, port=served.port))


# ---------------------------------------------------------------- a stream that grows


def written_stream(path, texts):
    """Write batches of logs, one per list of texts; returns the bytes of the file and where batches end."""
    spool = Spool(path, "client", "Client-9")
    ends = []
    for batch in texts:
        for number, text in enumerate(batch):
            spool.put(row(schema.Log, time_ns=number, level=text, logger="x", message=text))
        assert spool.flush()
        ends.append((spool.directory / "logs.arrows").stat().st_size)
    return (spool.directory / "logs.arrows").read_bytes(), ends


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(st.text(max_size=3), min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_a_stream_cut_anywhere_and_grown_gives_every_row_once(tmp_path_factory, texts, data):
    path = tmp_path_factory.mktemp("stream")
    content, _ = written_stream(path, texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    limit = data.draw(st.sampled_from([64, 1000, 8_000_000]))
    file = path / "grown.arrows"
    tail, found = StreamTail(file), []
    for cut in [*cuts, len(content)]:
        file.write_bytes(content[:cut])
        while batches := tail.read(limit=limit):
            for batch in batches:
                found += zip(*(batch.rows.column(name).to_pylist() for name in ("level", "message")), strict=True)
    assert tail.problem is None
    assert tail.offset == len(content)
    assert found == [(each, each) for batch in texts for each in batch]


@settings(deadline=None, max_examples=15)
@given(st.binary(min_size=8, max_size=200))
def test_bytes_that_are_no_stream_end_the_reading_with_what_stands_before_them(tmp_path_factory, garbage):
    path = tmp_path_factory.mktemp("stream")
    content, _ = written_stream(path, [["a"], ["b"]])
    file = path / "bad.arrows"
    file.write_bytes(content + b"\0\0\0\0" + garbage)
    tail = StreamTail(file)
    found = [value for batch in tail.read() + tail.read() for value in batch.rows.column("message").to_pylist()]
    assert found == ["a", "b"]
    assert "damaged after" in tail.problem


def test_a_link_is_not_followed(tmp_path):
    content, _ = written_stream(tmp_path, [["a"]])
    (tmp_path / "real.arrows").write_bytes(content)
    link = tmp_path / "link.arrows"
    link.symlink_to(tmp_path / "real.arrows")
    tail = StreamTail(link)
    assert tail.read() == []
    assert "cannot be read" in tail.problem


def test_keys_are_found_again_after_they_were_let_go(tmp_path):
    spool = Spool(tmp_path, "worker", "Worker-9")
    for batch in range(20):
        for number in range(5):
            spool.put(row(schema.Spill, key=("x", batch, number), direction="spill"))
        assert spool.flush()
    keys = KeyTail(spool.directory / "keys.arrows")
    assert sum(len(texts) for _, texts in keys.read()) == 100
    assert [keys.text(number) for number in (0, 42, 99, 100, -1)] == [
        "('x', 0, 0)",
        "('x', 8, 2)",
        "('x', 19, 4)",
        None,
        None,
    ]


# ---------------------------------------------------------------- counts, lines and lanes

KEYS = [
    "inc-1",
    ("x-y", 1),
    ("sum-0123456789abcdef0123456789abcdef", 0, 1),
    "add",
    ("a'b-c", 2),
    'say-"x"',
    "7",
    "",
    NASTY,
]


@pytest.mark.parametrize("key", KEYS)
def test_the_prefix_of_a_key_as_text_is_the_one_dask_gives_the_key(key):
    assert prefix_of(str(key)) == key_split(key)


def test_prefixes_beyond_the_limit_are_counted_together():
    prefixes = Prefixes()
    codes = [prefixes.code(f"p{number}") for number in range(PREFIX_LIMIT + 50)]
    assert codes == [*range(PREFIX_LIMIT), *[PREFIX_LIMIT] * 50]
    assert prefixes.names[-1] == OTHERS


@given(st.lists(st.tuples(st.floats(0, 20_000), st.floats(0, 100)), min_size=1, max_size=40))
def test_lines_of_any_length_keep_the_last_value_and_the_highest(points):
    points.sort(key=lambda point: point[0])
    lines = TimeLines(START_NS)
    for seconds, value in points:
        lines.put("last", at(seconds), value)
        lines.put("peak", at(seconds), value, peak=True)
    assert lines.count <= 240
    assert lines.line("last")[-1, 0] == points[-1][1]
    assert np.nanmax(lines.line("peak")) == max(value for _, value in points)


def test_a_task_takes_the_lowest_free_lane_of_its_worker():
    lanes = Lanes()
    slots = Slots(3, lanes)
    for key, seconds in ((1, 0), (2, 1)):
        slots.start(key, at(seconds), prefix=key, attempt=key)
    slots.stop(1, 1, at(2), failed=False, shown=True)
    slots.start(3, at(3), prefix=3, attempt=3)
    assert {key: task.lane for key, task in slots.running.items()} == {2: 1, 3: 0}
    slots.stop(99, 2, at(4), failed=True, shown=True)  # the same attempt under another number of its key
    assert lanes.since(-1, START_NS) == [[0, 3, 0, 0.0, 2.0, 1, 0, 1], [1, 3, 1, 1.0, 4.0, 2, 1, 1]]
    assert lanes.since(0, START_NS) == [[1, 3, 1, 1.0, 4.0, 2, 1, 1]]
    slots.stop_all(at(5))
    assert (slots.running, slots.lane_count) == ({}, 2)


def test_short_tasks_of_a_prefix_become_one_bar_and_old_bars_are_let_go():
    lanes = Lanes()
    slots = Slots(0, lanes)
    for number in range(40):
        slots.start(number, at(number * 0.001), prefix=0, attempt=number)
        slots.stop(number, number, at((number + 1) * 0.001), failed=number == 7, shown=True)
    assert lanes.since(-1, START_NS) == [[39, 0, 0, 0.0, 0.04, 0, 1, 40]]
    lanes.forget_before(at(1))
    assert lanes.since(-1, START_NS) == []


# ---------------------------------------------------------------- a run that grows


def states_of(document):
    names = ("total", "waiting", "processing", "memory", "erred", "released")
    return {row["prefix"]: tuple(row[name] for name in names) for row in document["prefixes"]}


def test_a_growing_run_is_told_as_its_rows_arrive(tmp_path):
    path = create_run(tmp_path, way="run", run_id="grows")
    update_manifest(path, started_ns=START_NS, state="ended", ended_ns=at(5))
    live = LiveRun(path)
    assert (live.document()["has_rows"], live.document()["prefixes"]) == (False, [])
    scheduler, worker = Spool(path, "scheduler", "Scheduler-1"), Spool(path, "worker", "Worker-a")

    def after(spool, rows):
        for each in rows:
            spool.put(each)
        assert spool.flush()
        live.read()
        return live.document()

    rows = scheduler_rows()
    split = next(
        i for i, each in enumerate(rows) if isinstance(each, schema.SchedulerTransition) and each.finish == "memory"
    )
    first = after(scheduler, rows[:split])
    assert states_of(first) == {"inc": (1, 0, 1, 0, 0, 0), "boom": (1, 0, 0, 0, 0, 0)}
    began = after(worker, [each for each in worker_a_rows() if getattr(each, "finish", "") != "memory"])
    lanes = began["lanes"]
    assert [(each["name"], each["lanes"], each["is_captured"]) for each in lanes["workers"]] == [
        (A, 2, True),
        ("tcp://10.0.0.2:4002", 2, False),
    ]
    assert lanes["running"] == [[lanes["workers"][0]["number"], 0, 1.03, began["prefix_names"].index("inc"), "inc-1"]]
    second = after(scheduler, rows[split:])
    assert states_of(second) == {"inc": (1, 0, 0, 1, 0, 0), "boom": (1, 0, 0, 0, 1, 0)}
    assert second["errors"][0]["key"] == NASTY
    ended = after(worker, [schema.WorkerTransition(at(1.45), "inc-1", 0, "executing", "memory", None, "x")])
    assert ended["lanes"]["running"] == []
    assert [bar[1:5] for bar in ended["lanes"]["bars"]] == [[lanes["workers"][0]["number"], 0, 1.03, 1.45]]
    released = after(
        scheduler,
        [
            schema.SchedulerTransition(at(2), key, start, finish, "x", None, -1)
            for key, start in (("inc-1", "memory"), (NASTY, "erred"))
            for start, finish in ((start, "released"), ("released", "forgotten"))
        ],
    )
    assert states_of(released) == {"inc": (1, 0, 0, 0, 0, 1), "boom": (1, 0, 0, 0, 1, 0)}
    assert {name: line[-1] for name, line in released["over_time"]["states"].items()} == {
        "waiting": 0, "queued": 0, "no-worker": 0, "processing": 0, "memory": 0, "erred": 1, "released": 1,
    }  # fmt: skip
    scheduler.close()
    worker.close()


def test_rows_written_just_before_the_spool_was_removed_are_read(tmp_path):
    path = create_run(tmp_path, way="run", run_id="sealed")
    update_manifest(path, started_ns=START_NS, state="ended", ended_ns=at(5))
    spool, rows = Spool(path, "scheduler", "Scheduler-1"), scheduler_rows()
    transitions = [each for each in rows if isinstance(each, schema.SchedulerTransition)]
    for each in [*(each for each in rows if isinstance(each, schema.Task)), *transitions[:-1]]:
        spool.put(each)
    assert spool.flush()
    live = LiveRun(path)
    assert states_of(live.document())["boom"] == (1, 0, 1, 0, 0, 0)
    spool.put(transitions[-1])
    spool.close()
    shutil.rmtree(path / "spool")
    live.read()
    after = live.document()
    assert (states_of(after)["boom"], after["is_spool_gone"]) == ((1, 0, 0, 0, 1, 0), True)


def test_what_a_page_has_already_is_not_sent_again(tmp_path):
    live = LiveRun(write_run(tmp_path))
    sent = live.document()["lanes"]
    assert len(sent["bars"]) == 1
    assert live.document(since=sent["last"], follow=sent["follow"])["lanes"]["bars"] == []
    assert len(live.document(since=sent["last"], follow="another")["lanes"]["bars"]) == 1


def test_values_over_time_losses_and_workers_that_go_are_told(tmp_path):
    path = create_run(tmp_path, way="run", run_id="values")
    update_manifest(path, started_ns=START_NS, state="ended", ended_ns=at(5))

    def sample(seconds, metric, value, subject=None):
        return row(schema.Sample, time_ns=at(seconds), metric=metric, subject=subject, value=value)

    write(path, "scheduler", "Scheduler-1", [
        row(schema.Worker, time_ns=at(0), action="add", address=A, worker_id="Worker-a", name="a", thread_count=2),
        row(schema.Worker, time_ns=at(0), action="add", address="tcp://b", worker_id="Worker-b", thread_count=2),
        sample(1, "occupancy_s", 4.5), sample(1, "memory_managed_bytes", 70.0, A), sample(1, "occupancy_s", 2.5, A),
        sample(1, "memory_process_bytes", 50.0, "tcp://b"), sample(1, "event_loop_lag_s", 0.5),
        row(schema.Worker, time_ns=at(3), action="remove", address="tcp://b"),
        schema.ProcessEnd(at(3), "Worker-b", "worker", None, "signalled", None, 9, None),
        row(schema.Loss, time_ns=at(3), kind="dropped", table="samples", row_count=7, detail="slow disk"),
        row(schema.Loss, time_ns=at(4), kind="dropped", table="samples", row_count=2, detail="slower disk"),
    ])  # fmt: skip
    write(path, "worker", "Worker-a", [sample(2, "process_memory_bytes", 100.0), sample(2, "event_loop_lag_s", 0.25)])
    document = LiveRun(path).document()
    told = {each["name"]: each for each in document["workers"]}
    assert (told["a"]["memory_bytes"], told["a"]["managed_bytes"], told["a"]["occupancy_s"], told["a"]["lag_s"]) == (
        100.0, 70.0, 2.5, 0.25,
    )  # fmt: skip
    assert (told["tcp://b"]["gone_s"], told["tcp://b"]["ended"]) == (3.0, "signalled, 9")
    assert document["worker_count"] == 1
    step = document["over_time"]["step_s"]
    over = {name: document["over_time"][name] for name in ("memory_bytes", "occupancy_s", "lag_s")}
    place = int(2.2 / step)
    assert (over["memory_bytes"][place], over["memory_bytes"][-1], over["occupancy_s"][-1]) == (150.0, 100.0, 4.5)
    assert max(value for value in over["lag_s"] if value is not None) == 0.5
    assert document["losses"] == [
        {"kind": "dropped", "table": "samples", "row_count": 9, "detail": "slower disk", "at": "scheduler-Scheduler-1"}
    ]


def test_a_run_without_a_sign_of_life_says_since_when(tmp_path):
    path = write_run(tmp_path, ended=False)
    for status in path.glob("spool/*/status.json"):
        content = json.loads(status.read_text()) | {"closed": False, "time_ns": at(4), "start_ticks": 0}
        status.write_text(json.dumps(content))
    document = LiveRun(path).document()
    assert (document["state"], document["last_sign_ns"], document["now_s"]) == ("unknown", at(4), 4.0)
    assert len(document["silent"]) == 4


def test_damage_ends_the_reading_of_one_file_and_is_told(tmp_path):
    path = write_run(tmp_path, ended=False)
    file = next(path.glob("spool/scheduler-*/samples.arrows"))
    file.write_bytes(file.read_bytes() + b"garbage" * 100)
    document = LiveRun(path).document()
    assert states_of(document)["inc"] == (1, 0, 0, 1, 0, 0)
    assert document["problems"] == [
        f"samples.arrows is damaged after {file.stat().st_size - 700} bytes: no message where one should begin"
    ]


@pytest.mark.parametrize("damage", ["empty", "no-spool", "spool-is-file", "sealed-away"])
def test_a_run_without_rows_is_told_without_them(tmp_path, damage):
    path = write_run(tmp_path)
    shutil.rmtree(path / "spool")
    if damage == "empty":
        (path / "spool" / "worker-x").mkdir(parents=True)
    if damage == "spool-is-file":
        (path / "spool").write_text("x")
    document = LiveRun(path).document()
    assert (document["state"], document["has_rows"], document["workers"]) == ("ended 0", False, [])


# ---------------------------------------------------------------- the verb


def test_the_verb_prints_its_address_once_and_ends_in_order(places, tmp_path):
    command = [sys.executable, "-m", "recup", "serve", str(places), "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    try:
        told = json.loads(process.stdout.readline())
        assert told["root"] == str(places)
        assert told["url"].startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, rest) == (0, ("", ""))
    assert list(tmp_path.iterdir()) == []
