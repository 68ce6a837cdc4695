import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from recup.capture import accelerators, host, machine
from recup.capture.host import record_process, record_process_in_background
from recup.capture.machine import Mount
from recup.schema import TABLES, Accelerator
from recup.spool import Spool
from tests.unit.spooled import rows


@pytest.fixture(autouse=True)
def nothing_recorded_yet(monkeypatch):
    monkeypatch.setattr(host, "_recorded", {})
    monkeypatch.setattr(machine, "_sizes", {})
    monkeypatch.setattr(machine, "_hung", set())


@pytest.fixture
def tree(tmp_path):
    """Write files of a foreign machine below a directory; returns how."""
    root = tmp_path / "root"
    root.mkdir()

    def write(files):
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    return write


# ---------------------------------------------------------------- the entry point


def test_a_server_leaves_rows_in_every_table_of_its_software_and_machine(tmp_path):
    spool = Spool(tmp_path, "scheduler", "Scheduler-1")
    record_process(
        spool,
        role="scheduler",
        run_directory=tmp_path,
        address="tcp://127.0.0.1:8786",
        scheduler_id="Scheduler-1",
        details={"services": {"dashboard": 8787}, "api_token": "abc"},
    )
    (process,) = rows(spool, "processes")
    (described,) = rows(spool, "hosts")
    packages, config = rows(spool, "packages"), rows(spool, "config")
    assert process["host_id"] == described["host_id"] == machine.host_id()
    assert process["role"] == "scheduler"
    assert process["address"] == "tcp://127.0.0.1:8786"
    assert (process["pid"], process["parent_pid"]) == (os.getpid(), os.getppid())
    assert process["cwd"] == os.getcwd()
    assert process["python_version"] == ".".join(map(str, sys.version_info[:3]))
    assert abs(process["process_started_s"] - time.time()) < 86_400
    assert json.loads(process["details"]) == {"services": {"dashboard": 8787}, "api_token": "[redacted]"}
    assert {row["packages_digest"] for row in packages} == {process["packages_digest"]}
    assert {row["config_digest"] for row in config} == {process["config_digest"]}
    assert {"name": "dask", "version": process["dask_version"]}.items() <= next(
        row for row in packages if row["name"] == "dask"
    ).items()
    assert described["hostname"] == socket.gethostname()
    assert described["cpu_count"] == os.cpu_count()
    assert {row["purpose"] for row in rows(spool, "filesystems")} == {"cwd", "run", "temporary"}
    assert [row["name"] for row in rows(spool, "network_interfaces") if row["used_by_server"]] == ["lo"]
    assert rows(spool, "batch_jobs") != []
    assert rows(spool, "losses") == []


def test_servers_of_one_process_share_packages_and_configuration(tmp_path):
    spools = [Spool(tmp_path, "worker", f"Worker-{number}") for number in range(2)]
    for spool in spools:
        record_process(spool, role="worker", run_directory=tmp_path, name=3, thread_count=2)
    digests = [rows(spool, "processes")[0]["packages_digest"] for spool in spools]
    assert digests[0] == digests[1]
    assert [len(rows(spool, "packages")) > 0 for spool in spools] == [True, False]
    assert [len(rows(spool, "config")) > 0 for spool in spools] == [True, False]
    assert [rows(spool, "processes")[0]["name"] for spool in spools] == ["3", "3"]


def test_another_run_in_the_same_process_gets_its_own_packages(tmp_path):
    spools = [Spool(tmp_path / name, "client", "Client-1") for name in ("one", "two")]
    for spool in spools:
        record_process(spool, role="client", run_directory=spool.run_directory)
    assert all(rows(spool, "packages") for spool in spools)


def test_a_section_that_fails_is_a_loss_and_the_others_are_recorded(tmp_path, monkeypatch):
    def broken(*arguments, **keywords):
        raise ValueError("no /proc here, password=hunter2")

    monkeypatch.setattr(host, "host_row", broken)
    monkeypatch.setattr(host, "config_rows", broken)
    spool = Spool(tmp_path, "worker", "Worker-1")
    record_process(spool, role="worker", run_directory=tmp_path)
    lost = {(row["kind"], row["table"], row["detail"]) for row in rows(spool, "losses")}
    assert lost == {
        ("not_captured", "hosts", "host: ValueError: no /proc here, password=[redacted]"),
        ("not_captured", "config", "config: ValueError: no /proc here, password=[redacted]"),
    }
    (process,) = rows(spool, "processes")
    assert process["config_digest"] is None
    assert process["packages_digest"] is not None


