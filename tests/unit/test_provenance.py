import hashlib
import os
import subprocess
import sys

import dask
import pytest

from recup.capture import host, provenance
from recup.capture.provenance import main_script, repository_row, script_source
from recup.schema import Repository, Source
from recup.spool import Spool


@pytest.fixture
def repository(tmp_path):
    """A git repository with one commit; returns its path and how to run git in it."""
    top = tmp_path / "work tree"
    top.mkdir()
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    environment = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": str(tmp_path)}

    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=top, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q", "-b", "main")
    (top / "script.py").write_text("print(1)\n")
    (top / "other.py").write_text("print(2)\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return top, git


# ---------------------------------------------------------------- git


def test_a_clean_work_tree_tells_commit_and_branch(repository):
    top, git = repository
    (top / "untracked.txt").write_text("x")
    (top / "deep").mkdir()
    expected = Repository(str(top), git("rev-parse", "HEAD"), "main", False, 0, None)
    assert repository_row(top) == expected
    assert repository_row(top / "deep") == expected


def test_changed_files_are_counted_and_the_remote_has_no_credentials(repository):
    top, git = repository
    git("remote", "add", "origin", "https://jane:hunter2@host.org/x.git")
    (top / "script.py").write_text("print(3)\n")
    (top / "new.py").write_text("print(4)\n")
    git("add", "new.py")
    commit = git("rev-parse", "HEAD")
    assert repository_row(top) == Repository(str(top), commit, "main", True, 2, "https://host.org/x.git")


def test_a_detached_head_has_no_branch(repository):
    top, git = repository
    git("checkout", "-q", "--detach")
    assert repository_row(top).branch is None


def test_a_repository_without_a_commit_has_none(tmp_path):
    subprocess.run(["git", "init", "-q", "-b", "main", str(tmp_path)], check=True)
    assert repository_row(tmp_path) == Repository(str(tmp_path), None, "main", False, 0, None)


def test_outside_of_a_work_tree_there_is_no_row(tmp_path):
    assert repository_row(tmp_path) is None


@pytest.mark.parametrize("packed", [False, True])
def test_without_git_the_commit_is_read_from_files_and_dirt_is_unknown(repository, monkeypatch, packed):
    top, git = repository
    git("remote", "add", "origin", "https://token@host.org/x.git")
    commit = git("rev-parse", "HEAD")
    if packed:
        git("pack-refs", "--all")
    (top / "script.py").write_text("print(3)\n")
    monkeypatch.setenv("PATH", str(top))
    assert repository_row(top) == Repository(str(top), commit, "main", None, None, "https://host.org/x.git")


def test_a_linked_work_tree_is_read_without_git(repository, tmp_path, monkeypatch):
    _, git = repository
    git("worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    commit = git("rev-parse", "HEAD")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert repository_row(tmp_path / "linked") == Repository(str(tmp_path / "linked"), commit, "side", None, None, None)


def test_a_git_that_hangs_leaves_what_the_files_tell(repository, tmp_path, monkeypatch):
    top, git = repository
    commit = git("rev-parse", "HEAD")
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "command_output", lambda *a, **k: command_output(*a, **k, timeout_s=0.2))
    from recup.capture.command import command_output

    assert repository_row(top) == Repository(str(top), commit, "main", None, None, None)


def test_a_repository_that_tells_nothing_is_an_error(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="git is not on PATH"):
        repository_row(tmp_path)


def test_asking_git_changes_nothing_in_the_repository(repository):
    top, _ = repository
    os.utime(top / "script.py", (1, 1))  # git would refresh its index for this
    before = (top / ".git" / "index").stat().st_mtime_ns, sorted(os.listdir(top / ".git"))
    repository_row(top)
    assert ((top / ".git" / "index").stat().st_mtime_ns, sorted(os.listdir(top / ".git"))) == before


# ---------------------------------------------------------------- sources


def test_a_script_keeps_its_text_and_loses_its_secrets(tmp_path):
    path = tmp_path / "script.py"
    data = b'password = "hunter2"\nprint("\xc3\xa9")\n'
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    text = 'password = "[redacted]"\nprint("é")\n'
    assert script_source(str(path), with_text=True) == Source(digest, "script", str(path), 1, text)
    assert script_source(str(path), with_text=False) == Source(digest, "script", str(path), 1, None)


def test_a_script_that_is_too_long_keeps_its_digest(tmp_path):
    path = tmp_path / "script.py"
    data = b"#" * (provenance.SOURCE_LIMIT_BYTES + 1)
    path.write_bytes(data)
    expected = Source(hashlib.sha256(data).hexdigest(), "script", str(path), 1, None)
    assert script_source(str(path), with_text=True) == expected


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        script_source(str(tmp_path / "pipe"), with_text=True)


def test_the_main_script_is_that_of_clients_and_launchers(monkeypatch, tmp_path):
    main = sys.modules["__main__"]
    script = str(tmp_path / "mine.py")
    monkeypatch.setattr(main, "__file__", script, raising=False)
    assert [main_script(None, role) for role in ("client", "launcher", "worker", "scheduler")] == [
        script,
        script,
        None,
        None,
    ]
    assert main_script("given.py", "worker") == "given.py"


def test_a_program_from_standard_input_has_no_script(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    assert [main_script(None, role) for role in ("client", "launcher")] == [None, None]


def test_notebooks_and_installed_programs_are_no_scripts(monkeypatch):
    main = sys.modules["__main__"]
    monkeypatch.delattr(main, "__file__", raising=False)
    assert main_script(None, "client") is None
    monkeypatch.setattr(main, "__file__", os.path.join(os.path.dirname(sys.executable), "dask"), raising=False)
    assert main_script(None, "client") is None
    monkeypatch.setattr(main, "__file__", pytest.__file__, raising=False)
    assert main_script(None, "client") is None


@pytest.mark.parametrize("wanted", [True, False])
def test_recording_source_is_switched_by_the_configuration(tmp_path, monkeypatch, repository, wanted):
    top, git = repository
    monkeypatch.setattr(host, "_recorded", {})
    spool = Spool(tmp_path / "run", "launcher", "L")
    taken = []
    monkeypatch.setattr(spool, "put", taken.append)
    with dask.config.set({"recup.source": wanted}):
        for _ in range(2):
            host.record_process(spool, role="launcher", run_directory=tmp_path / "run", script=str(top / "script.py"))
    digest = hashlib.sha256(b"print(1)\n").hexdigest()
    text = "print(1)\n" if wanted else None
    assert [row for row in taken if isinstance(row, Source)] == [
        Source(digest, "script", str(top / "script.py"), 1, text)
    ]
    assert [row.commit for row in taken if isinstance(row, Repository)] == [git("rev-parse", "HEAD")]


def test_workers_do_not_ask_git(tmp_path, monkeypatch, repository):
    top, _ = repository
    monkeypatch.chdir(top)
    monkeypatch.setattr(host, "_recorded", {})
    monkeypatch.setattr(host, "repository_row", lambda path: pytest.fail("asked"))
    spool = Spool(tmp_path / "run", "worker", "W")
    lost = []
    monkeypatch.setattr(spool, "lose", lambda *loss: lost.append(loss))
    host.record_process(spool, role="worker", run_directory=tmp_path / "run")
    assert lost == []
