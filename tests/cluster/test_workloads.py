"""Whatever a workload does, every transition Dask made is in the record."""

import textwrap

import pytest

from tests.cluster.recorded import assert_complete, record, rows, spools

ON_ONE_CLUSTER = {
    "plain": """
        print(client.submit(add, *client.map(inc, range(200))).result())
    """,
    "fail_and_retry": """
        futures = client.map(fail, range(5), retries=2)
        wait(futures)
        print([f.status for f in futures])
    """,
    "cancel": """
        futures = client.map(slow, range(100))
        futures[0].result()
        client.cancel(futures[:60])
        print(sum(f.result() for f in futures[60:]))
    """,
    "actors": """
        class Counter:
            n = 0
            def add(self, x):
                self.n += x
                return self.n
        counter = client.submit(Counter, actor=True).result()
        print([counter.add(x).result() for x in range(20)][-1])
    """,
    "p2p_shuffle": """
        import pandas as pd, dask.dataframe as dd
        frame = dd.from_pandas(pd.DataFrame({"a": range(200), "b": range(200)}), npartitions=6)
        with dask.config.set({"dataframe.shuffle.method": "p2p"}):
            print(len(frame.shuffle("b").compute()))
    """,
    "secede": """
        def seceding(x):
            secede()
            time.sleep(0.05)
            rejoin()
            return x
        print(sum(client.gather(client.map(seceding, range(10)))))
    """,
    "worker_clients": """
        def outer(x):
            with worker_client() as inner:
                return sum(inner.gather(inner.map(inc, range(x, x + 5))))
        print(sum(client.gather(client.map(outer, range(4)))))
    """,
    "several_clients": """
        with Client(cluster) as two:
            print(client.submit(inc, 1, key="of-one").result() + two.submit(inc, 2, key="of-two").result())
    """,
    "strange_keys": """
        class Opaque:
            def __repr__(self): raise RuntimeError("no repr")
            __str__ = __repr__
        class Refuses(Exception):
            def __repr__(self): raise RuntimeError("no repr")
            def __reduce__(self): raise RuntimeError("no pickle")
        def raises(): raise Refuses()
        def opaque(x): return Opaque()
        keys = ["plain", ("x", 1), ("x", (2, "y")), 7, "quo'te\\"s", "new\\nline", "ünï", "k" * 10240]
        graph = {key: (inc, 1) for key in keys}
        print(sum(client.get(graph, keys)))
        with dask.annotate(note=object(), tags={"a", "b"}):
            try:
                print(dask.delayed(inc)(1).compute())
            except TypeError as reason:
                print("refused", type(reason).__name__)
        future = client.submit(opaque, Opaque(), pure=False)
        wait(future)
        failing = client.submit(raises, key="raises")
        wait(failing)
        print(failing.status)
    """,
}
"""Bodies that run one after the other on one cluster, each with a client of its own."""

