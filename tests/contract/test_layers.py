"""Data goes one way: who may import whom, and what must stay out of a worker."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import recup

SOURCE = Path(recup.__file__).parent
# What each room stands on.  A module belongs to the room of its package or its own name.
STANDS_ON = {
    "schema": set(),
    "errors": set(),
    "arrow_stream": {"schema"},
    "rows": {"schema", "arrow_stream", "columns"},
    "spool_status": set(),
    "spool_table": {"arrow_stream"},
    "spool": {"schema", "errors", "rows", "spool_status", "spool_table"},
    "rundir": {"schema", "errors"},
    "capture": {"schema", "errors", "spool", "rundir"},
    "preload": {"capture", "spool"},
    "preload_client": {"preload", "spool"},
    "launch": {"errors", "rundir", "capture", "spool", "spool_status"},
    "ingest": {"schema", "errors", "rundir", "run_tables", "spool_files"},
}
CAPTURE_SIDE = {"arrow_stream", "rows", "spool_table", "spool", "capture", "preload", "preload_client", "launch"}
SHARED = {"schema", "errors", "rundir", "spool_status", "__init__"}
MAY_USE_BOTH = {"cli", "darshan_doctor", "doctor", "ipython", "__main__", "__init__"}
HEAVY = {"pyarrow", "duckdb", "pandas"}


def room(path):
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imports(path):
    """Modules a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(path):
    found = set()
    for module in imports(path):
        parts = module.split(".")
        if (
            parts[0] == "recup"
            and len(parts) > 1
            and ((SOURCE / parts[1]).is_dir() or (SOURCE / f"{parts[1]}.py").is_file())
        ):
            found.add(parts[1])
    return found


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_only_the_rooms_it_stands_on(path):
    name = room(path)
    used = rooms_imported(path) - {name}
    if name in MAY_USE_BOTH:
        return
    if name in STANDS_ON:
        assert used <= STANDS_ON[name]
    else:  # the analysis side
        assert not used & CAPTURE_SIDE
        assert not used & {"cli", "doctor"}


@pytest.mark.parametrize(
    "path", [p for p in FILES if room(p) in CAPTURE_SIDE], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_the_capture_side_imports_no_analysis_library(path):
    assert not {module.split(".")[0] for module in imports(path)} & HEAVY


def test_a_recorded_process_loads_no_analysis_library():
    code = (
        "import sys, recup.preload, recup.capture.scheduler, recup.capture.worker, recup.capture.nanny, recup.launch\n"
        "import recup.capture.client\n"
        "print([m for m in ('pyarrow', 'duckdb', 'pandas', 'recup.store', 'recup.fuse', 'recup.cli') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_recup_loads_neither_dask_nor_an_analysis_library():
    code = "import sys, recup; print([m for m in ('dask', 'distributed', 'pyarrow', 'duckdb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_reached():
    assert all(getattr(recup, name) is not None for name in recup.__all__)


def test_no_room_has_a_name_that_says_nothing():
    assert not {path.stem for path in FILES} & {"utils", "common", "helpers", "manager", "base", "core"}


def test_compiled_modules_were_built_from_the_sources_beside_them():
    """Python would run the old one without a word; `make setup` builds it anew."""
    older = []
    for built in SOURCE.rglob("*.so"):
        name = built.name.partition(".")[0]
        sources = [
            built.with_name(f"{name}{end}") for end in (".pyx", ".py") if built.with_name(f"{name}{end}").exists()
        ]
        older += [built.name for source in sources if source.stat().st_mtime > built.stat().st_mtime]
    assert older == []
