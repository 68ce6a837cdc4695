"""What servers say of their own record, held against what is there: ends, files, rows, counters.

Covers the table `spools` alone: one row per server with its status and what was found of its
files.  It does not cover what tables say of each other (`recup.completeness`).
"""

from __future__ import annotations

import json
from typing import Any

from recup.findings import LOST, Finding, Number


def spool_findings(spools: list[dict[str, Any]], unreadable: dict[str, str]) -> list[Finding]:
    """Return what is found of rows of `spools`, and of sealed tables that cannot be read (`Run.unreadable`)."""
    return [
        *_ends(spools),
        *_files(spools),
        *_row_counts(spools, unreadable),
        *_unwritten(spools),
        *_counters(spools),
    ]


def _name(spool: dict[str, Any]) -> str:
    return f"{spool['server_id']}" + (f" (epoch {spool['epoch']})" if spool["epoch"] else "")


def _ends(spools: list[dict[str, Any]]) -> list[Finding]:
    """Whether each server's record ended in order."""
    found = []
    for spool in spools:
        if spool["is_closed"] is None:
            found.append(
                Finding(
                    "warning", _name(spool), "Its status is missing or damaged: whether all was written is not known."
                )
            )
        elif spool["is_alive"] and not spool["is_closed"]:
            found.append(Finding("info", _name(spool), "It is still recording."))
        elif not spool["is_closed"]:
            when = spool["last_sign_ns"]
            found.append(
                Finding(
                    "loss",
                    _name(spool),
                    "Its record was cut off, as when a process is killed: rows of at most its last second are missing.",
                    {"at_most_s": 1.0, "last_sign_s": None if when is None else when / 1e9},
                )
            )
    # A log that was read in is a record, but no server.
    servers = {spool["server_id"] for spool in spools if spool["role"] != "darshan"}
    if servers and all(spool["is_closed"] is True for spool in spools):
        count = len(servers)
        found.append(
            Finding("ok", "servers", f"The records of all {count} servers ended in order.", {"server_count": count})
        )
    return found


def _files(spools: list[dict[str, Any]]) -> list[Finding]:
    """Whether every file could be read to its end."""
    found = []
    for spool in spools:
        for name, lost_bytes, reason in json.loads(spool["damages"]):
            if lost_bytes is None:
                found.append(Finding("info", _name(spool), f"{name} in its spool is {reason} and was not read."))
            else:
                found.append(
                    Finding(
                        "loss",
                        _name(spool),
                        f"The last {lost_bytes} bytes of {name} cannot be read ({reason}).",
                        {"lost_bytes": lost_bytes},
                    )
                )
    if spools and not any(finding.level == "loss" for finding in found):
        count = sum(len(json.loads(spool["file_rows"])) for spool in spools)
        found.append(Finding("ok", "files", f"All {count} files were read to their end.", {"file_count": count}))
    return found


def _row_counts(spools: list[dict[str, Any]], unreadable: dict[str, str]) -> list[Finding]:
    """Whether files hold at least the rows their servers said they had written, and sealed tables are still there."""
    found, total = [], 0
    for name, wrong in unreadable.items():
        count = sum(json.loads(spool["file_rows"]).get(name, 0) for spool in spools)
        numbers: dict[str, Number] = {} if name == "keys" else {"missing_row_count": count}
        found.append(
            Finding(
                "loss",
                f"tables/{name}.parquet",
                f"It {wrong}: answers are given without its rows. Restore it from a copy of the run.",
                numbers,
            )
        )
    for spool in spools:
        rows, said = json.loads(spool["file_rows"]), json.loads(spool["status_rows"])
        total += sum(rows.values())
        for table, count in said.items():
            missing = int(count) - rows.get(table, 0)
            if missing > 0:
                found.append(
                    Finding(
                        "loss",
                        _name(spool),
                        f"{missing} of {int(count)} rows it wrote to {table} are not there.",
                        {"missing_row_count": missing, "written_row_count": int(count)},
                    )
                )
    if spools and not found:
        found.append(Finding("ok", "rows", f"All {total} rows that servers wrote are there.", {"row_count": total}))
    return found


def _unwritten(spools: list[dict[str, Any]]) -> list[Finding]:
    """Losses that not even a row of `losses` could be written of."""
    found = []
    for spool in spools:
        for name, count in json.loads(spool["unwritten_losses"]).items():
            kind, _, table = name.partition(":")
            what = f"{int(count)} rows" if count >= 0 else "An unknown number of rows"
            what += f" of {table}" if table else ""
            found.append(
                Finding(
                    "loss",
                    _name(spool),
                    f"{what} {LOST.get(kind, kind)}; this could only be noted in its status.",
                    {"lost_row_count": int(count) if count >= 0 else None},
                )
            )
    return found


def _counters(spools: list[dict[str, Any]]) -> list[Finding]:
    """Whether recup counted what Dask counted."""
    found, equal = [], 0
    for spool in spools:
        counters = json.loads(spool["counters"])
        for name, by_dask in counters.items():
            if not name.endswith("_dask"):
                continue
            what = name.removesuffix("_dask")
            recorded = counters.get(f"{what}_recorded", 0) + counters.get(f"{what}_compound", 0)
            if recorded == by_dask:
                equal += 1
                continue
            numbers: dict[str, Number] = {"dask_count": by_dask, "recorded_count": recorded}
            told = f"Dask counted {by_dask:g} {what.replace('_', ' ')} and recup {recorded:g}"
            if spool["is_closed"]:
                is_loss = recorded < by_dask
                if is_loss and what == "transfers_outgoing":
                    is_loss = False
                    told += "; those whose receiver was gone before the end Dask counts, and logs nowhere"
                found.append(Finding("loss" if is_loss else "warning", _name(spool), f"{told}.", numbers))
            else:
                found.append(
                    Finding(
                        "info", _name(spool), f"{told} when it last told; its record did not end in order.", numbers
                    )
                )
    if equal:
        found.append(
            Finding("ok", "counters", f"recup counted what Dask counted, in {equal} counts.", {"equal_count": equal})
        )
    return found
