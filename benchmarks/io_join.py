"""What joining Darshan's segments to attempts of tasks costs: time and memory.

A sealed run is made up: eight workers of four threads on one host, each thread running one
attempt after the other, nine tenths of the segments inside an attempt, the others at its
borders, between attempts or on a helper thread, a beacon in each log.  A fresh process opens
it and asks for what attempts did; from opening to the answer is the time, and its peak memory
the other figure.

    python benchmarks/io_join.py                                   # 10^7 segments, 10^6 attempts
    python benchmarks/io_join.py --segments 1000000 --attempts 100000
    python benchmarks/io_join.py --no-thread-ids                   # not promised: a join by time and process

Figures stand beside the promise; raw samples are kept in benchmarks/results/io-join-<time>.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from score_io import process, row, write

from recup import schema
from recup.storage import KEY_SCHEMA, stored_schema
from recup.store import seal

PROMISES = {"join_s": 10.0, "peak_memory_mb": 4096.0}
WORKERS, THREADS = 8, 4
BEGUN_NS = 1_764_000_000_000_000_000
ASK = """
import json, resource, sys, time
begun = time.perf_counter()
from recup.store import open_run
with open_run(sys.argv[1]) as run:
    query = '''
        select attribution, count(*), count(distinct key_id), sum(nbytes), max(candidate_count)
        from task_io group by attribution order by attribution
    '''
    answer = run.sql(query).fetchall()
