import json
import os
import resource

import pytest
from click.testing import CliRunner

from recup import doctor
from recup.cli import main
from recup.doctor import Check
from recup.rundir import create_run
from recup.spool import Spool
from tests.unit.written_runs import write_run


def levels(checks):
    return [(check.level, check.subject) for check in checks]


def test_versions_in_range_are_ok():
    assert levels(doctor._judge_versions({"dask": "2025.1.0", "distributed": "2025.1.0"})) == [
        ("ok", "dask"),
        ("ok", "distributed"),
    ]


def test_versions_out_of_range_are_told():
    checks = doctor._judge_versions({"dask": "2024.10.0", "distributed": "2031.1.0"})
    assert levels(checks) == [("problem", "dask"), ("info", "distributed"), ("warning", "dask")]


def test_a_missing_distributed_is_a_problem():
    assert levels(doctor._judge_versions({"dask": "2026.1.0", "distributed": None})) == [
        ("ok", "dask"),
        ("problem", "distributed"),
    ]


def test_a_fresh_interpreter_imports_recup():
    assert levels(doctor.fresh_interpreter()) == [("ok", "recup in workers")]


def test_a_python_without_recup_is_a_problem(monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'recup'\" >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(doctor.sys, "executable", str(broken))
    (check,) = doctor.fresh_interpreter()
    assert (check.level, "No module named 'recup'" in check.statement) == ("problem", True)


def test_parts_that_were_not_compiled_are_told_with_their_price(monkeypatch):
    monkeypatch.setattr(doctor, "COMPILED", ("recup.columns", "recup.spool", "recup.not_there"))
    (check,) = doctor.compiled_parts()
    assert (check.level, check.statement) == (
        "warning",
        "not compiled: recup.spool, recup.not_there; record and answers are the same, at more CPU time per task",
    )


def test_a_live_cluster_is_recorded():
    assert levels(doctor.live_recording()) == [("ok", "live check")]


def test_rows_that_do_not_arrive_are_a_problem(tmp_path):
    path = create_run(tmp_path, way="run")
    Spool(path, "scheduler", "Scheduler-1").close()
    stderr = "x\nrecup records nothing of this Client: oops\n"
    (check,) = doctor._judge_recording(doctor.recorded_rows(path), stderr, 1.0)
    assert check.level == "problem"
    assert "client: client_submissions (recup records nothing of this Client: oops)" in check.statement


def test_rows_are_counted_by_role_as_servers_tell_them(tmp_path):
    rows = doctor.recorded_rows(write_run(tmp_path))
    assert {role: counts["processes"] for role, counts in rows.items()} == {"scheduler": 1, "worker": 2, "client": 1}


def test_a_runs_root_that_can_be_written_is_ok(tmp_path):
    first, *_ = doctor.runs_root_place(tmp_path / "not" / "there")
    assert (first.subject, first.level in ("ok", "warning")) == ("runs root", True)
    assert list(tmp_path.iterdir()) == []


def test_a_runs_root_that_cannot_be_written_is_a_problem(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    (check,) = doctor.runs_root_place(file / "runs")
    assert levels([check]) == [("problem", "runs root")]
    assert "--root" in check.fix


def test_own_preloads_are_told_and_kept():
    import dask

    with dask.config.set({"distributed.scheduler.preload": ["my.preload"], "distributed.client.preload": []}):
        (check,) = doctor.preload_settings()
    assert (check.level, "my.preload" in check.statement) == ("info", True)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "12"}, ("Slurm", "12")),
        ({"PBS_JOBID": "7.server"}, ("PBS", "7.server")),
        ({"JOB_ID": "3"}, None),
        ({"JOB_ID": "3", "SGE_TASK_ID": "undefined"}, ("Grid Engine", "3")),
    ],
)
def test_the_batch_system_is_read_from_the_environment(environment, expected):
    assert doctor.batch_system(environment) == expected


def test_jobqueue_gets_the_line_its_jobs_need(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object() if name == "dask_jobqueue" else None)
    (check,) = [each for each in doctor.batch_and_launchers(tmp_path) if each.subject == "dask-jobqueue"]
    assert "job_script_prologue" in check.fix
    assert "DASK_RECUP__SPOOL__DIRECTORY" in check.fix


def test_few_open_files_are_a_warning():
    assert doctor._open_files(256, resource.RLIM_INFINITY).level == "warning"
    assert doctor._open_files(1024, 4096).level == "ok"
    assert doctor._open_files(resource.RLIM_INFINITY, resource.RLIM_INFINITY).level == "ok"


def test_a_check_that_fails_hides_no_other(monkeypatch, tmp_path):
    def broken():
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, "kernel_facts", broken)
    checks = doctor.examine(tmp_path, live=False)
    assert Check("warning", "doctor", "a check could not be made: OSError: no such thing") in checks
    assert any(check.subject == "git" for check in checks)


def test_the_verb_ends_with_1_when_there_is_a_problem(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("RECUP_ROOT", os.fspath(file / "runs"))
    result = CliRunner().invoke(main, ["doctor", "--no-cluster"])
    assert result.exit_code == 1
    assert "Not everything would be recorded: runs root." in result.stdout


def test_the_verb_prints_its_checks_as_json(tmp_path):
    result = CliRunner().invoke(main, ["doctor", "--no-cluster", "--json", "--root", os.fspath(tmp_path)])
    assert {check["subject"] for check in json.loads(result.stdout)} >= {"Python", "dask", "runs root", "open files"}
