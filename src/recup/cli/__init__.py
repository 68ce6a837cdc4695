"""The command line: `recup VERB ...`, also `dask recup VERB ...`.

Each verb opens a run, asks one question and prints the answer (`recup.pages`), or its
document with `--json`.  Errors a reader can mend are one line on stderr and exit code 1;
wrong usage is 2; `check` ends with 3 where something is missing, `compare --fail-over`
where B is too slow.  A bug keeps its traceback.  Every `dask` command imports this module,
so it imports nothing heavy.
"""

from recup.cli import asking, comparing, recording
from recup.cli.group import main

__all__ = ["asking", "comparing", "main", "recording"]
