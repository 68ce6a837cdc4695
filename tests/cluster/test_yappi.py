"""Functions are counted exactly, per task prefix, and the workload does not notice."""

import json
import os
import pstats
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import recup
from recup.capture import threads
from recup.launch import run_program, wait_for_stragglers
from tests.cluster.recorded import assert_complete, losses, rows, spools, write_program
from tests.cluster.test_examples import EXAMPLE, RESULT, SMALL

TAKEN_OUT = "tasks that put another profiler into their thread, from where on their functions are missing"
FUNCTIONS = """
def known(x): return x + 1
def outer(x):
    for _ in range(3): known(x)
    return x
def falls(n): return n if n == 0 else falls(n - 1)
def breaks(x):
    known(x)
    raise ValueError(f"no {x}")
def leaves(x):
    secede()
    return known(x)
async def waits(x):
    import asyncio
    await asyncio.sleep(0)
    return known(x)
def asks(x):
    with worker_client() as client:
        return client.submit(known, x, pure=False).result()
class Adder:
    def add(self, x): return known(x)
def in_the_program(): return known(0)
"""


def record(tmp_path, body, yappi):
    """Run a program with these functions under Yappi; returns (run directory, what it wrote as JSON)."""
    script = write_program(tmp_path / "program.py", body)
    script.write_text(FUNCTIONS + script.read_text())
    answer = tmp_path / "answer.json"
    run, code = run_program([sys.executable, str(script), str(answer)], str(script), tmp_path / "runs", yappi=yappi)
    assert code == 0
    assert wait_for_stragglers(run) == []
    return run, json.loads(answer.read_text())


def calls(run, role="worker", **wanted):
    """Calls of the program's functions by (prefix, function), over all servers of a role."""
    found = Counter()
    for row in rows(run, role, "function_calls"):
        if row["path"] and row["path"].endswith("program.py") and all(row[n] == v for n, v in wanted.items()):
            found[row["prefix"], row["function"]] += row["call_count"]
    return dict(found)


