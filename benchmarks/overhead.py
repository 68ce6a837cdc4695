"""What recording costs: CPU time of each process with and without it, in interleaved pairs.

A cluster of separate processes (scheduler, two workers of one thread, this client) runs the
workload again and again, bare and with each recorder in turn, the order alternating; the
recorder is plugged in before and taken out after.  CPU time is what each process itself
reports (`time.process_time`) from the start of the workload until two seconds after its
end, so that a writer thread's work is in it.  Figures are medians; differences and ratios
are medians over the pairs of one cluster, which is what keeps the noise of a shared machine
out of them.  Peak memory and disk come from fresh clusters, one per sample.

    python benchmarks/overhead.py                       # bare against recup, all workloads
    python benchmarks/overhead.py --workload tree --tasks 20003 --tasks 200003 --memory-only
    python benchmarks/overhead.py --plugin 'package.module:SchedulerPluginClass'

Raw samples are kept in benchmarks/results/overhead-<time>.json.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TREE_TASKS = 20_003
ARRAY_CHUNKS = 5_000

# ---------------------------------------------------------------- the workloads


def empty(*_):
    return None


def tree(client, task_count):
    """Leaves by map, then pairs of pairs: 2 n - 1 tasks of n leaves."""
    level = client.map(empty, range((task_count + 1) // 2), pure=False)
    count, every = len(level), list(level)
    while len(level) > 1:
        pairs, odd = len(level) // 2, level[len(level) // 2 * 2 :]
        level = client.map(empty, level[: pairs * 2 : 2], level[1 : pairs * 2 : 2], pure=False) + odd
        count += pairs
        every += level
    level[0].result()
    return count, every


def array(client, chunk_count):
    """A dask.array of that many chunks, added to and summed; returns the tasks that were run."""
    import dask.array as da

    def executed(dask_scheduler):
        return sum(prefix.state_counts["memory"] for prefix in dask_scheduler.task_prefixes.values())

    before = client.run_on_scheduler(executed)
    y = client.compute((da.ones(chunk_count * 10, chunks=10) + 1).sum())
    y.result()
    return client.run_on_scheduler(executed) - before, [y]


WORKLOADS = {"tree": tree, "array": array}


# ---------------------------------------------------------------- one sample


def usage(**_):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {"cpu_s": time.process_time(), "peak_bytes": int(status["VmHWM"].split()[0]) * 1024}


@contextlib.contextmanager
def cluster(directory):
    """Yield a client of a scheduler and two workers, each a process of its own."""
    from distributed import Client

    servers, file = [], directory / "scheduler.json"

    def start(*command):
        log = open(directory / f"server-{len(servers)}.log", "w")
        servers.append(subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log))

    start("distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    for _ in range(2):
        start(
            "distributed.cli.dask_worker",
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
            "--scheduler-file",
            str(file),
        )
    try:
        with Client(scheduler_file=str(file), timeout=60) as client:
            client.wait_for_workers(2)
            client.gather(client.map(empty, range(2000), pure=False))
            yield client
            client.shutdown()
    finally:
        for server in servers:
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


@contextlib.contextmanager
def recorder(arm, client, root):
    """Have the arm's recorder plugged in for the time of the block."""
    if arm == "recup":
        import recup

        with recup.record(client, root=root) as recording:
            yield recording.path
    elif arm == "none":
        yield None
    else:
        module, _, name = arm.partition(":")
        client.register_plugin(getattr(importlib.import_module(module), name)(), name="measured")
        yield None
        client.unregister_scheduler_plugin("measured")


def measure(arm, workload, size, client, root):
    """Run the workload once under the arm's recorder; returns its figures."""
    gc.collect()
    client.run_on_scheduler(gc.collect)
    client.run(gc.collect)
    with recorder(arm, client, root) as run:
        time.sleep(2)
        before = client.run_on_scheduler(usage), client.run(usage), usage()
        begun = time.perf_counter()
        task_count, futures = WORKLOADS[workload](client, size)
        wall = time.perf_counter() - begun
        del futures
        while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
            time.sleep(0.1)
        time.sleep(2)
        after = client.run_on_scheduler(usage), client.run(usage), usage()
    sample = {
        "arm": arm,
        "workload": workload,
        "size": size,
        "tasks": task_count,
        "wall_s": wall,
        "scheduler_cpu_s": after[0]["cpu_s"] - before[0]["cpu_s"],
        "scheduler_peak_bytes": after[0]["peak_bytes"],
        "worker_cpu_s": sum(after[1][a]["cpu_s"] - before[1][a]["cpu_s"] for a in after[1]),
        "worker_peak_bytes": max(each["peak_bytes"] for each in after[1].values()),
        "client_cpu_s": after[2]["cpu_s"] - before[2]["cpu_s"],
    }
    return sample | (disk_use(run) if run else {})


def in_child(arms, workload, size, rounds):
    """Run rounds of every arm on one fresh cluster, driven by a fresh interpreter."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, __file__, "--measure", ",".join(arms), workload, str(size), str(rounds), name]
        output = subprocess.run(command, capture_output=True, text=True, timeout=3000, check=False)
        if output.returncode:
            raise SystemExit(f"the sample failed:\n{output.stdout}\n{output.stderr}")
        return json.loads(output.stdout.splitlines()[-1])


def measure_on_one_cluster(arms, workload, size, rounds, directory):
    """Return the samples of all rounds; the first round warms up and is not among them."""
    samples = []
    with cluster(directory) as client:
        for number in range(rounds):
            for arm in arms if number % 2 == 0 else arms[::-1]:
                samples.append(measure(arm, workload, size, client, directory / "runs") | {"round": number})
    return samples


def disk_use(run):
    """Bytes of the spool, and of the tables after sealing; counters of the servers' own statements."""

    def size(path):
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())

    figures = {"spool_bytes": size(run / "spool")}
    statuses = [json.loads(each.read_text()) for each in run.glob("spool/*/status.json")]
    figures["counters"] = {each["server_id"].split("-")[0]: each["counters"] for each in statuses if each["counters"]}
    figures["lost"] = {each["server_id"]: each["unwritten_losses"] for each in statuses if each["unwritten_losses"]}
    try:
        from recup.store import seal
    except ImportError:
        return figures
    begun = time.perf_counter()
    seal(run, force=True)
    figures["seal_s"] = time.perf_counter() - begun
    figures["sealed_bytes"] = size(run / "tables")
    return figures


