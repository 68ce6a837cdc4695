"""The report of a run: its time line says what the record says, its layouts hold, and nothing in a run can act in it."""

import gzip
import hashlib
import json
import re
from importlib.resources import files

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from recup.cli import main
from recup.questions import QUESTIONS
from recup.report.columns import smaller, time_columns, wide
from recup.report.comparison import waterfall
from recup.report.document import report_document
from recup.report.groups import layout
from recup.report.heat import heat_map, ratio_step
from recup.report.html import content_policy, page_text, script_json, write_report
from recup.report.strips import strips
from recup.report.tables import shown_table
from recup.report.timeline import PLANS, timeline
from recup.rundir import create_run, update_manifest
from recup.store import open_run
from tests.unit.flow_runs import A, T, flow_run
from tests.unit.reported import HOSTILE, TOKEN, write_reported
from tests.unit.written_runs import write_run

# ---------------------------------------------------------------- reading what the page reads


def planes(data, offset, width, count):
    parts = np.frombuffer(data, np.uint8, width * count, offset).reshape(width, count).astype(np.int64)
    return sum(part << 8 * place for place, part in enumerate(parts)) if width else np.zeros(count, np.int64)


def unfolded(values):
    return np.where(values % 2, -(values + 1) // 2, values // 2)


def decoded(part, how):
    data = gzip.decompress(part)
    if how["coding"] == "json":
        return json.loads(data)
    if how["coding"] == "bytes":
        return data
    if how["coding"] == "folded":
        count = len(data) // (how["width"] + how["high_width"])
        high = planes(data, how["width"] * count, how["high_width"], count)
        return unfolded(planes(data, 0, how["width"], count) + (high << 24))
    values = planes(data, 0, how["width"], len(data) // how["width"])
    return np.cumsum(unfolded(values)) if how["coding"] == "delta" else values


def columns_of(found):
    return {
        name: decoded(found.data[how["offset"] : how["offset"] + how["length"]], how)
        for name, how in found.about["columns"].items()
    }


def bars_of(found, columns):
    """Lane, start and duration of every task."""
    lanes = np.repeat(np.arange(len(found.about["counts"])), found.about["counts"])
    bars, before, lane_before = [], 0, -1
    for lane, gap, mantissa, exponent in zip(
        lanes, columns["gap"], columns["mantissa"], columns["exponent"], strict=True
    ):
        start = (0 if lane != lane_before else before) + gap
        took = int(mantissa) << int(exponent)
        before, lane_before = start + took, lane
        bars.append((int(lane), start * found.about["tick_s"], took * found.about["tick_s"]))
    return bars


def keys_of(found, columns):
    keys, place = [], 0
    width = found.about["columns"].get("token", {}).get("width", 0)
    for task, template in enumerate(columns["template"]):
        text, number, token = columns["templates"][template], 0, ""
        if columns["has_token"][task]:
            token, place = columns["token"][place * width : (place + 1) * width].hex(), place + 1
        uuid = re.sub("^(.{8})(.{4})(.{4})(.{4})", r"\1-\2-\3-\4-", token)
        key = ""
        for piece in text:
            if piece == "\ue003":
                key, number = key + str(columns[f"number_{number}"][task]), number + 1
            else:
                group = columns["groups"][columns["group"][task]][1]
                key += {"\ue000": group, "\ue001": token, "\ue002": uuid}.get(piece, piece)
        keys.append(key)
    return keys


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with open_run(write_reported(tmp_path_factory.mktemp("reported"))) as opened:
        yield opened


RECORDED_SQL = """
select key, started_s - (select started_s from run_summary), compute_s
from task_runs
where started_s is not null
order by key
"""


# ---------------------------------------------------------------- time line


def test_the_time_line_holds_every_task_with_its_key_and_times(run):
    found = timeline(run)
    columns = columns_of(found)
    told = sorted(zip(keys_of(found, columns), bars_of(found, columns), strict=True))
    recorded = run.sql(RECORDED_SQL).fetchall()
    assert [key for key, _ in told] == [key for key, _, _ in recorded]
    assert [bar[1] for _, bar in told] == pytest.approx([start for _, start, _ in recorded], abs=1e-6)
    assert [bar[2] for _, bar in told] == pytest.approx([took for _, _, took in recorded], abs=2e-6)
    assert (found.about["tick_s"], found.about["keys"], found.about["bins"]) == (1e-6, "full", None)


def test_tasks_that_began_at_once_in_one_thread_come_by_their_keys(tmp_path):
    tasks = [T(f"{name}-{number:032x}", A, 1.0, 1.5, 10) for number in range(1, 5) for name in ("y", "x")]
    with open_run(flow_run(tmp_path, tasks)) as run:
        found = timeline(run)
        by_number = [key for (key,) in run.sql("select key from task_runs order by thread, key_id").fetchall()]
    assert found.about["counts"] == [8]
    assert keys_of(found, columns_of(found)) == by_number
    assert [each["name"] for each in found.about["prefixes"]] == ["x", "y"]


def test_lanes_are_threads_in_the_order_of_their_workers(run):
    lanes = timeline(run).about["lanes"]
    assert [(each["address"], each["thread"], each["count"]) for each in lanes] == [
        ("tcp://10.0.0.1:4001", 1, 60), ("tcp://10.0.0.1:4001", 2, 60),
        ("tcp://10.0.0.2:4002", 1, 60), ("tcp://10.0.0.2:4002", 2, 60),
    ]  # fmt: skip


def test_prefixes_come_by_their_seconds(run):
    told = timeline(run).about["prefixes"]
    assert {each["name"]: each["count"] for each in told} == {"load": 80, "sum": 80, HOSTILE: 80}
    assert [each["total_s"] for each in told] == sorted((each["total_s"] for each in told), reverse=True)


def test_what_has_no_room_is_told_more_coarsely_and_said_so(run):
    whole = timeline(run)
    found = timeline(run, size_limit_bytes=len(whole.data) - 1200)
    assert (whole.about["keys"], found.about["keys"]) == ("full", "short")
    cut = {re.sub(r"(sum-[0-9a-f]{6}).*", r"\1", key) for key in keys_of(whole, columns_of(whole))}
    assert {re.sub("-{1,4}$", "", key) for key in keys_of(found, columns_of(found))} == cut
    assert timeline(run, size_limit_bytes=1).about["keys"] == PLANS[-1].keys == "none"
    assert timeline(run, size_limit_bytes=1).about["tick_s"] == PLANS[-1].tick_s


def test_beyond_the_limit_lanes_are_bins_that_hold_the_same_seconds(run):
    found = timeline(run, exact_limit=10)
    columns, bins = columns_of(found), found.about["bins"]
    busy = columns["bin_busy"].reshape(4, bins["per_lane"]) / 255 * bins["width_s"]
    ((recorded,),) = run.sql("select sum(compute_s) from task_runs").fetchall()
    assert busy.sum() == pytest.approx(recorded, rel=0.01)
    at = int(1.0025 / bins["width_s"])
    assert found.about["prefixes"][columns["bin_prefix"].reshape(4, -1)[0, at]]["name"] == "load"
    assert (found.about["task_count"], found.about["shown_count"]) == (240, 240)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1e5), st.floats(0, 1e4)), min_size=1, max_size=60),
    st.sampled_from([(plan.tick_s, plan.mantissa_bits) for plan in PLANS]),
)
@settings(max_examples=60, deadline=None)
def test_times_are_as_exact_as_the_page_says(bars, pace):
    tick_s, bits = pace
    lane, start, duration = (np.array(each) for each in zip(*sorted(bars), strict=True))
    columns = {n: decoded(*c) for n, c in time_columns(lane, start, duration, tick_s=tick_s, bits=bits).items()}

    class Found:
        about = {"counts": np.bincount(lane).tolist(), "tick_s": tick_s}

    told = bars_of(Found, columns)
    assert [each[0] for each in told] == lane.tolist()
    assert np.array([each[1] for each in told]) == pytest.approx(start, abs=0.51 * tick_s + 1e-9)
    error = np.abs(np.array([each[2] for each in told]) - duration)
    assert (error <= 0.51 * tick_s + 1e-9 + duration * 2.0**-bits).all()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1))
