"""What is recorded at the client, read back from the spool of real clients of real clusters."""

import asyncio
import functools
import gc
import json
import operator
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import dask.array as da
import dask.bag as db
import pandas as pd
import pyarrow.ipc
import pytest
from distributed import Client, LocalCluster, SchedulerPlugin, span, worker_client

from recup.capture import graphs
from recup.capture.client import ClientCapture
from recup.capture.frames import call_site
from recup.capture.graphs import keys_digest
from recup.spool import Spool

IS_OLD = not hasattr(dask.base, "collections_to_expr")
"""Before 2025.4 collections reach the client's graph function optimized."""


def alone(test):
    """Run a test in a thread of its own: no frame of what runs the tests is on its stack."""

    @functools.wraps(test)
    def run(**arguments):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(test, **arguments).result()

    return run


class Recording:
    """A client that is captured, and its rows."""

    def __init__(self, client, directory):
        self.client = client
        self.spool = Spool(directory, "client", client.id)
        self.capture = ClientCapture(self.spool, client)
        self.capture.install()

    def __getitem__(self, table_name):
        assert self.spool.flush()
        file = self.spool.directory / f"{table_name}.arrows"
        return pyarrow.ipc.open_stream(file.read_bytes()).read_all().to_pylist() if file.exists() else []

    def key(self, number):
        return {row["key_id"]: row["key"] for row in self["keys"]}[number]

    def only_submission(self):
        (row,) = self["client_submissions"]
        return row

    def layers(self, *columns):
        return [tuple(row[column] for column in columns) for row in self["layers"]]


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client


@pytest.fixture
def recording(client, tmp_path):
    recording = Recording(client, tmp_path)
    yield recording
    recording.capture.uninstall()
    recording.spool.close()


def increment(value):
    return value + 1


in_tasks = []


def increment_in_a_recorded_client(value, directory):
    with worker_client() as client:
        in_tasks.append(Recording(client, Path(directory)))
        return client.submit(increment, value).result()


# ---------------------------------------------------------------- collections


def test_an_array_computed_gives_its_layers_before_optimization(recording):
    x = da.ones((40, 60), chunks=(20, 20))
    y = (x + 1).sum(axis=0)
    assert y.compute().sum() == 4800

    submission = recording.only_submission()
    assert (submission["submission"], submission["call"], submission["error"]) == (0, "compute", None)
    assert submission["client"] == recording.client.id
    rows = {row["name"].rpartition("-")[0]: row for row in recording["layers"]}
    assert {name: (row["layer_type"], row["task_count"]) for name, row in rows.items()} == {
        "ones_like": ("Blockwise", 6),
        "add": ("Blockwise", 6),
        "sum": ("Blockwise", 6),
        "sum-aggregate": ("MaterializedLayer", 3),
    }
    assert submission["layer_count"] == 4
    assert submission["task_count"] == 21
    assert rows["add"]["collection_type"] == "dask.array.core.Array"
    assert rows["add"]["shape"] == "[40, 60]"
    assert rows["add"]["dtype"] == "float64"
    assert rows["add"]["chunks"] == "[[20, 20], [20, 20, 20]]"
    assert json.loads(rows["add"]["dependencies"]) == [rows["ones_like"]["name"]]
    assert recording["losses"] == []


@pytest.mark.skipif(IS_OLD, reason="materialised by Dask before the client sees it")
def test_describing_a_graph_does_not_change_it(recording):
    x = da.ones((40, 60), chunks=(20, 20)) + 1
    before = {name: set(vars(layer)) for name, layer in x.dask.layers.items()}
    x.persist()
    assert {name: set(vars(layer)) for name, layer in x.dask.layers.items()} == before
    assert set(recording.layers("is_materialized")) == {(False,)}


def test_an_array_persisted_wants_all_its_blocks(recording):
    x = da.ones((40, 60), chunks=(20, 20)).persist()
    submission = recording.only_submission()
    assert submission["call"] == "persist"
    assert submission["wanted_key_count"] == 6
    assert submission["keys_digest"] == keys_digest(dask.core.flatten(x.__dask_keys__()))


