"""Memory of workers: thresholds, what filled it, results held, what went to disk; and what is no finding."""

import json

import pytest

from recup import schema
from recup.analyse.memory import (
    largest_results,
    memory,
    memory_over_time,
    memory_summed,
    results_held,
    results_held_over_time,
    spilled_results,
    worker_memory,
)
from tests.unit.scheduled import WA, A, B, came, graph, left, made, moved, nothing, ran, task
from tests.unit.written_runs import at, row

MB = 1_000_000
LIMIT = 1000 * MB


def told(seconds, managed=0, old=0, recent=0, spilled=0, *, subject=A):
    """A worker's memory at a moment, as it told the scheduler."""
    values = {
        "process": managed + old + recent, "managed": managed, "unmanaged_old": old, "unmanaged_recent": recent,
        "spilled": spilled,
    }  # fmt: skip
    return [
        row(schema.Sample, time_ns=at(seconds), metric=f"memory_{kind}_bytes", subject=subject, value=float(value))
        for kind, value in values.items()
    ]


def own(seconds, value):
    return row(schema.Sample, time_ns=at(seconds), metric="process_memory_bytes", value=float(value))


def status(seconds, before, after):
    payload = json.dumps({"action": "worker-status-change", "prev-status": before, "status": after})
    return row(schema.Event, time_ns=at(seconds), topic=A, action="worker-status-change", payload=payload)


def stored(key, start, stop, nbytes, gone=None):
    """A result of some size that was held from `stop` to `gone`."""
    run_id = int(key.split("-")[1])
    begun, _ = ran(key, run_id, start, stop)
    made_ = [each._replace(nbytes=nbytes) if isinstance(each, schema.Result) else each for each in (*task(key), *begun)]
    return made_ + ([] if gone is None else [moved(gone, key, "memory", "released", "task-finished-1")])


def run_of(tmp_path, scheduler=(), worker=(), *, limit=LIMIT, threads=1, ended=20.0):
    came_ = came(A, 0, threads, memory_limit_bytes=limit, pid=11)
    return made(
        tmp_path, [came_, graph(), *scheduler, moved(19, "z-0", "released", "waiting")], {A: worker}, ended=ended
    )


def said(run):
    return [(each.subject, each.certainty, each.statement) for each in memory(run).conclusions]


def test_a_calm_run_says_how_full_it_was_and_nothing_more(tmp_path):
    with run_of(tmp_path, [*told(1, 100 * MB, 100 * MB), *stored("x-0", 1, 2, 100 * MB)]) as run:
        answer = memory(run)
    assert answer.headline == "The fullest worker reached 20% of its limit of 953.7 MiB."
    assert answer.conclusions == ()
    assert "Dask's defaults are assumed" in answer.basis


def test_a_run_without_any_record_raises_nothing(tmp_path):
    with nothing(tmp_path) as run:
        answer = memory(run)
    assert (answer.headline, answer.conclusions) == ("The memory of workers is not recorded.", ())
    assert answer.basis.startswith("No worker is recorded.")
    assert {each.name: each.rows.num_rows for each in answer.tables} == dict.fromkeys(
        ("workers", "prefixes", "largest", "spilled", "over-time"), 0
    )


def test_workers_without_a_limit_have_no_thresholds(tmp_path):
    with run_of(tmp_path, told(1, 900 * MB, 800 * MB), limit=0) as run:
        answer = memory(run)
        (worker,) = worker_memory(run).to_pylist()
    assert answer.headline == "Workers have no memory limit; the largest reached 1.6 GiB."
    assert answer.conclusions == ()
    assert [worker[name] for name in ("limit_bytes", "peak_share", "above_spill_at_s")] == [None, None, None]


def test_samples_are_one_row_per_worker_and_moment(tmp_path):
    samples = [*told(1, 100, 10, 5, 7), *told(2, 200, 20, 10)]
    with run_of(tmp_path, samples) as run:
        rows = [tuple(each.values()) for each in memory_over_time(run).to_pylist()]
        (first, last) = memory_summed(run, moments=1).to_pylist()
    assert rows == [
        (1.0, A, WA, 115, 100, 10, 5, 7, LIMIT),
        (2.0, A, WA, 230, 200, 20, 10, 0, LIMIT),
    ]
    assert (first["at_s"], first["worker_count"], first["process_bytes"]) == (1.0, 1, 115)
    assert last["fullest_worker_share"] == 230 / LIMIT