def test_numbers_survive_being_coded_as_differences(values):
    assert decoded(*smaller(np.array(values, np.int64))).tolist() == values


@given(st.lists(st.integers(-(2**46), 2**46), min_size=1))
def test_gaps_survive_whatever_their_size(values):
    assert decoded(*wide(np.array(values, np.int64))).tolist() == values


# ---------------------------------------------------------------- strips, graph, heat, waterfall, tables


def test_strips_spread_what_happened_over_its_own_time(run):
    told = strips(run)
    series = {(s["name"], each["name"]): each["values"] for s in told["strips"] for each in s["series"]}
    ((computed,),) = run.sql("select sum(compute_s) from task_runs").fetchall()
    assert sum(series["threads", "computing"]) * told["width_s"] == pytest.approx(computed, rel=1e-4)
    assert sum(series["network", "results between workers"]) * told["width_s"] == pytest.approx(4000, rel=1e-4)
    assert sum(series["io", "read"]) * told["width_s"] == pytest.approx(8e6, rel=1e-3)
    assert max(filter(None, series["memory", "in processes"])) == pytest.approx(2.8e8, rel=0.01)
    assert max(filter(None, series["lag", "a worker"])) == pytest.approx(0.004)
    assert ("lag", "scheduler") not in series


NAMES = st.sampled_from("abcdefgh")


