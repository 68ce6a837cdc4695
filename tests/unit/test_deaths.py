"""Deaths of workers: what ended them, what ran then, and whom Dask blames; and what is no death."""

import json

import pytest

from recup import schema
from recup.analyse.death_causes import cause_of
from recup.analyse.deaths import blamed_tasks, deaths, tasks_at_deaths, worker_deaths
from recup.store import open_run
from tests.unit.scheduled import WA, A, B, S, came, graph, left, made, moved, nothing, ran, task
from tests.unit.spooled import edit_status, write
from tests.unit.written_runs import at, row

LIMIT = 1_000_000_000
GONE = "handle-worker-cleanup-1"


def end(seconds, address=A, **values):
    """What a nanny saw of the end of its worker."""
    how = "signalled" if values.get("signal") else "exited"
    return row(schema.ProcessEnd, time_ns=at(seconds), subject=address, role="worker", pid=11, how=how, **values)


def memory(seconds, value, subject=None, metric="process_memory_bytes"):
    return row(schema.Sample, time_ns=at(seconds), metric=metric, subject=subject, value=float(value))


def event(seconds, topic, **payload):
    return row(
        schema.Event, time_ns=at(seconds), topic=topic, action=payload.get("action"), payload=json.dumps(payload)
    )


def executing(seconds, key, run_id):
    return [
        schema.Reception(at(seconds), key, run_id, 0, 0, 0),
        schema.WorkerTransition(at(seconds), key, run_id, "ready", "executing", None, "compute-task"),
    ]


def received(seconds, key, run_id):
    return [schema.Reception(at(seconds), key, run_id, 0, 0, 0)]


def assigned(seconds, key, run_id, *, gone=5.0, stimulus=GONE, worker=A, blamed=False):
    """An attempt that the scheduler sent and lost with its worker; Dask blames it or not."""
    return [
        moved(seconds, key, "waiting", "processing", "s", worker, run_id),
        moved(gone, key, "processing", "erred" if blamed else "released", stimulus, worker, run_id),
    ]


def dead(
    tmp_path, *, scheduler=(), worker=(), nanny=(), threads=1, last_sign=4.5, removed=5.0, limit=LIMIT, later=True
):
    """A run whose worker at A left at `removed`, opened; its own record ends at `last_sign`."""
    removal = [] if removed is None else [left(A, removed, GONE)]
    beyond = [moved(9, "z-0", "released", "waiting")] if later else []
    arrival = came(A, 0, threads, memory_limit_bytes=limit, pid=11, name="0")
    run = made(tmp_path, [arrival, graph(), *task("x-0"), *task("y-0"), *removal, *scheduler, *beyond], {A: worker})
    (spool,) = run.path.glob(f"spool/worker-{WA}")
    # Its number is that of this process, which began at another time.
    edit_status(spool, time_ns=at(last_sign), closed=False, start_ticks=0)
    if nanny:
        about = row(schema.Process, time_ns=at(0), role="nanny", scheduler_id=S, host_id="host", pid=1)
        write(run.path, "nanny", "Nanny-a", [about, *nanny])
    run.close()
    return open_run(run.path)


def verdicts(run):
    return [(each["verdict"], each["certainty"]) for each in worker_deaths(run).to_pylist()]


# ---------------------------------------------------------------- what ended it


def test_a_nanny_that_killed_for_memory_is_certain(tmp_path):
    told = event(4.9, "worker-restart-memory", worker=A, pid=11, rss=960_000_000)
    with dead(tmp_path, scheduler=[told], nanny=[end(5, signal=15)], worker=[memory(4, 700_000_000)]) as run:
        (row,) = worker_deaths(run).to_pylist()
        said = deaths(run).conclusions[0]
    assert (row["verdict"], row["certainty"], row["how"]) == (
        "memory: its nanny killed it", "certain", "signal 15 (SIGTERM)"
    )  # fmt: skip
    names = (
        "died_at_s",
        "last_bytes",
        "last_before_s",
        "peak_bytes",
        "terminated_bytes",
        "limit_bytes",
        "record_gap_s",
    )
    assert [row[name] for name in names] == [
        5.0, 700_000_000, pytest.approx(1), 960_000_000, 960_000_000, LIMIT, pytest.approx(0.5)
    ]  # fmt: skip
    assert said.statement == (
        f"Worker {A} on a host not told died at 5.0 s of signal 15 (SIGTERM): memory: its nanny killed it, at 915.5 MiB of "
        "953.7 MiB allowed; no task was on it."
    )


