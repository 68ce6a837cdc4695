"""Whatever dies, the workload ends as it would without recup and the record says what it holds."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.cluster.recorded import losses, record, rows, spools, statuses, write_program

BUSY = """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    with local() as cluster, Client(cluster) as client:
        print(len(cluster.workers), flush=True)
        end = time.time() + 60
        while time.time() < end:
            client.gather(client.map(slow, range(20), t=0.01, pure=False))
            open(sys.argv[1], "a").write(f"{os.getpid()} {' '.join(str(w.process.pid) for w in cluster.workers.values())}\\n")
"""
FINITE = """
    # Works until it may end, and ten rounds more: what happens before that falls into the middle of the work.
    with local(**workers) as cluster, Client(cluster) as client:
        n = 0
        while n < 10:
            n += os.path.exists(sys.argv[1] + "-may-end")
            total = sum(client.gather(client.map(slow, range(20), t=0.01, pure=False)))
            if n:
                print(total, flush=True)
            open(sys.argv[1], "a").write(f"{os.getpid()} {' '.join(str(w.process.pid) for w in cluster.workers.values())}\\n")
        client.wait_for_workers(workers["n_workers"])
"""
ONE_WORKER = f"    workers = dict(n_workers=1, threads_per_worker=2){FINITE}"
TWO_WORKERS = f"    workers = dict(n_workers=2, threads_per_worker=1){FINITE}"
OUTPUT = ["190"] * 10
"""What they print, recorded or not: one constant, a round a line."""


def wait_for(condition, timeout_s=60):
    """Poll until the condition returns something true; returns it."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def progress(path):
    """Process ids (script, then workers) once the program has done some work and every worker has a process."""
    lines = path.read_text().splitlines() if path.exists() else []
    pids = lines[-1].split() if len(lines) >= 5 else []
    return [int(pid) for pid in pids] if pids and all(map(str.isdigit, pids)) else None


