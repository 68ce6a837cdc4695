"""Every way to begin a recording, and what it leaves behind when it ends."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster, SchedulerPlugin, WorkerPlugin
from distributed.utils_test import cleanup, gen_cluster, loop, loop_in_thread  # noqa: F401

import recup
from tests.cluster.recorded import record, rows, spools, statuses, write_program


def inc(x):
    return x + 1


@pytest.fixture
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster


def recorded_keys(run):
    return {row["key"] for row in rows(run, "scheduler", "scheduler_transitions")}


def test_a_block_records_what_happens_in_it_and_nothing_else(cluster, tmp_path):
    with Client(cluster) as client:
        client.submit(inc, 1, key="before").result()
        with recup.record(client, root=tmp_path) as run:
            client.submit(inc, 2, key="inside").result()
        client.submit(inc, 3, key="after").result()
        assert "recup" not in cluster.scheduler.plugins
        assert all("recup" not in worker.plugins for worker in cluster.workers.values())
    assert {"inside"} <= recorded_keys(run.path) <= {"inside", "before"}
    assert all(status["closed"] for role in ("scheduler", "worker", "client") for status in statuses(run.path, role))
    assert len(rows(run.path, "client", "client_submissions")) == 1


def test_tasks_that_were_there_before_are_listed_and_their_past_is_said_to_be_missing(cluster, tmp_path):
    with Client(cluster) as client:
        future = client.submit(inc, 1, key="before")
        future.result()
        with recup.record(client, root=tmp_path) as run:
            pass
    (task,) = rows(run.path, "scheduler", "tasks")
    (submission,) = rows(run.path, "scheduler", "submissions")
    assert task["key"] == "before"
    assert (submission["client"], submission["stimulus_id"]) == (None, "present-before-recup")
    said = [(row["kind"], row["table"]) for row in rows(run.path, "scheduler", "losses")]
    assert said == [("not_captured", "scheduler_transitions")]
    assert [row["action"] for row in rows(run.path, "scheduler", "workers")][:2] == ["present", "present"]


def test_two_blocks_make_two_runs(cluster, tmp_path):
    with Client(cluster) as client:
        paths = []
        for number in range(2):
            with recup.record(client, root=tmp_path) as run:
                client.submit(inc, number, key=f"task{number}", pure=False).result()
            paths.append(run.path)
    assert paths[0] != paths[1]
    assert ["task0" in recorded_keys(path) for path in paths] == [True, False]
    assert [len(spools(path, "client")) for path in paths] == [1, 1]


def test_a_block_after_a_recorded_scheduler_ended_makes_a_run_of_its_own_where_it_is_told(tmp_path):
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with dask.config.set({"recup.root": str(tmp_path / "first")}):
        with LocalCluster(**options) as cluster, Client(cluster) as client:
            client.register_plugin(recup.RecupScheduler())
            client.submit(inc, 1).result()
        with (
            LocalCluster(**options) as cluster,
            Client(cluster) as client,
            recup.record(client, root=tmp_path / "second") as run,
        ):
            client.submit(inc, 2, key="later").result()
    assert run.path.parent == tmp_path / "second"
    assert recorded_keys(run.path) == {"later"}
    (first,) = (tmp_path / "first").iterdir()
    assert "later" not in recorded_keys(first)


def test_what_a_worker_did_before_recup_came_is_not_counted_as_done_since(cluster, tmp_path):
    with Client(cluster) as client:
        client.submit(sum, range(3_000_000), key="before").result()
        with recup.record(client, root=tmp_path) as run:
            client.submit(inc, 2, key="inside").result()
    assert {row["prefix"] for row in rows(run.path, "worker", "fine_metrics")} <= {"inside", None}
    for status in statuses(run.path, "worker"):
        counters = status["counters"]
        assert counters["transfers_outgoing_dask"] == counters["transfers_outgoing_recorded"]


@pytest.mark.parametrize("client", [None, "tcp://127.0.0.1:8786"])
def test_what_is_no_client_is_refused_in_words(client):
    with pytest.raises(TypeError, match=r"recup.record takes a distributed.Client, not (NoneType|str)"):
        recup.record(client)


def test_graphs_that_come_while_recup_is_being_plugged_in_are_recorded(cluster, tmp_path):
    scheduler = cluster.scheduler
    register = scheduler.register_worker_plugin
    with Client(cluster) as client, Client(cluster) as other:

        async def slow(**arguments):
            # As when workers take long to answer: the loop goes on meanwhile.
            await asyncio.get_running_loop().run_in_executor(None, other.submit(inc, 1, key="meanwhile").result)
            return await register(**arguments)

        scheduler.register_worker_plugin = slow
        try:
            with recup.record(client, root=tmp_path) as run:
                assert [name for name in scheduler.plugins if "recup" in name] == ["recup"]
        finally:
            scheduler.register_worker_plugin = register
    assert "meanwhile" in {row["key"] for row in rows(run.path, "scheduler", "tasks")}
    assert "meanwhile" in recorded_keys(run.path)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], config={"recup.root": None})
async def test_an_asynchronous_client_records_with_async_with(c, s, a):
    import tempfile

    with tempfile.TemporaryDirectory() as root:
        async with recup.record(c, root=root) as run:
            assert await c.submit(inc, 1, key="inside") == 2
        assert "inside" in recorded_keys(run.path)


def test_a_plugin_registered_by_hand_records_into_a_new_run(cluster, tmp_path):
    with Client(cluster) as client, dask.config.set({"recup.root": str(tmp_path)}):
        client.register_plugin(recup.RecupScheduler())
        client.submit(inc, 1, key="mine").result()
        assert len(cluster.scheduler.plugins["recup"]._spool.run_directory.parts) > 1
        run = cluster.scheduler.plugins["recup"]._spool.run_directory
        cluster.close()
    assert "mine" in recorded_keys(run)
    assert run.parent == tmp_path


def test_an_exception_in_the_block_passes_through(cluster, tmp_path):
    with Client(cluster) as client:
        with pytest.raises(ZeroDivisionError), recup.record(client, root=tmp_path) as run:
            1 / 0  # noqa: B018
        assert "recup" not in cluster.scheduler.plugins
        assert run.path.is_dir()


class Mine(SchedulerPlugin):
    count = 0

    def transition(self, *args, **kwargs):
        Mine.count += 1


class MineToo(WorkerPlugin):
    name = "mine-too"

    def setup(self, worker):
        worker.mine_too = True


def test_plugins_of_the_user_go_on_working(cluster, tmp_path):
    with Client(cluster) as client:
        client.register_plugin(Mine(), name="mine")
        client.register_plugin(MineToo())
        with recup.record(client, root=tmp_path):
            before = Mine.count
            client.submit(inc, 1, key="x").result()
            assert Mine.count > before
        assert all(worker.mine_too for worker in cluster.workers.values())
        assert "mine" in cluster.scheduler.plugins


def test_preloads_of_the_user_stay_and_come_first(tmp_path, monkeypatch, capfd):
    (tmp_path / "mine.py").write_text("def dask_setup(server):\n    print('mine', type(server).__name__, flush=True)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__PRELOAD", "['mine']")
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", "['mine']")
    with dask.config.set({"distributed.scheduler.preload": ["mine"]}):
        run, code = record(
            tmp_path, "with local(n_workers=1) as c, Client(c) as client: print(client.submit(inc, 1).result())"
        )
    assert code == 0
    assert set(capfd.readouterr().out.split("\n")) >= {"mine Scheduler", "mine Worker", "2"}
    assert rows(run, "worker", "receptions")


HIDE = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "recup":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
"""


