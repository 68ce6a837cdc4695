"""The machine a server runs on: host, cgroup limits, network interfaces, filesystems.

Covers what Linux tells in /proc and /sys; elsewhere most facts stay unknown.  Accelerators
stand in `recup.capture.accelerators`, the batch job in `recup.capture.batch`.

Functions take the root of the file tree to read from, so that machines other than this one
can be described in tests.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from recup.capture.redaction import redacted_text
from recup.schema import Filesystem, Host, NetworkInterface

ROOT = Path("/")
_HANG_S = 2.0
"""How long a filesystem may take to answer before it counts as hung."""
_UNLIMITED_BYTES = 1 << 60
"""cgroup v1 writes the largest page-aligned number where there is no limit."""


def read_text(path: Path, limit: int = 1 << 20) -> str | None:
    """Return the first bytes of a small kernel file as text, stripped; None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(limit).decode(errors="replace").strip()
    except OSError:
        return None


# ---------------------------------------------------------------- host


def process_started_s() -> float:
    """Return when this process began, in seconds since the epoch, to a hundredth of a second.

    psutil (used where /proc does not tell) counts from the second the host booted in, so
    it may be off by a whole one.

    Raises
    ------
    psutil.Error
        Nobody tells.
    """
    after_name = (read_text(Path("/proc/self/stat")) or "").rpartition(")")[2].split()
    if len(after_name) < 20 or not hasattr(time, "CLOCK_BOOTTIME"):
        return float(psutil.Process().create_time())
    started_s = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)


@functools.cache
def host_id() -> str:
    """Return the id of this host: boot id and host name, or the name alone where there is no boot id."""
    boot_id = read_text(Path("/proc/sys/kernel/random/boot_id"))
    return ":".join(filter(None, (boot_id, socket.gethostname())))


def host_row(root: Path = ROOT) -> Host:
    """Return the row of this host."""
    system = os.uname()
    memory = _memory(root)
    core_count, socket_count = _cores_and_sockets(root)
    return Host(
        host_id=host_id(),
        hostname=system.nodename,
        operating_system=", ".join(filter(None, (system.sysname, _distribution()))),
        kernel=system.release,
        architecture=system.machine,
        cpu_model=_cpu_model(root),
        cpu_count=os.cpu_count(),
        core_count=core_count,
        socket_count=socket_count,
        numa_nodes=_numa_nodes(root),
        memory_bytes=memory.get("MemTotal"),
        swap_bytes=memory.get("SwapTotal"),
        container=container(root, os.environ),
    )


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _cpu_model(root: Path) -> str | None:
    # Only the first CPU is read: the whole file takes milliseconds per hundred CPUs.
    text = read_text(root / "proc/cpuinfo", 4096) or ""
    for name in ("model name", "cpu model", "Model", "cpu"):
        found = re.search(rf"^{name}\s*:\s*(\S.*?)\s*$", text, re.MULTILINE)
        if found:
            return found[1]
    return None


def _cores_and_sockets(root: Path) -> tuple[int | None, int | None]:
    cores, sockets = set(), set()
    for topology in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology"):
        siblings = read_text(topology / "core_cpus_list") or read_text(topology / "thread_siblings_list")
        package = read_text(topology / "physical_package_id")
        if siblings:
            cores.add(siblings)
        if package and package != "-1":
            sockets.add(package)
    return len(cores) or None, len(sockets) or None


def _numa_nodes(root: Path) -> str | None:
    nodes = {}
    for node in (root / "sys/devices/system/node").glob("node[0-9]*"):
        cpus = read_text(node / "cpulist")
        if cpus is not None:
            nodes[node.name.removeprefix("node")] = cpus
    return json.dumps(dict(sorted(nodes.items(), key=lambda each: int(each[0])))) if nodes else None


def _memory(root: Path) -> dict[str, int]:
    text = read_text(root / "proc/meminfo") or ""
    return {name: int(value) * 1024 for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def container(root: Path, environment: Mapping[str, str]) -> str | None:
    """Return the container runtime this process runs under, as far as it leaves traces; None without any."""
    top = next((mount for mount in mounts(root) if mount.point == "/"), None)
    groups = read_text(root / "proc/self/cgroup") or ""
    traces = (
        ("apptainer", "APPTAINER_CONTAINER" in environment),
        ("singularity", "SINGULARITY_CONTAINER" in environment or (root / ".singularity.d").is_dir()),
        ("charliecloud", "CH_RUNNING" in environment),
        ("shifter", "SHIFTER_RUNTIME" in environment),
        # Pyxis, the Slurm plugin, starts its containers with enroot.
        ("enroot", top is not None and "enroot" in f"{top.root} {top.options}"),
        ("kubernetes", "KUBERNETES_SERVICE_HOST" in environment or "kubepods" in groups),
        ("podman", (root / "run/.containerenv").exists() or "libpod" in groups),
        ("docker", (root / ".dockerenv").exists() or "docker" in groups),
        ("lxc", "lxc" in groups),
    )
    return next((runtime for runtime, is_there in traces if is_there), environment.get("container") or None)


# ---------------------------------------------------------------- mounts and cgroups


class Mount(NamedTuple):
    """One line of mountinfo."""

    root: str
    point: str
    filesystem: str
    source: str
    options: str


def mounts(root: Path = ROOT) -> list[Mount]:
    """Return the mounts this process sees, in mount order."""
    result = []
    for line in (read_text(root / "proc/self/mountinfo", 16 << 20) or "").splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if len(left) >= 6 and len(right) >= 2:
            options = right[2] if len(right) > 2 else ""
            result.append(Mount(*map(_unescaped, (left[3], left[4], right[0], right[1], options))))
    return result


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    decoded = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 255]), os.fsencode(text))
    return decoded.decode(errors="replace")


