"""Which worker a nanny says has ended."""

import types

import pytest
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
