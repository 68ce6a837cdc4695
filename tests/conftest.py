import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _compiled_modules(tmp_path_factory):
    """Have programs that tests start find compiled modules, as they do on a machine of users.

    Where the environment forbids Python to write them, each of the hundreds of interpreters would
    compile all of Dask anew, which is three quarters of the time it takes to start.
    """
    if os.environ.get("PYTHONDONTWRITEBYTECODE") and not os.environ.get("PYTHONPYCACHEPREFIX"):
        with pytest.MonkeyPatch.context() as patched:
            patched.delenv("PYTHONDONTWRITEBYTECODE")
            patched.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("compiled")))
            yield
    else:
        yield
