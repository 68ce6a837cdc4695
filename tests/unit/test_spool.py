"""What reaches the disk, whatever happens to the disk, and what is said of the rest."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from recup import rows as rows_module
from recup.schema import ClockSample, Log, Loss, StartStop, Steal
from recup.spool import Spool
from recup.spool_status import is_written, start_ticks
from recup.spool_table import TableFile


def rows(spool_directory, table):
    with pa.ipc.open_stream((Path(spool_directory) / f"{table}.arrows").read_bytes()) as reader:
        return reader.read_all().to_pylist()


def status(spool):
    return json.loads((spool.directory / "status.json").read_text())


def losses(spool_directory):
    return [(row["kind"], row["table"], row["row_count"]) for row in rows(spool_directory, "losses")]


@pytest.fixture(params=["compiled", "python"], autouse=True)
def form(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr("recup.rows.compiled", None)
    elif rows_module.compiled is None:
        pytest.skip("recup was built without a C compiler")
    return request.param


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "run", "scheduler", "Scheduler-1")
    yield spool
    spool.close()


def test_rows_are_on_disk_after_a_flush(spool):
    spool.put(ClockSample(1, 2, None))
    spool.extender("clock_samples")((3, 4, 0.5))
    assert spool.flush()
    assert rows(spool.directory, "clock_samples") == [
        {"time_ns": 1, "monotonic_ns": 2, "scheduler_delay_s": None},
        {"time_ns": 3, "monotonic_ns": 4, "scheduler_delay_s": 0.5},
    ]
    assert status(spool)["row_counts"] == {"clock_samples": 2}
    assert not status(spool)["closed"]


def test_rows_reach_the_disk_by_themselves_within_a_second(spool):
    begun = time.monotonic()
    spool.put(ClockSample(1, 2, None))
    while not (spool.directory / "clock_samples.arrows").exists():
        assert time.monotonic() - begun < 5
    assert time.monotonic() - begun < 1.5


STRANGE_KEYS = [
    "plain", ("x", 1), ("x", (2, "y")), 7, 1.5, b"bytes", 'quo"te\'s', "new\nline", "ünï", "k" * 10_240, "", "a\0b", "\ud800",
]  # fmt: skip


def test_keys_of_every_kind_are_told_apart_and_come_back(spool):
    put = spool.extender("transfer_keys")
    for number, key in enumerate([*STRANGE_KEYS, *STRANGE_KEYS]):
        put((number, key, 1))
    spool.flush()

    ids = [row["key"] for row in rows(spool.directory, "transfer_keys")]
    keys = {row["key_id"]: (row["key"], row["key_type"]) for row in rows(spool.directory, "keys")}

    shown = [str(key).encode("utf-8", "backslashreplace").decode() for key in STRANGE_KEYS]
    assert [keys[each] for each in ids[: len(shown)]] == [
        (text, type(key).__name__) for text, key in zip(shown, STRANGE_KEYS, strict=True)
    ]
    assert ids[: len(shown)] == ids[len(shown) :]


def test_keys_are_forgotten_past_a_limit_and_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr("recup.spool._INTERNED_KEYS_LIMIT", 10)
    spool = Spool(tmp_path, "worker", "w")
    put = spool.extender("transfer_keys")
    for round_number in range(3):
        for number in range(20):
            put((round_number, f"k{number}", 0))
        spool.flush()
    keys = {row["key_id"]: row["key"] for row in rows(spool.directory, "keys")}
    assert [keys[row["key"]] for row in rows(spool.directory, "transfer_keys")] == [f"k{n}" for n in range(20)] * 3
    assert spool._form.key_count <= 20
    spool.close()


class Unprintable:
    def __str__(self):
        raise RuntimeError("no")


def test_a_key_that_cannot_be_shown_is_written_as_its_type(spool):
    spool.extender("transfer_keys")((0, Unprintable(), 1))
    spool.flush()
    assert rows(spool.directory, "keys")[0]["key"] == "<Unprintable whose str() raised RuntimeError>"


def test_put_never_raises_and_counts_what_it_could_not_take(spool):
    spool.put(object())
    spool.flush()
    assert losses(spool.directory) == [("hook_failed", None, None)]


def test_a_key_that_cannot_be_one_costs_no_other_row(spool, form):
    spool.extender("transfer_keys")((0, ["unhashable"], 1))
    spool.flush()
    spool.extender("transfer_keys")((1, "good", 1))
    spool.flush()
    written = [row["transfer"] for row in rows(spool.directory, "transfer_keys")]
    if form == "python":
        assert written == [1]
        assert losses(spool.directory) == [("dropped", "transfer_keys", 1)]
    else:
        assert written == [0, 1]
        assert rows(spool.directory, "keys")[0] == {"key_id": 0, "key": "['unhashable']", "key_type": "list"}


def test_a_batch_that_cannot_be_encoded_costs_only_its_own_rows(spool, monkeypatch):
    batch = type(spool._form).batch

    def broken(form, stream, values):
        monkeypatch.undo()
        batch(form, stream, values)
        raise MemoryError("none left")

    monkeypatch.setattr(type(spool._form), "batch", broken)
    spool.put(Steal(0, "request", "k", "a", "b", None, 1, 0.1, 0.2, 0.3, None, -1))
    spool.flush()
    spool.put(Steal(1, "request", "k", "a", "b", None, 1, 0.1, 0.2, 0.3, None, -1))
    spool.flush()
    assert [(row["time_ns"], row["victim"]) for row in rows(spool.directory, "steals")] == [(1, "a")]
    assert [row["key"] for row in rows(spool.directory, "keys")] == ["k", "k"]  # the first is known, and of no row
    assert losses(spool.directory) == [("dropped", "steals", 1)]


def test_what_is_lost_while_losses_are_written_is_counted_too(spool, monkeypatch):
    spool.lose("dropped", "logs", "full", 2)
    batch = type(spool._form).batch

    def batch_while_more_is_lost(*args):
        if spool.closed_at_s is None:
            spool.lose("dropped", "logs", "full", 5)
            monkeypatch.undo()
        return batch(*args)

    monkeypatch.setattr(type(spool._form), "batch", batch_while_more_is_lost)
    assert spool.flush()
    assert spool.flush()
    assert losses(spool.directory) == [("dropped", "logs", 2), ("dropped", "logs", 5)]


def test_losses_of_one_kind_are_added_up(spool):
    for _ in range(5):
        spool.lose("dropped", "logs", "why", 2)
    spool.lose("gap", None, "elsewhere")
    spool.flush()
    assert losses(spool.directory) == [("dropped", "logs", 10), ("gap", None, None)]


def test_a_guarded_hook_is_counted_and_switched_off_after_a_hundred_failures(spool):
    calls = []

    def hook():
        calls.append(1)
        raise ValueError("broken")

    guarded = spool.guard("hook", hook, table_name="logs")
    for _ in range(150):
        assert guarded() is None
    spool.flush()
    assert len(calls) == 100
    assert losses(spool.directory) == [("hook_failed", "logs", 100), ("hook_disabled", "logs", None)]


def test_what_fails_before_a_flush_is_counted_and_holds_up_no_table(spool):
    calls = []

    def broken():
        calls.append(1)
        raise ValueError("bug")

    spool.prepare += [broken, lambda: spool.put(Log(len(calls), "INFO", "prepared", "text", None))]
    spool.put(ClockSample(1, 2, None))
    assert spool.flush()
    assert rows(spool.directory, "clock_samples") == [{"time_ns": 1, "monotonic_ns": 2, "scheduler_delay_s": None}]

    spool.prepare = []
    spool.flush()
    assert [row["time_ns"] for row in rows(spool.directory, "logs")] == list(range(1, len(calls) + 1))
    assert losses(spool.directory) == [("hook_failed", None, 1)] * len(calls)
    assert {row["detail"].rpartition(".")[2] for row in rows(spool.directory, "losses")} == {"broken: ValueError: bug"}


def test_rows_beyond_the_limit_of_a_stuck_disk_are_dropped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("recup.spool._BUFFERED_VALUES_LIMIT", 30)
    spool, holding, held = Spool(tmp_path, "worker", "w"), threading.Event(), threading.Event()

    def hang():
        holding.set()
        held.wait(10)

    spool.prepare.append(hang)
    spool.put(ClockSample(-1, 0, None))
    holding.wait(10)  # the writer thread is held up, as by a disk
    for number in range(20):
        spool.put(ClockSample(number, 0, None))
    spool.limit()
    held.set()
    spool.flush()
    spool.flush()
    written = [row["time_ns"] for row in rows(spool.directory, "clock_samples")]
    [(kind, table, lost)] = losses(spool.directory)
    assert (kind, table, len(written) + lost) == ("dropped", "clock_samples", 21)
    assert lost > 0
    assert written == list(range(20 - len(written), 20))
    spool.close()


def test_a_full_disk_loses_rows_says_so_and_recovers(spool, monkeypatch):
    real_write, full = os.write, [True]

    def write(descriptor, data):
        if full[0] and len(data) > 100:
            real_write(descriptor, bytes(data[:100]))  # the kernel takes what fits
            raise OSError(28, "No space left on device")
        return real_write(descriptor, data)

    spool.put(ClockSample(0, 0, None))
    spool.flush()
    monkeypatch.setattr(os, "write", write)
    for number in range(1, 51):
        spool.put(ClockSample(number, 0, None))
    spool.flush()
    assert status(spool)["unwritten_losses"] == {"write_failed:clock_samples": 50}

    full[0] = False
    spool.put(ClockSample(99, 0, None))
    spool.flush()

    assert [row["time_ns"] for row in rows(spool.directory, "clock_samples")] == [0, 99]
    assert losses(spool.directory) == [("write_failed", "clock_samples", 50)]


def test_files_removed_while_being_written_are_started_anew_elsewhere(spool):
    spool.put(Steal(1, "request", "k", "a", "b", None, 1, 0.1, 0.2, 0.3, None, -1))
    spool.flush()
    shutil.rmtree(spool.run_directory)
    spool.put(Steal(2, "request", "k", "a", "b", None, 1, 0.1, 0.2, 0.3, None, -1))
    spool.flush()  # notices
    spool.put(Steal(3, "request", "k", "a", "b", None, 1, 0.1, 0.2, 0.3, None, -1))
    spool.flush()

    assert spool.directory.name == "scheduler-Scheduler-1.1"
    assert [row["time_ns"] for row in rows(spool.directory, "steals")] == [2, 3]
    assert [row["key"] for row in rows(spool.directory, "keys")] == ["k"]
    assert ("write_failed", "steals", 1) in losses(spool.directory)


def test_nothing_is_ever_written_twice_under_one_name(tmp_path):
    first, second = Spool(tmp_path, "worker", "same"), Spool(tmp_path, "worker", "same")
    for number, spool in enumerate((first, second)):
        spool.put(ClockSample(number, 0, None))
        spool.flush()
    second.put(ClockSample(2, 0, None))
    second.close()
    first.close()
    assert [row["time_ns"] for row in rows(first.directory, "clock_samples")] == [0]
    assert [row["time_ns"] for row in rows(second.directory, "clock_samples")] == [1, 2]
    assert [each.directory.name for each in (first, second)] == ["worker-same", "worker-same.1"]
    assert [status(each)["row_counts"] for each in (first, second)] == [{"clock_samples": 1}, {"clock_samples": 2}]
    assert not (first.directory / "losses.arrows").exists() and not (second.directory / "losses.arrows").exists()


def test_an_epoch_that_its_status_begins_has_the_keys_of_its_rows(spool):
    spool.put(Steal(1, "request", "k", "a", "b", None, 1, 0.1, 0.2, 0.3, None, -1))
    spool.flush()
    (spool.directory / "status.json").unlink()
    (spool.directory / "status.json").write_text("of another")
    spool.put(ClockSample(1, 0, None))
    spool.flush()
    spool.put(Steal(2, "request", "k", "a", "b", None, 1, 0.1, 0.2, 0.3, None, -1))
    spool.flush()
    assert spool.directory.name == "scheduler-Scheduler-1.1"
    assert [row["time_ns"] for row in rows(spool.directory, "steals")] == [2]
    assert [row["key"] for row in rows(spool.directory, "keys")] == ["k"]


def open_files(directory):
    """Names of files in a directory that this process has open."""
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            path = Path(os.readlink(each))
            found |= {path.name} if path.parent == directory else set()
    return found


def test_files_to_which_nothing_comes_are_closed_and_go_on_when_something_does(spool, monkeypatch):
    monkeypatch.setattr("recup.spool_table._REST_S", -1.0)
    spool.put(ClockSample(1, 0, None))
    spool.put(Log(1, "INFO", "dask", "first", None))
    spool.flush()
    assert open_files(spool.directory) == {"status.json"}
    spool.put(Log(2, "WARNING", "dask", "second", None))
    spool.flush()
    assert [(row["level"], row["message"]) for row in rows(spool.directory, "logs")] == [
        ("INFO", "first"), ("WARNING", "second"),
    ]  # fmt: skip
    assert status(spool)["row_counts"] == {"clock_samples": 1, "logs": 2}


def test_a_file_removed_while_it_is_written_costs_what_was_encoded_with_it_and_that_is_counted(spool, monkeypatch):
    """Between the look at the files and the write."""
    spool.put(ClockSample(1, 0, None))
    spool.put(Log(1, "INFO", "dask", "text", None))
    spool.flush()
    batch = type(spool._form).batch

    def removing(form, stream, values):
        monkeypatch.undo()
        monkeypatch.setattr("recup.spool_table._REST_S", -1.0)
        for file in spool._files.values():
            file.close()
        shutil.rmtree(spool.directory)
        return batch(form, stream, values)

    monkeypatch.setattr(type(spool._form), "batch", removing)
    spool.put(ClockSample(2, 0, None))
    spool.put(Log(2, "INFO", "dask", "text", None))
    spool.flush()
    spool.put(ClockSample(3, 0, None))
    spool.flush()
    assert spool.directory.name == "scheduler-Scheduler-1.1"
    assert [row["time_ns"] for row in rows(spool.directory, "clock_samples")] == [3]
    assert sorted(losses(spool.directory)) == [
        (kind, table, 1) for kind, table in [("write_failed", "clock_samples"), ("write_failed", "logs")] for _ in "ab"
    ]


@pytest.mark.parametrize("owner", ["file", "keys"])
def test_where_memory_fails_before_a_write_the_next_rows_bring_all_they_need(spool, monkeypatch, owner):
    target, name = (TableFile, "write") if owner == "file" else (type(spool._form), "new_keys")
    spool.put(Steal(0, "request", "k0", "a", "b", None, 1, 0.1, 0.2, 0.3, None, -1))
    spool.flush()

    def failing(*_):
        monkeypatch.undo()
        raise MemoryError("none left")

    monkeypatch.setattr(target, name, failing)
    spool.put(Steal(1, "request", "k1", "new", "b", None, 1, 0.1, 0.2, 0.3, None, -1))
    spool.flush()
    spool.put(Steal(2, "request", "k1", "new", "b", None, 1, 0.1, 0.2, 0.3, None, -1))
    spool.flush()
    keys = {row["key_id"]: row["key"] for row in rows(spool.directory, "keys")}
    assert [(row["time_ns"], keys[row["key"]], row["victim"]) for row in rows(spool.directory, "steals")] == [
        (0, "k0", "a"), (2, "k1", "new"),
    ]  # fmt: skip
    assert losses(spool.directory) == [("write_failed" if owner == "file" else "dropped", "steals", 1)]


def test_what_was_encoded_before_a_batch_that_cannot_be_is_written_with_its_keys(spool, monkeypatch):
    batch = type(spool._form).batch

    def broken(form, stream, values):
        if "steals" in spool._files:
            monkeypatch.undo()
            raise MemoryError("none left")
        return batch(form, stream, values)

    monkeypatch.setattr(type(spool._form), "batch", broken)
    spool.put(StartStop("early", 1, "compute", 1.0, 2.0, None))
    spool.put(Steal(2, "request", "late", "a", "b", None, 1, 0.1, 0.2, 0.3, None, -1))
    spool.put(ClockSample(3, 0, None))
    spool.flush()
    spool.put(StartStop("early", 1, "compute", 4.0, 5.0, None))
    spool.flush()
    keys = {row["key_id"]: row["key"] for row in rows(spool.directory, "keys")}
    assert [(row["start_s"], keys[row["key"]]) for row in rows(spool.directory, "startstops")] == [
        (1.0, "early"), (4.0, "early"),
    ]  # fmt: skip
    assert len(rows(spool.directory, "clock_samples")) == 1
    assert losses(spool.directory) == [("dropped", "steals", 1)]


@pytest.mark.parametrize("is_open", [True, False])
def test_rows_of_a_removed_file_are_lost_and_no_others(spool, monkeypatch, is_open):
    monkeypatch.setattr("recup.spool._LOOK_S", -1.0)
    if not is_open:
        monkeypatch.setattr("recup.spool_table._REST_S", -1.0)
    for number in range(3):
        spool.put(ClockSample(number, 0, None))
        spool.put(Log(number, "INFO", "dask", "text", None))
    spool.flush()
    (spool.directory / "logs.arrows").unlink()
    spool.put(Log(9, "INFO", "dask", "text", None))
    spool.flush()
    assert spool.directory.name == "scheduler-Scheduler-1.1"
    assert [row["time_ns"] for row in rows(spool.directory, "logs")] == [9]
    assert losses(spool.directory) == [("write_failed", "logs", 3)]
    assert len(rows(spool.directory.with_name("scheduler-Scheduler-1"), "clock_samples")) == 3


def test_a_file_whose_end_cannot_be_mended_is_left_for_another(spool, monkeypatch):
    spool.put(ClockSample(1, 0, None))
    spool.flush()
    write, truncate = os.write, os.ftruncate

    def half(descriptor, data):
        monkeypatch.setattr(os, "write", broken)
        return write(descriptor, data[: len(data) // 2])

    def broken(*_):
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "write", half)
    monkeypatch.setattr(os, "ftruncate", broken)
    spool.put(ClockSample(2, 0, None))
    spool.flush()
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "ftruncate", truncate)
    spool.put(ClockSample(3, 0, None))
    spool.flush()
    assert spool.directory.name == "scheduler-Scheduler-1.1"
    assert [row["time_ns"] for row in rows(spool.directory, "clock_samples")] == [3]
    assert losses(spool.directory) == [("write_failed", "clock_samples", 1)]


def test_a_flush_ends_though_rows_come_as_fast_as_they_are_written(spool, monkeypatch):
    batches = []
    append = os.write

    def slow(descriptor, data):
        batches.append(len(data))
        assert len(batches) < 50
        spool.put(ClockSample(len(batches), 0, None))
        return append(descriptor, data)

    monkeypatch.setattr(os, "write", slow)
    spool.put(ClockSample(0, 0, None))
    assert spool.flush()
    monkeypatch.undo()
    assert spool.flush()
    assert rows(spool.directory, "clock_samples")[-1]["time_ns"] == len(batches)


def test_losses_of_known_and_of_unknown_number_stay_apart_with_their_reasons(spool):
    spool.lose("not_captured", "sources", "the script cannot be read")
    spool.lose("not_captured", "sources", "texts of frames", 1)
    assert spool.unwritten_losses() == {"not_captured:sources": -1}
    spool.flush()
    assert [(row["row_count"], row["detail"]) for row in rows(spool.directory, "losses")] == [
        (None, "the script cannot be read"), (1, "texts of frames"),
    ]  # fmt: skip


def test_reasons_without_end_are_added_up(spool):
    for number in range(1_000):
        spool.lose("degraded", "logs", f"reason {number}", 1)
    spool.flush()
    found = rows(spool.directory, "losses")
    assert len(found) == 201
    assert sum(row["row_count"] for row in found) == 1_000


def test_what_waits_in_all_tables_together_is_bounded(spool, monkeypatch):
    monkeypatch.setattr("recup.spool._BUFFERED_VALUES_LIMIT", 100)
    monkeypatch.setattr("recup.spool.FLUSH_INTERVAL_S", 60.0)
    assert spool.flush()
    for number in range(30):
        spool.put(ClockSample(number, 0, None))  # 3 values
        spool.put(Log(number, "INFO", "dask", "text", None))  # 5 values
    spool.limit()
    spool.flush()
    kept = {name: len(rows(spool.directory, name)) for name in ("clock_samples", "logs")}
    assert 3 * kept["clock_samples"] + 5 * kept["logs"] <= 100
    assert {table: count for _, table, count in losses(spool.directory)} == {
        name: 30 - count for name, count in kept.items() if count < 30
    }


def test_rows_put_long_after_the_close_are_still_written(spool, monkeypatch):
    monkeypatch.setattr("recup.spool._LINGER_S", -1.0)
    spool.put(Log(1, "INFO", "early", "text", None))
    spool.close()
    spool.flush()  # the writer thread lets go of it
    assert open_files(spool.directory) == set()
    spool.put(Log(2, "INFO", "late", "task thread", None))
    spool.flush()
    assert [row["logger"] for row in rows(spool.directory, "logs")] == ["early", "late"]
    assert (status(spool)["closed"], status(spool)["row_counts"]) == (True, {"logs": 2})


def test_a_thread_that_could_not_be_started_does_not_keep_a_spool_open(tmp_path):
    spool = Spool(tmp_path, "worker", "w")
    spool.describing = threading.Thread()
    spool.put(ClockSample(1, 0, None))
    spool.close()
    assert status(spool)["closed"] is True


def test_a_key_that_shows_itself_as_itself_costs_no_row(spool):
    class Key(str):
        def __str__(self):
            return self

    put = spool.extender("transfer_keys")
    for number in range(3):
        put((number, Key("odd"), 1))
    assert spool.flush()
    assert [row["transfer"] for row in rows(spool.directory, "transfer_keys")] == [0, 1, 2]
    assert [row["key"] for row in rows(spool.directory, "keys")] == ["odd"]


def test_a_key_that_ends_threads_does_not_end_the_writer(spool):
    class Key:
        def __hash__(self):
            raise SystemExit

    spool.extender("transfer_keys")((1, Key(), 1))
    assert spool.flush()
    spool.put(ClockSample(1, 0, None))
    assert spool.flush()
    assert len(rows(spool.directory, "clock_samples")) == 1
    assert losses(spool.directory) == [("dropped", "transfer_keys", 1)]


def test_a_process_that_is_there_may_still_write_and_one_of_its_number_may_not(spool):
    spool.put(ClockSample(1, 0, None))
    spool.flush()
    left = status(spool) | {"time_ns": 1}  # stopped, or held by its disk, for years
    assert is_written(left)
    assert not is_written(left | {"start_ticks": left["start_ticks"] + 1})
    assert not is_written(left | {"closed": True})
    assert not is_written(left | {"hostname": "elsewhere"})
    assert is_written(left | {"hostname": "elsewhere", "time_ns": time.time_ns()})


def test_a_process_that_ended_and_is_not_waited_for_writes_no_more():
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(os.getpid()) > 0
    assert start_ticks(child.pid) is None
    child.wait()


def test_rows_put_after_close_are_still_written(spool):
    spool.close()
    spool.put(Log(1, "INFO", "late", "task thread", None))
    spool.flush()
    assert [row["logger"] for row in rows(spool.directory, "logs")] == ["late"]


def run_python(body, *arguments):
    code = textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


def test_rows_are_written_at_a_normal_exit_without_close(tmp_path):
    done = run_python(
        """
        import sys
        from recup.spool import Spool
        from recup.schema import ClockSample
        Spool(sys.argv[1], "client", "c").put(ClockSample(5, 6, None))
        """,
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert [row["time_ns"] for row in rows(tmp_path / "spool" / "client-c", "clock_samples")] == [5]


def test_a_forked_child_writes_nothing_of_its_parents(tmp_path):
    done = run_python(
        """
        import os, sys, warnings
        from recup.spool import Spool
        from recup.schema import ClockSample
        warnings.simplefilter("ignore")
        spool = Spool(sys.argv[1], "client", "c")
        spool.put(ClockSample(1, 0, None))
        spool.flush()
        pid = os.fork()
        spool.put(ClockSample(2, 0, None))
        if pid:
            os.waitpid(pid, 0)
        spool.flush()
        """,
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert [row["time_ns"] for row in rows(tmp_path / "spool" / "client-c", "clock_samples")] == [1, 2]


def test_a_killed_process_leaves_all_that_is_older_than_a_second(tmp_path):
    code = """
    import os, signal, sys, time
    from recup.spool import Spool
    from recup.schema import ClockSample
    spool = Spool(sys.argv[1], "client", "c")
    end = time.monotonic() + 2
    while time.monotonic() < end:
        spool.put(ClockSample(time.time_ns(), 0, None))
        time.sleep(0.001)
    print(time.time_ns(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    done = run_python(code, str(tmp_path))
    assert done.returncode == -9
    times = [row["time_ns"] for row in rows(tmp_path / "spool" / "client-c", "clock_samples")]
    assert int(done.stdout) - times[-1] < 1_000_000_000


def test_the_schema_refuses_a_row_that_is_not_its_own():
    with pytest.raises(TypeError):
        Loss(1, "dropped")


def test_rows_of_a_closed_server_that_were_sealed_and_taken_away_are_not_lost(spool, monkeypatch):
    monkeypatch.setattr("recup.spool._LINGER_S", -1.0)
    spool.put(Log(1, "INFO", "early", "text", None))
    spool.close()
    spool.flush()
    shutil.rmtree(spool.directory)
    for number in (2, 3):
        spool.put(Log(number, "INFO", "late", "task thread", None))
        spool.flush()
    assert spool.directory.name == "scheduler-Scheduler-1.1"
    assert [row["time_ns"] for row in rows(spool.directory, "logs")] == [2, 3]
    assert not (spool.directory / "losses.arrows").exists()
