"""The command line: `recup VERB ...`, also `dask recup VERB ...`.

Each verb opens a run, asks one question and prints the answer (`recup.pages`), or its
document with `--json`.  Errors a reader can mend are one line on stderr and exit code 1;
wrong usage is 2; `check` ends with 3 where something is missing, `compare --fail-over`
where B is too slow.  A bug keeps its traceback.  Every `dask` command imports this module,
so it imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from recup import __version__
from recup.errors import RecupError
from recup.questions import QUESTIONS, Question

if TYPE_CHECKING:
    from recup.store import Run

INCOMPLETE = 3
"""Exit code of `check` when something is missing."""
SLOWER = 3
"""Exit code of `compare --fail-over` when B took too long."""

Function = TypeVar("Function", bound=Callable[..., Any])
FORMS = ("table", "csv", "json", "parquet")
_VERBS = (
    "run",
    "ls",
    "info",
    "summary",
    "top",
    *(question.verb for question in QUESTIONS),
    "io",
    "profile",
    "compare",
    "changes",
    "story",
    "lineage",
    "map",
    "report",
    "sql",
    "check",
    "serve",
    "ingest",
    "seal",
    "schema",
    "doctor",
    "darshan-env",
)


class _Verbs(click.Group):
    """A group that lists its verbs in the order of a run's life and prints RecupErrors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        others = sorted(set(self.commands) - set(_VERBS))
        return [*_VERBS, *others]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RecupError as reason:
            from recup.terminal import complain

            complain(reason)
            ctx.exit(1)


_WITH_VALUE = ("--root", "--yappi", "--yappi-prefix", "--yappi-on")
"""Options of `run` whose value is an argument of its own."""


