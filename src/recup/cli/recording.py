"""Verbs that record and keep: run, ingest, seal, doctor, darshan-env."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recup.cli.group import (
    json_option,
    main,
    root_option,
    run_argument,
)
from recup.errors import RecupError

if TYPE_CHECKING:
    pass

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


@main.command("run", cls=_Untouched, context_settings={"allow_interspersed_args": False})
@root_option
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


@main.command("ingest")
@click.argument("kind", type=click.Choice(["darshan"]))
@click.argument("files", nargs=-1, required=True, metavar="LOG_OR_DIRECTORY...")
@click.option("--run", "run", default="last", show_default=True, help="The run they belong to.")
@json_option
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
    if all(log.state == "unreadable" for log in report.logs):
        raise RecupError(f"No Darshan log was read: there is none in {', '.join(files)}.")


@main.command("seal")
@run_argument
@click.option("--keep-spool", is_flag=True, help="Leave the rows as they were written beside the tables.")
@click.option("--force", is_flag=True, help="Seal although a process may still be writing.")
@json_option
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


@main.command("doctor")
@root_option
@click.option("--no-cluster", is_flag=True, help="Do not start a tiny cluster to see its rows arrive.")
@click.option(
    "--darshan",
    metavar="[=PATH]",
    is_flag=False,
    flag_value="auto",
    help="Check Darshan alone; PATH: libdarshan or its prefix.",
)
@json_option
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
@root_option
@click.option("--run", "run", metavar="DIR", help="The run, made if need be.  [default: a new one]")
@click.option("--darshan", metavar="PATH", help="libdarshan or its prefix.  [default: it is looked for]")
@json_option
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
