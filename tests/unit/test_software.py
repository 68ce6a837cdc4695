import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import dask
import distributed
import pytest

from recup.capture import configuration, software
from recup.capture.configuration import config_rows, json_value
from recup.capture.software import environment_rows, installed_packages, process_row
from recup.schema import EnvironmentVariable, Package
from recup.spool import Spool

CONFIG_PROGRAM = """
import json, os, time, dask, distributed
{code}
from recup.capture.configuration import config_rows
before = json.dumps(dask.config.config, default=repr)
digest, rows = config_rows()
assert json.dumps(dask.config.config, default=repr) == before
print(json.dumps({{row.name: [row.value, row.origin] for row in rows}}))
"""


@pytest.fixture
def resolved(tmp_path):
    """Configuration of a new process: files in its home, variables and code as given."""

    def run(files=None, variables=None, code=""):
        for name, text in (files or {}).items():
            path = tmp_path / ".config" / "dask" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        environment = {n: v for n, v in os.environ.items() if not n.startswith("DASK_")}
        environment |= {"HOME": str(tmp_path), **(variables or {})}
        time.sleep(0.02)  # the clock of process starts ticks a hundred times a second
        program = [sys.executable, "-W", "error", "-c", CONFIG_PROGRAM.format(code=code)]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


# ---------------------------------------------------------------- configuration


def test_each_value_tells_where_it_came_from(resolved):
    told = resolved(
        files={
            "a.yaml": "distributed:\n  worker:\n    memory:\n      target: 0.5\n      spill: 0.65\n",
            "b.yaml": "distributed:\n  worker:\n    memory:\n      spill: 0.66\nmine: {x: 1}\n",
        },
        variables={"DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False", "DASK_MINE__X": "1"},
        code="dask.config.set({'distributed.admin.log-length': 7, 'distributed.worker.memory.pause': 0.8})",
    )
    assert told["distributed.scheduler.bandwidth"] == ["100000000", "default"]
    assert told["distributed.worker.memory.target"] == ["0.5", "~/.config/dask/a.yaml"]
    assert told["distributed.worker.memory.spill"] == ["0.66", "~/.config/dask/b.yaml"]
    assert told["distributed.scheduler.work-stealing"] == ["false", "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING"]
    assert told["mine.x"] == ["1", "DASK_MINE__X"]
    assert told["distributed.admin.log-length"] == ["7", "set in code"]
    assert told["distributed.worker.memory.pause"] == ["0.8", "default"]
    assert told["optimization.fuse.max-height"] == ['"inf"', "default"]


def test_configuration_handed_down_by_a_parent_says_so(resolved):
    inherited = dask.config.serialize({"distributed": {"admin": {"log-length": 7}}})
    told = resolved(variables={"DASK_INTERNAL_INHERIT_CONFIG": inherited})
    assert told["distributed.admin.log-length"] == ["7", "DASK_INTERNAL_INHERIT_CONFIG"]


def test_where_only_a_losing_layer_agrees_the_origin_is_unknown(resolved):
    told = resolved(
        files={"a.yaml": "distributed: {admin: {log-length: 5}}\n"},
        code="dask.config.set({'distributed.admin.log-length': 10000})",
    )
    assert told["distributed.admin.log-length"] == ["10000", None]


def test_a_file_written_since_the_start_explains_nothing(resolved):
    code = """
path = os.path.expanduser("~/.config/dask")
os.makedirs(path)
open(path + "/late.yaml", "w").write("distributed: {admin: {log-length: 7}}")
dask.config.set({"distributed.admin.log-length": 7, "mine.y": 2})
"""
    told = resolved(code=code)
    assert told["distributed.admin.log-length"] == ["7", None]
    assert told["mine.y"] == ["2", None]
    assert told["distributed.admin.log-format"][1] == "default"


def test_a_deprecated_name_leaves_the_new_one_without_origin(resolved):
    code = """
import warnings
warnings.simplefilter("ignore")
os.environ["DASK_FUSE_AVE_WIDTH"] = "3"
dask.config.refresh()
"""
    told = resolved(code=code)
    assert told["optimization.fuse.ave-width"] == ["3", None]
    assert told["optimization.fuse.max-width"] == ["null", "default"]


