"""Finding libdarshan, its configuration and environment, and what the run says of logs that did not come."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import types
import weakref

import dask
import pytest
from click.testing import CliRunner

from recup import darshan_doctor
from recup.capture import darshan, darshan_library
from recup.capture.darshan import Request, instrument_worker_of, judge_library, read_request, request_darshan
from recup.capture.darshan_library import (
    HOW_TO_GET_IT,
    Trial,
    config_text,
    find_library,
    library_version,
    log_variables,
    worker_environment,
)
from recup.capture.darshan_logs import collect_logs
from recup.cli import main
from recup.rundir import create_run
from recup.spool import Spool
from tests.cluster.recorded import losses, rows


def library_in(directory):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "libdarshan.so").write_bytes(b"\x00lib_ver=%s\n\x003.4.7\x001.2.13\x00")
    return directory / "libdarshan.so"


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """No Darshan in this environment, whatever the machine has."""
    for name in list(os.environ):
        if "DARSHAN" in name or name in ("LD_PRELOAD", "CONDA_PREFIX", "SPACK_ROOT", "SPACK_ENV", "LD_LIBRARY_PATH"):
            monkeypatch.delenv(name)


# ---------------------------------------------------------------- finder


@pytest.mark.parametrize(
    ("where", "variable", "value"),
    [
        ("lib", "DARSHAN_ROOT", "."),
        ("lib64", "EBROOTDARSHANMINRUNTIME", "."),
        ("lib", "LD_PRELOAD", "lib/libdarshan.so:/other.so"),
        ("lib", "CONDA_PREFIX", "."),
        ("lib", "LD_LIBRARY_PATH", "none:lib"),
        ("opt/spack/linux-zen3/darshan-runtime-3.4.7-abc/lib", "SPACK_ROOT", "."),
        ("opt/spack/linux/gcc-13/darshan-runtime-3.4.7-abc/lib", "SPACK_ROOT", "."),
        (".spack-env/view/lib", "SPACK_ENV", "."),
    ],
)
def test_the_library_is_found_where_a_variable_leads(tmp_path, where, variable, value):
    library = library_in(tmp_path / where)
    parts = [each if each.startswith("/") else str(tmp_path / each) for each in value.split(":")]
    found = find_library(None, {variable: ":".join(parts)}, standard=())
    assert (found.path, variable in found.source) == (library, True)


def test_the_library_is_found_beside_darshan_config_on_path(tmp_path):
    library = library_in(tmp_path / "lib")
    program = tmp_path / "bin" / "darshan-config"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho MY_LOGS,DARSHAN_LOG_DIR\n")
    program.chmod(0o755)
    found = find_library(None, {"PATH": str(program.parent)}, standard=())
    assert (found.path, found.source) == (library, "darshan-config on PATH")
    assert log_variables(library, {}) == ("MY_LOGS", "DARSHAN_LOG_DIR", "DARSHAN_LOG_DIR_PATH")


def test_the_newest_of_several_standard_places_is_taken(tmp_path):
    library_in(tmp_path / "darshan-3.4.4" / "lib")
    newest = library_in(tmp_path / "darshan-3.5.0" / "lib")
    assert find_library(None, {}, standard=[f"{tmp_path}/darshan*"]).path == newest


@pytest.mark.parametrize("told", ["", "lib", "lib/libdarshan.so"])
def test_a_prefix_a_directory_and_the_file_itself_may_be_told(tmp_path, told):
    library = library_in(tmp_path / "lib")
    assert find_library(str(tmp_path / told), {}).path == library


def test_where_a_place_is_told_no_other_is_looked_at(tmp_path):
    library_in(tmp_path / "lib")
    found = find_library("/nowhere", {"DARSHAN_ROOT": str(tmp_path)})
    assert (found.path, found.source) == (None, "/nowhere is no libdarshan and holds none")


def test_without_a_library_every_place_looked_at_is_told(tmp_path):
    found = find_library(None, {"CONDA_PREFIX": str(tmp_path / "conda")}, standard=[str(tmp_path / "std")])
    assert (found.path, found.looked) == (None, (f"{tmp_path}/conda", sys.prefix, f"{tmp_path}/std"))


def test_the_release_is_read_from_the_library_and_not_confused_with_zlibs(tmp_path):
    assert library_version(library_in(tmp_path)) == "3.4.7"


def test_a_library_that_does_not_load_is_refused_with_the_loaders_words(tmp_path):
    request, _, _ = judge_library(str(library_in(tmp_path / "lib")), tmp_path)
    assert request.library is None
    assert "libdarshan.so cannot be preloaded" in request.reason


def test_a_path_that_cannot_be_preloaded_is_refused(tmp_path):
    request, _, _ = judge_library(str(library_in(tmp_path / "a b")), tmp_path)
    assert "a path with a space or colon cannot be preloaded" in request.reason


def test_a_library_that_leaves_no_log_is_refused_with_what_it_said(tmp_path, monkeypatch):
    trial = Trial("", None, {"LOGPATH_BYENV": "/x"}, "unable to create log file")
    monkeypatch.setattr(darshan, "try_library", lambda *_: trial)
    library = library_in(tmp_path / "lib")
    request, _, _ = judge_library(str(library), tmp_path)
    reason = f"a tiny process under {library} left no log in the directory it was told: unable to create log file"
    assert request == Request(None, f"{reason}. {HOW_TO_GET_IT}")


def test_a_build_without_a_variable_for_its_logs_gets_directories_of_the_day(tmp_path, monkeypatch):
    directory, library = tmp_path / "logs", library_in(tmp_path / "lib")
    directory.mkdir()

    def tried(*_):
        days = list(directory.glob("*/*/*"))
        return Trial("", days[0] / "x.darshan" if days else None, {"LOGPATH_BYENV": "NONE"}, "")

    monkeypatch.setattr(darshan, "try_library", tried)
    request, _, _ = judge_library(str(library), directory)
    assert request == Request(str(library), "", "3.4.7", ("DARSHAN_LOG_DIR", "DARSHAN_LOG_DIR_PATH"), is_dated=True)
    assert len(list(directory.glob("*/*/*"))) == 2


def test_what_darshan_dumps_is_read_as_settings():
    text = (
        "##### DARSHAN CONFIG #####\n# MODMEM = 64 MiB\n# POSIX MODULE CONFIG:\n#      - ENABLED\n"
        "#      - MAX_RECORDS = 8192\n# DXT_POSIX MODULE CONFIG:\n#      - DISABLED\nwarning: x\n"
    )
    settings = {"MODMEM": "64 MiB", "POSIX": "ENABLED", "POSIX MAX_RECORDS": "8192", "DXT_POSIX": "DISABLED"}
    assert darshan_library._dumped_settings(text) == (settings, "warning: x")


# ---------------------------------------------------------------- configuration and environment


def test_the_configuration_as_a_whole(tmp_path):
    text = config_text([tmp_path.__class__("/scratch/my runs/20261124T0-ab.c,d/spool")], "MODMEM 128\n")
    assert (
        text
        == """\
