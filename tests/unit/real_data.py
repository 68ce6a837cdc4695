"""Real logs that lie beside the project where they are at hand; tests skip where they are not."""

import tarfile
from pathlib import Path

import pytest

import recup

DATA = Path(recup.__file__).parents[3] / "shared" / "data"


_DONE = {}


def unpacked(archive, tmp_path_factory):
    """Return the directory an archive unpacks to; done once per session."""
    if not (DATA / f"{archive}.tar.xz").is_file():
        pytest.skip(f"{archive}.tar.xz is not in shared/data beside the project")
    if archive not in _DONE:
        target = tmp_path_factory.mktemp(archive)
        with tarfile.open(DATA / f"{archive}.tar.xz") as packed:
            packed.extractall(target, filter="data")
        (_DONE[archive],) = target.iterdir()
    return _DONE[archive]