WORKLOADS = {
    "one_cluster": "with local() as cluster:\n"
    + "".join(
        f"    def run_{name}(client):\n{textwrap.indent(textwrap.dedent(body), ' ' * 8)}\n"
        f"    with Client(cluster) as client:\n        run_{name}(client)\n"
        for name, body in ON_ONE_CLUSTER.items()
    ),
    "workers_that_come_and_go": """
        from distributed import Event
        def hold(): Event("two workers").wait()
        dask.config.set({"distributed.scheduler.worker-saturation": "inf"})
        with local(n_workers=1) as cluster:
            with Client(cluster) as client:  # one steals from the other
                held = client.submit(hold, priority=1)
                futures = client.map(slow, range(40), t=0.1)
                cluster.scale(2)
                client.wait_for_workers(2)
                Event("two workers").set()
                print(sum(client.gather(futures)))
            with Client(cluster) as client:
                futures = client.map(slow, range(40))
                cluster.scale(3)
                client.wait_for_workers(3)
                futures[20].result()
                cluster.scale(1)
                print(sum(client.gather(futures)))
            with Client(cluster) as client:
                while len(client.scheduler_info()["workers"]) > 1:
                    time.sleep(0.01)
                print(client.submit(inc, 1).result())
                client.restart()
                print(client.submit(inc, 2).result())
    """,
    "spill": """
        def big(n): return os.urandom(8_000_000)
        with local(memory_limit="400MB") as cluster, Client(cluster) as client:
            with dask.config.set({}):
                futures = client.map(big, range(60), pure=False)
                wait(futures)
                print(sum(client.gather(client.map(len, futures))))
    """,
    "several_clusters_in_one_process": """
        import asyncio
        for _ in range(2):
            with local(n_workers=1) as cluster, Client(cluster) as client:
                print(sum(client.gather(client.map(inc, range(20)))))
        with local(processes=False) as cluster, Client(cluster) as client:
            print(client.submit(add, *client.map(inc, range(200))).result())
        async def main():
            async with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, asynchronous=True) as cluster:
                async with Client(cluster, asynchronous=True) as client:
                    print(sum(await client.gather(client.map(inc, range(20)))))
        asyncio.run(main())
    """,
}
"""Programs, each recorded into a run of its own."""


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_transition_dask_counted_is_recorded(name, tmp_path):
    run, code = record(tmp_path, WORKLOADS[name])
    assert code == 0
    assert_complete(run)
    CHECKS.get(name, lambda run: None)(run)


def retried(run):
    failed, erred = (
        [row for row in rows(run, role, "errors") if row["key"].startswith("fail-")] for role in ("worker", "scheduler")
    )
    assert len({(row["key"], row["run_id"]) for row in failed}) == 15
    assert len(erred) == 5
    assert {row["exception_text"] for row in failed} == {f"ValueError('no {n}')" for n in range(5)}


def stolen(run):
    confirmed = [row for row in rows(run, "scheduler", "steals") if row["decision"] == "confirm"]
    assert confirmed
    received = {(row["key"], row["run_id"]) for row in rows(run, "worker", "receptions")}
    left = {row["address"]: row["time_ns"] for row in rows(run, "scheduler", "workers") if row["action"] == "remove"}
    # The scheduler may let a thief have a task that is about to leave, and to which it is never sent.
    assert [
        row
        for row in confirmed
        if (row["key"], row["run_id"]) not in received
        and not 0 <= left.get(row["thief"], 0) - row["time_ns"] < 1_000_000_000
    ] == []


def restarted(run):
    assert len(spools(run, "worker")) == 4  # up to three, and the last one anew
    actions = [row["action"] for row in rows(run, "scheduler", "events") if row["topic"] == "recup"]
    assert actions == ["recording", "restart", "ended"]


def of_changing_workers(run):
    stolen(run)
    restarted(run)


def spilled(run):
    big = [row for row in rows(run, "worker", "spills") if row["key"].startswith("big")]
    sizes = {(row["direction"], row["memory_bytes"], (row["disk_bytes"] or 0) > 8_000_000) for row in big}
    assert sizes == {("spill", 8_000_000, True), ("unspill", 8_000_000, False)}


def from_tasks(run):
    submitted = {row["submitting_key"] for row in rows(run, "client", "client_submissions")} - {None}
    assert len(submitted) == 4
    assert all(key.startswith("outer-") for key in submitted)


def of_several_clients(run):
    submitted = {row["first_key"]: row["server"] for row in rows(run, "client", "client_submissions")}
    assert submitted["of-one"] != submitted["of-two"]


def of_several_clusters(run):
    assert len(spools(run, "scheduler")) == 4


def strange(run):
    keys = {row["key"] for row in rows(run, "scheduler", "tasks")}
    assert {"plain", "('x', 1)", "('x', (2, 'y'))", "7", "quo'te\"s", "new\nline", "ünï", "k" * 10240} <= keys


def on_one_cluster(run):
    for check in (retried, from_tasks, of_several_clients, strange):
        check(run)


CHECKS = {
    "one_cluster": on_one_cluster,
    "workers_that_come_and_go": of_changing_workers,
    "spill": spilled,
    "several_clusters_in_one_process": of_several_clusters,
}
