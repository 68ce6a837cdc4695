"""Where libdarshan is, whether it works with Python, and the configuration it gets.

Covers finding the library, trying it in a small process, and the text and environment that
make it record a Dask worker without its known traps.  It does not cover processes of a
cluster (`recup.capture.darshan`) nor what logs hold.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from recup.capture.command import command_output

HOW_TO_GET_IT = (
    "`module load darshan` where the site has it, `spack install darshan-runtime~mpi`, or build darshan-runtime "
    "with `./configure --without-mpi --with-jobid-env=NONE --with-log-path-by-env=DARSHAN_LOG_DIR` "
    "(https://www.mcs.anl.gov/research/projects/darshan); then give its path or prefix: --darshan=PATH"
)
LOG_VARIABLES = ("DARSHAN_LOG_DIR", "DARSHAN_LOG_DIR_PATH")
"""Usual names of the variable that holds the log directory; the name is chosen when Darshan is built."""
REMOVED_VARIABLES = ("DARSHAN_DISABLE", "DARSHAN_LOGFILE")
"""What keeps Darshan from recording: all processes, or all but the first."""
_NAMES = ("libdarshan.so", "libdarshan.so.0")
_STANDARD_PLACES = (
    "/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/local/lib",
    "/usr/local/lib64", "/usr/local/darshan*", "/opt/darshan*", "/opt/cray/pe/darshan*", "/soft/perftools/darshan/*",
)  # fmt: skip
_PROBE_S = 30.0


# ---------------------------------------------------------------- finding


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """Where libdarshan was found, or where it was looked for in vain.

    Attributes
    ----------
    path : Path or None
        The library.
    source : str
        What led to it, or why there is none.
    looked : tuple of str
        Every place looked at, in order.
    """

    path: Path | None
    source: str
    looked: tuple[str, ...]


def find_library(told: str | None, environment: Mapping[str, str], standard: Iterable[str] = _STANDARD_PLACES) -> Found:
    """Return the first libdarshan there is: where told, and only there, or in the usual places.

    Parameters
    ----------
    told : str, optional
        The library's file, or the directory or prefix that holds it.
    environment : mapping
        Variables that may name it: LD_PRELOAD, DARSHAN_*, PATH, CONDA_PREFIX, SPACK_ROOT, LD_LIBRARY_PATH.
    standard : iterable of str
        Directories or prefixes looked at last; ``*`` stands for anything in a name.
    """
    if told:
        place = Path(told).expanduser().absolute()
        found = _library_in(place)
        return Found(found, "as told" if found else f"{told} is no libdarshan and holds none", (str(place),))
    looked: list[str] = []
    for source, place in _places(environment, standard):
        if str(place) not in looked:
            looked.append(str(place))
            found = _library_in(place)
            if found is not None:
                return Found(found, source, tuple(looked))
    return Found(None, "libdarshan was not found", tuple(looked))


def _library_in(place: Path) -> Path | None:
    if place.is_file():
        return place if place.name.startswith("libdarshan.so") else None
    for directory in (place, place / "lib", place / "lib64"):
        for name in _NAMES:
            if (directory / name).is_file():
                return directory / name
    return None


def _places(environment: Mapping[str, str], standard: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yield (what names it, file or directory), the most deliberate first."""
    yield from _named_places(environment)
    yield from _installed_places(environment)
    for pattern in standard:
        base = Path(pattern)
        for each in sorted(base.parent.glob(base.name), reverse=True) if "*" in pattern else [base]:
            yield "standard place", each


