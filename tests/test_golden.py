"""Files of every format version ever released stay readable, with the same values.

`tests/golden/version1.h5.gz`, and `version1_int8.h5.gz` with activations of 8 bits, were made by `python
tests/test_golden.py` and are never made again: a later precompute must read what an earlier one wrote.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from precompute.cache import Layer, RowWriter, Samples, Status, create, open_cache, verify
from precompute.cache.quantised import QuantisedRows

GOLDEN = Path(__file__).parent / "golden" / "version1.h5.gz"
GOLDEN_INT8 = GOLDEN.with_name("version1_int8.h5.gz")
IDS = [b"train/ants/a.jpg", b"train/ants/\xff\n.png", b"train/bees/c.gif", b"val/bees/d.webp", b"val/bees/pending.jpg"]
SPEC = {
    "backbone": "golden",
    "layers": [
        {"name": "two", "pooling": "none", "axes": ["token", "channel"]},
        {"name": "one", "pooling": "mean", "axes": ["channel"]},
    ],
}
SPEC_INT8 = {
    "backbone": "golden",
    "layers": [
        {"name": "maps", "pooling": "none", "axes": ["view", "token", "channel"]},
        {"name": "one", "pooling": "mean", "axes": ["view", "channel"]},
    ],
    "storage": "int8",
    "views": 2,
}
CODES = (np.arange(4 * 2 * 3 * 2).reshape(4, 2, 3, 2) * 53 % 256).astype(np.uint8)
SCALES = np.array([[-1.5, 1 / 64], [0.0, 1 / 128]], np.float32) * np.arange(1, 5, dtype=np.float32)[:, None, None, None]
SCALES = np.broadcast_to(SCALES, (4, 2, 2, 2)).copy()
STATUSES = [Status.OK, Status.OK, Status.TRUNCATED, Status.OK]
RECORDS = [{"started": "2026-11-21T00:00:00+00:00", "host": "golden"}]


def samples() -> Samples:
    return Samples(
        ids=np.array(IDS),
        sizes=np.arange(5, dtype=np.int64) + 2**40,
        mtimes=np.arange(5, dtype=np.int64) * 10**18,
        labels=np.array([0, 0, 1, 1, -1], dtype=np.int32),
        splits=np.array([1, 1, 1, 2, 2], dtype=np.uint8),
        classes=(b"ants", b"bees"),
    )


def features() -> dict[str, np.ndarray]:
    one = np.arange(4 * 3, dtype=np.float32).reshape(4, 3) / 7
    two = (np.arange(4 * 2 * 2) / 8 - 1).astype(np.float16).reshape(4, 2, 2)
    one[2], two[2] = np.nan, np.nan
    return {"one": one, "two": two}


def further() -> dict[str, np.ndarray]:
    return {"patient": np.array([name.encode() for name in ("é1", "é1", "b", "c", "")]), "age": np.arange(5) / 4}


def digests() -> np.ndarray:
    return np.array([list(hashlib.sha256(name).digest()) for name in IDS[:4]], dtype=np.uint8)


def make(path: Path) -> None:
    table = samples()
    layers = {
        entry["name"]: Layer(values.shape[1:], values.dtype, tuple(entry["axes"]), entry["pooling"])
        for entry, values in ((entry, features()[entry["name"]]) for entry in SPEC["layers"])
    }
    layout = create(str(path), spec=SPEC, samples=table, layers=layers, columns=further(), records=RECORDS)
    with RowWriter(str(path), layout) as writer:
        writer.write(
            np.arange(4),
            features(),
            digests=digests(),
            statuses=np.array(STATUSES, dtype=np.uint8),
            sizes=table.sizes[:4],
            mtimes=table.mtimes[:4],
        )


def test_a_file_of_version_1_is_read(tmp_path: Path) -> None:
    path = tmp_path / "version1.h5"
    path.write_bytes(gzip.decompress(GOLDEN.read_bytes()))
    cache, table = open_cache(path), samples()
    assert cache.column("samples/id").tolist() == IDS
    assert cache.spec == SPEC
    assert cache.classes == ("ants", "bees")
    assert cache.layers == ("two", "one")
    assert cache.columns == ("age", "patient")
    for name, column in further().items():
        np.testing.assert_array_equal(cache.column(f"columns/{name}"), column)
    assert cache.split.tolist() == ["train", "train", "train", "val", "val"]
    assert cache.provenance == RECORDS
    for name, values in (("size", table.sizes), ("mtime_ns", table.mtimes), ("label", table.labels)):
        np.testing.assert_array_equal(cache.column(f"samples/{name}"), values)
    np.testing.assert_array_equal(cache.column("samples/digest")[:4], digests())
    for layer, values in features().items():
        assert cache.features(layer).dtype == values.dtype
        np.testing.assert_array_equal(cache.features(layer)[:4], values)
    found = verify(cache)
    assert (found.good.tolist(), found.pending.tolist(), found.damaged.tolist()) == ([0, 1, 2, 3], [4], [])
    assert cache.ok.tolist() == [True, True, False, True, False]


def coded_rows() -> dict[str, Any]:
    one = (np.arange(4 * 2 * 2) / 8).astype(np.float16).reshape(4, 2, 2)
    one[2], maps = np.nan, QuantisedRows(CODES.copy(), SCALES.copy(), -1)
    maps.fail(np.array([2]))
    return {"maps": maps, "one": one}


def make_int8(path: Path) -> None:
    table = samples()
    layers = {
        "maps": Layer((2, 3, 2), np.dtype("u1"), ("view", "token", "channel"), "none"),
        "one": Layer((2, 2), np.dtype("f2"), ("view", "channel"), "mean"),
    }
    layout = create(str(path), spec=SPEC_INT8, samples=table, layers=layers, records=RECORDS)
    with RowWriter(str(path), layout) as writer:
        writer.write(
            np.arange(4),
            coded_rows(),
            digests=digests(),
            statuses=np.array(STATUSES, dtype=np.uint8),
            sizes=table.sizes[:4],
            mtimes=table.mtimes[:4],
        )


def test_a_file_of_8_bits_is_read_and_written_the_same_today(tmp_path: Path) -> None:
    path = tmp_path / "version1.h5"
    path.write_bytes(gzip.decompress(GOLDEN_INT8.read_bytes()))
    cache, table = open_cache(path), samples()
    assert (cache.spec, cache.layers, cache.views) == (SPEC_INT8, ("maps", "one"), 2)
    values = CODES * SCALES[:, :, None, :, 1] + SCALES[:, :, None, :, 0]
    values[2] = np.nan
    assert values.dtype == np.float32
    np.testing.assert_array_equal(cache.features("maps")[:4], values)
    np.testing.assert_array_equal(cache.plain_features("maps")[:4], values[:, 0])
    np.testing.assert_array_equal(cache.features("one")[:4], coded_rows()["one"])
    found = verify(cache)
    assert (found.good.tolist(), found.pending.tolist(), found.damaged.tolist()) == ([0, 1, 2, 3], [4], [])
    with h5py.File(path) as file:  # as FORMAT.md says, without precompute's own functions
        assert file.attrs["requires"] == b'["views", "int8"]'
        for row in range(4):
            stored = file["features/maps"][row].tobytes() + file["scales/maps"][row].tobytes()
            image = struct.pack("<32sqqB", digests()[row].tobytes(), table.sizes[row], table.mtimes[row], STATUSES[row])
            wanted = xxhash.xxh3_64_intdigest(stored, xxhash.xxh3_64_intdigest(image)) or 1
            assert file["checksums/maps"][row] == wanted
        assert not file["features/maps"][2].any()
        assert np.isnan(file["scales/maps"][2]).all()
    make_int8(tmp_path / "today.h5")
    new = open_cache(tmp_path / "today.h5")
    assert (cache.key, cache.layout.table) == (new.key, new.layout.table)
    assert cache.layout.columns.keys() == new.layout.columns.keys()
    for name in cache.layout.columns:
        assert cache.column(name).tobytes() == new.column(name).tobytes(), name


def test_its_digests_are_those_of_the_specification(tmp_path: Path) -> None:
    """Computed here as FORMAT.md says, without precompute's own functions."""
    path = tmp_path / "version1.h5"
    path.write_bytes(gzip.decompress(GOLDEN.read_bytes()))
    table = samples()
    with h5py.File(path) as file:
        assert file.attrs["key"] == hashlib.sha256(file.attrs["spec"]).hexdigest().encode()
        width, names = file["samples/id"].dtype.itemsize, file["classes"].dtype.itemsize
        state = hashlib.sha256(f"5 {width} 2 {names}\n".encode())
        for column in ("samples/id", "samples/label", "samples/split", "classes"):
            state.update(file[column][:].tobytes())
        assert file.attrs["table"] == state.hexdigest().encode()
        assert file.attrs["requires"] == b"[]"
        for name, kind in (("age", "float64"), ("patient", "bytes3")):
            line = f"{kind} 5 {name}\n".encode()
            digest = hashlib.sha256(line + file[f"columns/{name}"][:].tobytes()).hexdigest()
            assert file[f"columns/{name}"].attrs["digest"] == digest.encode()
        for layer, values in features().items():
            for row in range(4):
                image = struct.pack(
                    "<32sqqB", digests()[row].tobytes(), table.sizes[row], table.mtimes[row], STATUSES[row]
                )
                seed = int.from_bytes(xxhash.xxh3_64_digest(image), "big")
                wanted = int.from_bytes(xxhash.xxh3_64_digest(values[row].tobytes(), seed), "big") or 1
                assert file[f"checksums/{layer}"][row] == wanted
            assert file[f"checksums/{layer}"][4] == 0


def test_what_is_written_today_is_the_same_file(tmp_path: Path) -> None:
    """Version 1 files of today hold the same values at least; a difference here asks for a new version."""
    make(tmp_path / "today.h5")
    path = tmp_path / "version1.h5"
    path.write_bytes(gzip.decompress(GOLDEN.read_bytes()))
    old, new = open_cache(path), open_cache(tmp_path / "today.h5")
    assert {name: (column.dtype, column.shape) for name, column in old.layout.columns.items()} == {
        name: (column.dtype, column.shape) for name, column in new.layout.columns.items()
    }
    for name in old.layout.columns:
        assert old.column(name).tobytes() == new.column(name).tobytes(), name
    assert (old.key, old.layout.table) == (new.key, new.layout.table)


if __name__ == "__main__":
    missing = {path: maker for path, maker in ((GOLDEN, make), (GOLDEN_INT8, make_int8)) if not path.exists()}
    if not missing:
        sys.exit(f"{GOLDEN} and {GOLDEN_INT8} exist, and are never made again")
    for path, maker in missing.items():
        raw = path.with_suffix("")
        maker(raw)
        path.write_bytes(gzip.compress(raw.read_bytes(), mtime=0))
        raw.unlink()
