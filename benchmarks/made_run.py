"""Makes up the record of a large run: what capture writes of it, without the cluster.

Two hosts, whose clocks differ by a quarter of a second, with four workers of four threads
each.  A client sends graphs of up to 20,000 tasks one after the other; each is made of
blocks of a hundred: 32 `load` and a `process` on each; 15 `add`, a tree of pairs over half
of those; four `split`, 16 `unpack` that need every `split`, as a shuffle does, and a
`store` of all.  What a thread does never overlaps, what a task needs has ended before it
begins, and results that a worker lacks are fetched.  A few tasks fail and are retried, a
few are stolen, a few results are spilled; and a worker is killed, so that tasks run again.

    python benchmarks/made_run.py --tasks 100000 /tmp/made/run

The same number of tasks gives the same rows.  Not made up: Darshan, Yappi, logs, events,
configuration.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from recup import schema
from recup.rundir import write_manifest
from recup.schema import TABLES
from recup.spool import Spool
from recup.store import seal

START_S = 1_764_000_000.0
SCHEDULER, CLIENT = "Scheduler-0", "Client-0"
THREADS, HOST_OFFSETS_S, WORKERS_OF_A_HOST = 4, (0.0, 0.25), 4
IN_MICROSECONDS = {"scheduler_transitions", "worker_transitions", "results", "receptions", "errors"}
GRAPH_TASKS, WAVE_BLOCKS = 20_000, 10
MEMORY_LIMIT_BYTES = 8 << 30
STAGES = {
    # prefix: (tasks of a block, mean seconds, share of them on the CPU, mean bytes of a result)
    "load": (32, 0.020, 0.3, 1_000_000),
    "process": (32, 0.040, 0.95, 800_000),
    "add": (15, 0.003, 0.8, 800_000),
    "split": (4, 0.030, 0.7, 3_000_000),
    "unpack": (16, 0.015, 0.6, 700_000),
    "store": (1, 0.010, 0.2, 100),
}
BLOCK = sum(stage[0] for stage in STAGES.values())
_JITTERS_S = [2e-4 + 4e-4 * (499 * each % 1024) / 1024 for each in range(1024)]
_GAUGES = ("managed", "spilled", "results", "processing", "executing", "received_bytes", "received", "cpu_s", "done")


def inputs_in_block(stage, number):
    """Return the tasks of the same block that one needs, as (prefix, number in its stage)."""
    if stage == "process":
        return [("load", number)]
    if stage == "add":
        # Fifteen nodes over sixteen leaves: eight pairs of leaves, then pairs of the nodes before.
        pair = (2 * number, 2 * number + 1)
        return [("process", each) if number < 8 else ("add", each - 16) for each in pair]
    if stage == "split":
        return [("process", 16 + 4 * number + each) for each in range(4)]
    if stage == "unpack":
        return [("split", each) for each in range(4)]
    if stage == "store":
        return [("add", 14), *(("unpack", each) for each in range(16))]
    return []


class Server:
    """The rows of one server until they are handed to its spool in order of time."""

    def __init__(self, path, role, server_id, *, address=None, host=0, pid=0):
        self.spool, self.role, self.server_id, self.address = Spool(path, role, server_id), role, server_id, address
        self.host, self.pid, self.ended_s = host, pid, None
        self.rows = {}

    def note(self, table, at_s, *values):
        self.rows.setdefault(table, []).append((at_s, values))

    def hand_over(self, before_s=float("inf")):
        """Hand over the rows of before that moment; none such comes later."""
        offset_s = HOST_OFFSETS_S[self.host]
        for table, rows in self.rows.items():
            rows.sort(key=lambda row: row[0])
            put = self.spool.extender(table)
            has_time = TABLES[table].column_names[0] == "time_ns"
            unit_ns = 1000 if table in IN_MICROSECONDS else 1
            taken = 0
            for at_s, values in rows:
                if at_s >= before_s:
                    break
                taken += 1
                put((round((at_s + offset_s) * 1e9) // unit_ns * unit_ns, *values) if has_time else values)
            del rows[:taken]


class Worker(Server):
    """A worker: when its threads are free, and what it holds."""

    def __init__(self, path, number, generation, born_s):
        host = number // WORKERS_OF_A_HOST
        port = 4000 + number + 100 * generation
        super().__init__(
            path, "worker", f"Worker-{number}.{generation}", address=f"tcp://10.0.0.{host}:{port}", host=host, pid=port
        )
        self.number, self.born_s = number, born_s
        self.free = [(born_s, 140_000_000_000_000 + 4096 * (16 * port + each)) for each in range(THREADS)]
        self.named, self.transfers = set(), itertools.count()
        self.gauges, self.changes, self.fine = dict.fromkeys(_GAUGES, 0.0), [], {}
        self.sampled_s = born_s

    def delay_s(self, at_s):
        """Dask's scheduler_delay at that moment: the scheduler's clock less this one's, and a little."""
        return _JITTERS_S[(int(at_s) + 37 * self.number) % 1024] - HOST_OFFSETS_S[self.host]

    def change(self, at_s, gauge, by):
        self.changes.append((at_s, gauge, by))

    def metric(self, at_s, context, prefix, activity, unit, value):  # noqa: PLR0917
        name = (int(at_s - START_S), context, prefix, activity, unit)
        self.fine[name] = self.fine.get(name, 0.0) + value


