"""The software of a server: its packages, its environment variables and its process.

Covers what is installed and how the interpreter was started.  The Dask configuration
stands in `recup.capture.configuration`, the user's own code in `recup.capture.provenance`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from recup import __version__
from recup.capture.configuration import json_value
from recup.capture.machine import cgroup_limits, host_id, process_started_s
from recup.capture.redaction import redacted_arguments, redacted_text, redacted_value
from recup.schema import EnvironmentVariable, Package, Process
from recup.spool import Spool, key_text

__all__ = [
    "ENVIRONMENT_NAMES",
    "ENVIRONMENT_PREFIXES",
    "Server",
    "environment_rows",
    "installed_packages",
    "process_row",
    "redacted_text",
]

ENVIRONMENT_NAMES = (
    "CONDA_DEFAULT_ENV", "CONDA_PREFIX", "CUDA_VISIBLE_DEVICES", "GLIBC_TUNABLES", "HOSTNAME", "JOB_ID", "JOB_NAME",
    "LANG", "LD_BIND_NOW", "LD_LIBRARY_PATH", "LD_PRELOAD", "LOADEDMODULES", "MODULEPATH", "NHOSTS", "NSLOTS",
    "NVIDIA_VISIBLE_DEVICES", "PATH", "PE_HOSTFILE", "QUEUE", "SPACK_ENV", "TMPDIR", "TZ", "VIRTUAL_ENV", "XLA_FLAGS",
)  # fmt: skip
"""Variables recorded by their exact name."""

ENVIRONMENT_PREFIXES = (
    "ARROW_", "BLIS_", "BLOSC_", "CUDA_", "DARSHAN_", "DASK_", "FI_", "FLUX_", "GDAL_", "GOMP_", "GOTO_", "GPU_DEVICE_",
    "HDF5_", "HIP_", "HSA_", "I_MPI_", "KMP_", "LC_", "LSB_", "LSF_", "LS_", "MALLOC_", "MKL_", "MPICH_", "MV2_",
    "NCCL_", "NUMBA_", "NUMEXPR_", "OMPI_", "OMP_", "OPENBLAS_", "PALS_", "PBS_", "PMIX_", "PMI_", "PSM2_", "PYTHON",
    "RECUP_", "ROCR_", "ROMIO_", "SGE_", "SLURM_", "TBB_", "UCX_", "VECLIB_", "ZE_",
)  # fmt: skip
"""Variables recorded when their name begins so: what sets threads, memory, devices, network, files and the job."""

_LENGTH_LIMIT = 65_536
_NORMALISED = re.compile(r"[-_.]+")


@dataclasses.dataclass
class Server:
    """The server (or launcher) that is described, as its caller knows it; see `recup.capture.host`."""

    spool: Spool
    role: str
    run_directory: Path
    address: str | None = None
    name: object = None
    scheduler_id: str | None = None
    thread_count: int | None = None
    memory_limit_bytes: int | None = None
    local_directory: str | None = None
    details: dict[str, Any] | None = None
    script: str | None = None
    packages_digest: str | None = None
    config_digest: str | None = None


# ---------------------------------------------------------------- packages


def installed_packages() -> tuple[str, list[Package]]:
    """Return the digest and the rows of the installed distributions: one row per normalised name.

    Of a distribution installed twice the one that would be imported counts.  The digest is
    the SHA-256 (first 16 hex digits) of the sorted ``name==version`` lines.
    """
    return _installed_packages(tuple(sys.path))


@functools.lru_cache(maxsize=4)
def _installed_packages(path: tuple[str, ...]) -> tuple[str, list[Package]]:
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions(path=list(path)):
        name, version = _name_and_version(distribution)
        if name and version:
            versions.setdefault(_NORMALISED.sub("-", name).lower(), version)
    lines = "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))
    digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
    return digest, [Package(digest, name, version) for name, version in sorted(versions.items())]


def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str | None, str | None]:
    """Name and version from the directory's name: reading the metadata takes a hundred times as long."""
    directory = getattr(getattr(distribution, "_path", None), "name", "")
    name, separator, version = directory.removesuffix(".dist-info").partition("-")
    if directory.endswith(".dist-info") and separator and name and "-" not in version:
        return name, version
    try:
        metadata: Any = distribution.metadata
        return metadata.get("Name"), metadata.get("Version")
    except Exception:  # noqa: BLE001 - half removed, or not text: what is raised depends on who finds distributions
        return None, None


# ---------------------------------------------------------------- environment


def environment_rows(environment: Mapping[str, str] | None = None) -> Iterator[EnvironmentVariable]:
    """Yield one row per variable on the allow-list (`ENVIRONMENT_NAMES`, `ENVIRONMENT_PREFIXES`).

    The value is null when the name looks secret; secrets inside other values are redacted.
    """
    for name, value in sorted((os.environ if environment is None else environment).items()):
        if name in ENVIRONMENT_NAMES or name.startswith(ENVIRONMENT_PREFIXES):
            shown = redacted_value(name, value)
            if shown is not None and len(shown) > _LENGTH_LIMIT:
                shown = f"{shown[:_LENGTH_LIMIT]}... ({len(shown)} characters)"
            yield EnvironmentVariable(name, shown)


# ---------------------------------------------------------------- process


def process_row(server: Server) -> Process:
    """Return the row of the process a server runs in; digests are those collected before."""
    cgroup_cpu, cgroup_memory = _or_none(cgroup_limits) or (None, None)
    local_directory = server.local_directory
    return Process(
        time_ns=time.time_ns(),
        role=server.role,
        address=server.address,
        name=None if server.name is None else key_text(server.name)[:1000],
        scheduler_id=server.scheduler_id,
        host_id=host_id(),
        pid=os.getpid(),
        parent_pid=os.getppid(),
        process_started_s=_or_none(process_started_s),
        executable=sys.executable or "",
        arguments=json.dumps(redacted_arguments(sys.orig_argv)),
        cwd=_or_none(os.getcwd),
        python_version=sys.version.split()[0],
        dask_version=_version("dask", server),
        distributed_version=_version("distributed", server),
        recup_version=__version__,
        thread_count=server.thread_count,
        memory_limit_bytes=server.memory_limit_bytes,
        local_directory=None if local_directory is None else os.fspath(local_directory),
        affinity=_or_none(lambda: json.dumps(sorted(os.sched_getaffinity(os.getpid())))),
        cgroup_cpu_limit=cgroup_cpu,
        cgroup_memory_limit_bytes=cgroup_memory,
        resource_limits=json.dumps(_resource_limits()),
        packages_digest=server.packages_digest,
        config_digest=server.config_digest,
        details=json_value("details", server.details) if server.details else None,
    )


def _version(module_name: str, server: Server) -> str | None:
    """Version of the module that is loaded, else of the one that would be."""
    loaded = getattr(sys.modules.get(module_name), "__version__", None)
    if isinstance(loaded, str):
        return loaded
    if server.packages_digest is None:
        return None
    return {row.name: row.version for row in installed_packages()[1]}.get(module_name)


def _resource_limits() -> dict[str, list[int | None]]:
    limits = {}
    for name in sorted(vars(resource)):
        if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE":  # the old name of NOFILE
            pair = _or_none(lambda name=name: resource.getrlimit(getattr(resource, name)))
            if pair is not None:
                shown = [None if each == resource.RLIM_INFINITY else each for each in pair]
                limits[name.removeprefix("RLIMIT_").lower()] = shown
    return limits


def _or_none(fact: Any) -> Any:
    """Return what the call tells, or None where the system does not tell it."""
    try:
        return fact()
    except (OSError, ValueError, AttributeError, psutil.Error):
        return None
