"""What reading a large Darshan log costs: segments a second, and peak memory.

A log of two million traced reads is made up (eight files, four threads, times as doubles).
It is read to an Arrow table, several times, each in a process of its own; the log is in the
page cache.  The time is that of `read_log(path).segments()`, without starting Python; the
memory is the peak of the whole process.

    python benchmarks/darshan_reading.py
    python benchmarks/darshan_reading.py --layout text-96 --segments 200000
    python benchmarks/darshan_reading.py --ingest        # also into a run and sealed

Figures stand beside the promise; raw samples are kept in benchmarks/results/darshan-reading-<time>.json.
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

PROJECT = Path(__file__).parents[1]
PROMISED_SEGMENTS_PER_S, PROMISED_PEAK_MB = 3.5e6, 350.0
READ = """
import json, resource, sys, time
from recup.ingest.darshan import read_log
begun, cpu = time.perf_counter(), time.process_time()
segments = read_log(sys.argv[1]).segments()
took, cpu = time.perf_counter() - begun, time.process_time() - cpu
assert segments.num_rows == int(sys.argv[2])
print(json.dumps({
    "read_s": took,
    "cpu_s": cpu,
    "segments_per_s": segments.num_rows / took,
    "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""
INGEST = """
import json, resource, sys, time
from pathlib import Path
from recup.ingest.darshan import ingest_darshan
from recup.rundir import create_run
from recup.store import seal
run = create_run(Path(sys.argv[1]).parent, way="run")
begun = time.perf_counter()
ingest_darshan(run, [sys.argv[1]])
ingested = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
report = seal(run)
print(json.dumps({
    "ingest_s": ingested - begun,
    "ingest_peak_memory_mb": peak,
    "seal_s": time.perf_counter() - ingested,
    "seal_peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "sealed_bytes_per_segment": report.sizes_bytes["io_segments"] / int(sys.argv[2]),
}))
"""


def in_a_process(code, path, count):
    """Return what a fresh process prints about a log."""
    line = [sys.executable, "-c", code, str(path), str(count)]
    answer = subprocess.run(line, capture_output=True, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--segments", type=int, default=2_000_000)
    options.add_argument("--layout", choices=("plain-32", "thread-40", "text-96"), default="thread-40")
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--ingest", action="store_true", help="Also read it into a run and seal that.")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "made-up.darshan"
        make = [sys.executable, "-m", "tests.unit.darshan_logs", str(path), str(chosen.segments), chosen.layout]
        subprocess.run(make, cwd=PROJECT, check=True)
        size = path.stat().st_size
        samples = [in_a_process(READ, path, chosen.segments) for _ in range(chosen.repeats)]
        ingestion = in_a_process(INGEST, path, chosen.segments) if chosen.ingest else {}
    results = PROJECT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    document = {**vars(chosen), "log_bytes": size, "samples": samples, "ingestion": ingestion}
    (results / f"darshan-reading-{time.strftime('%Y%m%dT%H%M%S')}.json").write_text(
        json.dumps(document, indent=1) + "\n"
    )
    print(f"{chosen.segments} segments, layout {chosen.layout}, {size / chosen.segments:.1f} B/segment in the log")
    speeds, peaks = ([sample[name] for sample in samples] for name in ("segments_per_s", "peak_memory_mb"))
    speed, peak = statistics.median(speeds), max(peaks)
    kept = "kept" if speed >= PROMISED_SEGMENTS_PER_S else "NOT KEPT"
    print(
        f"segments/s    {speed / 1e6:7.2f} M  ({min(speeds) / 1e6:.2f} to {max(speeds) / 1e6:.2f})   promise >= 3.5 M: {kept}"
    )
    kept = "kept" if peak <= PROMISED_PEAK_MB else "NOT KEPT"
    print(f"peak memory   {peak:7.0f} MB                    promise <= 350 MB: {kept}")
    print(f"CPU           {statistics.median(sample['cpu_s'] for sample in samples):7.2f} s")
    for name, value in ingestion.items():
        print(f"{name:25} {value:10.2f}")


if __name__ == "__main__":
    main()
