"""Results held by prefix: how much at once, and when that was most.

Part of `recup.analyse.memory`.  Of moments at which equally much was held the first is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recup.analyse.budget_record import numbers
from recup.analyse.memory_rows import HELD_SQL, SPILLED_PREFIXES_SQL
from recup.analyse.rows import by_code

if TYPE_CHECKING:
    from recup.store import Run

TIMES_SQL = "select started_s, ended_s from run_times"

_SCHEMA = pa.schema(
    [
        ("prefix", pa.string()),
        ("result_count", pa.int64()),
        ("result_bytes", pa.int64()),
        ("largest_bytes", pa.int64()),
        ("held_at_peak_bytes", pa.int64()),
        ("held_at_peak_share", pa.float64()),
        ("run_peak_at_s", pa.float64()),
        ("run_peak_bytes", pa.int64()),
        ("peak_held_bytes", pa.int64()),
        ("peak_at_s", pa.float64()),
        ("held_mean_s", pa.float64()),
        ("spilled_bytes", pa.int64()),
    ]
)


def held_by_prefix(run: Run) -> pa.Table:
    """Return the rows of `recup.analyse.memory.results_held`."""
    rows = run.sql(HELD_SQL).to_arrow_table()
    if not rows.num_rows:
        return _SCHEMA.empty_table()
    ((zero_s, end_s),) = run.sql(TIMES_SQL).fetchall()
    spilled = dict(run.sql(SPILLED_PREFIXES_SQL).fetchall())
    encoded = rows["prefix"].combine_chunks().dictionary_encode(null_encoding="encode")
    names, code = encoded.dictionary.to_pylist(), numbers(pa.chunked_array([encoded.indices])).astype(np.int64)
    nbytes = rows["nbytes"].to_numpy()
    stored, gone = numbers(rows["stored_s"]), numbers(rows["gone_s"])
    has_gone = ~np.isnan(gone)
    at = np.concatenate([gone[has_gone], stored])
    # Ends stand first and stay there: what goes as another comes was not held with it.
    order = np.argsort(at, kind="stable")
    at = at[order]
    change = np.concatenate([-nbytes[has_gone], nbytes])[order]
    peak_s, peak_bytes = _peak(at, change)
    of_step = np.concatenate([code[has_gone], code])[order]
    by_prefix = by_code(of_step)
    bounds = np.searchsorted(of_step[by_prefix], np.arange(len(names) + 1)).tolist()
    is_there = (stored <= peak_s) & ~(gone <= peak_s)
    held_s = np.where(has_gone, gone, end_s) - stored
    largest = np.zeros(len(names), np.int64)
    np.maximum.at(largest, code, nbytes)
    count, seconds = np.bincount(code, minlength=len(names)), np.bincount(code, held_s, len(names))
    sizes, at_peak = _total(code, nbytes, len(names)), _total(code[is_there], nbytes[is_there], len(names))
    found = []
    for each, name in enumerate(names):
        steps = by_prefix[bounds[each] : bounds[each + 1]]
        own_s, own_bytes = _peak(at[steps], change[steps])
        found.append(
            {
                "prefix": name,
                "result_count": int(count[each]),
                "result_bytes": int(sizes[each]),
                "largest_bytes": int(largest[each]),
                "held_at_peak_bytes": int(at_peak[each]),
                "held_at_peak_share": int(at_peak[each]) / peak_bytes if peak_bytes else None,
                "run_peak_at_s": peak_s - zero_s,
                "run_peak_bytes": peak_bytes,
                "peak_held_bytes": own_bytes,
                "peak_at_s": own_s - zero_s,
                "held_mean_s": float(seconds[each] / count[each]),
                "spilled_bytes": spilled.get(name),
            }
        )
    found.sort(
        key=lambda row: (-row["held_at_peak_bytes"], -row["peak_held_bytes"], row["prefix"] is None, row["prefix"])
    )
    return pa.Table.from_pylist(found, schema=_SCHEMA)


def _peak(at: npt.NDArray[Any], change: npt.NDArray[Any]) -> tuple[float, int]:
    """Return the first moment of the largest sum of changes, and that sum."""
    levels = np.cumsum(change)
    highest = int(np.argmax(levels))
    return float(at[highest]), int(levels[highest])


def _total(code: npt.NDArray[Any], weight: npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
    # Sums of whole bytes are exact as floats too, below 2**53.
    return np.bincount(code, weight, count).astype(np.int64)
