# cython: annotation_typing=False
"""The graph as the scheduler runs it: tasks, edges, and what was fused into what.

Covers reading the scheduler's task states right after a graph arrived.  Everything that
stands on unstable ground of Dask (run_spec, fused subgraphs, spans) is behind a guard
here, and what is missing is null.  It does not cover the graph before optimization.

Where there is a C compiler this module is compiled as it stands, as `transitions` is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from types import BuiltinFunctionType, FunctionType
from typing import Any

from recup.capture.redaction import annotations_text
from recup.capture.text import json_text
from recup.spool import Spool

_WAITING_TASKS = 8192
"""Tasks of one graph read at a time: their rows are written before more are, or memory would grow with the graph."""
_PATIENCE_S = 1.0
"""The event loop waits this long for all of a graph, at most ..."""
_PATIENCE_AT_A_TIME_S = 0.1
"""... and not again when rows were not written in this."""
_ANNOTATIONS_KEPT = 100

GraphReader = Callable[[int, Iterable[Any], bool], tuple[int, str | None, str | None]]

try:
    from dask._task_spec import _execute_subgraph
except ImportError:  # before dask 2024.12 nothing is fused this way
    _execute_subgraph = None


def function_name(function: Any) -> str | None:
    """Return the dotted name of a function, the class name of another callable, or None."""
    try:
        for _ in range(8):
            inner = getattr(function, "func", None)
            if inner is None or not callable(inner) or isinstance(function, FunctionType):
                break
            function = inner
        if not callable(function):
            return None
        if isinstance(function, (FunctionType, BuiltinFunctionType, type)):
            return f"{function.__module__}.{function.__qualname__}"
        name, kind = getattr(function, "__name__", None), type(function)
        if isinstance(name, str):  # e.g. numpy's ufuncs and dispatched functions
            module = getattr(function, "__module__", None)
            return f"{module if isinstance(module, str) else kind.__module__}.{name}"
        return f"{kind.__module__}.{kind.__qualname__}"
    except Exception:  # noqa: BLE001 - a user's callable may raise from any attribute
        return None


def graph_reader(spool: Spool, scheduler: Any) -> GraphReader:
    """Return a function that records the given tasks of the scheduler as one submission.

    Tasks that an earlier submission brought and that still stand are passed over, unless
    told otherwise.  It returns the number of tasks recorded, and the id and the JSON names
    of their span (None where spans are not available).
    """
    put_task, put_dependency = spool.extender("tasks"), spool.extender("dependencies")
    put_fused = spool.extender("fused_tasks")

    def read(submission: int, keys: Iterable[Any], everything: bool) -> tuple[int, str | None, str | None]:
        # The names live only as long as this call: they are keyed by the user's functions.
        names: dict[Any, str | None] = {}
        tasks = scheduler.tasks
        new_count = 0
        span_id: str | None = None
        degraded = 0
        patience_s = _PATIENCE_S
        shown: dict[str, str | None] = {}
        function_before: Any = names  # the function of no task
        group_before: Any = None
        name = prefix_name = group_name = None
        for key in keys:
            task = tasks.get(key)
            if task is None:
                continue
            # Scattered data has no run_spec and comes with no submission of its own.
            spec = task.run_spec
            if spec is not None and not everything and task.state != "released":
                continue
            new_count += 1
            group = task.group
            if group is not group_before:  # the tasks of a group come one after the other
                group_before, group_name, prefix_name = group, group.name, group.prefix.name
                if span_id is None:
                    span_id = getattr(group, "span_id", None)
            try:
                function = getattr(spec, "func", None)
                if function is not function_before:
                    function_before, name = function, _kept_name(function, names)
                if function is _execute_subgraph and function is not None:
                    for inner_key, inner in spec.args[0].items():
                        put_fused((submission, key, inner_key, function_name(getattr(inner, "func", None))))
            except Exception:  # noqa: BLE001 - run_spec is Dask's own affair
                name, function_before, degraded = None, names, degraded + 1
            dependencies = task.dependencies
            for dependency in dependencies:
                put_dependency((submission, key, dependency.key))
            user, generation, order = _priority(task.priority)
            annotations = task.annotations
            put_task(
                (
                    submission, key, prefix_name, group_name, name, user, generation, order, len(dependencies),
                    _shown(annotations, shown) if annotations else None, _restrictions(task), task.retries, bool(task.actor),
                )
            )  # fmt: skip
            if new_count % _WAITING_TASKS == 0:
                patience_s = _patience_left(spool, patience_s)
        if degraded:
            spool.lose("degraded", "tasks", "the function of some tasks could not be read", degraded)
        return new_count, span_id, _span_names(scheduler, span_id)

    return read


def _kept_name(function: Any, names: dict[Any, str | None]) -> str | None:
    if type(function) is not FunctionType:
        return None if function is None else function_name(function)
    name = names.get(function)
    if name is None:
        name = names[function] = function_name(function)
    return name


def _shown(annotations: Any, shown: dict[str, str | None]) -> str | None:
    """Return annotations as `annotations_text` does; those of a graph's tasks are mostly the same."""
    text = json_text(annotations)
    if text not in shown:
        if len(shown) >= _ANNOTATIONS_KEPT:
            shown.clear()
        shown[text] = annotations_text(annotations)
    return shown[text]


def _patience_left(spool: Spool, patience_s: float) -> float:
    """Have the writer thread write what waits, and return how long it may still be waited for."""
    if patience_s <= 0:
        return 0.0
    begun_s = monotonic()
    is_written = spool.flush(min(patience_s, _PATIENCE_AT_A_TIME_S))
    return patience_s - (monotonic() - begun_s) if is_written else 0.0


def _priority(priority: Any) -> tuple[Any, Any, Any]:
    try:
        user, generation, order = priority
        return user, generation, order
    except (TypeError, ValueError):
        return None, None, None


def _restrictions(task: Any) -> str | None:
    worker, host, resource = task.worker_restrictions, task.host_restrictions, task.resource_restrictions
    if not (worker or host or resource):
        return None
    return json_text(
        {
            "workers": sorted(map(str, worker or ())),
            "hosts": sorted(map(str, host or ())),
            "resources": dict(resource or {}),
            "loose": bool(task.loose_restrictions),
        }
    )


def _span_names(scheduler: Any, span_id: str | None) -> str | None:
    try:
        return json_text(list(scheduler.extensions["spans"].spans[span_id].name)) if span_id else None
    except Exception:  # noqa: BLE001 - spans are an optional extension
        return None
