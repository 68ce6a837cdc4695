import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _compiled_modules(request, tmp_path_factory):
    """Have programs that tests start find compiled modules, as they do on a machine of users.

    Where the environment forbids Python to write them, each of the hundreds of interpreters would
    compile all of Dask anew, which is three quarters of the time it takes to start.  They are kept
    in pytest's cache for the next session, nothing is written beside the source.
    """
    if os.environ.get("PYTHONDONTWRITEBYTECODE") and not os.environ.get("PYTHONPYCACHEPREFIX"):
        cache = getattr(request.config, "cache", None)
        place = tmp_path_factory.mktemp("compiled") if cache is None else cache.mkdir("compiled")
        with pytest.MonkeyPatch.context() as patched:
            patched.delenv("PYTHONDONTWRITEBYTECODE")
            patched.setenv("PYTHONPYCACHEPREFIX", str(place))
            yield
    else:
        yield
