"""Workers under the real Darshan: their logs come, whatever ends them, and nothing else changes.

Skipped where no libdarshan is found; $RECUP_TEST_LIBDARSHAN names one.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from recup import open_run
from recup.analyse.coverage import coverage
from recup.capture.darshan import judge_library, write_config
from recup.capture.darshan_logs import collect_logs
from recup.ingest.darshan import read_log
from recup.launch import run_program, wait_for_stragglers
from tests.cluster.recorded import rows, spools, write_program
from tests.cluster.test_faults import wait_for


def working_library():
    """A libdarshan that works here, or (None, why there is none)."""
    with tempfile.TemporaryDirectory() as directory:
        write_config(Path(directory), directory)
        request, _, looked = judge_library(os.environ.get("RECUP_TEST_LIBDARSHAN"), Path(directory))
    return request.library, request.reason or f"looked at {', '.join(looked)}"


LIBRARY, WHY = working_library()
needs_darshan = pytest.mark.skipif(LIBRARY is None, reason=f"$RECUP_TEST_LIBDARSHAN names no libdarshan: {WHY[:200]}")

# Writes and reads a file of its own in each task, and tells the test which are done.
TOUCH = """
    def touch(n, t=0.0):
        path = os.path.join(sys_argv[1], f"file-{n}.npy")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        os.write(descriptor, bytes(100))
        os.pread(descriptor, 100, 0)
        os.close(descriptor)
        time.sleep(t)
        return n
    sys_argv = sys.argv
    def tell(cluster, done):
        line = json.dumps({"done": done, "script": os.getpid(), "workers": [w.process.pid for w in cluster.workers.values()]})
        with open(os.path.join(sys.argv[1], "progress"), "a") as file:
            file.write(line + "\\n")
    import json
"""
ENDLESS = f"""{TOUCH}
    with local() as cluster, Client(cluster) as client:
        n = 0
        end = time.time() + 60
        while time.time() < end:
            tell(cluster, client.gather(client.map(touch, range(n, n + 10), pure=False)))
            n += 10
"""


def program(tmp_path, body):
    (tmp_path / "data").mkdir(exist_ok=True)
    return write_program(tmp_path / "program.py", body)


def run_under_darshan(tmp_path, body, darshan=LIBRARY):
    """Run a program to its end; returns (run directory, return code)."""
    script = program(tmp_path, body)
    command = [sys.executable, str(script), str(tmp_path / "data")]
    run, code = run_program(command, str(script), tmp_path / "runs", darshan=darshan)
    assert wait_for_stragglers(run) == []
    return run, code


class Started:
    """A program started in a process group of its own, with what it told of its progress."""

    def __init__(self, tmp_path, body, darshan=LIBRARY):
        script = program(tmp_path, body)
        self.root, self.progress = tmp_path / "runs", tmp_path / "data" / "progress"
        options = ["--quiet", "--no-seal", "--root", str(self.root)] + ([f"--darshan={darshan}"] if darshan else [])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "recup", "run", *options, str(script), str(tmp_path / "data")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def told(self, lines=5):
        """What the program told last, when it has told so many times."""

        def last():
            told = self.progress.read_text().splitlines() if self.progress.exists() else []
            return json.loads(told[-1]) if len(told) >= lines and told[-1].endswith("}") else None

        return wait_for(last)

    def end(self):
        self.output, self.errors = self.process.communicate(timeout=90)
        (run,) = self.root.iterdir()
        assert wait_for_stragglers(run) == []
        return run, self.process.returncode


@pytest.fixture
def start(tmp_path):
    started = []

    def begin(body, darshan=LIBRARY):
        started.append(Started(tmp_path, body, darshan))
        return started[-1]

    yield begin
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)


def logs(run):
    """Names of finished logs by process id."""
    found = {}
    for file in (run / "foreign" / "darshan").glob("*.darshan"):
        pid = re.search(r"_id\d+-(\d+)_", file.name)
        if pid:
            found[int(pid[1])] = file
    return found


def segments(*files):
    return [row for file in files for row in read_log(file).segments().to_pylist()]


def touched(*files):
    """(number of the file, direction) of each traced operation on the program's files."""
    found = [(re.search(r"/file-(\d+)\.npy$", row["path"] or ""), row["direction"]) for row in segments(*files)]
    return sorted((int(match[1]), direction) for match, direction in found if match)


def both(numbers):
    return sorted((number, direction) for number in numbers for direction in ("read", "write"))


def worker_pids(run):
    return {row["pid"] for row in rows(run, "worker", "processes")}


# ---------------------------------------------------------------- with Darshan