# Written by recup.  A pattern is a POSIX regular expression: [.]py$ spares what .py$ would take (x.npy).
MOD_ENABLE DXT_POSIX,DXT_MPIIO
# KiB of segments; they are lost as a whole where MODMEM (MiB) cannot hold them compressed.
MAX_RECORDS 65536 DXT_POSIX,DXT_MPIIO
MODMEM 64
# Files of a process, and MiB of their names.
MAX_RECORDS 8192 POSIX,STDIO
NAMEMEM 8
NAME_EXCLUDE [.]pyc?$,[.]so$,[.]so[.][0-9.]+$,/(site|dist)-packages/,^/proc/,^/sys/,^/scratch/my.runs/20261124T0-ab[.]c.d/spool/ *
# Programs that Python and recup start to look at the machine.
APP_EXCLUDE (^|/)(uname|lscpu|ldconfig|git)$
# yours
MODMEM 128
"""
    )


def test_the_environment_as_a_whole(tmp_path):
    found = worker_environment(
        tmp_path / "libdarshan.so", tmp_path / "logs", tmp_path / "maps", ("MY_LOGS",), "jemalloc.so"
    )
    assert found == {
        "LD_PRELOAD": f"{tmp_path}/libdarshan.so:jemalloc.so",
        "DARSHAN_ENABLE_NONMPI": "1",
        "DARSHAN_CONFIG_PATH": f"{tmp_path}/logs/darshan.conf",
        "DARSHAN_LOGPATH": f"{tmp_path}/logs",
        "MY_LOGS": f"{tmp_path}/logs",
        "DARSHAN_MMAP_LOGPATH": f"{tmp_path}/maps",
        "DXT_ENABLE_IO_TRACE": "1",
    }


def test_a_libdarshan_that_is_preloaded_already_is_not_preloaded_twice(tmp_path):
    found = worker_environment(tmp_path / "libdarshan.so", tmp_path, tmp_path, (), "/opt/libdarshan.so:x.so")
    assert found["LD_PRELOAD"] == "/opt/libdarshan.so:x.so"


class StandInNanny:
    """What `instrument_worker_of` touches of a nanny."""

    process = None

    def __init__(self, present):
        self.pre_spawn_env = present
        self.environments = []

    async def instantiate(self):
        os.environ.update(self.pre_spawn_env)
        self.environments.append(dict(os.environ))
        await asyncio.sleep(0)
        return "running"


@pytest.fixture
def asked(tmp_path):
    """A run that asks for a libdarshan of this machine, and its spool."""
    run = create_run(tmp_path, way="run")
    library = library_in(tmp_path / "lib")
    request_darshan(run, "/nowhere")
    content = {"library": str(library), "variables": ["DARSHAN_LOG_DIR"]}
    (run / "foreign" / "darshan" / "request.json").write_text(json.dumps(content))
    return run, library, Spool(run, "nanny", "Nanny-1")


def test_a_nanny_adds_to_the_environment_its_worker_starts_in_and_takes_nothing_away(asked):
    run, library, spool = asked
    nanny = StandInNanny({"MALLOC_TRIM_THRESHOLD_": "65536", "MINE": "1", "LD_PRELOAD": "x.so"})
    instrument_worker_of(nanny, spool, str(run))
    logs = f"{run}/foreign/darshan"
    assert nanny.pre_spawn_env == {
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MINE": "1",
        "LD_PRELOAD": f"{library}:x.so",
        "DARSHAN_ENABLE_NONMPI": "1",
        "DARSHAN_CONFIG_PATH": f"{logs}/darshan.conf",
        "DARSHAN_LOGPATH": logs,
        "DARSHAN_LOG_DIR": logs,
        "DARSHAN_MMAP_LOGPATH": logs,
        "DXT_ENABLE_IO_TRACE": "1",
    }


def test_the_environment_of_the_nannys_own_process_is_what_it_was_once_all_workers_have_started(asked, monkeypatch):
    run, library, spool = asked
    monkeypatch.setenv("DARSHAN_DISABLE", "1")
    monkeypatch.setenv("LD_PRELOAD", "mine.so")
    before = dict(os.environ)
    nannies = [StandInNanny({}), StandInNanny({})]
    for nanny in nannies:
        instrument_worker_of(nanny, spool, str(run))

    async def start():
        return await asyncio.gather(*(nanny.instantiate() for nanny in nannies))

    assert asyncio.run(start()) == ["running", "running"]
    assert dict(os.environ) == before
    for nanny in nannies:
        (within,) = nanny.environments
        assert (within["LD_PRELOAD"], "DARSHAN_DISABLE" in within) == (f"{library}:mine.so", False)


def test_a_run_that_does_not_ask_leaves_nannies_alone(tmp_path):
    nanny = StandInNanny({"MINE": "1"})
    instrument_worker_of(nanny, Spool(tmp_path, "nanny", "Nanny-1"), str(tmp_path))
    assert (nanny.pre_spawn_env, "instantiate" in vars(nanny)) == ({"MINE": "1"}, False)


def test_a_host_without_the_library_starts_its_workers_without_and_says_so(asked):
    run, library, spool = asked
    library.unlink()
    nanny = StandInNanny({})
    instrument_worker_of(nanny, spool, str(run))
    spool.close()
    assert nanny.pre_spawn_env == {}
    ((kind, table, detail),) = losses(spool.directory)
    assert (kind, table, "libdarshan.so is not there on" in detail) == ("not_captured", "io_logs", True)


def test_workers_that_fork_are_not_started_under_darshan_and_the_run_says_so(asked):
    run, _, spool = asked
    nanny = StandInNanny({})
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        instrument_worker_of(nanny, spool, str(run))
    spool.close()
    assert nanny.pre_spawn_env == {}
    ((_, _, detail),) = losses(spool.directory)
    assert detail == "worker processes start by forkserver, which Darshan does not see: use spawn"


def test_the_configuration_of_dask_asks_for_darshan_too(tmp_path):
    spool = Spool(tmp_path, "scheduler", "Scheduler-1")
    with dask.config.set({"recup.darshan.library": "/nowhere"}):
        darshan.request_as_configured(tmp_path, spool)
    spool.close()
    assert read_request(tmp_path).library is None
    ((kind, table, detail),) = losses(spool.directory)
    assert (kind, table, detail.startswith("/nowhere is no libdarshan")) == ("not_captured", "io_logs", True)


def test_lines_of_the_users_come_last_in_the_configuration(tmp_path):
    (tmp_path / "mine.conf").write_text("NAMEMEM 16\n")
    with dask.config.set({"recup.darshan.config": str(tmp_path / "mine.conf")}):
        request_darshan(tmp_path, "/nowhere")
    assert (tmp_path / "foreign/darshan/darshan.conf").read_text().endswith("# yours\nNAMEMEM 16\n")


def test_the_map_a_killed_process_left_on_its_host_is_brought_to_the_logs(tmp_path, monkeypatch):
    run, maps = create_run(tmp_path, way="run"), tmp_path / "maps"
    maps.mkdir()
    for pid in (11, 12):
        (maps / f"jane_python_id{pid}_mmap-log-99-0.darshan").write_text("map")
    monkeypatch.setattr(darshan, "map_directory", lambda *_: maps)
    darshan.fetch_map(run, 11)
    assert [file.name for file in (run / "foreign" / "darshan").iterdir()] == ["jane_python_id11_mmap-log-99-0.darshan"]
    assert [file.name for file in maps.iterdir()] == ["jane_python_id12_mmap-log-99-0.darshan"]


def test_maps_are_kept_on_the_host_where_the_run_is_on_a_network_file_system(tmp_path, monkeypatch):
    def on(kind):
        monkeypatch.setattr(darshan, "filesystem_rows", lambda _: iter([types.SimpleNamespace(filesystem=kind)]))
        return darshan.map_directory(tmp_path, "run-1")

    assert on("ext4") == tmp_path
    assert on("lustre").parts[-3:] == (f"recup-{os.getuid()}", "run-1", "darshan")


# ---------------------------------------------------------------- in a worker


class StandInWorker:
    id = "Worker-1"

    def __init__(self, status="closing", executing_count=0):
        self.status = types.SimpleNamespace(name=status)
        self.state = types.SimpleNamespace(executing_count=executing_count)


@pytest.fixture
def in_worker(tmp_path, monkeypatch):
    """Darshan's part in a worker, with a stand-in for the library that notes how often it wrote the log."""
    monkeypatch.setattr(os, "_exit", os._exit)
    # What other tests of this process left behind is none of this worker's.
    for server in (darshan.Scheduler, darshan.Worker):
        monkeypatch.setattr(server, "_instances", weakref.WeakSet())

    def begin(worker):
        written = []
        spool = Spool(tmp_path, "worker", worker.id)
        return darshan.DarshanWorker(spool, worker, written.append, tmp_path), written, spool

    return begin


