"""What a worker logs of its transfers becomes rows, and the log stays Dask's own."""

import types
from collections import deque

import pytest

from recup.capture import transfers
from recup.capture.transfers import tap_transfers
from recup.spool import Spool
from tests.unit.spooled import rows


@pytest.fixture(params=["compiled", "python"], autouse=True)
def form(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr(transfers, "compiled", None)
    elif transfers.compiled is None:
        pytest.skip("recup was built without a C compiler")


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path, "worker", "w")
    yield spool
    spool.close()


@pytest.fixture
def worker():
    """The three attributes of a worker that are used."""
    return types.SimpleNamespace(
        transfer_incoming_log=deque([{"old": 1}], maxlen=2), transfer_outgoing_log=deque(maxlen=2), scheduler_delay=0.25
    )


def entry(keys, who="tcp://a:1", **more):
    return {"start": 1.0, "stop": 2.5, "who": who, "keys": keys, "total": 30, "duration": 1.5, **more}


def test_each_entry_is_a_row_and_one_per_result(spool, worker):
    counts, _ = tap_transfers(spool, worker)
    worker.transfer_incoming_log.append(entry({"x": 10, ("y", 1): 20}))
    worker.transfer_outgoing_log.append(entry({"x": None}, who=None, compressed=7))
    worker.transfer_outgoing_log.append(entry({}, who=b"odd"))
    assert [(row.pop("time_ns") > 0, *row.values()) for row in rows(spool, "transfers")] == [
        (True, 0, "incoming", "tcp://a:1", 1.0, 2.5, 30, None, 2, 0.25),
        (True, 1, "outgoing", None, 1.0, 2.5, 30, 7, 1, 0.25),
        (True, 2, "outgoing", "b'odd'", 1.0, 2.5, 30, None, 0, 0.25),
    ]
    assert [(row["transfer"], row["nbytes"]) for row in rows(spool, "transfer_keys")] == [(0, 10), (0, 20), (1, None)]
    assert (counts.incoming_count, counts.outgoing_count) == (1, 2)


def test_the_log_is_dasks_own_and_comes_back(spool, worker):
    original = worker.transfer_incoming_log
    _, undo = tap_transfers(spool, worker)
    first, second = entry({"x": 1}), entry({"y": 2})
    worker.transfer_incoming_log.append(first)
    worker.transfer_incoming_log.append(second)
    assert (list(worker.transfer_incoming_log), worker.transfer_incoming_log.maxlen) == ([first, second], 2)
    undo()
    assert worker.transfer_incoming_log is original
    assert list(original) == [first, second]
    original.append(entry({"z": 3}))
    assert len(rows(spool, "transfers")) == 2


def test_what_cannot_be_read_is_counted_and_ends_after_a_hundred_times(spool, worker):
    counts, _ = tap_transfers(spool, worker)
    for _ in range(101):
        worker.transfer_incoming_log.append({"keys": {}})
    worker.transfer_incoming_log.append(entry({"x": 1}))
    assert counts.incoming_count == 0
    said = {(row["kind"], row["table"]): row["row_count"] for row in rows(spool, "losses")}
    assert said == {("hook_failed", "transfers"): 100, ("hook_disabled", "transfers"): None}


def test_a_dask_without_the_log_is_a_loss(spool):
    tap_transfers(spool, types.SimpleNamespace(transfer_incoming_log=deque(), scheduler_delay=0.0))
    assert [(row["kind"], row["table"], row["detail"]) for row in rows(spool, "losses")] == [
        ("not_captured", "transfers", "this Dask has no worker.transfer_outgoing_log")
    ]
