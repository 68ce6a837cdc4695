"""Find and count the bright objects in a set of images, with dask-image.

    make images ─▶ normalize ─▶ grayscale ─▶ gaussian ─▶ threshold ─▶ label ─▶ save

The images are made first, so there is nothing to download.  Each step is a function that
takes a Dask array and returns a new one; nothing is computed before `process` asks for it.
The same code runs on three kinds of cluster:

    python image_processing.py --mode local --workers 2
    python image_processing.py --mode distributed --scheduler-file scheduler.json
    mpirun -n 4 python image_processing.py --mode mpi

For the same --images, --size and --seed it prints the same result on each of them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import tifffile
from dask_image.imread import imread
from dask_image.ndfilters import gaussian_filter
from dask_image.ndmeasure import label as label_objects
from distributed import Client, LocalCluster
from imageio.v3 import imwrite
from scipy.ndimage import generate_binary_structure

TILE = 512
"""Images are blurred in square tiles of this many pixels a side."""


# ---------------------------------------------------------------- the images


def make_image(path: Path, index: int, size: tuple[int, int], seed: int) -> Path:
    """Write one PNG: bright discs on a dark, noisy ground, always the same for a seed and index."""
    random = np.random.default_rng([seed, index])
    height, width = size
    rows, columns = np.ogrid[:height, :width]
    image = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
    for _ in range(height * width // 8000):
        radius, y, x = random.integers((5, 0, 0), (20, height, width))
        box = np.s_[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        disc = (rows[box[0]] - y) ** 2 + (columns[:, box[1]] - x) ** 2 <= radius**2
        image[box][disc] = random.integers(150, 256, 3)
    imwrite(path, image)
    return path


def make_images(directory: Path, count: int, size: tuple[int, int], seed: int) -> None:
    """Write the images in parallel, one task each."""
    directory.mkdir(parents=True, exist_ok=True)
    make = dask.delayed(make_image)
    dask.compute([make(directory / f"image-{index:05}.png", index, size, seed) for index in range(count)])


# ---------------------------------------------------------------- the steps
# Dask names tasks after the function they call: `normalize_block` and so on, in its
# dashboard and in any record of the run.


def normalize(images: da.Array) -> da.Array:
    """Stretch each image to the range 0 to 1."""

    def normalize_block(block: np.ndarray) -> np.ndarray:
        low, high = block.min(), block.max()
        return (block.astype("float32") - low) / max(high - low, 1)

    return images.map_blocks(normalize_block, dtype="float32")


def grayscale(images: da.Array) -> da.Array:
    """Turn red, green and blue into luminance (ITU-R BT.601)."""

    def grayscale_block(block: np.ndarray) -> np.ndarray:
        return block @ np.array([0.299, 0.587, 0.114], dtype="float32")

    return images.map_blocks(grayscale_block, dtype="float32", drop_axis=3)


def gaussian(images: da.Array, sigma: float = 2.0) -> da.Array:
    """Blur each image, tile by tile; neighbouring tiles exchange their edges."""
    return gaussian_filter(images.rechunk((1, TILE, TILE)), sigma=(0, sigma, sigma))


def threshold(images: da.Array, level: float = 0.4) -> da.Array:
    """Tell objects (True) from ground (False)."""

    def threshold_block(block: np.ndarray) -> np.ndarray:
        return block > level

    return images.map_blocks(threshold_block, dtype=bool)


def label(masks: da.Array) -> tuple[da.Array, da.Array]:
    """Number the objects 1, 2, ... through all images; returns the labels and how many there are.

    Pixels that touch belong to one object, but never across images.  The tiles are put
    together first: dask-image's graph grows with the square of the number of tiles it joins.
    """
    structure = np.zeros((3, 3, 3), dtype=bool)
    structure[1] = generate_binary_structure(2, 1)
    return label_objects(masks.rechunk((1, -1, -1)), structure)


def save(labels: da.Array, directory: Path) -> da.Array:
    """Write each labelled image as a TIFF file; returns the checksum of each one's pixels."""
    directory.mkdir(parents=True, exist_ok=True)

    def save_block(block: np.ndarray, block_info: dict) -> np.ndarray:
        index = block_info[0]["chunk-location"][0]
        tifffile.imwrite(directory / f"labels-{index:05}.tif", block[0])
        return np.array([hashlib.sha256(block.astype("<i4").tobytes()).hexdigest()])

    return labels.map_blocks(save_block, drop_axis=(1, 2), meta=np.empty(0, "U64"))


