"""What each part of recup takes of a live scheduler's and worker's CPU time, by samples of perf.

Blocks side by side (`overhead.py`) tell all that recording costs, within one percent of what
Dask takes: a scheduler at work is not the same twice.  Here one recorded cluster is sampled
2,000 times a second, so that a microsecond a task is told within a quarter of it, whatever
else the machine does.  It sees recup's own code and what that calls; it cannot see what Dask
takes to call a plugin, nor what memory is no longer in the caches because of recup.

Compiled parts are told by the stack of a sample; Python called from them is not theirs (it
is the task, or what Dask would have asked of it anyway).  Hooks in Python, called a few times
a second, are timed by the clock of their thread, and the writer thread by the kernel.

    python benchmarks/overhead_parts.py                    # needs Linux's perf
    python benchmarks/overhead_parts.py --workload array --seconds 30

Counts of samples are kept in benchmarks/results/overhead-parts-<time>.json.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from overhead import BLOCK, BLOCKS, cluster, recorders

FREQUENCY = 2000
TIMED = {"update_graph": "graphs", "log_event": "events"}
COMPILED = {
    "transition_hooks": "transitions",
    "transfer_rows": "transfers",
    "thread_readings": "counters of threads",
    "columns": None,  # of the part that calls it
    "taskgraph": "graphs",  # timed as a whole
}
PROMISE_PERCENT = {"scheduler": 1.5, "worker": 2.0}


def time_hooks(dask_scheduler=None, dask_worker=None):
    """Have hooks in Python timed by the clock of their thread."""
    import time

    server = dask_scheduler or dask_worker
    plugin = server.plugins["recup"]
    server.timed_hooks = {}

    def timed(owner, name, part):
        hook, spent = getattr(owner, name), server.timed_hooks.setdefault(part, [0, 0])

        def call(*args, **kwargs):
            begun = time.thread_time_ns()
            try:
                return hook(*args, **kwargs)
            finally:
                spent[0] += 1
                spent[1] += time.thread_time_ns() - begun

        setattr(owner, name, call)

    for name, part in TIMED.items():
        if name in plugin.__dict__:
            timed(plugin, name, part)
    timed(plugin._sampler, "_tick", "samples")


def used(dask_scheduler=None, dask_worker=None):
    """Return the process, CPU nanoseconds of its threads with their names, and what the timed hooks took."""
    import os
    import threading

    server = dask_scheduler or dask_worker
    threads = {}
    for thread in threading.enumerate():
        with open(f"/proc/self/task/{thread.native_id}/schedstat") as file:
            threads[thread.native_id] = (thread.name, int(file.read().split()[0]))
    return {"pid": os.getpid(), "threads": threads, "timed": {k: list(v) for k, v in server.timed_hooks.items()}}


def figures(client):
    """Return `used` of the scheduler and of one worker."""
    worker = min(client.scheduler_info()["workers"])
    return {
        "scheduler": client.run_on_scheduler(used),
        "worker": client.run(used, workers=[worker])[worker],
    }


def record(workload, seconds, directory):
    """Run blocks under perf; returns tasks, and per process its figures before and after and its file of samples."""
    with cluster(directory) as client, recorders(["none", "recup"], client, directory / "runs"):
        client.run_on_scheduler(time_hooks)
        client.run(time_hooks)
        BLOCKS[workload](client, 2 * BLOCK)
        time.sleep(2)
        before = figures(client)
        files = {name: directory / f"{name}.perf" for name in before}
        perfs = [
            subprocess.Popen(
                ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(FREQUENCY), "--call-graph", "dwarf,2048",
                 "-p", str(before[name]["pid"]), "-o", str(file)],
                stdin=subprocess.DEVNULL,
            )
            for name, file in files.items()
        ]  # fmt: skip
        task_count, begun = 0, time.monotonic()
        while time.monotonic() - begun < seconds:
            count, futures = BLOCKS[workload](client, BLOCK)
            task_count += count
            del futures
            while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
                time.sleep(0.02)
        after = figures(client)
        for perf in perfs:
            perf.send_signal(signal.SIGINT)
        if any(perf.wait() not in (0, -signal.SIGINT) for perf in perfs):
            raise SystemExit("perf could not record: see kernel.perf_event_paranoid")
        return task_count, before, after, files


def stacks(file):
    """Yield (thread id, [(function, file it is in)]) of each sample, the innermost first."""
    command = ["perf", "script", "-i", str(file), "-F", "tid,ip,sym,dso"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as perf:
        thread, stack = None, []
        for line in perf.stdout:
            words = line.split()
            if len(words) == 1 and thread is None:
                thread, stack = int(words[0]), []
            elif len(words) > 2:
                stack.append((words[1], words[-1].strip("()")))
            elif not words and thread is not None:
                yield thread, stack
                thread = None


def part(stack):
    """Return the part of recup that a sample is in, or None."""
    for function, place in stack:
        if "/recup/" in place:
            found = COMPILED.get(Path(place).name.split(".")[0])
            if found is not None:
                return found
        elif function.startswith("_PyEval_EvalFrameDefault"):
            return None
    return None


def counted(file, writer_threads):
    """Return the number of samples outside of the writer thread, and of those in each part."""
    counts = collections.Counter()
    total = 0
    for thread, stack in stacks(file):
        if thread not in writer_threads:
            total += 1
            counts[part(stack)] += 1
    del counts[None]
    return total, counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=list(BLOCKS), default="tree")
    parser.add_argument("--seconds", type=float, default=90)
    options = parser.parse_args()
    if shutil.which("perf") is None:
        raise SystemExit("there is no perf: install it (Debian: linux-perf)")
    # The functions of this module and of `overhead` must be found where the cluster runs.
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as name:
        task_count, before, after, files = record(options.workload, options.seconds, Path(name))
        kept = {"workload": options.workload, "tasks": task_count, "before": before, "after": after}
        print(f"{options.workload}: {task_count} tasks; CPU us per task")
        for process, file in files.items():
            kept[process] = report(process, file, before[process], after[process], task_count)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    output = results / f"overhead-parts-{time.strftime('%Y%m%dT%H%M%S')}.json"
    output.write_text(json.dumps(kept, indent=1))
    print(f"\nsamples: {output.name}", file=sys.stderr)


def report(process, file, before, after, task_count):
    """Print the parts of one process; returns its counts of samples."""
    tasks = task_count / (2 if process == "worker" else 1)  # one of two workers
    spent = {
        thread: (name, ns - before["threads"].get(thread, (name, 0))[1])
        for thread, (name, ns) in after["threads"].items()
    }
    writer_threads = {thread for thread, (name, _) in spent.items() if name == "recup-writer"}
    writer_us = sum(spent[thread][1] for thread in writer_threads) / 1e3 / tasks
    process_us = sum(ns for _, ns in spent.values()) / 1e3 / tasks
    total, counts = counted(file, writer_threads)
    sample_us = (process_us - writer_us) / total
    parts = {}
    for name, (_, ns) in after["timed"].items():
        parts[name] = ((ns - before["timed"][name][1]) / 1e3 / tasks, 0.0)
        counts.pop(name, None)
    for name, count in counts.items():
        parts[name] = count * sample_us, count**0.5 * sample_us
    parts["writer thread"] = writer_us, 0.0
    added = sum(us for us, _ in parts.values())
    error = sum(each**2 for _, each in parts.values()) ** 0.5
    print(f"\n  {process}{' (each, of its own tasks)' if process == 'worker' else ''}")
    for name, (us, each) in sorted(parts.items(), key=lambda item: -item[1][0]):
        print(f"    {name:<22}{us:>8.2f}{f' +- {each:.2f}' if each else ''}")
    print(f"    {'all':<22}{added:>8.2f} +- {error:.2f} of {process_us - added:.1f} without: "
          f"{added / (process_us - added) * 100:.2f} %   promise <= {PROMISE_PERCENT[process]} %"
          f"{' and 10 us' if process == 'scheduler' else ''}")  # fmt: skip
    return {"samples": total, **counts}


if __name__ == "__main__":
    main()
