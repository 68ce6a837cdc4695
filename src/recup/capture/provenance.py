"""The user's own code: the script that was started and the git repository that holds it.

Covers the script's text and the state of the work tree at start.  It does not cover the
frames that submit graphs (seen at the client), nor notebooks: their cells are the client's.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import sys
import sysconfig
from pathlib import Path

from recup.capture.command import command_output
from recup.capture.machine import read_text
from recup.capture.redaction import redacted_source, redacted_text
from recup.schema import Repository, Source

SOURCE_LIMIT_BYTES = 1 << 20
"""Longer sources are recorded by their digest alone."""
_DIGEST_LIMIT_BYTES = 256 << 20
_GIT = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false")
_GIT_VARIABLES = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}


def records_source() -> bool:
    """Return whether source text is recorded: Dask's configuration ``recup.source``, on by default."""
    import dask.config

    return bool(dask.config.get("recup.source", True))


# ---------------------------------------------------------------- sources


def main_script(script: str | None, role: str) -> str | None:
    """Return the path of the script a client or launcher runs; None for notebooks, installed programs, standard input."""
    if script is not None or role not in ("client", "launcher"):
        return script
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    if not isinstance(path, str) or path == "<stdin>" or _is_installed(path):
        return None
    return path


def _is_installed(path: str) -> bool:
    """Whether the file came with a package: a console script or a module run with -m."""
    parent = os.path.dirname(os.path.abspath(path))
    places = {sysconfig.get_path(name) for name in ("scripts", "purelib", "platlib", "stdlib")}
    return parent == sysconfig.get_path("scripts") or any(
        place and Path(parent).is_relative_to(place) for place in places
    )


def script_source(path: str, *, with_text: bool) -> Source:
    """Return the row of a script file.

    The digest is of the file as it is; in the text, secrets that are written out are
    redacted.  The text is null when it is not wanted or longer than 1 MiB.

    Raises
    ------
    OSError
        The file cannot be read, or is not a regular file (a pipe has been read already).
    """
    path = os.path.abspath(path)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > _DIGEST_LIMIT_BYTES:
            raise OSError(f"{path} is no regular file, or too large to be a script")
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        data = file.read(SOURCE_LIMIT_BYTES + 1)
    text = data.decode(errors="replace") if with_text and len(data) <= SOURCE_LIMIT_BYTES else None
    if text is not None:
        text = redacted_source(text) if path.endswith(".py") else redacted_text(text)
    return Source(digest, "script", path, 1, text)


def text_source(path: str, text: str, *, with_text: bool) -> Source:
    """Return the row of a job script that a batch system told; digest and redaction as in `script_source`."""
    data = text.encode()
    kept = redacted_text(text) if with_text and len(data) <= SOURCE_LIMIT_BYTES else None
    return Source(hashlib.sha256(data).hexdigest(), "script", path, 1, kept)


# ---------------------------------------------------------------- git


def repository_row(path: Path) -> Repository | None:
    """Return the state of the git work tree that holds a path; None outside of any.

    Untracked files do not make it dirty.  Where git is absent or refuses, commit, branch
    and remote are read from the repository's files, and whether it is dirty stays unknown.

    Raises
    ------
    OSError
        There is a repository, and neither git nor its files tell the commit.
    """
    top = _work_tree(path)
    if top is None:
        return None
    try:
        if shutil.which("git") is None:
            raise FileNotFoundError("git is not on PATH")
        status = _git(top, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    except OSError as reason:
        return _from_files(top, reason)
    head = dict(re.findall(r"^# branch\.(oid|head) (.*)$", status, re.MULTILINE))
    changed = sum(line[:2] in ("1 ", "2 ", "u ") for line in status.splitlines())
    commit, branch = head.get("oid"), head.get("head")
    return Repository(
        path=str(top),
        commit=None if commit == "(initial)" else commit,
        branch=None if branch == "(detached)" else branch,
        is_dirty=changed > 0,
        changed_file_count=changed,
        remote=_remote(top),
    )


def _work_tree(path: Path) -> Path | None:
    real = Path(os.path.realpath(path))
    for directory in (real, *real.parents):
        if (directory / ".git").exists():
            return directory
    return None


def _git(top: Path, *arguments: str) -> str:
    return command_output([*_GIT, "-C", str(top), *arguments], environment=_GIT_VARIABLES)


def _remote(top: Path) -> str | None:
    try:
        # Not `git remote get-url`: it applies insteadOf, which may put a token in.
        url = _git(top, "config", "--get", "remote.origin.url").strip()
    except ChildProcessError:  # exit code 1: there is none
        return None
    return redacted_text(url) or None


def _from_files(top: Path, reason: OSError) -> Repository:
    directory = top / ".git"
    link = None if directory.is_dir() else read_text(directory)
    if link is not None:  # a linked work tree or a submodule
        directory = top / link.removeprefix("gitdir:").strip()
    common = directory / (read_text(directory / "commondir") or "")
    head = read_text(directory / "HEAD") or ""
    if head.startswith("ref: refs/heads/"):
        reference = head.removeprefix("ref: ")
        packed = read_text(common / "packed-refs", 16 << 20) or ""
        found = re.search(rf"^([0-9a-f]{{40,64}}) {re.escape(reference)}$", packed, re.MULTILINE)
        commit = read_text(common / reference) or (found[1] if found else "")
        branch = reference.removeprefix("refs/heads/")
    else:
        commit, branch = head, None
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise reason
    section = re.search(r'^\[remote "origin"\]([^\[]*)', read_text(common / "config") or "", re.MULTILINE)
    url = re.search(r"^\s*url\s*=\s*(\S+)", section[1], re.MULTILINE) if section else None
    return Repository(str(top), commit, branch, None, None, redacted_text(url[1]) if url else None)
