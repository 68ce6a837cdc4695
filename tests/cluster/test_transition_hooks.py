"""The compiled hooks record what those in Python do, of the same transitions of a real cluster."""

import sys
import time

import pytest
from distributed import Client, LocalCluster, Reschedule, SchedulerPlugin, WorkerPlugin, get_worker, wait

from recup.capture import transitions
from recup.spool import Spool
from tests.cluster.recorded import read_stream

pytestmark = pytest.mark.skipif(transitions.compiled is None, reason="recup was built without a C compiler")

COMPILED = transitions.compiled
KEYS = ("key", "blamed_key")
TABLES = ("scheduler_transitions", "worker_transitions", "results", "startstops", "errors", "receptions")


def both(monkeypatch, make):
    """Make a hook in each form; returns one that calls both, and what tells their counts."""
    hooks = []
    for module in (COMPILED, None):
        monkeypatch.setattr(transitions, "compiled", module)
        hooks.append(make("compiled" if module else "python"))

    def transition(*arguments, **named):
        for hook, _ in hooks:
            hook(*arguments, **named)

    return transition, [count for _, count in hooks]


class BothOfScheduler(SchedulerPlugin):
    name = "both"

    def __init__(self, transition):
        self.transition = transition


class BothOfWorker(WorkerPlugin):
    name = "both"

    def __init__(self, transition):
        self.transition = transition


def moments(directory, table):
    return [row["time_ns"] for row in read_stream(directory / f"{table}.arrows")]


def content(directory, table):
    """Rows of a table but for the moment at which a hook was called."""
    keys = {row["key_id"]: row["key"] for row in read_stream(directory / "keys.arrows")}
    named = ({**row, "time_ns": None} for row in read_stream(directory / f"{table}.arrows"))
    return [
        {name: keys[value] if name in KEYS and value is not None else value for name, value in row.items()}
        for row in named
    ]


def fail(x):
    raise ValueError(f"no {x}")


def fail_once(x):
    seen = get_worker().__dict__.setdefault("seen", set())
    if x not in seen:
        seen.add(x)
        raise OSError("once")
    return x


def elsewhere_first(x):
    if "moved" not in get_worker().__dict__:
        get_worker().moved = True
        raise Reschedule
    return x


def work(client, cluster):
    first, second = (worker.address for worker in cluster.workers.values())
    there = client.map(bytes, range(100, 104), key=[("there", n) for n in range(4)], workers=first)
    client.gather(client.map(len, there, key=[f"moved-{n}" for n in range(4)], workers=second))
    wait([client.submit(fail, "luck", key="fails"), client.submit(fail_once, 7, key="again", retries=2)])
    client.submit(elsewhere_first, 1, key="moves").result()
    failed = client.submit(fail, "way", key="cause")
    wait(client.submit(len, failed, key="blamed"))
    unwanted = client.submit(time.sleep, 1.5, key="unwanted", pure=False)
    behind = client.submit(time.sleep, 1.6, key="behind", pure=False, workers=first)
    never = client.submit(len, unwanted, key="never")
    client.cancel([unwanted, behind, never])
    return client.submit(sum, client.map(int, range(50)), key="last").result()


def test_both_forms_record_the_same_rows_of_the_same_run(tmp_path, monkeypatch):
    spools, counts = [], []

    def spool(form, server):
        made = Spool(tmp_path / form, server.id.partition("-")[0].lower(), server.id)
        spools.append(made)
        return made

    def of_scheduler(form):
        return transitions.scheduler_hook(spool(form, cluster.scheduler), cluster.scheduler, lambda: None)

    def of_worker(worker):
        return lambda form: transitions.worker_hook(spool(form, worker), worker, lambda: None, lambda task: None)

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:
        hook, told = both(monkeypatch, of_scheduler)
        counts.append(told)
        cluster.scheduler.add_plugin(BothOfScheduler(hook))
        for worker in cluster.workers.values():
            hook, told = both(monkeypatch, of_worker(worker))
            counts.append(told)
            worker.plugins["both"] = BothOfWorker(hook)
        with Client(cluster) as client:
            assert work(client, cluster) == sum(range(50))
        dask_counted = [worker.state.transition_counter for worker in cluster.workers.values()]
    for each in spools:
        each.close()
    servers = sorted(path.name for path in (tmp_path / "python" / "spool").iterdir())
    assert servers == sorted(path.name for path in (tmp_path / "compiled" / "spool").iterdir())
    for server in servers:
        for table in TABLES:
            of_python, compiled = (
                content(tmp_path / form / "spool" / server, table) for form in ("python", "compiled")
            )
            assert compiled == of_python, (server, table)
            if table != "startstops":
                for form in ("python", "compiled"):
                    times = moments(tmp_path / form / "spool" / server, table)
                    assert [each for each in times if each % 1000] == [], (form, server, table)
        assert content(tmp_path / "compiled" / "spool" / server, "losses") == []
    totals = {
        table: sum(len(content(tmp_path / "compiled" / "spool" / server, table)) for server in servers)
        for table in TABLES
    }
    assert min(totals.values()) > 0, totals
    assert [compiled() for compiled, _ in counts] == [of_python() for _, of_python in counts]
    assert [sum(compiled()) for compiled, _ in counts[1:]] == dask_counted


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path, "scheduler", "Scheduler-1")
    yield spool
    spool.close()


