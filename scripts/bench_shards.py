"""Photos in tar shards beside the same photos in a folder: listing, reading and extraction.

    python scripts/bench_shards.py SOURCE [-b tiny] [--weights DEFAULT] [--images 1000] [--per-shard 500] [--rounds 3]

In each round, in turn and from the page cache: listing the shards without a kept index and with one, and the folder;
reading every photo in the source's own order by a thread a core, and by one thread; and extraction into a new file, in
fp32 by torch. Prints medians of the rates, and the ratio within each round. Photos are made distinct by a comment,
so that none is recognised as a copy of another.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from bench_extract import copy_distinct, spread
from bench_rerun import cpu_model

from precompute import extract, open_cache
from precompute.inputs.images.formats import IMAGES
from precompute.sources.base import Source
from precompute.sources.folder import list_folder
from precompute.sources.shards import open_shards
from precompute.system import cores


def pack(folder: Path, place: Path, per_shard: int) -> str:
    """The files of `folder` as shards with a `.cls` beside each, in the order of their names; a pattern of them."""
    place.mkdir()
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for number, start in enumerate(range(0, len(paths), per_shard)):
        with tarfile.open(place / f"{number:06}.tar", "w") as tar:
            for path in paths[start : start + per_shard]:
                label = place / "label"
                label.write_text(path.parent.name)
                tar.add(label, f"{path.stem}.cls")
                tar.add(path, path.name)
    return str(place / "*.tar")


def seconds(task: Callable[[], object]) -> float:
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


def read_all(source: Source, threads: int) -> None:
    """Every sample in the source's order, thrown away once it is read."""
    rows = np.concatenate(list(source.order(np.arange(len(source)))))
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(rows), 256):
            for _ in pool.map(lambda row: len(source.read(row).data), rows[start : start + 256].tolist()):
                pass


def features(path: Path) -> dict[bytes, bytes]:
    """Rows by the SHA-256 of their photos."""
    cache = open_cache(path)
    values = cache.features()
    return {digest.tobytes(): values[row].tobytes() for row, digest in enumerate(cache.column("samples/digest"))}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("-b", "--backbone", default="tiny")
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--per-shard", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = str(Path(temporary, "cache"))
        report(options, Path(temporary))


def report(options: argparse.Namespace, place: Path) -> None:
    folder = copy_distinct(options.source, place / "photos", options.images)
    pattern = pack(folder, place / "shards", options.per_shard)
    sources: dict[str, Callable[[], Source]] = {
        "folder": lambda: list_folder(folder, IMAGES),
        "shards": lambda: open_shards(pattern, IMAGES),
    }

    def fresh() -> Source:
        shutil.rmtree(place / "cache", ignore_errors=True)
        return sources["shards"]()

    def run(name: str) -> object:
        out = place / f"{name}.h5"
        out.unlink(missing_ok=True)
        return extract(
            sources[name](), out, backbone=options.backbone, weights=options.weights, precision="fp32", engine="torch"
        )

    tasks: dict[str, Callable[[], object]] = {"shards: listed, without an index": fresh}
    for name, listed in sources.items():
        tasks[f"{name}: listed"] = listed
    for threads in (cores(), 1):
        for name, listed in sources.items():
            tasks[f"{name}: read, threads: {threads}"] = lambda listed=listed, threads=threads: read_all(
                listed(), threads
            )  # type: ignore[misc]
    for name in sources:
        tasks[f"{name}: extracted"] = lambda name=name: run(name)  # type: ignore[misc]
    seen: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(options.rounds + 1):
        for name, task in tasks.items():
            took = seconds(task)
            if number:  # the first warms up
                seen[name].append(options.images / took)
    assert features(place / "shards.h5") == features(place / "folder.h5")
    size = sum(path.stat().st_size for path in folder.rglob("*.jpg"))
    digest = hashlib.sha256(str(sorted(features(place / "folder.h5").items())).encode()).hexdigest()[:8]
    print(f"{options.images:,} JPEGs ({size / 1e6:.0f} MB), {options.per_shard:,} a shard, {options.rounds} rounds")
    print(f"{options.backbone}, {cpu_model()}, {cores()} cores; features equal byte for byte ({digest})")
    for name, rates in seen.items():
        other = seen.get(name.replace("shards", "folder"))
        ratio = f", times the folder: {spread([a / b for a, b in zip(rates, other, strict=True)])}" if other else ""
        shown = "" if name.startswith("folder") else ratio
        print(f"{name:36} {statistics.median(rates):10,.0f} images/s{shown}")


if __name__ == "__main__":
    main()
