"""The node that counts stands for the one it replaces, and its counters are plain differences."""

import asyncio
import contextlib
import os
import pickle
import threading
import time
import traceback
import types
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from dask._task_spec import Task

from recup.capture import threads
from recup.capture.threads import CountedNode, counting
from recup.schema import ClockSample
from recup.spool import Spool
from tests.unit.spooled import rows

IO = b"rchar: %d\nwchar: %d\nsyscr: %d\nsyscw: %d\nread_bytes: %d\nwrite_bytes: %d\ncancelled_write_bytes: 0\n"


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        ((1000, 50, 7, 3, 0, 0), (1000, 50, 8, 3, 0, 0), (0, 0, 0, 0, 0, 0)),
        ((1000, 50, 7, 3, 0, 0), (1500, 50, 10, 3, 4096, 0), (500, 0, 2, 0, 4096, 0)),
        ((999, 9, 9, 9, 0, 0), (99_999, 109, 12, 10, 0, 8192), (99_000, 100, 2, 1, 0, 8192)),
    ],
)
def test_bytes_moved_are_the_difference_less_the_first_reading_itself(before, after, moved):
    first = IO % before
    last = IO % (after[0] + len(first), *after[1:])
    assert threads._moved(first, last) == moved


@pytest.mark.parametrize("reading", [b"", b"rchar: x\nsyscw: 1\n", b"rchar: 1\n"])
def test_what_the_kernel_does_not_tell_is_unknown_and_not_zero(reading):
    assert threads._moved(reading, reading) == (-1,) * 6
    assert threads._queue_wait(b"", b"1 2 3") == -1


@pytest.fixture(params=["compiled", "python"], autouse=True)
def form(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr(threads, "thread_readings", None)
        monkeypatch.setattr("recup.rows.compiled", None)
    elif threads.thread_readings is None:
        pytest.skip("recup was built without a C compiler")
    return request.param


in_python = pytest.mark.parametrize("form", ["python"], indirect=True)


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path, "worker", "w")
    yield spool
    spool.close()


def counted(spool, function, *arguments, key="k", run_id=5, count=None):
    """A task as the worker holds it, its node replaced by the counting one: of a worker of its own, or `count`'s."""
    task = types.SimpleNamespace(run_spec=Task(key, function, *arguments), run_id=run_id, prefix="p")
    (count or counting(spool)[1])(task)
    assert type(task.run_spec) is CountedNode
    return task


def outcomes(spool):
    return [(row["run_id"], row["kind"], row["outcome"]) for row in rows(spool, "thread_counters")]


def test_the_result_and_the_exception_of_a_task_pass_through(spool):
    assert counted(spool, abs, -1).run_spec({}) == 1
    with pytest.raises(ZeroDivisionError, match="by zero"):
        counted(spool, divmod, 1, 0, run_id=6).run_spec({})
    assert outcomes(spool) == [(5, "task", "returned"), (6, "task", "ZeroDivisionError")]


def test_an_error_passes_as_it_is_with_no_frame_of_a_compiled_counting(spool, form):
    def fail():
        raise KeyboardInterrupt("stop")

    def frames(node):
        with pytest.raises(KeyboardInterrupt, match="stop") as caught:
            node({})
        assert caught.value.__context__ is None
        return [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]

    counting_frames = ["_call"] if form == "python" else []
    bare, seen = frames(Task("k", fail)), frames(counted(spool, fail).run_spec)
    assert seen == [bare[0], *counting_frames, *bare[1:]]
    assert outcomes(spool) == [(5, "task", "KeyboardInterrupt")]


def test_ctrl_c_before_a_task_passes_as_it_is(spool):
    task = counted(spool, abs, -1)

    def interrupted():
        raise KeyboardInterrupt("stop")

    task.run_spec.counters.meet_thread = interrupted
    with pytest.raises(KeyboardInterrupt, match="stop"):
        task.run_spec({})
    assert task.run_spec.inner({}) == 1