def test_a_process_without_darshan_is_not_instrumented():
    assert darshan.active_shutdown() is None


def test_the_log_is_written_once_with_a_beacon_before_it(in_worker, tmp_path):
    part, written, spool = in_worker(StandInWorker())
    part.beacon()
    part.flush()
    part.flush()
    spool.close()
    beacons = rows(tmp_path, "worker", "clock_beacons")
    path = f"{tmp_path}/beacon-{os.getpid()}-Worker-1"
    assert written == [1]
    assert [(row["offset"], row["path"]) for row in beacons] == [(offset, path) for offset in range(16)]
    assert all(row["time_ns"] <= row["after_ns"] for row in beacons)
    assert os.path.getsize(path) == 16


@pytest.mark.parametrize(("status", "count"), [("closing", 1), ("running", 0)])
def test_only_a_worker_that_closes_ends_its_log(in_worker, status, count):
    part, written, _ = in_worker(StandInWorker(status))
    asyncio.run(part.end())
    assert len(written) == count


def test_a_busy_worker_says_that_the_rest_of_its_tasks_is_not_in_the_log(in_worker):
    part, _, spool = in_worker(StandInWorker(executing_count=2))
    asyncio.run(part.end())
    spool.close()
    assert losses(spool.directory) == [
        (
            "gap",
            "io_segments",
            "Darshan's log was written while 2 tasks still ran: what they did afterwards is not in it",
        )
    ]


