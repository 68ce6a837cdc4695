"""Secrets out of text, arguments and named values, before they are recorded.

Covers URL credentials, ``password=...`` in its many spellings, bearer and access tokens of
well-known form, private keys, and values whose name says that they are secret.  It errs on
the side of removing.  It does not find a secret that neither its name nor its form
betrays, such as a password given as a positional argument.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from recup.capture.text import json_text, plain

REDACTED = "[redacted]"
"""What stands in the place of a secret."""
_ANNOTATIONS_LIMIT = 10_000

# Every repetition below has a bound: log lines may be megabytes long and hostile.
_NAME = (
    r"(?:passw(?:or)?d|passphrase|pwd|secret|token(?!i[sz])|credential|cookie|signature"
    r"|(?:api|access|account|private|shared|signing|encryption)[-_ ]?key|auth(?:orization)?(?![a-z]))"
)
_QUOTED = r"""\\"[^"\\\n]{0,4096}\\"|"[^"\n]{0,4096}"|'[^'\n]{0,4096}'"""
_BARE = r"""(?:(?:basic|bearer|digest|token)\s{1,4})?[^\s"'&,;)}\]]{1,4096}"""
_SEPARATOR = r"""[\w-]{0,60}\\?["']?\s{0,4}[=:]\s{0,4}"""
_FORMS = (
    r"(?P<credentials>(?<=://)[^\s/?#\"'<>]{1,512}@)"
    r"|(?P<form>\bbearer\s{1,4}[\w.~+/=-]{8,4096}"
    r"|\beyJ[\w-]{8,4096}\.[\w-]{4,4096}(?:\.[\w-]{0,4096})?"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_\w{20,255}|\bgithub_pat_\w{20,255}|\bglpat-[\w-]{16,255}"
    r"|\bxox[abprs]-[\w-]{10,255}|\bhf_[a-z]{20,255}"
    r"|-----BEGIN [A-Z ]{0,24}PRIVATE KEY-----[^-]{0,16384})"
)
_TEXT = re.compile(
    rf"{_FORMS}|(?P<before>{_NAME}{_SEPARATOR}|--[\w-]{{0,60}}?{_NAME}[\w-]{{0,60}}\s{{1,4}}(?!-))"
    rf"(?P<value>{_QUOTED}|{_BARE})",
    re.IGNORECASE,
)
_SOURCE = re.compile(rf"{_FORMS}|(?P<before>{_NAME}{_SEPARATOR})(?P<value>{_QUOTED})", re.IGNORECASE)
_LITERAL = re.compile(r"""(["'])(?:(?!\1)[^\\\n]|\\.){1,4096}\1""")
_HINTS = (
    "@", "passw", "passphrase", "pwd", "secret", "token", "credential", "cookie", "signature", "auth", "bearer",
    "eyj", "akia", "asia", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "hf_",
)  # fmt: skip
_KEY_HINTS = ("api", "access", "account", "private", "shared", "signing", "encryption")
"""Text in lower case without any of these, "key" and one of the latter, holds nothing the patterns match."""

_SECRET_NAME = re.compile(
    rf"{_NAME}|(?:^|[^a-z])(?:e?auth|bearer|certs?|certificate|jwt|key|pass|sas|tls)(?:[^a-z]|$)"
    # Open MPI's "precondition transports" is the key its ranks authenticate with.
    r"|userpwd|apikey|accesskey|precondition.transports|inherit.config$"
)
# UCX_TLS lists transports ("transport layers"), not certificates.
_PUBLIC_NAME = re.compile(r"tls[._-]+(?:ciphers|(?:min|max)[._-]version)$|ucx[._-]tls$")
_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@functools.lru_cache(maxsize=4096)
def looks_secret(name: str) -> bool:
    """Return whether the value of that name (option, variable, dotted name) must not be recorded.

    Whole words such as ``key``, ``tls`` or ``auth`` count, ``keys`` and ``author`` do not;
    ``password``, ``secret``, ``token`` and their like count anywhere in the name.
    """
    spaced = _WORD_STARTS.sub("-", name).lower()
    return bool(_SECRET_NAME.search(spaced) or _SECRET_NAME.search(name.lower())) and not _PUBLIC_NAME.search(spaced)