def test_a_dataframe_gives_its_expressions_before_optimization(recording):
    dd = pytest.importorskip("dask.dataframe")
    frame = dd.from_pandas(pd.DataFrame({"a": range(20), "b": 0.5}), npartitions=4)
    assert frame[frame.a > 3].b.sum().compute() == 8.0

    submission = recording.only_submission()
    assert (submission["call"], submission["layer_count"], submission["task_count"]) == ("compute", 6, None)
    rows = recording["layers"]
    assert [row["layer_type"] for row in rows] == ["Sum", "Projection", "Filter", "FromPandas", "GT", "Projection"]
    total, source = rows[0], rows[3]
    assert total["collection_type"].endswith("_collection.Scalar")
    assert json.loads(total["dependencies"]) == [rows[1]["name"]]
    assert (source["dtype"], source["chunks"]) == ('{"a": "int64", "b": "float64"}', "4")
    assert json.loads(source["details"]) == {"column_count": 2}
    assert {row["is_materialized"] for row in rows} == {None}


def test_a_bag_shows_its_type_and_partition_count(recording):
    bag = db.from_sequence(range(10), npartitions=5).map(increment)
    assert bag.compute(scheduler=recording.client) == list(range(1, 11))
    assert recording.layers("task_count", "collection_type", "chunks") == [
        (5, None, None),
        (5, "dask.bag.core.Bag", "5"),
    ]


def test_delayed_values_show_one_layer_each(recording):
    value = dask.delayed(increment)(dask.delayed(increment)(1))
    assert value.compute() == 3
    submission = recording.only_submission()
    assert (submission["layer_count"], submission["task_count"]) == (2, 2)
    assert {row["collection_type"]: row["name"] for row in recording["layers"]}["dask.delayed.Delayed"] == value.key


def test_an_xarray_dataset_names_the_variables_of_its_layers(recording):
    xarray = pytest.importorskip("xarray")
    dataset = xarray.Dataset({"t": (("lat", "lon"), da.ones((8, 6), chunks=4)), "p": ("lat", da.zeros(8, chunks=4))})
    for compute in (dataset.compute, lambda: dask.compute(dataset)):
        compute()
        submission = recording["client_submissions"][-1]
        rows = [row for row in recording["layers"] if row["submission"] == submission["submission"]]
        assert {row["collection_type"] for row in rows} == {"xarray.core.dataset.Dataset"}
        described = {row["shape"]: json.loads(row["details"]) for row in rows}
        assert described["[8, 6]"]["variable"] == "t"
        assert described["[8, 6]"]["dims"] == ["lat", "lon"]
        assert described["[8, 6]"]["sizes"] == {"lat": 8, "lon": 6}
        assert described["[8]"]["variable"] == "p"


@pytest.mark.filterwarnings("ignore:Computing mixed collections")
def test_mixed_collections_show_the_layers_of_all(recording):
    dd = pytest.importorskip("dask.dataframe")
    frame = dd.from_pandas(pd.DataFrame({"a": range(8)}), npartitions=2)
    array = da.ones(6, chunks=2)
    dask.compute(array, frame, dask.delayed(increment)(1))
    assert recording.only_submission()["layer_count"] == 3
    assert sorted(recording.layers("layer_type", "is_materialized")) == [
        ("Blockwise", None if IS_OLD else False),
        ("FromPandas", None),
        ("MaterializedLayer", True),
    ]


# ---------------------------------------------------------------- futures


def test_submit_is_one_layer_that_names_its_function(recording):
    future = recording.client.submit(increment, 1)
    assert future.result() == 2
    submission = recording.only_submission()
    assert (submission["call"], submission["wanted_key_count"], submission["task_count"]) == ("submit", 1, 1)
    assert recording.key(submission["first_key"]) == future.key
    assert recording.layers("name", "is_materialized", "task_count", "details") == [
        (future.key, True, 1, json.dumps({"function": f"{__name__}.increment"}))
    ]


def test_map_is_counted_and_not_expanded(recording):
    assert recording.client.gather(recording.client.map(increment, range(5))) == [1, 2, 3, 4, 5]
    submission = recording.only_submission()
    assert (submission["call"], submission["wanted_key_count"], submission["task_count"]) == ("map", 5, 5)
    assert recording.layers("name", "is_materialized", "task_count") == [("increment", False, 5)]


def test_a_map_with_an_array_argument_does_not_guess_its_task_count(recording):
    import numpy

    recording.client.gather(recording.client.map(operator.pow, [1, 2], [3, 4]))
    recording.client.gather(recording.client.map(lambda x, y: x, [1, 2], y=numpy.zeros(3)))
    assert [row["task_count"] for row in recording["client_submissions"]] == [2, None]