@needs_darshan
def test_each_worker_leaves_a_log_of_every_operation_and_nothing_else_leaves_one(tmp_path, capfd):
    body = f"""{TOUCH}
    before = dict(os.environ)
    with local() as cluster, Client(cluster) as client:
        print(sum(client.gather(client.map(touch, range(40)))))
        print({{n for n, v in os.environ.items() if before.get(n) != v and "DARSHAN" in n + v.upper()}} or "as before")
        import subprocess
        subprocess.run(["cat", __file__], stdout=subprocess.DEVNULL)
    """
    run, code = run_under_darshan(tmp_path, body)
    assert (code, capfd.readouterr().out.split("\n")[:2]) == (0, ["780", "as before"])
    assert set(logs(run)) == worker_pids(run)
    assert touched(*logs(run).values()) == both(range(40))
    assert collect_logs(run) == []


@needs_darshan
def test_beacons_tie_the_clock_of_darshan_to_that_of_the_worker(tmp_path):
    run, _ = run_under_darshan(
        tmp_path, f"{TOUCH}\n    with local(n_workers=1) as c, Client(c) as k: k.submit(touch, 1).result()"
    )
    beacons = rows(run, "worker", "clock_beacons")
    (file,) = logs(run).values()
    seen = [row for row in segments(file) if row["path"] == beacons[0]["path"]]
    assert [row["offset"] for row in beacons] == [row["offset"] for row in seen] == list(range(16))
    threads = [row["thread"] and row["thread"] & (2**63 - 1) for row in seen]
    # Releases up to 3.5.0 do not tell threads.
    assert threads in ([row["thread"] for row in beacons], [None] * 16)
    zeros = [row["time_ns"] / 1e9 - segment["start_s"] for row, segment in zip(beacons, seen, strict=True)]
    assert max(zeros) - min(zeros) < 0.01
    (server,) = {row["server"] for row in beacons}
    assert beacons[0]["path"].endswith(f"beacon-{next(iter(logs(run)))}-{server}")


@needs_darshan
def test_the_log_of_a_terminated_worker_holds_all_it_had_done(start):
    started = start(ENDLESS)
    victim = started.told()["workers"][0]
    os.kill(victim, signal.SIGTERM)
    wait_for(lambda: victim not in started.told()["workers"] and len(started.told()["workers"]) == 2)
    done = started.told()["done"]
    os.kill(started.told()["script"], signal.SIGTERM)
    run, _ = started.end()
    assert victim in logs(run)
    assert len(touched(logs(run)[victim])) > 0
    assert {number for number, _ in touched(*logs(run).values())} >= set(range(done[0]))
    ends = [(row["pid"], row["how"], row["signal"]) for row in rows(run, "nanny", "process_ends")]
    assert (victim, "signalled", signal.SIGTERM) in ends


@needs_darshan
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_leaves_every_log(start, number):
    started = start(ENDLESS)
    told = started.told()
    os.killpg(started.process.pid, number)
    run, _ = started.end()
    assert set(told["workers"]) <= set(logs(run))
    assert {number for number, _ in touched(*logs(run).values())} >= set(range(told["done"][-1] + 1))
    assert collect_logs(run) == []


BUSY_AT_CLOSE = f"""{TOUCH}
    cluster = local(n_workers=1)
    client = Client(cluster)
    client.gather(client.map(touch, range(10)))
    def busy(n):
        touch(n)
        open(os.path.join(sys_argv[1], "busy"), "w").close()
        time.sleep(30)
    future = client.submit(busy, 10)
    while not os.path.exists(os.path.join(sys.argv[1], "busy")):
        time.sleep(0.01)
    client.close()
    cluster.close()
"""


@needs_darshan
def test_a_worker_that_is_busy_when_it_is_closed_leaves_its_log_and_says_what_is_not_in_it(tmp_path):
    run, code = run_under_darshan(tmp_path, BUSY_AT_CLOSE)
    assert code == 0
    (end,) = rows(run, "nanny", "process_ends")
    assert end["signal"] == signal.SIGKILL
    assert touched(*logs(run).values()) == both(range(11))
    (loss,) = [row for row in rows(run, "worker", "losses") if row["table"] == "io_segments"]
    assert (loss["kind"], "while 1 tasks still ran" in loss["detail"]) == ("gap", True)


