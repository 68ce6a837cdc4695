import os
import sys
import tempfile

import pytest


def pytest_configure(config):
    """Have pages as wide as they are without a terminal, and compiled modules found as on a machine of users.

    Where the environment forbids Python to write them, each of the hundreds of interpreters would
    compile all of Dask anew, which is three quarters of the time it takes to start.  They are kept
    in pytest's cache for the next session, nothing is written beside the source.
    """
    patched = pytest.MonkeyPatch()
    config.add_cleanup(patched.undo)
    patched.delenv("COLUMNS", raising=False)
    if not os.environ.get("PYTHONDONTWRITEBYTECODE") or os.environ.get("PYTHONPYCACHEPREFIX"):
        return
    cache = getattr(config, "cache", None)
    if cache is None:
        directory = tempfile.TemporaryDirectory(prefix="recup-compiled-")
        config.add_cleanup(directory.cleanup)
    place = directory.name if cache is None else str(cache.mkdir("compiled"))
    patched.delenv("PYTHONDONTWRITEBYTECODE")
    patched.setenv("PYTHONPYCACHEPREFIX", place)
    patched.setattr(sys, "dont_write_bytecode", False)
    patched.setattr(sys, "pycache_prefix", place)