print(json.dumps({
    "join_s": time.perf_counter() - begun,
    "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "cpu_s": sum(resource.getrusage(resource.RUSAGE_SELF)[:2]),
    "answer": [[str(each) if isinstance(each, int) and each > 2**53 else each for each in line] for line in answer],
}, default=str))
"""


def write_run(path, segment_count, attempt_count, has_thread_ids):
    """Write the run: small tables as capture does, the two large ones straight into their Parquet form."""
    write(path, "scheduler", "Scheduler-0", process("scheduler", "node", 1))
    logs = [f"log-{number}.darshan" for number in range(WORKERS)]
    for number in range(WORKERS):
        beacons = [
            schema.ClockBeacon(BEGUN_NS + at - 1000, BEGUN_NS + at + 3000, 1, byte, f"/run/beacon-{number}")
            for byte, at in enumerate((0, 10_000))
        ]
        write(path, "worker", f"Worker-{number}", [*process("worker", "node", 100 + number, f"w{number}"), *beacons])
    rows = [
        row(
            schema.IoLog, log=log, format_version="3.41", hostname="node", pid=100 + number, modules="{}",
            start_s=BEGUN_NS / 1e9 + 0.01, has_thread_ids=has_thread_ids,
        )
        for number, log in enumerate(logs)
    ]  # fmt: skip
    write(path, "launcher", "Launcher-0", rows)
    seal(path)
    draw = np.random.default_rng(7)
    per_thread = attempt_count // (WORKERS * THREADS)
    gaps, lengths = draw.exponential(2e5, (2, WORKERS * THREADS, per_thread)).astype(np.int64) + 50_000
    lengths *= 10
    starts = np.cumsum(gaps + lengths, axis=1) - lengths + 1_000_000
    write_attempts(path, starts, lengths)
    write_segments(path, logs, starts, lengths, segment_count, has_thread_ids)


def stored(table, count, **values):
    """Return rows in stored form; what is not given is null."""
    fields = stored_schema(table)
    return pa.Table.from_arrays(
        [values[f.name].cast(f.type) if f.name in values else pa.nulls(count, f.type) for f in fields], schema=fields
    )


def chosen_from(texts, codes):
    return pa.DictionaryArray.from_arrays(pa.array(np.asarray(codes, np.int32)), pa.array(texts, pa.string()))


def write_attempts(path, starts, lengths):
    count = starts.size
    place = np.repeat(np.arange(WORKERS * THREADS), starts.shape[1])
    table = stored(
        "thread_counters",
        count,
        server_id=chosen_from([f"Worker-{n}" for n in range(WORKERS)], place // THREADS),
        role=chosen_from(["worker"], np.zeros(count)),
        time_ns=pa.array(BEGUN_NS + starts.ravel()),
        key_id=pa.array(np.arange(count)),
        run_id_offset=pa.array(np.zeros(count, np.int64)),
        kind=chosen_from(["task"], np.zeros(count)),
        outcome=chosen_from(["returned"], np.zeros(count)),
        thread=pa.array(140_000_000_000_000 + place),
        wall_ns=pa.array(lengths.ravel()),
    )
    pq.write_table(table, path / "tables" / "thread_counters.parquet", compression="zstd", row_group_size=131_072)
    keys = {
        "key_id": pa.array(np.arange(count)),
        "before": pa.array([f"read-{number}" for number in range(count)]),
        "token": pa.nulls(count, pa.binary(16)),
        "after": pa.nulls(count, pa.string()),
        "key_type": chosen_from(["str"], np.zeros(count)),
    }
    rows = pa.Table.from_arrays([keys[f.name].cast(f.type) for f in KEY_SCHEMA], schema=KEY_SCHEMA)
    pq.write_table(rows, path / "tables" / "keys.parquet", compression="zstd")


def write_segments(path, logs, starts, lengths, count, has_thread_ids):  # noqa: PLR0917
    draw = np.random.default_rng(8)
    attempts = np.sort(draw.integers(0, starts.size, count))
    place, begun, length = attempts // starts.shape[1], starts.ravel()[attempts], lengths.ravel()[attempts]
    share = draw.random(count)
    inside = draw.random(count) * 0.9
    inside = np.where(share > 0.95, 1.0, np.where(share > 0.93, 1.02, inside))
    start = begun + (inside * length).astype(np.int64)
    thread = np.where(share < 0.03, 139_000_000_000_000, 140_000_000_000_000) + place
    files = [f"/data/store/part-{number:05}.parquet" for number in range(20_000)]
    file = attempts % len(files)
    beacons = 2 * WORKERS
    number = np.arange(beacons) // 2
    total = count + beacons

    def joined(values, more):
        return pa.array(np.concatenate([values, more]))

    table = stored(
        "io_segments",
        total,
        server_id=chosen_from(["Launcher-0"], np.zeros(total)),
        role=chosen_from(["launcher"], np.zeros(total)),
        log=chosen_from(logs, np.concatenate([place // THREADS, number])),
        module=chosen_from(["POSIX"], np.zeros(total)),
        direction=chosen_from(["read", "write"], np.concatenate([file % 3 == 0, np.ones(beacons)])),
        file_id=joined(file, -1 - number),
        path=chosen_from(
            [*files, *(f"/run/beacon-{n}" for n in range(WORKERS))], np.concatenate([file, len(files) + number])
        ),
        rank=pa.array(np.full(total, -1)),
        offset=joined(draw.integers(0, 2**30, count), np.arange(beacons) % 2),
        nbytes=joined(draw.integers(1, 2**20, count), np.ones(beacons, np.int64)),
        start_s=joined(start / 1e9, np.arange(beacons) % 2 * 1e-5),
        stop_s=joined((start + 20_000) / 1e9, np.arange(beacons) % 2 * 1e-5 + 1e-6),
        **({"thread": joined(thread, np.ones(beacons, np.int64))} if has_thread_ids else {}),
    )
    pq.write_table(table, path / "tables" / "io_segments.parquet", compression="zstd", row_group_size=131_072)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--segments", type=int, default=10_000_000)
    options.add_argument("--attempts", type=int, default=1_000_000)
    options.add_argument("--no-thread-ids", action="store_true")
    options.add_argument("--repeats", type=int, default=3)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "run"
        write_run(path, chosen.segments, chosen.attempts, not chosen.no_thread_ids)
        samples = []
        for _ in range(chosen.repeats):
            done = subprocess.run([sys.executable, "-c", ASK, str(path)], capture_output=True, text=True, check=True)
            samples.append(json.loads(done.stdout.splitlines()[-1]))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    document = {**vars(chosen), "samples": samples}
    (results / f"io-join-{time.strftime('%Y%m%dT%H%M%S')}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"{chosen.segments} segments, {chosen.attempts} attempts; {chosen.repeats} fresh processes")
    print("attribution, segments, tasks, bytes, most candidates:")
    for line in samples[0]["answer"]:
        print("  ", *line)
    print(f"CPU of both cores {statistics.median(sample['cpu_s'] for sample in samples):.1f} s")
    for name, promise in PROMISES.items():
        values = [sample[name] for sample in samples]
        middle = statistics.median(values)
        shown = f"{name:16} {middle:8.1f}  ({min(values):.1f} to {max(values):.1f})"
        is_promised = (chosen.segments, chosen.attempts) == (10_000_000, 1_000_000) and not chosen.no_thread_ids
        kept = "kept" if middle <= promise else "NOT KEPT"
        print(f"{shown}   promise <= {promise:.0f}: {kept}" if is_promised else shown)


if __name__ == "__main__":
    main()
