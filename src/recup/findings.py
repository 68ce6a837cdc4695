"""What a check of a run found, in the form all checks share."""

from __future__ import annotations

import dataclasses

Number = int | float | None
LEVELS = ("loss", "warning", "info", "ok")


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked.

    Attributes
    ----------
    level : str
        ``loss``, ``warning``, ``info`` or ``ok``.
    subject : str
        Server, table or check it is about.
    statement : str
        What was found, as a sentence.
    numbers : dict
        The numbers in it, by name.
    """

    level: str
    subject: str
    statement: str
    numbers: dict[str, Number] = dataclasses.field(default_factory=dict)


LOST = {
    "dropped": "were dropped",
    "degraded": "were kept in part",
    "hook_failed": "are missing because a hook failed",
    "hook_disabled": "are missing because a hook was switched off",
    "not_captured": "were not captured",
    "gap": "are missing in a gap",
    "write_failed": "could not be written",
    "damaged": "are in a damaged part of a file",
}
"""What became of rows, by kind of loss."""