def test_the_first_moment_above_each_threshold_is_by_the_configuration_of_the_worker(tmp_path):
    config = [
        row(schema.ConfigValue, config_digest="c", name=f"distributed.worker.memory.{name}", value=value)
        for name, value in {"target": "0.3", "spill": "0.5", "pause": "false", "terminate": "0.95"}.items()
    ]
    about = row(schema.Process, time_ns=at(0), role="worker", address=A, config_digest="c", host_id="host", pid=11)
    samples = [*told(1, 200 * MB), *told(2, 400 * MB), *told(3, 600 * MB, 300 * MB), *told(5, 100 * MB)]
    with run_of(tmp_path, samples, [about, *config, own(2.5, 550 * MB), own(4, 960 * MB)]) as run:
        (worker,) = [each for each in worker_memory(run).to_pylist() if each["is_configured"]]
    names = ("above_target_at_s", "above_spill_at_s", "above_pause_at_s", "above_terminate_at_s", "peak_bytes")
    assert [worker[name] for name in names] == [2.0, 2.5, None, 4.0, 960 * MB]


def test_what_filled_workers_is_by_their_fullest_sample(tmp_path):
    places = [f"tcp://10.0.1.{number}:4000" for number in range(4)]
    arrivals = [
        row(schema.Worker, time_ns=at(0), action="add", address=place, worker_id=place, memory_limit_bytes=LIMIT)
        for place in places
    ]
    samples = [
        told(2, 100 * MB, 700 * MB, 100 * MB, subject=places[0]), told(2, 800 * MB, 100 * MB, subject=places[1]),
        told(2, 400 * MB, 450 * MB, subject=places[2]), told(2, 400 * MB, 450 * MB, subject=places[3]),
    ]  # fmt: skip
    with run_of(tmp_path, [*arrivals, *(each for sample in samples for each in sample)]) as run:
        found = said(run)
        headline = memory(run).headline
    assert headline == "4 of 5 workers came near their limit, the fullest to 90% of 953.7 MiB."
    assert {(subject, certainty): statement.split(" (by")[0] for subject, certainty, statement in found} == {
        (places[0], "likely"): f"Worker {places[0]} reached 858.3 MiB, 90% of its limit; what filled it is unmanaged: "
        "temporaries of tasks, libraries, a leak",
        (places[1], "likely"): f"Worker {places[1]} reached 858.3 MiB, 90% of its limit; what filled it are results",
        (
            places[2],
            "likely",
        ): f"Worker {places[2]} (the fullest of 2 like it, of 5 workers) reached 810.6 MiB, 85% of its "
        "limit; results and unmanaged memory filled it together",
    }


def test_a_peak_between_samples_is_unmanaged_only_where_results_cannot_have_filled_it(tmp_path):
    """On A results of 100 MB were made meanwhile; what is on disk may have come back."""
    scheduler = [
        came(B, 0, 1, memory_limit_bytes=LIMIT), *told(2, 50 * MB, 50 * MB, spilled=100 * MB),
        *told(2, 50 * MB, 50 * MB, spilled=400 * MB, subject=B), *stored("x-0", 1, 2.5, 100 * MB),
    ]  # fmt: skip
    peak = [own(3, 950 * MB)]
    with made(tmp_path, [came(A, 0, 1, memory_limit_bytes=LIMIT), graph(), *scheduler], {A: peak, B: peak}) as run:
        found = {
            (subject, certainty): statement for subject, certainty, statement in said(run) if "reached" in statement
        }
    assert set(found) == {(A, "likely"), (B, "certain")}
    assert "what filled it is unmanaged" in found[A, "likely"]
    assert found[A, "likely"].endswith("(at most 238.4 MiB of it can have been results).")
    assert "it rose between samples, so what filled it is not known" in found[B, "certain"]


def test_time_paused_costs_what_no_task_used_of_it(tmp_path):
    by_scheduler, by_worker = ran("x-0", 0, 1.5, 3.0)
    scheduler = [*task("x-0"), *by_scheduler, status(2, "running", "paused"), status(6, "paused", "running")]
    with run_of(tmp_path, scheduler, by_worker, threads=2) as run:
        (found,) = memory(run).conclusions
    assert found.statement == f"1 worker paused for want of memory, 1 time, 4.00 s in all; longest {A}, 4.00 s."
    assert (found.certainty, found.thread_s) == ("certain", pytest.approx(4 * 2 - 1))


def test_a_pause_ends_with_its_worker(tmp_path):
    scheduler = [status(2, "running", "paused"), left(A, 5)]
    with run_of(tmp_path, scheduler) as run:
        assert [each["paused_s"] for each in worker_memory(run).to_pylist()] == [pytest.approx(3)]


def spill(seconds, key, nbytes, direction="spill"):
    return row(
        schema.Spill, time_ns=at(seconds), key=key, direction=direction, memory_bytes=nbytes, disk_bytes=nbytes // 2
    )


