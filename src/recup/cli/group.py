"""The group of all verbs, and what they share: options, how a run is opened, exit codes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from recup import __version__
from recup.errors import RecupError, RunDamaged
from recup.questions import QUESTIONS

if TYPE_CHECKING:
    from recup.store import Run

INCOMPLETE = 3
"""Exit code of `check` when something is missing."""
SLOWER = 3
"""Exit code of `compare --fail-over` when B took too long."""

Function = TypeVar("Function", bound=Callable[..., Any])
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
        except Exception as reason:
            damaged = _damaged_table(reason)
            if damaged is None:
                raise
            from recup.terminal import complain

            complain(damaged)
            ctx.exit(1)


def _damaged_table(reason: Exception) -> RunDamaged | None:
    """Return what to say where DuckDB came upon damage inside a sealed table; None of any other error."""
    if not type(reason).__module__.endswith("duckdb"):
        return None
    from recup.store import one_line

    told = one_line(reason).rstrip(".")
    return RunDamaged(f"{told}. Restore that file from a copy of the run.") if "tables/" in told else None


def json_option(function: Function) -> Function:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")(function)


def root_option(function: Function) -> Function:
    """Add `--root`."""
    text = "Directory that holds runs.  [default: $RECUP_ROOT, else ./recup-runs]"
    return click.option("--root", type=click.Path(file_okay=False), help=text)(function)


def run_argument(function: Function) -> Function:
    """Add the argument RUN."""
    return click.argument("run", default="last")(function)


def format_option(function: Function) -> Function:
    """Add `--format`."""
    forms = click.Choice(("text", "md", "json"))
    text = "Text for a terminal, Markdown, or one JSON document."
    return click.option("--format", "form", type=forms, default="text", show_default=True, help=text)(function)


def print_as(form: str, document: Any, page_function: Callable[..., None], *more: Any) -> None:
    """Print a document as text, Markdown or JSON."""
    from recup.markdown import MarkdownPage
    from recup.terminal import Page, print_json

    if form == "json":
        print_json(document)
    else:
        page_function(MarkdownPage() if form == "md" else Page(), document, *more)


@contextlib.contextmanager
def opened_run(name: str) -> Iterator[Run]:
    """Open a run by path or name for a block."""
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
