"""The graph as the user wrote it: layers and expressions before Dask optimizes them.

Covers HighLevelGraph layers (array, bag, delayed, xarray), expression trees (dataframe,
and array where Dask makes expressions of them), graphs of `submit`, `map` and `get`, and
the digest by which a client's submission is found again on the scheduler.

Never materialises a graph, never asks an object for something it would have to compute
(partition counts and dtypes appear only where Dask has them at hand), never keeps an
argument value.  It does not cover the graph as run (`recup.capture.taskgraph`).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

from dask.blockwise import Blockwise
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from recup.capture.redaction import annotations_text
from recup.capture.taskgraph import function_name
from recup.capture.text import json_text, plain

try:
    from dask.blockwise import _make_dims
except ImportError:
    _make_dims = None

LAYERS_LIMIT = 5_000
"""Layers described of one submission; the others are counted."""
TIME_LIMIT_NS = 50_000_000
"""Time spent on describing one submission; the layers left are counted."""
DIGEST_KEYS_LIMIT = 10_000
_FINALIZER = "finalize-hlgfinalizecompute-"
"""Layers that `compute` adds to gather a collection's blocks; the user did not write them."""
_BLOCKS_LIMIT = 64
_NAMES_LIMIT = 10_000
_COLUMNS_LIMIT = 100

Put = Callable[[tuple[Any, ...]], None]


def keys_digest(keys: Iterable[Hashable]) -> str | None:
    """Return a digest of a set of keys that is the same in every process; None above 10,000 keys.

    Neither the order of the keys nor repetitions matter.  Costs about a microsecond a key.
    """
    distinct = keys if isinstance(keys, (set, frozenset)) else set(keys)
    if len(distinct) > DIGEST_KEYS_LIMIT:
        return None
    # A zero byte tells the key ('x', 0) from the key "('x', 0)".
    texts = [key if type(key) is str else f"\0{key!r}" for key in distinct]
    if len(texts) > 1:
        texts.sort()
    text = "\n".join([str(len(texts)), *texts])
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


class Facts(NamedTuple):
    """What is known of a collection, or of the layer that is its output."""

    collection_type: str | None = None
    shape: str | None = None
    dtype: str | None = None
    chunks: str | None = None
    details: dict[str, Any] | None = None


