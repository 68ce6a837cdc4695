"""What a task's thread used is counted around the task, and the task does not notice."""

import subprocess
import sys
from collections import Counter

import pytest

from tests.cluster.recorded import assert_complete, record, rows, write_program

SITUATIONS = """
import asyncio, traceback
from distributed import Reschedule

async def sleeping(x):
    await asyncio.sleep(0.01)
    return x

def seceding(x):
    secede()
    return x

def nested(x):
    with worker_client() as client:
        return client.submit(inc, x, pure=False).result()

def rescheduled(path):
    if not os.path.exists(path):
        open(path, "w").close()
        raise Reschedule()
    return 1

def flaky(path):
    if not os.path.exists(path):
        open(path, "w").close()
        raise KeyError("once")
    return 2

class Odd(Exception):
    def __reduce__(self):
        raise TypeError("cannot be pickled")

def odd(x):
    raise Odd(x)

def spun(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

def copied(path, size):
    with open(path, "wb", buffering=0) as file:
        for _ in range(10):
            file.write(bytes(size))
    with open(path, "rb", buffering=0) as file:
        return len(file.read(10 * size))

class Tally:
    n = 0
    def add(self, x):
        self.n += x
        return self.n
    def bad(self):
        try:
            fail(9)
        except ValueError as reason:
            raise KeyError("of an actor") from reason

def text_of(future):
    try:
        future.result()
    except Exception as error:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))

here = sys.argv[1]
dask.config.set({"distributed.worker.daemon": False})  # they may have a process pool
with local(n_workers=1, threads_per_worker=2) as cluster, Client(cluster) as client:
    print(client.gather([
        client.submit(inc, 1, key="plain"),
        client.submit(sleeping, 2, key="async"),
        client.submit(seceding, 3, key="seceding"),
        client.submit(nested, 4, key="nested"),
        client.submit(rescheduled, here + "/a", key="rescheduled"),
        client.submit(flaky, here + "/b", key="flaky", retries=1),
        client.submit(spun, 0.2, key="spun"),
        client.submit(copied, here + "/c", 1000, key="copied"),
    ]))
    failing = client.submit(fail, 5, key="failing")
    wait(failing)
    print(text_of(failing))
    strange = client.submit(odd, 6, key="odd")
    wait(strange)
    print(type(strange.exception()).__name__)
    tally = client.submit(Tally, actor=True, key="tally").result()
    print([tally.add(1).result() for _ in range(3)])
    print(text_of(tally.bad()))
    def pools(dask_worker):
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
        import multiprocessing
        dask_worker.executors["mine"] = ThreadPoolExecutor(1, thread_name_prefix="mine")
        dask_worker.executors["processes"] = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    client.run(pools)
    with dask.annotate(executor="mine"):
        print(client.submit(inc, 7, key="pooled").result())
    with dask.annotate(executor="processes"):
        print(client.submit(abs, -8, key="elsewhere").result())
    client.run(lambda dask_worker: dask_worker.executors.pop("processes").shutdown())
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The run of all situations, and what the program printed with and without recup."""
    printed = []
    for name in ("bare", "recorded"):
        path = tmp_path_factory.mktemp(name)
        script, run = write_program(path / "program.py", SITUATIONS), None
        command = [sys.executable, str(script), str(path)]
        if name == "recorded":
            command = [
                sys.executable,
                "-m",
                "recup",
                "run",
                "--quiet",
                "--no-seal",
                "--root",
                str(path / "runs"),
                *command[1:],
            ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.replace(str(path), "."))
        run = next((path / "runs").iterdir()) if name == "recorded" else None
    return run, printed


@pytest.fixture(scope="module")
def counted(recorded):
    """Rows of thread_counters by key."""
    found = {}
    for row in rows(recorded[0], "worker", "thread_counters"):
        found.setdefault(row["key"], []).append(row)
    return found


def test_results_errors_and_tracebacks_are_those_of_the_program_without_recup(recorded):
    bare, with_recup = recorded[1]
    assert with_recup == bare
    assert "ValueError: no 5" in bare
    assert "KeyError: 'of an actor'" in bare


