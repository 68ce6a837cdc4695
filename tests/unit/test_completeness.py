import json
import re

import pytest

from recup import schema
from recup.completeness import LEVELS, completeness, verdict
from recup.rundir import create_run, update_manifest
from recup.spool import Spool
from recup.store import open_run, seal
from tests.unit import written_runs
from tests.unit.spooled import edit_status, left_by_a_killed_server, write
from tests.unit.written_runs import A, at, row, write_run


def findings_of(path):
    with open_run(path) as run:
        return completeness(run)


def told(path, level):
    return told_by(findings_of(path), level)


def told_by(findings, level):
    return [(finding.subject, finding.statement) for finding in findings if finding.level == level]


def test_a_run_that_lost_nothing_is_complete(tmp_path):
    path = write_run(tmp_path)
    findings = findings_of(path)
    assert {finding.level for finding in findings} == {"ok"}
    assert verdict(findings) == "complete"


def test_the_statement_is_the_same_after_sealing(tmp_path):
    path = write_run(tmp_path, skip=["Worker-b"])
    before = findings_of(path)
    seal(path)
    assert findings_of(path) == before


def log_of_darshan(name, **values):
    return row(schema.IoLog, log=name, format_version="3.41", modules="{}", **values)


def test_a_log_of_darshan_that_misses_something_is_a_loss(tmp_path):
    path = write_run(tmp_path)
    lost = ["POSIX: Darshan ran out of memory for it, so files or operations are missing"]
    logs = [
        log_of_darshan("a", segment_count=5, operation_count=5),
        log_of_darshan("b", segment_count=5, operation_count=5, lost=json.dumps(lost)),
        log_of_darshan("c", segment_count=4, operation_count=5),
    ]
    write(path, "darshan", "logs", logs)
    assert told(path, "loss") == [
        ("b", f"Of this log something is missing: {lost[0]}."),
        ("c", "Of this log something is missing: 4 of 5 operations were traced."),
    ]
    assert verdict(findings_of(path)).startswith("incomplete: b: of this log something is missing: POSIX: Darshan ran")


def test_whole_logs_of_darshan_are_no_loss(tmp_path):
    path = write_run(tmp_path)
    write(path, "darshan", "logs", [log_of_darshan("a", segment_count=5, operation_count=5)])
    assert ("Darshan", "All 1 logs of Darshan are whole.") in told(path, "ok")
    assert verdict(findings_of(path)) == "complete"


def test_the_memory_map_of_a_killed_worker_is_told_once(tmp_path):
    path = write_run(tmp_path)
    killed = log_of_darshan("m.darshan", is_killed=True, lost=json.dumps(["the process was killed: no segments"]))
    said = schema.Loss(at(3), "not_captured", "io_segments", None, "the log never came; m.darshan holds its counters")
    write(path, "darshan", "logs", [killed])
    write(path, "launcher", "l", [said])
    assert [subject for subject, _ in told(path, "loss")] == ["l"]


def test_losses_come_first(tmp_path):
    levels = [
        LEVELS.index(finding.level) for finding in findings_of(write_run(tmp_path, skip=["Worker-b", "Client-1"]))
    ]
    assert levels == sorted(levels)
    assert levels[0] == 0


def test_an_empty_run_is_not_complete(tmp_path):
    path = create_run(tmp_path, way="run")
    update_manifest(path, started_ns=at(0))
    assert verdict(findings_of(path)).startswith("incomplete: run: no server recorded anything")


def test_a_run_that_began_seconds_ago_has_lost_nothing_yet(tmp_path):
    path = create_run(tmp_path, way="run")
    (finding,) = [finding for finding in findings_of(path) if finding.level != "ok"]
    assert (finding.level, finding.subject) == ("warning", "run")
    assert re.fullmatch(r"It began \d+ s ago, and no scheduler has written anything yet\.", finding.statement)