class Maker:
    """A scheduler that runs the made-up graphs: where everything is, and who still needs it."""

    def __init__(self, path, task_count, *, is_measured):
        self.path, self.task_count, self.is_measured = path, task_count, is_measured
        self.draw = random.Random(task_count)
        self.scheduler = Server(path, "scheduler", SCHEDULER, address="tcp://10.0.0.0:8786", pid=1)
        self.client = Server(path, "client", CLIENT, pid=2)
        self.others = []
        self.workers = [Worker(path, n, 0, START_S + 1) for n in range(WORKERS_OF_A_HOST * len(HOST_OFFSETS_S))]
        self.gone = []
        self.run_ids = itertools.count()
        self.transition_count = 0
        self.now = START_S + 2

    # ------------------------------------------------------------ who is there

    def introduce(self):
        put = self.scheduler.note
        for server in (self.scheduler, self.client):
            self.describe(server, START_S + 0.5)
        put("clients", START_S + 0.6, "add", CLIENT, 0, None)
        for worker in self.workers:
            self.welcome(worker)

    def welcome(self, worker):
        self.describe(worker, worker.born_s)
        self.scheduler.note(
            "workers", worker.born_s + 0.1, "add", worker.address, worker.server_id, str(worker.number),
            f"10.0.0.{worker.host}", worker.pid, THREADS, MEMORY_LIMIT_BYTES, f"tcp://10.0.0.{worker.host}:{5000 + worker.number}",
            "init", None, None, 0, 0, 0, None,
        )  # fmt: skip

    def describe(self, server, at_s):
        host = f"boot-{server.host}:node{server.host}"
        is_worker = server.role == "worker"
        filled = {
            "time_ns": round((at_s + HOST_OFFSETS_S[server.host]) * 1e9), "role": server.role, "address": server.address,
            "name": str(server.number) if is_worker else None, "scheduler_id": SCHEDULER, "host_id": host,
            "pid": server.pid, "parent_pid": 1, "process_started_s": at_s - 0.8 + HOST_OFFSETS_S[server.host],
            "executable": "/usr/bin/python", "arguments": '["python", "job.py"]', "cwd": "/home/jane", "python_version": "3.11.7",
            "recup_version": "0.1.0", "thread_count": THREADS if is_worker else None,
            "memory_limit_bytes": MEMORY_LIMIT_BYTES if is_worker else None, "resource_limits": "{}",
        }  # fmt: skip
        server.spool.put(schema.Process(*(filled.get(name) for name in schema.Process._fields)))
        filled = {
            "host_id": host, "hostname": f"node{server.host}", "operating_system": "Linux", "kernel": "6.1",
            "architecture": "x86_64", "cpu_count": 32, "core_count": 16, "memory_bytes": 64 << 30,
        }  # fmt: skip
        server.spool.put(schema.Host(*(filled.get(name) for name in schema.Host._fields)))

    # ------------------------------------------------------------ the graphs

    def run(self):
        self.introduce()
        firsts = range(0, self.task_count, GRAPH_TASKS)
        self.death_graph = len(firsts) // 2
        for submission, first in enumerate(firsts):
            self.one_graph(submission, first, min(GRAPH_TASKS, self.task_count - first))
        last_s = self.now + 1
        self.scheduler.note("clients", last_s, "remove", CLIENT, None, None)
        for worker in self.workers:
            self.scheduler.note("workers", last_s + 0.1, "remove", worker.address, worker.server_id, *(None,) * 8,
                                f"worker-close-{last_s}", *(None,) * 4)  # fmt: skip
            worker.note("process_ends", last_s + 0.1, worker.server_id, "worker", None, "closed", None, None, None)
        self.hand_over(last_s + 0.2, is_last=True)
        return last_s + 0.2

    def step(self, mean_s):
        return self.draw.expovariate(1 / mean_s)

    def turned(self, at_s, key, start, finish, cause, worker=None, run_id=-1):  # noqa: PLR0917
        self.transition_count += 1
        self.scheduler.note("scheduler_transitions", at_s, key, start, finish, cause, worker, run_id)

    def one_graph(self, submission, first, count):
        sent, taken = self.now, self.now + 0.02 + 5e-6 * count
        self.submission, self.taken = submission, taken
        token = hashlib.md5(f"graph {submission}".encode()).hexdigest()
        self.keys, self.inputs, self.prefixes, waves = [], [], [], []
        for start in range(0, count - count % BLOCK, BLOCK * WAVE_BLOCKS):
            blocks = (min(count - count % BLOCK, start + BLOCK * WAVE_BLOCKS) - start) // BLOCK
            waves.append(self.wave(token, blocks))
        if count % BLOCK:
            waves.append({"load": [self.add_task("load", token, []) for _ in range(count % BLOCK)]})
        self.waiting = [0] * count
        for needed in self.inputs:
            for number in needed:
                self.waiting[number] += 1
        self.wanted = [number for number in range(count) if not self.waiting[number]]
        self.tell_graph(sent, taken, token)
        # What is in memory: number to [when the scheduler had it, bytes, its workers, attempt].
        self.held = {}
        self.disk = {}
        for number, wave in enumerate(waves):
            self.one_wave(wave, self.death_graph == submission and number == len(waves) // 2)
            self.now = max(self.now, min(worker.free[0][0] for worker in self.workers))
            self.hand_over(self.now)
        ended = max(self.held[number][0] for number in self.wanted) + 0.01
        cause = f"client-releases-keys-{ended}"
        for number in self.wanted:
            self.release(number, ended + self.step(1e-4), cause)
        for key in self.keys:
            self.turned(ended + 0.001 + self.step(1e-3), key, "released", "forgotten", cause)
        self.now = ended + 0.05
        for worker in self.workers:
            worker.free = sorted((max(self.now, free), thread) for free, thread in worker.free)
        self.hand_over(ended)

    def add_task(self, prefix, token, needed):
        number = len(self.keys)
        if prefix in {"split", "unpack"}:
            self.keys.append((f"{prefix}-{token}", number))
        else:
            self.keys.append(f"{prefix}-{hashlib.md5(f'{token}{number}'.encode()).hexdigest()}")
        self.inputs.append(needed)
        self.prefixes.append(prefix)
        return number

    def wave(self, token, blocks):
        """Add the tasks of some blocks; returns their numbers by stage."""
        numbers = {prefix: [] for prefix in STAGES}
        for _ in range(blocks):
            of_block = {}
            for prefix, stage in STAGES.items():
                for each in range(stage[0]):
                    needed = [of_block[one] for one in inputs_in_block(prefix, each)]
                    of_block[prefix, each] = self.add_task(prefix, token, needed)
                    numbers[prefix].append(of_block[prefix, each])
        return numbers

    def tell_graph(self, sent, taken, token):
        count, cause = len(self.keys), f"update-graph-{self.taken - 0.01}"
        digest = hashlib.md5(f"wanted {token}".encode()).hexdigest()
        self.client.note(
            "client_submissions", sent, self.submission, CLIENT, "compute", "HLGExpr", len(self.wanted),
            self.keys[self.wanted[0]], digest, len(STAGES), count, None, None, None, round((taken - sent) * 0.4e9), 100_000, None,
        )  # fmt: skip
        self.client.spool.put(
            schema.SubmissionFrame(self.submission, 0, "job.py", 12, "<module>", "result.compute()", None)
        )
        for layer, prefix in enumerate(STAGES):
            self.client.spool.put(
                schema.Layer(self.submission, layer, f"{prefix}-{token}", "Blockwise", False, None, "[]", *(None,) * 6)
            )
        self.scheduler.note(
            "submissions", taken, self.submission, CLIENT, cause, len(self.wanted), digest, count, count, "span-0",
            '["default"]', None, 3_000 * count,
        )  # fmt: skip
        put, edge = self.scheduler.spool.extender("tasks"), self.scheduler.spool.extender("dependencies")
        for number, (key, prefix, needed) in enumerate(zip(self.keys, self.prefixes, self.inputs, strict=True)):
            group = prefix if isinstance(key, str) else key[0]
            put((self.submission, key, prefix, group, f"job.{prefix}", 0.0, self.submission, number, len(needed), None, None,
                 1 if prefix == "process" else 0, False))  # fmt: skip
            for each in needed:
                edge((self.submission, key, self.keys[each]))
            self.turned(taken + 1e-6 * number, key, "released", "waiting", cause)
            if not needed:
                self.turned(taken + 1e-6 * number + 5e-7, key, "waiting", "queued", cause)

    # ------------------------------------------------------------ tasks

    def one_wave(self, wave, is_death):
        for prefix, numbers in wave.items():
            if is_death and prefix == "split":
                self.kill_a_worker(numbers[:THREADS])
            for number in numbers:
                if number in self.held:
                    continue
                chance = self.draw.random()
                if prefix in {"process", "unpack"} and chance < 0.01:
                    self.steal(number)
                elif prefix == "process" and chance < 0.012:
                    self.attempt(number, fails=True)
                    self.attempt(number, begins=self.failed_s)
                else:
                    self.attempt(number)

    def nearest(self, number, apart_from=None):
        """Return the worker a task goes to: one that holds an input and is free soon, else the first that is free."""
        there = [worker for worker in self.workers if worker is not apart_from]
        first = min(there, key=lambda worker: worker.free[0][0])
        needed = self.inputs[number]
        if needed:
            close = next(iter(self.held[needed[0]][2]))
            if close is not apart_from and close.free[0][0] <= first.free[0][0] + 0.004:
                return close
        return first

    def ready_s(self, number):
        return max((self.held[each][0] for each in self.inputs[number]), default=self.taken)

    def sent(self, number, worker, begins):
        """Have the scheduler send a task; returns when, the attempt, and what it changed from."""
        key, ready = self.keys[number], max(self.ready_s(number), begins)
        is_root = not self.inputs[number] and not begins
        at = max(ready + self.step(2e-4), worker.free[0][0] + 0.0006 if is_root else 0.0)
        run_id = next(self.run_ids)
        cause = f"task-finished-{at - 2e-4}"
        self.turned(at, key, "queued" if is_root else "waiting", "processing", cause, worker.address, run_id)
        worker.change(at, "processing", 1)
        return at, run_id

    def receive(self, number, worker, sent_s, run_id):
        """Have a worker take a task in and fetch what it lacks; returns when all is there, and its cause."""
        key, needed = self.keys[number], self.inputs[number]
        at = sent_s + 8e-4 + self.step(4e-4)
        cause = f"compute-task-{sent_s + 5e-5}"
        missing = [each for each in needed if worker not in self.held[each][2]]
        size = sum(self.held[each][1] for each in needed)
        worker.note("worker_transitions", at, key, run_id, "released", "waiting", None, cause)
        worker.note("receptions", at + 3e-6, key, run_id, len(needed), size, len(missing))
        sources = {}
        for each in missing:
            sources.setdefault(next(iter(self.held[each][2])), []).append(each)
        there = at
        for source, moved in sources.items():
            there = max(there, self.fetch(source, worker, moved, at + 2e-5, cause, key, run_id))
        worker.note("worker_transitions", there + 1e-5, key, run_id, "waiting", "ready", None, cause)
        return there + 1e-5, cause

    def fetch(self, source, worker, moved, at, cause, key, run_id):  # noqa: PLR0917
        """Move results from one worker to another; returns when they are there."""
        size = sum(self.held[each][1] for each in moved)
        # A source that took it later than this began, did so before: it asks for what is stored only.
        begun = max(at, *(self.held[each][0] for each in moved)) + 1e-4
        ended = begun + 5e-4 + size / 1e9 + self.step(2e-4)
        arrived = f"gather-dep-success-{ended}"
        tables = (
            (worker, "incoming", source, begun, ended, None),
            (source, "outgoing", worker, begun + 1e-4, ended - 1e-4, size),
        )
        for one, direction, other, start, stop, compressed in tables:
            delay, number = one.delay_s(stop), next(one.transfers)
            shift = HOST_OFFSETS_S[one.host] + delay
            one.note("transfers", stop + 5e-5, number, direction, other.address, start + shift, stop + shift, size,
                     compressed, len(moved), delay)  # fmt: skip
            for each in moved:
                one.note("transfer_keys", stop + 5e-5, number, self.keys[each], self.held[each][1])
        for each in moved:
            for start, finish in (("released", "fetch"), ("fetch", "flight")):
                worker.note("worker_transitions", at, self.keys[each], -1, start, finish, None, cause)
            worker.note("worker_transitions", ended + 1e-5, self.keys[each], -1, "flight", "memory", None, arrived)
            self.held[each][2][worker] = -1
            worker.change(ended, "managed", self.held[each][1])
            worker.change(ended, "results", 1)
        worker.change(ended, "received_bytes", size)
        worker.change(ended, "received", 1)
        shift = HOST_OFFSETS_S[worker.host] + worker.delay_s(ended)
        self.booked.append(("transfer", begun + shift, ended + shift, source.address))
        worker.metric(ended, "gather-dep", None, "network", "seconds", ended - begun)
        return ended + 1e-5

    def steal(self, number):
        """Send a task to one worker, then move it to another before it begins."""
        victim = self.nearest(number)
        thief = self.nearest(number, apart_from=victim)
        self.booked = []
        sent_s, run_id = self.sent(number, victim, 0.0)
        self.receive(number, victim, sent_s, run_id)
        asked, key = sent_s + 0.004, self.keys[number]
        answered = asked + 0.003
        told = f"steal-{asked}"
        self.scheduler.note(
            "steals", asked, "request", key, victim.address, thief.address, None, 1, 0.01, 0.2, 0.05, None, -1
        )
        moved_id = next(self.run_ids)
        self.scheduler.note(
            "steals", answered, "confirm", key, victim.address, thief.address, "ready", *(None,) * 4, told, moved_id
        )
        for start, finish in (("ready", "released"), ("released", "forgotten")):
            victim.note("worker_transitions", answered - 0.001, key, run_id, start, finish, None, told)
        victim.change(answered, "processing", -1)
        thief.change(answered, "processing", 1)
        self.attempt(number, begins=answered, worker=thief, run_id=moved_id)

    def attempt(self, number, *, begins=0.0, worker=None, run_id=None, fails=False):
        """Run a task once: all that scheduler and worker record of it."""
        self.booked = []
        key, prefix = self.keys[number], self.prefixes[number]
        if worker is None:
            worker = self.nearest(number)
            sent_s, run_id = self.sent(number, worker, begins)
        else:
            sent_s = begins
        there, cause = self.receive(number, worker, sent_s, run_id)
        free, thread = worker.free.pop(0)
        begun = max(there + 1e-5, free + 2e-4)
        if begun > there + 1e-4:
            cause = f"task-finished-{begun - 1e-4}"
        worker.note("worker_transitions", begun, key, run_id, "ready", "executing", None, cause)
        _, mean_s, on_cpu, mean_bytes = STAGES[prefix]
        read_s = self.read_back(number, worker, begun)
        start = begun + read_s + 1e-4 + self.step(5e-5)
        stop = start + 0.3 * mean_s + self.step(0.7 * mean_s)
        finished = stop + 1e-4 + self.step(1e-4)
        worker.free.append((finished, thread))
        worker.free.sort()
        self.measure(worker, thread, key, run_id, prefix, start, stop, fails, on_cpu)
        worker.change(begun, "executing", 1)
        worker.change(finished, "executing", -1)
        taken = finished + 6e-4 + self.step(4e-4)
        worker.change(taken, "processing", -1)
        size = -1 if fails else 28 if mean_bytes < 1000 else int(mean_bytes * self.draw.uniform(0.5, 1.5))
        done = f"task-{'erred' if fails else 'finished'}-{finished - 2e-5}"
        self.end(worker, thread, key, run_id, size, start, stop, finished, taken, done, fails)
        if fails:
            self.failed_s = taken + 1e-5
            return
        self.held[number] = [taken, size, {worker: run_id}]
        worker.change(finished, "managed", size)
        worker.change(finished, "results", 1)
        worker.change(finished, "done", 1)
        if self.draw.random() < 0.005:
            worker.note("spills", finished + 0.01, key, "spill", size, size // 2)
            worker.change(finished + 0.01, "managed", -size)
            worker.change(finished + 0.01, "spilled", size)
            self.disk[number] = worker
        for each in self.inputs[number]:
            self.waiting[each] -= 1
            if not self.waiting[each]:
                self.release(each, taken + self.step(3e-5), done)

    def read_back(self, number, worker, begun):
        """Bring spilled inputs back into memory; returns how long that took."""
        read_s = 0.0
        for each in self.inputs[number]:
            if self.disk.get(each) is worker:
                del self.disk[each]
                size = self.held[each][1]
                took = 0.006 + size / 5e8
                at = begun + read_s + took
                worker.note("spills", at, self.keys[each], "unspill", size, size // 2)
                worker.change(at, "managed", size)
                worker.change(at, "spilled", -size)
                shift = HOST_OFFSETS_S[worker.host]
                self.booked.append(("disk-read", begun + read_s + shift, at + shift, None))
                read_s += took
        return read_s

    def measure(self, worker, thread, key, run_id, prefix, start, stop, fails, on_cpu):  # noqa: PLR0917
        wall = stop - start - 4e-5
        cpu = wall * on_cpu * self.draw.uniform(0.9, 1.0)
        worker.change(stop, "cpu_s", cpu)
        worker.metric(stop, "execute", prefix, "thread-cpu", "seconds", cpu)
        worker.metric(stop, "execute", prefix, "thread-noncpu", "seconds", wall - cpu)
        if not self.is_measured:
            return
        if thread not in worker.named:
            worker.named.add(thread)
            worker.note(
                "threads",
                start + 1e-5,
                thread,
                worker.pid * 100 + len(worker.named),
                f"Dask-Default-Threads-{len(worker.named)}",
            )
        tick = int(cpu * 250) * 4_000_000
        read = self.draw.randrange(500_000, 1_500_000) if prefix == "load" else 0
        written = 100_000 if prefix == "store" else 0
        worker.note(
            "thread_counters", start + 2e-5, key, run_id, "task", "ValueError" if fails else "returned", thread,
            int(wall * 1e9), int(cpu * 1e9), tick, 0, self.draw.randrange(200_000), 2 + int(wall * 100), int(cpu * 50), 20, 0,
            read, written, read // 100_000, written // 100_000, read // 4, written,
        )  # fmt: skip

    def end(self, worker, thread, key, run_id, size, start, stop, finished, taken, done, fails):  # noqa: PLR0917
        delay = worker.delay_s(start)
        shift = HOST_OFFSETS_S[worker.host] + delay
        told = (worker.address, thread, size, None if fails else "bytes", start + shift, stop + shift)
        reached = "error" if fails else "memory"
        worker.note("worker_transitions", finished, key, run_id, "executing", reached, None, done)
        worker.note("results", finished + 5e-6, key, run_id, reached, *told, delay)
        # The scheduler takes a failure that is retried back to waiting.
        finish = "released" if fails else "memory"
        self.turned(taken, key, "processing", finish, done, worker.address, run_id)
        if fails:
            worker.note(
                "errors", finished + 5e-6, key, run_id, worker.address, None, "ValueError('unlucky')", "Traceback"
            )
            self.turned(taken + 5e-6, key, "released", "waiting", done)
        else:
            self.scheduler.note("results", taken, key, run_id, finish, *told, None)
        for server in (worker, self.scheduler) if not fails else (worker,):
            for booked in self.booked:
                server.note("startstops", finished, key, run_id, *booked)

    def release(self, number, at, cause):
        """Let go of a result everywhere."""
        key = self.keys[number]
        self.turned(at, key, "memory", "released", cause)
        _, size, holders = self.held.pop(number)
        for worker, run_id in holders.items():
            freed = at + 1e-3 + self.step(5e-4)
            worker.note("worker_transitions", freed, key, run_id, "memory", "released", None, cause)
            worker.note("worker_transitions", freed + 1e-5, key, -1, "released", "forgotten", None, cause)
            is_on_disk = self.disk.get(number) is worker
            worker.change(freed, "spilled" if is_on_disk else "managed", -size)
            worker.change(freed, "results", -1)
        self.disk.pop(number, None)

    # ------------------------------------------------------------ a death

    def kill_a_worker(self, running):
        """Kill a worker while it runs some tasks; what it alone held is computed again."""
        victim, doomed = self.workers[-1], []
        for number in running:
            self.booked = []
            sent_s, run_id = self.sent(number, victim, 0.0)
            there, cause = self.receive(number, victim, sent_s, run_id)
            free, thread = victim.free.pop(0)
            begun = max(there, free) + 2e-4
            victim.note("worker_transitions", begun, self.keys[number], run_id, "ready", "executing", None, cause)
            victim.free.append((begun + 1e6, thread))
            doomed.append((number, run_id, begun))
        death = max(begun for *_, begun in doomed) + 0.004
        seen = death + 0.003
        cause = f"handle-worker-cleanup-{seen}"
        for number, run_id, _ in doomed:
            self.turned(seen, self.keys[number], "processing", "released", cause, victim.address, run_id)
            self.turned(seen + 5e-6, self.keys[number], "released", "waiting", cause)
        lost = [number for number, entry in self.held.items() if victim in entry[2]]
        for number in lost:
            del self.held[number][2][victim]
        lost = [number for number in lost if not self.held[number][2]]
        for number in lost:
            self.held.pop(number)
            self.disk.pop(number, None)
            self.turned(seen + 1e-5, self.keys[number], "memory", "released", cause)
            self.turned(seen + 2e-5, self.keys[number], "released", "waiting", cause)
        self.scheduler.note(
            "workers", seen, "remove", victim.address, victim.server_id, *(None,) * 8, cause, *(None,) * 4
        )
        nanny = Server(
            self.path,
            "nanny",
            f"Nanny-{victim.number}",
            address=f"tcp://10.0.0.{victim.host}:{5000 + victim.number}",
            host=victim.host,
            pid=3,
        )
        self.others.append(nanny)
        self.describe(nanny, START_S + 0.7)
        nanny.note("process_ends", seen, victim.address, "worker", victim.pid, "signalled", None, 9, None)
        victim.hand_over(death - 0.4)
        victim.rows.clear()
        victim.ended_s = death - 0.4
        self.gone.append(victim)
        self.workers[-1] = Worker(self.path, victim.number, 1, seen + 2)
        self.welcome(self.workers[-1])
        again = set(lost)
        for number in sorted(again, reverse=True):
            self.needed_again(number, again, seen + 1e-4, cause)
        # What a task needs has a lower number.
        for number in sorted(again):
            self.attempt(number, begins=seen + 1e-4)

    def needed_again(self, number, again, at, cause):
        """Have a lost result's inputs computed anew too, where they were let go."""
        for each in self.inputs[number]:
            self.waiting[each] += 1
            if each not in self.held and each not in again:
                again.add(each)
                self.turned(at, self.keys[each], "released", "waiting", cause)
                self.needed_again(each, again, at, cause)

    # ------------------------------------------------------------ what is read once a second

    def hand_over(self, before_s, *, is_last=False):
        for worker in self.workers:
            self.sample(worker, before_s)
        self.sample_scheduler(before_s)
        end = float("inf") if is_last else before_s
        for server in (self.scheduler, self.client, *self.workers, *self.others):
            server.hand_over(end)
        assert self.scheduler.spool.flush(60)

    def sample(self, worker, before_s):
        worker.changes.sort(key=lambda change: change[0])
        gauges, place = worker.gauges, 0
        while worker.sampled_s + 1 < before_s:
            at = worker.sampled_s = worker.sampled_s + 1
            while place < len(worker.changes) and worker.changes[place][0] <= at:
                gauges[worker.changes[place][1]] += worker.changes[place][2]
                place += 1
            worker.note("clock_samples", at, round((at - START_S) * 1e9), worker.delay_s(at))
            if self.is_measured:
                for metric, value in worker_values(gauges, self.draw):
                    worker.note("samples", at, metric, None, float(value))
                second = int(at - START_S) - 1
                for name in [name for name in worker.fine if name[0] <= second]:
                    _, context, prefix, activity, unit = name
                    span = None if prefix is None else "span-0"
                    worker.note("fine_metrics", at, context, span, prefix, activity, unit, worker.fine.pop(name))
        del worker.changes[:place]

    def sample_scheduler(self, before_s):
        at = getattr(self, "sampled_s", START_S)
        while at + 1 < before_s:
            at += 1
            self.scheduler.note("clock_samples", at, round((at - START_S) * 1e9), None)
            if not self.is_measured:
                continue
            for metric, value in scheduler_values(self, self.draw):
                self.scheduler.note("samples", at, metric, None, float(value))
            for worker in self.workers:
                if worker.born_s < at:
                    for metric, value in values_of_worker(worker.gauges):
                        self.scheduler.note("samples", at, metric, worker.address, float(value))
        self.sampled_s = at


def process_values(cpu_s, memory_bytes, draw):
    yield "event_loop_lag_s", draw.expovariate(1 / 5e-4)
    yield "process_user_cpu_s", 0.95 * cpu_s
    yield "process_system_cpu_s", 0.05 * cpu_s
    yield "process_major_faults_count", 10
    yield "process_involuntary_switches_count", 50 * cpu_s
    yield "process_peak_memory_bytes", memory_bytes
    yield "process_memory_bytes", memory_bytes
    for name in ("read", "written", "storage_read", "storage_written"):
        yield f"process_{name}_bytes", 1e6 * cpu_s
    yield "gc_oldest_generation_count", int(cpu_s)


def worker_values(gauges, draw):
    memory = 2e8 + gauges["managed"]
    yield from process_values(gauges["cpu_s"], memory, draw)
    executing = gauges["executing"]
    yield from (
        ("executing_count", executing),
        ("long_running_count", 0),
        ("constrained_count", 0),
        ("waiting_count", 0),
    )
    yield from (("ready_count", max(0, gauges["processing"] - executing)), ("in_flight_tasks_count", 0))
    yield from (("results_bytes", gauges["managed"]), ("transfer_incoming_bytes", 0), ("transfer_outgoing_bytes", 0))
    yield from (
        ("transfer_incoming_requests_count", gauges["received"]),
        ("transfer_outgoing_requests_count", gauges["received"]),
    )
    yield from (
        ("tick_interval_s", 0.02),
        ("spilled_memory_bytes", gauges["spilled"]),
        ("spilled_disk_bytes", gauges["spilled"] / 2),
    )
    yield from (("cpu_percent", 25 * executing), ("open_files_count", 40), ("host_network_read_bytes_per_s", 1e6))
    yield from (
        ("host_network_write_bytes_per_s", 1e6),
        ("host_disk_read_bytes_per_s", 1e6),
        ("host_disk_write_bytes_per_s", 1e5),
    )


def values_of_worker(gauges):
    yield from (("memory_process_bytes", 2e8 + gauges["managed"]), ("memory_managed_bytes", gauges["managed"]))
    yield from (("memory_spilled_bytes", gauges["spilled"]), ("memory_unmanaged_old_bytes", 1.8e8))
    yield from (("memory_unmanaged_recent_bytes", 2e7), ("occupancy_s", 0.02 * gauges["processing"]))
    yield from (
        ("processing_count", gauges["processing"]),
        ("long_running_count", 0),
        ("results_count", gauges["results"]),
    )
    yield "cpu_percent", 25 * gauges["executing"]


def scheduler_values(maker, draw):
    yield from process_values(8e-5 * maker.transition_count, 3e8, draw)
    yield from (("tasks_count", len(maker.keys)), ("queued_tasks_count", 0), ("unrunnable_tasks_count", 0))
    yield from (("workers_count", len(maker.workers)), ("idle_workers_count", 0), ("saturated_workers_count", 0))
    yield from (("clients_count", 1), ("threads_count", THREADS * len(maker.workers)), ("occupancy_s", 1.0))
    yield from (("transitions_count", maker.transition_count), ("tick_interval_s", 0.02))


# ---------------------------------------------------------------- files


def write_run(path, task_count, *, is_measured=True):
    """Write the spools of a run of that many tasks, and its manifest; not sealed.

    Without `is_measured` it has no samples, fine metrics and thread counters: what the
    scheduler and the workers do alone.
    """
    path = Path(path)
    # Spools are written by a process of their own: they count as living as long as it does.
    command = [sys.executable, __file__, "--only-rows", "--tasks", str(task_count), str(path)]
    answer = subprocess.run(command + ["--events"] * (not is_measured), capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(answer.stderr)
    ends = json.loads(answer.stdout.splitlines()[-1])
    for name, end in ends.items():
        file = path / "spool" / name / "status.json"
        content = json.loads(file.read_text())
        content |= {"time_ns": round(end["at_s"] * 1e9), "closed": end["is_closed"]}
        file.write_text(json.dumps(content).ljust(4095) + "\n")
    manifest = {
        "run_id": path.name, "schema_version": schema.VERSION, "recup_version": "0.1.0", "way": "run",
        "command": ["python", "job.py"], "cwd": "/home/jane", "started_ns": round(START_S * 1e9),
        "ended_ns": round(max(end["at_s"] for end in ends.values()) * 1e9), "exit_code": 0, "signal": None,
        "state": "ended", "sealed": False,
    }  # fmt: skip
    write_manifest(path, manifest)


def write_rows(path, task_count, *, is_measured):
    """Write all rows from this process; returns when and how each spool ended, by its name."""
    maker = Maker(path, task_count, is_measured=is_measured)
    ended_s = maker.run()
    servers = (maker.scheduler, maker.client, *maker.workers, *maker.gone, *maker.others)
    for server in servers:
        server.spool.close()
    return {
        server.spool.directory.name: {
            "at_s": (server.ended_s or ended_s) + HOST_OFFSETS_S[server.host],
            "is_closed": server.ended_s is None,
        }
        for server in servers
    }


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("path", type=Path, help="Run directory to make.")
    options.add_argument("--tasks", type=int, default=100_000)
    options.add_argument("--events", action="store_true", help="Without samples, fine metrics and thread counters.")
    options.add_argument("--not-sealed", action="store_true")
    options.add_argument("--only-rows", action="store_true", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.only_rows:
        print(json.dumps(write_rows(chosen.path, chosen.tasks, is_measured=not chosen.events)))
        return
    begun = time.perf_counter()
    write_run(chosen.path, chosen.tasks, is_measured=not chosen.events)
    print(f"made {chosen.tasks} tasks in {time.perf_counter() - begun:.0f} s: {chosen.path}")
    if not chosen.not_sealed:
        report = seal(chosen.path)
        print(f"sealed {sum(report.row_counts.values())} rows in {report.duration_s:.0f} s")


if __name__ == "__main__":
    main()