def cgroup_limits(root: Path = ROOT) -> tuple[float | None, int | None]:
    """Return the CPUs and the memory in bytes that the cgroups of this process allow.

    The tightest limit on the way up the hierarchy holds, in version 1 and 2 alike; None
    where no group has a limit.  Limits above a container's own root are not visible in it.
    """
    cpus, memory = [], []
    groups = _groups(root)
    for mount in mounts(root):
        for directory in _hierarchy(root, mount, groups):
            cpus.append(_cpu_limit(directory))
            memory.append(_memory_limit(directory))
    return (
        min((each for each in cpus if each is not None), default=None),
        min((each for each in memory if each is not None), default=None),
    )


def _groups(root: Path) -> dict[str, str]:
    """Path of this process's group by controller of version 1; version 2 has an empty name."""
    result = {}
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            result[controller] = path
    return result


def _hierarchy(root: Path, mount: Mount, groups: Mapping[str, str]) -> Iterator[Path]:
    """Directories from the process's own group up to the mount."""
    if mount.filesystem == "cgroup2":
        group = groups.get("")
    elif mount.filesystem == "cgroup":
        used = {"cpu", "memory"} & set(mount.options.split(","))
        group = next((groups[each] for each in used if each in groups), None)
    else:
        return
    if group is None:
        return
    # In a container without its own cgroup namespace both paths begin at the host's root.
    prefix = mount.root.rstrip("/")
    if group == prefix or group.startswith(f"{prefix}/"):
        group = group[len(prefix) :]
    elif mount.root != "/":
        group = ""
    top = root / mount.point.lstrip("/")
    inner = top if ".." in group.split("/") else top / group.strip("/")
    yield inner
    while inner != top:
        inner = inner.parent
        yield inner


def _cpu_limit(directory: Path) -> float | None:
    text = read_text(directory / "cpu.max")
    if text is not None:
        quota, _, period = text.partition(" ")
    else:
        quota = read_text(directory / "cpu.cfs_quota_us") or ""
        period = read_text(directory / "cpu.cfs_period_us") or ""
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def _memory_limit(directory: Path) -> int | None:
    text = read_text(directory / "memory.max") or read_text(directory / "memory.limit_in_bytes")
    try:
        limit = int(text or "")
    except ValueError:
        return None
    return limit if limit < _UNLIMITED_BYTES else None


# ---------------------------------------------------------------- network


def network_rows(address: str | None, root: Path = ROOT) -> Iterator[NetworkInterface]:
    """Yield one row per network interface, and per InfiniBand port that has no interface.

    ``used_by_server`` is true of the interface that holds the host of the server's address;
    of none where the address is not known or is no network address.
    """
    own = _address_hosts(address)
    addresses = psutil.net_if_addrs()
    seen_devices = set()
    for name, stats in sorted(psutil.net_if_stats().items()):
        directory = root / "sys/class/net" / name
        kind = _interface_kind(directory, name)
        port = _infiniband_port(directory)
        if port is not None:
            seen_devices.add(port.parent.parent.name)
        speed = _rate(port) if port is not None else None
        # 65535 (and 2^32 - 1) is how the kernel's -1, unknown, reads when unsigned.
        if speed is None and 0 < stats.speed < 2**31 and stats.speed != 65_535:
            speed = stats.speed * 1_000_000
        yield NetworkInterface(
            host_id=host_id(),
            name=name,
            kind=kind,
            is_up=bool(stats.isup),
            speed_bits_per_s=speed,
            mtu_bytes=stats.mtu or None,
            used_by_server=any(each.address.partition("%")[0] in own for each in addresses.get(name, ())),
        )
    for port in sorted((root / "sys/class/infiniband").glob("*/ports/*")):
        device = port.parent.parent.name
        if device not in seen_devices:
            is_up = "ACTIVE" in (read_text(port / "state") or "")
            yield NetworkInterface(host_id(), f"{device}/{port.name}", "infiniband", is_up, _rate(port), None, False)


