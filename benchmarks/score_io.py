"""How right the join of Darshan's I/O to tasks is, scored on recorded runs whose truth is known.

A run of recup is made from a data set: its Dask events become rows, its Darshan logs are
read as those of any run.  Then each segment's claim is held against the truth.

    python benchmarks/score_io.py DATA/imaging DATA/imaging_nothreadid
    python benchmarks/score_io.py DATA/polaris/PMDA_R1 DATA/polaris/PMDA_R3

imaging-like directories hold truth/*.jsonl, written by the tasks themselves: a segment is
decidable when exactly one task's own account (process, file, time, and thread where the log
tells it) contains it.  Truth is used to score alone.  Directories of the Polaris kind hold
CSV tables without truth: what can be held against them is that every segment on a thread
that ran tasks lies inside one of them.

A run recorded on purpose is scored against what its tasks noted (`io_truth.py` says how to record one):

    python benchmarks/score_io.py --run RUN DIRECTORY

Figures stand beside the promise; raw counts are kept in benchmarks/results/score-io-<time>.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from recup import schema
from recup.rundir import create_run
from recup.schema import table_of
from recup.spool import Spool
from recup.store import open_run

SLACK_S = 5e-6
"""By how much a segment may stick out of the time a task itself noted around its I/O."""
PROMISED_SHARE = 0.994
SCHEDULER = "Scheduler-0"


# ---------------------------------------------------------------- from a data set to a run


def row(row_class, **values):
    """Return a row: what is not given is null where the column has nulls, else empty or zero."""
    empty = {"int64": 0, "float64": 0.0, "bool": False, "text": "", "category": "", "key": ""}
    filled = {}
    for column in table_of(row_class).columns:
        null = -1 if column.null_value is not None else None if column.null else empty[column.kind]
        filled[column.name] = values.pop(column.name, null)
    assert not values, sorted(values)
    return row_class(**filled)


def ns(seconds):
    return round(seconds * 1e9)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, role, server_id, rows):
    """Write the rows of one server, closed in order."""
    spool = Spool(path, role, server_id)
    for number, each in enumerate(rows):
        spool.put(each)
        if number % 5000 == 4999:
            assert spool.flush(60)
    spool.close()
    assert spool.flush(60)


def process(role, hostname, pid, address=None):
    """Return the rows that say which process a server is."""
    return [
        row(schema.Host, host_id=hostname, hostname=hostname),
        row(
            schema.Process, role=role, address=address, scheduler_id=SCHEDULER, host_id=hostname, pid=pid,
            arguments="[]", resource_limits="{}", executable="/usr/bin/python",
        ),
    ]  # fmt: skip


def imaging_run(source, target):
    """Make a run of an imaging-like data set, its truth left out; returns the run directory."""
    path = create_run(target, way="run", run_id=source.name)
    facts = json.loads((source / "run.json").read_text())
    pids = facts["workers"]
    write(path, "scheduler", SCHEDULER, imaging_scheduler_rows(source, facts))
    for file in sorted((source / "worker").glob("*.jsonl")):
        pid = int(file.stem.rpartition("-")[2])
        address = next(address for address, each in pids.items() if each == pid)
        write(path, "worker", f"Worker-{pid}", imaging_worker_rows(file, address, facts["host"], pid))
    return path


def imaging_scheduler_rows(source, facts):
    yield from process("scheduler", facts["host"], 1)
    for address, pid in facts["workers"].items():
        yield row(schema.Worker, action="add", address=address, worker_id=f"Worker-{pid}", pid=pid, thread_count=2)
    yield row(schema.Submission, time_ns=ns(facts["t_start"]), stimulus_id="update-graph")
    seen = set()
    for event in lines_of(source / "transitions.jsonl"):
        if event["ev"] != "transition":
            continue
        key, told = event["key"], event["kwargs"]
        if key not in seen:
            seen.add(key)
            yield row(schema.Task, key=key, prefix=event["prefix"], group=event["group"])
        run_id = 0 if "processing" in (event["start"], event["finish"]) else -1
        yield schema.SchedulerTransition(
            ns(event["t"]), key, event["start"], event["finish"], event["stimulus"], event["on"], run_id
        )
        computed = [each for each in told.get("startstops") or () if each["action"] == "compute"]
        if event["start"] == "processing" and computed:
            yield schema.Result(
                ns(event["t"]), key, 0, event["finish"], told.get("worker"), told.get("thread") or -1,
                told.get("nbytes") or -1, told.get("typename"), computed[0]["start"], computed[0]["stop"], None,
            )  # fmt: skip


def imaging_worker_rows(file, address, hostname, pid):
    yield from process("worker", hostname, pid, address)
    source = file.parent.parent
    threads = {
        event["key"]: event["kwargs"]["thread"]
        for event in lines_of(source / "transitions.jsonl")
        if event["ev"] == "transition" and event["kwargs"].get("thread")
    }
    delays = {}
    for event in lines_of(file):
        if event.get("ev") == "beacon":
            for offset, (before, after) in enumerate(event["times"]):
                yield schema.ClockBeacon(ns(before), ns(after), event["ident"], offset, event["path"])
        if "start" not in event:
            continue
        key, at = event["key"], ns(event["t"])
        yield schema.WorkerTransition(at, key, 0, event["start"], event["finish"], None, None)
        yield schema.ClockSample(at, at, event["delay"])
        if event["finish"] == "executing":
            delays[key] = event["delay"]
        computed = [each for each in event.get("startstops") or () if each["action"] == "compute"]
        if event["start"] == "executing" and computed:
            yield schema.Result(
                at, key, 0, event["finish"], address, threads.get(key, -1), -1, None, computed[0]["start"],
                computed[0]["stop"], delays.get(key),
            )  # fmt: skip


def polaris_run(source, target):
    """Make a run of a directory of CSV tables, times of tasks put back on the worker's clock; returns its path.

    The tables tell neither process ids nor Dask's shift.  A worker is the process in whose log
    its threads did I/O; the shift is the end that was recorded less the time in the cause of
    the transition, which the worker stamped unshifted.
    """
    logs = {int(re.search(r"-(\d+)_", each.name)[1]): each for each in darshan_logs(source)}
    pid_of_thread, host_of_pid = {}, {}
    for pid, log in logs.items():
        table, host_of_pid[pid] = segments_of(log)
        for thread in set(table.column("thread").to_pylist()) - {None, -1}:
            pid_of_thread.setdefault(thread, []).append(pid)
    path = create_run(target, way="run", run_id=source.name)
    ended = [each for each in table_rows(source / "scheduler_transition.csv") if each["ends"] and each["thread"]]
    by_worker = defaultdict(list)
    for each in ended:
        by_worker[each["worker"]].append(each)
    pid_of = {}
    for address, tasks in by_worker.items():
        pids = [set(pid_of_thread.get(int(each["thread"]), ())) for each in tasks]
        votes = Counter(pid for each in pids for pid in each)
        if votes:
            pid_of[address] = votes.most_common(1)[0][0]
    rows = process("scheduler", "scheduler", 1)
    rows += [
        row(schema.Worker, action="add", address=address, worker_id=f"Worker-{pid}", pid=pid)
        for address, pid in pid_of.items()
    ]
    rows.append(row(schema.Submission, stimulus_id="update-graph"))
    rows += [row(schema.Task, key=each["key"], prefix=each["prefix"], group=each["group"]) for each in ended]
    write(path, "scheduler", SCHEDULER, rows)
    for address, pid in pid_of.items():
        rows = process("worker", host_of_pid[pid], pid, address)
        for each in by_worker[address]:
            stamped = float(re.search(r"-([0-9.]+)$", each["stimulus_id"])[1])
            shift = float(each["ends"]) - stamped
            begun = ns(float(each["begins"]) - shift)
            rows.append(schema.WorkerTransition(begun - 1_000_000, each["key"], 0, "ready", "executing", None, None))
            rows.append(
                schema.Result(
                    ns(stamped),
                    each["key"],
                    0,
                    "memory",
                    address,
                    int(each["thread"]),
                    -1,
                    None,
                    float(each["begins"]),
                    float(each["ends"]),
                    shift,
                )
            )
        write(path, "worker", f"Worker-{pid}", rows)
    return path


def table_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def darshan_logs(source):
    return sorted([*source.glob("*.darshan"), *source.glob("darshan/*.darshan")])


def segments_of(log):
    """Return the segments of one log and the host it names."""
    from recup.ingest.darshan import read_log

    read = read_log(log)
    segments = read.segments()
    return segments, next((each.hostname for each in read.traces if each.hostname), None)


def add_logs(path, logs):
    """Read Darshan logs into a run."""
    from recup.ingest.darshan import ingest_darshan

    ingest_darshan(path, logs)


# ---------------------------------------------------------------- against the truth

CLAIMS_SQL = """
select c.zero_ns, m.pid, t.*
from task_io t
join io_clocks c using (log)
join (select log, any_value(pid) as pid from raw.io_logs group by log) m using (log)
where t.module = 'POSIX'
"""


def claims_of(path):
    """Return every segment of a run with what the join says of it; times are those of the one host."""
    with open_run(path) as run:
        relation = run.sql(CLAIMS_SQL)
        return [dict(zip(relation.columns, each, strict=True)) for each in relation.fetchall()]


def true_keys(source):
    """Return a function that gives the tasks whose own account, of the file or its directory, contains a segment."""
    accounts = defaultdict(list)
    for file in sorted((source / "truth").glob("*.jsonl")):
        for each in lines_of(file):
            accounts[each["pid"], each["path"]].append(each)

    def keys_of(claim):
        return {
            each["key"]
            for name in {claim["path"], claim["written_as"]} - {None}
            for place in (name, *map(str, Path(name).parents))
            for each in accounts.get((claim["pid"], place), ())
            if each["t0"] - SLACK_S <= claim["start_s"]
            and claim["stop_s"] <= each["t1"] + SLACK_S
            and claim["thread"] in (None, each["ident"])
        }

    return keys_of


def score(claims, keys_of):
    """Return counts of segments: decidable ones by class and verdict, and claims on the others."""
    counts, by_class = Counter(), Counter()
    for claim in claims:
        truth, name = keys_of(claim), claim["attribution"]
        counts["segments"] += 1
        if len(truth) == 1:
            counts["decidable"] += 1
            verdict = "undecided" if claim["key"] is None else "right" if claim["key"] in truth else "wrong"
        elif claim["key"] is None:
            verdict = "unclaimed"
        else:
            # Several accounts hold it, or none: a claim outside those that hold it is wrong as well.
            verdict = "wrong" if truth and claim["key"] not in truth else "claimed"
        counts[verdict] += 1
        by_class[name, verdict] += 1
    return counts, by_class


INSIDE_SQL = """
with matched as (
    select t.attribution, t.candidate_count, t.key, t.start_s, t.stop_s, t.worker_id, t.thread, c.error_ns
    from task_io t
    join io_clocks c using (log)
    semi join (select distinct worker_id, thread from io_attempts) a on a.worker_id = t.worker_id and a.thread = t.thread
    where t.module = 'POSIX'
), at_start as (
    -- Without a beacon the middle of what is possible is taken; here the log's own start is.
    select m.*, a.attempt
    from (select *, start_s + error_ns / 1e9 as begun_s, stop_s + error_ns / 1e9 as ended_s from matched) m
    left join io_attempts a
        on a.worker_id = m.worker_id and a.thread = m.thread
        and a.from_ns / 1e9 <= m.begun_s and m.ended_s <= a.to_ns / 1e9
)
select
    (select count(*) from task_io where module = 'POSIX') as segments,
    count(*) as thread_matched,
    count(attempt) as inside_at_log_start,
    count(*) filter (candidate_count = 1) as inside_with_bound,
    count(key) as claimed,
    count(*) filter (attribution = 'shared') as undecided,
    count(*) filter (attribution = 'none') as outside
