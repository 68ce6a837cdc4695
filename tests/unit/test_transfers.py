"""What moved between workers and what was stolen, on runs written for it."""

import pytest

from recup import schema
from recup.analyse.movement import (
    results_moved,
    results_moved_again,
    threads_idle_for_inputs,
    transfer_matrix,
    transfers,
    waits_for_inputs,
)
from recup.analyse.stealing import steals_by_prefix, stolen_again
from recup.store import open_run
from tests.unit.flow_runs import START_S, A, B, C, T, flow_run, moved, waited, write_little
from tests.unit.written_runs import at, row

MB = 1_000_000


def test_the_matrix_tells_bytes_hosts_and_bandwidth_and_overlap_counts_once(tmp_path):
    rows = [*moved(0, A, 2.0, 2.5, ["x-0"], 50 * MB), *moved(1, A, 2.25, 2.75, ["x-1"], 50 * MB)]
    served = row(
        schema.Transfer, time_ns=at(3), transfer=0, direction="outgoing", start_s=START_S + 2.9, stop_s=START_S + 3.0,
        nbytes=10, key_count=1,
    )  # fmt: skip
    tasks = [T("x-0", A, 1.0, 1.5), T("x-1", A, 1.0, 1.6), T("y-0", B, 3.0, 3.5, needs=("x-0", "x-1"))]
    with open_run(flow_run(tmp_path, tasks, workers={A: [served], B: rows}, hosts={A: "h1", B: "h2", C: "h1"})) as run:
        between, to_client = transfer_matrix(run).to_pylist()
        found = transfers(run)
    assert between == {
        "source_worker": A, "destination_worker": B, "is_same_host": False, "transfer_count": 2, "result_count": 2,
        "moved_bytes": 100 * MB, "busy_s": pytest.approx(0.75), "summed_s": pytest.approx(1.0),
        "measured_transfer_count": 2, "q10_bytes_per_s": pytest.approx(100 * MB),
        "median_bytes_per_s": pytest.approx(100 * MB), "q90_bytes_per_s": pytest.approx(100 * MB),
        "measured_bytes": 100 * MB, "measured_s": pytest.approx(1.0),
    }  # fmt: skip
    assert (to_client["destination_worker"], to_client["is_same_host"]) == (
        "no worker: a client or the scheduler",
        None,
    )
    assert found.headline == "95.4 MiB moved between workers in 2 transfers; nothing was stolen."
    assert found.conclusions == ()


def test_a_result_that_several_workers_fetch_has_moved_again(tmp_path):
    tasks = [T("x-0", A, 1.0, 1.5), *(T(f"y-{n}", w, 3.0, 3.5, needs=("x-0",)) for n, w in enumerate((B, C)))]
    rows = {B: [*moved(0, A, 2.0, 2.5, ["x-0"]), *moved(1, A, 2.6, 2.7, ["x-0"])], C: moved(0, A, 2.0, 2.5, ["x-0"])}
    with open_run(flow_run(tmp_path, tasks, workers=rows)) as run:
        (result,) = results_moved(run).to_pylist()
        (again,) = results_moved_again(run).to_pylist()
    assert result == {
        "prefix": "x", "result_count": 1, "move_count": 3, "moved_bytes": 3 * MB, "repeated_result_count": 1,
        "moved_again_bytes": 2 * MB, "repeated_destination_count": 1, "most_destination_count": 2, "largest_bytes": MB,
    }  # fmt: skip
    assert again == {
        "key": "x-0", "prefix": "x", "nbytes": MB, "move_count": 3, "destination_count": 2, "moved_bytes": 3 * MB,
        "moved_again_bytes": 2 * MB,
    }  # fmt: skip


def fetching(count=10, wait=0.5):
    """Tasks of B one after the other, each of which waits for an input; nothing else runs there."""
    tasks = [T("x-0", A, 1.0, 1.5)]
    rows = []
    for number in range(count):
        begun = 2.0 + number
        tasks.append(T(f"y-{number}", B, begun + wait, begun + wait + 0.2, needs=("x-0",)))
        rows += [
            *waited(f"y-{number}", number + 1, begun, begun + wait),
            *moved(number, A, begun, begun + wait, ["x-0"]),
        ]
    return tasks, rows


def test_threads_without_a_task_while_inputs_are_on_their_way_are_what_transfers_cost(tmp_path):
    tasks, rows = fetching()
    with open_run(flow_run(tmp_path, tasks, workers={B: rows})) as run:
        (wait,) = waits_for_inputs(run).to_pylist()
        (idle,) = threads_idle_for_inputs(run).to_pylist()
        conclusion = transfers(run).conclusions[0]
    assert wait == {
        "prefix": "y", "attempt_count": 10, "wait_s": pytest.approx(5.0), "median_wait_s": pytest.approx(0.5),
        "longest_wait_s": pytest.approx(0.5), "compute_s": pytest.approx(2.0), "longer_than_compute_task_count": 10,
        "stolen_task_count": 0,
    }  # fmt: skip
    assert idle == {
        "worker": B, "thread_count": 1, "waiting_s": pytest.approx(5.0), "idle_thread_s": pytest.approx(5.0),
        "idle_for_stolen_thread_s": pytest.approx(0.0, abs=1e-9),
    }  # fmt: skip
    assert (conclusion.subject, conclusion.certainty, conclusion.thread_s) == ("y", "likely", pytest.approx(5.0))