EVERYTHING = """
import json
with local(threads_per_worker=2) as cluster, Client(cluster) as client:
    answers = [client.gather(client.map(outer, range(50)))]
    failed = client.submit(breaks, 7, retries=2)
    answers.append(str(failed.exception()))
    answers.append(client.submit(falls, 5).result())
    answers.append(client.gather(client.map(leaves, range(4))))
    answers.append(client.submit(waits, 1).result())
    answers.append(client.submit(asks, 2).result())
    adder = client.submit(Adder, actor=True).result()
    answers.append([adder.add(n).result() for n in range(5)])
    for _ in range(11): in_the_program()
    open(sys.argv[1], "w").write(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return record(tmp_path_factory.mktemp("yappi"), EVERYTHING, ("cpu", (), ("worker", "scheduler", "client")))


def test_results_and_errors_are_those_of_a_run_without(everything):
    assert everything[1] == [list(range(50)), "no 7", 0, [1, 2, 3, 4], 2, 3, [1, 2, 3, 4, 5]]


def test_calls_of_every_prefix_are_exact(everything):
    assert calls(everything[0], kind="task") == {
        ("outer", "outer"): 50,
        ("outer", "known"): 150,
        ("breaks", "breaks"): 3,
        ("breaks", "known"): 3,
        ("falls", "falls"): 6,
        ("leaves", "leaves"): 4,
        ("leaves", "known"): 4,
        ("asks", "asks"): 1,
        ("known", "known"): 1,
        ("Adder.add", "Adder.add"): 5,
        ("Adder.add", "known"): 5,
    }


def test_recursion_is_told_from_calls(everything):
    (row,) = [r for r in rows(everything[0], "worker", "function_calls") if r["function"] == "falls"]
    assert (row["call_count"], row["primitive_call_count"]) == (6, 1)


def test_coroutines_of_the_event_loop_stand_apart(everything):
    found = [r for r in rows(everything[0], "worker", "function_calls") if r["kind"] == "coroutine"]
    assert {r["prefix"] for r in found} == {None}
    names = Counter()
    for row in found:
        names[row["function"]] += row["call_count"]
    assert names["waits"] == 1
    assert names["Worker.execute"] > 50


def test_the_scheduler_and_the_program_itself_are_profiled_on_request(everything):
    run = everything[0]
    # Scheduler and client are in one process here: what is of neither's loop is written by one of them.
    mine = Counter(calls(run, "client", kind="other")) + Counter(calls(run, "scheduler", kind="other"))
    assert (mine[None, "in_the_program"], mine[None, "known"]) == (11, 11)
    assert "SchedulerState._transition" in {r["function"] for r in rows(run, "scheduler", "function_calls")}


def test_neither_recup_nor_yappi_is_in_the_statistics(everything):
    home = str(Path(recup.__file__).parent)
    for role in ("worker", "scheduler", "client"):
        paths = {r["path"] for r in rows(everything[0], role, "function_calls")} - {None}
        assert not {p for p in paths if p.startswith((home, "<recup")) or p.endswith("yappi.py")}
    in_tasks = {r["function"] for r in rows(everything[0], "worker", "function_calls") if r["prefix"] == "outer"}
    assert not {name for name in in_tasks if "pread" in name or "getrusage" in name}


def test_the_record_is_complete(everything):
    assert_complete(everything[0])


def test_other_tools_can_read_what_yappi_saved(everything):
    run = everything[0]
    saved = 0
    for directory in spools(run, "worker"):
        file = run / "foreign" / "yappi" / f"{directory.name.split('-', 1)[1]}.pstat"
        saved += sum(v[0] for (_, _, name), v in pstats.Stats(str(file)).stats.items() if name == "outer")
        text = file.with_suffix(".callgrind").read_text()
        assert "creator: yappi" in text
        assert "spawn_main" not in text
    assert saved == 50


def test_only_tasks_of_the_prefixes_asked_for_are_profiled(tmp_path):
    body = """
    import json
    with local(processes=False, threads_per_worker=2) as cluster, Client(cluster) as client:
        answers = [client.gather(client.map(each, range(20))) for each in (outer, leaves)]
        open(sys.argv[1], "w").write(json.dumps([answers, len(client.scheduler_info()["workers"])]))
    """
    run, answer = record(tmp_path, body, ("wall", ("out*",), ("worker",)))
    assert answer == [[list(range(20)), list(range(1, 21))], 2]
    assert calls(run) == {("outer", "outer"): 20, ("outer", "known"): 60}
    found = rows(run, "worker", "function_calls")
    assert {(r["clock"], r["kind"], r["prefix"]) for r in found} == {("wall", "task", "outer")}
    ran = {r["server"]: r for r in rows(run, "worker", "thread_counters") if r["key"].startswith("outer")}
    assert {r["server"] for r in found} == set(ran), "each worker of the process has the functions of its own tasks"
    assert_complete(run)


def test_a_killed_worker_leaves_what_its_tasks_did(tmp_path):
    body = """
    import json, pathlib
    import pyarrow as pa
    def counted():
        found = 0
        for file in pathlib.Path(os.environ["DASK_RECUP__RUN_DIRECTORY"]).glob("spool/worker-*/function_calls.arrows"):
            try:
                with open(file, "rb") as source, pa.ipc.open_stream(source) as stream:
                    for batch in stream:
                        found += sum(r["call_count"] for r in batch.to_pylist() if r["function"] == "known")
            except (OSError, pa.ArrowInvalid):
                pass  # it is being written
        return found
    with local(n_workers=1) as cluster, Client(cluster) as client:
        client.gather(client.map(outer, range(30)))
        (pid,) = client.run(os.getpid).values()
        begun = time.monotonic()
        while counted() < 90 and time.monotonic() - begun < 20: pass
        os.kill(pid, signal.SIGKILL)
        client.submit(outer, -1).result()
        open(sys.argv[1], "w").write(json.dumps(pid))
    """
    run, _ = record(tmp_path, body, ("cpu", ("*",), ("worker",)))
    assert calls(run) == {("outer", "outer"): 31, ("outer", "known"): 93}
    assert len(list((run / "foreign" / "yappi").glob("*.pstat"))) == 1, "the killed worker could not save its own"


def test_a_program_that_uses_yappi_itself_is_left_alone(tmp_path):
    body = """
    import json, yappi
    yappi.set_clock_type("wall")
    yappi.start(profile_threads=False)
    with local(processes=False, n_workers=1) as cluster, Client(cluster) as client:
        client.gather(client.map(outer, range(10)))
        in_the_program()
        yappi.stop()
        mine = {each.name: each.ncall for each in yappi.get_func_stats()}
        open(sys.argv[1], "w").write(json.dumps([mine["in_the_program"], mine.get("outer"), yappi.get_clock_type()]))
    """
    run, answer = record(tmp_path, body, ("cpu", (), ("worker",)))
    assert answer == [1, None, "wall"]
    assert rows(run, "worker", "function_calls") == []
    (directory,) = spools(run, "worker")
    assert losses(directory) == [
        ("not_captured", "function_calls", "the program uses Yappi itself: its statistics are left alone")
    ]


def test_a_program_that_begins_to_use_yappi_gets_it_as_if_recup_were_not_there(tmp_path):
    body = """
    import json, yappi
    with local(processes=False, n_workers=1) as cluster, Client(cluster) as client:
        answers = [sum(client.gather(client.map(outer, range(10))))]
        yappi.set_clock_type("wall")
        yappi.start(profile_threads=False)
        in_the_program()
        yappi.stop()
        answers += [each.ncall for each in yappi.get_func_stats() if each.name in ("in_the_program", "outer")]
        yappi.clear_stats()
        answers.append(sum(client.gather(client.map(outer, range(20, 30)))))
        open(sys.argv[1], "w").write(json.dumps(answers))
    """
    run, answer = record(tmp_path, body, ("cpu", (), ("worker",)))
    assert answer == [45, 1, 245]
    assert calls(run, kind="task") == {("outer", "outer"): 10, ("outer", "known"): 30}
    (directory,) = spools(run, "worker")
    assert losses(directory) == [("not_captured", "function_calls", "the program began to use Yappi itself")]


BESIDE = """
    import cProfile, json
    def profiles(x):
        with cProfile.Profile() as profile:
            outer(x)
        return sum(each.callcount for each in profile.getstats() if getattr(each.code, "co_name", "") == "known")
    def listens(x):
        seen = []
        sys.setprofile(lambda frame, event, arg: seen.append(event) if frame.f_code.co_name == "known" else None)
        outer(x)
        sys.setprofile(None)
        return len(seen)
    def stays(x):
        sys.setprofile(lambda frame, event, arg: None)
    def is_there(x):
        found = sys.getprofile() is not None
        sys.setprofile(None)
        return found
    with local(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        answers = []
        for function in (outer, profiles, outer, listens, outer, stays, is_there, outer):
            answers.append(client.submit(function, 3, pure=False).result())
        open(sys.argv[1], "w").write(json.dumps(answers))
    """


@pytest.mark.skipif(threads.thread_readings is None, reason="without a C compiler Yappi's hook cannot be seen")
def test_tasks_that_put_another_profiler_into_their_thread_are_counted_as_lost(tmp_path):
    run, answer = record(tmp_path, BESIDE, ("cpu", ("*",), ("worker",)))
    assert answer == [3, 3, 3, 6, 3, None, True, 3]
    assert {of: n for of, n in calls(run).items() if of[0] == "outer"} == {
        ("outer", "outer"): 4,
        ("outer", "known"): 12,
    }
    (directory,) = spools(run, "worker")
    assert losses(directory) == [
        ("not_captured", "function_calls", TAKEN_OUT),
        ("not_captured", "function_calls", "tasks in whose thread another profiler is"),
    ]
    counts = {each["detail"]: each["row_count"] for each in rows(run, "worker", "losses")}
    assert counts == {TAKEN_OUT: 3, "tasks in whose thread another profiler is": 1}


def test_a_task_that_begins_to_use_yappi_leaves_what_tasks_before_it_did(tmp_path):
    body = """
    import json
    def profiles(x):
        import yappi
        yappi.set_clock_type("wall")
        yappi.start()
        outer(x)
        yappi.stop()
        found = {each.name: each.ncall for each in yappi.get_func_stats() if each.name in ("outer", "known")}
        yappi.clear_stats()
        return found
    with local(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        answers = [client.submit(outer, n, pure=False).result() for n in range(20)]
        answers += [client.submit(profiles, 3).result(), client.submit(outer, 4).result()]
        open(sys.argv[1], "w").write(json.dumps(answers))
    """
    run, answer = record(tmp_path, body, ("cpu", ("*",), ("worker",)))
    assert answer == [*range(20), {"outer": 1, "known": 3}, 4]
    assert calls(run) == {("outer", "outer"): 20, ("outer", "known"): 60}
    (directory,) = spools(run, "worker")
    assert losses(directory) == [("not_captured", "function_calls", "the program began to use Yappi itself")]


def test_clients_of_tasks_that_end_while_others_run_change_no_count(tmp_path):
    body = """
    import json
    with local(n_workers=1, threads_per_worker=3) as cluster, Client(cluster) as client:
        answers = []
        for n in range(0, 12, 3):
            client.gather(client.map(leaves, range(n, n + 4), pure=False))
            answers += client.gather(client.map(asks, range(n, n + 3)))
        open(sys.argv[1], "w").write(json.dumps(answers))
    """
    run, answer = record(tmp_path, body, ("cpu", (), ("worker", "client")))
    assert answer == list(range(1, 13))
    assert calls(run, kind="task") == {
        ("asks", "asks"): 12,
        ("known", "known"): 12,
        ("leaves", "known"): 16,
        ("leaves", "leaves"): 16,
    }
    assert_complete(run)


# Of the clocks the command line only passes the name on; what is counted by CPU time is shown above.
@pytest.mark.parametrize("clock", ["wall", pytest.param("cpu", marks=pytest.mark.slow)])
def test_the_example_tells_where_its_time_went_by_either_clock(tmp_path, clock):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DASK_", "RECUP_", "SLURM_"))}
    environment = {**kept, "RECUP_ROOT": str(tmp_path / "runs"), "TMPDIR": str(tmp_path)}
    program = [str(EXAMPLE / "image_processing.py"), *SMALL, "--no-processes", "--workers", "1"]
    command = [sys.executable, "-m", "recup", "run", "--yappi", clock, "--yappi-prefix", "save_block", *program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.stdout == RESULT
    (manifest,) = tmp_path.glob("runs/*/run.json")
    with recup.open_run(manifest.parent) as run:
        query = "select clock, sum(call_count) from function_calls where function like '%save_block' group by all"
        assert run.sql(query).fetchall() == [(clock, 3)]
