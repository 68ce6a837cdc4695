"""A workload whose tasks note their own I/O, to score the join of Darshan's I/O to tasks.

Raw files, appends to a shared file, `.npy`, Parquet, HDF5 and zarr (what of them is
installed), on two workers of three threads, tasks of a millisecond and less among them.
Each task notes key, process, thread, file and time around its I/O in DIRECTORY/truth.

    recup run --darshan benchmarks/io_truth.py DIRECTORY 24
    python benchmarks/score_io.py --run last-run-directory DIRECTORY
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import threading
import time

import numpy as np
from distributed import Client, LocalCluster, get_worker


class Tasks:
    """The tasks of the workload, writing below one directory."""

    def __init__(self, directory):
        self.directory = directory

    @contextlib.contextmanager
    def noted(self, path):
        """Note what the running task does to a file between entering and leaving."""
        key, began = get_worker().get_current_task(), time.time()
        yield
        line = {
            "key": str(key), "pid": os.getpid(), "ident": threading.get_ident(), "path": path, "t0": began,
            "t1": time.time(),
        }  # fmt: skip
        with open(f"{self.directory}/truth/truth-{os.getpid()}-{threading.get_ident()}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def write_npy(self, number):
        path = f"{self.directory}/data/{number}.npy"
        with self.noted(path):
            np.save(path, np.full(20_000, number))
        return path

    def read_npy(self, path):
        with self.noted(path):
            return float(np.load(path).sum())

    def write_raw(self, number):
        path = f"{self.directory}/data/{number}.raw"
        with self.noted(path), open(path, "wb", buffering=0) as file:
            for _ in range(20):
                file.write(bytes(5000))
        return path

    def read_raw(self, path):
        with self.noted(path), open(path, "rb", buffering=0) as file:
            return sum(map(len, iter(lambda: file.read(3000), b"")))

    def write_parquet(self, number):
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = f"{self.directory}/data/{number}.parquet"
        with self.noted(path):
            pq.write_table(pa.table({"x": np.random.rand(50_000)}), path, row_group_size=10_000)
        return path

    def read_parquet(self, path):
        import pyarrow.parquet as pq

        with self.noted(path):
            return pq.read_table(path).num_rows

    def write_h5py(self, number):
        import h5py

        path = f"{self.directory}/data/{number}.h5"
        with self.noted(path), h5py.File(path, "w") as file:
            file["d"] = np.random.rand(100, 200)
        return path

    def read_h5py(self, path):
        import h5py

        with self.noted(path), h5py.File(path, "r") as file:
            return float(file["d"][:].sum())

    def write_zarr(self, number):
        import zarr

        path = f"{self.directory}/data/{number}.zarr"
        with self.noted(path):
            zarr.create_array(path, shape=(100, 100), chunks=(50, 50), dtype="f8")[:] = number
        return path

    def read_zarr(self, path):
        import zarr

        with self.noted(path):
            return float(zarr.open_array(path, mode="r")[:].sum())

    def append(self, number):
        path = f"{self.directory}/data/shared.log"
        with self.noted(path):
            for _ in range(5):
                with open(path, "ab", buffering=0) as file:
                    file.write(bytes(100 + number))

    def tiny(self, number):
        path = f"{self.directory}/data/tiny-{number}"
        with self.noted(path), open(path, "wb", buffering=0) as file:
            file.write(b"1")


def main(directory, count):
    for name in ("data", "truth"):
        os.makedirs(f"{directory}/{name}")
    tasks = Tasks(directory)
    with LocalCluster(n_workers=2, threads_per_worker=3, dashboard_address=None) as cluster, Client(cluster) as client:
        ends = []
        for kind, library in (
            ("npy", "numpy"),
            ("raw", "os"),
            ("parquet", "pyarrow"),
            ("h5py", "h5py"),
            ("zarr", "zarr"),
        ):
            if importlib.util.find_spec(library) is not None:
                written = client.map(getattr(tasks, f"write_{kind}"), range(count), pure=False)
                ends += client.map(getattr(tasks, f"read_{kind}"), written, pure=False)
        ends += client.map(tasks.append, range(count), pure=False)
        ends += client.map(tasks.tiny, range(20 * count), pure=False)
        client.gather(ends)


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]), int(sys.argv[2]))