class _Untouched(click.Command):
    """A command whose options end at its first argument, or at `-m MODULE`, as those of `python` do."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        place = 0
        while place < len(args) and args[place].startswith("-") and args[place] not in ("-", "--"):
            if args[place].startswith("-m"):
                end = place + (2 if args[place] == "-m" else 1)
                args = [*args[:end], "--", *args[end:]]
                break
            if args[place] == "--darshan":  # its value is optional, and what follows is the program
                args = [*args[:place], "--darshan=auto", *args[place + 1 :]]
            place += 2 if args[place] in _WITH_VALUE else 1
        return super().parse_args(ctx, args)


def _json_option(function: Function) -> Function:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")(function)


def _root_option(function: Function) -> Function:
    text = "Directory that holds runs.  [default: $RECUP_ROOT, else ./recup-runs]"
    return click.option("--root", type=click.Path(file_okay=False), help=text)(function)


def _run_argument(function: Function) -> Function:
    return click.argument("run", default="last")(function)


@contextlib.contextmanager
def _opened(name: str) -> Iterator[Run]:
    from recup.store import open_run

    with open_run(name) as run:
        yield run


@click.group(name="recup", cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="recup")
def main() -> None:
    """Record a Dask workload, lose nothing when it dies, and ask what it did.

    RUN is a run directory, a run id, the start of one, or `last`.

    \b
    Example:
      recup run script.py        record it, then see its first page
      recup story inc-1 --run last
    """


@main.command("run", cls=_Untouched, context_settings={"allow_interspersed_args": False})
@_root_option
@click.option("--no-seal", is_flag=True, help="Leave the rows as they were written; `recup seal` does it later.")
@click.option("--quiet", is_flag=True, help="Print nothing of recup's own, except what went wrong.")
@click.option("--no-source", is_flag=True, help="Record no source text of the script.")
@click.option("--json", "as_json", is_flag=True, help="Print the first page as JSON, on stderr.")
@click.option(
    "--darshan", metavar="[=PATH]", help="Record files of workers with Darshan; PATH: libdarshan or its prefix."
)
@click.option(
    "--yappi",
    type=click.Choice(("wall", "cpu")),
    help="Profile functions with Yappi by this clock; slows the run down.",
)
@click.option("--yappi-prefix", multiple=True, metavar="PREFIX", help="Profile only tasks of this prefix or pattern.")
@click.option("--yappi-on", metavar="ROLES", help="Profile worker, scheduler, client: a comma list.  [default: worker]")
@click.option("-m", "module", metavar="MODULE", help="Run a module, as `python -m` does; ends the options.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="TARGET [ARGS]...")
def run_verb(
    *,
    root: str | None,
    no_seal: bool,
    quiet: bool,
    no_source: bool,
    as_json: bool,
    darshan: str | None,
    yappi: str | None,
    yappi_prefix: tuple[str, ...],
    yappi_on: str | None,
    module: str | None,
    command: tuple[str, ...],
) -> None:
    """Run a program and record every Dask cluster it starts or uses.

    TARGET is a script or a command; what follows it goes to the program untouched, so
    options of recup stand before it.  The program keeps its input, output and exit status;
    the run's first page is printed on stderr when it has ended.

    \b
    Example:
      recup run script.py --size 4
      recup run --root /scratch/runs -m my_package.main
      recup run jupyter execute notebook.ipynb
    """
    from recup.launch import command_for, end_like, run_program
    from recup.rundir import runs_root

    if module is None and not command:
        raise click.UsageError("Give a script, a command, or -m MODULE.")
    if (yappi_prefix or yappi_on) and yappi is None:
        raise click.UsageError("--yappi-prefix and --yappi-on need --yappi wall or --yappi cpu.")
    profile = None if yappi is None else (yappi, yappi_prefix, tuple((yappi_on or "worker").split(",")))
    if module is None:
        line, script = command_for(command[0], list(command[1:]))
    else:
        line, script = [sys.executable, "-m", module, *command], None
    with _source_switched_off() if no_source else contextlib.nullcontext():
        path, code = run_program(line, script, runs_root(root), darshan=darshan, yappi=profile)
    _after_program(path, no_seal=no_seal, quiet=quiet, as_json=as_json)
    end_like(code)


@contextlib.contextmanager
def _source_switched_off() -> Iterator[None]:
    """Tell the program, through its environment, and the launcher to record no source text."""
    import dask.config

    name, before = "DASK_RECUP__SOURCE", os.environ.get("DASK_RECUP__SOURCE")
    os.environ[name] = "False"
    try:
        with dask.config.set({"recup.source": False}):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _after_program(path: Path, *, no_seal: bool, quiet: bool, as_json: bool) -> None:
    """Seal and print; whatever goes wrong is said, and never changes how the program ended."""
    from recup.terminal import complain

    try:
        _seal_and_show(path, no_seal=no_seal, quiet=quiet, as_json=as_json)
    except KeyboardInterrupt:
        complain(f"interrupted; the record stays in {path}. `recup seal {path.name}` goes on where it ended.")
    except RecupError as reason:
        complain(reason)
    except Exception as reason:  # noqa: BLE001 - the program's exit status is not recup's to change
        complain(f"{type(reason).__name__}: {reason}; the record stays in {path}")


def _take_darshan_logs(path: Path) -> None:
    """Bring Darshan's logs of a run that has ended together and read them into its rows, if it has any."""
    from recup.terminal import complain

    if not (path / "foreign" / "darshan").is_dir():
        return
    from recup.capture.darshan_logs import collect_logs

    for missing in collect_logs(path):
        complain(f"Darshan: {missing}")
    try:
        import_module("recup.ingest.darshan").ingest_foreign(path)
    except Exception as reason:  # noqa: BLE001 - the run is sealed with or without
        complain(f"Darshan logs are not read in: {type(reason).__name__}: {reason}; they stay in {path}")


def _take_darshan_logs_of(run: str) -> None:
    from recup.launch import wait_for_stragglers
    from recup.rundir import find_run

    path = find_run(run)
    if not wait_for_stragglers(path, timeout_s=0):
        _take_darshan_logs(path)


