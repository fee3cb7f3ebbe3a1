"""A writer of feature files that knows cache/FORMAT.md alone: h5py, NumPy and xxhash, and nothing of precompute.

    python tests/stranger.py OUT.h5 [MISTAKE [VIEWS [int8]]]

Writes 24 samples of three classes, in VIEWS views each; with int8 each feature is a channel of five tokens, in 8 bits.
MISTAKE leaves one rule of the format out: see MISTAKES, and MISTAKES_OF_INT8.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys

import h5py
import numpy as np
from xxhash import xxh3_64_intdigest as xxh3

MISTAKES = ("key", "table", "axes", "chunks", "checksum", "label", "order", "requires", "column", "nan", "views")
MISTAKES_OF_INT8 = ("scales", "scale type", "code type", "step", "storage", "requires int8", "row")


def text(value: str) -> np.bytes_:
    return np.bytes_(value.encode())


def coded(features: np.ndarray, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """Five tokens of each feature as codes of 8 bits, and for each channel its minimum and its step."""
    values = features[..., None] * np.linspace(0, 1, 5, dtype="<f4")
    low, step = values.min(axis=-1), (values.max(axis=-1) - values.min(axis=-1)) / np.float32(255)
    codes = np.rint((values - low[..., None]) / step[..., None]).astype("u1")
    return codes, np.stack([low, sign * step], axis=-1).astype("<f4")


def write(path: str, mistake: str = "", rows: int = 24, width: int = 8, views: int = 1, bits: str = "") -> None:
    label = (np.arange(rows) % 3).astype("<i4")
    features = np.random.default_rng(0).normal(size=(rows, width)).astype("<f4") + 3 * np.eye(3, width)[label]
    features, axes = features.astype("<f4"), ["channel"]
    if views > 1 or mistake == "views":  # the plain view first, and others near it
        noise = np.random.default_rng(1).normal(size=(rows, views - 1, width)).astype("<f4")
        features, axes = np.concatenate([features[:, None], features[:, None] + noise], axis=1), ["view", "channel"]
    scales = np.empty((rows, 0), "<f4")
    if bits == "int8":
        (features, scales), axes = coded(features, -1 if mistake == "step" else 1), [*axes, "token"]
    ids = np.array([b"sample/%03d" % row for row in range(rows)][:: -1 if mistake == "order" else 1])
    classes, split = np.array([b"ants", b"bees", "é".encode()]), np.zeros(rows, "u1")
    digest = np.array([list(hashlib.sha256(name).digest()) for name in ids], "u1")
    size, mtime, status = np.arange(rows, dtype="<i8"), np.full(rows, 10**18, "<i8"), np.ones(rows, "u1")
    site = (np.arange(rows) // 2).astype("<i8")
    spec = {"backbone": "stranger", "layers": [{"name": "deep", "pooling": "none", "axes": axes}], "views": views}
    spec |= {"storage": bits} if bits and mistake != "storage" else {}
    stored = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    table = hashlib.sha256(f"{rows} {ids.itemsize} {len(classes)} {classes.itemsize}\n".encode())
    for column in (ids, label, split, classes):
        table.update(column.tobytes())
    label[0] += mistake == "label"
    if mistake == "nan":
        features[0] = np.nan
    sums = np.empty(rows, "<u8")
    for row in range(rows):
        image = struct.pack("<32sqqB", digest[row].tobytes(), size[row], mtime[row], status[row])
        sums[row] = (
            xxh3(features[row].tobytes() + (b"" if mistake == "row" else scales[row].tobytes()), xxh3(image)) or 1
        )
    sums[0] += mistake == "checksum"
    features = features.astype("i1") if mistake == "code type" else features
    with h5py.File(path, "w", libver=("v108", "v108")) as file:
        file.attrs["format"], file.attrs["version"] = text("precompute-features"), np.int64(1)
        needs = ["x"] * (mistake == "requires") + ["views"] * (views > 1) + [bits] * bool(bits and bits not in mistake)
        file.attrs["requires"] = text(json.dumps(needs))
        file.attrs["spec"] = text(stored)
        file.attrs["key"] = text(hashlib.sha256(b"" if mistake == "key" else stored.encode()).hexdigest())
        file.attrs["table"] = text("0" * 64 if mistake == "table" else table.hexdigest())
        deep = file.create_dataset("features/deep", data=features, chunks=(4, width) if mistake == "chunks" else None)
        deep.attrs["axes"] = text("sample token" if mistake == "axes" else " ".join(["sample", *axes]))
        deep.attrs["pooling"] = text("none")
        file["checksums/deep"] = sums
        if bits and mistake != "scales":
            file["scales/deep"] = scales.astype("<f8") if mistake == "scale type" else scales
        for name, values in {"digest": digest, "size": size, "mtime_ns": mtime, "label": label}.items():
            file[f"samples/{name}"] = values
        for name, values, words in (
            ("status", status, "PENDING OK UNREADABLE UNDECODABLE TRUNCATED TOO_LARGE VANISHED NON_FINITE"),
            ("split", split, "none train val test"),
        ):
            column = file.create_dataset(f"samples/{name}", data=values)
            column.attrs["flag_values"] = np.arange(len(words.split()), dtype="u1")
            column.attrs["flag_meanings"] = text(words)
        for name, values in {"samples/id": ids, "classes": classes}.items():
            file[name] = values.astype(h5py.string_dtype("utf-8", values.itemsize))
        further = file.create_dataset("columns/site", data=site)
        told = hashlib.sha256(f"int64 {rows} site\n".encode() + (site + (mistake == "column")).tobytes())
        further.attrs["digest"] = text(told.hexdigest())
        file["provenance"] = np.zeros(4096, "u1")


if __name__ == "__main__":
    write(*sys.argv[1:3], views=int(sys.argv[3]) if len(sys.argv) > 3 else 1, bits="".join(sys.argv[4:5]))