def _interface_kind(directory: Path, name: str) -> str:
    number = read_text(directory / "type")
    if number == "1" and (directory / "wireless").exists():
        return "other"
    if number is None and name == "lo":
        return "loopback"
    return {"1": "ethernet", "32": "infiniband", "772": "loopback"}.get(number or "", "other")


def _infiniband_port(directory: Path) -> Path | None:
    """Port directory of the InfiniBand (or RoCE) device behind an interface."""
    number = int(read_text(directory / "dev_port") or "0", 0) + 1
    for device in (directory / "device/infiniband").glob("*"):
        port = device / "ports" / str(number)
        return port if port.is_dir() else device / "ports/1"
    return None


def _rate(port: Path) -> int | None:
    found = re.match(r"([\d.]+) Gb/sec", read_text(port / "rate") or "")
    return round(float(found[1]) * 1e9) or None if found else None


def _address_hosts(address: str | None) -> set[str]:
    """IP addresses of the host part of a Dask address; looks a host name up, which may take seconds."""
    if not address or address.startswith("inproc"):
        return set()
    host = address.rpartition("://")[2]
    host = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    if ":" in host or host.replace(".", "").isdigit():
        return {host.partition("%")[0]}
    try:
        return {str(each[4][0]).partition("%")[0] for each in socket.getaddrinfo(host, None)}
    except OSError:
        return set()


# ---------------------------------------------------------------- filesystems

_hung: set[str] = set()
"""Mount points (and paths) that did not answer; they are never asked again."""
_sizes: dict[str, tuple[int | None, int | None]] = {}


def filesystem_rows(paths: Mapping[str, str | None], root: Path = ROOT) -> Iterator[Filesystem]:
    """Yield one row per purpose and path in use: the filesystem that holds it.

    A filesystem that does not answer within two seconds keeps an unknown size, and so does
    an automounter's: asking could mount things.
    """
    table = mounts(root)
    for purpose, path in paths.items():
        if path is None:
            continue
        real = _answer(path, functools.partial(os.path.realpath, path)) or path
        mount = holding_mount(table, real)
        if mount is None:
            yield Filesystem(host_id(), purpose, path, None, None, None, None, None)
            continue
        size, free = _size(mount, real)
        source = mount_source(mount)
        yield Filesystem(host_id(), purpose, path, mount.point, mount.filesystem, source, size, free)


def paths_in_use(run_directory: Path, script: str | None, local_directory: str | None) -> dict[str, str | None]:
    """Return the paths a server uses by purpose, None where it has none."""
    try:
        cwd: str | None = os.getcwd()
    except OSError:
        cwd = None
    return {
        "cwd": cwd,
        "script": os.path.dirname(os.path.abspath(script)) if script and cwd else None,
        "run": str(run_directory),
        "local_directory": None if local_directory is None else os.fspath(local_directory),
        "temporary": tempfile.gettempdir(),
    }


def holding_mount(table: list[Mount], path: str) -> Mount | None:
    """Return the mount with the longest prefix of the path; of several on one point the last one covers."""
    best = None
    for mount in table:
        prefix = mount.point.rstrip("/")
        is_prefix = path == prefix or path.startswith(f"{prefix}/")
        if is_prefix and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def mount_source(mount: Mount) -> str:
    """Return the device or server of a mount without credentials or options."""
    if mount.filesystem == "lustre":  # 10.0.0.1@tcp:/scratch: the @ joins address and network
        return mount.source
    source = redacted_text(mount.source)
    source = re.sub(r"(^|//)[^/@\s:]*:[^/@\s]*@", r"\1", source)
    return source.partition("?")[0]


def _size(mount: Mount, path: str) -> tuple[int | None, int | None]:
    if mount.filesystem == "autofs":
        return None, None
    if path not in _sizes:
        told = _answer(mount.point, lambda: os.statvfs(path if os.path.exists(path) else mount.point))
        if told is None or not told.f_blocks:
            _sizes[path] = (None, None)
        else:
            _sizes[path] = (told.f_blocks * told.f_frsize, told.f_bavail * told.f_frsize)
    return _sizes[path]


def _answer(subject: str, ask: Callable[[], Any]) -> Any:
    """Return what a call into a filesystem tells; None when it fails or hangs.

    It runs in a thread of its own: a dead network filesystem holds its caller for good.
    """
    if subject in _hung:
        return None
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(ask())
        except (OSError, ValueError):
            answers.append(None)

    thread = threading.Thread(target=run, name="recup-filesystem", daemon=True)
    thread.start()
    thread.join(_HANG_S)
    if not answers:
        _hung.add(subject)
        return None
    return answers[0]
