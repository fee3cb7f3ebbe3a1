"""What 8 bits cost: bytes, error of the activations, and accuracy of heads on them, beside float16 and float32.

    python scripts/bench_int8.py FOLDER -b mobilenet_v2 --weights PATH --layer features.13 --layer features.17

FOLDER is a folder of images (see `precompute extract`); without train/ and val/ each fifth image is val. The layers are
extracted twice in fp32, as float32 and as int8, into a temporary folder. For each layer: bytes of an image in each
type; relative L2 error of all activations, and of the worst image; the same of the mean over positions; accuracy on val
of a logistic head (C chosen on the float32 features) on that mean, and images of val with another prediction than by
float32; milliseconds to store and to read 32 images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute import LogisticHead, extract, open_cache
from precompute.cache import Cache, as_read, quantise, storage_dtype
from precompute.cache.quantised import QuantisedRows

Floats = NDArray[np.float32]
BLOCK = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("-b", "--backbone", required=True)
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--layer", action="append", required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        caches = {}
        for dtype in ("float32", "int8"):
            given: dict[str, Any] = {"backbone": options.backbone, "weights": options.weights, "dtype": dtype}
            given |= {"layer": options.layer, "pooling": "none", "precision": "fp32", "engine": "torch"}
            extract(options.folder, f"{place}/{dtype}.h5", **given)
            caches[dtype] = open_cache(f"{place}/{dtype}.h5")
        for layer in caches["int8"].layers:
            show(caches["float32"], caches["int8"], layer)


def show(floats: Cache, coded: Cache, layer: str) -> None:
    axes = tuple(next(one["axes"] for one in coded.spec["layers"] if one["name"] == layer))
    shape = floats.features(layer).shape[1:]
    whole = floats.row_bytes(layer)
    sizes = {"float32": whole, "float16": whole // 2, "int8": coded.row_bytes(layer)}
    print(f"\n{layer}, {' x '.join(map(str, shape))}: int8 takes {sizes['int8'] / sizes['float16']:.1%} of float16")
    print("type        bytes    error    worst   pooled   accuracy        other  store  read")
    exact = Pooled(floats, layer, axes, "float32")
    val = floats.split == "val" if (floats.split != "none").any() else np.arange(len(floats)) % 5 == 0
    train, val = floats.ok & ~val, floats.ok & val
    head = LogisticHead().fit(exact.means[train], floats.labels[train])
    first: NDArray[Any] | None = None
    for dtype, cache in (("float32", floats), ("float16", floats), ("int8", coded)):
        found = Pooled(cache, layer, axes, dtype, other=floats)
        fitted = LogisticHead(C=head.C_).fit(found.means[train], floats.labels[train])
        said = fitted.predict(found.means[val])
        first = said if first is None else first
        accuracy = (said == floats.labels[val]).mean()
        off = np.linalg.norm(found.means - exact.means) / np.linalg.norm(exact.means)
        print(
            f"{dtype:8}{sizes[dtype]:9,} {found.error:8.4%} {found.worst:8.4%} {off:8.4%} {accuracy:10.2%} "
            f"{int((said != first).sum()):4} of {len(said):4} "
            + timed(np.asarray(floats.features(layer)[:BLOCK]), dtype, axes)
        )


def timed(rows: Floats, dtype: str, axes: tuple[str, ...]) -> str:
    """Milliseconds to turn these rows into what is stored, and back; the best of five."""
    kind, best = storage_dtype(dtype, axes), [float("inf")] * 2
    for _ in range(5):
        began = time.perf_counter()
        stored = quantise(rows, axes) if kind == np.uint8 else rows.astype(kind)
        middle = time.perf_counter()
        _ = stored.values() if isinstance(stored, QuantisedRows) else stored.astype(np.float32)
        times = (middle - began, time.perf_counter() - middle)
        best = [min(pair) for pair in zip(best, times, strict=True)]
    return "".join(f"{1000 * one:6.1f}" for one in best)


class Pooled:
    """Means over positions (N, C), and how far activations of a type are from those of `other`."""

    def __init__(self, cache: Cache, layer: str, axes: tuple[str, ...], dtype: str, other: Cache | None = None) -> None:
        means, of_each, norms = [], [], []
        positions = tuple(place for place, axis in enumerate(axes, start=1) if axis != "channel")
        for start in range(0, len(cache), BLOCK):
            rows: Floats = np.asarray(cache.features(layer)[start : start + BLOCK], np.float32)
            if dtype == "float16":
                rows = as_read(rows, dtype, axes)
            means.append(rows.mean(axis=positions))
            if other is not None:
                right = np.asarray(other.features(layer)[start : start + BLOCK], np.float32).reshape(len(rows), -1)
                of_each.append(np.linalg.norm(rows.reshape(len(rows), -1) - right, axis=1))
                norms.append(np.linalg.norm(right, axis=1))
        self.means: Floats = np.concatenate(means)
        if other is not None:
            off, size = np.concatenate(of_each), np.concatenate(norms)
            self.error = float(np.linalg.norm(off) / np.linalg.norm(size))
            self.worst = float((off / size).max())


if __name__ == "__main__":
    main()