class Description:
    """The layers of one submission, written as they are found.

    Attributes
    ----------
    left_count : int
        Layers that are not described because one of the limits was reached.
    left_out : list of str
        What is missing, in words.
    """

    def __init__(self, put: Put, submission: int):
        self._put = put
        self._submission = submission
        self._began = time.perf_counter_ns()
        self._seen: set[Any] = set()
        self._row_count = 0
        self._tasks: int | None = 0
        self._is_countable = True
        self._outputs: dict[Any, Facts] = {}
        self.left_count = 0
        self.left_out: list[str] = []

    @property
    def layer_count(self) -> int | None:
        """Distinct layers before optimization; None when they could not all be counted."""
        return self._row_count + self.left_count if self._is_countable and self._seen else None

    @property
    def task_count(self) -> int | None:
        """Tasks of all layers; None when a layer does not tell without being materialised."""
        return self._tasks if self._is_countable and not self.left_count and self._seen else None

    def describe(self, graph: Any, wanted_count: int, collections: list[Any], entered: Any) -> None:
        """Describe a submission.

        Parameters
        ----------
        graph : Expr, HighLevelGraph or dict
            What the client is about to send; already optimized in some cases.
        wanted_count : int
            Distinct keys the client asks for.
        collections : list
            The collections being submitted, where they are known.
        entered : object or None
            The xarray object whose method was called.
        """
        kind = type(graph).__name__
        if collections:
            self._add_collections(graph, collections, entered)
        elif kind in ("LLGExpr", "dict"):
            self._add_tasks(graph)
        elif kind in ("_MapExpr", "_MapLayer"):
            self._add_map(graph, wanted_count)
        else:
            graphs = [graph] if isinstance(graph, HighLevelGraph) else _layered_graphs(graph)
            for each in graphs:
                self._add_layers(each, is_optimized=False)
            if not graphs and _is_expression(graph):
                self._add_expression(graph, {"stage": "as sent"})

    def give_up(self) -> None:
        """Say that describing failed part of the way: nothing is known of the whole."""
        self._is_countable = False

    # ------------------------------------------------------------ collections

    def _add_collections(self, graph: Any, collections: list[Any], entered: Any) -> None:
        """Describe collections; their layered graphs are taken from the expression where it still has them."""
        roots: list[Any] = []
        layered: list[Any] = []
        for collection in collections:
            root = _expression_of(collection)
            (layered if root is None else roots).append(collection if root is None else root)
            if root is not None:
                self._outputs[root._name] = _expression_collection_facts(collection)
        for collection in layered[:LAYERS_LIMIT]:
            self._outputs.update(_output_facts(collection))
            if self._is_out_of_time():
                break
        if _module_root(entered) == "xarray":
            self._outputs.update(_xarray_facts(entered))
        for root in roots:
            self._add_expression(root, None)
        # Mixed with layered graphs, expressions are materialised into them: then the collections are asked.
        is_optimized = isinstance(graph, (HighLevelGraph, dict))
        graphs = _layered_graphs(graph) if layered and not roots and not is_optimized else []
        for each in graphs:
            self._add_layers(each, is_optimized=False)
        if layered and not graphs:
            self._add_graphs_of(layered, is_optimized)

    def _add_graphs_of(self, collections: list[Any], is_optimized: bool) -> None:
        for position, collection in enumerate(collections):
            if self._is_out_of_time(4):
                self._is_countable = False
                self.left_out.append(f"the layers of {len(collections) - position} collections (out of time)")
                return
            found = _layered_graph_of(collection)
            if found is None:
                self._is_countable = False
                self.left_out.append(f"the graph of a {_type_name(collection)}, which does not show it")
            else:
                self._add_layers(found, is_optimized)

    # ------------------------------------------------------------ rows

    def _is_out_of_time(self, factor: int = 1) -> bool:
        return time.perf_counter_ns() - self._began > factor * TIME_LIMIT_NS

    def _is_new(self, name: Any) -> bool:
        """Whether a layer of that name is to be described now; counts those that no longer fit."""
        if name in self._seen:
            return False
        self._seen.add(name)
        if self.left_count or self._row_count >= LAYERS_LIMIT or self._is_out_of_time():
            self.left_count += 1
            return False
        return True

    def _row(
        self,
        name: Any,
        layer_type: str,
        is_materialized: bool | None,
        task_count: int | None,
        *,
        dependencies: Iterable[Any] = (),
        facts: Facts = Facts(),  # noqa: B008 - immutable
        annotations: Any = None,
    ) -> None:
        self._tasks = None if self._tasks is None or task_count is None else self._tasks + task_count
        details = facts.details or {}
        names = sorted(map(str, dependencies))
        if len(names) > _NAMES_LIMIT:
            details = {**details, "dependency_count": len(names)}
            names = names[:_NAMES_LIMIT]
        self._put(
            (
                self._submission, self._row_count, str(name), layer_type, is_materialized, task_count,
                json.dumps(names) if names else "[]", facts.collection_type, facts.shape, facts.dtype, facts.chunks,
                annotations_text(annotations), json_text(details) if details else None,
            )
        )  # fmt: skip
        self._row_count += 1

    def _add_layers(self, graph: Any, is_optimized: bool) -> None:
        dependencies = graph.dependencies
        for name, layer in graph.layers.items():
            if not str(name).startswith(_FINALIZER) and self._is_new(name):
                is_materialized, task_count = _materialized(layer)
                details: dict[str, Any] = {}
                if is_optimized and is_materialized and not isinstance(layer, MaterializedLayer):
                    # Optimizing may have materialised it before it could be looked at.
                    is_materialized = None
                    details["is_materialized"] = "not known: seen after optimization"
                facts = _layer_facts(layer, self._outputs.get(name), details)
                self._row(
                    name, type(layer).__name__, is_materialized, task_count,
                    dependencies=dependencies.get(name, ()), facts=facts, annotations=layer.annotations,
                )  # fmt: skip

    def _add_expression(self, root: Any, details: dict[str, Any] | None) -> None:
        stack = [root]
        while stack:
            node = stack.pop()
            name = node._name
            if name in self._seen:
                continue
            if self._is_out_of_time(4):
                self._is_countable = False
                self.left_out.append("further expressions (out of time)")
                return
            needed = [each for each in node.dependencies() if _is_expression(each)]
            stack.extend(reversed(needed))
            if self._is_new(name):
                facts = _expression_facts(node, self._outputs.get(name), details)
                names = [each._name for each in needed]
                self._row(name, type(node).__name__, None, None, dependencies=names, facts=facts)

    def _add_tasks(self, graph: Any) -> None:
        """Describe a low-level graph (`submit`, `get`) as one layer."""
        tasks = graph if isinstance(graph, dict) else graph.operands[0]
        if not isinstance(tasks, dict):
            if isinstance(tasks, HighLevelGraph):
                self._add_layers(tasks, is_optimized=False)
            return
        name: Any = getattr(graph, "_name", "graph")
        details = None
        if len(tasks) == 1:
            name, task = next(iter(tasks.items()))
            details = _function_details(task)
        if self._is_new(name):
            self._row(name, type(graph).__name__, True, len(tasks), facts=Facts(details=details))

    def _add_map(self, graph: Any, wanted_count: int) -> None:
        name = graph.key if isinstance(graph.key, str) else function_name(graph.func) or "map"
        # A large keyword argument becomes a task of its own, and only sizing it would tell.
        has_plain_arguments = all(type(each) in (int, float, bool, type(None)) for each in graph.kwargs.values())
        if self._is_new(name):
            self._row(
                name, type(graph).__name__, False, wanted_count if has_plain_arguments else None,
                facts=Facts(details=_function_details(graph)),
            )  # fmt: skip