def _seal_and_show(path: Path, *, no_seal: bool, quiet: bool, as_json: bool) -> None:
    from recup.launch import collect_local_spools, wait_for_stragglers
    from recup.terminal import Page, complain, print_json, progress

    stragglers = wait_for_stragglers(path)
    collect_local_spools(path)
    if not stragglers and not no_seal:
        _take_darshan_logs(path)
    if stragglers:
        shown = ", ".join(map(str, stragglers[:5])) + (" ..." if len(stragglers) > 5 else "")
        complain(f"not sealed: still written by process {shown}; `recup seal {path.name}` when it has ended")
    elif not no_seal:
        from recup.store import seal

        with progress("sealing") as show:
            seal(path, progress=show)
    if quiet:
        return
    from recup.analyse.overview import overview
    from recup.pages import info_page
    from recup.store import open_run

    with open_run(path) as run:
        document = overview(run)
    if as_json:
        print_json(document, sys.stderr)
    else:
        page = Page(sys.stderr)
        page.blank()
        info_page(page, document)


@main.command("ls")
@_root_option
@_json_option
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
@_run_argument
@_json_option
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

    with _opened(run) as opened:
        document = overview(opened)
    if as_json:
        print_json(document)
    else:
        info_page(Page(), document)


def _format_option(function: Function) -> Function:
    forms = click.Choice(("text", "md", "json"))
    text = "Text for a terminal, Markdown, or one JSON document."
    return click.option("--format", "form", type=forms, default="text", show_default=True, help=text)(function)


def _print_as(form: str, document: Any, page_function: Callable[..., None], *more: Any) -> None:
    from recup.markdown import MarkdownPage
    from recup.terminal import Page, print_json

    if form == "json":
        print_json(document)
    else:
        page_function(MarkdownPage() if form == "md" else Page(), document, *more)


@main.command("summary")
@_run_argument
@_format_option
@_json_option
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

    with _opened(run) as opened:
        document = summary(opened)
    _print_as("json" if as_json else form, document, summary_page)


@main.command("top")
@_run_argument
@click.option(
    "--by",
    type=click.Choice(("prefix", "group", "function", "worker", "host", "thread", "task")),
    default="prefix",
    show_default=True,
    help="What a row is of.",
)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Rows to print at most.")
@_format_option
@_json_option
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

    with _opened(run) as opened:
        rows = durations_by(opened, by).to_pylist()
        document = {"run_id": opened.run_id, "by": by, "rows": rows}
    _print_as("json" if as_json else form, document, top_page, limit)


def _question_verb(question: Question) -> None:
    """Add the verb that asks one question of `QUESTIONS`."""

    def ask(run: str, tables: tuple[str, ...], limit: int, *, as_json: bool) -> None:
        from recup.analyse.answers import answer
        from recup.answer_page import answer_page
        from recup.terminal import Page, print_json

        with _opened(run) as opened:
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
    command = main.command(question.verb)(_json_option(ask))
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
@_run_argument
@_json_option
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

    with _opened(run) as opened:
        lines, name = coverage(opened).to_pylist(), opened.run_id
    if as_json:
        print_json({"run_id": name, "lines": lines})
    else:
        map_page(Page(), name, lines, STEPS, STATES)


@main.command("story")
@click.argument("key")
@click.option("--run", "run", default="last", show_default=True, help="The run it is in.")
@_json_option
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

    with _opened(run) as opened:
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
@_json_option
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

    with _opened(run) as opened:
        document = lineage(opened, target, direction, depth)
    print_json(document) if as_json else lineage_page(Page(whole_rows=True), document, limit)


@main.command("io")
@_run_argument
@click.option(
    "--by",
    type=click.Choice(("task", "prefix", "file", "worker", "thread")),
    default="prefix",
    show_default=True,
    help="What a row is of.",
)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Rows to print at most.")
@_json_option
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

    with _opened(run) as opened:
        record = io_record(opened)
        rows = [] if record["source"] == "none" else io_by(opened, by).to_pylist()
        document = {"run_id": opened.run_id, "by": by, "record": record, "rows": rows}
    if as_json:
        print_json(document)
    else:
        io_page(Page(), document, limit)


@main.command("profile")
@_run_argument
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
@_json_option
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

    with _opened(run) as opened:
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