def cause(**known):
    nothing_known = dict.fromkeys(
        ("signal", "exit_code", "is_memory_kill", "is_heartbeat_missed", "is_alive_after", "last_bytes",
         "scheduler_last_bytes", "cgroup_limit_bytes", "limit_bytes", "host_bytes", "host_run_bytes")
    )  # fmt: skip
    found = cause_of({**nothing_known, **known})
    return found.verdict, found.certainty


@pytest.mark.parametrize(
    ("known", "verdict"),
    [
        ({"signal": 9}, ("killed from outside, or by the kernel", "possible")),
        ({"signal": 11}, ("segmentation fault", "certain")),
        ({"signal": 6}, ("crash by SIGABRT", "certain")),
        ({"signal": 15}, ("ended from outside by SIGTERM", "likely")),
        ({"signal": 250}, ("ended from outside by signal 250", "likely")),
        ({"exit_code": 7}, ("its process ended itself with code 7", "certain")),
        ({"exit_code": 0}, ("its process ended itself with code 0", "certain")),
        ({"is_heartbeat_missed": True, "signal": 9}, ("no heartbeat: the scheduler gave it up", "certain")),
        ({"is_memory_kill": True, "signal": 15}, ("memory: its nanny killed it", "certain")),
        ({"is_alive_after": True}, ("its connection broke, the process lived on", "likely")),
        ({}, ("gone without a word: process or network", "possible")),
    ],
)
def test_signal_exit_code_and_what_was_said_tell_how_it_ended(known, verdict):
    assert cause(**known) == verdict


@pytest.mark.parametrize(
    ("known", "full"),
    [
        ({"last_bytes": 85, "limit_bytes": 100}, "at 85% of its memory limit"),
        ({"last_bytes": 10, "scheduler_last_bytes": 90, "limit_bytes": 100}, "at 90% of its memory limit"),
        (
            {"last_bytes": 85, "limit_bytes": 1000, "cgroup_limit_bytes": 100},
            "at 85% of the memory its control group allows",
        ),
        (
            {"last_bytes": 1, "host_run_bytes": 95, "host_bytes": 100},
            "this run's processes held 95% of the host's memory",
        ),
        ({"last_bytes": 79, "limit_bytes": 100, "host_run_bytes": 89, "host_bytes": 100}, None),
        ({"limit_bytes": 100}, None),
    ],
)
def test_a_kill_is_likely_for_memory_only_where_something_was_nearly_full(known, full):
    verdict = f"memory: killed while {full}" if full else "killed from outside, or by the kernel"
    assert cause(signal=9, **known) == (verdict, "likely" if full else "possible")
    assert cause(signal=11, **known) == ("segmentation fault", "certain")


def test_the_log_of_a_nanny_tells_of_memory_too(tmp_path):
    text = f"Worker {A} (pid=11) exceeded 95% memory budget. Restarting..."
    log = row(schema.Log, time_ns=at(4.9), level="WARNING", logger="distributed.nanny", message=text)
    with dead(tmp_path, nanny=[log, end(5, signal=15)]) as run:
        assert verdicts(run) == [("memory: its nanny killed it", "certain")]


def test_memory_of_all_processes_on_the_host_is_summed(tmp_path):
    host = row(schema.Host, host_id="host", hostname="node1", memory_bytes=LIMIT)
    scheduler = [host, memory(4, 550_000_000)]
    with dead(tmp_path, nanny=[end(5, signal=9)], worker=[memory(4, 400_000_000)], scheduler=scheduler) as run:
        (row_,) = worker_deaths(run).to_pylist()
    assert (row_["host"], row_["host_run_bytes"], row_["host_bytes"]) == ("node1", 950_000_000, LIMIT)


def test_the_peak_of_the_process_that_spawned_it_is_not_its_own(tmp_path):
    inherited = [memory(seconds, 990_000_000, metric="process_peak_memory_bytes") for seconds in (1, 2, 3)]
    with dead(tmp_path, nanny=[end(5, signal=9)], worker=[*inherited, memory(4, 100_000_000)]) as run:
        assert worker_deaths(run)["peak_bytes"].to_pylist() == [100_000_000]


def test_missed_heartbeats_are_a_death_though_it_closed_when_asked(tmp_path):
    told = event(4.8, "scheduler", action="worker-ttl-timed-out", workers=[A], ttl=300)
    closing = event(4.9, A, action="closing-worker", reason="check-worker-ttl-1")
    nanny = [end(5, signal=9, reason="check-worker-ttl-1")]
    with dead(tmp_path, scheduler=[told, closing], nanny=nanny) as run:
        assert verdicts(run) == [("no heartbeat: the scheduler gave it up", "certain")]


