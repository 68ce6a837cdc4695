"""The accelerators of a host, as drivers and the kernel describe them.

Covers NVIDIA (nvidia-smi, else /proc), AMD (KFD) and Intel GPUs, and devices of the
kernel's accel class.  It does not cover what a workload does on them, nor display adapters
that compute nothing.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from recup.capture.command import command_output
from recup.capture.machine import ROOT, host_id, read_text
from recup.schema import Accelerator

_NVIDIA_QUERY = ("--query-gpu=pci.bus_id,name,memory.total,driver_version", "--format=csv,noheader,nounits")
_GPU_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}


def accelerator_rows(*, ask_driver: bool = True, root: Path = ROOT) -> list[Accelerator]:
    """Return one row per accelerator of this host, by bus address; an empty list where there is none.

    A device that several sources describe is taken from the first that knows it:
    nvidia-smi, NVIDIA's /proc, AMD's KFD, the kernel's list of graphics devices.

    Raises
    ------
    OSError
        nvidia-smi is there and did not answer, and nothing else tells of a GPU.
    """
    found: dict[str, Accelerator] = {}
    failure: OSError | None = None
    if ask_driver and shutil.which("nvidia-smi"):
        try:
            _add(found, _nvidia_smi())
        except OSError as reason:
            failure = reason
    for rows in (_nvidia_proc(root), _amd(root), _graphics(root), _accel(root)):
        _add(found, rows)
    if failure is not None and not found:
        raise failure
    return [found[device] for device in sorted(found)]


def _add(found: dict[str, Accelerator], rows: Iterator[Accelerator]) -> None:
    for row in rows:
        found.setdefault(row.device, row)


def _nvidia_smi() -> Iterator[Accelerator]:
    for line in command_output(["nvidia-smi", *_NVIDIA_QUERY]).splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4:
            device, model, memory, driver = fields
            memory_bytes = int(memory) << 20 if memory.isdigit() else None
            yield Accelerator(host_id(), _bus_address(device), "gpu", _told(model), memory_bytes, _told(driver))


def _told(text: str) -> str | None:
    return None if not text or text.startswith("[") else text


def _bus_address(text: str) -> str:
    """The kernel's form, 0000:3b:00.0, of a PCI address; NVIDIA writes the domain with eight digits."""
    found = re.fullmatch(r"([0-9a-f]+):([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", text.lower())
    return f"{int(found[1], 16):04x}:{found[2]}" if found else text


def _nvidia_proc(root: Path) -> Iterator[Accelerator]:
    version = re.search(r"Module\s.*?(\d+\.\d+(?:\.\d+)?)", read_text(root / "proc/driver/nvidia/version") or "")
    for information in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(\S.*)$", read_text(information) or "", re.MULTILINE)
        device = _bus_address(information.parent.name)
        yield Accelerator(host_id(), device, "gpu", model[1] if model else None, None, version[1] if version else None)


def _amd(root: Path) -> Iterator[Accelerator]:
    driver = read_text(root / "sys/module/amdgpu/version")
    for node in sorted((root / "sys/class/kfd/kfd/topology/nodes").glob("*")):
        facts = _facts(node / "properties")
        if not facts.get("simd_count"):  # a CPU
            continue
        place = facts.get("location_id", 0)
        device = f"{facts.get('domain', 0):04x}:{place >> 8:02x}:{place >> 3 & 31:02x}.{place & 7}"
        model = read_text(root / "sys/bus/pci/devices" / device / "product_name") or read_text(node / "name")
        banks = [_facts(bank) for bank in (node / "mem_banks").glob("*/properties")]
        # Heap types 1 and 2 are the device's own memory, visible to the CPU or not.
        memory = sum(bank.get("size_in_bytes", 0) for bank in banks if bank.get("heap_type") in (1, 2))
        yield Accelerator(host_id(), device, "gpu", model or None, memory or None, driver)


def _facts(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", read_text(path) or "", re.MULTILINE)}


def _graphics(root: Path) -> Iterator[Accelerator]:
    for card in sorted((root / "sys/class/drm").glob("card*")):
        vendor = read_text(card / "device/vendor") or ""
        if not card.name.removeprefix("card").isdigit() or vendor not in _GPU_VENDORS:
            continue
        product = read_text(card / "device/product_name")
        model = product or f"{_GPU_VENDORS[vendor]} {read_text(card / 'device/device') or ''}".strip()
        memory = read_text(card / "device/mem_info_vram_total") or ""
        memory_bytes = int(memory) if memory.isdigit() else None
        yield Accelerator(host_id(), _slot(card), "gpu", model, memory_bytes, _driver(card))


def _accel(root: Path) -> Iterator[Accelerator]:
    for device in sorted((root / "sys/class/accel").glob("accel[0-9]*")):
        numbers = (read_text(device / "device/vendor"), read_text(device / "device/device"))
        model = " ".join(filter(None, numbers)) or None
        yield Accelerator(host_id(), _slot(device), "other", model, None, _driver(device))


def _slot(device: Path) -> str:
    slot = re.search(r"^PCI_SLOT_NAME=(\S+)$", read_text(device / "device/uevent") or "", re.MULTILINE)
    return slot[1] if slot else device.name


def _driver(device: Path) -> str | None:
    return read_text(device / "device/driver/module/version")
