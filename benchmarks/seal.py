"""What sealing a large run costs: time, memory, and bytes per task on disk.

A run is made up: a graph of empty tasks (leaves by map, then pairs) on four workers, with
the rows that capture writes for it, 13 to 14 a task, times drawn as a busy cluster has
them.  It is sealed in a process of its own, whose peak memory is the figure, then opened
and asked for one row per attempt.

    python benchmarks/seal.py                 # 10^6 tasks
    python benchmarks/seal.py --tasks 20003

Figures stand beside the promise; raw samples are kept in benchmarks/results/seal-<time>.json.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recup.schema import Dependency, Task
from recup.spool import Spool

PROMISES = {"seal_s": 60.0, "peak_memory_mb": 2048.0, "bytes_per_task": 100.0}
WORKERS = 4
SEAL = """
import json, resource, sys, time
from recup.store import seal
begun = time.perf_counter()
report = seal(sys.argv[1])
print(json.dumps({
    "seal_s": time.perf_counter() - begun,
    "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "cpu_s": sum(resource.getrusage(resource.RUSAGE_SELF)[:2]),
    "row_counts": report.row_counts,
    "sizes_bytes": report.sizes_bytes,
}))
"""
ASK = """
import json, resource, sys, time
from recup.store import open_run
begun = time.perf_counter()
with open_run(sys.argv[1]) as run:
    opened = time.perf_counter()
    counts = run.sql("select outcome, count(*) from task_runs group by 1").fetchall()
    asked = time.perf_counter()
