"""The timer on an event loop: what it takes at every tick, and what it leaves out when that is dear."""

import asyncio
import time
from collections import Counter

import pytest

from recup.capture import sampling
from recup.capture.sampling import Sampler
from recup.spool import Spool
from tests.unit.spooled import rows

INTERVAL_S = 0.02


@pytest.fixture
def spool(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "INTERVAL_S", INTERVAL_S)
    spool = Spool(tmp_path, "worker", "w")
    yield spool
    spool.close()


def ticked(spool, read, until, during=lambda: None):
    """Let a sampler of `read` go, do `during` on its loop, go on until `until(metric counts)`; returns its rows."""

    async def run():
        sampler = Sampler(spool, read)
        sampler.start()
        await asyncio.sleep(0)
        during()
        while not until(Counter(each["metric"] for each in rows(spool, "samples"))):
            await asyncio.sleep(INTERVAL_S / 4)
        assert sampler.stop()
        assert not sampler.stop()

    asyncio.run(run())
    return rows(spool, "samples")


def use_cpu(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_the_state_is_sampled_at_every_tick_and_no_lag_is_told_where_no_timer_was_due(spool, monkeypatch):
    monkeypatch.setattr(sampling, "_SHARE", 1.0)  # ticks here come fifty times as often: no machine is fast enough
    found = ticked(spool, lambda put: put("state", None, 1.0), lambda counts: counts["event_loop_lag_s"] >= 3)
    counts = Counter(each["metric"] for each in found)
    assert counts["state"] == counts["event_loop_lag_s"] + 2  # the first and the last are nobody's tick
    assert len(rows(spool, "clock_samples")) == counts["state"]


def test_a_dear_sample_is_taken_rarely_while_clocks_and_lag_go_on(spool):
    def read(put):
        put("state", None, 1.0)
        use_cpu(0.05)  # at half a percent of a core: the next in ten seconds

    found = ticked(spool, read, lambda counts: counts["event_loop_lag_s"] >= 5)
    counts = Counter(each["metric"] for each in found)
    assert counts["state"] == 2
    assert len(rows(spool, "clock_samples")) == counts["event_loop_lag_s"] + 2


def test_a_stall_right_after_a_dear_sample_is_seen(spool):
    def read(put):
        use_cpu(0.05)

    found = ticked(spool, read, lambda counts: counts["event_loop_lag_s"] >= 2, during=lambda: use_cpu(0.2))
    lags = [each["value"] for each in found if each["metric"] == "event_loop_lag_s"]
    assert lags[0] >= 0.2 - INTERVAL_S
