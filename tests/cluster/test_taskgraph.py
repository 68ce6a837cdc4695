"""The graph as run, read from a real scheduler."""

import pytest
from distributed import Client, LocalCluster, wait

from recup.capture import taskgraph
from recup.spool import Spool
from tests.cluster.recorded import read_stream


@pytest.fixture(scope="module")
def scheduler():
    """A scheduler that has 2,500 tasks."""
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        futures = client.map(str, range(2_500))
        wait(futures)
        yield cluster.scheduler


@pytest.fixture
def spool(tmp_path, monkeypatch):
    """A spool whose rows are written when that is asked for only."""
    monkeypatch.setattr(taskgraph, "_WAITING_TASKS", 1_000)
    monkeypatch.setattr("recup.spool.FLUSH_INTERVAL_S", 60.0)
    spool = Spool(tmp_path, "scheduler", "s")
    assert spool.flush()
    yield spool
    spool.close()


def read(spool, scheduler):
    return taskgraph.graph_reader(spool, scheduler)(0, list(scheduler.tasks), True)[0]


def test_rows_of_a_large_graph_are_written_while_it_is_read(scheduler, spool):
    assert read(spool, scheduler) == 2_500
    assert len(read_stream(spool.directory / "tasks.arrows")) == 2_000
    assert spool.flush()
    assert len(read_stream(spool.directory / "tasks.arrows")) == 2_500


def test_a_disk_that_hangs_is_waited_for_once_per_graph(scheduler, spool, monkeypatch):
    waited = []
    monkeypatch.setattr(spool, "flush", lambda timeout_s=5.0: waited.append(timeout_s))
    assert read(spool, scheduler) == 2_500
    assert waited == [taskgraph._PATIENCE_AT_A_TIME_S]