def redacted_text(text: str) -> str:
    """Return the text without credentials in URLs, secrets after their name, and tokens known by their form.

    Credentials disappear from URLs; all else becomes ``[redacted]``.  Costs about a
    microsecond for a line that holds nothing of the kind.
    """
    lowered = text.lower()
    for hint in _HINTS:
        if hint in lowered:
            return _TEXT.sub(_without, text)
    # Dask speaks of keys in every other line: the word alone must not cost a search.
    if "key" in lowered and any(hint in lowered for hint in _KEY_HINTS):
        return _TEXT.sub(_without, text)
    return text


def redacted_json(value: Any) -> str:
    """Return a value as JSON, with its secrets redacted.

    Values are redacted before they are written: in the text, a secret may end in half of an
    escape, or stand where JSON wants quotes.
    """
    text = json_text(value)
    if redacted_text(text) == text:
        return text
    text = json_text(_without_secrets(plain(value)))
    again = redacted_text(text)
    if again == text:
        return text
    try:  # what only the text as a whole betrays
        json.loads(again)
        return again
    except ValueError:
        return json.dumps({"redacted": True, "characters": len(text)})


def annotations_text(annotations: Any) -> str | None:
    """Return annotations as JSON of at most 10 kB; None when there are none.

    What JSON cannot say is named by its type; secrets are redacted, by name and by form.
    """
    if not annotations:
        return None
    shown = {
        str(name): REDACTED if isinstance(name, str) and looks_secret(name) else plain(value)
        for name, value in dict(annotations).items()
    }
    text = redacted_json(shown)
    if len(text) > _ANNOTATIONS_LIMIT:
        text = json.dumps({"cut": True, "characters": len(text), "begins": text[: _ANNOTATIONS_LIMIT // 2]})
    return text


def redacted_put(put: Callable[[tuple[Any, ...]], None], *places: int) -> Callable[[tuple[Any, ...]], None]:
    """Return what puts rows with the texts at these places redacted; for rows that are rare."""

    def put_redacted(row: tuple[Any, ...]) -> None:
        put(
            tuple(
                redacted_text(str.__str__(each)) if at in places and isinstance(each, str) else each
                for at, each in enumerate(row)
            )
        )

    return put_redacted


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            redacted_text(name): REDACTED if _is_told_secret(name) else _without_secrets(each)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [_without_secrets(each) for each in value]
    return redacted_text(value) if isinstance(value, str) else value


@functools.lru_cache(maxsize=4096)
def _is_told_secret(name: str) -> bool:
    """Return whether text loses what follows this name; fewer than `looks_secret` has: Dask's keys are no secrets."""
    told = f'"{name}": "0"'
    return redacted_text(told) != told


def redacted_source(text: str) -> str:
    """Return program source with secrets redacted only where they are written out.

    ``password = "hunter2"`` loses its literal and ``"PASSWORD=hunter2"`` what it sets;
    ``password = getpass()`` stays as it is.
    """
    return _LITERAL.sub(
        lambda found: f"{found[0][0]}{redacted_text(found[0][1:-1])}{found[0][-1]}", _SOURCE.sub(_without, text)
    )


def redacted_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the values of secret options redacted, both ``--x=v`` and ``--x v``."""
    result: list[str] = []
    is_value = False
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if is_value and not argument.startswith("-"):
            result.append(REDACTED)
        elif separator and value and len(name) < 200 and not any(map(str.isspace, name)) and looks_secret(name):
            result.append(f"{name}={REDACTED}")
        else:
            result.append(redacted_text(argument))
        is_value = argument.startswith("-") and not separator and len(argument) < 200 and looks_secret(argument)
    return result


def redacted_value(name: str, value: str) -> str | None:
    """Return the value of a variable or option without secrets; None when the name says it is one."""
    return None if looks_secret(name) else redacted_text(value)


def _without(match: re.Match[str]) -> str:
    if match["credentials"]:
        return ""
    if match["form"]:
        return REDACTED
    before, value = match["before"], match["value"]
    if value.strip("\\\"'") in (REDACTED, REDACTED[:-1]):  # a bare value ends at the bracket
        return match[0]
    if value.startswith("\\"):
        return f'{before}\\"{REDACTED}\\"'
    quote = value[0] if value[0] in "\"'" else ""
    return f"{before}{quote}{REDACTED}{quote}"
