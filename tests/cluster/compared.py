"""One program recorded well and with one trouble at a time, to be compared.

The code is the same in all; its argument names the trouble.  Each holds some seconds of
startup, which differ from run to run, and about a second of work.
"""

import contextlib
import sys

import pytest

from recup.capture.darshan_logs import collect_logs
from recup.compare.measures import measure
from recup.ingest.darshan import ingest_foreign
from recup.launch import run_program, wait_for_stragglers
from recup.store import open_run
from tests.cluster.recorded import write_program

PROGRAM = """
    import ctypes
    from distributed import Event
    trouble, place = sys.argv[1], os.path.dirname(os.path.abspath(sys.argv[0]))
    def load(i, trouble):
        time.sleep(0.01)
        return bytes(2_000_000)
    def work(x, i, trouble):
        is_slow = trouble == "prefix" or (trouble == "worker" and get_worker().name == 0)
        time.sleep(0.06 if is_slow else 0.02)
        mark = os.path.join(place, "died")
        if trouble == "death" and i == 20 and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return len(x)
    def save(x, i, trouble):
        # A disk that lets a write go only when it is done stands for one that is slow.
        sync = os.O_DSYNC if trouble == "disk" else 0
        file = os.open(os.path.join(place, f"saved-{i}"), os.O_WRONLY | os.O_CREAT | sync)
        for _ in range(32):
            os.write(file, bytes(16384))
            if trouble == "disk":
                os.fsync(file)
        os.close(file)
        return x
    def pulse(i, trouble):
        # Of a library loaded so, functions keep the GIL, as do some extensions.
        ctypes.PyDLL(None).usleep(1_300_000 if trouble == "loop" else 1000)
    def settle(i):
        Event("churn is there").wait() if i < 2 else time.sleep(0.001)
    def churn(x, i):
        time.sleep(0.01)
        return len(x)
    limit = "64MiB" if trouble == "memory" else "2GiB"
    config = {"distributed.worker.memory." + name: False for name in ("spill", "pause", "terminate")}
    config["distributed.scheduler.work-stealing-interval"] = "10ms"
    with dask.config.set(config), local(memory_limit=limit) as cluster, Client(cluster) as client:
        loaded = client.map(load, range(40), trouble=trouble, priority=1)
        worked = client.map(work, loaded, range(40), trouble=trouble)
        wait([*client.map(save, worked, range(40), trouble=trouble), *loaded])
        client.wait_for_workers(2)
        workers = sorted(client.scheduler_info()["workers"])
        wait([client.submit(pulse, i, trouble=trouble, workers=[workers[i]]) for i in range(2)])
        # Of a prefix that Dask does not know it expects half a second a task, and sends others elsewhere.
        first = workers[:1] if trouble == "steals" else workers
        last = workers[1:] if trouble == "steals" else workers
        data = client.scatter([bytes([i]) * 300_000 for i in range(120)], workers=first)
        settled = [client.submit(settle, i, workers=[last[i % len(last)]]) for i in range(20)]
        churned = client.map(churn, data, range(120))
        Event("churn is there").set()
        print(client.submit(add, *churned).result())
        wait(settled)
"""


HOLD_LOOPS = ("loop", "memory")
"""Troubles in which event loops stand still by what the program does: one blocks them, of one they write to disk."""


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    """A function that gives the opened run of a trouble, or of a repeat, recorded when first asked for.

    It stays open, with the views it has made, as most are compared several times.  Where event loops stood still
    though nothing in the program holds them, the machine has troubled it, and a comparison would rightly say so:
    such a run is recorded anew, twice at most.
    """
    runs, place = {}, tmp_path_factory.mktemp("compared")
    script = write_program(place / "program.py", PROGRAM)

    def record(trouble, darshan):
        (place / "died").unlink(missing_ok=True)
        line = [sys.executable, str(script), trouble]
        with contextlib.chdir(place):
            run, code = run_program(line, str(script), place / "runs", darshan=darshan)
        assert wait_for_stragglers(run) == []
        assert code == 0
        if darshan is not None:
            assert collect_logs(run) == []
            ingest_foreign(run)
        return open_run(run)

    def recorded(trouble, repeat=0, darshan=None):
        wanted = (trouble, repeat, darshan)
        if wanted not in runs:
            runs[wanted] = record(trouble, darshan)
            for _ in range(2):
                if trouble in HOLD_LOOPS or not measure(runs[wanted]).stalls["stall_s"]:
                    break
                runs[wanted].close()
                runs[wanted] = record(trouble, darshan)
        return runs[wanted]

    yield recorded
    for each in runs.values():
        each.close()
