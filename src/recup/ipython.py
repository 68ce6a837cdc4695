"""`%load_ext recup`: every cluster a notebook starts or joins from then on is recorded.

Covers switching recording on in this kernel and the magic ``%recup``, which runs any
command of the command line in the notebook.  It changes no client that exists already:
use ``with recup.record(client)`` for those.
"""

from __future__ import annotations

import shlex
from typing import Any

import dask


def register(shell: Any) -> None:
    """Record clusters and clients made from now on, and define ``%recup``."""
    for server in ("scheduler", "client"):
        preloads = dask.config.get(f"distributed.{server}.preload", None) or []
        preloads = [preloads] if isinstance(preloads, str) else list(preloads)
        if not any(name.startswith("recup.preload") for name in preloads):
            dask.config.set({f"distributed.{server}.preload": [*preloads, "recup.preload"]})
    dask.config.set({"recup.attach": True})
    shell.register_magic_function(recup_magic, "line", "recup")


def recup_magic(line: str) -> None:
    """Run a recup command: ``%recup info last``."""
    import click

    from recup.cli import main
    from recup.terminal import complain

    try:
        words = shlex.split(line)
    except ValueError as reason:
        complain(f"{reason}: {line}")
        return
    try:
        main(words, prog_name="%recup", standalone_mode=False)
    except click.ClickException as reason:
        complain(reason.format_message())
