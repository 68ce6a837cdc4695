"""Answers of views kept beside a sealed run."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recup import schema, store
from recup.derived import keep_answer
from recup.rundir import create_run
from recup.store import open_run, seal
from tests.unit.spooled import write
from tests.unit.written_runs import at


@pytest.fixture(autouse=True)
def everything_is_worth_keeping(monkeypatch):
    monkeypatch.setattr(store, "_WORTH_KEEPING_S", 0.0)


def write_attempts(path, keys):
    rows = [schema.SchedulerTransition(at(1), key, "waiting", "processing", "s-1", "tcp://a:1", 7) for key in keys]
    return write(path, "scheduler", "Scheduler-1", rows)


@pytest.fixture
def sealed(tmp_path):
    path = create_run(tmp_path, way="run", run_id="a")
    write_attempts(path, ["x", "y"])
    seal(path, keep_spool=True)
    return path


def keys_of(path):
    with open_run(path) as run:
        return sorted(key for (key,) in run.sql("select key from task_runs").fetchall())


def kept(path):
    return sorted(each for each in (path / "derived").glob("attempt_facts-*"))


def forge(path, key):
    """Put another answer in the place of the kept one."""
    with open_run(path) as run:
        digests = run._digests()
        rows = run.arrow("attempt_facts").slice(0, 1)
    position = rows.schema.get_field_index("key")
    pq.write_table(rows.set_column(position, "key", pa.array([key])), path / "forged")
    keep_answer(path / "forged", path / "derived", "attempt_facts", digests["attempt_facts"], digests)


def test_an_answer_is_kept_and_taken_by_the_next_that_asks(sealed):
    assert keys_of(sealed) == ["x", "y"]
    (first,) = kept(sealed)
    assert keys_of(sealed) == ["x", "y"]
    assert kept(sealed) == [first]
    forge(sealed, "forged")
    assert keys_of(sealed) == ["forged"]


def test_kept_answers_have_the_types_of_computed_ones(sealed, monkeypatch):
    with open_run(sealed) as run:
        names = [name for name, view in run._views.items() if view.is_kept and not view.is_inner]
        for name in names:
            run.sql(f"from {name} limit 1").fetchall()
    described = []
    for is_kept in (True, False):
        if not is_kept:
            shutil.rmtree(sealed / "derived")
            monkeypatch.setattr(store, "_WORTH_KEEPING_S", 1e9)
        with open_run(sealed) as run:
            described.append({name: run.sql(f"describe from {name}").fetchall() for name in names})
    assert described[0] == described[1]


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_answer_is_made_anew(sealed, damage):
    keys_of(sealed)
    (path,) = kept(sealed)
    whole = path.read_bytes()
    middle = len(whole) // 3
    changed = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    path.write_bytes({"cut": whole[:middle], "changed": changed, "empty": b""}[damage])
    assert keys_of(sealed) == ["x", "y"]
    (made,) = kept(sealed)
    pq.read_table(made)
    assert keys_of(sealed) == ["x", "y"]


def test_an_answer_of_tables_that_were_sealed_anew_is_not_taken_and_goes(sealed):
    keys_of(sealed)
    (stale,) = kept(sealed)
    write(
        sealed,
        "scheduler",
        "Scheduler-2",
        [schema.SchedulerTransition(at(2), "z", "waiting", "processing", "s-2", "b", 1)],
    )
    assert keys_of(sealed) == ["x", "y", "z"]
    assert kept(sealed) == [stale]
    seal(sealed)
    assert keys_of(sealed) == ["x", "y", "z"]
    (fresh,) = kept(sealed)
    assert fresh != stale


def test_an_answer_of_another_recup_is_not_taken(sealed, monkeypatch):
    keys_of(sealed)
    forge(sealed, "forged")
    monkeypatch.setattr(store, "__version__", "0.0.0")
    assert keys_of(sealed) == ["x", "y"]


def test_where_nothing_can_be_kept_the_answer_comes_all_the_same(sealed):
    (sealed / "derived").write_text("a file")
    assert keys_of(sealed) == ["x", "y"]
    assert (sealed / "derived").read_text() == "a file"


def test_a_full_disk_keeps_nothing_and_leaves_nothing(sealed, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recup.derived.shutil.copyfile", full)
    assert keys_of(sealed) == ["x", "y"]
    assert list((sealed / "derived").iterdir()) == []


def test_a_run_that_is_not_sealed_keeps_nothing(tmp_path):
    path = create_run(tmp_path, way="run", run_id="a")
    write_attempts(path, ["x"])
    assert keys_of(path) == ["x"]
    assert not (path / "derived").exists()


def test_small_runs_stay_as_they_are(sealed, monkeypatch):
    monkeypatch.setattr(store, "_WORTH_KEEPING_S", 1e9)
    assert keys_of(sealed) == ["x", "y"]
    assert not (sealed / "derived").exists()


def test_an_answer_that_was_taken_stays_when_another_process_removes_it(sealed):
    keys_of(sealed)
    with open_run(sealed) as run:
        run.sql("from task_runs limit 1").fetchall()
        shutil.rmtree(sealed / "derived")
        assert len(run.sql("from task_runs").fetchall()) == 2


def test_two_that_ask_at_once_both_have_the_answer(sealed):
    with open_run(sealed) as one, open_run(sealed) as other:
        assert sorted(one.sql("select key from task_runs").fetchall()) == [("x",), ("y",)]
        assert sorted(other.sql("select key from task_runs").fetchall()) == [("x",), ("y",)]
    assert len(kept(sealed)) == 1


def test_no_other_file_can_be_read_for_it(sealed):
    keys_of(sealed)
    (path,) = kept(sealed)
    with open_run(sealed) as run, pytest.raises(store.BadQuery):
        run.sql(f"from read_parquet('{path}')").fetchall()
