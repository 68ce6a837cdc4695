import errno
import itertools
import json
import shutil
import subprocess
import sys
import time

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recup import parquet_writing, schema, spool_files, storage
from recup.completeness import completeness, verdict
from recup.errors import BadQuery, RecupError, RunDamaged, RunNotFound, RunTooNew
from recup.rundir import create_run, read_manifest, update_manifest
from recup.spool import Spool, key_text
from recup.spool_files import find_spools
from recup.store import RunStillWritten, open_run, seal
from tests.unit.spooled import edit_status, left_by_a_killed_server, write
from tests.unit.written_runs import at, row, write_run

SEVERAL = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def transitions(count, first=0):
    return [
        schema.SchedulerTransition(
            at(i), f"x-{i}", "waiting", "processing", f"task-finished-{1.7e9 + i}", "tcp://a:1", i
        )
        for i in range(first, first + count)
    ]


def times_of(path):
    with open_run(path) as run:
        return [t for (t,) in run.sql("select time_ns from scheduler_transitions order by time_ns").fetchall()]


def results(count):
    return [row(schema.Result, time_ns=at(i), key=f"x-{i}", run_id=i, outcome="memory") for i in range(count)]


def as_before_microseconds(stored):
    """Return rows in stored form as a recup kept them that knew nanoseconds only; what else a file tells stays."""
    times = pc.coalesce(pc.multiply(stored["time_us"], 1000), stored["time_ns"])
    place = stored.column_names.index("time_ns")
    return stored.set_column(place, stored.schema.field("time_ns"), times).drop_columns("time_us")


# ---------------------------------------------------------------- what is written is what is read

