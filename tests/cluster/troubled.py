"""Runs made to have one trouble each, recorded once per test session and shared by tests.

`PROGRAMS` holds the body of each program (see `recorded.HEADER` for what it may use); the
fixture `troubled` records one and opens it.  Programs are short: a second or
two of work on one host.
"""

import pytest

from recup.store import open_run
from tests.cluster.recorded import record

PROGRAMS = {
    "calm": """
        with local() as cluster, Client(cluster) as client:
            first = client.map(slow, range(40), t=0.02)
            print(client.submit(add, *client.map(inc, first)).result())
    """,
    "worker_killed": """
        def die_once(x, path):
            if not os.path.exists(path):
                open(path, "w").close()
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGKILL)
            return x
        with local() as cluster, Client(cluster) as client:
            kept = client.map(slow, range(8), t=0.05)
            wait(kept)
            print(client.submit(die_once, 7, os.path.join(os.getcwd(), "died")).result())
            print(client.submit(add, *kept).result())
    """,
    "gil_held": """
        def hold(x):
            __import__('ctypes').PyDLL(None).usleep(1_800_000)  # PyDLL keeps the GIL
            return x
        with local() as cluster, Client(cluster) as client:
            wait(client.map(slow, range(80), t=0.05))
            wait(client.map(hold, range(2)))
            wait(client.map(slow, range(80, 160), t=0.05))
    """,
    "loop_blocked": """
        async def nap(x):
            time.sleep(1.8)
            return x
        with local() as cluster, Client(cluster) as client:
            wait(client.map(slow, range(80), t=0.05))
            wait(client.map(nap, range(2)))
            wait(client.map(slow, range(80, 160), t=0.05))
    """,
    "no_such_resource": """
        with local() as cluster, Client(cluster) as client:
            done = client.map(slow, range(8), t=0.05)
            wait(done)
            held = client.submit(slow, 99, resources={"GPU": 1})
            rest = client.map(add, done, [held] * 8)
            time.sleep(3)
            os.kill(os.getpid(), signal.SIGKILL)
    """,
    "tiny_tasks": """
        with local() as cluster, Client(cluster) as client:
            time.sleep(1.5)  # a slow start besides
            wait(client.map(inc, range(1500)))
    """,
    "slow_worker": """
        def work(x, t=0.03):
            time.sleep(t * (2.5 if get_worker().name == 0 else 1))
            return x
        with local(n_workers=3) as cluster, Client(cluster) as client:
            for _ in range(2):
                print(len(client.gather(client.map(work, range(80), pure=False))))
    """,
    "small_io": """
        def write_small(n, place):
            path = os.path.join(place, f"small-{n}.dat")
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_SYNC)
            for _ in range(120):
                os.write(descriptor, bytes(512))
            os.close(descriptor)
            return path
        def read_again(path):
            total = 0
            for _ in range(4):
                with open(path, "rb", buffering=0) as file:
                    while part := file.read(1024):
                        total += len(part)
            return total
        place = os.getcwd()
        with local() as cluster, Client(cluster) as client:
            print(sum(client.gather(client.map(read_again, client.map(write_small, range(16), place=place)))))
    """,
    "stealing": """
        def block(n):
            return bytes(3_000_000)
        def uneven(n, block):
            time.sleep(0.2 if n % 12 == 0 else 0.04)
            return n
        with local(n_workers=3) as cluster, Client(cluster) as client:
            first = next(iter(client.scheduler_info()["workers"]))
            blocks = client.map(block, range(24), workers=[first])
            wait(blocks)
            print(len(client.gather([client.submit(uneven, n, blocks[n % 24]) for n in range(96)])))
    """,
    "overproduced": """
        def load(n):
            time.sleep(0.005)
            return bytes(2_000_000)
        def use(data, gate):
            return len(data)
        with dask.config.set({"distributed.scheduler.worker-saturation": "inf"}):
            with local(memory_limit="700MB") as cluster, Client(cluster) as client:
                load, use, gate = dask.delayed(load), dask.delayed(use), dask.delayed(slow)(0, t=1)
                print(sum(dask.compute(*[use(load(n), gate) for n in range(100)])))
    """,
    "one_chain": """
        with local() as cluster, Client(cluster) as client:
            x = client.submit(slow, 0, t=0.01)
            for _ in range(10):
                x = client.submit(slow, x, t=0.25, pure=False)
            print(x.result())
    """,
    "one_worker_asked": """
        with local() as cluster, Client(cluster) as client:
            only = min(client.scheduler_info()["workers"])
            wait(client.map(slow, range(24), t=0.12, workers=[only]))
    """,
    "memory_killed": """
        def grow(x, step=30_000_000):
            held = []
            while True:
                held.append(b"1" * step)
                time.sleep(0.05)
        with dask.config.set({"distributed.scheduler.allowed-failures": 0}), local(memory_limit="500MB") as cluster, Client(cluster) as client:
            kept = client.map(slow, range(4), t=0.1)
            wait(kept)
            wait(client.submit(grow, 1, key="grow-1"))
            print(sum(client.gather(kept)))
    """,
}
"""Program bodies by the name of the trouble."""


@pytest.fixture(scope="session")
def troubled(tmp_path_factory):
    """A function that gives the opened run of a trouble, recorded when first asked for.

    It stays open, with the views it has made, as several questions are asked of most.
    """
    runs = {}

    def recorded(name):
        if name not in runs:
            place = tmp_path_factory.mktemp(name)
            runs[name] = open_run(record(place, PROGRAMS[name].replace("os.getcwd()", repr(str(place))))[0])
        return runs[name]

    yield recorded
    for each in runs.values():
        each.close()