def test_a_handler_that_was_there_is_called_and_decides_how_the_process_ends(in_worker, monkeypatch):
    called = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    try:
        part, written, _ = in_worker(StandInWorker())
        monkeypatch.setattr(darshan, "_LATE_FLUSH_S", 60)
        part.begin()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (called, written) == ([signal.SIGTERM], [])
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


DYING = """
import os, signal, sys, types
from pathlib import Path
from recup.capture.darshan import DarshanWorker
from recup.spool import Spool

worker = types.SimpleNamespace(id="Worker-1")
part = DarshanWorker(Spool(Path(sys.argv[1]), "worker", "Worker-1"), worker, lambda one: print("log written", flush=True), Path(sys.argv[1]))
part.begin()
os.kill(os.getpid(), signal.SIGTERM)
signal.pause()
"""


def test_sigterm_ends_the_process_as_before_once_the_log_and_rows_are_written(tmp_path):
    done = subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "log written\n"), done.stderr
    assert len(rows(tmp_path, "worker", "clock_beacons")) >= 8


# ---------------------------------------------------------------- after the run


@pytest.fixture
def ended(tmp_path):
    """A run of three workers: one left its log, one its memory map, one nothing; and their directory."""
    run = create_run(tmp_path, way="run")
    directory = run / "foreign" / "darshan"
    (directory / "2026" / "11" / "24").mkdir(parents=True)
    for pid in (11, 12, 13):
        (directory / f"beacon-{pid}-Worker-{pid}").write_text("." * 8)
    (directory / "2026/11/24/jane_python_id11-11_11-24-60000-123_1.darshan").write_text("log")
    (directory / "jane_python_id12_mmap-log-99-0.darshan").write_text("map")
    (directory / "jane_python_id13-13_11-24-60000-123.darshan_partial").write_text("")
    return run, directory