def test_a_thread_for_which_no_descriptor_is_left_keeps_none(spool, monkeypatch):
    given = []

    def opened(path):
        if given and given[-1] is not None:
            given.append(None)
            raise OSError(24, "Too many open files")
        given.append(os.open(os.devnull, os.O_RDONLY))
        return given[-1]

    monkeypatch.setattr(threads, "_opened", opened)
    assert counted(spool, abs, -1).run_spec({}) == 1
    assert len(given) == 2
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(given[0])


def test_after_a_hundred_failures_no_further_task_is_counted(spool, monkeypatch):
    counters, count = counting(spool)

    def broken():
        raise ValueError("broken")

    monkeypatch.setattr(counters, "meet_thread", broken)
    for number in range(120):
        node = Task("k", abs, -1)
        task = types.SimpleNamespace(run_spec=node, run_id=number, prefix="p")
        count(task)
        assert task.run_spec({}) == 1
        assert (task.run_spec is node) == (number >= 100)
    kinds = {row["kind"]: row["row_count"] for row in rows(spool, "losses")}
    assert kinds == {"hook_failed": 100, "hook_disabled": None}


def test_results_and_errors_are_let_go_of_after_the_task(spool):
    class Value:
        pass

    def fail():
        raise Error

    class Error(Exception):
        pass

    task = counted(spool, Value)
    result = task.run_spec({})
    gone = weakref.ref(result)
    del result
    assert gone() is None
    try:
        counted(spool, fail).run_spec({})
    except Error as error:
        gone = weakref.ref(error)
    assert gone() is None


def test_bytes_and_calls_of_a_task_are_those_it_made(spool, tmp_path):
    (tmp_path / "input").write_bytes(bytes(5000))

    def copy():
        source = os.open(tmp_path / "input", os.O_RDONLY)
        target = os.open(tmp_path / "output", os.O_WRONLY | os.O_CREAT)
        for _ in range(3):
            os.write(target, os.read(source, 1000))
        os.close(source)
        os.close(target)

    counted(spool, copy).run_spec({})
    counted(spool, abs, -1, run_id=6).run_spec({})
    columns = ("run_id", "read_chars_bytes", "written_chars_bytes", "read_call_count", "write_call_count")
    assert [tuple(row[name] for name in columns) for row in rows(spool, "thread_counters")] == [
        (5, 3000, 3000, 3, 3),
        (6, 0, 0, 0, 0),
    ]


def test_times_and_switches_of_a_task_are_those_of_its_thread(spool):
    def sleep_and_count():
        time.sleep(0.05)
        return sum(range(300_000))

    begun, cpu_begun, wall_begun = time.time_ns(), time.thread_time_ns(), time.perf_counter_ns()
    counted(spool, sleep_and_count).run_spec({})
    cpu, wall = time.thread_time_ns() - cpu_begun, time.perf_counter_ns() - wall_begun
    (row,) = rows(spool, "thread_counters")
    assert begun <= row["time_ns"] <= begun + wall
    assert 50_000_000 <= row["wall_ns"] <= wall
    assert 0 < row["cpu_ns"] <= cpu
    assert row["voluntary_switch_count"] >= 1
    assert 0 <= row["queue_wait_ns"] <= wall - 50_000_000
    assert row["user_ns"] + row["system_ns"] >= 0
    assert row["thread"] == threading.get_ident()


def test_the_node_looks_travels_and_compares_like_the_one_it_stands_for(spool):
    node = Task("k", abs, -1)
    stand_in = counted(spool, abs, -1).run_spec
    assert repr(stand_in) == repr(node)
    assert (stand_in.key, stand_in.dependencies, stand_in.func) == ("k", node.dependencies, abs)
    assert stand_in == node
    travelled = pickle.loads(pickle.dumps(stand_in))
    assert (type(travelled), travelled({})) == (Task, 1)


def test_a_task_that_is_run_again_is_not_counted_twice(spool):
    task = counted(spool, abs, -1)
    task.run_id = 9
    counting(spool)[1](task)
    assert task.run_spec({}) == 1
    assert outcomes(spool) == [(9, "task", "returned")]