@needs_darshan
def test_a_killed_worker_leaves_its_counters_and_the_run_says_that_its_log_never_came(start):
    started = start(ENDLESS)
    victim = started.told()["workers"][0]
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: victim not in started.told()["workers"] and len(started.told()["workers"]) == 2)
    os.kill(started.told()["script"], signal.SIGTERM)
    run, _ = started.end()
    (missing,) = collect_logs(run)
    assert f"(process {victim}) never came" in missing
    # There where Darshan was built with --enable-mmap-logs.
    counters = list((run / "foreign" / "darshan").glob(f"*_id{victim}_mmap-log-*.darshan"))
    for left in counters:
        assert any("/file-" in path for path in read_log(left).names.values())
        assert f"{left.name} holds its counters, but no segments" in missing
    assert collect_logs(run) == [missing]
    said = [(row["table"], row["detail"]) for row in rows(run, "launcher", "losses")]
    assert said == [("io_segments" if counters else "io_logs", missing)]


@needs_darshan
def test_the_users_own_variables_reach_the_worker_too(tmp_path, capfd):
    body = """
    with dask.config.set({"distributed.nanny.pre-spawn-environ.MINE": "kept", "distributed.nanny.pre-spawn-environ.LD_PRELOAD": "libm.so.6"}):
        with local(n_workers=1) as cluster, Client(cluster) as client:
            names = ("MINE", "LD_PRELOAD", "OMP_NUM_THREADS")
            print(client.submit(lambda: [os.environ.get(n) for n in names]).result())
            print(client.submit(lambda: "libdarshan" in open("/proc/self/maps").read()).result())
    """
    run, code = run_under_darshan(tmp_path, body)
    assert code == 0
    assert capfd.readouterr().out.splitlines() == ["['kept', 'libm.so.6', '1']", "True"]
    assert len(logs(run)) == 1


@needs_darshan
def test_results_and_exit_code_are_those_without(start):
    body = f"""{TOUCH}
    def fails(n):
        raise ValueError(n)
    with local() as cluster, Client(cluster) as client:
        print(client.gather(client.map(touch, range(10))))
        print(type(client.submit(fails, 1).exception()).__name__)
    sys.exit(3)
    """
    seen = []
    for darshan in (None, LIBRARY):
        started = start(body, darshan)
        code = started.process.wait(90)
        seen.append((code, *started.process.communicate()))
    assert seen[0][:2] == seen[1][:2]
    assert seen[0][0] == 3


JOB_SCRIPT = """
eval "$("$1" -m recup darshan-env --run "$2/run" --darshan "$3")"
dask() { "$1" -m dask "$2" --no-dashboard --scheduler-file "$DATA/s.json" $3 $4 $5 > /dev/null 2>&1 & }
DATA="$2/data"
dask "$1" scheduler --port 0
scheduler=$!
dask "$1" worker --no-nanny --nthreads 1
worker=$!
"$1" "$2/program.py" "$2/data" || exit 1
kill $worker && wait $worker || exit 2
kill $scheduler && wait $scheduler || exit 3
unset LD_PRELOAD DARSHAN_ENABLE_NONMPI
"$1" -m recup seal "$2/run" > /dev/null
"""


@needs_darshan
def test_a_job_script_records_a_worker_without_a_nanny(tmp_path):
    program(
        tmp_path,
        f"""{TOUCH}
    with Client(scheduler_file=os.path.join(sys.argv[1], "s.json")) as client:
        client.gather(client.map(touch, range(10)))
    """,
    )
    command = ["sh", "-c", JOB_SCRIPT, "job", sys.executable, str(tmp_path), LIBRARY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    with open_run(tmp_path / "run") as run:
        ours = "like '%/file-_.npy'"
        (row,) = run.sql(
            f"select count(*), count(distinct path), min(nbytes) from io_segments where path {ours}"
        ).fetchall()
        assert row == (20, 10, 100)
        lines = {line["metadata"]: line["state"] for line in coverage(run).to_pylist()}
    told = ("Darshan logs", "files", "operations on files", "beacons of Darshan's clock")
    assert [lines[name] for name in told] == ["collected"] * 4


# ---------------------------------------------------------------- without


def test_a_run_goes_on_where_there_is_no_darshan_and_says_so(tmp_path, capfd):
    run, code = run_under_darshan(
        tmp_path, "with local(n_workers=1) as c, Client(c) as k: print(k.submit(inc, 1).result())", darshan="/nowhere"
    )
    captured = capfd.readouterr()
    assert (code, captured.out) == (0, "2\n")
    assert "recup: no Darshan in this run, only counters of threads. /nowhere is no libdarshan" in captured.err
    assert "spack install darshan-runtime" in captured.err
    (loss,) = [row for row in rows(run, "launcher", "losses") if row["table"] == "io_logs"]
    assert loss["detail"].startswith("/nowhere is no libdarshan and holds none")
    assert rows(run, "worker", "thread_counters")
    assert spools(run, "worker")
