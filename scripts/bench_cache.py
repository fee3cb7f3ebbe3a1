"""How fast rows are written to and read from a feature file, beside raw files, h5py and NumPy in memory.

    python scripts/bench_cache.py [--rows 50000] [--width 2048] [--dtype float32] [--rounds 5] [--folder DIR]

Writes go in batches of 256 consecutive rows into files whose space is reserved beforehand, and are timed up to the page
cache and up to the end of an fdatasync. Reads are of batches of 256 random rows, out of files that the page cache holds
and that were read back from the disk, if not said otherwise: with indices ascending, as h5py demands, and shuffled,
where h5py's user sorts them and puts the rows back in order. The ways take turns; the figures are medians.

    python scripts/bench_cache.py --epochs [--rows 8000] [--width 25088] [--rounds 5]

Shuffled epochs of a DataLoader instead, without workers, in batches of 64: over `cache.dataset()`, and over a Dataset
that reads rows by h5py as its users write it. Files are in the page cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import h5py
import numpy as np
import torch
from bench_rerun import cpu_model, seconds
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from xxhash import xxh3_64_intdigest

from precompute.cache import Layer, RowWriter, Samples, create, open_cache, verify

BATCH = 256
READS = 20  # batches a round
SLOW_READS = 2  # the same, of chunks that have to be unpacked
MEMORY = "NumPy array in memory"

Features = NDArray[np.floating[Any]]
Rows = NDArray[np.int64]
Writing = tuple[Callable[[int, Features], object], Callable[[], object], Callable[[], object]]
"""Write a batch from this row on; hand over to the page cache what a library still holds; wait for the disk."""


def nothing() -> None:
    """What a way without a buffer or a file of its own does at the end."""


@contextmanager
def raw_file(features: Features) -> Iterator[Writing]:
    descriptor, width = os.open("raw", os.O_RDWR | os.O_CREAT), features[0].nbytes
    os.posix_fallocate(descriptor, 0, features.nbytes)
    os.fsync(descriptor)
    yield lambda row, batch: os.pwrite(descriptor, batch.data, row * width), nothing, lambda: os.fdatasync(descriptor)
    os.close(descriptor)


@contextmanager
def cache_file(features: Features) -> Iterator[Writing]:
    count = len(features)
    ids = np.array([b"%09d.jpg" % row for row in range(count)])
    zeros, ones, labels = np.zeros(count, np.int64), np.ones(count, np.uint8), np.full(count, -1, np.int32)
    digests = np.random.default_rng(1).integers(0, 256, (count, 32), dtype=np.uint8)
    samples = Samples(ids=ids, sizes=zeros, mtimes=zeros, labels=labels, splits=np.zeros(count, np.uint8), classes=())
    spec = {"layers": [{"name": "f", "pooling": "none", "axes": ["channel"]}]}
    layers = {"f": Layer(features.shape[1:], features.dtype, ("channel",), "none")}
    layout = create("a.h5", spec=spec, samples=samples, layers=layers)
    with RowWriter("a.h5", layout) as writer:

        def write(row: int, batch: Features) -> None:
            rows = slice(row, row + len(batch))
            writer.write(
                np.arange(row, row + len(batch)),
                {"f": batch},
                digests=digests[rows],
                statuses=ones[rows],
                sizes=zeros[rows],
                mtimes=zeros[rows],
            )

        yield write, nothing, writer.sync


def h5py_file(name: str, **storage: Any) -> Callable[[Features], Any]:
    @contextmanager
    def way(features: Features) -> Iterator[Writing]:
        with h5py.File(name, "w") as file:
            dataset = file.create_dataset("f", features.shape, features.dtype, **storage)

            def write(row: int, batch: Features) -> None:
                dataset[row : row + len(batch)] = batch

            yield write, file.flush, lambda: os.fdatasync(file.id.get_vfd_handle())

    return way


@contextmanager
def no_file(_: Features) -> Iterator[Writing]:
    yield lambda _, batch: list(map(xxh3_64_intdigest, batch)), nothing, nothing


def measure_writes(features: Features, rounds: int) -> None:
    ways: dict[str, Callable[[Features], Any]] = {
        "os.pwrite": raw_file,
        "precompute, with checksums": cache_file,
        "h5py, contiguous": h5py_file("b.h5"),
        f"h5py, chunks of {BATCH} rows": h5py_file("c.h5", chunks=(BATCH, features.shape[1])),
        "XXH3 alone": no_file,
    }
    cached: dict[str, list[float]] = {name: [] for name in ways}
    synced: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            with way(features) as (write, flush, sync):
                os.sync()  # nobody pays for what the way before has left
                began = time.perf_counter()
                for row in range(0, len(features), BATCH):
                    write(row, features[row : row + BATCH])
                flush()
                cached[name].append(time.perf_counter() - began)
                sync()
                synced[name].append(time.perf_counter() - began)
            for left in os.listdir():
                os.unlink(left)
    report("writes, up to the page cache", cached, features.nbytes, "os.pwrite")
    report("writes, up to the end of fdatasync", synced, features.nbytes, "os.pwrite")


def write_all(way: Callable[[Features], Any], features: Features) -> None:
    with way(features) as (write, flush, _):
        for row in range(0, len(features), BATCH):
            write(row, features[row : row + BATCH])
        flush()


def measure_reads(features: Features, rounds: int) -> None:
    chunked = {"chunks": (64, features.shape[1])}
    storages: dict[str, dict[str, Any]] = {
        "h5py, contiguous": {},
        "h5py, chunks of 64 rows": chunked,
        "h5py, the same with gzip": {**chunked, "compression": "gzip"},
    }
    for name, storage in storages.items():
        write_all(h5py_file(name, **storage), features)
    write_all(cache_file, features)
    os.rename("a.h5", "read.h5")
    forget_pages()
    write_all(cache_file, features)
    files = {name: h5py.File(name) for name in storages}
    generator = np.random.default_rng(2)
    shuffled = [generator.choice(len(features), BATCH, replace=False) for _ in range(READS)]
    measure_order("ascending", [np.sort(rows) for rows in shuffled], features, files, read_ascending, rounds)
    measure_order("shuffled", shuffled, features, files, read_shuffled, rounds)
    for file in files.values():
        file.close()
    whole = open_cache("read.h5")
    median = statistics.median(seconds(lambda: verify(whole)) for _ in range(rounds))
    print(f"verify, all rows against their checksums: {features.nbytes / median / 1e6:,.0f} MB/s")


def forget_pages() -> None:
    """Read back from the disk they lie in large pages, which a file that was just written does not."""
    os.sync()
    for name in os.listdir():
        with open(name, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_order(
    order: str,
    batches: list[Rows],
    features: Features,
    files: dict[str, h5py.File],
    read_h5py: Callable[[h5py.Dataset, Rows], Features],
    rounds: int,
) -> None:
    mapped = {"precompute": open_cache("read.h5").features(), "precompute, just written": open_cache("a.h5").features()}
    taken: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        arrays = {MEMORY: features, **mapped, "precompute, just opened": open_cache("read.h5").features()}
        for name, array in arrays.items():
            if number == 0 and name in mapped:
                np.array(array)  # every page of it is met once
            taken.setdefault(name, []).extend(seconds(partial(array.__getitem__, rows)) for rows in batches)
        for name, file in files.items():
            some = batches[:SLOW_READS] if "gzip" in name else batches
            taken.setdefault(name, []).extend(seconds(partial(read_h5py, file["f"], rows)) for rows in some)
        if number == 0:
            taken.clear()  # the first round warms the page cache
    report(f"reads of {BATCH} random rows, {order}", taken, BATCH * features[0].nbytes, MEMORY, than="precompute")


class H5pyRows(Dataset[tuple[torch.Tensor, int]]):
    """A row at a time, as it is written in a quarter of an hour."""

    def __init__(self, path: str) -> None:
        self._file = h5py.File(path, locking=False)
        self._features, self._labels = self._file["features/f"], self._file["samples/label"][:]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self._features[index].astype(np.float32, copy=False)), int(self._labels[index])


def epoch(dataset: Dataset[tuple[torch.Tensor, int]]) -> None:
    for _ in DataLoader(dataset, batch_size=64, shuffle=True):
        pass


def measure_epochs(features: Features, rounds: int) -> None:
    write_all(cache_file, features)
    cache, taken = open_cache("a.h5").dataset(), dict[str, list[float]]()
    rows = H5pyRows("a.h5")
    for number in range(rounds + 1):
        for name, dataset in {
            "h5py": rows,
            "precompute": cache,
            "h5py, just opened": H5pyRows("a.h5"),
            "precompute, just opened": open_cache("a.h5").dataset(),
        }.items():
            taken.setdefault(name, []).append(seconds(partial(epoch, dataset)))
        if number == 0:
            taken.clear()
    for name, values in taken.items():
        each = " ".join(f"{value:.2f}" for value in values)
        print(f"  {name:24} {statistics.median(values):6.2f} s an epoch, of {each}")


def read_ascending(dataset: h5py.Dataset, rows: Rows) -> Features:
    batch: Features = dataset[rows]
    return batch


def read_shuffled(dataset: h5py.Dataset, rows: Rows) -> Features:
    order = np.argsort(rows)
    batch = np.empty((len(rows), dataset.shape[1]), dataset.dtype)
    batch[order] = dataset[rows[order]]
    return batch


def report(title: str, taken: dict[str, list[float]], size: int, yardstick: str, *, than: str | None = None) -> None:
    medians = {name: statistics.median(values) for name, values in taken.items()}
    print(title)
    for name, median in medians.items():
        line = f"  {name:28} {size / median / 1e6:9,.0f} MB/s {medians[yardstick] / median:8.1%} of {yardstick}"
        print(f"{line}   {than}: {median / medians[than]:.1f} x" if than and not name.startswith(than) else line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", action="store_true", help="measure shuffled epochs instead")
    parser.add_argument("--folder", help="where to write; a temporary folder by default")
    given = parser.parse_args()
    usual = (8000, 25_088) if given.epochs else (50_000, 2048)
    given.rows, given.width = given.rows or usual[0], given.width or usual[1]
    features = np.random.default_rng(0).normal(size=(given.rows, given.width)).astype(given.dtype)
    print(
        f"{given.rows:,} rows of {given.width} {given.dtype}, {features.nbytes / 1e6:,.0f} MB, "
        f"on {cpu_model()}, {len(os.sched_getaffinity(0))} cores"
    )
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        os.chdir(folder)
        if given.epochs:
            measure_epochs(features, given.rounds)
        else:
            measure_writes(features, given.rounds)
            measure_reads(features, given.rounds)
        os.chdir("/")


if __name__ == "__main__":
    main()
