"""The resolved Dask configuration of this process, and where each of its values came from.

Covers `dask.config`: flattening to dotted names, redaction, JSON, origins.  It does not
cover values a running server has cached since (e.g. memory fractions): those are facts of
the server and stand in ``processes.details``.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from recup.capture.machine import process_started_s
from recup.capture.redaction import REDACTED, looks_secret, redacted_text
from recup.schema import ConfigValue

DEFAULT, IN_CODE = "default", "set in code"
_INHERITED = "DASK_INTERNAL_INHERIT_CONFIG"
_DEPTH_LIMIT = 20
_LENGTH_LIMIT = 65_536

Layer = tuple[str, dict[str, Any]]
"""An origin and the values it gives, by canonical dotted name."""


def config_rows() -> tuple[str, list[ConfigValue]]:
    """Return the digest and the rows of the resolved configuration: one row per dotted name.

    Names are spelled as the defaults spell them: Dask keeps ``work_stealing`` where a
    variable said so first.  The digest covers names, redacted values and origins, so it
    differs where any row would.

    Raises
    ------
    ImportError
        dask is not installed.
    """
    import dask.config

    given = [_flat(each) for each in list(dask.config.defaults)]
    spelled = {_canonical_name(name): name for each in given for name in each}
    values = {spelled.get(_canonical_name(n), n): v for n, v in _flat_copy(dask.config.config).items()}
    defaults = [_canonical(each) for each in given]
    layers, doubtful, is_stale = _layers()
    rows = []
    for name, value in sorted(values.items()):
        canonical = _canonical_name(name)
        origin = None if canonical in doubtful else _origin(canonical, value, layers, defaults)
        # What explains the value may have stood in a file that was changed since.
        origin = None if origin == IN_CODE and is_stale else origin
        rows.append((name, json_value(name, value), origin))
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    return digest, [ConfigValue(digest, *row) for row in rows]


def json_value(name: str, value: Any) -> str | None:
    """Return a value as JSON with secrets redacted; None when its name says that all of it is secret.

    Infinite numbers and NaN become strings, an object JSON does not know becomes its type
    in angle brackets.  Absent values and booleans are never secret.
    """
    if looks_secret(name) and not (value is None or isinstance(value, bool)):
        return None
    text = json.dumps(_plain(value, 0))
    return text if len(text) <= _LENGTH_LIMIT else json.dumps(f"<{type(value).__name__} of {len(text)} characters>")


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, (str, float, PurePath, datetime.date, datetime.timedelta)):
        return redacted_text(str(value))
    if depth < _DEPTH_LIMIT and isinstance(value, Mapping):
        return _plain_mapping(value, depth)
    if depth < _DEPTH_LIMIT and isinstance(value, (list, tuple, set, frozenset)):
        items = [_plain(each, depth + 1) for each in value]
        return sorted(items, key=repr) if isinstance(value, (set, frozenset)) else items
    return f"<{type(value).__name__}>"


def _plain_mapping(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    # Kubernetes writes variables as {"name": ..., "value": ...}.
    is_secret_pair = isinstance(value.get("name"), str) and looks_secret(value["name"])
    result = {}
    for key, each in value.items():
        secret = looks_secret(str(key)) or (is_secret_pair and key == "value")
        if secret and not (each is None or isinstance(each, bool)):
            result[str(key)] = REDACTED
        else:
            result[str(key)] = _plain(each, depth + 1)
    return result


# ---------------------------------------------------------------- origins


def _origin(name: str, value: Any, layers: Iterable[Layer], defaults: Sequence[dict[str, Any]]) -> str | None:
    """Origin of a value: the layer that wins and agrees; unknown where only a losing layer agrees."""
    overridden = False
    for origin, given in layers:
        if name not in given:
            continue
        if _same(given[name], value):
            return None if overridden else origin
        overridden = True
    if any(name in given and _same(given[name], value) for given in defaults):
        return None if overridden else DEFAULT
    return IN_CODE


def _layers() -> tuple[list[Layer], set[str], bool]:
    """Environment and files, the winning one first; names whose origin cannot be told; whether a file is too new.

    A file written after the process began no longer tells what Dask read: its names are
    doubtful, and so is a name that replaces a deprecated one some layer uses.
    """
    import dask.config

    layers = [(name, given) for name, given in _environment_layers(os.environ)]
    doubtful: set[str] = set()
    is_stale = False
    started_s = process_started_s()
    for path, content in reversed(_files(dask.config)):
        given = _canonical(_flat(content))
        layers.append((_shown(path), given))
        if path.stat().st_mtime > started_s:
            doubtful.update(given)
            is_stale = True
    renamed = {_canonical_name(old): new for old, new in getattr(dask.config, "deprecations", {}).items()}
    for _, given in layers:
        for name in given.keys() & renamed.keys():
            doubtful.add(_canonical_name(renamed[name] or name))
    return layers, doubtful, is_stale


def _files(config: Any) -> list[tuple[Path, Mapping[str, Any]]]:
    try:
        return [(Path(path), content) for path, content in config.collect_yaml(config.paths, return_paths=True)]
    except TypeError:  # a dask whose collect_yaml cannot tell the paths
        return []


def _environment_layers(environment: Mapping[str, str]) -> list[Layer]:
    """One layer per DASK_* variable; what a parent process handed down comes last.

    Dask's own `collect_env` is not used: it warns about deprecated names, and in tests of
    the user's a warning is an error.
    """
    import dask.config

    layers: list[Layer] = []
    for name, text in environment.items():
        if name.startswith("DASK_") and name != _INHERITED:
            dotted = name[len("DASK_") :].lower().replace("__", ".")
            layers.append((name, _canonical(_flat({dotted: dask.config.interpret_value(text)}))))
    if _INHERITED in environment:
        inherited = json.loads(base64.urlsafe_b64decode(environment[_INHERITED].encode()))
        layers.append((_INHERITED, _canonical(_flat(inherited))))
    return layers


def _same(one: Any, other: Any) -> bool:
    # True == 1 in Python, but not in a configuration.
    return type(one) is type(other) and bool(one == other)


def _shown(path: Path) -> str:
    home = os.path.expanduser("~")
    return f"~{os.sep}{path.relative_to(home)}" if home != "~" and path.is_relative_to(home) else str(path)


# ---------------------------------------------------------------- dotted names


def _flat_copy(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten while another thread may be changing the mapping."""
    for _ in range(20):
        try:
            return _flat(config)
        except RuntimeError:  # changed size during iteration
            continue
    return _flat(config)


def _flat(config: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and depth < _DEPTH_LIMIT:
            result.update(_flat(value, f"{name}.", depth + 1))
        else:
            result[name] = value
    return result


def _canonical_name(name: str) -> str:
    return name.replace("_", "-")


def _canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_canonical_name(name): value for name, value in values.items()}
