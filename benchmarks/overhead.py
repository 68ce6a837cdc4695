"""What recording costs: CPU time of each process with and without it, in interleaved pairs.

A cluster of separate processes (scheduler, two workers of one thread, this client) is
recorded, and runs short blocks of the workload.  For each block the hooks of one arm are
put in and all others taken out, the order of arms drawn anew for every round.  A sample is
the CPU time of each process over the block, but for recup's writer thread, divided by its
tasks.  The writer comes later and writes much at once, so it is measured over a longer block
at the end.  Blocks of a second side by side are what keeps the noise of a shared
machine out: its speed drifts by a tenth from one ten seconds to the next, and pairs of
blocks of four seconds spread four times wider, pairs of whole runs far more.

What an arm adds is the mean of the middle eight tenths of the differences to the block
without hooks in the same round, plus the writer; beside it stands its standard error.  Peak
memory and disk come from fresh clusters, one per sample.

    python benchmarks/overhead.py                       # bare against recup, all workloads
    python benchmarks/overhead.py --workload tree --tasks 20003 --tasks 200003 --memory-only
    python benchmarks/overhead.py --cpu-only --plugin 'package.module:SchedulerPluginClass'
    python benchmarks/overhead.py --cpu-only --plugin distributed.diagnostics.plugin:SchedulerPlugin

The last line has the cost of a plugin that does nothing beside recup's.

Raw samples are kept in benchmarks/results/overhead-<time>.json.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TREE_TASKS = 20_003
ARRAY_CHUNKS = 5_000
BLOCK = 500
"""Tasks of the tree, or chunks of the array, in a block; a pair of them takes two to four seconds."""

WARM_UP = 3
"""Rounds of a cluster that do not count."""

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


def piece_of_tree(client, task_count):
    """A block that is to the tree what 500 of its 20,003 tasks are: as many leaves as pairs, and few submissions.

    A tree of 501 tasks has ten submissions, and events and records of each; the large one has fifteen.
    """
    leaves = client.map(empty, range(task_count // 2), pure=False)
    pairs = client.map(empty, leaves, leaves[1:] + leaves[:1], pure=False)
    client.gather(pairs)
    return 2 * len(leaves), leaves + pairs


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
BLOCKS = {"tree": piece_of_tree, "array": array}


# ---------------------------------------------------------------- one sample


def usage(**_):
    import threading

    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    writer = [
        open(f"/proc/self/task/{thread.native_id}/schedstat").read().split()[0]
        for thread in threading.enumerate()
        if thread.name == "recup-writer"
    ]
    writer_s = sum(map(int, writer)) / 1e9
    return {
        "cpu_s": time.process_time() - writer_s,
        "writer_s": writer_s,
        "peak_bytes": int(status["VmHWM"].split()[0]) * 1024,
    }


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
def recorders(arms, client, root):
    """Have the recorders of all arms plugged in for the time of the block; yields recup's run."""
    for arm in arms:
        if arm not in ("none", "recup"):
            module, _, name = arm.partition(":")
            client.register_plugin(getattr(importlib.import_module(module), name)(), name=arm)
    if "recup" not in arms:
        yield None
        return
    import recup

    with recup.record(client, root=root) as recording:
        yield recording.path


def switch(arm, server):
    """Leave only the hooks of one arm in a scheduler or worker; those taken out are kept aside."""
    aside = server.__dict__.setdefault("measured_plugins", {})
    aside.update((name, plugin) for name, plugin in server.plugins.items() if name == "recup" or ":" in str(name))
    for name, plugin in aside.items():
        if name == arm and name not in server.plugins:
            server.plugins[name] = plugin
            if name == "recup":
                plugin._sampler.start()
        elif name != arm and server.plugins.pop(name, None) is not None and name == "recup":
            plugin._sampler.stop()


def figures(client):
    """Return what each process has used until now, both workers as one."""
    workers = client.run(usage).values()
    return {
        "scheduler": client.run_on_scheduler(usage),
        "worker": {
            "cpu_s": sum(each["cpu_s"] for each in workers),
            "writer_s": sum(each["writer_s"] for each in workers),
            "peak_bytes": max(each["peak_bytes"] for each in workers),
        },
        "client": usage(),
    }


def switch_all(arm, client):
    client.run_on_scheduler(lambda dask_scheduler: switch(arm, dask_scheduler))
    client.run(lambda dask_worker: switch(arm, dask_worker))


def measure(arm, workload, size, client, is_block=True):
    """Run the workload, or a block of it, once under the arm's hooks; returns its figures."""
    switch_all(arm, client)
    before = figures(client)  # after the sample that recup takes when it comes: others follow each second, as always
    begun = time.perf_counter()
    task_count, futures = (BLOCKS if is_block else WORKLOADS)[workload](client, size)
    wall = time.perf_counter() - begun
    del futures
    while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        time.sleep(0.02)
    after = figures(client)
    switch_all("none", client)
    sample = {"arm": arm, "workload": workload, "size": size, "tasks": task_count, "wall_s": wall}
    for process, each in after.items():
        sample[f"{process}_cpu_s"] = each["cpu_s"] - before[process]["cpu_s"]
        sample[f"{process}_peak_bytes"] = each["peak_bytes"]
    return sample