def launched(tmp_path, *rows, **manifest):
    """A run of `recup run`, of which the launcher alone recorded."""
    path = create_run(tmp_path, way="run")
    about = row(schema.Process, time_ns=at(0), role="launcher", host_id="host", pid=1)
    write(path, "launcher", "Launcher-1", [about, *rows])
    update_manifest(path, started_ns=at(0), **manifest)
    return path


NO_CLUSTER = (
    "run",
    "Its program started no Dask cluster, as far as recorded: there is no record of a scheduler, worker or client.",
)


@pytest.mark.parametrize(
    ("exit_code", "level"), [(1, "info"), (0, "warning"), (None, "warning")], ids=["failed", "ended well", "not known"]
)
def test_a_program_without_any_cluster_lost_nothing(tmp_path, exit_code, level):
    path = launched(tmp_path, state="ended", exit_code=exit_code)
    assert told(path, "loss") == []
    assert told(path, level) == [NO_CLUSTER]


def test_a_scheduler_that_anybody_met_and_that_did_not_record_is_a_loss(tmp_path):
    lost = schema.Loss(at(1), "not_captured", "scheduler_transitions", None, "recup is not there")
    path = launched(tmp_path, lost, state="ended", exit_code=1)
    missing = ("scheduler", "No scheduler recorded into this run.")
    assert missing in told(path, "loss")
    path = launched(tmp_path / "other", state="ended", exit_code=1)
    write(path, "client", "Client-1", [row(schema.Process, time_ns=at(0), role="client", scheduler_id="Scheduler-1")])
    assert told(path, "loss") == [missing]


def test_a_client_that_did_not_record_is_told_with_what_to_do(tmp_path):
    assert told(write_run(tmp_path, skip=["Client-1"]), "loss") == [
        (
            "Client-1",
            "The scheduler saw this client, and it did not record: its graphs before optimization are missing. To have "
            "them, start its program with DASK_DISTRIBUTED__CLIENT__PRELOAD=recup.preload, or say `with "
            "recup.record(client):` in it.",
        )
    ]


def test_a_killed_server_is_told_with_what_may_be_missing(tmp_path):
    path = tmp_path / "run"
    write(path, "scheduler", "s", [row(schema.Worker, time_ns=at(0), action="add", address=A, worker_id="w")])
    left_by_a_killed_server(path, "worker", "w", [schema.TransferKey(0, "k", 1)])
    (finding,) = [finding for finding in findings_of(path) if finding.level == "loss"]
    assert finding.subject == "w"
    assert finding.statement.startswith("Its record was cut off")
    assert finding.numbers["at_most_s"] == 1.0


def test_a_living_server_is_no_loss(tmp_path):
    spool = Spool(tmp_path, "scheduler", "s")
    spool.put(row(schema.Worker, time_ns=at(0), action="add", address=A))
    assert spool.flush()
    findings = findings_of(tmp_path)
    assert ("s", "It is still recording.") in told_by(findings, "info")
    assert not any(subject == "s" for subject, _ in told_by(findings, "loss"))
    spool.close()


def test_a_missing_status_is_a_doubt(tmp_path):
    path = write_run(tmp_path)
    (path / "spool" / "worker-Worker-a" / "status.json").unlink()
    findings = findings_of(path)
    assert [subject for subject, _ in told_by(findings, "warning")] == ["Worker-a"]
    assert verdict(findings).startswith("complete but for Worker-a")


def test_rows_said_to_be_written_and_not_there_are_counted(tmp_path):
    path = write_run(tmp_path)
    edit_status(path / "spool" / "worker-Worker-a", row_counts={"receptions": 5, "logs": 1})
    assert told(path, "loss") == [("Worker-a", "4 of 5 rows it wrote to receptions are not there.")]


def test_counts_that_differ_from_dask_s_are_told(tmp_path):
    path = write_run(tmp_path)
    edit_status(
        path / "spool" / "worker-Worker-a",
        counters={
            "transitions_dask": 12, "transitions_recorded": 9, "transitions_compound": 3, "transfers_incoming_dask": 2,
        },
    )  # fmt: skip
    findings = findings_of(path)
    assert told_by(findings, "loss") == [("Worker-a", "Dask counted 2 transfers incoming and recup 0.")]
    assert ("counters", "recup counted what Dask counted, in 1 counts.") in told_by(findings, "ok")


