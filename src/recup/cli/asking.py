"""Verbs that ask one run: a page each, or its document."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recup.cli.group import (
    INCOMPLETE,
    format_option,
    json_option,
    main,
    opened_run,
    print_as,
    root_option,
    run_argument,
)
from recup.questions import QUESTIONS, Question

if TYPE_CHECKING:
    pass

FORMS = ("table", "csv", "json", "parquet")


@main.command("ls")
@root_option
@json_option
def ls_verb(root: str | None, as_json: bool) -> None:
    """List the runs under a root, newest last.

    One row per run: when it started, how long it took, how it ended, its tasks (a key
    submitted twice counts twice), the workers that recorded, and its size on disk.

    \b
    Example:
      recup ls
      recup ls --root /scratch/runs --json
    """
    from recup.analyse.listing import list_runs
    from recup.pages import runs_page
    from recup.rundir import runs_root
    from recup.terminal import Page, print_json

    rows = list_runs(runs_root(root))
    if as_json:
        print_json(rows)
    else:
        runs_page(Page(whole_rows=True), rows, runs_root(root))


@main.command("info")
@run_argument
@json_option
def info_verb(run: str, as_json: bool) -> None:
    """Show the first page of a run: what is missing, what ran, what came of it.

    Losses come first.  RUN is a directory, a run id, the start of one, or `last`.

    \b
    Example:
      recup info
      recup info 20261124T0233 --json
    """
    from recup.analyse.overview import overview
    from recup.pages import info_page
    from recup.terminal import Page, print_json

    with opened_run(run) as opened:
        document = overview(opened)
    if as_json:
        print_json(document)
    else:
        info_page(Page(), document)


@main.command("summary")
@run_argument
@format_option
@json_option
def summary_verb(run: str, form: str, as_json: bool) -> None:
    """Sum a run up: what ran, what is missing, where its time went, what was found.

    What was found is told in words, what cost most first, each with how sure it is, what to
    do, and the verb that tells more.  Markdown suits a pull request.

    \b
    Example:
      recup summary
      recup summary last --format md >> $GITHUB_STEP_SUMMARY
    """
    from recup.analyse.summary import summary
    from recup.summary_page import summary_page

    with opened_run(run) as opened:
        document = summary(opened)
    print_as("json" if as_json else form, document, summary_page)


@main.command("top")
@run_argument
@click.option(
    "--by",
    type=click.Choice(("prefix", "group", "function", "worker", "host", "thread", "task")),
    default="prefix",
    show_default=True,
    help="What a row is of.",
)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Rows to print at most.")
@format_option
@json_option
def top_verb(run: str, *, by: str, limit: int, form: str, as_json: bool) -> None:
    """Show what took the most: attempts, seconds, and how they spread.

    Seconds are those of computations; `cpu` is the part of them on a CPU.  With --by task,
    single attempts, the longest first.

    \b
    Example:
      recup top
      recup top last --by worker --format md
    """
    from recup.analyse.durations import durations_by
    from recup.summary_page import top_page

    with opened_run(run) as opened:
        rows = durations_by(opened, by).to_pylist()
        document = {"run_id": opened.run_id, "by": by, "rows": rows}
    print_as("json" if as_json else form, document, top_page, limit)


def _question_verb(question: Question) -> None:
    """Add the verb that asks one question of `QUESTIONS`."""

    def ask(run: str, tables: tuple[str, ...], limit: int, *, as_json: bool) -> None:
        from recup.analyse.answers import answer
        from recup.answer_page import answer_page
        from recup.terminal import Page, print_json

        with opened_run(run) as opened:
            document = {
                "run_id": opened.run_id,
                "question": question.verb,
                "asks": question.asks,
                **answer(opened, question).document(),
            }
        names = [table["name"] for table in document["tables"]]
        if unknown := set(tables) - set(names):
            raise click.UsageError(f"No table {', '.join(sorted(unknown))}; this answer has {', '.join(names)}.")
        print_json(document) if as_json else answer_page(Page(), document, tables, limit)

    ask.__doc__ = "\n\n".join(
        (
            question.asks,
            question.covers,
            f"\b\nExample:\n  recup {question.verb}\n  recup {question.verb} 20261124T0233 --json",
        )
    )
    command = main.command(question.verb)(json_option(ask))
    command.params = [
        click.Argument(["run"], default="last"),
        click.Option(["--table", "tables"], multiple=True, metavar="NAME", help="Print this table only."),
        click.Option(
            ["--limit"], type=click.IntRange(min=1), default=20, show_default=True, help="Rows to print of each table."
        ),
        *command.params,
    ]


for _question in QUESTIONS:
    _question_verb(_question)


@main.command("map")
@run_argument
@json_option
def map_verb(run: str, as_json: bool) -> None:
    """Show the map of a run: what was recorded at each step and level, and why not.

    Each line is collected, partly collected, missing (and why), nothing (nothing of the
    kind happened), or not asked for (and how to ask).

    \b
    Example:
      recup map last
    """
    from recup.analyse.coverage import STATES, STEPS, coverage
    from recup.pages import map_page
    from recup.terminal import Page, print_json

    with opened_run(run) as opened:
        lines, name = coverage(opened).to_pylist(), opened.run_id
    if as_json:
        print_json({"run_id": name, "lines": lines})
    else:
        map_page(Page(), name, lines, STEPS, STATES)


@main.command("story")
@click.argument("key")
@click.option("--run", "run", default="last", show_default=True, help="The run it is in.")
@json_option
def story_verb(key: str, run: str, as_json: bool) -> None:
    """Tell everything that happened to one task, on one time line.

    KEY is the key of a task, or a part of it that no other key has.  Times are seconds
    from its submission, on the scheduler's clock; the clocks of workers are aligned to it
    as well as can be known.

    \b
    Example:
      recup story "('sum-aggregate-4f1c', 0)"
      recup story sum-agg --run last
    """
    from recup.analyse.profile import functions_of_key
    from recup.analyse.story import find_key, story
    from recup.pages import story_page
    from recup.profile_page import story_functions
    from recup.terminal import Page, print_json

    with opened_run(run) as opened:
        found = find_key(opened, key)
        lines, name = story(opened, found).to_pylist(), opened.run_id
        functions = functions_of_key(opened, found)
    if as_json:
        print_json({"run_id": name, "key": found, "lines": lines, "prefix_functions": functions})
    else:
        page = Page(whole_rows=True)
        story_page(page, name, found, lines)
        if functions is not None:
            story_functions(page, functions)


@main.command("lineage")
@click.argument("target", metavar="KEY|FILE")
@click.option(
    "--direction",
    type=click.Choice(("up", "down", "both")),
    default="both",
    show_default=True,
    help="What is behind it, what came of it, or both.",
)
@click.option("--depth", type=click.IntRange(min=1), help="Steps to go at most.  [default: all]")
@click.option("--run", "run", default="last", show_default=True, help="The run it is in.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Rows to print of each list.")
@json_option
def lineage_verb(target: str, *, direction: str, depth: int | None, run: str, limit: int, as_json: bool) -> None:
    """Tell what is behind a result or a file, and what came of it.

    Tasks, files they read and wrote, source line, script, repository and versions.  KEY is
    the key of a task or a part of it that no other key has; FILE a path or its last parts.
    Files need a run recorded with `recup run --darshan`, and only reads and writes that are
    surely of one task count.

    \b
    Example:
      recup lineage "('sum-aggregate-4f1c', 0)"
      recup lineage labels-00003.tif --direction up
    """
    from recup.analyse.lineage import lineage
    from recup.lineage_page import lineage_page
    from recup.terminal import Page, print_json

    with opened_run(run) as opened:
        document = lineage(opened, target, direction, depth)
    print_json(document) if as_json else lineage_page(Page(whole_rows=True), document, limit)


@main.command("io")
@run_argument
@click.option(
    "--by",
    type=click.Choice(("task", "prefix", "file", "worker", "thread")),
    default="prefix",
    show_default=True,
    help="What a row is of.",
)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Rows to print at most.")
@json_option
def io_verb(run: str, by: str, limit: int, as_json: bool) -> None:
    """Show which tasks did which I/O: bytes, operations, time in them, files.

    Files need a run recorded with `recup run --darshan`; without it, counters of threads
    tell bytes, sockets included.  What is of no task for sure stands in a row of its own.

    \b
    Example:
      recup io
      recup io --by file last
    """
    from recup.analyse.io import io_by, io_record
    from recup.io_page import io_page
    from recup.terminal import Page, print_json

    with opened_run(run) as opened:
        record = io_record(opened)
        rows = [] if record["source"] == "none" else io_by(opened, by).to_pylist()
        document = {"run_id": opened.run_id, "by": by, "record": record, "rows": rows}
    if as_json:
        print_json(document)
    else:
        io_page(Page(), document, limit)


@main.command("profile")
@run_argument
@click.option("--prefix", metavar="PREFIX", help="Only tasks of this prefix.")
@click.option(
    "--kind",
    type=click.Choice(("task", "coroutine", "other")),
    default="task",
    show_default=True,
    help="Functions of tasks, coroutines of event loops, or other functions outside tasks.",
)
@click.option(
    "--sort",
    "order",
    type=click.Choice(("own", "total", "calls")),
    default="own",
    show_default=True,
    help="What comes first.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=15, show_default=True, help="Functions to print per prefix."
)
@json_option
def profile_verb(run: str, *, prefix: str | None, kind: str, order: str, limit: int, as_json: bool) -> None:
    """Show which functions took the time, per task prefix.

    Needs a run recorded with `recup run --yappi wall` or `--yappi cpu`.  Functions are those
    of all tasks of a prefix together.  `own` is the time in the function itself, `share` its
    part of the prefix, `total` includes what it called.

    \b
    Example:
      recup run --yappi cpu --yappi-prefix inc script.py
      recup profile --prefix inc
    """
    from recup.analyse.profile import HOW_TO_RECORD, function_profile, profile_losses, recorded_functions
    from recup.profile_page import profile_page
    from recup.terminal import Page, print_json

    with opened_run(run) as opened:
        document = {
            "run_id": opened.run_id,
            "losses": profile_losses(opened),
            "recorded": recorded_functions(opened),
            "functions": function_profile(opened, prefix, kind=kind, order=order).to_pylist(),
        }
    document["how_to_record"] = None if document["recorded"] else HOW_TO_RECORD
    if as_json:
        print_json(document)
    else:
        profile_page(Page(), document, limit)


@main.command("sql")
@click.argument("run")
@click.argument("query", required=False)
@click.option("--format", "form", type=click.Choice(FORMS), help="[default: as FILE ends, else table]")
@click.option(
    "-o", "output", metavar="FILE", type=click.Path(dir_okay=False), help="File to write; needed for parquet."
)
@click.option("--limit", type=click.IntRange(min=0), help="Rows to give at most.  [default: 100 of a table, else all]")
@json_option
def sql_verb(
    *, run: str, query: str | None, form: str | None, output: str | None, limit: int | None, as_json: bool
) -> None:
    """Ask a run in SQL (DuckDB); without a query, list its tables and views.

    `recup schema` tells what tables and columns mean.

    \b
    Example:
      recup sql last
      recup sql last "select prefix, count(*) from tasks group by all"
      recup sql last "from results" -o results.parquet
    """
    from recup.query import tables_and_views, write_answer
    from recup.terminal import Page, print_json

    suffix = Path(output or "").suffix.removeprefix(".")
    form = "json" if as_json else form or (suffix if suffix in FORMS else "table")
    if form == "parquet" and output is None and query is not None:
        raise click.UsageError("Parquet goes to a file: give -o FILE.")
    with opened_run(run) as opened:
        if query is None:
            from recup.pages import tables_page

            rows = tables_and_views(opened)
            print_json(rows) if form == "json" else tables_page(Page(whole_rows=True), rows)
        else:
            answer = opened.sql(query)
            for name, wrong in opened.unreadable.items():
                if re.search(rf"\b{name}\b", query):
                    click.echo(f"recup: tables/{name}.parquet {wrong}: its rows are missing here.", err=True)
            write_answer(answer, form, output, limit)


@main.command("check")
@run_argument
@json_option
def check_verb(run: str, as_json: bool) -> None:
    """State what of a run is missing; exit code 3 when something is.

    Compares recup's own counts with Dask's, workers seen with workers recorded, and lists
    what was dropped, cut or switched off.

    \b
    Example:
      recup check last && echo complete
    """
    from recup.analyse.overview import finding_rows
    from recup.completeness import completeness, verdict
    from recup.pages import check_page
    from recup.terminal import Page, print_json

    with opened_run(run) as opened:
        findings, name = completeness(opened), opened.run_id
    document = finding_rows(findings)
    if as_json:
        print_json({"run_id": name, "verdict": verdict(findings), "findings": document})
    else:
        check_page(Page(), name, document)
    if any(f.level == "loss" for f in findings):
        sys.exit(INCOMPLETE)


@main.command("schema")
@click.argument("table", required=False)
@json_option
def schema_verb(table: str | None, as_json: bool) -> None:
    """Print the data dictionary: tables, views, columns, units, and what a null says.

    With TABLE, its columns; without, one line per table and view.

    \b
    Example:
      recup schema
      recup schema transfers
    """
    from recup.dictionary import describe
    from recup.pages import schema_page
    from recup.terminal import Page, print_json

    document = describe(table)
    if as_json:
        print_json(document)
    else:
        schema_page(Page(), document, in_full=table is not None)