def test_what_went_to_disk_is_told_by_prefix_with_its_time(tmp_path):
    metric = {"context": "memory-monitor", "unit": "seconds"}
    worker = [
        spill(2, "x-0", 30 * MB), spill(3, "y-1", 10 * MB), spill(4, "x-0", 30 * MB, "unspill"),
        row(schema.FineMetric, time_ns=at(3), activity="disk-write", value=0.5, **metric),
        row(schema.FineMetric, time_ns=at(3), activity="compress", value=0.25, **metric),
        row(schema.FineMetric, time_ns=at(3), activity="thread-cpu", value=9.0, **metric),
    ]  # fmt: skip
    scheduler = [*stored("x-0", 1, 1.5, 30 * MB), *stored("y-1", 1, 1.7, 10 * MB), *told(2, 100 * MB)]
    with run_of(tmp_path, scheduler, worker) as run:
        spilled = [tuple(each.values())[:7] for each in spilled_results(run).to_pylist()]
        ((subject, certainty, statement),) = said(run)
        assert memory(run).conclusions[0].thread_s == 0.75
    assert spilled == [("x", A, 30 * MB, 15 * MB, 1, 30 * MB, 1), ("y", A, 10 * MB, 5 * MB, 1, None, 0)]
    assert (subject, certainty) == ("x", "certain")
    assert statement == (
        "38.1 MiB of results were written to disk for want of memory and 28.6 MiB read back, most of it (28.6 MiB) of "
        "prefix x; it held event loops for 750 ms."
    )


def test_a_few_bytes_on_disk_are_no_finding(tmp_path):
    with run_of(tmp_path, [*task("x-0"), *told(2, 100 * MB)], [spill(2, "x-0", 28)]) as run:
        answer = memory(run)
    assert (answer.conclusions, answer.headline) == ((), "The fullest worker reached 10% of its limit of 953.7 MiB.")


def test_results_are_held_from_stored_to_released(tmp_path):
    scheduler = [
        *stored("x-0", 1, 2, 400 * MB, gone=5), *stored("x-1", 2, 3, 100 * MB, gone=4), *stored("y-2", 5, 6, 300 * MB),
        *told(3, 450 * MB, 450 * MB),
    ]  # fmt: skip
    with run_of(tmp_path, scheduler) as run:
        held = {each["prefix"]: each for each in results_held(run).to_pylist()}
        over_time = [tuple(each.values()) for each in results_held_over_time(run, moments=20, prefixes=1).to_pylist()]
        largest = [
            (each["key"], each["nbytes"], each["is_held_at_end"]) for each in largest_results(run, 2).to_pylist()
        ]
        holder = [statement for subject, _, statement in said(run) if subject == "x"]
    names = ("result_count", "result_bytes", "held_at_peak_bytes", "run_peak_at_s", "peak_held_bytes", "held_mean_s")
    assert [held["x"][name] for name in names] == [2, 500 * MB, 500 * MB, 3.0, 500 * MB, 2.0]
    assert [held["y"][name] for name in names] == [1, 300 * MB, 0, 3.0, 300 * MB, 14.0]
    assert [row_[3] for row_ in over_time if row_[1] == "x"] == [400 * MB, 500 * MB, 400 * MB, 0, 0]
    assert [row_[3] for row_ in over_time if row_[2]] == [0, 0, 0, 0, 300 * MB]
    assert largest == [("x-0", 400 * MB, False), ("y-2", 300 * MB, True)]
    assert holder == ["When most results were held, 476.8 MiB at 3.0 s, 100% of them were of prefix x."]


def test_of_equal_peaks_the_first_is_told(tmp_path):
    samples = [*told(2, 300 * MB), *told(4, 100 * MB, 200 * MB), *told(3, 200 * MB, 100 * MB)]
    results = [
        *stored("x-0", 1, 2, 100 * MB, gone=3), *stored("x-1", 4, 5, 100 * MB, gone=6), *stored("y-2", 7, 8, 100 * MB, gone=9),
    ]  # fmt: skip
    with run_of(tmp_path, [*samples, *results]) as run:
        (worker,) = worker_memory(run).to_pylist()
        held = results_held(run).to_pylist()
    assert (worker["sampled_at_s"], worker["managed_bytes"], worker["unmanaged_bytes"]) == (2.0, 300 * MB, 0)
    assert [(each["prefix"], each["run_peak_at_s"], each["peak_at_s"]) for each in held] == [
        ("x", 2.0, 2.0),
        ("y", 2.0, 8.0),
    ]


def test_a_run_of_a_killed_scheduler_is_answered_to_its_end(tmp_path):
    scheduler = [*stored("x-0", 1, 2, 10 * MB), *told(2, 850 * MB, 50 * MB), status(2, "running", "paused")]
    with made(
        tmp_path, [came(A, 0, 1, memory_limit_bytes=LIMIT), graph(), *scheduler], {A: []}, ended=4.0, closed=False
    ) as run:
        paused = worker_memory(run)["paused_s"].to_pylist()
        found = [each.certainty for each in memory(run).conclusions]
    assert paused == [pytest.approx(2)]
    assert found == ["certain", "likely"]