def test_waits_behind_a_busy_thread_cost_nothing(tmp_path):
    tasks, rows = fetching()
    tasks.append(T("z-0", B, 1.9, 20.0))
    with open_run(flow_run(tmp_path, tasks, workers={B: rows})) as run:
        (idle,) = threads_idle_for_inputs(run).to_pylist()
        found = transfers(run)
    assert (idle["waiting_s"], idle["idle_thread_s"]) == (pytest.approx(5.0), 0.0)
    assert not [each for each in found.conclusions if each.thread_s]


def test_a_link_slower_than_the_others_of_its_kind_is_a_possibility(tmp_path):
    tasks = [T("x-0", A, 1.0, 1.5), T("y-0", B, 90.0, 90.5)]
    rows = {worker: [] for worker in (A, B, C)}
    for source in (A, B, C):
        for target in (A, B, C):
            if source != target:
                seconds = 2.0 if (source, target) == (A, C) else 0.2
                for number in range(5):
                    begun, transfer = 2 + number * 3, len(rows[target]) // 2
                    rows[target] += moved(transfer, source, begun, begun + seconds, ["x-0"], 20 * MB)
    with open_run(flow_run(tmp_path, tasks, workers=rows)) as run:
        (link,) = [each for each in transfers(run).conclusions if "slower" in each.statement]
    assert (link.subject, link.certainty, link.thread_s) == (f"{A} to {C}", "possible", None)
    assert link.evidence["excess_s"] == pytest.approx(9.0)


def stolen(count, *, times=1):
    """Tasks stolen from A by B, each `times` times, whose inputs follow from A while B has nothing to do."""
    tasks, rows, steals = [T(f"x-{n}", A, 0.9, 1.0) for n in range(count)], [], []
    for number in range(count):
        begun, key = 2.0 + number * 0.5, f"y-{number}"
        tasks.append(T(key, B, begun + 0.4, begun + 0.5, needs=(f"x-{number}",), is_stolen=True))
        run_id = count + number
        rows += [
            *waited(key, run_id, begun, begun + 0.39),
            *moved(number, A, begun + 0.01, begun + 0.39, [f"x-{number}"]),
        ]
        for turn in range(times):
            told = {"key": key, "victim": A, "thief": B}
            moment = begun - 0.01 * (times - turn)
            last = run_id if turn == times - 1 else 1000 + turn * 100 + number
            steals += [
                row(schema.Steal, time_ns=at(moment - 0.005), decision="request", cost_s=0.1, **told),
                row(schema.Steal, time_ns=at(moment), decision="confirm", run_id=last, stimulus_id="steal-1", **told),
            ]
    return tasks, rows, steals


def test_inputs_that_followed_stolen_tasks_are_what_locality_cost(tmp_path):
    tasks, rows, steals = stolen(12)
    with open_run(flow_run(tmp_path, tasks, workers={B: rows}, scheduler=steals)) as run:
        (theft,) = steals_by_prefix(run).to_pylist()
        (conclusion,) = transfers(run).conclusions
    assert theft == {
        "prefix": "y", "task_count": 12, "request_count": 12, "steal_count": 12, "stolen_task_count": 12,
        "steals_per_task": 1.0, "fetched_bytes": 12 * MB, "fetched_from_victim_bytes": 12 * MB,
        "wait_s": pytest.approx(4.68, abs=0.001), "compute_s": pytest.approx(1.2),
    }  # fmt: skip
    # Told once, as the cost of stealing, not again as that of transfers.
    assert (conclusion.subject, conclusion.certainty, conclusion.thread_s) == (
        "y",
        "likely",
        pytest.approx(4.68, abs=0.001),
    )


def test_tasks_that_go_round_are_named(tmp_path):
    tasks, rows, steals = stolen(12, times=3)
    with open_run(flow_run(tmp_path, tasks, workers={B: rows}, scheduler=steals)) as run:
        again = stolen_again(run).to_pylist()
        found = [each for each in transfers(run).conclusions if "went round" in each.statement]
    assert (len(again), again[0]["steal_count"], again[0]["prefix"]) == (12, 3, "y")
    (conclusion,) = found
    assert (conclusion.subject, conclusion.certainty) == ("y", "certain")


@pytest.mark.parametrize("kind", ["empty", "killed", "ended"])
def test_runs_with_little_or_nothing_in_them_are_answered(tmp_path, kind):
    with open_run(write_little(tmp_path, kind)) as run:
        found = transfers(run)
    assert found.conclusions == ()
    assert found.headline == (
        "No result moved between workers, as far as recorded; nothing was stolen."
        if kind == "empty"
        else "1000 B moved between workers in 1 transfer; nothing was stolen."
    )


def test_workers_without_a_record_are_said(tmp_path):
    tasks = [T("x-0", A, 1.0, 1.5)]
    with open_run(flow_run(tmp_path, tasks)) as run:
        assert transfers(run).basis.endswith("2 of 3 workers left no record.")