# ---------------------------------------------------------------- the table


def median(values):
    return statistics.median(list(values))


def report_cpu(samples, arm, workload, size):
    """Print CPU per task of one arm beside none, and the promise."""
    rounds = {}
    for each in samples:
        if each["workload"] == workload and each["size"] == size and each["kind"] == "cpu":
            rounds.setdefault((each["cluster"], each["round"]), {})[each["arm"]] = each
    pairs = [(r["none"], r[arm]) for r in rounds.values() if "none" in r and arm in r]
    if not pairs:
        return
    count = pairs[0][0]["tasks"]
    print(f"\n{workload}: {count} tasks, {arm} against none, {len(pairs)} pairs")
    print(
        f"  {'CPU':<12}{'none':>12}{arm[-10:]:>12}{'added':>12}{'per task':>12}{'ratio':>9}   middle half of the pairs"
    )
    for name in ("scheduler", "worker", "client"):
        field = f"{name}_cpu_s"
        added = sorted((b[field] - a[field]) / count * 1e6 for a, b in pairs)
        ratio = median(b[field] / a[field] for a, b in pairs)
        promise = {"scheduler": "promise <= 10 us, <= 1.5 %", "worker": "promise <= 2 %"}.get(name, "")
        quarter = len(added) // 4
        print(
            f"  {name:<12}{median(a[field] for a, _ in pairs):>10.3f} s{median(b[field] for _, b in pairs):>10.3f} s"
            f"{median(added) * count / 1e6:>10.3f} s{median(added):>9.2f} us{(ratio - 1) * 100:>+8.2f}%"
            f"   {added[quarter]:.1f} .. {added[-1 - quarter]:.1f} us   {promise}"
        )
    print(f"  wall time ratio {median(b['wall_s'] / a['wall_s'] for a, b in pairs):.3f}")


def report_memory(samples, arm, workload, size):
    """Print peak memory and disk of one arm on fresh clusters."""
    rounds = {}
    for each in samples:
        if each["workload"] == workload and each["size"] == size and each["kind"] == "memory":
            rounds.setdefault(each["cluster"], {})[each["arm"]] = each
    pairs = [(r["none"], r[arm]) for r in rounds.values() if "none" in r and arm in r]
    if not pairs:
        return
    count = pairs[0][0]["tasks"]
    print(f"\n{workload}: {count} tasks, {arm} against none, {len(pairs)} fresh clusters each")
    for name, promise in (("scheduler", "promise <= 20 MB, flat from 20,003 to 200,003 tasks"), ("worker", "")):
        field = f"{name}_peak_bytes"
        added = median((b[field] - a[field]) / 1e6 for a, b in pairs)
        print(f"  {name} peak memory {median(a[field] for a, _ in pairs) / 1e6:.0f} MB, {added:+.1f} MB   {promise}")
    for field, promise in (("spool_bytes", ""), ("sealed_bytes", "promise <= 100")):
        sizes = [b[field] for _, b in pairs if field in b]
        if sizes:
            print(f"  {field.removesuffix('_bytes')} {median(sizes) / count:.0f} bytes per task   {promise}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, default=3, help="fresh clusters; each runs all rounds")
    parser.add_argument("--rounds", type=int, default=7, help="rounds on each cluster")
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--tasks", type=int, action="append", help="tasks of the tree; may be given several times")
    parser.add_argument("--plugin", action="append", default=[], help="another scheduler plugin, module:Class")
    parser.add_argument("--no-recup", action="store_true", help="leave recup's own arm out")
    parser.add_argument("--memory-only", action="store_true", help="only peak memory and disk, on fresh clusters")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        arms, workload, size, rounds, directory = options.measure
        samples = measure_on_one_cluster(arms.split(","), workload, int(size), int(rounds), Path(directory))
        print(json.dumps(samples))
        return
    arms = ["none", *([] if options.no_recup else ["recup"]), *options.plugin]
    cases = []
    if options.workload in ("tree", "all"):
        cases += [("tree", size) for size in options.tasks or [TREE_TASKS]]
    if options.workload in ("array", "all"):
        cases.append(("array", ARRAY_CHUNKS))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    file = results / f"overhead-{time.strftime('%Y%m%dT%H%M%S')}.json"
    samples = []
    for number in range(options.clusters):
        for workload, size in cases:
            plans = [([arm], 1, "memory") for arm in arms]
            if not options.memory_only:
                plans.insert(0, (arms, options.rounds, "cpu"))
            for plan_arms, rounds, kind in plans:
                for sample in in_child(plan_arms, workload, size, rounds):
                    samples.append(sample | {"cluster": number, "kind": kind})
                file.write_text(json.dumps(samples, indent=1))
                print(f"cluster {number}: {workload} {size} {kind} {' '.join(plan_arms)} done", file=sys.stderr)
    for workload, size in cases:
        for arm in arms[1:]:
            report_cpu(samples, arm, workload, size)
            report_memory(samples, arm, workload, size)
    print(f"\nraw samples: {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")


if __name__ == "__main__":
    main()