def test_odd_arguments_do_not_raise(tmp_path):
    class Odd:
        def __str__(self):
            raise RuntimeError("no text")

    spool = Spool(tmp_path, "worker", "Worker-1")
    details = {"self": Odd(), "loop": [], 3: float("inf"), "set": {1}}
    details["loop"].append(details["loop"])
    record_process(spool, role="worker", run_directory=tmp_path, name=Odd(), address="odd", details=details)
    (process,) = rows(spool, "processes")
    assert process["name"] == "<Odd whose str() raised RuntimeError>"
    kept = json.loads(process["details"])
    assert (kept["self"], kept["3"], kept["set"]) == ("<Odd>", "inf", [1])
    assert rows(spool, "losses") == []


def test_the_background_thread_does_the_same(tmp_path):
    spool = Spool(tmp_path, "client", "Client-1")
    thread = record_process_in_background(spool, role="client", run_directory=tmp_path)
    assert thread.daemon
    thread.join(60)
    assert len(rows(spool, "processes")) == 1


def test_a_process_that_can_start_no_thread_counts_it(tmp_path, monkeypatch):
    spool = Spool(tmp_path, "client", "Client-1")

    def start(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        record_process_in_background(spool, role="client", run_directory=tmp_path)
    assert [row["detail"] for row in rows(spool, "losses")] == ["process: can't start new thread"]


def test_rows_have_the_columns_of_their_tables(tmp_path):
    spool = Spool(tmp_path, "launcher", "Launcher-1")
    put = spool.put
    seen = {}
    spool.put = lambda row: (seen.setdefault(type(row), row), put(row))[1]
    record_process(spool, role="launcher", run_directory=tmp_path, script=__file__)
    assert {TABLES[name].row for name in ("processes", "hosts", "packages", "environment", "config", "sources")} <= set(
        seen
    )
    assert rows(spool, "losses") == []


# ---------------------------------------------------------------- host


def test_a_foreign_host_is_described(tree):
    root = tree(
        {
            "proc/cpuinfo": "processor : 0\nvendor_id : x\nmodel name\t: Fast CPU 9000\nflags: a b\n",
            "proc/meminfo": "MemTotal:       1024 kB\nMemFree: 1 kB\nSwapTotal: 2 kB\n",
            "sys/devices/system/cpu/cpu0/topology/core_cpus_list": "0,2\n",
            "sys/devices/system/cpu/cpu0/topology/physical_package_id": "0\n",
            "sys/devices/system/cpu/cpu1/topology/core_cpus_list": "1,3\n",
            "sys/devices/system/cpu/cpu1/topology/physical_package_id": "1\n",
            "sys/devices/system/cpu/cpu2/topology/core_cpus_list": "0,2\n",
            "sys/devices/system/cpu/cpu2/topology/physical_package_id": "0\n",
            "sys/devices/system/node/node0/cpulist": "0,2\n",
            "sys/devices/system/node/node10/cpulist": "4\n",
            "sys/devices/system/node/node1/cpulist": "1,3\n",
        }
    )
    row = machine.host_row(root)
    assert (row.cpu_model, row.core_count, row.socket_count) == ("Fast CPU 9000", 2, 2)
    assert (row.memory_bytes, row.swap_bytes) == (1024 * 1024, 2048)
    assert row.numa_nodes == '{"0": "0,2", "1": "1,3", "10": "4"}'


def test_what_the_kernel_does_not_tell_is_null(tree):
    row = machine.host_row(tree({}))
    assert row[5:] == (None, os.cpu_count(), None, None, None, None, None, None)


@pytest.mark.parametrize(
    ("files", "environment", "expected"),
    [
        ({}, {}, None),
        ({".dockerenv": ""}, {}, "docker"),
        ({"run/.containerenv": ""}, {}, "podman"),
        ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({}, {"APPTAINER_CONTAINER": "/x.sif", "SINGULARITY_CONTAINER": "/x.sif"}, "apptainer"),
        ({}, {"SINGULARITY_CONTAINER": "/x.sif"}, "singularity"),
        ({"proc/self/cgroup": "4:memory:/docker/0a1b\n"}, {}, "docker"),
        ({"proc/self/mountinfo": "1 0 0:1 /enroot/data/u /  rw - overlay o rw\n"}, {"SLURM_JOB_ID": "1"}, "enroot"),
        ({}, {"container": "systemd-nspawn"}, "systemd-nspawn"),
    ],
)
def test_container_runtimes_are_recognised(tree, files, environment, expected):
    assert machine.container(tree(files), environment) == expected


# ---------------------------------------------------------------- cgroups


def test_the_tightest_limit_of_a_version_2_hierarchy_holds(tree):
    root = tree(
        {
            "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "proc/self/cgroup": "0::/job_7/step_0/task\n",
            "sys/fs/cgroup/job_7/memory.max": "1000000\n",
            "sys/fs/cgroup/job_7/cpu.max": "max 100000\n",
            "sys/fs/cgroup/job_7/step_0/memory.max": "max\n",
            "sys/fs/cgroup/job_7/step_0/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/job_7/step_0/task/memory.max": "2000000\n",
            "sys/fs/cgroup/job_7/step_0/task/cpu.max": "400000 100000\n",
        }
    )
    assert machine.cgroup_limits(root) == (2.5, 1_000_000)


def test_limits_of_version_1_in_a_container_are_found_below_its_mounts(tree):
    root = tree(
        {
            "proc/self/mountinfo": (
                "32 31 0:29 /docker/ab /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
                "35 31 0:32 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
            ),
            "proc/self/cgroup": "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912\n",
        }
    )
    assert machine.cgroup_limits(root) == (1.5, 536_870_912)


def test_no_limit_is_null(tree):
    root = tree(
        {
            "proc/self/mountinfo": (
                "35 31 0:32 / /cg rw - cgroup cgroup rw,memory\n36 31 0:33 / /cg2 rw - cgroup2 c rw\n"
            ),
            "proc/self/cgroup": "4:memory:/a\n0::/../..\n",
            "cg/a/memory.limit_in_bytes": "9223372036854771712\n",
            "cg/memory.limit_in_bytes": "9223372036854771712\n",
            "cg2/cpu.max": "max 100000\n",
        }
    )
    assert machine.cgroup_limits(root) == (None, None)


# ---------------------------------------------------------------- network


def test_an_infiniband_port_tells_its_rate(tree, monkeypatch):
    stats = machine.psutil.net_if_stats()["lo"]
    interfaces = {
        "eth0": stats._replace(isup=True, speed=25_000, mtu=9000),
        "ib0": stats._replace(isup=True, speed=0, mtu=4092),
        "tap0": stats._replace(isup=False, speed=65_535, mtu=1500),
    }
    address = machine.psutil.net_if_addrs()["lo"][0]
    monkeypatch.setattr(machine.psutil, "net_if_stats", lambda: interfaces)
    monkeypatch.setattr(
        machine.psutil, "net_if_addrs", lambda: {"ib0": [address._replace(address="fe80::1%ib0")], "eth0": [address]}
    )
    root = tree(
        {
            "sys/class/net/eth0/type": "1\n",
            "sys/class/net/tap0/type": "65534\n",
            "sys/class/net/ib0/type": "32\n",
            "sys/class/net/ib0/dev_port": "1\n",
            "sys/class/net/ib0/device/infiniband/mlx5_0/ports/1/rate": "10 Gb/sec (4X)\n",
            "sys/class/net/ib0/device/infiniband/mlx5_0/ports/2/rate": "200 Gb/sec (4X HDR)\n",
            "sys/class/infiniband/mlx5_0/ports/2/rate": "200 Gb/sec (4X HDR)\n",
            "sys/class/infiniband/mlx5_1/ports/1/rate": "100 Gb/sec (4X EDR)\n",
            "sys/class/infiniband/mlx5_1/ports/1/state": "4: ACTIVE\n",
        }
    )
    assert [row[1:] for row in machine.network_rows("tcp://[fe80::1]:8786", root)] == [
        ("eth0", "ethernet", True, 25_000_000_000, 9000, False),
        ("ib0", "infiniband", True, 200_000_000_000, 4092, True),
        ("tap0", "other", False, None, 1500, False),
        ("mlx5_1/1", "infiniband", True, 100_000_000_000, None, False),
    ]


@pytest.mark.parametrize("address", [None, "inproc://127.0.0.1/5/1", "", "tcp://no-such-host.invalid:1"])
def test_an_address_that_is_on_no_network_uses_no_interface(address):
    assert not any(row.used_by_server for row in machine.network_rows(address))


# ---------------------------------------------------------------- filesystems


def test_mounts_are_read_with_their_escapes(tree):
    root = tree(
        {
            "proc/self/mountinfo": (
                "27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard\n"
                r"40 27 0:40 / /data/my\040disk\134x rw - nfs4 server:/a\040b rw,vers=4"
                "\n"
                "41 27 0:41 / /none rw - tmpfs  rw\nbroken line\n"
            )
        }
    )
    assert machine.mounts(root) == [
        Mount("/", "/", "ext4", "/dev/vda", "rw,discard"),
        Mount("/", "/data/my disk\\x", "nfs4", "server:/a b", "rw,vers=4"),
        Mount("/", "/none", "tmpfs", "rw", ""),
    ]


def test_the_longest_mount_holds_a_path_and_the_last_one_covers():
    table = [
        Mount("/", "/", "ext4", "/dev/vda", ""),
        Mount("/", "/scratch", "autofs", "systemd-1", ""),
        Mount("/", "/scratch", "lustre", "10.0.0.1@tcp:/scratch", ""),
        Mount("/", "/scratch2", "nfs", "server:/x", ""),
    ]
    assert machine.holding_mount(table, "/scratch/jane/x").filesystem == "lustre"
    assert machine.holding_mount(table, "/scratch").filesystem == "lustre"
    assert machine.holding_mount(table, "/scratch2").filesystem == "nfs"
    assert machine.holding_mount(table, "/home").point == "/"


@pytest.mark.parametrize(
    ("filesystem", "source", "expected"),
    [
        ("lustre", "10.0.0.1@tcp:10.0.0.2@tcp:/scratch", "10.0.0.1@tcp:10.0.0.2@tcp:/scratch"),
        ("cifs", "//jane:hunter2@server/share", "//server/share"),
        ("fuse.sshfs", "jane@host:/data", "jane@host:/data"),
        ("fuse.davfs", "https://jane:hunter2@host/dav?token=abc", "https://host/dav"),
        ("ext4", "/dev/vda", "/dev/vda"),
    ],
)
def test_the_source_of_a_mount_holds_no_credentials(filesystem, source, expected):
    assert machine.mount_source(Mount("/", "/m", filesystem, source, "")) == expected


def test_a_path_tells_its_filesystem_and_sizes(tmp_path):
    (row,) = machine.filesystem_rows({"run": str(tmp_path / "not there yet"), "script": None})
    told = os.statvfs(tmp_path)
    assert row.purpose == "run"
    assert row.path == str(tmp_path / "not there yet")
    assert os.path.realpath(tmp_path).startswith(row.mount_point)
    assert row.size_bytes == told.f_blocks * told.f_frsize
    assert 0 <= row.free_bytes <= row.size_bytes


def test_an_automounter_is_not_asked_for_its_size(tree, monkeypatch):
    root = tree({"proc/self/mountinfo": "27 1 254:0 / / rw - autofs auto rw\n"})
    monkeypatch.setattr(os, "statvfs", lambda path: pytest.fail("asked"))
    (row,) = machine.filesystem_rows({"cwd": "/home"}, root)
    assert row[3:] == ("/", "autofs", "auto", None, None)


def test_a_filesystem_that_hangs_is_asked_once(monkeypatch, tmp_path):
    asked, release = [], threading.Event()

    def statvfs(path):
        asked.append(path)
        release.wait(60)
        raise OSError("stale")

    monkeypatch.setattr(machine, "_HANG_S", 0.05)
    monkeypatch.setattr(os, "statvfs", statvfs)
    try:
        paths = {"cwd": str(tmp_path), "run": str(tmp_path / "run"), "temporary": str(tmp_path / "t")}
        told = list(machine.filesystem_rows(paths))
    finally:
        release.set()
    assert [row.size_bytes for row in told] == [None, None, None]
    assert len(asked) == 1


# ---------------------------------------------------------------- accelerators


@pytest.fixture
def without_nvidia_smi(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_a_host_without_accelerators_has_no_rows(tree, without_nvidia_smi):
    assert accelerators.accelerator_rows(root=tree({})) == []


def test_nvidia_smi_is_asked_and_agrees_with_the_kernel_on_the_device(tree, without_nvidia_smi, monkeypatch):
    program = without_nvidia_smi / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho '00000000:3B:00.0, NVIDIA A100-SXM4-40GB, 40960, 535.104.05'\n"
        "echo '00000000:D8:00.0, NVIDIA A100-SXM4-40GB, [N/A], 535.104.05'\n"
    )
    program.chmod(0o755)
    root = tree({"proc/driver/nvidia/gpus/0000:3b:00.0/information": "Model: \t\t NVIDIA A100\n"})
    model, driver = "NVIDIA A100-SXM4-40GB", "535.104.05"
    assert accelerators.accelerator_rows(root=root) == [
        Accelerator(machine.host_id(), "0000:3b:00.0", "gpu", model, 40960 << 20, driver),
        Accelerator(machine.host_id(), "0000:d8:00.0", "gpu", model, None, driver),
    ]


def test_a_driver_that_does_not_answer_leaves_what_the_kernel_tells(tree, without_nvidia_smi):
    program = without_nvidia_smi / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    with pytest.raises(ChildProcessError):
        accelerators.accelerator_rows(root=tree({}))
    root = tree(
        {
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\n",
            "proc/driver/nvidia/gpus/0000:3b:00.0/information": "Model: \t\t NVIDIA A100\nIRQ: 1\n",
        }
    )
    expected = [Accelerator(machine.host_id(), "0000:3b:00.0", "gpu", "NVIDIA A100", None, "535.104.05")]
    assert accelerators.accelerator_rows(root=root) == expected


def test_amd_intel_and_other_devices_come_from_the_kernel(tree, without_nvidia_smi):
    nodes = "sys/class/kfd/kfd/topology/nodes"
    root = tree(
        {
            f"{nodes}/0/properties": "cpu_cores_count 64\nsimd_count 0\n",
            f"{nodes}/1/properties": "cpu_cores_count 0\nsimd_count 440\nlocation_id 49408\ndomain 0\n",
            f"{nodes}/1/name": "gfx90a\n",
            f"{nodes}/1/mem_banks/0/properties": "heap_type 1\nsize_in_bytes 68702699520\n",
            "sys/module/amdgpu/version": "6.3.6\n",
            "sys/class/drm/card0/device/vendor": "0x1a03\n",
            "sys/class/drm/card1/device/vendor": "0x1002\n",
            "sys/class/drm/card1/device/uevent": "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:c1:00.0\n",
            "sys/class/drm/card2/device/vendor": "0x8086\n",
            "sys/class/drm/card2/device/device": "0x0bd5\n",
            "sys/class/drm/card2/device/uevent": "PCI_SLOT_NAME=0000:e0:00.0\n",
            "sys/class/drm/card2-DP-1/device/vendor": "0x8086\n",
            "sys/class/accel/accel0/device/vendor": "0x1da3\n",
        }
    )
    assert [row[1:] for row in accelerators.accelerator_rows(root=root)] == [
        ("0000:c1:00.0", "gpu", "gfx90a", 68_702_699_520, "6.3.6"),
        ("0000:e0:00.0", "gpu", "Intel 0x0bd5", None, None),
        ("accel0", "other", "0x1da3", None, None),
    ]


def test_describing_a_process_loads_no_analysis_library(tmp_path):
    from recup.capture.command import command_output

    program = (
        "import sys, pathlib; from recup.spool import Spool; from recup.capture.host import record_process\n"
        f"path = pathlib.Path({str(tmp_path)!r}); record_process(Spool(path, 'client', 'C'), role='client', "
        "run_directory=path)\n"
        "print(sorted({'pyarrow', 'duckdb', 'pandas', 'rich', 'click'} & set(sys.modules)))"
    )
    assert command_output([sys.executable, "-W", "error", "-c", program], timeout_s=60).strip() == "[]"


def test_the_peak_memory_of_a_process_is_its_own_not_that_of_the_one_it_came_from():
    code = (
        "from recup.capture.sampling import process_samples\n"
        "process_samples(lambda metric, _, value: print(value) if metric == 'process_peak_memory_bytes' else None)"
    )
    much = bytearray(400_000_000)
    much[::4096] = b"x" * len(much[::4096])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, close_fds=False)
    assert 1_000_000 < int(done.stdout) < 200_000_000