def test_a_raw_graph_is_one_layer_with_its_size(recording):
    assert recording.client.get({"one": (increment, 0), "two": (increment, "one")}, "two") == 2
    submission = recording.only_submission()
    assert (submission["call"], submission["wanted_key_count"], submission["task_count"]) == ("get", 1, 2)
    assert recording.key(submission["first_key"]) == "two"


def test_no_argument_value_is_recorded(recording):
    value = "".join(["hunter", "2"])
    recording.client.submit(len, value).result()
    recording.client.gather(recording.client.map(len, [value]))
    dask.delayed(len)(value).compute()
    db.from_sequence([value], npartitions=1).compute(scheduler=recording.client)
    tables = ("client_submissions", "submission_frames", "layers", "keys", "losses")
    assert [row for name in tables for row in recording[name] if value in str(row)] == []


# ---------------------------------------------------------------- circumstances


def test_annotations_and_span_are_recorded_whatever_they_hold(recording):
    with dask.annotate(note="mine", odd=object(), token="abc"), span("outer", "inner"):
        recording.client.submit(increment, 1, retries=2, priority=3).result()
    submission = recording.only_submission()
    assert json.loads(submission["span"]) == ["outer", "inner"]
    assert json.loads(submission["annotations"]) == {
        "note": "mine",
        "odd": "<object>",
        "token": "[redacted]",
        "retries": 2,
        "priority": 3,
    }


def test_long_annotations_are_cut(recording):
    with dask.annotate(note="x" * 20_000):
        recording.client.submit(increment, 1).result()
    assert json.loads(recording.only_submission()["annotations"])["cut"] is True


@alone
def test_user_frames_come_outermost_first_with_the_source_of_their_function(recording):
    def inner():
        return recording.client.submit(increment, 1).result()

    def outer():
        return inner()

    outer()
    frames = recording["submission_frames"]
    assert [frame["function"].rpartition(".")[2] for frame in frames] == [
        "test_user_frames_come_outermost_first_with_the_source_of_their_function",
        "outer",
        "inner",
    ]
    assert [frame["depth"] for frame in frames] == [0, 1, 2]
    assert {Path(frame["path"]).name for frame in frames} == {Path(__file__).name}
    assert frames[2]["line_text"] == "return recording.client.submit(increment, 1).result()"
    texts = {row["source_digest"]: row for row in recording["sources"]}
    source = texts[frames[1]["source_digest"]]
    assert source["text"] == "    def outer():\n        return inner()\n"
    assert (source["kind"], source["first_line"]) == ("frame", outer.__code__.co_firstlineno)


@alone
def test_a_source_is_written_once_however_often_it_submits(recording):
    for number in range(20):
        recording.client.submit(increment, number)
    assert len(recording["submission_frames"]) == 20
    assert len(recording["sources"]) == 1


@alone
def test_source_can_be_switched_off(client, tmp_path):
    with dask.config.set({"recup.source": False}):
        recording = Recording(client, tmp_path)
    client.submit(increment, 1).result()
    (frame,) = recording["submission_frames"]
    assert (frame["line_text"], frame["source_digest"]) == (None, None)
    assert frame["function"] == "test_source_can_be_switched_off"
    assert recording["sources"] == []
    recording.capture.uninstall()


def run_as_script(text, path, recording, **names):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    exec(compile(text, path, "exec"), {"__name__": "__main__", "client": recording.client, **names})


def test_a_module_level_frame_keeps_only_the_lines_around_it(recording, tmp_path):
    lines = [f"x{number} = {number}\n" for number in range(50)]
    lines[30] = "client.submit(len, 'abc').result()\n"
    run_as_script("".join(lines), tmp_path / "script.py", recording)
    frame = recording["submission_frames"][-1]
    assert (frame["function"], frame["line"]) == ("<module>", 31)
    (source,) = (row for row in recording["sources"] if row["source_digest"] == frame["source_digest"])
    assert (source["kind"], source["first_line"], source["text"]) == ("frame", 26, "".join(lines[25:36]))


