"""Runs made to have one trouble each, recorded once per test session and shared by tests.

`PROGRAMS` holds the body of each program (see `recorded.HEADER` for what it may use); the
fixture `troubled` records one and gives its run directory.  Programs are short: a second or
two of work on one host.
"""

import pytest

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
            __import__('ctypes').PyDLL(None).usleep(1_300_000)  # PyDLL keeps the GIL
            return x
        with local() as cluster, Client(cluster) as client:
            wait(client.map(slow, range(12), t=0.05))
            wait(client.map(hold, range(4)))
            wait(client.map(slow, range(12, 24), t=0.05))
    """,
    "loop_blocked": """
        async def nap(x):
            time.sleep(1.3)
            return x
        with local() as cluster, Client(cluster) as client:
            wait(client.map(slow, range(12), t=0.05))
            wait(client.map(nap, range(4)))
            wait(client.map(slow, range(12, 24), t=0.05))
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
            wait(client.map(inc, range(3000)))
    """,
    "slow_start": """
        with local() as cluster, Client(cluster) as client:
            time.sleep(1.5)
            print(client.submit(add, *client.map(inc, range(50))).result())
    """,
    "straggler": """
        with local() as cluster, Client(cluster) as client:
            print(client.submit(add, *client.map(slow, range(30), [0.02] * 29 + [2.5])).result())
    """,
}
"""Program bodies by the name of the trouble."""


@pytest.fixture(scope="session")
def troubled(tmp_path_factory):
    """A function that gives the run directory of a trouble, recorded when first asked for."""
    runs = {}

    def recorded(name):
        if name not in runs:
            place = tmp_path_factory.mktemp(name)
            runs[name] = record(place, PROGRAMS[name].replace("os.getcwd()", repr(str(place))))[0]
        return runs[name]

    return recorded