def in_child(arms, workload, size, rounds):
    """Run rounds of every arm on one fresh cluster, driven by a fresh interpreter."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, __file__, "--measure", ",".join(arms), workload, str(size), str(rounds), name]
        output = subprocess.run(command, capture_output=True, text=True, timeout=3000, check=False)
        if output.returncode:
            raise SystemExit(f"the sample failed:\n{output.stdout}\n{output.stderr}")
        return json.loads(output.stdout.splitlines()[-1])


def measure_on_one_cluster(arms, workload, size, rounds, directory):
    """Return the samples of all rounds after those that warm up, and the disk used by recup's run."""
    samples = []
    with cluster(directory) as client:
        with recorders(arms, client, directory / "runs") as run:
            time.sleep(3)
            for number in range(rounds):
                for arm in random.sample(arms, len(arms)):
                    samples.append(measure(arm, workload, size, client, rounds > 1) | {"round": number})
            if "recup" in arms and rounds > 1:
                writer_s = writer_time(workload, 8 * size, client)
                for each in samples:
                    if each["arm"] == "recup":
                        each |= {f"{process}_writer_s": each["tasks"] * used for process, used in writer_s.items()}
        if run and len(arms) == 1:
            samples[-1] |= disk_use(run)
    return [each for each in samples if each["round"] >= WARM_UP or rounds == 1]


def writer_time(workload, size, client):
    """Return the writer's CPU seconds per task in each process, over one long block and until its last rows are written."""
    before = figures(client)
    sample = measure("recup", workload, size, client)
    time.sleep(1)
    after = figures(client)
    return {name: (after[name]["writer_s"] - before[name]["writer_s"]) / sample["tasks"] for name in after}


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


def middle(values):
    """Return the mean of the middle eight tenths, and its standard error."""
    ordered = sorted(values)
    cut = len(ordered) // 10
    kept = ordered[cut : len(ordered) - cut]
    pulled_in = [min(max(each, kept[0]), kept[-1]) for each in ordered]
    spread = statistics.stdev(pulled_in) if len(pulled_in) > 1 else float("nan")
    return statistics.fmean(kept), spread / (len(kept) / len(ordered)) / len(ordered) ** 0.5


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
    print(f"\n{workload}: blocks of {count} tasks, {arm} against none, {len(pairs)} pairs; CPU us per task")
    print(f"  {'':<10}{'none':>9}{'hooks':>10}{'+-':>7}{'writer':>9}{'added':>9}{'ratio':>9}{'+-':>7}")
    for name in ("scheduler", "worker", "client"):
        field = f"{name}_cpu_s"
        bare = median(a[field] for a, _ in pairs) / count * 1e6
        hooks, error = middle([(b[field] - a[field]) / count * 1e6 for a, b in pairs])
        writer = median(b.get(f"{name}_writer_s", 0) for _, b in pairs) / count * 1e6
        promise = {"scheduler": "promise <= 10 us, <= 1.5 %", "worker": "promise <= 2 %"}.get(name, "")
        print(
            f"  {name:<10}{bare:>9.1f}{hooks:>+10.2f}{error:>7.2f}{writer:>9.2f}{hooks + writer:>+9.2f}"
            f"{(hooks + writer) / bare * 100:>+8.2f}%{error / bare * 100:>6.2f}%  {promise}"
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
    parser.add_argument(
        "--rounds", type=int, default=73, help="rounds of blocks on each cluster; the first three warm up"
    )
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--tasks", type=int, action="append", help="tasks of the tree; may be given several times")
    parser.add_argument("--plugin", action="append", default=[], help="another scheduler plugin, module:Class")
    parser.add_argument("--no-recup", action="store_true", help="leave recup's own arm out")
    parser.add_argument("--memory-only", action="store_true", help="only peak memory and disk, on fresh clusters")
    parser.add_argument("--cpu-only", action="store_true", help="no peak memory and disk")
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
            plans = [] if options.cpu_only else [([arm], size, 1, "memory") for arm in arms]
            if not options.memory_only:
                plans.insert(0, (arms, BLOCK, options.rounds, "cpu"))
            for plan_arms, block, rounds, kind in plans:
                for sample in in_child(plan_arms, workload, block, rounds):
                    samples.append(sample | {"cluster": number, "kind": kind})
                file.write_text(json.dumps(samples, indent=1))
                print(f"cluster {number}: {workload} {block} {kind} {' '.join(plan_arms)} done", file=sys.stderr)
    for workload, size in cases:
        for arm in arms[1:]:
            report_cpu(samples, arm, workload, BLOCK)
            report_memory(samples, arm, workload, size)
    print(f"\nraw samples: {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")


if __name__ == "__main__":
    main()
