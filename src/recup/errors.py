"""The errors recup raises on purpose, each something its reader can act on.

Covers what a caller or a person at a terminal can mend: a path, a version, a missing
extra, a question that cannot be answered.  A bug in recup is never one of these and
keeps its traceback.  Inside a workload nothing is raised at all (see `recup.spool`).
"""


class RecupError(Exception):
    """What went wrong, where, and what to do about it; the command line prints just that."""


class RunNotFound(RecupError):
    """No run at that path or under that name."""


class RunTooNew(RecupError):
    """The run was written with a schema this recup does not know yet."""


class RunDamaged(RecupError):
    """The run directory holds something recup cannot read at all."""


class BadQuery(RecupError):
    """The SQL, table, column or key asked for does not exist in this run."""


class MissingExtra(RecupError):
    """An optional library is needed and not installed; the message says how to install it."""