def test_no_transition_is_lost_and_no_hook_failed(recorded):
    assert_complete(recorded[0])


def test_every_attempt_has_one_row_whatever_becomes_of_it(counted):
    outcomes = {key: [(row["kind"], row["outcome"]) for row in found] for key, found in counted.items()}
    nested = [key for key in outcomes if key.startswith("inc-")]
    assert [outcomes.pop(key) for key in nested] == [[("task", "returned")]]
    assert outcomes == {
        "plain": [("task", "returned")],
        "async": [("coroutine", "returned")],
        "seceding": [("task", "returned")],
        "nested": [("task", "returned")],
        "rescheduled": [("task", "Reschedule"), ("task", "returned")],
        "flaky": [("task", "KeyError"), ("task", "returned")],
        "spun": [("task", "returned")],
        "copied": [("task", "returned")],
        "failing": [("task", "ValueError")],
        "odd": [("task", "Odd")],
        "tally": [("task", "returned")],
        "tally.add": [("actor", "returned")] * 3,
        "tally.bad": [("actor", "KeyError")],
        "pooled": [("task", "returned")],
    }


def test_attempts_are_those_of_the_other_tables(recorded, counted):
    ended = Counter((row["key"], row["run_id"]) for row in rows(recorded[0], "worker", "results"))
    mine = Counter((row["key"], row["run_id"]) for found in counted.values() for row in found if row["kind"] != "actor")
    assert mine == Counter({attempt: n for attempt, n in ended.items() if attempt[0] != "elsewhere"})


def test_bytes_and_calls_are_those_of_the_thread_alone(counted):
    (row,) = counted["copied"]
    assert (row["written_chars_bytes"], row["read_chars_bytes"]) == (10_000, 10_000)
    assert (row["write_call_count"], row["read_call_count"]) == (10, 1)
    (row,) = counted["plain"]
    assert (row["written_chars_bytes"], row["read_chars_bytes"], row["read_call_count"]) == (0, 0, 0)


def test_cpu_time_is_that_of_the_thread(counted):
    (row,) = counted["spun"]
    assert 0.2e9 <= row["cpu_ns"] <= 0.25e9
    assert row["user_ns"] + row["system_ns"] == pytest.approx(row["cpu_ns"], abs=0.02e9)  # the kernel's last ticks
    assert row["wall_ns"] >= 0.2e9
    assert row["queue_wait_ns"] >= 0


def test_a_coroutine_has_wall_time_and_no_counters(counted):
    (row,) = counted["async"]
    assert row["wall_ns"] >= 0.01e9
    assert (row["cpu_ns"], row["read_chars_bytes"], row["minor_fault_count"]) == (None, None, None)


def test_every_thread_is_named_once_though_its_ident_comes_again(recorded, counted):
    threads = rows(recorded[0], "worker", "threads")
    assert len({row["native_id"] for row in threads}) == len(threads)
    ran = {row["thread"] for found in counted.values() for row in found if row["kind"] != "coroutine"}
    assert ran <= {row["thread"] for row in threads}
    (pooled,) = (row for row in threads if row["name"] == "mine_0")
    assert pooled["thread"] == counted["pooled"][0]["thread"]


def test_cpu_time_agrees_with_dasks_own_digests(tmp_path):
    run, code = record(
        tmp_path,
        """
        def spun(x):
            end = time.thread_time() + 0.0015  # less than a tick of the kernel
            while time.thread_time() < end:
                pass
        with local() as cluster, Client(cluster) as client:
            client.gather(client.map(spun, range(400)))
        """,
    )
    assert code == 0
    mine = sum(row["cpu_ns"] for row in rows(run, "worker", "thread_counters")) / 1e9
    dask = sum(
        row["value"]
        for row in rows(run, "worker", "fine_metrics")
        if (row["context"], row["prefix"], row["activity"]) == ("execute", "spun", "thread-cpu")
    )
    assert mine == pytest.approx(dask, rel=0.02, abs=400 * 0.25e-3)  # Dask counts what surrounds a task too
