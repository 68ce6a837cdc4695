import pytest

from recup import open_run, schema
from recup.analyse.coverage import CELLS, STATES, STEPS, coverage
from recup.sealing import seal
from recup.spool import Spool
from tests.unit.written_runs import at, row, write, write_run


def lines_of(path):
    with open_run(path) as run:
        return {(line["step"], line["metadata"]): line for line in coverage(run).to_pylist()}


def judged(lines, step, metadata):
    line = lines[step, metadata]
    return line["state"], line["statement"]


def test_every_step_has_lines_and_every_line_a_state(tmp_path):
    lines = lines_of(write_run(tmp_path))
    assert len(lines) == len(CELLS)
    assert {line["step"] for line in lines.values()} == set(STEPS)
    assert {line["state"] for line in lines.values()} <= set(STATES)
    assert all(line["statement"] for line in lines.values() if line["state"] != "collected")


def test_what_was_written_is_collected_with_its_rows(tmp_path):
    line = lines_of(write_run(tmp_path))[3, "transitions"]
    assert (line["state"], line["row_count"], line["tables"]) == ("collected", 8, ["scheduler_transitions"])


def test_what_did_not_happen_is_not_called_missing(tmp_path):
    path = write_run(tmp_path)
    lines = lines_of(path)
    assert judged(lines, 3, "stealing") == ("nothing", "no task was stolen")
    assert judged(lines, 4, "spill to disk") == ("nothing", "no result went to disk")


def test_a_witness_tells_what_is_missing_from_what_did_not_happen(tmp_path):
    path = write_run(tmp_path)
    sample = row(schema.Sample, time_ns=at(2), metric="spilled_disk_bytes", value=4096.0)
    write(path, "worker", "Worker-c", [sample])
    assert judged(lines_of(path), 4, "spill to disk") == ("missing", "Dask counted 4096, no row is there")


def test_a_layer_without_its_observer_is_missing(tmp_path):
    path = write_run(tmp_path, skip=("Client-1",))
    assert judged(lines_of(path), 2, "submissions") == ("missing", "no client was recorded")


def test_a_worker_that_left_no_rows_makes_its_lines_partly_known(tmp_path):
    path = write_run(tmp_path, skip=("Worker-b",))
    lines = lines_of(path)
    assert judged(lines, 4, "reception of tasks") == ("partly", "recorded by 1 of 2 workers")
    assert judged(lines, 4, "spill to disk") == (
        "partly",
        "no result went to disk, as far as recorded by 1 of 2 workers",
    )


def test_a_loss_makes_the_lines_of_its_table_partly_known(tmp_path):
    path = write_run(tmp_path)
    spool = Spool(path, "worker", "Worker-c")
    spool.lose("dropped", "receptions", "the disk did not take rows fast enough", 7)
    spool.close()
    lines = lines_of(path)
    assert judged(lines, 4, "reception of tasks") == (
        "partly",
        "dropped, 7 rows: the disk did not take rows fast enough",
    )
    assert judged(lines, 4, "transitions")[0] == "collected"


def test_what_was_not_asked_for_says_how_to_ask(tmp_path):
    lines = lines_of(write_run(tmp_path))
    said = ("not asked", "not asked for: `recup run --darshan`")
    assert judged(lines, 5, "operations on files") == said
    said = ("not asked", "not asked for: `recup run --yappi cpu`, or `wall`")
    assert judged(lines, 5, "functions of tasks, wall or CPU") == said


def test_functions_that_were_asked_for_are_collected_or_did_not_run(tmp_path):
    path = write_run(tmp_path)
    (path / "foreign" / "yappi").mkdir(parents=True)
    (path / "foreign" / "yappi" / "request.json").write_text("{}")
    call = row(schema.FunctionCall, time_ns=at(1), clock="cpu", prefix="inc", kind="task", function="f", call_count=1)
    write(path, "worker", "Worker-c", [call])
    lines = lines_of(path)
    assert judged(lines, 5, "functions of tasks, wall or CPU") == ("collected", "")
    assert judged(lines, 5, "coroutines, wall or CPU") == ("nothing", "only tasks were profiled")


def asked_for_darshan(path):
    directory = path / "foreign" / "darshan"
    directory.mkdir(parents=True)
    (directory / "request.json").write_text("{}")
    return path


def test_darshan_that_was_asked_for_and_saw_no_worker_is_not_called_missing(tmp_path):
    path = asked_for_darshan(write_run(tmp_path))
    assert judged(lines_of(path), 5, "Darshan logs") == ("nothing", "no worker left a log")


def test_darshan_that_was_not_found_says_so(tmp_path):
    path = asked_for_darshan(write_run(tmp_path))
    spool = Spool(path, "launcher", "Launcher-1")
    spool.lose("not_captured", "io_logs", "libdarshan was not found")
    spool.close()
    lines = lines_of(path)
    for metadata in ("Darshan logs", "files", "operations on files"):
        assert judged(lines, 5, metadata) == ("missing", "not_captured: libdarshan was not found")


def test_a_log_that_is_cut_short_makes_its_lines_partly_known(tmp_path):
    path = asked_for_darshan(write_run(tmp_path))
    lost = '["DXT_POSIX: 3 of 4 operations (75.0%) were traced"]'
    write(
        path,
        "darshan",
        "log",
        [
            row(schema.IoLog, log="x.darshan", lost=lost),
            row(schema.IoFile, log="x.darshan", module="POSIX"),
            row(schema.IoSegment, log="x.darshan", module="POSIX"),
        ],
    )
    lines = lines_of(path)
    assert judged(lines, 5, "files")[0] == "collected"
    assert judged(lines, 5, "operations on files") == ("partly", "DXT_POSIX: 3 of 4 operations (75.0%) were traced")


@pytest.mark.parametrize("force", [False, True])
def test_sealing_changes_nothing_of_the_map(tmp_path, force):
    path = write_run(tmp_path)
    before = lines_of(path)
    seal(path, force=force)
    assert lines_of(path) == before


def test_an_empty_run_has_a_map_too(tmp_path):
    from recup.rundir import create_run

    states = {line["state"] for line in lines_of(create_run(tmp_path, way="run")).values()}
    assert states == {"missing", "not asked"}