def test_a_coroutine_is_awaited_and_its_failure_passes(spool):
    async def double(x):
        return 2 * x

    async def fail():
        raise LookupError("no")

    assert asyncio.run(counted(spool, double, 4).run_spec({})) == 8
    with pytest.raises(LookupError, match="no"):
        asyncio.run(counted(spool, fail).run_spec({}))
    assert outcomes(spool) == [(5, "coroutine", "returned"), (5, "coroutine", "LookupError")]


def test_a_bug_of_the_counting_costs_the_row_and_not_the_task(spool, monkeypatch):
    def broken(*_):
        raise RuntimeError("bug")

    task = counted(spool, abs, -1)
    task.run_spec.counters.local.own = types.SimpleNamespace(begin=broken)
    assert task.run_spec({}) == 1
    monkeypatch.undo()
    assert outcomes(spool) == []
    assert [(row["kind"], row["table"], row["row_count"]) for row in rows(spool, "losses")] == [
        ("hook_failed", "thread_counters", 1)
    ]


def test_what_is_called_around_a_task_cannot_hurt_it(spool):
    calls = []

    def broken():
        raise RuntimeError("bug")

    pairs = [(lambda prefix, key: calls.append((prefix, key)), lambda: calls.append("left")), (lambda *_: None, broken)]
    threads.around.extend(pairs)
    try:
        assert counted(spool, abs, -1).run_spec({}) == 1
    finally:
        threads.around.clear()
    assert calls == [("p", "k"), "left"]
    assert outcomes(spool) == [(5, "task", "returned")]


def test_a_forked_child_does_not_read_the_counters_of_its_parents_thread(spool):
    task = counted(spool, abs, -1)
    task.run_spec({})
    reader, writer = os.pipe()
    local = task.run_spec.counters.local
    pid = os.fork()
    if pid == 0:
        task.run_spec({})
        now = task.run_spec.counters.local
        os.write(writer, b"new" if now is not local and hasattr(now, "own") else b"old")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 3) == b"new"
    os.close(reader)
    os.close(writer)


def test_each_thread_is_counted_by_its_own_files_however_many_take_turns_in_two_workers(spool, tmp_path):
    """More threads than the compiled form remembers, each running tasks of both workers, twice."""
    other = Spool(tmp_path / "other", "worker", "v")
    turns = threading.Barrier(100)
    workers = [(each, key, counting(each)[1]) for each, key in ((spool, "one"), (other, "other"))]

    def run_all(number):
        for _ in range(2):
            for of, key, count in workers:
                counted(of, os.pread, zero.fileno(), 1000 + number, 0, key=key, run_id=number, count=count).run_spec({})
                turns.wait(60)

    with open("/dev/zero", "rb") as zero:
        all_threads = [threading.Thread(target=run_all, args=(number,)) for number in range(100)]
        for each in all_threads:
            each.start()
        for each in all_threads:
            each.join()
    for each, key, _ in workers:
        found = rows(each, "thread_counters")
        assert sorted((row["run_id"], row["read_chars_bytes"]) for row in found) == sorted(
            (number, 1000 + number) for number in range(100) for _ in "ab"
        )
        names = {row["key_id"]: row["key"] for row in rows(each, "keys")}
        assert {names[row["key"]] for row in found} == {key}
        assert len({row["thread"] for row in found}) == 100
    other.close()


def test_files_of_a_thread_are_closed_with_it(spool):
    task = counted(spool, abs, -1)

    def own_files():
        count = 0
        for name in os.listdir("/proc/self/fd"):
            try:
                count += "schedstat" in os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
        return count

    before = own_files()
    thread = threading.Thread(target=task.run_spec, args=({},))
    thread.start()
    thread.join()
    assert own_files() == before


@contextlib.contextmanager
def hanging_disk(spool, monkeypatch):
    """The writer thread is held in a write until the end of the block."""
    hangs, recovers, write = threading.Event(), threading.Event(), os.write

    def hang(descriptor, data):
        hangs.set()
        assert recovers.wait(60)
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", hang)
        spool.put(ClockSample(1, 2, None))
        spool.flush(0)
        try:
            assert hangs.wait(60)
            yield
        finally:
            recovers.set()