def test_a_notebook_cell_is_kept_whole_and_its_secrets_are_not(recording, tmp_path):
    text = "password = 'hunter2'\ndef f():\n    return client.submit(len, 'abc').result()\n" + "\n" * 30 + "f()\n"
    run_as_script(text, tmp_path / "ipykernel_123" / "456.py", recording)
    sources = [row for row in recording["sources"] if row["kind"] == "cell"]
    assert [row["text"] for row in sources] == [text.replace("hunter2", "[redacted]")]
    assert {row["source_digest"] for row in recording["submission_frames"][-2:]} == {sources[0]["source_digest"]}


@alone
def test_a_deep_stack_keeps_its_ends(recording):
    def descend(count):
        return recording.client.submit(increment, 1) if count == 0 else descend(count - 1)

    descend(40)
    assert [row["depth"] for row in recording["submission_frames"]] == [*range(10), *range(32, 42)]


def test_a_client_of_a_task_names_the_task(cluster, tmp_path):
    # A default client in the worker's own process would be taken by the task.
    with Client(cluster, set_as_default=False) as client:
        outer = Recording(client, tmp_path)
        assert client.submit(increment_in_a_recorded_client, 1, str(tmp_path), key="the-task").result() == 2
        inner = in_tasks.pop()
        inner.capture.uninstall()
    submission = inner.only_submission()
    assert inner.key(submission["submitting_key"]) == "the-task"
    assert (submission["call"], submission["client"][:14]) == ("submit", "Client-worker-")
    assert [row["function"] for row in inner["submission_frames"]] == ["increment_in_a_recorded_client"]
    assert outer.only_submission()["submitting_key"] is None