print(json.dumps({
    "open_s": opened - begun,
    "task_runs_s": asked - opened,
    "ask_peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "outcomes": dict(counts),
}))
"""


def key_of(name, number):
    """Return a key as Dask makes it: a name and 32 hexadecimal digits."""
    return f"{name}-{random.Random(number).getrandbits(128):032x}"


def write_run(path, task_count, chunk=10_000):
    """Write the spools of a run of that many tasks, each chunk of tasks after the one before."""
    scheduler = Spool(path, "scheduler", "Scheduler-0")
    workers = [Spool(path, "worker", f"Worker-{number}") for number in range(WORKERS)]
    leaves = (task_count + 1) // 2
    keys = [key_of("empty", number) for number in range(task_count)]
    now = 1_764_000_000.0
    for first in range(0, task_count, chunk):
        now = write_chunk(scheduler, workers, keys, range(first, min(first + chunk, task_count)), leaves, now)
        for spool in (scheduler, *workers):
            assert spool.flush(60)
    for spool in (scheduler, *workers):
        spool.close()


def write_chunk(scheduler, workers, keys, numbers, leaves, now):  # noqa: PLR0917
    """Write all rows of some tasks; returns when the last of them ended."""
    draw = random.Random(numbers[0])
    by_scheduler, by_worker = [], [[] for _ in workers]
    graph = f"update-graph-{now}"
    for number in numbers:
        key = keys[number]
        scheduler.put(
            Task(0, key, "empty", "empty", "job.empty", 0.0, 0, number, 2 * (number >= leaves), None, None, 0, False)
        )
        for input_number in inputs_of(number, leaves):
            scheduler.put(Dependency(0, key, keys[input_number]))
        by_scheduler.append((now, "scheduler_transitions", (key, "released", "waiting", graph, None, -1)))
    at = now
    for number in numbers:
        at += draw.expovariate(1 / 0.0008)
        end = one_task(draw, by_scheduler, by_worker, keys, number, leaves, at)
    for spool, rows in zip((scheduler, *workers), (by_scheduler, *by_worker), strict=True):
        rows.sort(key=lambda row: row[0])
        for seconds, table, values in rows:
            spool.extender(table)((round(seconds * 1e9) + draw.randrange(1000), *values))
    return end + 0.01


def inputs_of(number, leaves):
    """Return the two tasks a task of the tree needs."""
    return () if number < leaves else (2 * (number - leaves), 2 * (number - leaves) + 1)


def one_task(draw, by_scheduler, by_worker, keys, number, leaves, at):  # noqa: PLR0917
    """Add what scheduler and worker record of one attempt; returns when its result was taken."""
    key, worker = keys[number], number % WORKERS
    address, rows = f"tcp://10.0.0.{worker}:4000", by_worker[worker]

    def step(mean_s):
        return draw.expovariate(1 / mean_s)

    cause, sent = f"task-finished-{at - step(0.001)}", at
    by_scheduler.append((sent, "scheduler_transitions", (key, "waiting", "processing", cause, address, number)))
    received = sent + 0.0008 + step(0.0004)
    compute = f"compute-task-{sent + 0.00005}"
    needed = inputs_of(number, leaves)
    rows.append((received, "worker_transitions", (key, number, "released", "waiting", None, compute)))
    rows.append((received + 3e-6, "receptions", (key, number, len(needed), 28 * len(needed), 0)))
    rows.append((received + 1e-5 + step(4e-6), "worker_transitions", (key, number, "waiting", "ready", None, compute)))
    begun = received + 2e-5 + step(0.0005)
    before = f"task-finished-{begun - 0.0001}"
    rows.append((begun, "worker_transitions", (key, number, "ready", "executing", None, before)))
    start = begun + 1e-4 + step(5e-5)
    stop = start + 5e-6 + step(1e-5)
    finished = stop + 1e-4 + step(1e-4)
    done = f"task-finished-{finished - 2e-5}"
    rows.append((finished, "worker_transitions", (key, number, "executing", "memory", None, done)))
    told = (key, number, "memory", address, 140_000_000_000_000 + worker, 16, "NoneType", start + 0.0004, stop + 0.0004)
    rows.append((finished + 5e-6, "results", (*told, 0.0004)))
    taken = finished + 0.0006 + step(0.0004)
    by_scheduler.append((taken, "scheduler_transitions", (key, "processing", "memory", done, address, number)))
    by_scheduler.append((taken, "results", (*told, None)))
    for input_number in needed:
        free, owner = keys[input_number], by_worker[input_number % WORKERS]
        released = taken + step(3e-5)
        by_scheduler.append((released, "scheduler_transitions", (free, "memory", "released", done, None, -1)))
        by_scheduler.append((released + 1e-5, "scheduler_transitions", (free, "released", "forgotten", done, None, -1)))
        freed = released + 0.001 + step(0.0005)
        owner.append((freed, "worker_transitions", (free, input_number, "memory", "released", None, done)))
        owner.append((freed + 1e-5, "worker_transitions", (free, input_number, "released", "forgotten", None, done)))
    return taken


def in_a_process(code, path):
    """Return what a fresh process prints about a run."""
    answer = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tasks", type=int, default=1_000_000)
    options.add_argument("--directory", type=Path, help="Where the run is made and left; by default a temporary one.")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = (chosen.directory or Path(temporary)) / "run"
        begun = time.perf_counter()
        write_run(path, chosen.tasks)
        spool_bytes = sum(each.stat().st_size for each in (path / "spool").rglob("*") if each.is_file())
        print(
            f"made {chosen.tasks} tasks in {time.perf_counter() - begun:.0f} s, {spool_bytes / chosen.tasks:.0f} B/task spooled"
        )
        sample = {
            "tasks": chosen.tasks,
            "spool_bytes": spool_bytes,
            **in_a_process(SEAL, path),
            **in_a_process(ASK, path),
        }
    sample["bytes_per_task"] = sum(sample["sizes_bytes"].values()) / chosen.tasks
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / f"seal-{time.strftime('%Y%m%dT%H%M%S')}.json").write_text(json.dumps(sample, indent=1) + "\n")
    print(f"{sum(sample['row_counts'].values())} rows; attempts by outcome: {sample['outcomes']}")
    for name, promise in PROMISES.items():
        kept = "kept" if sample[name] <= promise else "NOT KEPT"
        print(f"{name:20} {sample[name]:10.1f}   promise <= {promise:.0f}: {kept}")
    for name in ("cpu_s", "open_s", "task_runs_s", "ask_peak_memory_mb"):
        print(f"{name:20} {sample[name]:10.2f}")
    for name, size in sorted(sample["sizes_bytes"].items(), key=lambda each: -each[1]):
        print(f"  {name:24} {size / chosen.tasks:8.2f} B/task {sample['row_counts'].get(name, 0):10} rows")


if __name__ == "__main__":
    main()