def process(directory: Path) -> tuple[int, str]:
    """Run all steps on the images of a directory; returns how many objects there are and a checksum."""
    images = imread(str(directory / "image-*.png"))
    masks = threshold(gaussian(grayscale(normalize(images)))).persist()
    labels, count = label(masks)
    object_count, checksums = dask.compute(count, save(labels, directory / "labels"))
    return int(object_count), hashlib.sha256("".join(checksums).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- the clusters


@contextlib.contextmanager
def local_cluster(options: argparse.Namespace) -> Iterator[Client]:
    """Start workers on this machine, as processes or as threads of this one."""
    with (
        LocalCluster(
            n_workers=options.workers,
            threads_per_worker=options.threads_per_worker,
            processes=options.processes,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextlib.contextmanager
def distributed_cluster(options: argparse.Namespace) -> Iterator[Client]:
    """Connect to a cluster started with `dask scheduler` and `dask worker`."""
    with Client(options.scheduler, scheduler_file=options.scheduler_file) as client:
        client.wait_for_workers(options.workers)
        yield client


@contextlib.contextmanager
def mpi_cluster(options: argparse.Namespace) -> Iterator[Client]:
    """Share roles out by MPI rank: 0 is the scheduler, 1 runs this program, the others are workers."""
    from dask_mpi import initialize, send_close_signal

    if not initialize(nthreads=options.threads_per_worker, dashboard_address=":0", exit=False):
        raise SystemExit  # the scheduler or a worker, whose work is done
    try:
        with Client() as client:
            yield client
    finally:
        send_close_signal()


CLUSTERS = {"local": local_cluster, "distributed": distributed_cluster, "mpi": mpi_cluster}


# ---------------------------------------------------------------- the program


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Find and count the bright objects in a set of images.")
    parser.add_argument("--images", type=int, default=8, help="how many (%(default)s)")
    parser.add_argument("--size", default="1024x1024", help="of each, HEIGHTxWIDTH in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the made images (%(default)s)")
    parser.add_argument("--output", type=Path, help="directory all workers can write to (a temporary one)")
    parser.add_argument("--mode", choices=CLUSTERS, default="local", help="kind of cluster (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="to start, or to wait for (%(default)s)")
    parser.add_argument("--threads-per-worker", type=int, default=1, help="in modes local and mpi (%(default)s)")
    parser.add_argument(
        "--processes", action=argparse.BooleanOptionalAction, default=True, help="workers are processes, in mode local"
    )
    parser.add_argument("--scheduler", help="address of the scheduler, in mode distributed")
    parser.add_argument("--scheduler-file", help="file that tells its address, in mode distributed")
    options = parser.parse_args(arguments)
    if options.mode == "distributed" and not (options.scheduler or options.scheduler_file):
        parser.error("--mode distributed needs --scheduler or --scheduler-file")
    try:
        height, width = map(int, options.size.split("x"))
    except ValueError:
        parser.error(f"--size is HEIGHTxWIDTH, e.g. 1024x1024, not {options.size}")
    options.size = height, width
    return options


def main() -> None:
    """Make the images, process them and print what was found."""
    options = parse()
    with CLUSTERS[options.mode](options), contextlib.ExitStack() as stack:
        directory = options.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory = directory.absolute()
        make_images(directory, options.images, options.size, options.seed)
        object_count, checksum = process(directory)
    print(f"images    {options.images} of {options.size[0]} x {options.size[1]}")
    print(f"objects   {object_count}")
    print(f"checksum  {checksum}")


if __name__ == "__main__":
    main()