@alone
def test_an_asynchronous_client_is_recorded(tmp_path):
    async def workload():
        async with (
            LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0", asynchronous=True) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            recording = Recording(client, tmp_path)
            x = da.ones(4, chunks=2)
            assert (await client.compute(x)).sum() == 4
            assert await client.submit(increment, 1) == 2
            recording.capture.uninstall()
            return recording

    recording = asyncio.run(workload())
    rows = recording["client_submissions"]
    assert [(row["call"], row["layer_count"]) for row in rows] == [("compute", 1), ("submit", 1)]
    assert {row["function"].rpartition(".")[2] for row in recording["submission_frames"] if row["depth"] > 0} == {
        "workload"
    }


def test_two_clients_are_recorded_apart(cluster, tmp_path):
    with Client(cluster) as one, Client(cluster, set_as_default=False) as other:
        first, second = Recording(one, tmp_path), Recording(other, tmp_path)
        one.submit(increment, 1).result()
        other.gather(other.map(increment, range(3)))
        assert first.only_submission()["call"] == "submit"
        assert second.only_submission()["call"] == "map"
        assert second.only_submission()["client"] == other.id


def test_threads_that_submit_at_once_get_numbers_of_their_own(recording):
    def submit_many(first):
        for number in range(first, first + 50):
            recording.client.submit(increment, number)

    threads = [threading.Thread(target=submit_many, args=(first,)) for first in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["submission"] for row in recording["client_submissions"]) == list(range(200))
    assert sorted(row["submission"] for row in recording["layers"]) == list(range(200))


class RecordKeys(SchedulerPlugin):
    name = "record-keys"

    def __init__(self, client_id):
        self.client_id = client_id
        self.digests = []

    def update_graph(self, scheduler, *, client, keys, **kwargs):
        if client == self.client_id:
            self.digests.append(keys_digest(keys))


def test_the_digest_of_keys_is_the_one_the_scheduler_computes(recording, cluster):
    client = recording.client
    plugin = RecordKeys(client.id)
    cluster.scheduler.add_plugin(plugin)
    x = da.ones((6, 6), chunks=2)
    dask.compute(x.sum(), x, x)
    x.persist()
    client.gather(client.map(increment, [1, 1, 2]))
    client.submit(increment, 1, key=("tuple", 0)).result()
    assert [row["keys_digest"] for row in recording["client_submissions"]] == plugin.digests
    cluster.scheduler.remove_plugin(plugin.name)


# ---------------------------------------------------------------- what goes wrong


class Unpicklable:
    def __repr__(self):
        return "Unpicklable()"

    def __reduce__(self):
        raise ZeroDivisionError("cannot be pickled")


def raised_by(call):
    try:
        call()
    except Exception as reason:
        return reason
    raise AssertionError("nothing was raised")


def test_an_error_of_dask_passes_unchanged_and_is_named(recording, cluster):
    with Client(cluster, set_as_default=False) as bare:
        expected = raised_by(lambda: bare.submit(increment, Unpicklable(), key="k"))
    found = raised_by(lambda: recording.client.submit(increment, Unpicklable(), key="k"))
    assert (type(found), found.args[0]) == (type(expected), expected.args[0])
    assert type(found.__cause__) is type(expected.__cause__)
    assert recording.only_submission()["error"] == type(expected).__name__


def test_a_bug_of_recup_leaves_the_workload_alone_and_is_counted(recording, monkeypatch):
    def broken(*args):
        raise RuntimeError("a bug")

    monkeypatch.setattr(graphs.Description, "describe", broken)
    assert da.ones(4, chunks=2).sum().compute() == 4
    submission = recording.only_submission()
    assert (submission["layer_count"], submission["task_count"]) == (None, None)
    (loss,) = recording["losses"]
    assert (loss["kind"], loss["table"], loss["row_count"]) == ("hook_failed", "layers", 1)


def test_layers_beyond_the_limit_are_counted(recording, monkeypatch):
    monkeypatch.setattr(graphs, "LAYERS_LIMIT", 10)
    values = [dask.delayed(increment)(number) for number in range(25)]
    dask.delayed(sum)(values).compute()
    submission = recording.only_submission()
    rows = recording["layers"]
    (loss,) = recording["losses"]
    assert len(rows) == 10
    assert (submission["layer_count"], submission["task_count"]) == (10 + loss["row_count"], None)
    assert (loss["kind"], loss["table"]) == ("not_captured", "layers")


def test_layers_beyond_the_time_limit_are_counted(recording, monkeypatch):
    monkeypatch.setattr(graphs, "TIME_LIMIT_NS", -1)
    (da.ones(4, chunks=2) + 1).compute()
    assert recording["layers"] == []
    assert recording.only_submission()["layer_count"] == (None if IS_OLD else 2)
    assert {row["table"] for row in recording["losses"]} == {"layers"}


def test_uninstalling_restores_the_client(recording):
    recording.client.submit(increment, 1).result()
    recording.capture.uninstall()
    recording.client.submit(increment, 2).result()
    assert "_graph_to_futures" not in vars(recording.client)
    assert len(recording["client_submissions"]) == 1


def test_a_wrapper_put_around_ours_survives_uninstalling(recording):
    ours, seen = recording.client._graph_to_futures, []

    def theirs(*args, **kwargs):
        seen.append(1)
        return ours(*args, **kwargs)

    recording.client._graph_to_futures = theirs
    recording.capture.uninstall()
    assert recording.client.submit(increment, 1).result() == 2
    assert (seen, recording["client_submissions"]) == ([1], [])


def test_a_client_that_cannot_be_wrapped_is_a_loss(tmp_path):
    class Strange:
        id = "Client-strange"

    recording = Recording(Strange(), tmp_path)
    assert sorted((row["kind"], row["table"]) for row in recording["losses"]) == [
        ("not_captured", "client_submissions"),
        ("not_captured", "layers"),
    ]


def test_no_collection_is_kept_alive(recording):
    x = da.ones(4, chunks=2) + 1
    x.compute()
    reference = weakref.ref(x)
    del x
    gc.collect()
    assert reference() is None


# ---------------------------------------------------------------- without a cluster


def test_the_digest_of_keys_does_not_depend_on_order_or_repetition():
    assert keys_digest(["a", ("x", 0), 1]) == keys_digest([1, "a", ("x", 0), "a"])
    assert keys_digest([("x", 0)]) != keys_digest(["('x', 0)"])
    assert keys_digest([]) != keys_digest([""])
    assert keys_digest(range(10_000)) is not None
    assert keys_digest(range(10_001)) is None


def test_long_chunks_are_cut():
    text = graphs._chunks_text(((1,) * 100, (5, 5)))
    assert json.loads(text) == {"axis_lengths": [100, 10], "block_counts": [100, 2], "first": [[1] * 64, [5, 5]]}
    assert graphs._chunks_text(((float("nan"), 2),)) == "[[null, 2]]"


def test_a_call_site_without_dask_has_frames_and_no_call():
    import sys

    site = call_site(sys._getframe(), with_source=False)
    assert (site.call, site.collections, site.entered) == (None, [], None)
    assert site.frames[-1].function == "test_a_call_site_without_dask_has_frames_and_no_call"
