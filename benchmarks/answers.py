"""What each answer takes on a large run: time from opening the run to the answer, and memory.

A run is made up (`made_run`) and sealed, or given with --run.  Every question of
`recup.questions` is asked in processes of their own: once with nothing kept beside the run
(cold, as the first command after sealing), then with what that one kept (warm).

    python benchmarks/answers.py                        # 10^5 and 10^6 tasks
    python benchmarks/answers.py --tasks 20000
    python benchmarks/answers.py --run /tmp/made/run_1e5 --question memory

A question whose module is not there is told and passed over.  Figures stand beside the
promise; raw samples are kept in benchmarks/results/answers-<time>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import duckdb
from made_run import write_run

from recup.questions import QUESTIONS
from recup.store import seal

PROMISES = ((100_000, 2.0, 4096.0), (1_000_000, 15.0, 4096.0))
"""Up to so many tasks: seconds and MB of one answer, opening the run included."""
ASK = """
import json, os, resource, sys, time
from importlib import import_module
from recup.store import open_run
module, function = sys.argv[2].split(":")
asked = getattr(import_module(module), function)
begun, cpu_before = time.perf_counter(), sum(os.times()[:2])
with open_run(sys.argv[1]) as run:
    answer = asked(run)
    answer_s = time.perf_counter() - begun
print(json.dumps({
    "answer_s": answer_s,
    "cpu_s": sum(os.times()[:2]) - cpu_before,
    "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "headline": answer.headline,
    "conclusion_count": len(answer.conclusions),
    "row_counts": {each.name: each.rows.num_rows for each in answer.tables},
}))
"""


def is_there(question):
    """Tell whether a question can be asked; says why where it cannot."""
    module, function = question.answered_by.split(":")
    try:
        getattr(import_module(module), function)
    except (ImportError, AttributeError) as reason:
        print(f"{question.verb:14} passed over: {reason}")
        return False
    return True


def ask(path, question):
    """Return what one process measured, or how it failed."""
    command = [sys.executable, "-c", ASK, str(path), question.answered_by]
    # Libraries are compiled once, as where they are installed, whatever this environment does.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(path.parent / "compiled")
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or [f"ended with {answer.returncode}"])[-1]
        return {"failure": last[:300]}
    return json.loads(answer.stdout.splitlines()[-1])


def task_count_of(path):
    """Return how many tasks a sealed run has."""
    return duckdb.sql(f"select count(*) from read_parquet('{path}/tables/tasks.parquet')").fetchall()[0][0]


def second_name(run, directory):
    """Return a run directory with the same tables, where nothing is kept."""
    path = directory / run.name
    shutil.copytree(run / "tables", path / "tables", copy_function=_linked)
    shutil.copy(run / "run.json", path)
    return path


def _linked(source, destination):
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def measure(path, questions, repeats):
    """Ask every question cold and warm; returns the samples."""
    tasks = task_count_of(path)
    limit_s, limit_mb = next((each[1:] for each in PROMISES if tasks <= each[0]), (None, None))
    told = "no promise" if limit_s is None else f"promise: each <= {limit_s:g} s, <= {limit_mb:g} MB"
    print(f"\n{tasks} tasks; {told}")
    print(f"{'question':14} {'cold s':>7} {'warm s':>7} {'cold cpu':>8} {'warm cpu':>8} {'cold MB':>8} {'warm MB':>8}")
    samples = []
    for question in questions[:1]:
        ask(path, question)
    for question in questions:
        found = {"cold": [], "warm": []}
        for _ in range(repeats):
            shutil.rmtree(path / "derived", ignore_errors=True)
            for cache, of_cache in found.items():
                of_cache.append(ask(path, question))
                samples.append({"tasks": tasks, "question": question.verb, "cache": cache, **of_cache[-1]})
        failure = next((each["failure"] for each in found["cold"] + found["warm"] if "failure" in each), None)
        if failure is not None:
            print(f"{question.verb:14} FAILED: {failure}")
            continue
        cold, warm = (min(found[cache], key=lambda each: each["answer_s"]) for cache in ("cold", "warm"))
        kept = ""
        if limit_s is not None:
            worst_mb = max(cold["peak_memory_mb"], warm["peak_memory_mb"])
            kept = "kept" if cold["answer_s"] <= limit_s and worst_mb <= limit_mb else "NOT KEPT"
        print(
            f"{question.verb:14} {cold['answer_s']:7.2f} {warm['answer_s']:7.2f} {cold['cpu_s']:8.2f} {warm['cpu_s']:8.2f} "
            f"{cold['peak_memory_mb']:8.0f} {warm['peak_memory_mb']:8.0f} {kept}",
            flush=True,
        )
    return samples


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tasks", type=int, action="append", help="By default 10^5, then 10^6.")
    options.add_argument("--run", type=Path, action="append", help="A sealed run to ask; it is left as it is.")
    options.add_argument("--question", action="append", help="Verb; by default all.")
    options.add_argument("--repeats", type=int, default=1, help="The fastest is told.")
    options.add_argument("--directory", type=Path, help="Where runs are made for the time being.")
    chosen = options.parse_args()
    questions = [each for each in QUESTIONS if chosen.question is None or each.verb in chosen.question]
    questions = [each for each in questions if is_there(each)]
    samples = []
    with tempfile.TemporaryDirectory(dir=chosen.directory) as temporary:
        directory = Path(temporary)
        for run in chosen.run or ():
            samples += measure(second_name(run.absolute(), directory), questions, chosen.repeats)
        for task_count in chosen.tasks or ([] if chosen.run else [100_000, 1_000_000]):
            path = directory / f"made-{task_count}"
            write_run(path, task_count)
            seal(path)
            samples += measure(path, questions, chosen.repeats)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    file = results / f"answers-{time.strftime('%Y%m%dT%H%M%S')}.json"
    file.write_text(json.dumps(samples, indent=1) + "\n")
    print(f"\nsamples: {file}")


if __name__ == "__main__":
    main()