def test_secrets_in_the_configuration_are_redacted_by_name():
    changes = {
        "distributed.comm.tls.worker.key": "/home/jane/key.pem",
        "distributed.nanny.pre-spawn-environ": {"AWS_SECRET": "hidden", "OMP_NUM_THREADS": 1},
        "jobqueue.slurm.job-script-prologue": ["export API_TOKEN=hidden", "module load x"],
        "gateway.auth.password": 1234,
        "gateway.auth.enabled": True,
        "gateway.address": "https://jane:hidden@host/",
        "kubernetes.env": [{"name": "DB_PASSWORD", "value": "hidden"}, {"name": "N", "value": "1"}],
    }
    with dask.config.set(changes):
        _, rows = config_rows()
    told = {row.name: row.value for row in rows}
    assert told["distributed.comm.tls.worker.key"] is None
    assert told["distributed.comm.tls.worker.cert"] == "null"
    assert told["distributed.comm.tls.min-version"] == "1.2"
    assert told["distributed.nanny.pre-spawn-environ.AWS_SECRET"] is None
    assert told["distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS"] == "1"
    assert told["jobqueue.slurm.job-script-prologue"] == '["export API_TOKEN=[redacted]", "module load x"]'
    assert told["gateway.auth.password"] is None
    assert told["gateway.auth.enabled"] == "true"
    assert told["gateway.address"] == '"https://host/"'
    assert json.loads(told["kubernetes.env"]) == [
        {"name": "DB_PASSWORD", "value": "[redacted]"},
        {"name": "N", "value": "1"},
    ]
    assert "hidden" not in str(rows)


def test_the_digest_changes_with_a_value_and_back():
    first, _ = config_rows()
    with dask.config.set({"distributed.admin.log-length": 7}):
        second, _ = config_rows()
    third, _ = config_rows()
    assert first == third != second
    assert len(first) == 16


def test_values_json_does_not_know_are_named_or_spelled_out():
    class Odd:
        def __repr__(self):
            raise RuntimeError

    value = {
        "a": math.nan, "b": -math.inf, "c": Odd(), "d": {2, 1}, "e": Path("/x"), "f": (1, b"x"),
        "g": datetime.date(2026, 11, 24), "h": "é", 5: None,
    }  # fmt: skip
    assert json.loads(json_value("mine", value)) == {
        "a": "nan", "b": "-inf", "c": "<Odd>", "d": [1, 2], "e": "/x", "f": [1, "<bytes>"], "g": "2026-11-24",
        "h": "é", "5": None,
    }  # fmt: skip


def test_a_value_without_end_is_cut():
    endless = []
    endless.append(endless)
    assert "<list>" in json_value("mine", endless)
    assert json_value("mine", "x" * 100_000) == '"<str of 100002 characters>"'


