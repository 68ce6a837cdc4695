"""What Yappi costs: CPU time of a worker per trivial task and per Python call, by clock.

Each sample is a fresh cluster of one worker process with one thread, recorded by recup, in
one of five arms: no Yappi, and each clock with tasks alone (`--yappi-prefix '*'`) or with
the event loop too (the default).  Arms take turns.  A figure is the CPU time of the worker
(`time.process_time`) for the tasks, divided by tasks or calls; shown are medians, and what
they are above those without Yappi.

    python benchmarks/yappi_cost.py [--rounds 5]

Raw samples are kept in benchmarks/results/yappi-cost-<time>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TASKS = 2_000
CALLS = 200_000
CALLING_TASKS = 5
ARMS = {
    "none": [],
    "cpu, tasks": ["--yappi", "cpu", "--yappi-prefix", "*"],
    "wall, tasks": ["--yappi", "wall", "--yappi-prefix", "*"],
    "cpu, all": ["--yappi", "cpu"],
    "wall, all": ["--yappi", "wall"],
}


def empty(_):
    return None


def called():
    return None


def calling(_):
    for _ in range(CALLS):
        called()


def sample():
    """Run the workload in this process's cluster; print its figures as JSON."""
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:

        def cpu_s():
            return next(iter(client.run(time.process_time).values()))

        client.gather(client.map(empty, range(200), pure=False))
        figures = {}
        for name, function, count, divisor in (
            ("per_task_us", empty, TASKS, TASKS),
            ("per_call_us", calling, CALLING_TASKS, CALLING_TASKS * CALLS),
        ):
            before = cpu_s()
            client.gather(client.map(function, range(count), pure=False))
            figures[name] = (cpu_s() - before) / divisor * 1e6
    print(json.dumps(figures))


def run_arm(options):
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "recup", "run", "--root", root, "--no-seal", "--quiet", *options, __file__]
        done = subprocess.run([*command, "--sample"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sample:
        sample()
        return
    samples = []
    for number in range(options.rounds):
        names = list(ARMS)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            samples.append({"round": number, "arm": name, **run_arm(ARMS[name])})
    load = os.getloadavg()
    file = Path(__file__).parent / "results" / f"yappi-cost-{time.strftime('%Y%m%dT%H%M%S')}.json"
    file.write_text(json.dumps({"rounds": options.rounds, "load": load, "samples": samples}, indent=1) + "\n")

    def median(arm, figure):
        return statistics.median(each[figure] for each in samples if each["arm"] == arm)

    print(
        f"{'arm':12} {'us/task':>9} {'more':>8} {'us/call':>9} {'more':>8}   medians of {options.rounds}; load {load}"
    )
    for arm in ARMS:
        cells = []
        for figure, places in (("per_task_us", 0), ("per_call_us", 3)):
            value = median(arm, figure)
            cells += [f"{value:9.{places}f}", f"{value - median('none', figure):+8.{places}f}"]
        print(f"{arm:12} {' '.join(cells)}")
    print(f"samples in {file}")


if __name__ == "__main__":
    main()
