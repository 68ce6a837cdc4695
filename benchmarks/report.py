"""What a report costs: seconds and memory to make it, its size, and how fast a browser has drawn it.

Each run is reported several times, each in a process of its own, and the file is opened in a
headless Chromium several times, from the disk.  Opened means: from navigation to the time
line's first drawing, by the page's own clock.  Runs of a size are made by `made_run.py`.

    python benchmarks/report.py RUN...

Figures stand beside the promises (of a million tasks); raw samples are kept in
benchmarks/results/report-<time>.json.
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
sys.path.insert(0, str(PROJECT))

PROMISED_S, PROMISED_BYTES, PROMISED_OPEN_S = 20.0, 10 * 2**20, 2.0
MAKE = """
import json, resource, sys, time
begun, cpu = time.perf_counter(), time.process_time()
from recup.report.html import write_report
from recup.store import open_run
with open_run(sys.argv[1]) as run:
    size = write_report(run, sys.argv[2])
    ((tasks,),) = run.sql("select attempt_count from run_summary").fetchall()
print(json.dumps({
    "task_count": tasks,
    "size_bytes": size,
    "make_s": time.perf_counter() - begun,
    "cpu_s": time.process_time() - cpu,
    "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""


def main() -> None:
    """Measure, print beside the promises, and keep the samples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    samples = []
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "report.html"
        for run in given.runs:
            made = [measured(run, file) for _ in range(given.repeats)]
            samples.append({"run": Path(run).name, "made": made, "opened": opened(file, given.repeats)})
            show(samples[-1])
    results = PROJECT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / f"report-{time.strftime('%Y%m%dT%H%M%S')}.json").write_text(json.dumps(samples, indent=1))


def measured(run: str, file: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", MAKE, run, str(file)], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def opened(file: Path, repeats: int) -> list[dict[str, float]]:
    from tests.browser.chromium import chromium

    found = []
    for _ in range(repeats):
        with chromium() as page:
            page.go(file.as_uri())
            page.until("window.recupReady !== undefined")
            page.value("recupReady")
            redraws = []
            for _ in range(3):
                page.value("recupTimeline.draw()")
                redraws.append(page.value("recupTimeline.drawMs"))
            found.append(
                {"open_s": page.value("recupTimeline.drawnMs") / 1000, "redraw_s": statistics.median(redraws) / 1000}
            )
    return found


def show(sample: dict) -> None:
    def middle(which: str, name: str) -> float:
        return statistics.median(each[name] for each in sample[which])

    print(f"{sample['run']}: {sample['made'][0]['task_count']:,.0f} attempts")
    size = middle("made", "size_bytes")
    print(f"  size     {size / 2**20:8.2f} MiB  promised {PROMISED_BYTES / 2**20:.0f} MiB")
    print(f"  make     {middle('made', 'make_s'):8.2f} s    promised {PROMISED_S:.0f} s")
    print(f"    CPU    {middle('made', 'cpu_s'):8.2f} s")
    print(f"    memory {middle('made', 'peak_memory_mb'):8.0f} MB")
    print(f"  opened   {middle('opened', 'open_s'):8.2f} s    promised {PROMISED_OPEN_S:.0f} s")
    print(f"  redrawn  {middle('opened', 'redraw_s'):8.3f} s")


if __name__ == "__main__":
    main()