texts = st.one_of(st.text(max_size=30), st.sampled_from(["", "\0", "a\0b", "'\"\n\t", "é" * 40, "\udcff", "a>b", "-"]))
times = st.one_of(st.floats(1e9, 4e9), st.floats(), st.sampled_from([0.0, -0.0, 1764000000.1234567, float("inf")]))
stimuli = st.one_of(
    texts,
    st.builds(lambda cause, time_s: f"{cause}-{time_s}", texts, times),
    st.sampled_from(["steal-12", "a-1764000000.10", "a-1764000000.0", "-1764000000.5", "a-b>c-1764000000.25", ">"]),
)
keys = st.one_of(
    texts,
    st.binary(max_size=6),
    st.tuples(texts, st.integers(), st.integers()),
    st.integers(),
    st.floats(allow_nan=False),
    st.builds(lambda a, b: f"{a}-{'0123456789abcdef' * 2}{b}", texts, texts),
)
numbers = st.integers(-(2**60), 2**60)
MOMENT_TABLES = ("scheduler_transitions", "worker_transitions", "results", "receptions")
whole_microseconds = st.integers(-(2**63) // 1000 + 1, (2**63 - 1) // 1000).map(lambda micro: micro * 1000)
edges = st.sampled_from([0, -1000, -1, 1, 999, -(2**63), -(2**63) + 808, 2**63 - 1, 2**63 - 808, at(0), at(0) + 1])
moments = st.one_of(whole_microseconds, st.integers(-(2**63), 2**63 - 1), edges)


def nullable(strategy):
    return st.one_of(st.none(), strategy)


ROWS = st.one_of(
    st.builds(
        schema.SchedulerTransition, moments, keys, texts, texts, stimuli, nullable(texts), numbers.filter(lambda n: n != -1)
    ),
    st.builds(schema.WorkerTransition, moments, keys, numbers, texts, texts, nullable(texts), nullable(stimuli)),
    st.builds(
        schema.Result, moments, keys, numbers, texts, nullable(texts), numbers, numbers, nullable(texts), nullable(times),
        nullable(times), nullable(times),
    ),
    st.builds(schema.StartStop, keys, numbers, texts, times, times, nullable(texts)),
    st.builds(schema.TaskError, moments, keys, numbers, nullable(texts), nullable(keys), nullable(texts), nullable(texts)),
    st.builds(schema.Sample, moments, texts, nullable(texts), times),
    st.builds(schema.Dependency, numbers, keys, keys),
)  # fmt: skip


def as_text(value):
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def documented(each, server_id, role):
    """Return a row as the opened table should show it, keys as (text, type)."""
    shown = [server_id, role]
    for column, value in zip(schema.table_of(each).columns, each, strict=True):
        if column.kind == "key":
            shown.append(None if value is None else (as_text(key_text(value)), type(value).__name__))
        else:
            shown.append(None if column.null_value is not None and value == column.null_value else as_text(value))
    return tuple(map(repr, shown))


def shown_rows(run, table):
    columns, joins = ["t.server_id", "t.role"], []
    for column in schema.TABLES[table].columns:
        if column.kind == "key":
            alias = f"k_{column.name}"
            columns += [f't."{column.name}"', f"{alias}.key_type"]
            joins.append(f"left join keys {alias} on {alias}.key_id = t.{column.name}_id")
        else:
            columns.append(f't."{column.name}"')
    found = []
    for values in run.sql(f"select {', '.join(columns)} from {table} t {' '.join(joins)}").fetchall():
        rest, shown = list(values), []
        for column in (None, None, *schema.TABLES[table].columns):
            value = rest.pop(0)
            if column is not None and column.kind == "key":
                key_type = rest.pop(0)
                value = None if value is None else (value, key_type)
            shown.append(repr(value))
        found.append(tuple(shown))
    return sorted(found)


@SEVERAL
@given(st.lists(st.tuples(st.sampled_from(["scheduler", "worker"]), ROWS), max_size=40))
def test_every_value_comes_back_exactly_sealed_or_not(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("run")
    for role in ("scheduler", "worker"):
        write(path, role, f"{role}-1", [each for by, each in written if by == role])
    expected = {}
    for role, each in written:
        expected.setdefault(schema.table_of(each).name, []).append(documented(each, f"{role}-1", role))
    for state in ("spooled", "sealed"):
        with open_run(path) as run:
            assert run.is_sealed == (state == "sealed" or not (path / "spool").exists())
            for table in ("scheduler_transitions", "worker_transitions", "results", "startstops", "errors", "samples"):
                assert shown_rows(run, table) == sorted(expected.get(table, [])), (state, table)
            assert shown_rows(run, "dependencies") == sorted(expected.get("dependencies", []))
        seal(path)


@SEVERAL
@given(st.lists(st.one_of(st.none(), moments), min_size=1, max_size=30), st.sampled_from(MOMENT_TABLES))
def test_every_time_comes_back_out_of_microseconds_and_is_put_in_order_by(times_ns, table):
    batch = pa.record_batch([pa.array(times_ns, pa.int64())], names=["time_ns"])
    nothing = storage.KeyNumbers("s", np.empty(0, np.int64), np.empty(0, np.int64))
    stored = storage.to_stored(table, [batch], "s", "scheduler", nothing)
    whole = [None if each is None or each % 1000 else each // 1000 for each in times_ns]
    assert stored["time_us"].to_pylist() == whole
    assert stored["time_ns"].to_pylist() == [
        None if micro is not None else each for each, micro in zip(times_ns, whole, strict=True)
    ]
    assert storage.merge_values(table, stored).to_pylist() == times_ns
    filled = [column for column in ("time_us", "time_ns") if stored[column].null_count < len(times_ns)]
    with duckdb.connect() as connection:
        connection.register("stored", stored)
        for told in (filled, ["time_us", "time_ns"]):
            shown = connection.sql(f"select time_ns from ({storage.raw_select(table, 'stored', told)})").fetchall()
            assert shown == [(each,) for each in times_ns]
    older = as_before_microseconds(stored)
    assert storage.merge_values(table, older).to_pylist() == times_ns
    assert storage.as_stored_now(table, older).equals(stored)


def test_rows_of_a_time_are_found_by_the_bounds_of_row_groups(tmp_path):
    write(tmp_path, "worker", "w", [schema.WorkerTransition(at(i), "k", i, "a", "b", None, None) for i in range(5)])
    seal(tmp_path)
    with open_run(tmp_path) as run:
        run.sql("from raw.worker_transitions")
        views = "select sql from duckdb_views() where schema_name = 'raw' and view_name = 'worker_transitions'"
        # DuckDB asks the bounds of a product, and none of a coalesce.
        assert "(time_us * 1000) AS time_ns" in run.sql(views).fetchall()[0][0]
        found = run.sql(f"select run_id from raw.worker_transitions where time_ns > {at(1)} and time_ns <= {at(3)}")
        assert found.fetchall() == [(2,), (3,)]


def test_a_run_sealed_before_times_were_in_microseconds_opens_and_is_sealed_anew(tmp_path):
    write(tmp_path, "scheduler", "s", [*transitions(5), *results(5)])
    seal(tmp_path)
    for table in ("scheduler_transitions", "results"):
        path = tmp_path / "tables" / f"{table}.parquet"
        pq.write_table(as_before_microseconds(pq.read_table(path)), path)
    write(tmp_path, "scheduler", "late", transitions(4, first=-1))
    for is_sealed in (False, True):
        with open_run(tmp_path) as run:
            assert run.is_sealed == is_sealed
            assert run.arrow("scheduler_transitions")["time_ns"].to_pylist() == sorted(
                [*map(at, range(5)), *map(at, range(-1, 3))]
            )
            assert run.arrow("results")["time_ns"].to_pylist() == [at(i) for i in range(5)]
        seal(tmp_path)
    told = pq.read_table(tmp_path / "tables" / "columns.parquet").to_pylist()
    assert [each["table"] for each in told if each["column"] == "time_us"] == ["scheduler_transitions"]
    for table, has_time_us in (("scheduler_transitions", True), ("results", False)):
        names = pq.read_schema(tmp_path / "tables" / f"{table}.parquet").names
        assert ("time_us" in names) == has_time_us


def test_keys_that_look_alike_stay_apart(tmp_path):
    alike = ["1", 1, b"1", "b'1'", ("a", 1), "('a', 1)", 2.5, "2.5"]
    path = tmp_path / "run"
    write(path, "scheduler", "s", [schema.Dependency(0, key, "x") for key in alike])
    with open_run(path) as run:
        found = run.sql("select key_type, key from keys where key <> 'x' order by key_id").fetchall()
    assert found == [(type(key).__name__, str(key)) for key in alike]


def test_one_key_of_several_servers_has_one_number(tmp_path):
    write(tmp_path, "scheduler", "s", [schema.Dependency(0, "b", "a")])
    write(tmp_path, "worker", "w", [schema.TransferKey(0, "a", 1), schema.TransferKey(0, "b", 1)])
    with open_run(tmp_path) as run:
        numbers = dict(run.sql("select key, key_id from transfer_keys").fetchall())
        assert run.sql("select key_id, dependency_id from dependencies").fetchall() == [(numbers["b"], numbers["a"])]
        assert run.sql("select count(*) from keys").fetchall() == [(2,)]


def test_keys_are_numbered_as_they_were_assigned(tmp_path):
    tasks = [row(schema.Task, key=f"x-{i}") for i in range(5)]
    assigned = [schema.SchedulerTransition(at(i), f"x-{4 - i}", "waiting", "processing", "s", "w", i) for i in range(5)]
    write(tmp_path, "scheduler", "s", [*tasks, *assigned])
    with open_run(tmp_path) as run:
        assert run.sql("select key from keys order by key_id").fetchall() == [(f"x-{4 - i}",) for i in range(5)]


def test_a_key_of_ten_kilobytes_comes_back(tmp_path):
    key = "'\n\0é" * 2500
    write(tmp_path, "scheduler", "s", [schema.Dependency(0, key, ("t", key))])
    seal(tmp_path)
    with open_run(tmp_path) as run:
        assert run.sql("select key, dependency from dependencies").fetchall() == [(key, str(("t", key)))]


def test_rows_of_all_servers_are_in_order_of_time(tmp_path):
    for number in range(3):
        rows = [schema.WorkerTransition(at(i * 3 + number), "k", i, "a", "b", None, None) for i in range(40_000)]
        write(tmp_path, "worker", f"w{number}", rows)
    seal(tmp_path)
    file = pq.ParquetFile(tmp_path / "tables" / "worker_transitions.parquet")
    column = file.schema_arrow.names.index("time_us")
    assert file.metadata.num_row_groups == 1
    assert file.metadata.row_group(0).column(column).statistics.min == at(0) // 1000
    with open_run(tmp_path) as run:
        assert run.arrow("worker_transitions")["time_ns"].to_pylist() == [at(i) for i in range(120_000)]


def test_row_groups_are_disjoint_in_time_even_when_a_clock_went_back(tmp_path):
    behind = [schema.WorkerTransition(at(i % 150_000), "k", i, "a", "b", None, None) for i in range(300_000)]
    write(tmp_path, "worker", "w", behind)
    seal(tmp_path)
    file = pq.ParquetFile(tmp_path / "tables" / "worker_transitions.parquet")
    column = file.schema_arrow.names.index("time_us")
    ranges = [file.metadata.row_group(i).column(column).statistics for i in range(file.metadata.num_row_groups)]
    assert len(ranges) > 1
    assert all(before.max <= after.min for before, after in itertools.pairwise(ranges))
    assert file.metadata.num_rows == 300_000


# ---------------------------------------------------------------- opening


def test_a_table_without_rows_is_there_with_its_columns(tmp_path):
    path = create_run(tmp_path, way="run")
    with open_run(path) as run:
        for name in (*run.tables, *run.views):
            rows = run.arrow(name)
            assert rows.num_rows == (name in ("run_times", "run_summary")), name
            assert rows.column_names == [each["column"] for each in run._columns_of(name)], name


def test_every_column_carries_its_meaning_and_unit(tmp_path):
    with open_run(write_run(tmp_path)) as run:
        field = run.arrow("results").schema.field("compute_start_s")
        assert field.metadata[b"unit"] == b"s"
        assert field.metadata[b"meaning"] == b"Start of the computation, Dask's clock"
        assert all(each["meaning"] for each in run.schema().to_pylist())
    seal(tmp_path / "20231114T221320Z-abcd")
    tables = tmp_path / "20231114T221320Z-abcd" / "tables"
    told = pq.read_table(tables / "columns.parquet").to_pylist()
    assert {
        "table": "results",
        "column": "compute_start_s",
        "unit": "s",
        "meaning": "Start of the computation, Dask's clock",
    } in told
    assert {(each["table"], each["column"]) for each in told if each["meaning"]} == {
        (path.stem, name)
        for path in tables.glob("*.parquet")
        if path.stem != "columns"
        for name in pq.read_schema(path).names
    }


def test_a_directory_without_manifest_opens(tmp_path):
    write(tmp_path / "bare", "scheduler", "s", transitions(3))
    with open_run(tmp_path / "bare") as run:
        assert (run.run_id, run.manifest["state"], run.is_sealed) == ("bare", "unknown", False)
        assert run.sql("select count(*) from scheduler_transitions").fetchall() == [(3,)]


def test_a_place_that_is_no_run_is_said_to_be_none(tmp_path):
    with pytest.raises(RunNotFound):
        open_run(tmp_path)


def test_a_run_that_grows_shows_the_moment_of_opening(tmp_path):
    spool = Spool(tmp_path, "scheduler", "s")
    for each in transitions(2):
        spool.put(each)
    assert spool.flush()
    with open_run(tmp_path) as run:
        for each in transitions(3, first=2):
            spool.put(each)
        assert spool.flush()
        assert run.sql("select key from scheduler_transitions order by run_id").fetchall() == [("x-0",), ("x-1",)]
    assert len(times_of(tmp_path)) == 5
    spool.close()


def test_a_path_with_pattern_characters_opens(tmp_path):
    path = tmp_path / "a [1]*'q?" / "run"
    write(path, "scheduler", "s", transitions(2))
    assert len(times_of(path)) == 2
    seal(path)
    assert len(times_of(path)) == 2


def test_a_sealed_table_that_is_broken_is_said_to_be(tmp_path):
    write(tmp_path, "scheduler", "s", transitions(2))
    seal(tmp_path)
    (tmp_path / "tables" / "scheduler_transitions.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with open_run(tmp_path) as run, pytest.raises(RunDamaged, match="scheduler_transitions"):
        run.arrow("scheduler_transitions")


def test_a_newer_schema_is_refused(tmp_path):
    path = create_run(tmp_path, way="run")
    update_manifest(path, schema_version=schema.VERSION + 1)
    with pytest.raises(RunTooNew):
        open_run(path)


def test_closing_removes_what_opening_made(tmp_path):
    write(tmp_path, "scheduler", "s", transitions(2))
    run = open_run(tmp_path)
    run.arrow("scheduler_transitions")
    assert list(run._directory.glob("*.parquet"))
    run.close()
    assert not run._directory.exists()


def test_a_run_shows_itself_in_a_notebook_without_trusting_its_own_words(tmp_path):
    write(tmp_path / "run", "scheduler", "s", transitions(2))
    (tmp_path / "run" / "run.json").write_text(
        json.dumps({"run_id": "<script>", "schema_version": 1, "state": "ended"})
    )
    with open_run(tmp_path / "run") as run:
        shown = run._repr_html_()
    assert "<script>" not in shown
    assert "scheduler_transitions</td><td style='text-align:right'>2<" in shown


# ---------------------------------------------------------------- asking


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A run that is only read, opened once with all the views that tests make."""
    with open_run(write_run(tmp_path_factory.mktemp("asked"))) as run:
        yield run


@pytest.mark.parametrize(
    "query",
    [
        "select 1; select 2",
        "",
        "create table x(i int)",
        "copy keys to 'x.csv'",
        "set threads = 1",
        "attach 'x.db'",
        "from read_csv('/etc/passwd')",
        "from '/etc/passwd'",
        "select * from glob('/*')",
        "select nothing from",
        "from no_such_table",
        "select no_such_column from keys",
        "drop view keys",
        "install httpfs",
    ],
)
def test_a_query_only_reads_the_run(asked, tmp_path, monkeypatch, query):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadQuery):
        asked.sql(query).fetchall()
    assert not list(tmp_path.iterdir())
    assert "x" not in {name for (name, *_) in asked.sql("show tables").fetchall()}
    assert asked.sql("select count(*) from keys").fetchall() == [(2,)]


def test_values_go_in_as_parameters(asked):
    assert asked.sql("select key from keys where key = ?", ["inc-1"]).fetchall() == [("inc-1",)]


def test_calls_made_together_answer_in_their_order(tmp_path):
    with open_run(write_run(tmp_path)) as run:
        names = ["task_runs", "transfers_distinct", "run_summary", "keys", "worker_lives"]
        asked = [lambda name=name: run.sql(f"select count(*) from {name}").fetchall() for name in names]
        found = run.together([*asked, lambda: run.together(asked)])
        assert found == [*(each() for each in asked), [each() for each in asked]]


def test_what_one_of_several_calls_raises_is_raised(asked):
    with pytest.raises(BadQuery, match="task_run"):
        asked.together([lambda: asked.arrow("task_runs"), lambda: asked.arrow("task_run")])
    assert asked.together([lambda: asked.sql("select 1").fetchall()] * 3) == [[(1,)]] * 3


def test_calls_made_together_see_no_variables_and_change_nothing(asked):
    def ask(query):
        unseen = asked.sql("select 1 as one").to_arrow_table()
        assert unseen.num_rows == 1
        with pytest.raises(BadQuery):
            asked.sql(query).fetchall()

    queries = ("from unseen", "set threads = 1", "from read_csv('/etc/passwd')")
    assert asked.together([lambda query=query: ask(query) for query in queries]) == [None] * 3


def test_names_not_there_are_answered_with_those_like_them(asked):
    with pytest.raises(BadQuery, match="task_runs"):
        asked.arrow("task_run")


def test_show_tables_lists_tables_and_views(tmp_path):
    with open_run(write_run(tmp_path)) as run:
        shown = {name for (name, *_) in run.sql("show tables").fetchall()}
        assert {*run.tables, *run.views} <= shown


def test_a_table_comes_as_data_frame(asked):
    pytest.importorskip("pandas")
    assert list(asked.df("dependencies")["dependency"]) == ["inc-1"]


# ---------------------------------------------------------------- sealing


def test_sealing_keeps_every_row_and_takes_the_spool_away(tmp_path):
    path = write_run(tmp_path)
    with open_run(path) as run:
        before = {name: run.arrow(name).to_pylist() for name in run.tables if name != "spools"}
    report = seal(path)
    assert report.spool_removed
    assert not (path / "spool").exists()
    assert read_manifest(path)["sealed"] is True
    with open_run(path) as run:
        assert run.is_sealed
        after = {name: run.arrow(name).to_pylist() for name in run.tables if name != "spools"}

    def in_order(rows):
        return sorted(map(repr, rows))

    assert {name: in_order(rows) for name, rows in after.items()} == {
        name: in_order(rows) for name, rows in before.items()
    }


def test_views_say_the_same_before_and_after_sealing(tmp_path):
    path = write_run(tmp_path)
    shown = []
    for _ in range(2):
        with open_run(path) as run:
            shown.append({name: sorted(map(repr, run.arrow(name).to_pylist())) for name in run.views})
        seal(path)
    assert shown[0] == shown[1]


def test_sealing_again_changes_nothing(tmp_path):
    path = write_run(tmp_path)
    seal(path, keep_spool=True)
    files = {each: each.read_bytes() for each in (path / "tables").iterdir()}
    again = seal(path, keep_spool=True)
    assert again.row_counts == {}
    assert {each: each.read_bytes() for each in (path / "tables").iterdir()} == files
    assert seal(path).spool_removed
    assert seal(path).spool_removed is False
    assert {each: each.read_bytes() for each in (path / "tables").iterdir()} == files


@pytest.fixture(scope="module")
def sealed_whole(tmp_path_factory):
    """A run sealed with its spool kept, and the rows of all its tables."""
    path = write_run(tmp_path_factory.mktemp("sealed_whole"))
    seal(path, keep_spool=True)
    with open_run(path) as run:
        return path, {table: run.arrow(table).to_pylist() for table in schema.TABLES}


@pytest.mark.parametrize("survivors", [["keys"], ["keys", "scheduler_transitions"], ["keys", "results", "losses"]])
def test_a_seal_cut_short_goes_on_where_it_ended(tmp_path, sealed_whole, survivors):
    whole, expected = sealed_whole
    path = shutil.copytree(whole, tmp_path / "run")
    update_manifest(path, sealed=False)
    for table in (path / "tables").iterdir():
        if table.stem not in survivors:
            table.unlink()
    (path / "tables" / ".results.parquet").write_bytes(b"half a file")
    report = seal(path)
    assert not set(report.row_counts) & (set(survivors) - {"keys"})
    with open_run(path) as run:
        for table in schema.TABLES:
            assert run.arrow(table).to_pylist() == expected[table]


def test_rows_that_come_after_the_seal_are_taken_by_the_next(tmp_path):
    write(tmp_path, "scheduler", "s", transitions(5))
    seal(tmp_path)
    write(tmp_path, "worker", "w", [schema.TransferKey(0, "x-3", 7), schema.TransferKey(0, "new", 8)])
    late = write(tmp_path, "scheduler", "s", transitions(3, first=5))
    assert late.row_counts["scheduler_transitions"] == 3
    for sealed_again in (False, True):
        assert times_of(tmp_path) == [at(i) for i in range(8)]
        with open_run(tmp_path) as run:
            assert run.is_sealed == sealed_again
            joined = "select s.run_id, t.nbytes from transfer_keys t join scheduler_transitions s using (key_id)"
            assert run.sql(joined).fetchall() == [(3, 7)]
        seal(tmp_path)


@pytest.mark.parametrize("with_schema", [False, True])
def test_rows_added_to_a_spool_that_was_kept_are_added_once(tmp_path, monkeypatch, with_schema):
    monkeypatch.setattr(parquet_writing, "_WITH_SCHEMA", with_schema)  # True: as older recups and pyarrows sealed
    spool = Spool(tmp_path, "scheduler", "s")
    for each in transitions(4):
        spool.put(each)
    spool.close()
    seal(tmp_path, keep_spool=True)
    monkeypatch.undo()
    for each in transitions(2, first=4):
        spool.put(each)
    assert spool.flush()
    assert times_of(tmp_path) == [at(i) for i in range(6)]
    seal(tmp_path)
    assert times_of(tmp_path) == [at(i) for i in range(6)]


def test_a_run_still_written_is_not_sealed_unless_forced(tmp_path):
    spool = Spool(tmp_path, "scheduler", "s")
    spool.put(transitions(1)[0])
    assert spool.flush()
    with pytest.raises(RunStillWritten, match="scheduler-s"):
        seal(tmp_path)
    assert not (tmp_path / "tables").exists()
    report = seal(tmp_path, force=True)
    assert report.spool_removed is False
    spool.put(transitions(1, first=1)[0])
    spool.close()
    seal(tmp_path)
    assert times_of(tmp_path) == [at(0), at(1)]


def test_a_killed_server_does_not_hold_up_the_seal(tmp_path):
    left_by_a_killed_server(tmp_path / "run", "worker", "w", [schema.TransferKey(0, "k", 1)])
    assert seal(tmp_path / "run").row_counts["transfer_keys"] == 1


def test_a_server_killed_a_moment_ago_does_not_hold_up_the_seal(tmp_path):
    write(tmp_path, "worker", "w", [schema.TransferKey(0, "k", 1)])
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    edit_status(tmp_path / "spool" / "worker-w", closed=False, pid=ended.pid)
    assert seal(tmp_path).row_counts["transfer_keys"] == 1


def test_a_server_of_another_host_with_a_sign_of_life_holds_up_the_seal(tmp_path):
    write(tmp_path, "worker", "w", [schema.TransferKey(0, "k", 1)])
    edit_status(tmp_path / "spool" / "worker-w", closed=False, pid=2**22, hostname="elsewhere")
    with pytest.raises(RunStillWritten):
        seal(tmp_path)


def test_the_end_of_a_damaged_file_becomes_a_loss_once(tmp_path):
    write(tmp_path, "scheduler", "s", transitions(9))
    path = tmp_path / "spool" / "scheduler-s" / "scheduler_transitions.arrows"
    path.write_bytes(path.read_bytes() + b"half a batch")
    expected = [("damaged", "scheduler_transitions", None)]
    for _ in range(3):
        with open_run(tmp_path) as run:
            assert run.sql('select kind, "table", row_count from losses').fetchall() == expected
            assert run.sql("select count(*) from scheduler_transitions").fetchall() == [(9,)]
        seal(tmp_path, keep_spool=True)
    damaged = path.read_bytes()
    assert seal(tmp_path).damaged_files == ("scheduler-s/scheduler_transitions.arrows",)
    assert (tmp_path / "damaged" / "scheduler-s" / "scheduler_transitions.arrows").read_bytes() == damaged


def test_a_file_too_large_to_read_at_once_is_read_batch_by_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(spool_files, "_READ_WHOLE_BYTES", 100)
    write(tmp_path, "scheduler", "s", transitions(20_000))
    path = tmp_path / "spool" / "scheduler-s" / "scheduler_transitions.arrows"
    whole = path.read_bytes()
    assert len(times_of(tmp_path)) == 20_000
    path.write_bytes(whole[:-9])
    assert len(times_of(tmp_path)) == 16_384
    path.write_bytes(whole + b"garbage")
    assert len(times_of(tmp_path)) == 20_000


def test_a_file_the_system_does_not_give_is_not_called_damaged(tmp_path, monkeypatch):
    write(tmp_path, "scheduler", "s", transitions(3))

    def refuse(self):
        raise OSError(errno.EIO, "Input/output error", str(self.path))

    monkeypatch.setattr(spool_files.StreamFile, "_open", refuse)
    with pytest.raises(RunDamaged, match="Input/output error"):
        seal(tmp_path)
    monkeypatch.undo()
    assert len(times_of(tmp_path)) == 3


def test_a_status_written_after_the_seal_does_not_make_the_run_unsealed(tmp_path):
    write(tmp_path, "scheduler", "s", transitions(3))
    status = (tmp_path / "spool" / "scheduler-s" / "status.json").read_bytes()
    seal(tmp_path)
    (tmp_path / "spool" / "scheduler-s").mkdir(parents=True, exist_ok=True)
    (tmp_path / "spool" / "scheduler-s" / "status.json").write_bytes(status)
    with open_run(tmp_path) as run:
        assert run.is_sealed
        assert verdict(completeness(run)) == "complete"


def test_keys_whose_text_is_lost_stay_apart(tmp_path):
    write(tmp_path, "scheduler", "s", transitions(3))
    (tmp_path / "spool" / "scheduler-s" / "keys.arrows").write_bytes(b"")
    for _ in range(2):
        with open_run(tmp_path) as run:
            found = run.sql(
                "select count(*), count(key), count(distinct key_id), sum(run_id) from scheduler_transitions"
            )
            assert found.fetchall() == [(3, 0, 3, 3)]
        seal(tmp_path)


def test_a_server_that_began_anew_is_one_server(tmp_path):
    spool = Spool(tmp_path, "scheduler", "s")
    spool.put(transitions(1)[0])
    assert spool.flush()
    shutil.copytree(spool.directory, tmp_path / "kept")
    shutil.rmtree(spool.directory)
    spool.put(transitions(1, first=1)[0])
    spool.flush()
    spool.put(transitions(1, first=2)[0])
    spool.close()
    shutil.move(tmp_path / "kept", tmp_path / "spool" / "scheduler-s")
    assert [(each.server_id, each.epoch) for each in find_spools(tmp_path)] == [("s", 0), ("s", 1)]
    with open_run(tmp_path) as run:
        found = run.sql("select distinct server_id, key from scheduler_transitions order by key").fetchall()
    assert found == [("s", "x-0"), ("s", "x-1"), ("s", "x-2")]


def test_two_spools_of_the_same_length_of_name_are_told_apart(tmp_path):
    for number in range(2):
        write(tmp_path, "worker", "w" * 119 + str(number), [schema.TransferKey(number, "k", 1)])
    with open_run(tmp_path) as run:
        assert run.sql("select count(distinct server_id) from transfer_keys").fetchall() == [(2,)]


def test_a_full_disk_leaves_the_spool_as_it_was(tmp_path, monkeypatch):
    path = write_run(tmp_path)
    before = {each: each.read_bytes() for each in (path / "spool").rglob("*.arrows")}
    writer = pq.ParquetWriter.write_table

    def full(self, table, *args, **kwargs):
        if "nbytes" in table.column_names:
            raise OSError(28, "No space left on device")
        return writer(self, table, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        seal(path)
    monkeypatch.undo()
    assert {each: each.read_bytes() for each in (path / "spool").rglob("*.arrows")} == before
    assert read_manifest(path)["sealed"] is False
    assert seal(path).spool_removed


# ---------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A run of several batches per file; returns its path and the bytes of its files."""
    path = tmp_path_factory.mktemp("pristine") / "run"
    spool = Spool(path, "scheduler", "Scheduler-1")
    for batch in range(4):
        for each in transitions(60, first=batch * 60):
            spool.put(each)
            spool.put(schema.Log(each.time_ns, "INFO", "distributed", f"message {each.run_id} é", None))
        assert spool.flush()
    spool.close()
    write(path, "worker", "Worker-1", [schema.TransferKey(i, f"x-{i}", i) for i in range(50)])
    return path, {each.relative_to(path): each.read_bytes() for each in path.rglob("*") if each.is_file()}


@SEVERAL
@given(data=st.data())
def test_whatever_happens_to_a_file_the_run_opens_and_tells(pristine, tmp_path_factory, data):
    source, files = pristine
    path = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(source, path)
    victim = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[victim])
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    (path / victim).write_bytes(bytes(content[:cut]) + data.draw(st.binary(max_size=20)))
    # Views are queries on tables, whose content has to be the same sealed or not: they are asked in one state of each run.
    state_of_views = data.draw(st.sampled_from(("spooled", "sealed")))
    for state in ("spooled", "sealed"):
        try:
            with open_run(path) as run:
                for name in ("spools", *sorted({each.stem for each in files if each.suffix == ".arrows"})):
                    run.arrow(name)
                for name in run.views if state == state_of_views else ():
                    run.arrow(name)
                completeness(run)
        except RecupError:
            return
        seal(path, force=True)


def test_a_header_of_keys_that_lost_a_column_is_damage(tmp_path):
    path = write(tmp_path, "worker", "w", [schema.TransferKey(0, "k", 1)]).directory / "keys.arrows"
    path.write_bytes(path.read_bytes().replace(b"key_id", b"kez_id"))
    with open_run(tmp_path) as run:
        assert run.sql("select key, key_id is null from transfer_keys").fetchall() == [(None, False)]
        assert any(each.level == "loss" for each in completeness(run))


@SEVERAL
@given(cut=st.floats(0, 1), tail=st.binary(max_size=40))
def test_every_complete_batch_before_a_cut_survives(pristine, tmp_path_factory, cut, tail):
    source, files = pristine
    path = tmp_path_factory.mktemp("cut") / "run"
    shutil.copytree(source, path)
    victim = path / "spool" / "scheduler-Scheduler-1" / "scheduler_transitions.arrows"
    whole = files[victim.relative_to(path)]
    kept = whole[: round(cut * len(whole))]
    victim.write_bytes(kept + tail)
    found = times_of(path)
    assert len(found) % 60 == 0
    assert found == [at(i) for i in range(len(found))]
    ends = [spool.files["scheduler_transitions"] for spool in find_spools(source) if spool.role == "scheduler"]
    assert len(ends) == 1
    if len(kept) == len(whole):
        assert len(found) == 240


def test_damaged_status_does_not_keep_a_run_from_opening(tmp_path):
    write(tmp_path, "scheduler", "s", transitions(2))
    for content in (b"", b"\0" * 4096, b"[1]", b'{"time_ns": "x", "row_counts": 3, "counters": [], "closed": "yes"}'):
        (tmp_path / "spool" / "scheduler-s" / "status.json").write_bytes(content)
        assert len(times_of(tmp_path)) == 2
        with open_run(tmp_path) as run:
            assert completeness(run)


def test_the_view_of_a_clock_ahead_of_ours_counts_as_alive(tmp_path):
    write(tmp_path, "scheduler", "s", transitions(2))
    edit_status(tmp_path / "spool" / "scheduler-s", closed=False, time_ns=time.time_ns() + 10**10)
    with pytest.raises(RunStillWritten):
        seal(tmp_path)


def test_foreign_files_in_a_spool_are_left_alone(tmp_path):
    write(tmp_path, "scheduler", "s", transitions(2))
    (tmp_path / "spool" / "scheduler-s" / "notes.txt").write_text("mine")
    (tmp_path / "spool" / "stray").write_text("mine")
    assert len(times_of(tmp_path)) == 2


def test_duckdb_reads_the_sealed_tables_without_recup(tmp_path):
    write(tmp_path, "scheduler", "s", transitions(3))
    seal(tmp_path)
    tables = tmp_path / "tables"
    query = f"""
        select before || coalesce(lower(hex(token)) || after, ''), time_us
        from '{tables}/scheduler_transitions.parquet' join '{tables}/keys.parquet' using (key_id) order by time_us
    """
    assert duckdb.sql(query).fetchall() == [(f"x-{i}", at(i) // 1000) for i in range(3)]