def test_logs_are_brought_together_and_those_that_did_not_come_are_told_once(ended):
    run, directory = ended
    missing = [
        "the log of Worker-12 (process 12) never came: it was killed, or its host has it still; "
        "jane_python_id12_mmap-log-99-0.darshan holds its counters, but no segments",
        "jane_python_id13-13_11-24-60000-123.darshan_partial of Worker-13 was never finished: "
        "process 13 died while it wrote; one of 1 memory maps may hold its counters, none has segments",
    ]
    assert collect_logs(run) == missing
    assert (directory / "jane_python_id11-11_11-24-60000-123_1.darshan").read_text() == "log"
    assert collect_logs(run) == missing
    said = [(row["kind"], row["table"], row["detail"]) for row in rows(run, "launcher", "losses")]
    assert said == [("not_captured", "io_segments", text) for text in missing]


def test_a_run_without_darshan_has_nothing_to_collect(tmp_path):
    run = create_run(tmp_path, way="run")
    assert collect_logs(run) == []
    assert not (run / "foreign").exists()


# ---------------------------------------------------------------- doctor and darshan-env


def levels(checks):
    return [(check.level, check.subject) for check in checks]


def test_the_doctor_says_where_it_looked_and_how_to_get_darshan(tmp_path):
    (check,) = darshan_doctor.examine_darshan(str(tmp_path / "none"), tmp_path)
    assert (check.level, check.subject) == ("problem", "libdarshan")
    assert check.statement == f"not found; looked at {tmp_path}/none"
    assert "spack install darshan-runtime~mpi" in check.fix