def _named_places(environment: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    for each in re.split(r"[ :]", environment.get("LD_PRELOAD", "")):
        if "libdarshan" in each:
            yield "LD_PRELOAD", Path(each)
    # Modules and EasyBuild name the prefix in a variable of their own: DARSHAN_ROOT, EBROOTDARSHANMINRUNTIME, ...
    for name in sorted(environment):
        value = environment[name]
        if "DARSHAN" in name and "LOG" not in name and "CONFIG" not in name and value.startswith("/"):
            yield f"${name}", Path(value)
    for program in ("darshan-config", "darshan-parser"):
        path = shutil.which(program, path=environment.get("PATH", ""))
        if path:
            yield f"{program} on PATH", Path(path).resolve().parent.parent


def _installed_places(environment: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    if environment.get("CONDA_PREFIX"):
        yield "$CONDA_PREFIX", Path(environment["CONDA_PREFIX"])
    yield "this Python's environment", Path(sys.prefix)
    for each in environment.get("LD_LIBRARY_PATH", "").split(":"):
        if each:
            yield "$LD_LIBRARY_PATH", Path(each)
    if environment.get("SPACK_ENV"):
        yield "$SPACK_ENV", Path(environment["SPACK_ENV"]) / ".spack-env" / "view"
    if environment.get("SPACK_ROOT"):
        tree = Path(environment["SPACK_ROOT"]) / "opt" / "spack"
        for depth in ("*/darshan-runtime-*", "*/*/darshan-runtime-*"):
            for prefix in sorted(tree.glob(depth), reverse=True):
                yield "$SPACK_ROOT", prefix


def library_version(library: Path) -> str | None:
    """Return Darshan's release as the library holds it, or None; releases and `main` may share a number."""
    try:
        data = library.read_bytes()
    except OSError:
        return None
    at = data.find(b"lib_ver=%s")
    if at < 0:
        return None
    window = data[max(0, at - 4096) : at + 4096]
    near = min(at, 4096)
    numbers = [(abs(each.start() - near), each[1]) for each in re.finditer(rb"\x00(\d+\.\d+\.\d+[\w.-]*)\x00", window)]
    # zlib's version stands nearby; Darshan's are 3.x.
    darshans = [(distance, number) for distance, number in numbers if number.startswith(b"3.")]
    return min(darshans)[1].decode() if darshans else None


def log_variables(library: Path, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of variables this library may read its log directory from."""
    told: list[str] = []
    configure = library.parent.parent / "bin" / "darshan-config"
    program = str(configure) if configure.is_file() else shutil.which("darshan-config", path=environment.get("PATH"))
    if program:
        try:
            told = [name for name in command_output([program, "--log-path-by-env"]).strip().split(",") if name]
        except (OSError, TimeoutError):  # ChildProcessError is an OSError
            told = []
    names = [name for name in told if re.fullmatch(r"[A-Za-z_]\w*", name)]
    return tuple(dict.fromkeys([*names, *LOG_VARIABLES]))


# ---------------------------------------------------------------- configuration and environment


def config_text(own_spool: Iterable[Path] = (), appended: str = "") -> str:
    """Return a darshan.conf for Dask workers; where logs go is told by the environment, which takes any path.

    Parameters
    ----------
    own_spool : iterable of Path
        Directories of recup's own rows, not to be traced.
    appended : str
        Lines of the user's, which come last and so win.
    """
    excluded = ["[.]pyc?$", "[.]so$", "[.]so[.][0-9.]+$", "/(site|dist)-packages/", "^/proc/", "^/sys/"]
    excluded += [f"^{_as_regex(each)}/" for each in own_spool]
    lines = (
        "# Written by recup.  A pattern is a POSIX regular expression: [.]py$ spares what .py$ would take (x.npy).",
        "MOD_ENABLE DXT_POSIX,DXT_MPIIO",
        "# KiB of segments; they are lost as a whole where MODMEM (MiB) cannot hold them compressed.",
        "MAX_RECORDS 65536 DXT_POSIX,DXT_MPIIO",
        "MODMEM 64",
        "# Files of a process, and MiB of their names.",
        "MAX_RECORDS 8192 POSIX,STDIO",
        "NAMEMEM 8",
        f"NAME_EXCLUDE {','.join(excluded)} *",
        "# Programs that Python and recup start to look at the machine.",
        "APP_EXCLUDE (^|/)(uname|lscpu|ldconfig|git)$",
    )
    return "\n".join(lines) + "\n" + (f"# yours\n{appended.rstrip()}\n" if appended.strip() else "")


def _as_regex(path: Path) -> str:
    """Return a pattern for a path without what ends a value in darshan.conf: comma and white space."""
    return "".join(c if c.isalnum() or c in "/_-" else "." if c in ", \t^\\" else f"[{c}]" for c in str(path))


def worker_environment(
    library: Path, directory: Path, maps: Path, variables: Iterable[str], preloaded: str = ""
) -> dict[str, str]:
    """Return the variables under which a process records its I/O into a directory.

    Parameters
    ----------
    library, directory, maps : Path
        The library; where logs and darshan.conf are; where memory maps of running processes are.
    variables : iterable of str
        Names of variables that hold the log directory.
    preloaded : str
        LD_PRELOAD as it is; its libraries stay.
    """
    return {
        "LD_PRELOAD": preloaded if "libdarshan" in preloaded else ":".join(filter(None, (str(library), preloaded))),
        "DARSHAN_ENABLE_NONMPI": "1",
        "DARSHAN_CONFIG_PATH": str(directory / "darshan.conf"),
        "DARSHAN_LOGPATH": str(directory),
        **dict.fromkeys(variables, str(directory)),
        "DARSHAN_MMAP_LOGPATH": str(maps),
        # Before 3.4 there is no darshan.conf; later releases still honour it.
        "DXT_ENABLE_IO_TRACE": "1",
    }


# ---------------------------------------------------------------- trying it

_PROBE = """
import ctypes, os
print(os.getpid(), hasattr(ctypes.CDLL(None), "darshan_core_shutdown"))
with open("recup-probe.dat", "w+b", buffering=0) as file:
    file.write(b"x")
    file.seek(0)
    file.read(1)
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """What a tiny process under Darshan showed.

    Attributes
    ----------
    reason : str
        Why the library cannot be used; empty where it can.
    log : Path or None
        The log that came.
    settings : dict
        The configuration Darshan says it runs with, as `DARSHAN_DUMP_CONFIG` prints it.
    output : str
        What Darshan and the loader said on stderr besides.
    """

    reason: str
    log: Path | None
    settings: dict[str, str]
    output: str

    @property
    def traces_segments(self) -> bool:
        """Whether DXT is on, as far as Darshan tells."""
        return self.settings.get("DXT_POSIX") == "ENABLED"

    @property
    def is_dated(self) -> bool:
        """Whether logs go into <directory>/<year>/<month>/<day>, since no variable names the directory."""
        return self.settings.get("LOGPATH_BYENV", "") in ("", "NONE") and self.log is None


def try_library(library: Path, variables: Iterable[str], directory: Path) -> Trial:
    """Run a tiny Python under the library, with its logs in this directory, and see what comes.

    The directory needs its darshan.conf.
    """
    if re.search(r"[\s:]", str(library)):
        return Trial(
            f"{library}: a path with a space or colon cannot be preloaded; give another path to it", None, {}, ""
        )
    environment = {n: v for n, v in os.environ.items() if n not in REMOVED_VARIABLES}
    environment |= worker_environment(library, directory, directory, variables, os.environ.get("LD_PRELOAD", ""))
    environment |= {"DARSHAN_DUMP_CONFIG": "1", "LC_ALL": "C"}
    before = set(directory.rglob("*.darshan"))
    with tempfile.TemporaryDirectory(prefix="recup-darshan-", dir=directory) as place:
        try:
            done = subprocess.run(
                [sys.executable, "-c", _PROBE], env=environment, cwd=place, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=_PROBE_S, check=False, errors="replace",
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Trial(f"Python under {library} did not end within {_PROBE_S:.0f} s", None, {}, "")
        except OSError as reason:
            return Trial(f"{sys.executable} could not be started: {reason.strerror}", None, {}, "")
    settings, said = _dumped_settings(done.stderr)
    new = sorted(set(directory.rglob("*.darshan")) - before)
    log = next((each for each in new if f"-{done.stdout.split(' ')[0]}_" in each.name), None)
    wrong = ""
    if done.returncode:
        wrong = f"Python does not run under {library}: {said or f'exit code {done.returncode}'}"
    elif "True" not in done.stdout:
        wrong = f"{library} cannot be preloaded: {said or 'it has no darshan_core_shutdown'}"
    return Trial(wrong, log, settings, said)


def _dumped_settings(text: str) -> tuple[dict[str, str], str]:
    """Return what DARSHAN_DUMP_CONFIG printed as a dict, with modules as ENABLED or DISABLED, and the other lines."""
    settings: dict[str, str] = {}
    others, module = [], ""
    for line in text.splitlines():
        if line.startswith("#"):
            body = line.strip("# \t")
            name, equals, value = body.partition(" = ")
            if equals:
                settings[f"{module} {name[2:]}" if name.startswith("- ") else name] = value
            elif body.endswith(" MODULE CONFIG:"):
                module = body.removesuffix(" MODULE CONFIG:")
            elif module and body in ("- ENABLED", "- DISABLED"):
                settings[module] = body.removeprefix("- ")
        elif line.strip():
            others.append(line.strip())
    return settings, " / ".join(others)[:500]
