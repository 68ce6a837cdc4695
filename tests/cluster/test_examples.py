"""The image-processing example gives one result on every kind of cluster, recorded or not."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbclient
import nbformat
import pytest

import recup

EXAMPLE = Path(__file__).parents[2] / "examples" / "image_processing"
SMALL = ("--images", "3", "--size", "256x256")
RESULT = """\
images    3 of 256 x 256
objects   21
checksum  27ca6ff370a628e8
"""
STEPS = {
    "make_image",
    "normalize_block",
    "grayscale_block",
    "gaussian_filter",
    "threshold_block",
    "label",
    "save_block",
}

PROCESSES, THREADS = ["--processes"], ["--no-processes", "--workers", "1", "--threads-per-worker", "2"]
# What a mode prints is one constant, recorded or not: threads show it for both.
PLAIN = pytest.param(False, id="plain", marks=pytest.mark.slow)
either_way = pytest.mark.parametrize("recorded", [PLAIN, pytest.param(True, id="recorded")])


@pytest.fixture
def environment(tmp_path):
    """Variables of a machine where nothing is configured and runs go to a root of their own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DASK_", "RECUP_", "SLURM_"))}
    return {**kept, "RECUP_ROOT": str(tmp_path / "runs"), "TMPDIR": str(tmp_path)}


def printed(environment, recorded, *options, launcher=()):
    """Run the example; returns what it prints.  A recorded one must leave exactly one run."""
    program = [*launcher, sys.executable, str(EXAMPLE / "image_processing.py"), *SMALL, *options]
    command = [sys.executable, "-m", "recup", "run", *program] if recorded else program
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    runs = list(Path(environment["RECUP_ROOT"]).glob("*/run.json"))
    assert len(runs) == int(recorded), done.stderr
    return done.stdout


def recorded_steps(environment):
    """Names of the layers of the only run, without their hashes."""
    (path,) = (file.parent for file in Path(environment["RECUP_ROOT"]).glob("*/run.json"))
    with recup.open_run(path) as run:
        return {
            name for (name,) in run.sql("select distinct regexp_extract(name, '^([a-z_]+)-', 1) from layers").fetchall()
        }


@pytest.mark.parametrize(
    ("recorded", "workers"),
    [
        pytest.param(False, PROCESSES, id="plain-processes", marks=pytest.mark.slow),
        pytest.param(True, PROCESSES, id="recorded-processes"),
        pytest.param(False, THREADS, id="plain-threads"),
        # That it prints the same recorded in threads is shown where its functions are profiled (test_yappi).
        pytest.param(True, THREADS, id="recorded-threads", marks=pytest.mark.slow),
    ],
)
def test_local_mode_prints_the_result(environment, recorded, workers):
    assert printed(environment, recorded, "--mode", "local", *workers) == RESULT
    if recorded:
        assert recorded_steps(environment) >= STEPS


@contextlib.contextmanager
def started(command, environment):
    """Keep a program running, and end it."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def scheduler_file(tmp_path, environment):
    """File of a scheduler with two workers, started as `dask scheduler` and `dask worker`."""
    path = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    file = ["--scheduler-file", str(path)]
    scheduler = [*dask, "scheduler", *file, "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    worker = [*dask, "worker", *file, "--nworkers", "2", "--nthreads", "1", "--dashboard-address", "127.0.0.1:0"]
    with started(scheduler, environment) as process:
        deadline = time.monotonic() + 60
        while not path.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with started(worker, environment):
            yield path


@either_way
def test_distributed_mode_prints_the_result(environment, scheduler_file, recorded):
    assert printed(environment, recorded, "--mode", "distributed", "--scheduler-file", str(scheduler_file)) == RESULT
    if recorded:
        assert recorded_steps(environment) >= STEPS


@pytest.mark.skipif(
    shutil.which("mpirun") is None, reason="no mpirun: apt-get install openmpi-bin, or load an MPI module"
)
@pytest.mark.skipif(importlib.util.find_spec("dask_mpi") is None, reason="dask-mpi is not installed")
@either_way
def test_mpi_mode_prints_the_result(environment, recorded):
    ours = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    openmpi = "Open MPI" in subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True).stdout
    launcher = ["mpirun", *(["--oversubscribe"] if openmpi else []), "-n", "4"]
    assert printed({**environment, **ours}, recorded, "--mode", "mpi", launcher=launcher) == RESULT
    if recorded:
        assert recorded_steps(environment) >= STEPS


def test_wrong_options_are_told_in_a_line(environment):
    program = [sys.executable, str(EXAMPLE / "image_processing.py"), "--size", "big"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("error: --size is HEIGHTxWIDTH, e.g. 1024x1024, not big")


def test_the_notebook_runs_from_top_to_bottom(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(EXAMPLE / "image_processing.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    options = {"kernel_name": "python3", "timeout": 150, "resources": {"metadata": {"path": str(EXAMPLE)}}}
    nbclient.NotebookClient(notebook, **options).execute()
    texts = [out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", ())]
    assert any("905 objects, checksum 3471ce59c09432ea" in text for text in texts)
