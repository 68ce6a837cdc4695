"""What counting costs in the task's own thread, and what its rows cost the writer thread.

Empty tasks are run as the worker's thread runs them, with and without the counting node,
in interleaved blocks of one thread; CPU time of that thread.  Beside them stand the system
calls the counting is made of, which are its floor.

    python benchmarks/thread_counters.py

Raw samples are kept in benchmarks/results/thread-counters-<time>.json.
"""

import json
import os
import resource
import statistics
import tempfile
import time
import timeit
import types
from pathlib import Path

from dask._task_spec import Task

from recup.capture.threads import counting
from recup.spool import Spool

BLOCK_TASKS, BLOCKS = 350, 100


def empty(*_):
    return None


def cpu_us(function, *arguments):
    begun = time.thread_time_ns()
    function(*arguments)
    return (time.thread_time_ns() - begun) / 1e3 / BLOCK_TASKS


def run_all(tasks):
    for task in tasks:
        task.run_spec({})


def measure(directory):
    """Return per block the microseconds per task of each part."""
    spool = Spool(Path(directory), "worker", "measured")
    counters, count = counting(spool)

    def count_all(tasks):
        for task in tasks:
            count(task)

    samples = []
    for number in range(BLOCKS):
        tasks = [
            types.SimpleNamespace(run_spec=Task(f"k-{number}-{n}", empty), run_id=n, prefix="k")
            for n in range(BLOCK_TASKS)
        ]
        for task in tasks:
            assert not task.run_spec.is_coro  # found once, by the worker on its event loop, and kept
        bare = cpu_us(run_all, tasks)
        on_loop = cpu_us(count_all, tasks)
        in_thread = cpu_us(run_all, tasks) - bare
        samples.append({"bare": bare, "on the event loop": on_loop, "in the thread": in_thread})
        samples[-1]["rows"] = cpu_us(counters._make_rows)
        samples[-1]["writing"] = cpu_us(spool._write_rows)
    spool.close()
    return samples


def system_calls_us():
    """Return the cost of the system calls made per task that keeps its CPU: twice each, schedstat once."""
    descriptors = [os.open(f"/proc/thread-self/{name}", os.O_RDONLY) for name in ("io", "schedstat")]
    calls = [
        lambda: os.pread(descriptors[0], 512, 0),
        lambda: os.pread(descriptors[1], 96, 0),
        lambda: resource.getrusage(resource.RUSAGE_THREAD),
        time.thread_time_ns,
    ]
    io, schedstat, usage, clock = (
        min(timeit.repeat(call, timer=time.thread_time, number=20_000, repeat=5)) / 20_000 * 1e6 for call in calls
    )
    return 2 * io + schedstat + 2 * usage + 2 * clock


def main():
    with tempfile.TemporaryDirectory() as directory:
        samples = measure(directory)[10:]
    floor = system_calls_us()
    median = {name: statistics.median(each[name] for each in samples) for name in samples[0]}
    print(f"per task, median of {len(samples)} blocks of {BLOCK_TASKS} empty tasks")
    print(
        f"  in the task's thread  {median['in the thread']:.2f} us   promise <= 4 us; its system calls {floor:.2f} us"
    )
    print(f"  on the event loop     {median['on the event loop']:.2f} us")
    print(f"  in the writer thread  {median['rows'] + median['writing']:.2f} us")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    file = results / f"thread-counters-{time.strftime('%Y%m%dT%H%M%S')}.json"
    file.write_text(json.dumps({"system_calls_us": floor, "samples": samples}, indent=1))
    print(f"raw samples: {file.name}")


if __name__ == "__main__":
    main()