@given(st.sets(st.tuples(NAMES, NAMES).filter(lambda edge: edge[0] != edge[1])))
@settings(max_examples=150, deadline=None)
def test_in_the_graph_no_box_lies_on_another_and_all_edges_are_drawn(pairs):
    nodes = [{"name": name, "compute_s": float(place)} for place, name in enumerate("abcdefgh")]
    edges = [{"source": s, "target": t, "dependency_count": 1} for s, t in sorted(pairs)]
    width, height = layout(nodes, edges)
    boxes = [(n["x"], n["y"], n["x"] + n["width"], n["y"] + n["height"]) for n in nodes]
    assert all(x0 >= 0 and x1 <= width + 1e-6 and y0 >= 0 and y1 <= height + 1e-6 for x0, y0, x1, y1 in boxes)
    for place, (x0, y0, x1, y1) in enumerate(boxes):
        for u0, v0, u1, v1 in boxes[place + 1 :]:
            assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0
    assert all(edge["path"].startswith("M") for edge in edges)


def test_in_a_graph_without_circles_what_is_needed_stands_above(run):
    nodes = [{"name": name, "compute_s": 1.0} for name in "abcd"]
    edges = [
        {"source": s, "target": t, "dependency_count": n} for s, t, n in (("a", "b", 9), ("b", "c", 1), ("a", "c", 1), ("d", "c", 1))
    ]  # fmt: skip
    layout(nodes, edges)
    y = {node["name"]: node["y"] for node in nodes}
    assert y["a"] < y["b"] == y["d"] < y["c"]
    assert edges[0]["weight"] > edges[1]["weight"]


def test_the_heat_map_keeps_the_order_of_its_rows_and_says_what_is_left_out():
    rows = [{"p": p, "h": h, "median_s": 1.0, "ratio": r} for p, h, r in (("x", 1, 1), ("x", 2, 5), ("y", 1, 0.2))]
    told = heat_map(rows, ("p", "h", "median_s"), lambda row: ratio_step(row["ratio"]), limits=(1, 9))
    assert (told["line_count"], told["columns"], len(told["lines"])) == (2, ["1", "2"], 1)
    assert [(cell["text"], cell["step"]) for cell in told["lines"][0]["cells"]] == [("1.00 s", 0), ("1.00 s", 4)]


@given(st.lists(st.floats(-5, 5), max_size=6), st.floats(20, 40))
def test_the_waterfall_leads_from_one_wall_time_to_the_other(differences, wall_a_s):
    rows = [{"category": f"c{n}", "meaning": "", "difference_s": d} for n, d in enumerate(differences)]
    told = waterfall(rows, wall_a_s, wall_a_s + sum(differences))
    first, *middle, last = told["bars"]
    assert (first["name"], last["name"]) == ("A", "B")
    per_s = first["width"] / wall_a_s
    unseen_s = sum(abs(d) for d in differences if abs(d) <= 1e-3 * max(wall_a_s, wall_a_s + sum(differences)))
    end = middle[-1]["link_x"] if middle else first["link_x"]
    assert end == pytest.approx(last["link_x"], abs=unseen_s * per_s + 1e-6)