def test_counts_of_a_killed_server_are_a_fact_not_a_loss(tmp_path):
    path = tmp_path / "run"
    counters = {"transitions_dask": 12, "transitions_recorded": 9}
    left_by_a_killed_server(path, "scheduler", "s", [row(schema.Event, topic="t", payload="{}")], counters=counters)
    assert any(statement.startswith("Dask counted 12 transitions and recup 9") for _, statement in told(path, "info"))


def test_servers_seen_but_not_captured_are_named(tmp_path):
    path = write_run(tmp_path, skip=["Worker-b", "Client-1"])
    assert {subject for subject, _ in told(path, "loss")} == {"Worker-b", "Client-1"}


def test_a_run_without_a_scheduler_says_so(tmp_path):
    path = write_run(tmp_path, skip=["Scheduler-1"])
    findings = findings_of(path)
    assert ("scheduler", "No scheduler recorded into this run.") in told_by(findings, "loss")
    assert any("the scheduler does not" in statement for _, statement in told_by(findings, "warning"))


def test_reported_losses_are_summed_by_server_kind_and_table(tmp_path):
    path = write_run(tmp_path)
    lost = [schema.Loss(at(i), "dropped", "samples", 10, "the disk was slow") for i in range(3)]
    lost += [
        schema.Loss(at(9), "not_captured", None, -1, "no such hook"),
        schema.Loss(at(9), "degraded", "logs", 2, "odd"),
    ]
    write(path, "nanny", "Nanny-1", lost)
    findings = findings_of(path)
    assert told_by(findings, "loss") == [
        ("Nanny-1", "30 rows of samples were dropped: the disk was slow"),
        ("Nanny-1", "Rows were not captured: no such hook"),
    ]
    assert told_by(findings, "warning") == [("Nanny-1", "2 rows of logs were kept in part: odd")]


def test_losses_only_noted_in_the_status_count(tmp_path):
    path = write_run(tmp_path)
    edit_status(path / "spool" / "worker-Worker-a", unwritten_losses={"write_failed:results": 40, "gap:": -1})
    assert told(path, "loss") == [
        ("Worker-a", "40 rows of results could not be written; this could only be noted in its status."),
        ("Worker-a", "An unknown number of rows are missing in a gap; this could only be noted in its status."),
    ]


@pytest.mark.parametrize("sealed", [False, True])
def test_a_damaged_file_is_told_once(tmp_path, sealed):
    path = write_run(tmp_path)
    file = path / "spool" / "worker-Worker-a" / "receptions.arrows"
    file.write_bytes(file.read_bytes()[:-10])
    if sealed:
        seal(path)
    losses = [(subject, statement) for subject, statement in told(path, "loss") if "cannot be read" in statement]
    assert [subject for subject, _ in losses] == ["Worker-a"]
    assert "receptions.arrows" in losses[0][1]


def test_foreign_files_are_mentioned(tmp_path):
    path = write_run(tmp_path)
    (path / "spool" / "worker-Worker-a" / "notes.txt").write_text("mine")
    assert told(path, "info") == [("Worker-a", "notes.txt in its spool is no table of recup and was not read.")]


def test_a_clock_that_jumped_is_told(tmp_path):
    path = write_run(tmp_path)
    ticks = [schema.ClockSample(at(t), m * 10**9, None) for t, m in ((0, 0), (1, 1), (62, 2), (63, 3))]
    write(path, "nanny", "Nanny-1", ticks)
    assert told(path, "warning") == [
        ("Nanny-1", "Its wall clock jumped 1 times, by +60.000 s at most: times around are off by that much.")
    ]


