"""How long `train-head` looks for near-duplicates, with how much memory, and whether it finds what float64 finds.

    python scripts/bench_leaks.py [--scored 10000] [--train 50000] [--features 2048] [--planted 200] [--file]
    python scripts/bench_leaks.py --images ../shared/data/FashionMNIST/raw --similarity 0.98

Made features as in bench_heads.py, in which copies of training rows are planted: noise of a tenth to two thirds of
the features' deviation is added, so that their cosines lie on both sides of the least one. Prints seconds, the memory
that the search adds to the features (sampled resident memory, with the pages of mapped files; --file reads the features
from a file), the rows that have a training row as similar, and whether they and their training rows are those of a
brute-force search in float64, which follows in blocks. --images compares the pixels of MNIST's or Fashion-MNIST's test
images with those of the training images instead: real near-duplicates, and many close to them.
"""

from __future__ import annotations

import argparse
import gzip
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))  # bench_heads would leave BLAS one thread

import numpy as np
from bench_heads import relu_features
from bench_rerun import cpu_model

from precompute.heads import RowView
from precompute.training.leaks import SIMILARITY
from precompute.training.similarity import nearest

ROWS = 1000  # in a block of the brute-force search


class Peak:
    """The most resident memory in bytes while it is entered, sampled every 5 ms, less that at its start."""

    def __enter__(self) -> Peak:
        self.start = self.most = resident()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def _sample(self) -> None:
        while not self.stop.wait(0.005):
            self.most = max(self.most, resident())

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    @property
    def added(self) -> int:
        return self.most - self.start


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def plant(scored: np.ndarray[Any, Any], train: np.ndarray[Any, Any], count: int) -> None:
    """Turn `count` scored rows into training rows with noise."""
    generator = np.random.default_rng(1)
    to = generator.choice(len(scored), count, replace=False)
    source = train[generator.choice(len(train), count, replace=False)]
    share = np.geomspace(1 / 10, 2 / 3, count)[:, None]
    scored[to] = source + (share * train.std(axis=0) * generator.normal(size=source.shape)).astype(np.float32)


def pixels(folder: Path, half: str) -> np.ndarray[Any, Any]:
    """(n, 784) float32 of an idx file: 16 bytes, then a byte for each pixel."""
    data = gzip.decompress((folder / f"{half}-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(data, np.uint8, offset=16).reshape(-1, 784).astype(np.float32)


def brute_force(scored: np.ndarray[Any, Any], train: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Highest cosine of each scored row and its training row, everything in float64."""
    mean = train.mean(axis=0, dtype=np.float64)

    def unit(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        centred = rows.astype(np.float64) - mean
        return np.asarray(centred / np.linalg.norm(centred, axis=1, keepdims=True))

    best, which = np.full(len(scored), -np.inf), np.zeros(len(scored), np.int64)
    own = unit(scored)
    for start in range(0, len(train), ROWS):
        cosine = own @ unit(train[start : start + ROWS]).T
        top = cosine.argmax(axis=1)
        value = cosine[np.arange(len(own)), top]
        better = value > best
        best[better], which[better] = value[better], top[better] + start
    return best, which


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scored", type=int, default=10_000)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--planted", type=int, default=200)
    parser.add_argument("--similarity", type=float, default=SIMILARITY)
    parser.add_argument("--images", type=Path, help="folder of idx files, in place of made features")
    parser.add_argument("--file", action="store_true", help="read the features from a file, as train-head does")
    given = parser.parse_args()
    print(f"{cpu_model()}, {os.cpu_count()} cores")
    if given.images:
        halves = [pixels(given.images, half) for half in ("t10k", "train")]
        given.scored, features = len(halves[0]), np.concatenate(halves)
    else:
        features, _ = relu_features(given.scored + given.train, given.features, 100, 0.35)
        plant(features[: given.scored], features[given.scored :], given.planted)
    with tempfile.TemporaryDirectory() as folder:
        if given.file:
            np.save(f"{folder}/features.npy", features)
            features = np.load(f"{folder}/features.npy", mmap_mode="r")
        scored = RowView(features, np.arange(given.scored))
        train = RowView(features, np.arange(given.scored, len(features)))
        began, cpu = time.perf_counter(), time.process_time()
        with Peak() as peak:
            best, which = nearest(scored, train, given.similarity)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        found = np.flatnonzero(best > -np.inf)
        print(
            f"{len(scored):,} against {len(train):,} x {train.shape[1]:,}: {seconds:.1f} s ({cpu:.1f} s of CPU), "
            f"{peak.added / 2**20:,.0f} MiB, {len(found):,} rows with a cosine of {given.similarity} or more",
            flush=True,
        )
        began = time.perf_counter()
        truth, first = brute_force(features[: given.scored], features[given.scored :])
        wanted = np.flatnonzero(truth >= given.similarity)
    same = np.array_equal(found, wanted) and np.array_equal(which[found], first[wanted])
    apart = abs(best[wanted] - truth[wanted]).max(initial=0)
    print(
        f"float64 brute force: {time.perf_counter() - began:.1f} s, {len(wanted):,} rows, pairs "
        f"{'equal' if same else 'DIFFERENT'}, cosines {apart:.1e} apart; "
        f"the closest to {given.similarity} is {abs(truth - given.similarity).min():.1e} away"
    )


if __name__ == "__main__":
    main()