# ---------------------------------------------------------------- layers


def _layered_graphs(graph: Any) -> list[Any]:
    """Return the HighLevelGraphs inside an expression, as they were before optimization."""
    found: list[Any] = []
    stack = [graph]
    while stack:
        node = stack.pop()
        if isinstance(node, HighLevelGraph):
            found.append(node)
        elif any(each.__name__ in ("HLGExpr", "_HLGExprSequence", "_ExprSequence") for each in type(node).__mro__):
            if type(node).__name__.endswith("Sequence"):
                stack.extend(reversed(node.operands))
            else:
                stack.append(node.operands[0])
    return found


def _layered_graph_of(collection: Any) -> Any:
    graph = getattr(collection, "dask", None)
    if graph is None and _module_root(collection) == "xarray":
        graph = collection.__dask_graph__()
    return graph if isinstance(graph, HighLevelGraph) else None


def _materialized(layer: Any) -> tuple[bool | None, int | None]:
    """Return whether a layer holds its tasks, and their number where it tells without making them."""
    if type(layer) is MaterializedLayer:
        return True, len(layer.mapping) if isinstance(layer.mapping, dict) else None
    is_materialized = bool(layer.is_materialized())
    try:
        if isinstance(layer, Blockwise):
            if layer.output_blocks:
                return is_materialized, len(layer.output_blocks)
            # Not `layer.dims`: it would leave its cache on the user's object.
            dims = layer.__dict__.get("_dims") or _make_dims(layer.indices, layer.numblocks, layer.new_axes)
            return is_materialized, math.prod(dims[index] for index in layer.output_indices)
        cached = layer.__dict__.get("_cached_dict")
        return is_materialized, len(cached) if is_materialized and type(cached) is dict else None
    except Exception:  # noqa: BLE001 - an odd layer keeps its number to itself
        return is_materialized, None


def _layer_facts(layer: Any, output: Facts | None, details: dict[str, Any]) -> Facts:
    if isinstance(layer, Blockwise):
        details.update(_function_details(getattr(layer, "task", None)) or {})
    told = layer.collection_annotations or {}
    output = output or Facts()
    details.update(output.details or {})
    if told.get("chunk_type") not in (None, "numpy.ndarray"):
        details["chunk_type"] = plain(told["chunk_type"])
    kind = told.get("type")
    return Facts(
        output.collection_type or (kind if isinstance(kind, str) else None),
        output.shape or _shape_text(told.get("shape")),
        output.dtype or (str(told["dtype"]) if told.get("dtype") is not None else None),
        output.chunks or _chunks_text(told.get("chunks")),
        details,
    )


def _function_details(task: Any) -> dict[str, Any] | None:
    """Return the name of the function a task calls; of its arguments nothing."""
    function = getattr(task, "func", None)
    if function is None and type(task) is tuple and task and callable(task[0]):
        function = task[0]
    name = function_name(function) if function is not None else None
    return {"function": name} if name else None


def _shape_text(shape: Any) -> str | None:
    return json.dumps([_length(each) for each in shape]) if isinstance(shape, (tuple, list)) else None


def _length(value: Any) -> int | None:
    return int(value) if value == value else None  # noqa: PLR0124 - an unknown length is NaN