def run_again(task, run_ids):
    node = task.run_spec
    for node.run_id in run_ids:
        node({})


def lost(spool):
    return [(row["kind"], row["table"], row["row_count"], row["detail"]) for row in rows(spool, "losses")]


@in_python
def test_the_event_loop_drops_and_counts_the_oldest_attempts_while_the_disk_hangs(spool, monkeypatch):
    task = counted(spool, abs, -1)
    with hanging_disk(spool, monkeypatch):
        run_again(task, range(10))
        with monkeypatch.context() as patch:  # the writer thread, when it goes on, has no reason to drop any
            patch.setattr(threads, "_WAITING_LIMIT", 3)
            spool.limit()
        run_again(task, [10])
    assert outcomes(spool) == [(run_id, "task", "returned") for run_id in (7, 8, 9, 10)]
    assert lost(spool) == [("dropped", "thread_counters", 7, "more tasks ended than could be written")]


@in_python
def test_an_attempt_is_written_or_counted_as_dropped_when_the_writer_and_the_event_loop_meet(spool, monkeypatch):
    task = counted(spool, abs, -1)
    counters = task.run_spec.counters
    put = counters.put

    def put_and_meet(row):
        put(row)
        with monkeypatch.context() as patch:
            patch.setattr(threads, "_WAITING_LIMIT", 1)
            spool.limit()

    with hanging_disk(spool, monkeypatch):
        run_again(task, range(6))
        counters.put = put_and_meet
    assert outcomes(spool) == [(0, "task", "returned"), (5, "task", "returned")]
    assert lost(spool) == [("dropped", "thread_counters", 4, "more tasks ended than could be written")]


@in_python
def test_a_bug_in_making_a_row_costs_that_row_and_holds_up_no_other_table(spool, monkeypatch):
    def broken(*_):
        raise RuntimeError("bug")

    with hanging_disk(spool, monkeypatch):
        run_again(counted(spool, abs, -1), [1])
        monkeypatch.setattr(threads, "_moved", broken)
        spool.put(ClockSample(3, 4, None))
    assert [row["time_ns"] for row in rows(spool, "clock_samples")] == [1, 3]
    monkeypatch.undo()
    run_again(counted(spool, abs, -1), [2])
    assert outcomes(spool) == [(2, "task", "returned")]
    assert lost(spool) == [("hook_failed", "thread_counters", 1, "rows of thread_counters: RuntimeError: bug")]


# ---------------------------------------------------------------- around an actor's methods


def _run_actor(function, args, kwargs, state, key):
    return function(*args, **kwargs)


def fails(error, cause):
    raise error from cause


@pytest.mark.parametrize("is_surrounded", [False, True])
def test_an_error_of_an_actor_is_the_same_with_no_frame_of_recup(spool, is_surrounded):
    surrounding = [(lambda prefix, key: None, lambda: None)] if is_surrounded else []
    threads.around.extend(surrounding)
    error, cause = KeyError("x"), ValueError("why")
    frames = []
    try:
        for is_counted in (False, True, True):
            with ThreadPoolExecutor(1) as executor:
                worker = types.SimpleNamespace(executors={"actor": executor})
                undo = threads.count_actor_methods(worker, counting(spool)[0]) if is_counted else lambda: None
                future = executor.submit(_run_actor, fails, (error, cause), {}, {}, "Act.bad")
                assert future.exception() is error
                undo()
            assert (error.__cause__, error.__context__, error.args) == (cause, None, ("x",))
            frames.append([(each.name, each.lineno) for each in traceback.extract_tb(error.__traceback__)])
    finally:
        for each in surrounding:
            threads.around.remove(each)
    assert [name for name, _ in frames[0]] == ["run", "_run_actor", "fails"]
    assert frames == [frames[0], 2 * frames[0], 3 * frames[0]], "of one error raised again all is kept, as by Python"
    assert outcomes(spool) == [(None, "actor", "KeyError")] * 2