from at_start
"""


def inside(path):
    """Return counts of segments on threads that ran tasks: inside one, claimed, undecided, or outside all."""
    with open_run(path) as run:
        relation = run.sql(INSIDE_SQL)
        return dict(zip(relation.columns, relation.fetchall()[0], strict=True))


# ---------------------------------------------------------------- what is printed


def score_directory(source, target, recorded=None):
    """Score one data set, or a recorded run against it, print its table, and return its counts."""
    print(f"\n{source.name}")
    if (source / "truth").is_dir():
        path = recorded or imaging_run(source, target)
        if recorded is None:
            add_logs(path, darshan_logs(source))
        counts, by_class = score(claims_of(path), true_keys(source))
        for (name, verdict), count in sorted(by_class.items()):
            print(f"  {name:12} {verdict:10} {count:7}")
        share = counts["right"] / counts["decidable"]
        print(
            f"  {counts['decidable']} of {counts['segments']} segments decidable: {counts['right']} right "
            f"({share:.2%}), {counts['wrong']} wrong, {counts['undecided']} undecided"
        )
        has_threads = any(name == "thread" for name, _ in by_class)
        promise(f"wrong claims {counts['wrong']}", "0", counts["wrong"] == 0)
        if has_threads:
            promise(f"decidable right {share:.2%}", f">= {PROMISED_SHARE:.1%}", share >= PROMISED_SHARE)
        return {**counts, "by_class": {f"{name} {verdict}": n for (name, verdict), n in by_class.items()}}
    if not (source / "scheduler_transition.csv").is_file():
        raise SystemExit(
            f"{source} has neither truth/ nor scheduler_transition.csv: there is nothing to hold claims against"
        )
    path = polaris_run(source, target)
    add_logs(path, darshan_logs(source))
    counts = inside(path)
    print("  " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    exact, share = (counts[name] / counts["thread_matched"] for name in ("inside_at_log_start", "inside_with_bound"))
    print(f"  inside a task with the zero of segments at the log's start, to the microsecond: {exact:.2%}")
    promise(
        f"thread-matched inside one task {share:.2%}", "100 % (these logs have no beacon: within 25 ms)", share == 1
    )
    return counts


def promise(figure, promised, is_kept):
    print(f"  {figure:40} promise {promised}: {'kept' if is_kept else 'NOT KEPT'}")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("directories", nargs="+", type=Path)
    options.add_argument("--run", type=Path, help="A recorded run; its truth is in the one directory (io_truth.py).")
    chosen = options.parse_args()
    scores = {}
    for source in chosen.directories:
        with tempfile.TemporaryDirectory() as temporary:
            scores[source.name] = score_directory(source, Path(temporary), chosen.run)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / f"score-io-{time.strftime('%Y%m%dT%H%M%S')}.json").write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