def test_the_doctor_tells_what_stands_in_the_way():
    environment = {"DARSHAN_DISABLE": "1", "DARSHAN_MODMEM": "4", "DARSHAN_CONFIG_PATH": "/site/darshan.conf"}
    checks = darshan_doctor.surroundings(environment)
    assert levels(checks) == [("info", "environment"), ("warning", "environment"), ("info", "environment")]


def test_the_doctor_says_that_no_log_came(tmp_path):
    trial = Trial("", None, {}, "")
    (check,) = darshan_doctor.judge_trial(Request(None, "a tiny process left no log"), trial)
    assert (check.level, check.subject, check.statement) == ("problem", "Darshan log", "a tiny process left no log")


def test_darshan_env_without_a_library_says_how_to_get_one(tmp_path):
    done = CliRunner().invoke(main, ["darshan-env", "--run", str(tmp_path / "run"), "--darshan", "/nowhere"])
    assert (done.exit_code, "/nowhere is no libdarshan" in done.stderr) == (1, True)


def test_the_exported_environment_is_what_a_shell_then_has(tmp_path, monkeypatch):
    monkeypatch.setenv("DARSHAN_LOGFILE", "x")
    run, library = tmp_path / "my run", library_in(tmp_path / "lib")
    request = Request(str(library), variables=("DARSHAN_LOG_DIR",))
    monkeypatch.setattr(darshan, "judge_library", lambda *_: (request, None, ()))
    done = CliRunner().invoke(main, ["darshan-env", "--run", str(run), "--darshan", str(library)])
    assert done.exit_code == 0, done.output
    shell = shutil.which("sh")
    script = done.output.replace("export LD_PRELOAD", "export PRELOADED")  # the stand-in cannot be loaded
    told = subprocess.run([shell, "-c", f"{script}\nenv -0"], capture_output=True, text=True, check=True).stdout
    after = dict(each.split("=", 1) for each in told.split("\0") if each)
    logs = f"{run}/foreign/darshan"
    assert {
        name: after.get(name)
        for name in after
        if "DARSHAN" in name or "RECUP" in name or name in ("PRELOADED", "DXT_ENABLE_IO_TRACE")
    } == {
        "PRELOADED": str(library),
        "DARSHAN_ENABLE_NONMPI": "1",
        "DARSHAN_CONFIG_PATH": f"{logs}/darshan.conf",
        "DARSHAN_LOGPATH": logs,
        "DARSHAN_LOG_DIR": logs,
        "DARSHAN_MMAP_LOGPATH": logs,
        "DXT_ENABLE_IO_TRACE": "1",
        "DASK_RECUP__RUN_DIRECTORY": str(run),
    }
    assert after["DASK_DISTRIBUTED__SCHEDULER__PRELOAD"] == "['recup.preload']"
    assert (run / "run.json").exists()
