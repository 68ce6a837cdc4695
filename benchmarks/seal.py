"""What sealing a large run costs: time, memory, and bytes per task on disk.

A run is made up (`made_run`): the rows of scheduler and workers, some 25 a task, without
samples and thread counters; `--measured` has those too.  It is sealed in a process of its
own, whose peak memory is the figure, then opened and asked for one row per attempt.

    python benchmarks/seal.py                 # 10^6 tasks
    python benchmarks/seal.py --tasks 20003

Figures stand beside the promise; raw samples are kept in benchmarks/results/seal-<time>.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from made_run import write_run

PROMISES = {"seal_s": 60.0, "peak_memory_mb": 2048.0, "bytes_per_task": 100.0}
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


def in_a_process(code, path):
    """Return what a fresh process prints about a run."""
    answer = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tasks", type=int, default=1_000_000)
    options.add_argument("--directory", type=Path, help="Where the run is made and left; by default a temporary one.")
    options.add_argument("--measured", action="store_true", help="With samples, fine metrics and thread counters.")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = (chosen.directory or Path(temporary)) / "run"
        begun = time.perf_counter()
        write_run(path, chosen.tasks, is_measured=chosen.measured)
        spool_bytes = sum(each.stat().st_size for each in (path / "spool").rglob("*") if each.is_file())
        print(
            f"made {chosen.tasks} tasks in {time.perf_counter() - begun:.0f} s, {spool_bytes / chosen.tasks:.0f} B/task spooled"
        )
        sample = {
            "tasks": chosen.tasks,
            "is_measured": chosen.measured,
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