def test_a_worker_that_recorded_but_not_this_attempt_is_a_doubt(tmp_path):
    path = tmp_path / "run"
    rows = [
        row(schema.Worker, time_ns=at(0), action="add", address=A, worker_id="w"),
        schema.SchedulerTransition(at(1), "x", "waiting", "processing", "s", A, 0),
        schema.SchedulerTransition(at(2), "x", "processing", "memory", "s", A, 0),
    ]
    write(path, "scheduler", "s", rows)
    write(path, "worker", "w", [row(schema.Log, level="INFO", logger="x", message="here")])
    assert [statement for _, statement in told(path, "warning")] == [
        "Of 1 of 1 attempts the scheduler took the end and the worker recorded nothing of them, though it recorded."
    ]


def test_attempts_without_counters_of_their_thread_are_a_doubt(tmp_path):
    path = write_run(tmp_path)
    for table in ("thread_counters", "threads"):
        (path / "spool" / "worker-Worker-b" / f"{table}.arrows").unlink()
    statements = [(f.level, f.statement) for f in findings_of(path) if f.subject == "threads"]
    assert statements == [
        (
            "warning",
            "Of 2 of 3 attempts the counters of their thread are missing; in process pools there are none.",
        )
    ]


@pytest.mark.parametrize(
    ("by_dask_s", "levels"),
    [(0.1505, ["ok"]), (0.1, ["warning", "ok"]), (0.3, ["info", "ok"])],
    ids=["agrees", "less", "more"],
)
def test_cpu_time_is_held_against_dasks_own_meter(tmp_path, monkeypatch, by_dask_s, levels):
    rows = written_runs.worker_a_rows()
    metered = [each._replace(value=by_dask_s) if isinstance(each, schema.FineMetric) else each for each in rows]
    monkeypatch.setattr(written_runs, "worker_a_rows", lambda: metered)
    path = write_run(tmp_path)
    assert [f.level for f in findings_of(path) if "of CPU" in f.statement or f.subject == "threads"] == levels


def test_a_sealed_table_that_is_gone_or_damaged_is_a_loss(tmp_path):
    path = write_run(tmp_path)
    seal(path)
    (path / "tables" / "tasks.parquet").unlink()
    with open(path / "tables" / "results.parquet", "r+b") as file:
        file.truncate(300)
    found = {each.subject: each.statement for each in findings_of(path) if each.level == "loss"}
    assert found == {
        "tables/results.parquet": "It is damaged: answers are given without its rows. Restore it from a copy of the run.",
        "tables/tasks.parquet": "It is not there: answers are given without its rows. Restore it from a copy of the run.",
    }
    with open_run(path) as run:
        assert run.sql("select count(*) from tasks").fetchall() == [(0,)]


@pytest.mark.parametrize(
    ("metered", "levels"),
    [
        ({"thread-cpu": 0.001, "p2p-shard-partition-cpu": 0.1495, "p2p-shard-partition-noncpu": 0.3}, ["ok"]),
        ({"thread-cpu": 0.0, "p2p-shard-partition-cpu": 0.1, "p2p-shard-partition-noncpu": 0.06}, ["ok"]),
        ({"thread-cpu": 0.0, "my-own-part": 0.2}, ["ok"]),
        ({"thread-cpu": 0.01, "my-own-part": 0.05}, ["warning", "ok"]),
        ({"thread-cpu": 0.1, "thread-noncpu": 0.2, "executor": 0.2, "other": 0.2}, ["warning", "ok"]),
        ({"thread-cpu": 0.1, "p2p-get-output-cpu": 0.2}, ["info", "ok"]),
    ],
    ids=["shuffle", "waits taken off cpu", "own meter", "own meter too short", "around the thread", "more"],
)
def test_what_code_meters_itself_is_added_to_dasks_cpu_time_as_far_as_it_may_be_cpu(
    tmp_path, monkeypatch, metered, levels
):
    rows = [each for each in written_runs.worker_a_rows() if not isinstance(each, schema.FineMetric)]
    rows += [
        schema.FineMetric(at(2), "execute", None, "inc", name, "seconds", value) for name, value in metered.items()
    ]
    monkeypatch.setattr(written_runs, "worker_a_rows", lambda: rows)
    path = write_run(tmp_path)
    assert [f.level for f in findings_of(path) if "of CPU" in f.statement or f.subject == "threads"] == levels