def test_a_process_that_lived_on_lost_its_connection(tmp_path):
    with dead(tmp_path, last_sign=9) as run:
        assert verdicts(run) == [("its connection broke, the process lived on", "likely")]


def test_the_time_without_a_worker_in_its_place_is_what_it_cost(tmp_path):
    back = came(B, 7, 2, name="0")
    with dead(tmp_path, scheduler=[back], nanny=[end(5, signal=11)], threads=2) as run:
        assert [each.thread_s for each in deaths(run).conclusions] == [pytest.approx(4)]


def sign(seconds):
    """What the scheduler samples each second, whether it has anything to do or not."""
    return row(schema.ClockSample, time_ns=at(seconds), monotonic_ns=1)


def test_an_idle_worker_whose_record_was_cut_off_died_if_the_scheduler_lived_on(tmp_path):
    with dead(tmp_path, scheduler=[sign(9.5)], later=False) as run:
        assert verdicts(run) == [("gone without a word: process or network", "possible")]


@pytest.mark.parametrize("last_s", [5.5, 6.9], ids=["at once", "within two seconds"])
def test_an_idle_worker_that_left_as_the_scheduler_ended_did_not_die(tmp_path, last_s):
    with dead(tmp_path, scheduler=[sign(last_s)], later=False) as run:
        assert verdicts(run) == []


def test_an_idle_worker_whose_record_ended_in_order_did_not_die(tmp_path):
    with dead(tmp_path, scheduler=[sign(9.5)], later=False) as run:
        path = run.path
    (spool,) = path.glob(f"spool/worker-{WA}")
    edit_status(spool, closed=True)
    with open_run(path) as run:
        assert verdicts(run) == []


# ---------------------------------------------------------------- what is no death


def test_an_end_that_was_meant_is_no_death(tmp_path):
    def life(number, removed=5.0, stimulus=None, **values):
        address = f"tcp://10.0.1.{number}:4000"
        known = {"address": address, "worker_id": f"Worker-{number}", "thread_count": 1}
        arrival = row(schema.Worker, time_ns=at(0), action="add", **known)
        gone = row(
            schema.Worker, time_ns=at(removed or 0), action="remove", stimulus_id=stimulus or f"handle-worker-cleanup-{number}", **known
        )  # fmt: skip
        return [arrival, gone][: 2 if removed else 1], address

    lives = [life(number) for number in range(5)] + [
        life(5, stimulus="retire-workers-1"), life(6, removed=9.5), life(7, removed=None)
    ]  # fmt: skip
    place = {number: address for number, (_, address) in enumerate(lives)}
    rows = [each for some, _ in lives for each in some]
    said = event(4.9, place[3], action="closing-worker", reason="worker-close")
    retired = event(5.1, "all", action="retire-workers", workers={})
    run = made(tmp_path, [*rows, said, retired, moved(9.9, "z-0", "released", "waiting")])
    about = row(schema.Process, time_ns=at(0), role="nanny", scheduler_id=S, host_id="host", pid=1)
    nanny = [
        end(5, place[0], exit_code=0, reason="nanny-close"),
        end(5, place[1], signal=9, reason="nanny-close"),
        end(5, place[2], exit_code=0, reason="client-restart-1"),
    ]
    write(run.path, "nanny", "Nanny-a", [about, *nanny])
    own = row(schema.ProcessEnd, time_ns=at(4.9), subject="Worker-4", role="worker", how="closed")
    write(run.path, "worker", "Worker-4", [own])
    run.close()
    with open_run(run.path) as again:
        answer = deaths(again)
        assert worker_deaths(again).to_pylist() == []
    assert (answer.headline, answer.conclusions) == ("No worker is known to have died before its time.", ())


def test_a_run_without_any_record_has_no_deaths(tmp_path):
    with nothing(tmp_path) as run:
        answer = deaths(run)
    assert (answer.headline, answer.conclusions) == ("No worker is known to have died before its time.", ())
    assert [each.rows.num_rows for each in answer.tables] == [0, 0, 0]


def test_a_run_whose_scheduler_was_killed_tells_what_the_nanny_saw(tmp_path):
    begun = moved(1, "x-0", "waiting", "processing", "s", A, 0)
    nanny = [end(5, signal=9)]
    with dead(
        tmp_path, removed=None, later=False, scheduler=[begun], worker=executing(1, "x-0", 0), nanny=nanny
    ) as run:
        assert verdicts(run) == [("killed from outside, or by the kernel", "possible")]
        assert [(each["key"], each["state"]) for each in tasks_at_deaths(run).to_pylist()] == [("x-0", "executing")]


# ---------------------------------------------------------------- what ran, and blame


