"""Verbs on several runs, and pages for a browser: compare, changes, report, serve."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recup.cli.group import (
    SLOWER,
    json_option,
    main,
    opened_run,
)

if TYPE_CHECKING:
    from recup.store import Run


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
        yield tuple([stack.enter_context(opened_run(name)) for name in side] for side in (a, b))  # type: ignore[misc]


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
@json_option
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
@json_option
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


@main.command("report")
@click.argument("runs", nargs=-1, metavar="[RUN] [OTHER]")
@click.option(
    "-o",
    "output",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="File to write.  [default: recup-RUN.html here]",
)
@json_option
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
        opened = [stack.enter_context(opened_run(name)) for name in runs or ("last",)]
        ids = [run.run_id for run in opened]
        path = output or f"recup-{'-'.join(ids)}.html"
        first, *others = opened
        size = write_comparison(first, others[0], path) if others else write_report(first, path)
    document = {"path": str(Path(path).absolute()), "run_ids": ids, "size_bytes": size}
    print_json(document) if as_json else click.echo(inert(f"{path}: {bytes_text(size)}"))


@main.command("serve")
@click.argument("root", required=False)
@click.option("--host", metavar="HOST", help="Where to listen.  [default: 127.0.0.1, for this machine alone]")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port to listen on.  [default: any that is free]"
)
@click.option("--open", "is_opened", is_flag=True, help="Open the address in a browser.")
@json_option
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
