"""FORMAT.md is enough to write and to read a file: its test vectors, a stranger's writer, and other readers."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, run_command
from stranger import MISTAKES, MISTAKES_OF_INT8, write
from xxhash import xxh3_64_intdigest

from precompute import train_head
from precompute.backbones.weights import digest_of
from precompute.cache import Layer, Samples, canonical_json, create, key_of, open_cache, verify
from precompute.cache.checksum import column_digest, row_checksum, row_checksums, table_digest
from precompute.cache.quantised import quantise
from precompute.errors import CacheError, CacheFormatError

VECTORS: dict[str, Any] = json.loads(
    re.findall(r"```json\n(.*?)```", (ROOT / "cache" / "FORMAT.md").read_text(), re.DOTALL)[-1]
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int64": torch.int64}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Vectors: first with hashlib, struct and xxhash alone, then by the library


def test_the_vectors_hold_by_the_page_alone() -> None:
    assert VECTORS["key"]["sha256"] == sha256(VECTORS["key"]["spec"].encode())
    for name in ("weights", "table", "column"):
        assert VECTORS[name]["sha256"] == sha256(bytes.fromhex(VECTORS[name]["hashed"])), name
    row = VECTORS["row"]
    image = struct.pack("<32sqqB", bytes.fromhex(row["digest"]), row["size"], row["mtime_ns"], row["status"])
    assert row["hashed"] == image.hex()
    assert row["seed"] == f"{xxh3_64_intdigest(image):016x}"
    assert row["row"] == struct.pack("<2f", *row["float32"]).hex()
    assert row["checksum"] == f"{xxh3_64_intdigest(bytes.fromhex(row['row']), int(row['seed'], 16)):016x}"
    eight = VECTORS["eight_bits"]
    for channel, codes, (low, step) in zip(eight["float32"], eight["codes"], eight["scales"], strict=True):
        assert [low + step * code for code in codes] == channel
    scales = struct.pack("<4f", *np.ravel(eight["scales"]))
    assert eight["row"] == (bytes(np.ravel(eight["codes"]).tolist()) + scales).hex()
    assert eight["checksum"] == f"{xxh3_64_intdigest(bytes.fromhex(eight['row']), int(row['seed'], 16)):016x}"
    column, table, state = VECTORS["column"], VECTORS["table"], VECTORS["weights"]["state"]
    line = f"int64 2 {column['name']}\n".encode()
    assert column["hashed"] == (line + struct.pack("<2q", *column["int64"])).hex()
    names = b"".join(name.encode() for name in table["id"])
    stored = names + struct.pack("<2i", *table["label"]) + bytes(table["split"]) + table["classes"][0].encode()
    assert table["hashed"] == (b"2 5 1 3\n" + stored).hex()
    data = {
        "bn.count": struct.pack("<q", state["bn.count"][2]),
        "fc.bias": b"".join(struct.pack("<f", value)[2:] for value in state["fc.bias"][2]),  # a float's upper half
        "fc.weight": struct.pack("<2f", *np.ravel(state["fc.weight"][2])),
    }
    lines = {name: f"{name}\n{kind}\n{','.join(map(str, shape))}\n" for name, (kind, shape, _) in state.items()}
    assert VECTORS["weights"]["hashed"] == b"".join(lines[name].encode() + data[name] for name in sorted(data)).hex()


def test_the_library_gives_the_vectors() -> None:
    spec, row, table, column = (VECTORS[name] for name in ("key", "row", "table", "column"))
    assert canonical_json(json.loads(spec["spec"])) == spec["spec"]
    assert key_of(json.loads(spec["spec"])) == spec["sha256"]
    numbers = row["size"], row["mtime_ns"], row["status"]
    found = row_checksum(bytes.fromhex(row["digest"]), *numbers, np.array(row["float32"], "<f4").tobytes())
    assert f"{found:016x}" == row["checksum"]
    eight = VECTORS["eight_bits"]
    rows = quantise(np.array([eight["float32"]], "<f4"), eight["axes"])
    assert (rows.codes[0].tolist(), rows.scales[0].tolist()) == (eight["codes"], eight["scales"])
    digests = np.frombuffer(bytes.fromhex(row["digest"]), np.uint8)[None]
    sizes, times, status = (np.array([number], kind) for number, kind in zip(numbers, ("i8", "i8", "u1"), strict=True))
    assert f"{row_checksums(digests, sizes, times, status, rows)[0]:016x}" == eight["checksum"]
    ids, classes = (np.array([name.encode() for name in table[key]]) for key in ("id", "classes"))
    assert (
        table_digest(ids, np.array(table["label"], "<i4"), np.array(table["split"], "u1"), classes) == table["sha256"]
    )
    assert column_digest(column["name"], np.array(column["int64"], "<i8")) == column["sha256"]
    state = VECTORS["weights"]["state"]
    tensors = {name: torch.tensor(values, dtype=DTYPES[kind]) for name, (kind, _, values) in state.items()}
    assert digest_of(dict(reversed(tensors.items()))) == VECTORS["weights"]["sha256"]


# A stranger's writer


@pytest.mark.parametrize(
    ("views", "bits"), [(1, ""), (1, "int8"), *(pytest.param(5, bits, marks=pytest.mark.slow) for bits in ("", "int8"))]
)
def test_a_strangers_file_is_accepted(views: int, bits: str, tmp_path: Path) -> None:
    source = ROOT / "tests" / "stranger.py"
    imports = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source.read_text()))
        for name in ([a.name for a in getattr(node, "names", [])] if isinstance(node, ast.Import) else [])
    }
    assert imports == {"hashlib", "json", "struct", "sys", "h5py", "numpy"}  # and xxhash
    subprocess.run([sys.executable, "-I", source, tmp_path / "a.h5", "", str(views), bits], check=True)
    done = run_command(tmp_path, "verify", "a.h5")
    assert done.returncode == 0, done.stderr
    done = run_command(tmp_path, "train-head", "a.h5", "-o", "head.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["classes"] == ["ants", "bees", "é"]
    cache = open_cache(tmp_path / "a.h5")
    assert cache.columns == ("site",)
    one = (8, 5) if bits else (8,)
    assert (cache.views, cache.features().shape) == (views, (24, *one) if views == 1 else (24, views, *one))
    assert cache.plain_features().shape == (24, *one)
    if bits:  # by the page alone
        with h5py.File(tmp_path / "a.h5") as file:
            scales = file["scales/deep"][:]
            values = file["features/deep"][:] * scales[..., 1, None] + scales[..., 0, None]
        assert values.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(cache.features()), values)


WRONG = {
    "key": "the key is not the SHA-256 of the spec",
    "table": "its ids, labels, splits or classes are not those",
    "label": "its ids, labels, splits or classes are not those",
    "axes": "axes and pooling of `features/deep` are not those",
    "chunks": "`features/deep` is not stored contiguously",
    "requires": "requires 'x', which this precompute does not know",
    "views": r"does not say whether it holds views, but \[\]",
    "column": "its column `columns/site` is not the one it was made with",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_strangers_mistakes_are_found(tmp_path: Path, mistake: str) -> None:
    write(str(tmp_path / "a.h5"), mistake)
    if mistake in WRONG:
        with pytest.raises(CacheFormatError, match=WRONG[mistake]) as caught:
            verify(open_cache(tmp_path / "a.h5"))
        assert ("pip install --upgrade precompute" in caught.value.hint) == (mistake == "requires")
        return
    found = verify(open_cache(tmp_path / "a.h5"))
    assert not found.whole
    assert (found.damaged.tolist(), found.ids_in_order) == (([], False) if mistake == "order" else ([0], True))
    if mistake != "order":
        with pytest.raises(CacheError, match="do not match their checksums"):
            train_head(tmp_path / "a.h5")


WRONG_INT8 = {
    "scales": "`scales` is missing",
    "scale type": r"`scales/deep` is float64 \(24, 8, 2\), not float32 \(24, 8, 2\)",
    "code type": r"`features/deep` is int8 \(24, 8, 5\)",
    "storage": r"does not say whether it holds 8 bits, but \['int8'\]",
    "requires int8": r"does not say whether it holds 8 bits, but \[\]",
}


@pytest.mark.parametrize("mistake", MISTAKES_OF_INT8)
def test_a_strangers_mistakes_with_8_bits_are_found(tmp_path: Path, mistake: str) -> None:
    write(str(tmp_path / "a.h5"), mistake, bits="int8")
    if mistake in WRONG_INT8:
        with pytest.raises(CacheFormatError, match=WRONG_INT8[mistake]):
            open_cache(tmp_path / "a.h5")
        return
    assert verify(open_cache(tmp_path / "a.h5")).damaged.tolist() == list(range(24))
    with pytest.raises(CacheError, match="do not match their checksums"):
        train_head(tmp_path / "a.h5")


# What may grow


@pytest.mark.rotates(3)
def test_unknown_codes_are_failures_and_are_not_trained_on(tmp_path: Path) -> None:
    write(str(tmp_path / "a.h5"))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["samples/split"][:6] = 9
        table = hashlib.sha256(f"24 {file['samples/id'].dtype.itemsize} 3 4\n".encode())
        for name in ("samples/id", "samples/label", "samples/split", "classes"):
            table.update(file[name][:].tobytes())
        file.attrs["table"] = np.bytes_(table.hexdigest())
    cache = open_cache(tmp_path / "a.h5")
    assert cache.split.tolist() == ["unknown"] * 6 + ["none"] * 18
    assert cache.dataset().rows.tolist() == list(range(6, 24))
    result = train_head(cache)
    assert sum(result.rows.values()) == 18
    assert "6 samples are in a split that this precompute does not know and are left out" in result.notes
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["samples/status"][7] = 77
    assert not open_cache(tmp_path / "a.h5").ok[7]
    done = run_command(tmp_path, "info", "a.h5")
    assert "1 unknown 77" in done.stdout
    assert "6 unknown" in done.stdout


def test_a_spec_that_hdf5_cannot_store_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    spec = {"layers": [{"name": "f", "pooling": "none", "axes": ["channel"]}], "transform": "x" * 64_000}
    zeros = np.zeros(1, np.int64)
    samples = Samples(np.array([b"a"]), zeros, zeros, np.array([-1], np.int32), np.zeros(1, np.uint8), ())
    layers = {"f": Layer((3,), np.dtype("f4"), ("channel",), "none")}
    with pytest.raises(CacheError, match=r"take 64,\d+ bytes as JSON, more than 64,000"):
        create(str(tmp_path / "a.h5"), spec=spec, samples=samples, layers=layers)
    assert not list(tmp_path.iterdir())
    spec["transform"] = "x" * 63_000
    create(str(tmp_path / "a.h5"), spec=spec, samples=samples, layers=layers)
    assert open_cache(tmp_path / "a.h5").spec == spec
    with pytest.raises(ValueError, match="must be those of its spec"):
        create(str(tmp_path / "b.h5"), spec={**spec, "layers": []}, samples=samples, layers=layers)


# Other readers


def test_h5py_decodes_names_that_are_utf8_and_leaves_others_bytes(tmp_path: Path) -> None:
    zeros = np.zeros(2, np.int64)
    layers = {"f": Layer((3,), np.dtype("f4"), ("channel",), "none")}
    spec = {"layers": [{"name": "f", "pooling": "none", "axes": ["channel"]}]}
    for path, second in ((tmp_path / "utf8.h5", "é/ü.jpg".encode()), (tmp_path / "raw.h5", b"\xff.jpg")):
        samples = Samples(
            np.array([b"a.jpg", second]), zeros, zeros, np.zeros(2, np.int32), np.zeros(2, np.uint8), (b"caf\xc3\xa9",)
        )
        columns = {"title": np.array([["naïve".encode(), b""], [b"x", b"y"]])}
        create(str(path), spec=spec, samples=samples, layers=layers, columns=columns)
        assert open_cache(path).column("samples/id").tolist() == [b"a.jpg", second]
        with h5py.File(path) as file:
            assert file["classes"].asstr()[0] == "café"
            assert file["columns/title"].asstr()[0, 0] == "naïve"
            encoding = h5py.check_string_dtype(file["samples/id"].dtype).encoding
            assert encoding == ("utf-8" if path.stem == "utf8" else "ascii")
            if path.stem == "utf8":
                assert file["samples/id"].asstr()[:].tolist() == ["a.jpg", "é/ü.jpg"]


def test_pytables_reads_features_labels_ids_status_and_split(tmp_path: Path) -> None:
    tables = pytest.importorskip("tables", reason="needs pip install tables")
    write(str(tmp_path / "a.h5"))
    cache = open_cache(tmp_path / "a.h5")
    with tables.open_file(str(tmp_path / "a.h5")) as file:
        assert np.array_equal(file.root.features.deep[:], cache.features())
        assert np.array_equal(file.root.samples.label[:], cache.labels)
        assert file.root.samples.id[:].tolist() == cache.column("samples/id").tolist()
        assert np.array_equal(file.root.samples.status[:], cache.status)
        assert np.array_equal(file.root.samples.split[:], cache.column("samples/split"))
        meanings = bytes(file.root.samples.status.attrs.flag_meanings).decode().split()
        assert meanings[int(file.root.samples.status[0])] == "OK"
