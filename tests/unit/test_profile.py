"""What is answered from the functions that Yappi counted."""

import importlib.util
import json

import dask
import pytest
from click.testing import CliRunner

from recup import open_run, schema
from recup.analyse.profile import function_profile, functions_of_key
from recup.capture import function_profile as capture
from recup.capture import profile_request
from recup.cli import main
from recup.errors import BadQuery
from recup.sealing import seal
from tests.unit.written_runs import at, row, write, write_run


def call(seconds, prefix, function, calls, own_s, total_s, **more):  # noqa: PLR0917
    values = {"kind": "task", "clock": "cpu", "thread": 7, "path": "/job.py", "line": 3, **more}
    return row(
        schema.FunctionCall, time_ns=at(seconds), prefix=prefix, function=function, call_count=calls,
        primitive_call_count=calls, own_s=own_s, total_s=total_s, **values,
    )  # fmt: skip


ROWS = [
    call(1, "inc", "inc", 2, 0.25, 1.0),
    call(2, "inc", "inc", 1, 0.5, 0.5),
    call(2, "inc", "sleep", 3, 0.25, 0.25, path=None, line=None),
    call(2, "add", "add", 4, 2.0, 2.0, thread=8),
    call(2, None, "Worker.execute", 7, 3.0, 3.0, kind="coroutine"),
]


@pytest.fixture(scope="module", params=["spool", "sealed"])
def path(request, tmp_path_factory):
    path = write_run(tmp_path_factory.mktemp("profile"))
    write(path, "worker", "Worker-c", ROWS)
    write(path, "worker", "Worker-d", [call(1, "inc", "inc", 1, 0.0, 0.0)])
    if request.param == "sealed":
        seal(path)
    return path


def told(path, *arguments, **options):
    names = ("prefix", "function", "call_count", "own_s", "total_s", "share", "server_count")
    with open_run(path) as run:
        return [
            tuple(line[name] for name in names) for line in function_profile(run, *arguments, **options).to_pylist()
        ]


def test_growth_is_added_up_over_time_threads_and_servers(path):
    assert told(path) == [
        ("add", "add", 4, 2.0, 2.0, 1.0, 1),
        ("inc", "inc", 4, 0.75, 1.5, 0.75, 2),
        ("inc", "sleep", 3, 0.25, 0.25, 0.25, 1),
    ]


def test_one_prefix_can_be_asked_for_in_another_order(path):
    assert [line[:3] for line in told(path, "inc", order="calls")] == [("inc", "inc", 4), ("inc", "sleep", 3)]


def test_what_ran_outside_tasks_stands_apart(path):
    assert told(path, kind="coroutine") == [(None, "Worker.execute", 7, 3.0, 3.0, 1.0, 1)]
    assert told(path, kind="other") == []


def test_a_prefix_that_was_not_profiled_names_those_that_were(path):
    with (
        open_run(path) as run,
        pytest.raises(BadQuery, match=r"'mul' were recorded in run .*; there are those of add, inc"),
    ):
        function_profile(run, "mul")


def test_functions_outside_tasks_have_no_prefix_to_ask_for(path):
    with open_run(path) as run, pytest.raises(BadQuery, match="'coroutine' are of no task and have no prefix"):
        function_profile(run, "read", kind="coroutine")


def test_of_many_prefixes_some_are_named(tmp_path):
    write(tmp_path, "worker", "w", [call(1, f"p{n:02}", "f", 1, 1.0, 1.0) for n in range(20)])
    with open_run(tmp_path) as run, pytest.raises(BadQuery, match=r"there are those of p00, .*, p11 and 8 more"):
        function_profile(run, "zzz")


def test_a_task_is_told_the_functions_of_its_prefix(path):
    with open_run(path) as run:
        document = functions_of_key(run, "inc-1")
    assert (document["prefix"], document["clock"]) == ("inc", "cpu")
    assert [each["function"] for each in document["functions"]] == ["inc", "sleep"]


def recup(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), prog_name="recup")


def test_the_command_prints_functions_by_prefix(path):
    lines = [line.split() for line in recup("profile", path, "--prefix", "inc").stdout.splitlines()]
    assert ["750", "ms", "75.0%", "1.50", "s", "4", "inc", "job.py:3"] in lines
    assert ["250", "ms", "25.0%", "250", "ms", "3", "sleep", "built", "in"] in lines
    document = json.loads(recup("profile", path, "--json").stdout)
    assert [each["function"] for each in document["functions"]] == ["add", "inc", "sleep"]
    assert document["how_to_record"] is None


def test_the_story_of_a_task_says_that_functions_are_those_of_its_prefix(path):
    assert (
        "Functions of all tasks of prefix inc together, not of this task alone"
        in recup("story", "inc-1", "--run", path).stdout
    )


def test_a_run_without_functions_says_how_to_record_them(tmp_path):
    path = write_run(tmp_path)
    assert "`recup run --yappi cpu ...` (or `wall`) records them" in " ".join(recup("profile", path).stdout.split())
    with open_run(path) as run:
        assert functions_of_key(run, "inc-1") is None


# ---------------------------------------------------------------- what is asked for


def test_recup_run_without_yappi_says_how_to_install_it(monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "yappi" else found(name, *rest)
    )
    done = recup("run", "--root", tmp_path, "--yappi", "cpu", "true")
    expected = "recup: --yappi needs Yappi: pip install 'recup[yappi]', here and where workers run.\n"
    assert (done.exit_code, done.stderr, list(tmp_path.iterdir())) == (1, expected, [])


def test_a_role_that_is_not_known_is_told(tmp_path):
    done = recup("run", "--root", tmp_path, "--yappi", "cpu", "--yappi-on", "worker,nanny", "true")
    assert (done.exit_code, done.stderr) == (1, "recup: --yappi-on knows worker, scheduler, client, not nanny.\n")


def test_a_prefix_without_a_clock_is_wrong_usage():
    assert recup("run", "--yappi-prefix", "inc", "true").exit_code == 2


def test_settings_travel_by_the_environment(monkeypatch):
    settings = profile_request.Settings("wall", ("a,b", "c*"), ("worker", "client"))
    for name, value in profile_request.environment_of(settings).items():
        monkeypatch.setenv(name, value)
    with dask.config.set(dask.config.collect(paths=[])):
        assert profile_request.configured() == settings


def test_nothing_is_profiled_unless_asked_for():
    assert profile_request.configured() is None
    with dask.config.set({"recup.yappi.clock": "sundial"}):
        assert profile_request.configured() is None


def test_a_server_without_yappi_counts_it_as_a_loss_and_goes_on(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "_yappi", None)
    spool = write(tmp_path, "worker", "Worker-1", [])
    assert capture.attach(spool, "worker", None, profile_request.Settings("cpu"), tmp_path) is None
    assert capture.attach(spool, "scheduler", None, profile_request.Settings("cpu"), tmp_path) is None
    kind, table, detail, _ = next(iter(spool._lost))
    assert (kind, table) == ("not_captured", "function_calls")
    assert detail.endswith("pip install 'recup[yappi]' where this server runs")
