import csv
import io
import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from recup import schema
from recup.analyse.listing import list_runs
from recup.cli import main
from recup.rundir import create_run, find_run, find_runs, update_manifest
from recup.store import seal
from tests.unit.spooled import write
from tests.unit.written_runs import NASTY, A, row, write_run


@pytest.fixture
def root(tmp_path, monkeypatch):
    root = tmp_path / "runs"
    monkeypatch.setenv("RECUP_ROOT", os.fspath(root))
    monkeypatch.chdir(tmp_path)
    return root


@pytest.fixture
def run(root):
    return write_run(root)


def recup(*arguments):
    return CliRunner().invoke(main, list(arguments), prog_name="recup")


def document(*arguments):
    result = recup(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# ---------------------------------------------------------------- ls


def test_ls_tells_how_each_run_ended(root):
    write_run(root, run_id="a")
    for name, changes in {
        "b": {"state": "ended", "exit_code": 3},
        "c": {"state": "ended", "signal": 9, "exit_code": None},
        "d": {"state": "running", "started_ns": 1},
        "e": {"state": "running"},
    }.items():
        update_manifest(create_run(root, way="run", run_id=name), **changes)
    states = {row["run_id"]: row["state"] for row in document("ls")}
    assert states == {"a": "ended 0", "b": "exit 3", "c": "signal 9", "d": "unknown", "e": "running"}


def test_ls_counts_the_same_before_and_after_sealing(root, run):
    before = list_runs(root)
    assert recup("seal", "last").exit_code == 0
    after = list_runs(root)
    assert [(row["task_count"], row["worker_count"], row["wall_s"]) for row in before] == [(2, 2, 3.0)]
    assert [(row["task_count"], row["worker_count"], row["wall_s"]) for row in after] == [(2, 2, 3.0)]
    assert [(row["is_sealed"]) for row in before + after] == [False, True]


def test_ls_shows_a_run_that_cannot_be_read(root):
    (root / "broken").mkdir(parents=True)
    (root / "broken" / "run.json").write_text("{")
    (row,) = document("ls")
    assert (row["state"], "cannot be read" in row["problem"]) == ("unreadable", True)
    assert "unreadable" in recup("ls").stdout


def test_ls_of_an_empty_root_says_how_to_make_a_run(root):
    assert "`recup run script.py` makes one." in recup("ls").stdout


def test_ls_in_a_pipe_prints_one_whole_line_per_run(root, run):
    update_manifest(run, command=["python", "x" * 300])
    lines = recup("ls").stdout.splitlines()
    assert len(lines) == 3
    assert lines[2].endswith("x" * 300)


# ---------------------------------------------------------------- info, check


def test_info_tells_what_ran_and_what_came_of_it(run):
    told = document("info", "last")
    assert told["run"]["state"] == "ended 0"
    assert told["run"]["command"] == ["/usr/bin/python", "job.py"]
    assert [host["hostname"] for host in told["hosts"]] == ["node1"]
    assert [(each["worker_count"], each["thread_count"]) for each in told["clusters"]] == [(2, 4)]
    tasks = {name: value for name, value in told["tasks"].items() if name != "prefixes"}
    assert tasks == {
        "task_count": 2,
        "done_count": 1,
        "failed_count": 1,
        "blocked_count": 0,
        "given_up_count": 0,
        "without_result_count": 0,
        "scattered_count": 0,
        "attempt_count": 3,
        "failed_attempt_count": 2,
        "lost_attempt_count": 0,
        "compute_s": pytest.approx(0.38),
    }
    assert [(row["prefix"], row["task_count"], row["failed_count"]) for row in told["tasks"]["prefixes"]] == [
        ("inc", 1, 0),
        ("boom", 1, 1),
    ]
    assert (told["traffic"]["transfer_count"], told["traffic"]["transfer_bytes"]) == (1, 1000)
    assert [(error["key"], error["attempt_count"], error["is_done"]) for error in told["errors"]] == [(NASTY, 2, False)]
    assert "1 task failed" in recup("info", "last").stdout


def test_info_shows_the_completeness_statement_before_anything_else(run):
    page = recup("info", "last").stdout
    assert page.index("complete") < page.index("What ran") < page.index("Tasks")


def test_info_of_an_empty_run_is_a_page_too(root):
    create_run(root, way="run", command=["true"])
    result = recup("info", "last")
    assert result.exit_code == 0, result.output
    assert "What ran" in result.stdout


def test_logs_that_were_read_in_are_no_servers(root):
    path = create_run(root, way="run", run_id="logged")
    write(path, "scheduler", "Scheduler-1", [row(schema.Host, host_id="host", hostname="node")])
    write(path, "darshan", "job-1.darshan", [row(schema.IoLog, log="job-1.darshan")])
    findings = document("check", "last")["findings"]
    assert [each["statement"] for each in findings if each["subject"] == "servers"] == [
        "The records of all 1 servers ended in order."
    ]


def test_ingest_of_nothing_that_is_a_log_is_an_error_that_names_it(run, tmp_path):
    (tmp_path / "t.txt").write_text("no log")
    (tmp_path / "empty").mkdir()
    done = recup("ingest", "darshan", os.fspath(tmp_path / "t.txt"))
    assert done.exit_code == 1
    assert f"No Darshan log was read: there is none in {tmp_path}/t.txt." in done.output.replace("\n", " ")
    assert recup("ingest", "darshan", os.fspath(tmp_path / "empty")).exit_code == 1


def test_check_ends_with_3_when_something_is_missing(root):
    write_run(root, skip=("Worker-b",))
    result = recup("check", "last", "--json")
    assert result.exit_code == 3
    assert any(finding["level"] == "loss" for finding in json.loads(result.stdout)["findings"])


# ---------------------------------------------------------------- text of the user is inert


@pytest.mark.parametrize(
    "verb", [["info", "last"], ["story", NASTY], ["sql", "last", "from errors"], ["check"], ["ls"]]
)
def test_text_of_the_run_cannot_act_on_the_terminal(run, verb):
    update_manifest(run, command=["python", "\x1b]0;title\x07[bold]x\n"])
    result = recup(*verb)
    assert result.exit_code in (0, 3), result.output
    assert not any(ord(c) < 32 and c != "\n" for c in result.output)


def test_markup_in_keys_is_printed_as_it_is(run):
    assert "boom-[red]</script>\\x1b[31m\\n1" in recup("story", NASTY).stdout


# ---------------------------------------------------------------- story, map, schema


def test_story_finds_the_key_by_a_part_of_it(run):
    told = document("story", "inc")
    assert (told["key"], told["lines"][0]["what"]) == ("inc-1", "sent")


def test_story_of_an_ambiguous_key_is_one_line_and_exit_code_1(run):
    result = recup("story", "1")
    assert result.exit_code == 1
    assert result.stderr.startswith("recup: 2 keys of run")
    assert result.stderr.count("\n") == 1


def test_map_prints_every_step_and_what_its_words_mean(run):
    page = recup("map", "last").stdout
    for text in ("1  configuration and launch", "5  execution", "no task was stolen", "`recup run --yappi cpu`"):
        assert text in page
    assert {line["step"] for line in document("map")["lines"]} == {1, 2, 3, 4, 5}


def test_schema_tells_columns_units_and_nulls():
    (table,) = document("schema", "spills")
    assert {column["name"]: column["unit"] for column in table["columns"]}["memory_bytes"] == "bytes"
    assert {each["kind"] for each in document("schema")} == {"table", "view"}
    assert "not told" in recup("schema", "spills").stdout


def test_schema_of_an_unknown_table_suggests_one():
    result = recup("schema", "transfer")
    assert (result.exit_code, "Did you mean transfers" in result.stderr) == (1, True)


# ---------------------------------------------------------------- sql


def test_sql_without_a_query_lists_tables_and_views(run):
    counts = {row["name"]: row["row_count"] for row in document("sql", "last")}
    assert (counts["tasks"], counts["spills"], counts["worker_lives"]) == (2, 0, 2)


def test_sql_answers_in_every_form(run, tmp_path):
    query = "select key, run_id, nbytes from results where role = 'scheduler' order by time_ns"
    expected = [{"key": "inc-1", "run_id": 0, "nbytes": 1000}, {"key": NASTY, "run_id": 2, "nbytes": None}]
    assert document("sql", "last", query) == expected
    table = recup("sql", "last", query).stdout
    assert "inc-1" in table
    rows = list(csv.reader(io.StringIO(recup("sql", "last", query, "--format", "csv").stdout)))
    assert rows == [["key", "run_id", "nbytes"], ["inc-1", "0", "1000"], [NASTY, "2", ""]]
    file = tmp_path / "answer.parquet"
    assert recup("sql", "last", query, "-o", os.fspath(file)).exit_code == 0
    assert pq.read_table(file).to_pylist() == expected


def test_sql_limits_a_table_and_says_so(run):
    result = recup("sql", "last", "from range(500)", "--limit", "3")
    assert result.stdout.splitlines() == [
        "range",
        "─────",
        "    0",
        "    1",
        "    2",
        "the first 3 rows; --limit gives more",
    ]


@pytest.mark.parametrize("query", ["select nope from results", "not sql", "from nowhere", "drop table results"])
def test_a_bad_query_is_one_line_and_exit_code_1(run, query):
    result = recup("sql", "last", query)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("recup: ")
    assert result.stderr.count("\n") == 1


def test_an_error_while_the_answer_is_computed_is_one_line_too(run):
    result = recup("sql", "last", "select cast(key as int) from results")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_parquet_needs_a_file(run):
    assert recup("sql", "last", "from results", "--format", "parquet").exit_code == 2


def test_a_file_that_cannot_be_written_is_told(run, tmp_path):
    for form in ("csv", "parquet"):
        result = recup("sql", "last", "from results", "--format", form, "-o", os.fspath(tmp_path / "no" / "file"))
        assert (result.exit_code, "cannot be written" in result.stderr) == (1, True)


# ---------------------------------------------------------------- which run; seal


def columns_of(path):
    group = pq.ParquetFile(path).metadata.row_group(0)
    return [group.column(number) for number in range(group.num_columns)]


def test_damage_inside_a_sealed_table_is_one_line_and_exit_code_1(run):
    seal(run)
    path = run / "tables" / "results.parquet"
    column = next(each for each in columns_of(path) if each.compression == "ZSTD")
    with open(path, "r+b") as file:
        file.seek(column.data_page_offset + column.total_compressed_size - 12)
        file.write(bytes(12))
    for verb in (("info",), ("sql", "last", "from results")):
        result = recup(*verb)
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert "tables/results.parquet" in line
        assert "recup-" not in line


@pytest.mark.parametrize("verb", ["info", "map", "check", "seal"])
def test_a_run_that_is_not_there_is_one_line_and_exit_code_1(root, verb):
    result = recup(verb, "nothing")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("recup: No run 'nothing'")


def test_seal_twice_does_no_harm(run):
    first, second = document("seal", "last"), document("seal", "last")
    assert first["row_counts"]["tasks"] == 2
    assert (second["row_counts"], second["sizes_bytes"]) == ({}, first["sizes_bytes"])
    assert "sealed before, nothing new" in recup("seal").stdout


def test_seal_keeps_the_spool_when_told(run):
    assert document("seal", "last", "--keep-spool")["spool_removed"] is False
    assert (run / "spool").is_dir()


# ---------------------------------------------------------------- run

_PROGRAM = """
import sys
print("out", *sys.argv[1:])
sys.stderr.write("err\\n")
"""

_WAITS_FOR_ITS_SOURCE = """
import os, pathlib, time

deadline = time.monotonic() + 30
run = pathlib.Path(os.environ["DASK_RECUP__RUN_DIRECTORY"])
while time.monotonic() < deadline and not list(run.glob("spool/launcher-*/sources.arrows")):
    time.sleep(0.01)
"""


def command_line(*arguments, stdin=""):
    """The command in a process of its own, where how it is started or ends or what its output holds matters."""
    return subprocess.run(
        [sys.executable, "-m", "recup", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_run_gives_the_program_what_follows_it_untouched(root, tmp_path):
    (tmp_path / "job.py").write_text(_PROGRAM)
    done = command_line("run", "--quiet", "job.py", "--json", "--root", "x", "--", "-m")
    assert (done.returncode, done.stdout) == (0, "out --json --root x -- -m\n")
    assert "err" in done.stderr
    (row,) = list_runs(root)
    assert (row["state"], row["is_sealed"]) == ("ended 0", True)


def test_run_leaves_stdout_to_the_program_and_shows_the_first_page_on_stderr(root, tmp_path):
    (tmp_path / "job.py").write_text(_PROGRAM)
    done = command_line("run", "job.py")
    assert done.stdout == "out\n"
    assert "What ran" in done.stderr


def test_run_runs_a_module_as_python_does(root, tmp_path, capfd):
    (tmp_path / "job.py").write_text(_PROGRAM)
    done = recup("run", "--quiet", "--root", os.fspath(tmp_path / "other"), "-m", "job", "--quiet", "-m")
    assert (done.exit_code, capfd.readouterr().out) == (0, "out --quiet -m\n")
    assert len(list_runs(tmp_path / "other")) == 1


def test_runs_of_one_second_are_in_the_order_they_began(tmp_path):
    def run(name, started_ns):
        create_run(tmp_path, way="run", run_id=name)
        update_manifest(tmp_path / name, started_ns=started_ns)

    for name, started_ns in [("20260101T000001Z-0001", 5), ("20260101T000000Z-ffff", 1), ("20260101T000000Z-0001", 2)]:
        run(name, started_ns)
    create_run(tmp_path, way="run", run_id="20260101T000000Z-damaged")
    (tmp_path / "20260101T000000Z-damaged" / "run.json").write_text("{")
    assert [path.name for path in find_runs(tmp_path)] == [
        "20260101T000000Z-damaged",
        "20260101T000000Z-ffff",
        "20260101T000000Z-0001",
        "20260101T000001Z-0001",
    ]


def test_a_run_with_a_name_of_its_own_stands_where_it_began(tmp_path):
    began = {"zz": 1_767_225_601, "20260101T000002Z-0001": 1_767_225_602, "aa": 1_767_225_603, "damaged": None}
    for name, second in began.items():
        create_run(tmp_path, way="run", run_id=name)
        if second is None:
            (tmp_path / name / "run.json").write_text("{")
            os.utime(tmp_path / name, (1_767_225_600, 1_767_225_600))
        else:
            update_manifest(tmp_path / name, started_ns=second * 1_000_000_000)
    assert [path.name for path in find_runs(tmp_path)] == ["damaged", "zz", "20260101T000002Z-0001", "aa"]
    assert find_run("last", tmp_path).name == "aa"


def test_run_ends_as_the_program_ended(root, tmp_path):
    (tmp_path / "exits.py").write_text("raise SystemExit(7)")
    (tmp_path / "dies.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert recup("run", "--quiet", "exits.py").exit_code == 7
    assert command_line("run", "--quiet", "dies.py").returncode == -9
    assert [row["state"] for row in list_runs(root)] == ["exit 7", "signal 9"]


def test_signals_that_are_ignored_as_under_nohup_are_ignored_by_the_program_too(root, tmp_path):
    (tmp_path / "job.py").write_text(
        "import signal\nprint(*(signal.getsignal(n) == signal.SIG_IGN for n in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)))"
    )
    ignoring = ["sh", "-c", 'trap "" HUP INT; exec "$@"', "sh"]
    command = [*ignoring, sys.executable, "-m", "recup", "run", "--quiet", "job.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout) == (0, "True True False\n"), done.stderr


def test_a_failure_to_seal_is_told_and_changes_nothing_of_the_end(root, tmp_path):
    (tmp_path / "job.py").write_text(
        "import os, pathlib; pathlib.Path(os.environ['DASK_RECUP__RUN_DIRECTORY'], 'tables').write_text('')"
    )
    done = command_line("run", "job.py")
    assert (done.returncode, done.stdout) == (0, "")
    assert "recup: " in done.stderr
    (row,) = list_runs(root)
    assert row["is_sealed"] is False


def test_no_seal_leaves_the_rows_as_they_were_written(root, tmp_path):
    (tmp_path / "job.py").write_text("")
    assert recup("run", "--no-seal", "job.py").exit_code == 0
    (row,) = list_runs(root)
    assert row["is_sealed"] is False


def test_no_source_records_no_source_text(root, tmp_path):
    (tmp_path / "job.py").write_text(_WAITS_FOR_ITS_SOURCE)
    assert recup("run", "--no-source", "--quiet", "job.py").exit_code == 0
    assert document("sql", "last", "select kind, text from sources") == [{"kind": "script", "text": None}]


def test_the_first_page_as_json_goes_to_stderr(root, tmp_path):
    (tmp_path / "job.py").write_text("")
    done = recup("run", "--json", "job.py")
    assert (done.exit_code, done.stdout) == (0, "")
    assert json.loads(done.stderr)["run"]["state"] == "ended 0"


@pytest.mark.parametrize("arguments", [["run"], ["run", "--no-such-option", "job.py"]])
def test_wrong_usage_of_run_is_2(root, arguments):
    assert recup(*arguments).exit_code == 2


def test_what_cannot_run_is_one_line_and_exit_code_1(root):
    result = recup("run", "no-such-script.py")
    assert (result.exit_code, result.stderr.startswith("recup: no-such-script.py is neither")) == (1, True)


def test_peers_are_shown_where_they_matter(run):
    assert f"on {A}" in recup("story", "inc-1").stdout