def test_what_waits_too_long_is_dropped_from_its_oldest_and_counted(spool, monkeypatch):
    monkeypatch.setattr("recup.spool._BUFFERED_VALUES_LIMIT", 14_000)
    monkeypatch.setattr("recup.spool.FLUSH_INTERVAL_S", 60.0)
    assert spool.flush()  # the next one by itself comes late
    hook = transitions.compiled.SchedulerHook(spool, lambda: None, spool.extender("errors"), {})
    for number in range(1_200):
        hook.function(f"k{number}", "processing", "memory", stimulus_id="s", worker="w")
    spool.limit()
    assert spool.flush()
    kept = [row["key"] for row in content(spool.directory, "scheduler_transitions")]
    ends = [row["key"] for row in content(spool.directory, "results")]
    losses = {(row["kind"], row["table"]): row["row_count"] for row in content(spool.directory, "losses")}
    # Of 1,200 rows of 11 values and of 7 the fuller half goes, then half of what is fuller now.
    assert kept == [f"k{number}" for number in range(601, 1_200)]
    assert ends == [f"k{number}" for number in range(601, 1_200)]
    assert losses == {("dropped", "scheduler_transitions"): 601, ("dropped", "results"): 601}


def test_one_odd_message_costs_its_own_row_only(spool):
    hook = transitions.compiled.SchedulerHook(spool, lambda: None, spool.extender("errors"), {})
    hook.function("a", "processing", "memory", stimulus_id="s", worker="w", startstops=({"action": "compute"},))
    hook.function(
        "b", "processing", "memory", stimulus_id="s", worker="w", startstops=(), nbytes="many", thread=1 << 70
    )
    assert spool.flush()
    (row,) = content(spool.directory, "results")
    assert (row["key"], row["nbytes"], row["thread"]) == ("b", None, None)
    losses = [(row["kind"], row["table"], row["row_count"]) for row in content(spool.directory, "losses")]
    assert sorted(losses) == [("degraded", "results", 2), ("hook_failed", "scheduler_transitions", 1)]


def test_a_hook_that_is_called_otherwise_says_so_and_is_switched_off(spool):
    switched_off = []
    hook = transitions.compiled.SchedulerHook(spool, lambda: switched_off.append(True), spool.extender("errors"), {})
    for _ in range(100):
        assert hook.function(key="a", start="released", finish="waiting") is None
    assert switched_off == [True]
    assert spool.flush()
    told = {row["kind"]: row["detail"] for row in content(spool.directory, "losses")}
    assert told["hook_failed"] == "transition: TypeError: Dask calls the hook in another way than this recup knows"


def test_ctrl_c_in_a_hook_passes(spool):
    class Key:
        def __hash__(self):
            raise KeyboardInterrupt

    hook = transitions.compiled.SchedulerHook(spool, lambda: None, spool.extender("errors"), {})
    with pytest.raises(KeyboardInterrupt):
        hook.function(Key(), "released", "processing", stimulus_id="s")
    with pytest.raises(KeyboardInterrupt):
        hook.function(Key(), "processing", "memory", stimulus_id="s")


def test_what_has_been_written_is_let_go(spool):
    key, named = "k" * 40, {"worker": "w" * 40, "stimulus_id": "s" * 40}
    kept = [key, *named.values()]
    before = [sys.getrefcount(each) for each in kept]
    hook = transitions.compiled.SchedulerHook(spool, lambda: None, spool.extender("errors"), {})
    for _ in range(20_000):
        hook.function(key, "processing", "memory", **named)
    assert spool.flush()
    assert [sys.getrefcount(each) for each in kept] == before
    assert len(content(spool.directory, "scheduler_transitions")) == 20_000