class Started:
    """A program started with or without recup, in a process group of its own."""

    def __init__(self, tmp_path, body, with_recup=True):
        self.marker = tmp_path / f"progress-{with_recup}"
        self.root = tmp_path / "runs"
        script = write_program(tmp_path / "program.py", body)
        prefix = ["-m", "recup", "run", "--quiet", "--no-seal", "--root", str(self.root)] if with_recup else []
        command = [sys.executable, *prefix, str(script), str(self.marker)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
        )
        self.output = ""

    def pids(self):
        return wait_for(lambda: progress(self.marker))

    def let_end(self):
        """Let a finite program end; returns its code."""
        self.marker.with_name(f"{self.marker.name}-may-end").touch()
        return self.end()

    @property
    def run(self):
        (run,) = (each for each in self.root.iterdir() if each.is_dir())
        return run

    def end(self, timeout=90):
        self.output, self.errors = self.process.communicate(timeout=timeout)
        return self.process.returncode

    def clean(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def start(tmp_path):
    started = []

    def begin(body, with_recup=True):
        started.append(Started(tmp_path, body, with_recup))
        return started[-1]

    yield begin
    for each in started:
        each.clean()


def wait_until_written(program):
    """Wait until both sides of the work are on disk: from then on at most the last second is missing."""
    for role, table in (("scheduler", "scheduler_transitions"), ("worker", "worker_transitions")):
        wait_for(lambda asked=(program.run, role, table): rows(*asked))


def last_time_ns(run, role, table):
    return max(row["time_ns"] for row in rows(run, role, table))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_script_ends_it_as_without_recup_and_leaves_its_last_second(start, number):
    program = start(BUSY)
    script, *_ = program.pids()
    wait_until_written(program)
    os.kill(script, number)
    killed_ns = time.time_ns()
    code = program.end()
    if (
        number == signal.SIGINT
    ):  # what becomes of it is for Python and Dask to say; of the others the kernel ends a program
        bare = start(BUSY, with_recup=False)
        os.kill(bare.pids()[0], number)
        assert code == bare.end()
    else:
        assert code == -number
    run = program.run
    for role, table in (("scheduler", "scheduler_transitions"), ("worker", "worker_transitions")):
        assert killed_ns - last_time_ns(run, role, table) < 1_000_000_000


def test_killed_and_terminated_workers_are_seen_with_their_signals_and_the_workload_goes_on(start):
    program = start(TWO_WORKERS)
    _, killed, terminated = program.pids()
    # One that is killed in the first second of its record leaves none, as is said.
    wait_for(lambda: len({row["server"] for row in rows(program.run, "worker", "worker_transitions")}) == 2)
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: killed not in (now := program.pids()) and len(now) == 3)
    os.kill(terminated, signal.SIGTERM)
    assert program.let_end() == 0
    assert program.output.splitlines() == OUTPUT
    ends = [(row["pid"], row["how"], row["signal"]) for row in rows(program.run, "nanny", "process_ends")]
    assert {(killed, "signalled", signal.SIGKILL), (terminated, "signalled", signal.SIGTERM)} <= set(ends)
    assert len(spools(program.run, "worker")) == 4
    (status,) = [each for each in statuses(program.run, "worker") if each["pid"] == killed]
    assert not status["closed"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_all_but_the_last_second(start, number):
    program = start(BUSY)
    program.pids()
    wait_until_written(program)
    os.killpg(program.process.pid, number)
    killed_ns = time.time_ns()
    assert program.end() == -number
    for role, table in (("scheduler", "scheduler_transitions"), ("worker", "worker_transitions")):
        assert killed_ns - last_time_ns(program.run, role, table) < 1_000_000_000


def test_a_signal_to_recup_itself_reaches_the_program(start):
    program = start(BUSY)
    program.pids()
    wait_until_written(program)
    os.kill(program.process.pid, signal.SIGTERM)
    assert program.end() == -signal.SIGTERM
    assert rows(program.run, "scheduler", "scheduler_transitions")


def test_the_program_goes_on_when_its_launcher_is_killed(start):
    program = start(ONE_WORKER)
    script, *_ = program.pids()
    os.kill(program.process.pid, signal.SIGKILL)
    assert program.let_end() == -signal.SIGKILL
    assert program.output.splitlines() == OUTPUT
    wait_for(lambda: all(each["closed"] for each in statuses(program.run, "scheduler")))


# ---------------------------------------------------------------- a cluster in processes of its own


@pytest.fixture(scope="module")
def cli_cluster(tmp_path_factory):
    """A scheduler and two workers started by the dask command line; yields (file, processes).

    The last test to use it kills its scheduler.
    """
    place = tmp_path_factory.mktemp("cli_cluster")
    file = place / "scheduler.json"
    log = (place / "servers.log").open("w")
    processes = []

    def begin(*command):
        processes.append(subprocess.Popen([sys.executable, "-m", "dask", *command], stdout=log, stderr=log))

    begin("scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    for _ in range(2):
        begin("worker", "--nthreads", "1", "--no-dashboard", "--scheduler-file", str(file))
    yield file, processes
    for process in processes:
        process.kill()
        process.wait()
    log.close()


REMOTE = """
    with Client(scheduler_file=sys.argv[1]) as client:
        client.wait_for_workers(2)
        for n in range(int(sys.argv[2])):
            print(sum(client.gather(client.map(slow, range(20), t=0.01, pure=False))), flush=True)
"""


def test_a_cluster_started_by_the_dask_command_line_is_recorded_and_left_as_it_was(tmp_path, cli_cluster):
    file, _ = cli_cluster
    for _ in range(2):
        run, code = record(tmp_path, REMOTE, str(file), "5")
        assert code == 0
        (scheduler,) = statuses(run, "scheduler")
        assert scheduler["closed"]
        assert scheduler["counters"]["transitions_dask"] == scheduler["counters"]["transitions_recorded"] > 500
        assert len(rows(run, "worker", "receptions")) == 100
        assert all(each["closed"] for each in statuses(run, "worker"))


def test_a_killed_scheduler_process_leaves_all_but_its_last_second(tmp_path, cli_cluster):
    file, (scheduler, *_) = cli_cluster
    killed = []

    def kill_soon():
        path = wait_for(lambda: next(iter((tmp_path / "runs").glob("*/spool/scheduler-*/results.arrows")), None))
        wait_for(lambda: path.stat().st_size > 3000)
        scheduler.kill()
        killed.append(time.time_ns())

    thread = threading.Thread(target=kill_soon)
    thread.start()
    run, code = record(
        tmp_path, "import logging\nlogging.disable()\n" + "from dask import config\n" + REMOTE_UNTIL_LOST, str(file)
    )
    thread.join()
    assert code == 7
    assert killed[0] - last_time_ns(run, "scheduler", "scheduler_transitions") < 1_000_000_000
    assert not statuses(run, "scheduler")[0]["closed"]


REMOTE_UNTIL_LOST = """
config.set({"distributed.comm.timeouts.connect": "2s"})
client = Client(scheduler_file=sys.argv[1])
client.wait_for_workers(2)
try:
    while True:
        client.gather(client.map(slow, range(20), t=0.01, pure=False))
except BaseException:
    os._exit(7)
"""


def test_preloading_recup_in_the_scheduler_is_enough(tmp_path):
    file, root = tmp_path / "scheduler.json", tmp_path / "runs"
    environment = {**os.environ, "RECUP_ROOT": str(root)}
    dask = [sys.executable, "-m", "dask"]
    common = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    scheduler = subprocess.Popen(
        [*dask, "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file), "--preload", "recup.preload"],
        env=environment, **common,
    )  # fmt: skip
    worker = subprocess.Popen(
        [*dask, "worker", "--no-dashboard", "--nthreads", "1", "--scheduler-file", str(file)], **common
    )
    try:
        script = write_program(tmp_path / "program.py", REMOTE.replace("wait_for_workers(2)", "wait_for_workers(1)"))
        done = subprocess.run([sys.executable, str(script), str(file), "2"], capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == ["190", "190"]
        scheduler.send_signal(signal.SIGTERM)
        scheduler.wait(30)
        worker.wait(60)
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    (run,) = root.iterdir()
    assert len(rows(run, "worker", "receptions")) == 40
    assert statuses(run, "scheduler")[0]["closed"]


# ---------------------------------------------------------------- disks and bugs


def test_a_run_directory_removed_in_mid_run_costs_only_rows(start):
    program = start(ONE_WORKER)
    program.pids()
    # Out of the way first: the writer may make a file while the directory is emptied.
    removed = program.run.rename(program.run.with_name("removed"))
    shutil.rmtree(removed)
    assert program.let_end() == 0
    assert program.output.splitlines() == OUTPUT
    said = [kind for directory in spools(program.run, "scheduler") for kind, _, _ in losses(directory)]
    assert "write_failed" in said
    assert rows(program.run, "scheduler", "scheduler_transitions")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of four megabytes: a run has room, and soon none beside what fills it."""
    path = tmp_path / "runs"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_costs_rows_that_are_counted_and_nothing_else(start, small_disk):
    program = start(ONE_WORKER)
    program.pids()
    wait_for(lambda: rows(program.run, "scheduler", "scheduler_transitions"))
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert program.let_end() == 0
    assert program.output.splitlines() == OUTPUT
    (scheduler,) = statuses(program.run, "scheduler")
    assert scheduler["unwritten_losses"]["write_failed:scheduler_transitions"] > 0
    assert rows(program.run, "scheduler", "scheduler_transitions")


def test_a_run_directory_made_read_only_in_mid_run_costs_only_rows(start, small_disk):
    program = start(ONE_WORKER)
    program.pids()
    wait_for(lambda: rows(program.run, "scheduler", "scheduler_transitions"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], capture_output=True)
    assert program.let_end() == 0
    assert program.output.splitlines() == OUTPUT
    assert rows(program.run, "scheduler", "scheduler_transitions")


BROKEN = """
import recup.capture.scheduler as recup_scheduler, recup.capture.taskgraph, recup.capture.client
from unittest.mock import patch
def broken(*args, **kwargs): raise RuntimeError("a bug of recup")
def compute():
    with local(processes=False) as cluster, Client(cluster) as client:
        print(sum(client.gather(client.map(inc, range(300)))))
"""
BUGS = """
for place, name, bug in [
    (recup_scheduler, "graph_reader", lambda *a: broken),
    (recup_scheduler, "_worker_row", broken),
    (recup_scheduler.RecupScheduler, "_log_event", broken),
    (recup_scheduler.RecupScheduler, "_begin", broken),
    (recup.capture.client.ClientCapture, "install", broken),
    (recup_scheduler.RecupScheduler, "_sample", broken),
]:
    with patch.object(place, name, bug):
        print(name)
        compute()
"""


def test_a_bug_in_a_hook_changes_no_result(tmp_path, capfd):
    run, code = record(tmp_path, BROKEN + BUGS)
    assert code == 0
    hooks = ("graph_reader", "_worker_row", "_log_event", "_begin", "install", "_sample")
    assert capfd.readouterr().out.splitlines() == [line for hook in hooks for line in (hook, "45150")]
    assert run.is_dir()


def test_a_transition_hook_that_keeps_failing_is_switched_off_and_said(tmp_path, capfd):
    bug = """
original = recup_scheduler.scheduler_hook
def breaking(spool, scheduler, switch_off):
    scheduler_like = type("S", (), {"tasks": None})()
    return original(spool, scheduler_like, switch_off)
recup_scheduler.scheduler_hook = breaking
compute()
"""
    run, code = record(tmp_path, BROKEN + bug)
    assert code == 0
    assert capfd.readouterr().out.strip() == "45150"
    said = {kind for directory in spools(run, "scheduler") for kind, _, _ in losses(directory)}
    assert {"hook_failed", "hook_disabled"} <= said