class _WithGroup(click.Command):
    """A command whose `--with` takes all runs that follow it, up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        is_in_group = is_value = False
        for each in args:
            if each == "--with":
                is_in_group = True
                continue
            is_run = is_in_group and not is_value and not each.startswith("-")
            spread += ["--with", each] if is_run else [each]
            is_in_group = is_in_group and (is_run or is_value or each.startswith("-"))
            is_value = each in ("--fail-over", "--limit")
        if "--with" in args and "--with" not in spread:
            raise click.UsageError("--with is followed by the runs of B.")
        return super().parse_args(ctx, spread)


@contextlib.contextmanager
def _opened_sides(a: tuple[str, ...], b: tuple[str, ...]) -> Iterator[tuple[list[Run], list[Run]]]:
    with contextlib.ExitStack() as stack:
        yield tuple([stack.enter_context(_opened(name)) for name in side] for side in (a, b))  # type: ignore[misc]


@main.command("compare", cls=_WithGroup)
@click.argument("runs", nargs=-1, required=True, metavar="A... B")
@click.option(
    "--with", "b_runs", multiple=True, metavar="B...", help="The runs of B; those before it are repeats of A."
)
@click.option(
    "--fail-over",
    type=click.FloatRange(min=0),
    metavar="PERCENT",
    help="End with exit code 3 where B took over PERCENT longer than A (and, with repeats, more than they vary).",
)
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="Rows to print of each table.")
@_json_option
def compare_verb(
    *, runs: tuple[str, ...], b_runs: tuple[str, ...], fail_over: float | None, limit: int, as_json: bool
) -> None:
    """Tell why run B differs from run A: causes, what was not the same, where the time went.

    Causes are what both records bear out, the one that cost most first.  The wall times
    differ by the sum of the categories of the budget.  With repeats of each side, before
    and after --with, it is told whether the difference is within normal variation.

    \b
    Example:
      recup compare 20261124T0233 20261125T0233
      recup compare a1 a2 a3 --with b1 b2 b3 --fail-over 10
    """
    from recup.compare.comparison import comparison
    from recup.compare_page import compare_page
    from recup.terminal import Page, complain, print_json

    if not b_runs:
        if len(runs) != 2:
            raise click.UsageError("Give two runs, A and B; or repeats of each as A... --with B...")
        runs, b_runs = runs[:1], runs[1:]
    with _opened_sides(runs, b_runs) as (a, b):
        found = comparison(a, b)
    document = found.document()
    print_json(document) if as_json else compare_page(Page(), document, limit)
    if fail_over is not None and (told := found.slowdown_over(fail_over)):
        complain(told)
        sys.exit(SLOWER)


@main.command("changes")
@click.argument("a")
@click.argument("b")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Rows to print.")
@_json_option
def changes_verb(a: str, b: str, limit: int, *, as_json: bool) -> None:
    """List what was not the same in two runs: software, configuration, machines, code, graph.

    Tasks are matched by prefix, size and place of their group, never by key.  What is new in
    every run by its nature is left out.

    \b
    Example:
      recup changes 20261124T0233 20261125T0233
    """
    from recup.compare.changes import changes
    from recup.compare_page import changes_page
    from recup.terminal import Page, print_json

    with _opened_sides((a,), (b,)) as (of_a, of_b):
        document = {
            "a": [run.run_id for run in of_a],
            "b": [run.run_id for run in of_b],
            "changes": changes(of_a, of_b).to_pylist(),
        }
    print_json(document) if as_json else changes_page(Page(), document, limit)


@main.command("sql")
@click.argument("run")
@click.argument("query", required=False)
@click.option("--format", "form", type=click.Choice(FORMS), help="[default: as FILE ends, else table]")
@click.option(
    "-o", "output", metavar="FILE", type=click.Path(dir_okay=False), help="File to write; needed for parquet."
)
@click.option("--limit", type=click.IntRange(min=0), help="Rows to give at most.  [default: 100 of a table, else all]")
@_json_option
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
    with _opened(run) as opened:
        if query is None:
            from recup.pages import tables_page

            rows = tables_and_views(opened)
            print_json(rows) if form == "json" else tables_page(Page(whole_rows=True), rows)
        else:
            write_answer(opened.sql(query), form, output, limit)


@main.command("report")
@click.argument("runs", nargs=-1, metavar="[RUN] [OTHER]")
@click.option(
    "-o",
    "output",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="File to write.  [default: recup-RUN.html here]",
)
@_json_option
def report_verb(runs: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Write a report of a run, or of what differs between two, as one HTML file.

    The file holds everything it shows: it opens in a browser without a network, and can be
    sent as it is.  Of two runs, OTHER is held against RUN.

    \b
    Example:
      recup report
      recup report 20261124T0233 -o monday.html
      recup report monday tuesday
    """
    from recup.report.html import write_comparison, write_report
    from recup.terminal import bytes_text, inert, print_json

    if len(runs) > 2:
        raise click.UsageError("A report is of one run, or of two: RUN and OTHER.")
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(_opened(name)) for name in runs or ("last",)]
        ids = [run.run_id for run in opened]
        path = output or f"recup-{'-'.join(ids)}.html"
        size = write_comparison(*opened, path) if len(opened) == 2 else write_report(opened[0], path)
    document = {"path": str(Path(path).absolute()), "run_ids": ids, "size_bytes": size}
    print_json(document) if as_json else click.echo(inert(f"{path}: {bytes_text(size)}"))