def test_a_malformed_file_does_not_pass_for_a_setting(monkeypatch, tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [")
    monkeypatch.setattr(dask.config, "paths", [str(tmp_path)])
    with pytest.raises(ValueError, match="malformed"):
        config_rows()


def test_a_dask_that_cannot_tell_paths_leaves_files_out(monkeypatch):
    def collect_yaml(paths):
        return iter(())

    monkeypatch.setattr(dask.config, "collect_yaml", collect_yaml)
    assert configuration._files(dask.config) == []
    assert config_rows()[1] != []


# ---------------------------------------------------------------- packages


def test_installed_packages_are_those_of_importlib():
    digest, rows = installed_packages()
    installed = {row.name: row.version for row in rows}
    assert installed["dask"] == importlib.metadata.version("dask")
    assert installed["backports-zstd" if sys.version_info < (3, 14) else "numpy"]
    expected = {software._NORMALISED.sub("-", each.name).lower() for each in importlib.metadata.distributions()}
    assert set(installed) == expected
    assert [row.name for row in rows] == sorted(installed)
    assert {row.packages_digest for row in rows} == {digest}


def test_names_are_normalised_and_the_first_of_two_counts(tmp_path):
    def install(place, directory, metadata=None):
        path = tmp_path / place / directory
        path.mkdir(parents=True)
        if metadata:
            (path / ("METADATA" if directory.endswith("dist-info") else "PKG-INFO")).write_text(metadata)

    install("one", "My_Package.x-1.0+local.dist-info")
    install("one", "old.egg-info", "Metadata-Version: 1.0\nName: Old\nVersion: 0.3\n")
    install("one", "broken.egg-info")
    install("two", "my_package_x-2.0.dist-info")
    digest, rows = software._installed_packages((str(tmp_path / "one"), str(tmp_path / "two")))
    assert rows == [Package(digest, "my-package-x", "1.0+local"), Package(digest, "old", "0.3")]
    assert digest == hashlib.sha256(b"my-package-x==1.0+local\nold==0.3\n").hexdigest()[:16]


# ---------------------------------------------------------------- environment


def test_only_listed_variables_are_recorded_and_secrets_are_not():
    environment = {
        "OMP_NUM_THREADS": "4",
        "PYTHONPATH": "/a:/b",
        "HOME": "/home/jane",
        "AWS_ACCESS_KEY_ID": "x",
        "SLURM_JWT": "x",
        "DASK_INTERNAL_INHERIT_CONFIG": "eyJ4IjogMX0=",
        "DASK_DISTRIBUTED__COMM__TLS__WORKER__KEY": "/key.pem",
        "DASK_GATEWAY__ADDRESS": "https://jane:hidden@host",
        "MYPATH": "x",
        "UCX_TLS": "rc,sm",
        "UCX_NET_DEVICES": "mlx5_0:1",
    }
    assert list(environment_rows(environment)) == [
        EnvironmentVariable("DASK_DISTRIBUTED__COMM__TLS__WORKER__KEY", None),
        EnvironmentVariable("DASK_GATEWAY__ADDRESS", "https://host"),
        EnvironmentVariable("DASK_INTERNAL_INHERIT_CONFIG", None),
        EnvironmentVariable("OMP_NUM_THREADS", "4"),
        EnvironmentVariable("PYTHONPATH", "/a:/b"),
        EnvironmentVariable("SLURM_JWT", None),
        EnvironmentVariable("UCX_NET_DEVICES", "mlx5_0:1"),
        EnvironmentVariable("UCX_TLS", "rc,sm"),
    ]


def test_a_very_long_variable_is_cut():
    (row,) = environment_rows({"LSB_HOSTS": "n " * 100_000})
    assert row.value.endswith("... (200000 characters)")
    assert len(row.value) < 70_000


# ---------------------------------------------------------------- process


def test_the_process_row_tells_how_the_interpreter_was_started(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "x", "--password", "hunter2"])
    spool = Spool(tmp_path, "worker", "Worker-1")
    server = software.Server(spool, "worker", tmp_path, name=("a", 1), thread_count=4, memory_limit_bytes=1 << 30)
    row = process_row(server)
    assert json.loads(row.arguments) == ["python", "-m", "x", "--password", "[redacted]"]
    assert row.name == "('a', 1)"
    assert (row.thread_count, row.memory_limit_bytes, row.local_directory) == (4, 1 << 30, None)
    assert row.executable == sys.executable
    assert (row.dask_version, row.distributed_version) == (dask.__version__, distributed.__version__)
    assert json.loads(row.affinity) == sorted(os.sched_getaffinity(0))
    limits = json.loads(row.resource_limits)
    assert limits["nofile"][0] > 0
    assert set(limits) >= {"as", "core", "nproc", "stack"}
    assert (row.packages_digest, row.config_digest, row.details) == (None, None, None)


def test_a_working_directory_that_is_gone_is_null(tmp_path, monkeypatch):
    def gone():
        raise FileNotFoundError

    monkeypatch.setattr(os, "getcwd", gone)
    assert process_row(software.Server(Spool(tmp_path, "worker", "W"), "worker", tmp_path)).cwd is None