def states(run):
    return {each["key"]: each["state"] for each in tasks_at_deaths(run).to_pylist()}


def test_tasks_behind_one_that_holds_the_only_thread_had_not_begun(tmp_path):
    scheduler = [*assigned(1, "x-0", 0), *assigned(1, "y-0", 1, blamed=True)]
    worker = [*executing(1.5, "x-0", 0), *received(1.5, "y-0", 1)]
    with dead(tmp_path, scheduler=scheduler, worker=worker, nanny=[end(5, signal=9)]) as run:
        assert states(run) == {"x-0": "executing", "y-0": "not begun"}
        (blamed,) = blamed_tasks(run).to_pylist()
        said = [each for each in deaths(run).conclusions if each.subject == "y"]
    assert (blamed["key"], blamed["verdict"], blamed["certainty"], blamed["others"]) == (
        "y-0", "not to blame", "likely", "x"
    )  # fmt: skip
    assert said[0].statement == (
        "Dask blames task y-0: not to blame. It had not begun or had ended at 1 of 1 death; running instead: x."
    )


def test_with_a_thread_that_may_be_free_it_may_have_run(tmp_path):
    scheduler = [*assigned(1, "x-0", 0), *assigned(1, "y-0", 1, blamed=True)]
    worker = [*executing(1.5, "x-0", 0), *received(1.5, "y-0", 1)]
    with dead(tmp_path, scheduler=scheduler, worker=worker, threads=2) as run:
        assert states(run) == {"x-0": "executing", "y-0": "unknown"}
        assert [(each["verdict"], each["certainty"]) for each in blamed_tasks(run).to_pylist()] == [
            ("not known", "possible")
        ]


def test_what_ran_as_long_as_others_of_its_prefix_may_have_ended(tmp_path):
    by_scheduler, _ = ran("x-9", 9, 0.5, 1.0, worker=B)
    scheduler = [*task("x-9"), *by_scheduler, *assigned(1, "x-0", 0), *assigned(1, "y-0", 1, blamed=True)]
    worker = [*executing(1.5, "x-0", 0), *received(1.5, "y-0", 1)]
    with dead(tmp_path, scheduler=scheduler, worker=worker) as run:
        assert states(run) == {"x-0": "executing", "y-0": "unknown"}


def test_a_task_that_ran_at_the_death_is_likely_to_blame(tmp_path):
    scheduler = [*assigned(1, "x-0", 0), *assigned(1, "y-0", 1, blamed=True)]
    worker = [*executing(1.5, "y-0", 1), *received(1.5, "x-0", 0)]
    with dead(tmp_path, scheduler=scheduler, worker=worker) as run:
        assert [(each["key"], each["verdict"], each["certainty"]) for each in blamed_tasks(run).to_pylist()] == [
            ("y-0", "there at every death", "likely")
        ]
        assert tasks_at_deaths(run).to_pylist()[0]["ran_s"] == pytest.approx(3.5)


def test_the_only_task_on_a_worker_without_a_record_is_named_as_such(tmp_path):
    with dead(tmp_path, scheduler=assigned(1, "x-0", 0, blamed=True), last_sign=0.5) as run:
        assert states(run) == {"x-0": "only task there"}
        assert "the only task on it, running or about to: x" in " ".join(
            each.statement for each in deaths(run).conclusions
        )


def test_a_task_that_seceded_holds_no_thread(tmp_path):
    scheduler = [*assigned(1, "x-0", 0), *assigned(1, "y-0", 1)]
    secession = schema.WorkerTransition(at(2), "x-0", 0, "executing", "long-running", None, "secede")
    worker = [*executing(1.5, "x-0", 0), secession, *received(1.5, "y-0", 1)]
    with dead(tmp_path, scheduler=scheduler, worker=worker) as run:
        assert states(run) == {"x-0": "executing", "y-0": "unknown"}


def test_a_prefix_that_ran_at_every_death_is_named(tmp_path):
    again = "handle-worker-cleanup-2"
    second = [came(B, 1, 1, pid=12), left(B, 8, again)]
    tasks = [*assigned(1, "x-0", 0), *task("x-1"), *assigned(6, "x-1", 1, gone=8.0, stimulus=again, worker=B)]
    run = made(
        tmp_path, [came(A, 0, 1), graph(), *task("x-0"), left(A, 5, GONE), *second, *tasks],
        {A: executing(1.5, "x-0", 0), B: executing(6.5, "x-1", 1)},
    )  # fmt: skip
    with run:
        said = [each.statement for each in deaths(run).conclusions if each.subject == "x"]
    assert said == ["Tasks of prefix x were running, or the only ones there, at all 2 deaths."]