@main.command("check")
@_run_argument
@_json_option
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

    with _opened(run) as opened:
        findings, name = completeness(opened), opened.run_id
    document = finding_rows(findings)
    if as_json:
        print_json({"run_id": name, "verdict": verdict(findings), "findings": document})
    else:
        check_page(Page(), name, document)
    if any(f.level == "loss" for f in findings):
        sys.exit(INCOMPLETE)


@main.command("serve")
@click.argument("root", required=False)
@click.option("--host", metavar="HOST", help="Where to listen.  [default: 127.0.0.1, for this machine alone]")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port to listen on.  [default: any that is free]"
)
@click.option("--open", "is_opened", is_flag=True, help="Open the address in a browser.")
@_json_option
def serve_verb(root: str | None, *, host: str | None, port: int, is_opened: bool, as_json: bool) -> None:
    """Show the runs of a directory in a browser: reports, comparisons, and runs as they grow.

    ROOT is the directory that holds runs; by default $RECUP_ROOT, else ./recup-runs.  The
    address is printed once, with a random token: who has it can read these runs, and
    nothing else of this machine.  Ctrl-C ends it.

    \b
    Example:
      recup serve
      recup serve /scratch/runs --port 8800 --open
    """
    import asyncio
    import webbrowser

    from recup.rundir import runs_root
    from recup.serve.server import serve
    from recup.terminal import complain

    place = runs_root(root)

    def started(address: str) -> None:
        if as_json:
            click.echo(json.dumps({"url": address, "root": str(place)}))
        else:
            click.echo(f"Runs of {place}:\n  {address}\nCtrl-C ends it.")
        sys.stdout.flush()
        if is_opened:
            webbrowser.open(address)

    if host is not None and host not in ("127.0.0.1", "localhost", "::1"):
        complain(
            f"listening on {host}: who reaches it and has the address reads these runs, and the connection is not "
            "encrypted. Safer: leave out --host and use ssh -L."
        )
    asyncio.run(serve(place, host=host, port=port, started=started))


@main.command("ingest")
@click.argument("kind", type=click.Choice(["darshan"]))
@click.argument("files", nargs=-1, required=True, metavar="LOG_OR_DIRECTORY...")
@click.option("--run", "run", default="last", show_default=True, help="The run they belong to.")
@_json_option
def ingest_verb(kind: str, files: tuple[str, ...], run: str, as_json: bool) -> None:
    """Read files of other tools into a run: so far the logs Darshan wrote.

    Copies of the logs are kept in the run.  A log it holds already is left alone, and of a
    damaged one all is read that stands before the damage.

    \b
    Example:
      recup ingest darshan /scratch/darshan-logs --run last
    """
    from dataclasses import asdict

    from recup.ingest.darshan import ingest_darshan
    from recup.pages import ingest_page
    from recup.terminal import Page, print_json, progress

    with progress(f"reading {kind}") as show:
        report = ingest_darshan(run, files, show)
    document = {"path": str(report.run), "logs": [asdict(log) for log in report.logs]}
    print_json(document) if as_json else ingest_page(Page(), document)


