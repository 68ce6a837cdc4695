"""What a client submits: one row per graph it sends, where from, and what the graph was made of.

Covers compute, persist, submit, map, get, `dask.compute` and `dask.persist` of one client,
clients inside tasks included, by wrapping `Client._graph_to_futures`, the one way of all of
them.  It does not cover scatter, nor what becomes of the graph on the scheduler
(`recup.capture.scheduler`).

Before distributed 2025.4 collections reach that function optimized.  There and here they
are read where the running ``compute`` or ``persist`` holds them (`recup.capture.frames`),
so nothing else of Dask is touched; what such a version cannot tell any more is null.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import time
from collections.abc import Callable, Hashable
from typing import Any

import dask

from recup.capture.frames import CallSite, call_site
from recup.capture.graphs import Description, keys_digest
from recup.capture.redaction import annotations_text
from recup.capture.text import json_text
from recup.spool import Spool

_SOURCES_LIMIT = 5_000
"""Distinct source texts of one client; frames beyond them come without text."""
_HOOK = "client._graph_to_futures"
_PASSED_ON = {"workers": "workers", "retries": "retries", "allow_other_workers": "allow_other_workers"}
_PASSED_ON |= {"resources": "resources", "user_priority": "priority"}
"""Arguments of a submission that Dask turns into annotations."""


class ClientCapture:
    """Records the submissions of one client while it is installed; never raises.

    Parameters
    ----------
    spool : Spool
        Takes the rows of `client_submissions`, `submission_frames`, `layers` and `sources`.
    client : distributed.Client
        The client to record, synchronous or not.
    """

    def __init__(self, spool: Spool, client: Any):
        self.spool = spool
        self._client = client
        self._client_id = str(client.id)
        self.stop_profile: Callable[[], None] | None = None
        self._is_installed = False
        self._wrapper: Callable[..., Any] | None = None
        self._replaced: Any = None
        self._parameters: tuple[str, ...] = ()
        self._numbers = itertools.count()
        self._source_digests: dict[str, object] = {}
        self._with_source = bool(dask.config.get("recup.source", True))
        self._put_submission = spool.extender("client_submissions")
        self._put_frame = spool.extender("submission_frames")
        self._put_layer = spool.extender("layers")
        self._put_source = spool.extender("sources")

    def install(self) -> None:
        """Begin to record.  What this version of Dask does not offer is counted as not captured."""
        if self._is_installed:
            return
        try:
            original = self._client._graph_to_futures
            self._parameters = tuple(inspect.signature(original).parameters)
            if self._parameters[:2] not in (("expr", "keys"), ("dsk", "keys")):
                raise TypeError(f"Client._graph_to_futures has other parameters: {', '.join(self._parameters)}")
            self._replaced = self._client.__dict__.get("_graph_to_futures")
            self._wrapper = self._wrapping(original)
            self._is_installed = True
            self._client._graph_to_futures = self._wrapper
        except Exception as reason:  # noqa: BLE001 - the client must work without recup
            self._is_installed = False
            for table_name in ("client_submissions", "layers"):
                self.spool.lose("not_captured", table_name, f"submissions of clients: {reason!r}"[:300])

    def uninstall(self) -> None:
        """Stop recording and put back what was wrapped; what others wrapped around it stays and works."""
        self._is_installed = False
        try:
            if self._wrapper is not None and self._client.__dict__.get("_graph_to_futures") is self._wrapper:
                if self._replaced is None:
                    del self._client._graph_to_futures
                else:
                    self._client._graph_to_futures = self._replaced
        except Exception as reason:  # noqa: BLE001
            self.spool.failed(f"{_HOOK}: uninstall", reason)
        self._wrapper = self._replaced = None

    # ------------------------------------------------------------ the hook

    def _wrapping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        clock = time.perf_counter_ns

        def _graph_to_futures(*args: Any, **kwargs: Any) -> Any:
            if not self._is_installed:
                return original(*args, **kwargs)
            time_ns, began = time.time_ns(), clock()
            error = None
            try:
                return original(*args, **kwargs)
            except BaseException as reason:
                error = type(reason).__name__
                raise
            finally:
                # The graph is on its way before it is described: the cluster does not wait for it.
                ended = clock()
                try:
                    self._record(args, kwargs, sys._getframe(), (time_ns, began, ended), error)
                except Exception as reason:  # noqa: BLE001 - the submission stands
                    if self.spool.failed(_HOOK, reason, "client_submissions"):
                        self._is_installed = False

        return _graph_to_futures

    def _record(self, args: Any, kwargs: Any, frame: Any, times: tuple[int, int, int], error: str | None) -> None:
        arguments = dict(zip(self._parameters, args, strict=False))
        arguments.update(kwargs)
        graph, keys = arguments[self._parameters[0]], arguments["keys"]
        wanted = keys if isinstance(keys, (set, frozenset)) else set(keys)
        site = call_site(frame, self._with_source)
        submission = next(self._numbers)
        self._record_frames(submission, site)
        description = self._described(submission, graph, len(wanted), site)
        span, annotations = _annotations(arguments)
        time_ns, began, ended = times
        now = time.perf_counter_ns
        self._put_submission(
            (
                time_ns, submission, self._client_id, site.call, type(graph).__name__,
                len(wanted), next(iter(keys), None), keys_digest(wanted),
                description.layer_count, description.task_count, annotations, span, _submitting_key(),
                now() - began, now() - ended, error,
            )
        )  # fmt: skip

    def _record_frames(self, submission: int, site: CallSite) -> None:
        for depth, path, line, function, line_text, source in site.frames:
            digest = None
            if source is not None:
                digest = source.source_digest
                known = self._source_digests
                if digest not in known and len(known) >= _SOURCES_LIMIT:
                    self.spool.lose("not_captured", "sources", f"texts of frames beyond {_SOURCES_LIMIT}", 1)
                    digest = None
                elif digest not in known and known.setdefault(digest, mine := object()) is mine:
                    self._put_source(source)
            self._put_frame((submission, depth, path, line, function, line_text, digest))

    def _described(self, submission: int, graph: Any, wanted_count: int, site: CallSite) -> Description:
        description = Description(self._put_layer, submission)
        try:
            description.describe(graph, wanted_count, site.collections, site.entered)
        except Exception as reason:  # noqa: BLE001 - the submission is recorded without its layers
            description.give_up()
            self.spool.failed("layers of a submission", reason, "layers")
        if description.left_count:
            self.spool.lose("not_captured", "layers", "large graphs: layers beyond the limits", description.left_count)
        for detail in description.left_out:
            self.spool.lose("not_captured", "layers", detail)
        return description


def _annotations(arguments: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return the names of the span, and the other annotations of a submission, as JSON."""
    merged = dict(dask.get_annotations())
    for argument, name in _PASSED_ON.items():
        if arguments.get(argument):
            merged[name] = arguments[argument]
    span = merged.pop("span", None)
    names = span.get("name") if isinstance(span, dict) else None
    return json_text(list(names)) if names else None, annotations_text(merged)


def _submitting_key() -> Hashable | None:
    """Return the key of the task this thread is running, or None."""
    state = getattr(sys.modules.get("distributed.worker"), "thread_state", None)
    key: Hashable | None = getattr(state, "key", None)
    return key