def _chunks_text(chunks: Any) -> str | None:
    """Return chunk sizes per axis as JSON; of an axis with more than 64 blocks only the first of them."""
    if not isinstance(chunks, tuple):
        return None
    if max(map(len, chunks), default=0) <= _BLOCKS_LIMIT:
        return json.dumps([[_length(each) for each in axis] for axis in chunks])
    lengths = [sum(axis) for axis in chunks]
    first = [[_length(each) for each in axis[:_BLOCKS_LIMIT]] for axis in chunks]
    block_counts = list(map(len, chunks))
    return json.dumps({"axis_lengths": list(map(_length, lengths)), "block_counts": block_counts, "first": first})


# ---------------------------------------------------------------- collections


def _module_root(value: Any) -> str:
    return str(type(value).__module__).partition(".")[0]


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _output_facts(collection: Any) -> dict[Any, Facts]:
    """Return what a collection says of the layers that are its outputs."""
    try:
        if _module_root(collection) == "xarray":
            return _xarray_facts(collection)
        name = _type_name(collection)
        chunks = None
        if name.startswith("dask.bag."):
            chunks = json.dumps(int(collection.npartitions))
        return {layer: Facts(name, chunks=chunks) for layer in collection.__dask_layers__()}
    except Exception:  # noqa: BLE001 - a user's collection may raise anything
        return {}


def _xarray_facts(value: Any) -> dict[Any, Facts]:
    """Return, by layer, which variable of an xarray object it is the data of."""
    try:
        name = _type_name(value)
        sizes = {str(axis): int(size) for axis, size in value.sizes.items()}
        variables = getattr(value, "_variables", None)
        if variables is None:
            named = {getattr(value, "name", None): getattr(value, "variable", value)}
            variables = {**named, **getattr(value, "_coords", {})}
        found = {}
        for variable_name, variable in list(variables.items())[:LAYERS_LIMIT]:
            # Not `.data`, which may load from disk.
            layer = getattr(getattr(variable, "_data", None), "name", None)
            if isinstance(layer, str):
                details = {"variable": plain(variable_name), "dims": plain(variable.dims), "sizes": sizes}
                found[layer] = Facts(name, details=details)
        return found
    except Exception:  # noqa: BLE001 - another version of xarray
        return {}


# ---------------------------------------------------------------- expressions


def _is_expression(value: Any) -> bool:
    return hasattr(value, "operands") and any(each.__name__ == "Expr" for each in type(value).__mro__)


def _expression_of(collection: Any) -> Any:
    """Return the expression a collection is made of, or None."""
    if any(each.__name__ == "Delayed" for each in type(collection).__mro__):
        return None  # any attribute of a Delayed is another Delayed
    expression = getattr(collection, "expr", None)
    return expression if _is_expression(expression) else None


def _expression_collection_facts(collection: Any) -> Facts:
    return Facts(_type_name(collection))


def _expression_facts(node: Any, output: Facts | None, details: dict[str, Any] | None) -> Facts:
    held = node.__dict__
    meta = held.get("_meta")
    dtype = _dtype_text(meta)
    columns = getattr(meta, "columns", None)
    facts = dict(details or {})
    if columns is not None:
        facts["column_count"] = len(columns)
    shape = _shape_text(held.get("shape")) if "chunks" in held else None
    chunks = _chunks_text(held.get("chunks")) or _partitions(node)
    return Facts(output.collection_type if output else None, shape, dtype, chunks, facts)


def _partitions(node: Any) -> str | None:
    """Return the partition count as JSON where it is at hand; asking for it may read files."""
    parameters = type(node)._parameters
    if "npartitions" in parameters:
        count = node.operands[parameters.index("npartitions")]
        if type(count) is int:
            return json.dumps(count)
    divisions = node.__dict__.get("divisions")
    return json.dumps(len(divisions) - 1) if isinstance(divisions, tuple) and divisions else None


def _dtype_text(meta: Any) -> str | None:
    """Return the dtype of a series or array, or the dtypes of a frame's columns as JSON."""
    try:
        if hasattr(meta, "columns"):
            columns = list(meta.columns[:_COLUMNS_LIMIT])
            dtypes = list(meta.dtypes.iloc[:_COLUMNS_LIMIT])
            return json.dumps({str(column): str(dtype) for column, dtype in zip(columns, dtypes, strict=True)})
        dtype = getattr(meta, "dtype", None)
        return None if dtype is None else str(dtype)
    except Exception:  # noqa: BLE001 - a backend's frame may differ
        return None