@main.command("seal")
@_run_argument
@click.option("--keep-spool", is_flag=True, help="Leave the rows as they were written beside the tables.")
@click.option("--force", is_flag=True, help="Seal although a process may still be writing.")
@_json_option
def seal_verb(run: str, keep_spool: bool, force: bool, as_json: bool) -> None:
    """Turn what the servers of a run wrote into compact Parquet tables.

    Every table is read back before the rows as written are removed.  Sealing twice, or
    again after an interruption, does no harm.

    \b
    Example:
      recup seal last
    """
    from recup.pages import seal_page
    from recup.store import seal
    from recup.terminal import Page, print_json, progress

    _take_darshan_logs_of(run)
    try:
        with progress("sealing") as show:
            report = seal(run, keep_spool=keep_spool, force=force, progress=show)
    except OSError as reason:
        place = reason.filename or run
        raise RecupError(
            f"{place} cannot be written: {reason.strerror}. The rows as written stay; make room and seal again."
        ) from reason
    document = {
        "path": str(report.path),
        "row_counts": report.row_counts,
        "sizes_bytes": report.sizes_bytes,
        "damaged_files": list(report.damaged_files),
        "spool_removed": report.spool_removed,
        "duration_s": report.duration_s,
    }
    if as_json:
        print_json(document)
    else:
        seal_page(Page(), document)


@main.command("schema")
@click.argument("table", required=False)
@_json_option
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


@main.command("doctor")
@_root_option
@click.option("--no-cluster", is_flag=True, help="Do not start a tiny cluster to see its rows arrive.")
@click.option(
    "--darshan",
    metavar="[=PATH]",
    is_flag=False,
    flag_value="auto",
    help="Check Darshan alone; PATH: libdarshan or its prefix.",
)
@_json_option
def doctor_verb(root: str | None, no_cluster: bool, darshan: str | None, as_json: bool) -> None:
    """Tell whether this environment would record everything, and what to mend.

    Checks versions, the file system, limits and configuration, and records a cluster of
    one worker; with --darshan, whether libdarshan is found, loads and leaves a log.  Exit
    code 1 when there is a problem.

    \b
    Example:
      recup doctor
      recup doctor --no-cluster --json
      recup doctor --darshan=/opt/darshan
    """
    from dataclasses import asdict

    from recup.darshan_doctor import examine_darshan
    from recup.doctor import examine
    from recup.pages import doctor_page
    from recup.rundir import runs_root
    from recup.terminal import Page, print_json

    if darshan is not None:
        found = examine_darshan(None if darshan == "auto" else darshan, runs_root(root))
    else:
        found = examine(runs_root(root), live=not no_cluster)
    checks = [asdict(check) for check in found]
    if as_json:
        print_json(checks)
    else:
        doctor_page(Page(), checks)
    if any(check["level"] == "problem" for check in checks):
        sys.exit(1)


@main.command("darshan-env")
@_root_option
@click.option("--run", "run", metavar="DIR", help="The run, made if need be.  [default: a new one]")
@click.option("--darshan", metavar="PATH", help="libdarshan or its prefix.  [default: it is looked for]")
@_json_option
def darshan_env_verb(root: str | None, run: str | None, darshan: str | None, as_json: bool) -> None:
    """Print shell lines after which all that a job script starts is recorded, with Darshan.

    For workers without a nanny (`--no-nanny`, dask-mpi): a nanny starts its worker under
    Darshan by itself where the run asks for it, which `recup run --darshan` does.

    \b
    Example:
      eval "$(recup darshan-env --run /scratch/runs/monday)"
      mpirun -n 4 python script.py
    """
    from recup.darshan_doctor import darshan_variables, shell_lines
    from recup.rundir import create_run, runs_root
    from recup.terminal import print_json

    try:
        if run is None:
            path = create_run(runs_root(root), way="preload")
        else:
            path = Path(run).absolute()
            if not (path / "run.json").exists():
                create_run(path.parent, way="preload", run_id=path.name)
    except OSError as reason:
        raise RecupError(f"The run cannot be made: {reason}. Name another place with --root or --run.") from reason
    variables = darshan_variables(path, darshan)
    print_json({"run": str(path), "variables": variables}) if as_json else click.echo(shell_lines(path, variables))