def test_recording_survives_workers_that_cannot_import_recup(tmp_path):
    """A worker without recup joins the cluster; the scheduler's side is recorded, and says who is missing."""
    (tmp_path / "hide_recup.py").write_text(HIDE)
    program = """
        with dask.config.set({"distributed.worker.preload": ["hide_recup"]}), local(n_workers=1) as cluster:
            with Client(cluster) as client:
                print(client.submit(inc, 1).result())
    """
    script = write_program(tmp_path / "program.py", program)
    command = [sys.executable, "-m", "recup", "run", "--quiet", "--no-seal", "--root", "runs", str(script)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert spools(run, "worker") == []
    assert len(rows(run, "scheduler", "workers")) == 2


@pytest.mark.parametrize("name", ["recup.capture.scheduler", "recup.capture.client"])
def test_a_broken_installation_of_recup_does_not_end_the_block_that_is_recorded(tmp_path, name):
    program = f"""
        import recup
        with local(processes=False) as cluster, Client(cluster) as client:
            sys.modules["{name}"] = None  # importing it raises ImportError
            with recup.record(client, root="runs") as run:
                print(client.submit(inc, 1).result())
            print(run.path.is_dir())
    """
    script = write_program(tmp_path / "program.py", program)
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout.split()) == (0, ["2", "True"]), done.stderr


def test_a_run_names_its_command_and_how_it_ended(tmp_path):
    run, code = record(tmp_path, "sys.exit(3)")
    assert code == 3
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["exit_code"] == 3
    assert manifest["state"] == "ended"
    assert Path(manifest["command"][1]).name == "program.py"
