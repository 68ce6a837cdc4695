"""Which worker a nanny says has ended."""

import asyncio
import json
import types

import pytest
from distributed import Nanny, Scheduler
from distributed.core import Status

from recup.capture.nanny import RecupNanny
from recup.spool import Spool
from tests.unit.spooled import rows


@pytest.fixture
def nanny(tmp_path):
    """The attributes of a nanny that are used, and recup's plugin in it."""
    process = types.SimpleNamespace(status=Status.running)
    nanny = types.SimpleNamespace(id="Nanny-1", pid=11, worker_address="tcp://a:1", process=process)
    plugin = RecupNanny(str(tmp_path), "Scheduler-1")
    plugin._nanny, plugin._spool = nanny, Spool(tmp_path, "nanny", "Nanny-1")
    plugin._loop = types.SimpleNamespace(call_later=lambda *_: None)
    plugin._pid = plugin._reason = plugin._ended_address = None
    plugin._connected = (None, None)
    yield nanny, plugin
    plugin._spool.close()


def ends(plugin):
    return [(row["subject"], row["pid"], row["signal"]) for row in rows(plugin._spool, "process_ends")]


def test_a_worker_that_ends_before_it_has_connected_has_no_address_of_the_one_before(nanny):
    nanny, plugin = nanny
    plugin._note_pid()
    plugin._put_end(-9)
    nanny.pid, nanny.process.status = 12, Status.starting
    plugin._note_pid()
    plugin._put_end(-9)
    assert ends(plugin) == [("tcp://a:1", 11, 9), ("worker of Nanny-1", 12, 9)]


def test_a_worker_may_come_back_under_the_same_address(nanny):
    nanny, plugin = nanny
    plugin._note_pid()
    plugin._put_end(-9)
    nanny.pid = 12
    plugin._note_pid()
    plugin._put_end(-15)
    assert ends(plugin) == [("tcp://a:1", 11, 9), ("tcp://a:1", 12, 15)]


@pytest.mark.parametrize("runs", [["run", "run"], ["run", "other"]])
def test_a_nanny_that_is_given_the_plugin_twice_has_one_record_of_a_run_that_ends_in_order(tmp_path, runs):
    """As Dask does where a nanny starts while the plugin is registered; and again after it was taken out."""

    async def record():
        async with (
            Scheduler(port=0, dashboard_address=None) as scheduler,
            Nanny(scheduler.address, nthreads=1, dashboard_address=None) as nanny,
        ):
            for name in runs:
                await nanny.plugin_add(RecupNanny(str(tmp_path / name), scheduler.id), name="recup")
            await nanny.plugin_remove("recup")
            await nanny.plugin_add(RecupNanny(str(tmp_path / "again"), scheduler.id), name="recup")

    asyncio.run(record())
    for name in {*runs, "again"}:
        (status,) = [json.loads(path.read_text()) for path in tmp_path.glob(f"{name}/spool/nanny-*/status.json")]
        assert status["closed"]