def test_a_table_keeps_values_for_sorting_and_says_what_is_left_out():
    rows = pa.table(
        {"a_s": [0.5, float("nan"), 2.0], "name": ["x", HOSTILE, None], "none": pa.nulls(3), "on": [True] * 3}
    )
    told = shown_table("t", "T", rows, limit=2)
    assert (told["row_count"], told["shown_count"]) == (3, 2)
    assert [(c["name"], c["heading"], c["values"], c["texts"]) for c in told["columns"]] == [
        ("a_s", "a", [0.5, None], ["500 ms", ""]),
        ("name", "name", ["x", HOSTILE], None),
        ("on", "on", [True, True], ["yes", "yes"]),
    ]


# ---------------------------------------------------------------- the file


@pytest.fixture(scope="module")
def document(run):
    return report_document(run)


@pytest.fixture(scope="module")
def text(run, document):
    """The report of the run."""
    return page_text("report.html.j2", document, {"timeline": timeline(run)}, {"strips": document["strips"]})


def test_no_text_of_a_run_is_markup_in_the_file(text):
    assert "<img" not in text
    assert text.count("</script>") == text.count("<script")
    assert "http-equiv" in text
    assert not re.findall(r"(?:src|href)=\"(?!#|data:,)", text)


def test_only_the_scripts_of_the_package_may_run(text):
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert len(scripts) == 3
    assert policy.replace("&#39;", "'") == content_policy(scripts)
    assert "default-src 'none'" in content_policy(scripts)


def test_json_in_a_script_holds_no_bracket():
    assert script_json({"<": "</script><!--"}) == '{"\\u003c":"\\u003c/script\\u003e\\u003c!--"}'
    assert json.loads(script_json({"a": HOSTILE})) == {"a": HOSTILE}


def test_the_document_has_a_section_for_every_question(document):
    verbs = [each["verb"] for each in document["questions"]]
    assert verbs == [question.verb for question in QUESTIONS]
    assert document["prefixes"]["row_count"] == 3
    assert sum(row["share"] for row in document["budget"]["totals"]) == pytest.approx(1)
    assert document["transfers"]["lines"][0]["cells"][0]["text"] == "3.9 KiB"
    assert {node["name"] for node in document["groups"]["nodes"]} == {f"load-{TOKEN}", "sum", HOSTILE}


def test_an_empty_run_has_a_report_that_says_so(tmp_path):
    path = create_run(tmp_path, way="run", command=["x"])
    update_manifest(path, started_ns=1_700_000_000_000_000_000)
    with open_run(path) as run:
        write_report(run, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "No server recorded anything into this run." in text
    assert "No task computed, as far as the record tells." in text


def test_a_run_whose_scheduler_left_nothing_has_a_report(tmp_path):
    with open_run(write_run(tmp_path, ended=False, skip=("Scheduler-1", "Worker-b"))) as run:
        write_report(run, tmp_path / "r.html")
    assert "No scheduler recorded into this run." in (tmp_path / "r.html").read_text()


def test_the_verb_writes_a_file_and_says_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_reported(tmp_path, task_count=4)
    told = json.loads(CliRunner().invoke(main, ["report", str(path), "--json"]).output)
    file = tmp_path / f"recup-{path.name}.html"
    assert told == {"path": str(file), "run_ids": [path.name], "size_bytes": file.stat().st_size}
    size = file.read_text()[file.read_text().index("This file is") :][:40]
    assert f"{file.stat().st_size / 1024:.1f} KiB" in size


def test_what_cannot_be_written_is_one_line(tmp_path):
    path = create_run(tmp_path, way="run", command=["x"])
    done = CliRunner().invoke(main, ["report", str(path), "-o", str(tmp_path / "no" / "r.html")])
    assert done.exit_code == 1
    assert "r.html cannot be written: no such directory, or no right to." in done.output
    assert CliRunner().invoke(main, ["report", "a", "b", "c"]).exit_code == 2


VENDORED = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
"""SHA-256 of the files of uPlot 1.6.32 as they are on npm."""


@pytest.mark.parametrize("name", VENDORED)
def test_what_is_vendored_is_as_it_was_released(name):
    data = (files("recup.report") / "assets" / name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == VENDORED[name]
