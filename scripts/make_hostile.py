"""Make the hostile set: caches, heads, weights, images and a folder of photos as a stranger with bad intent sends them.

    python scripts/make_hostile.py FOLDER

FOLDER must not exist. It takes about 300 MB of disk, and claims some terabytes more. Nothing in it may be read but
through precompute: `canary.*` beside the sub-folders is what the files try to reach, and code in them would make
the folder `ran`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import socket
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from precompute.cache import Column, RowWriter, Samples, Status, canonical_json, create, key_of, read_layout
from precompute.cache.columns import column_types

ROWS, WIDTH = 6, 5
SPEC = {"backbone": "tiny", "layers": [{"name": "flatten", "pooling": "none"}], "storage": "float32"}


CANARY = b"a-canary-that-nobody-may-read"


# Good files to start from, which the fuzzer shares


def samples(word: bytes = b"train") -> Samples:
    """Three classes, all splits."""
    return Samples(
        ids=np.array([b"%s/%s/%d.jpg" % (word, b"abc"[row // 2 : row // 2 + 1], row) for row in range(ROWS)]),
        sizes=np.arange(ROWS, dtype=np.int64) + 1000,
        mtimes=np.arange(ROWS, dtype=np.int64) + 10**18,
        labels=np.arange(ROWS, dtype=np.int32) // 2,
        splits=np.arange(ROWS, dtype=np.uint8) % 4,
        classes=(b"a", b"b", b"c\xff"),
    )


def make_cache(path: Path, table: Samples | None = None) -> None:
    """A whole, small cache, one row of which failed; the same bytes each time."""
    table = samples() if table is None else table
    digests = np.stack([np.frombuffer(hashlib.sha256(bytes([row])).digest(), np.uint8) for row in range(ROWS)])
    statuses = np.full(ROWS, Status.OK, dtype=np.uint8)
    statuses[4] = Status.TRUNCATED
    features = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
    features[4] = np.nan
    layers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {"flatten": ((WIDTH,), np.dtype("f4"))}
    layout = create(str(path), spec=SPEC, samples=table, layers=layers, records=[{"run": 1}])
    with RowWriter(str(path), layout) as writer:
        writer.write(
            np.arange(ROWS),
            {"flatten": features},
            digests=digests,
            statuses=statuses,
            sizes=table.sizes,
            mtimes=table.mtimes,
        )


def make_heads(folder: Path) -> list[Path]:
    """A logistic and an MLP head."""
    from precompute.heads import LogisticHead, MLPHead, save_head

    generator = np.random.default_rng(0)
    labels = np.repeat(["ants", "bees", "b\udcff"], 12)
    features = generator.normal(size=(36, 4)) + np.repeat(np.eye(3, 4) * 3, 12, axis=0)
    paths = [folder / "logistic.safetensors", folder / "mlp.safetensors"]
    save_head(paths[0], LogisticHead(C=1.0).fit(features, labels), metadata={"layer": "flatten", "spec": SPEC})
    mlp = MLPHead(hidden=(3,), max_epochs=2, device="cpu").fit(features, labels)
    save_head(paths[1], mlp, metadata={"layer": "flatten", "spec": SPEC})
    return paths


def make_weights(folder: Path) -> list[Path]:
    """A small state dict in torch's format of today, its older one, and as safetensors."""
    import torch
    from safetensors.torch import save_file

    state = {
        "conv.weight": torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2),
        "conv.bias": torch.ones(2, dtype=torch.float16),
        "bn.num_batches_tracked": torch.tensor(7),
    }
    paths = [folder / "zip.pth", folder / "legacy.pth", folder / "plain.safetensors"]
    torch.save({"epoch": 3, "state_dict": state}, paths[0])
    torch.save(state, paths[1], _use_new_zipfile_serialization=False)
    save_file(state, str(paths[2]))
    return paths


def picture(width: int = 40, height: int = 32) -> Image.Image:
    """A picture with structure and noise."""
    generator = np.random.default_rng(3)
    grade = np.linspace(0, 1, width)[None, :, None] * np.linspace(0, 1, height)[:, None, None]
    first, second = generator.uniform(0, 255, (2, 3))
    noise = generator.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(first * (1 - grade) + second * grade + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_pictures() -> dict[str, bytes]:
    """One whole picture of every format and kind that is decoded, by name."""
    image = picture()
    grey16: NDArray[np.uint16] = np.asarray(image.convert("L")).astype(np.uint16) * 257
    upside_down = Image.Exif()
    upside_down[0x0112] = 6
    alpha = image.convert("RGBA")
    alpha.putalpha(image.convert("L"))

    def frames() -> dict[str, Any]:  # anew each time: saving leaves settings on them that another format stumbles over
        return {"save_all": True, "append_images": [picture().rotate(90 * turn) for turn in (1, 2)]}

    return {
        "baseline.jpg": encoded(image, "JPEG"),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "grey.jpg": encoded(image.convert("L"), "JPEG"),
        "rotated.jpg": encoded(image, "JPEG", exif=upside_down.tobytes()),
        "restarts.jpg": encoded(image, "JPEG", restart_marker_rows=1),
        "several.jpg": encoded(image.copy(), "MPO", **frames()),
        "rgb.png": encoded(image, "PNG"),
        "palette.png": encoded(image.quantize(16), "PNG", transparency=3),
        "alpha.png": encoded(alpha, "PNG"),
        "grey_alpha.png": encoded(alpha.convert("LA"), "PNG"),
        "grey16.png": encoded(Image.fromarray(grey16), "PNG"),
        "one_bit.png": encoded(image.convert("1"), "PNG"),
        "animated.png": encoded(image, "PNG", **frames()),
        "plain.gif": encoded(image, "GIF"),
        "animated.gif": encoded(image, "GIF", **frames()),
        "rgb.bmp": encoded(image, "BMP"),
        "palette.bmp": encoded(image.quantize(16), "BMP"),
        "lossy.webp": encoded(image, "WEBP"),
        "lossless.webp": encoded(alpha, "WEBP", lossless=True),
        "animated.webp": encoded(image, "WEBP", **frames()),
        "raw.tif": encoded(image, "TIFF"),
        "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encoded(alpha, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encoded(image, "TIFF", compression="jpeg"),
        "fax.tif": encoded(image.convert("1"), "TIFF", compression="group4"),
        "packbits.tif": encoded(image.convert("P"), "TIFF", compression="packbits"),
        "grey16.tif": encoded(Image.fromarray(grey16), "TIFF"),
        "several.tif": encoded(image, "TIFF", **frames()),
    }


# HDF5's own checksums, so that a change of structure gets past them


def checked_blocks(data: bytes) -> list[tuple[int, int]]:
    """(start, length) of the superblock and of every object header of version 2; four bytes of checksum follow each."""
    blocks = [(0, 44)]
    for match in re.finditer(rb"OHDR\x02", data):
        place = match.start() + 6
        flags = data[match.start() + 5]
        place += 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        end = place + width + int.from_bytes(data[place : place + width], "little")
        blocks.append((match.start(), end - match.start()))
    return [
        (start, length)
        for start, length in blocks
        if data[start + length : start + length + 4] == struct.pack("<I", lookup3(data[start : start + length]))
    ]


def lookup3(data: bytes) -> int:
    """Bob Jenkins' lookup3 `hashlittle` (https://burtleburtle.net/bob/c/lookup3.c), which HDF5 uses for metadata."""
    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(data)) & mask
    if not data:
        return c
    words = struct.unpack(f"<{(len(data) + 11) // 12 * 3}I", data + bytes(-len(data) % 12))
    for place in range(0, len(words) - 3, 3):
        a, b, c = (a + words[place]) & mask, (b + words[place + 1]) & mask, (c + words[place + 2]) & mask
        a = (a - c & mask) ^ (c << 4 & mask | c >> 28)
        c = c + b & mask
        b = (b - a & mask) ^ (a << 6 & mask | a >> 26)
        a = a + c & mask
        c = (c - b & mask) ^ (b << 8 & mask | b >> 24)
        b = b + a & mask
        a = (a - c & mask) ^ (c << 16 & mask | c >> 16)
        c = c + b & mask
        b = (b - a & mask) ^ (a << 19 & mask | a >> 13)
        a = a + c & mask
        c = (c - b & mask) ^ (b << 4 & mask | b >> 28)
        b = b + a & mask
    a, b, c = (a + words[-3]) & mask, (b + words[-2]) & mask, (c + words[-1]) & mask
    c = (c ^ b) - (b << 14 & mask | b >> 18) & mask
    a = (a ^ c) - (c << 11 & mask | c >> 21) & mask
    b = (b ^ a) - (a << 25 & mask | a >> 7) & mask
    c = (c ^ b) - (b << 16 & mask | b >> 16) & mask
    a = (a ^ c) - (c << 4 & mask | c >> 28) & mask
    b = (b ^ a) - (a << 14 & mask | a >> 18) & mask
    return int((c ^ b) - (b << 24 & mask | b >> 8) & mask)


# Caches


def mended(data: bytes, start: int, old: bytes, new: bytes) -> bytes:
    """`data` with the first `old` from `start` on replaced by `new`, and HDF5's checksum over it made right again."""
    place = data.index(old, start)
    result = data[:place] + new + data[place + len(old) :]
    for begin, length in checked_blocks(data):
        if begin <= place < begin + length:
            sum_ = struct.pack("<I", lookup3(result[begin : begin + length]))
            return result[: begin + length] + sum_ + result[begin + length + 4 :]
    return result


def header_of(data: bytes, column: Column) -> int:
    """Where the object header of a column begins: the one that holds the column's offset."""
    address = struct.pack("<Q", column.offset)
    return max(start for start, length in checked_blocks(data) if start and address in data[start : start + length])


def structure_cases(data: bytes, columns: dict[str, Column]) -> dict[str, bytes]:
    """Bytes changed where HDF5 keeps its structure, behind right checksums."""
    features, sums = columns["features/flatten"], columns["checksums/flatten"]
    ids, notes = columns["samples/id"], columns["provenance"]
    address, shape = struct.pack("<Q", features.offset), struct.pack("<QQ", ROWS, WIDTH)
    head = header_of(data, features)
    cases = {
        f"offset_{name}": mended(data, head, address, struct.pack("<Q", value))
        for name, value in (
            ("at_the_end", len(data) - 8),
            ("beyond", 2**40),
            ("2_to_63", 2**63),
            ("minus_2", 2**64 - 2),
            ("undefined", 2**64 - 1),
            ("in_the_digests", columns["samples/digest"].offset),
            ("in_the_header", 0),
        )
    }
    for name, (rows, width) in {
        "shape_2_to_62": (ROWS, 2**62),
        "rows_2_to_62": (2**62, WIDTH),
        "shape_empty": (ROWS, 0),
        "rows_none": (0, WIDTH),
        "shape_one_more": (ROWS + 1, WIDTH),
    }.items():
        twice = data[head : head + 400].count(shape) > 1  # the largest extents may follow those of today
        changed = mended(data, head, shape, struct.pack("<QQ", rows, width))
        cases[name] = mended(changed, head, shape, struct.pack("<QQ", rows, width)) if twice else changed
    size = struct.pack("<Q", notes.nbytes)
    cases["provenance_2_to_40"] = mended(data, header_of(data, notes), size, struct.pack("<Q", 2**40))
    cases["ids_2_to_40"] = mended(data, header_of(data, ids), struct.pack("<Q", ROWS), struct.pack("<Q", 2**40))
    cases["checksums_2_to_40"] = mended(data, header_of(data, sums), struct.pack("<Q", ROWS), struct.pack("<Q", 2**40))
    return cases


def data_cases(data: bytes, columns: dict[str, Column]) -> dict[str, bytes]:
    """Bytes changed inside the columns, by damage or by forgery."""

    def put(name: str, row: int, value: bytes) -> bytes:
        place = columns[name].offset + row * columns[name].row_bytes
        return data[:place] + value + data[place + len(value) :]

    def row_of(name: str, row: int) -> bytes:
        place = columns[name].offset + row * columns[name].row_bytes
        return data[place : place + columns[name].row_bytes]

    def notes(text: bytes) -> bytes:
        return put("provenance", 0, text.ljust(columns["provenance"].nbytes, b"\0"))

    deep = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    return {
        "labels_swapped": put("samples/label", 1, row_of("samples/label", 3) + row_of("samples/label", 2)),
        "ids_swapped": put("samples/id", 0, row_of("samples/id", 1) + row_of("samples/id", 0)),
        "class_renamed": put("classes", 0, b"z"),
        "split_changed": put("samples/split", 0, b"\3"),
        "nan_in_a_good_row": put("features/flatten", 0, np.float32(np.nan).tobytes()),
        "rows_exchanged": put("features/flatten", 0, row_of("features/flatten", 1) + row_of("features/flatten", 0)),
        "status_unknown": put("samples/status", 0, b"\xc8"),
        "provenance_garbage": notes(bytes(range(256)) * 900),
        "provenance_deep": notes(deep),
        "provenance_many": notes(b"{}\n" * (columns["provenance"].nbytes // 3)),
        "provenance_huge_number": notes(b'{"a":' + b"9" * 200_000 + b"}\n"),
        "provenance_escapes": notes(b'{"host":"\\u001b]0;owned\\u0007\\u202e","a":NaN}\n'),
    }


def forge_tables(folder: Path) -> None:
    """Files of a stranger who knows the format: every digest is right, and what it covers is not."""
    good = samples()
    cases: dict[str, dict[str, Any]] = {
        "forged_label_beyond": {"labels": np.full(ROWS, 99, np.int32)},
        "forged_label_negative": {"labels": np.full(ROWS, -7, np.int32)},
        "forged_split_unknown": {"splits": np.full(ROWS, 200, np.uint8)},
        "forged_ids_unordered": {"ids": good.ids[::-1]},
        "forged_ids_alike": {"ids": np.full(ROWS, b"a.jpg")},
        "forged_ids_elsewhere": {
            "ids": np.array([b"../../canary.txt", b"/etc/passwd", b"a", b"b\n", b"c\x1b[2J", b""])
        },
    }
    for name, changes in cases.items():
        make_cache(folder / f"{name}.h5", replace(good, **changes))


ROOT_CASES = {
    "spec_deep": b"[" * 30_000,
    "spec_deep_object": b'{"a":' * 8_000 + b"1" + b"}" * 8_000,
    "spec_huge_number": b'{"a":' + b"9" * 40_000 + b"}",
    "spec_nan": b'{"a":NaN}',
    "spec_infinite": b'{"a":1e999}',
    "spec_not_utf8": b'{"a":"\xff\xfe"}',
    "spec_list": b"[1,2]",
    "spec_twice": b'{"a":1,"a":2}',
    "spec_empty": b"",
}


def h5_cases(canary: Path, fifo: Path) -> dict[str, Callable[[h5py.File], object]]:
    """What h5py itself can write and no cache may hold."""
    name, shape = "features/flatten", (ROWS, WIDTH)
    ones = np.ones(shape, np.float32)
    label, ids, status = "samples/label", "samples/id", "samples/status"

    def again(place: str, *arguments: Any, **options: Any) -> Callable[[h5py.File], object]:
        def change(file: h5py.File) -> None:
            del file[place]
            file.create_dataset(place, *arguments, **options)

        return change

    def link(place: str, to: object) -> Callable[[h5py.File], object]:
        def change(file: h5py.File) -> None:
            target = file[to] if isinstance(to, str) else to
            del file[place]
            file[place] = target

        return change

    def attribute(which: str, value: object, **options: Any) -> Callable[[h5py.File], object]:
        return lambda file: file.attrs.create(which, value, **options)

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(shape, "f4")
        layout[:] = h5py.VirtualSource(str(canary), "features/flatten", shape)
        del file[name]
        file.create_virtual_dataset(name, layout)

    def compact(file: h5py.File) -> None:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.COMPACT)
        del file[name]
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(shape), creation)

    def layers(file: h5py.File) -> None:
        for number in range(3000):
            file.create_group(f"features/layer{number:04}")

    def named_layer(raw: bytes) -> Callable[[h5py.File], object]:
        def change(file: h5py.File) -> None:
            for group in (file["features"].id, file["checksums"].id):
                group.links.create_hard(raw, group, b"flatten")
                group.unlink(b"flatten")

        return change

    enum = h5py.enum_dtype({"PENDING": 0, "OK": 2, "BAD": 1}, basetype="u1")
    cases: dict[str, Callable[[h5py.File], object]] = {
        "soft_link_group": link("samples", h5py.SoftLink("/features")),
        "soft_link_dataset": link(name, h5py.SoftLink("/samples/digest")),
        "soft_link_loop": link(name, h5py.SoftLink("/features/flatten")),
        "soft_link_nowhere": link("classes", h5py.SoftLink("/nowhere")),
        "external_link_group": link("samples", h5py.ExternalLink(str(canary), "/samples")),
        "external_link_dataset": link(name, h5py.ExternalLink(str(canary), "/features/flatten")),
        "external_link_fifo": link("checksums", h5py.ExternalLink(str(fifo), "/checksums")),
        "external_link_layer": lambda file: file["features"].__setitem__("x", h5py.ExternalLink(str(fifo), "/x")),
        "external_storage": again(name, shape, "f4", external=[(str(canary), 0, ones.nbytes)]),
        "external_storage_fifo": again(ids, (ROWS,), "S13", external=[(str(fifo), 0, ROWS * 13)]),
        "external_storage_zero": again(name, shape, "f4", external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)]),
        "virtual": virtual,
        "chunked": again(name, data=ones, chunks=(2, WIDTH)),
        "gzip": again(name, data=ones, compression="gzip"),
        "fletcher": again(ids, data=np.full(ROWS, b"a"), fletcher32=True),
        "compact": compact,
        "never_written": again(name, shape, "f4"),
        "vlen_ids": again(ids, data=["a"] * ROWS, dtype=h5py.string_dtype()),
        "vlen_numbers": again(name, (ROWS,), dtype=h5py.vlen_dtype(np.float32)),
        "compound": again(name, data=np.zeros(shape, [("a", "f4"), ("b", "S2")])),
        "compound_deep": again(label, data=np.zeros(ROWS, [("a", [("b", [("c", "i4")])])])),
        "references": again(name, shape, dtype=h5py.ref_dtype),
        "regions": again(name, shape, dtype=h5py.regionref_dtype),
        "opaque": again(name, data=np.zeros(shape, "V4")),
        "complex": again(name, data=ones.astype("c8")),
        "float64": again(name, data=ones.astype("f8")),
        "integers": again(name, data=ones.astype("i4")),
        "array_type": again(name, (ROWS,), np.dtype(("f4", (WIDTH,)))),
        "big_endian": again(name, data=ones.astype(">f4")),
        "big_endian_labels": again(label, data=np.zeros(ROWS, ">i4")),
        "scalar_features": again(name, data=np.float32(1)),
        "null_features": again(name, data=h5py.Empty("f4")),
        "one_dimension": again(name, data=np.ones(ROWS, "f4")),
        "enum_members": again(status, data=np.ones(ROWS, "u1"), dtype=enum),
        "enum_missing": again(status, data=np.ones(ROWS, "u1")),
        "long_ids": again(ids, (ROWS,), "S70000"),
        "group_for_dataset": lambda file: (file.pop(name), file.create_group(name)),
        "dataset_for_group": lambda file: (file.pop("checksums"), file.create_dataset("checksums", data=ones)),
        "named_type": lambda file: (file.pop(name), file.__setitem__(name, np.dtype("f4"))),
        "group_in_itself": lambda file: file["features"].__setitem__("again", file["features"]),
        "root_in_itself": link("samples", "/"),
        "layer_twice": lambda file: [file[g].__setitem__("b", file[f"{g}/flatten"]) for g in ("features", "checksums")],
        "layers_3000": layers,
        "layer_not_utf8": named_layer(b"\xff\xfe"),
        "layer_long": named_layer(b"x" * 60_000),
        "layer_escape": named_layer(b"\x1b]0;owned\x07\n"),
        "no_layers": lambda file: file["features"].pop("flatten"),
        "no_checksums": lambda file: file["checksums"].pop("flatten"),
        "no_table": lambda file: file.attrs.__delitem__("table"),
        "newer": attribute("version", np.int64(2)),
        "version_string": attribute("version", np.bytes_("1")),
        "version_huge": attribute("version", np.uint64(2**64 - 1)),
        "version_array": attribute("version", np.ones(1000, np.int64)),
        "version_float": attribute("version", 1.0),
        "format_other": attribute("format", np.bytes_("somebody-elses")),
        "format_vlen": attribute("format", "precompute-features"),
        "key_other": attribute("key", np.bytes_("0" * 64)),
        "table_other": attribute("table", np.bytes_("0" * 64)),
        "table_short": attribute("table", np.bytes_("")),
        "table_reference": lambda file: file.attrs.create("table", file[name].ref, dtype=h5py.ref_dtype),
        "attributes_1000": lambda file: [file.attrs.create(f"a{number}", number) for number in range(1000)],
    }
    for kind, text in ROOT_CASES.items():
        cases[kind] = attribute("spec", np.bytes_(text))
    return cases


def make_caches(folder: Path, canary: Path, fifo: Path) -> None:
    folder.mkdir()
    make_cache(folder / "good.h5")
    good = (folder / "good.h5").read_bytes()
    columns = read_layout(str(folder / "good.h5")).columns
    for name, change in h5_cases(canary, fifo).items():
        path = folder / f"{name}.h5"
        path.write_bytes(good)
        with h5py.File(path, "r+") as file:
            change(file)
    plain = {
        **structure_cases(good, columns),
        **data_cases(good, columns),
        "user_block": bytes(512) + good,
        "random_bytes": np.random.default_rng(0).bytes(5000),
        "signature_and_noise": good[:8] + np.random.default_rng(0).bytes(5000),
        "empty": b"",
        "zeros": bytes(100_000),
        "text": b"not HDF5\n" * 100,
        "followed_by_more": good + bytes(1000),
        **{f"cut_{part:02}": good[: len(good) * part // 16] for part in range(1, 16)},
    }
    for name, data in plain.items():
        (folder / f"{name}.h5").write_bytes(data)
    forge_tables(folder)
    with h5py.File(folder / "of_another_kind.h5", "w", libver="latest") as file:
        file.attrs["big"] = np.zeros(10**6)  # libhdf5 keeps it in dense attribute storage
        file["x"] = np.arange(10)
    path = folder / "spec_in_dense_storage.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["format"], file.attrs["version"] = np.bytes_("precompute-features"), np.int64(1)
        file.attrs["key"] = file.attrs["table"] = np.bytes_("0" * 64)
        file.attrs["spec"] = np.bytes_(b'{"a":"' + b"x" * 2**20 + b'"}')
    make_sparse_cache(folder / "rows_10_to_10.h5", 10**10)
    (folder / "folder.h5").mkdir()
    os.mkfifo(folder / "fifo.h5")
    (folder / "zero.h5").symlink_to("/dev/zero")
    (folder / "loop.h5").symlink_to("loop.h5")
    (folder / "nowhere.h5").symlink_to("nowhere")


def make_sparse_cache(path: Path, rows: int) -> None:
    """A few kilobytes on the disk that claim `rows` samples; names and features are holes."""
    with h5py.File(path, "w", libver=("v108", "v108")) as file:
        spec = canonical_json(SPEC).encode()
        for name, value in {"format": b"precompute-features", "spec": spec, "key": key_of(SPEC).encode()}.items():
            file.attrs[name] = np.bytes_(value)
        file.attrs["version"], file.attrs["table"] = np.int64(1), np.bytes_("0" * 64)
        kinds = column_types(rows, 1) | {"classes": ((1,), np.dtype("S1")), "provenance": ((9,), np.dtype("u1"))}
        kinds |= {"features/flatten": ((rows, 1), np.dtype("<f2")), "checksums/flatten": ((rows,), np.dtype("<u8"))}
        for name, (shape, dtype) in kinds.items():
            creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
            links.set_create_intermediate_group(True)
            space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(dtype, logical=True)
            h5py.h5d.create(file.id, name.encode(), kind, space, creation, links)


# Heads and weights


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def tensors_file(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    return len(header).to_bytes(8, "little") + header + data


def entries(**arrays: tuple[str, list[int], tuple[int, int]]) -> bytes:
    return json.dumps(
        {name: {"dtype": kind, "shape": shape, "data_offsets": span} for name, (kind, shape, span) in arrays.items()}
    ).encode()


def safetensors_cases() -> dict[str, bytes]:
    """Headers that lie, for heads and for weights."""
    many = b"{" + b",".join(b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(100_000)) + b"}"
    return {
        "header_2_to_63": (2**63).to_bytes(8, "little") + b"{}",
        "header_2_to_64": b"\xff" * 8 + b"{}",
        "header_100_mb_claimed": (10**8).to_bytes(8, "little") + b"{}",
        "header_longer_than_file": (200).to_bytes(8, "little") + b"{}",
        "header_cut": b"\x10\0\0",
        "header_empty": tensors_file(b""),
        "header_no_object": tensors_file(b"[]"),
        "header_deep": tensors_file(b'{"a":' * 100_000),
        "header_not_utf8": tensors_file(b'{"\xff":1}'),
        "header_many_tensors": tensors_file(many),
        "overlapping": tensors_file(entries(a=("F32", [2], (0, 8)), b=("F32", [2], (4, 12))), bytes(12)),
        "gap": tensors_file(entries(a=("F32", [1], (0, 4)), b=("F32", [1], (8, 12))), bytes(12)),
        "negative": tensors_file(entries(a=("F32", [1], (-4, 0))), bytes(4)),
        "backwards": tensors_file(entries(a=("F32", [1], (4, 0))), bytes(4)),
        "beyond": tensors_file(entries(a=("F32", [2**40], (0, 2**42))), bytes(4)),
        "shape_overflows": tensors_file(entries(a=("F32", [2**32, 2**32, 0], (0, 4))), bytes(4)),
        "shape_and_span_differ": tensors_file(entries(a=("F32", [3], (0, 4))), bytes(4)),
        "dtype_unknown": tensors_file(entries(a=("OBJECT", [1], (0, 4))), bytes(4)),
        "twice": tensors_file(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}',
            bytes(8),
        ),
    }


def write_sparse(path: Path, head: bytes, size: int) -> None:
    path.write_bytes(head)
    os.truncate(path, size)


def hostile_heads(folder: Path, target: Path) -> None:
    import joblib

    from precompute.heads import _headfile, load_head, save_head

    folder.mkdir()
    good = make_heads(folder)[0]
    data = good.read_bytes()
    for name, blob in safetensors_cases().items():
        (folder / f"{name}.safetensors").write_bytes(blob)
    (folder / "pickle.safetensors").write_bytes(pickle.dumps(Payload(target)))
    joblib.dump(Payload(target), folder / "joblib.safetensors")
    joblib.dump(Payload(target), folder / "joblib_zlib.safetensors", compress=9)
    for part in range(8):
        (folder / f"cut_{part}.safetensors").write_bytes(data[: len(data) * part // 8])
    write_sparse(folder / "header_200_mb.safetensors", (200 * 10**6).to_bytes(8, "little"), 201 * 10**6)
    write_sparse(folder / "sparse_100_gb.safetensors", data, 10**11)
    (folder / "flipped.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with good.open("rb") as file:
        arrays, strings = _headfile.decode(file, len(data))
    strings = {key: value for key, value in strings.items() if key not in ("format", "version", "digest")}
    for name, changes in {
        "forged_kind": {"head": "os.system"},
        "forged_params": {"params": '{"__class__":"os.system"}'},
        "forged_deep": {"metadata": '{"a":' * 100_000},
        "forged_nan": {"metadata": '{"a":NaN}'},
        "forged_classes": {"classes": '{"dtype":"object","values":[[],{}]}'},
    }.items():
        (folder / f"{name}.safetensors").write_bytes(_headfile.encode(arrays, {**strings, **changes}))
    saved = load_head(good)
    for name, spec in {
        "spec_none": None,
        "spec_no_object": [1],
        "spec_code": {**FULL_SPEC, "backbone": "canary_module:make"},
        "spec_huge_transform": {**FULL_SPEC, "transform": {**FULL_SPEC["transform"], "resize": 10**9, "crop": 10**9}},
        "spec_foreign_weights": FULL_SPEC,
    }.items():
        sources = {"kind": "file", "path": str(target.with_name("canary.fifo"))}
        metadata = {"layer": "flatten", "spec": spec, "weights_source": sources}
        save_head(folder / f"{name}.safetensors", saved.head, metadata=metadata)
    (folder / "folder.safetensors").mkdir()
    os.mkfifo(folder / "fifo.safetensors")
    (folder / "zero.safetensors").symlink_to("/dev/zero")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")


FULL_SPEC: dict[str, Any] = {
    **SPEC,
    "weights": "0" * 64,
    "transform": {
        "resize": 32,
        "crop": 32,
        "interpolation": "bilinear",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "decoder": "x",
    },
    "precision": "fp32",
    "views": 1,
}


def checkpoint(pickled: bytes, *, storage: bytes = bytes(8), grows: int = 0) -> bytes:
    """torch's zip format around a pickle of one's own; with `grows`, `storage` is deflate data of so many bytes."""
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as archive:
        for name, data in {"data.pkl": pickled, "byteorder": b"little", "data/0": storage, "version": b"3\n"}.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
        entry = archive.getinfo("archive/data/0")
    made = bytearray(result.getvalue())
    if grows:
        central = made.index(b"PK\1\2", made.index(b"PK\1\2", made.index(b"PK\1\2") + 4) + 4)
        for method, length in ((entry.header_offset + 8, entry.header_offset + 22), (central + 10, central + 24)):
            struct.pack_into("<H", made, method, zipfile.ZIP_DEFLATED)
            struct.pack_into("<I", made, length, grows)
    return bytes(made)


def hostile_weights(folder: Path, target: Path) -> None:
    import joblib
    import torch

    folder.mkdir()
    make_weights(folder)
    good = (folder / "zip.pth").read_bytes()
    for name, blob in safetensors_cases().items():
        (folder / f"{name}.safetensors").write_bytes(blob)
    empty = b'"%06x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = b"{" + b",".join(empty % number for number in range(10**6)) + b"}"
    (folder / "tensors_300000.safetensors").write_bytes(tensors_file(text))
    write_sparse(folder / "header_200_mb.safetensors", (200 * 10**6).to_bytes(8, "little"), 201 * 10**6)
    claim = entries(a=("F32", [2**36], (0, 2**38)))
    write_sparse(folder / "sparse_256_gb.safetensors", tensors_file(claim), 8 + len(claim) + 2**38)

    (folder / "pickle.pth").write_bytes(pickle.dumps(Payload(target)))
    joblib.dump(Payload(target), folder / "joblib.pth")
    torch.save({"state_dict": {"a": torch.zeros(2)}, "evil": Payload(target)}, folder / "code.pth")
    legacy = {"a": torch.zeros(2), "evil": Payload(target)}
    torch.save(legacy, folder / "code_legacy.pth", _use_new_zipfile_serialization=False)
    tuples, lists, sets = b"\x85" * 10**6, b"]" * 10**7, b"\x8f" * 10**7
    start, key = b"\x80\x02}", b"K\x01s."
    wholes = {
        "deep_key": start + b")" + tuples + key,
        "deep_list": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
        "many_sets": b"\x80\x02(" + sets + b"t.",
        "huge_string": start + b"X\xff\xff\xff\xffabc" + key,
        "huge_memo": start + b"r\xff\xff\xff\xff" + b"K\x01K\x02s.",
        "no_stop": start,
    }
    for name, pickled in wholes.items():
        (folder / f"{name}.pth").write_bytes(checkpoint(pickled))
    legacy_head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    (folder / "deep_key_legacy.pth").write_bytes(legacy_head + wholes["deep_key"])
    (folder / "many_lists_legacy.pth").write_bytes(legacy_head + b"\x80\x02(" + lists + b"l.")
    write_sparse(folder / "sparse_legacy.pth", legacy_head + start, 2**40)
    write_sparse(folder / "sparse_zip.pth", good, 2**40)
    write_sparse(folder / "sparse_tar.pth", bytes(257) + b"ustar\x0000", 2**40)

    torch.save({"a": torch.zeros(1).expand(2**40)}, folder / "repeated_2_to_40.pth")
    torch.save({"a": torch.empty(2**40, device="meta")}, folder / "meta_2_to_40.pth")
    indices = torch.zeros(1, 1, dtype=torch.long)
    sparse = torch.sparse_coo_tensor(indices, torch.ones(1), (2**40,), check_invariants=False)
    torch.save({"a": sparse}, folder / "sparse_tensor.pth")
    torch.save({"a": torch.zeros(4, dtype=torch.complex64)}, folder / "complex.pth")
    torch.save({"a": torch.zeros(4).to(torch.float8_e5m2)}, folder / "float8.pth")
    torch.save({("a",) * 3: torch.zeros(4), 7: torch.zeros(2)}, folder / "names_no_strings.pth")
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        name = next(entry for entry in archive.namelist() if entry.endswith("data.pkl"))
        state = archive.read(name)
    (folder / "zip_bomb.pth").write_bytes(checkpoint(state, storage=bomb(2**31, wrapped=False), grows=2**31))
    (folder / "storage_missing.pth").write_bytes(checkpoint(state))
    (folder / "zip_with_code.pth").write_bytes(checkpoint(pickle.dumps(Payload(target), 2)))
    for part in range(8):
        (folder / f"cut_{part}.pth").write_bytes(good[: len(good) * part // 8])
    (folder / "folder.pth").mkdir()
    os.mkfifo(folder / "fifo.pth")
    (folder / "zero.pth").symlink_to("/dev/zero")
    (folder / "loop.pth").symlink_to("loop.pth")


# Images


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, interlaced: int = 0) -> bytes:
    """A PNG of these chunks, with this header."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")])


def bomb(size: int, *, wrapped: bool = True) -> bytes:
    """zlib data, or bare deflate data, that grows to `size` zeros. One MiB is compressed; its bytes are repeated."""
    packer, piece = zlib.compressobj(9, wbits=-15), 2**20
    block = packer.compress(bytes(piece)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, wbits=-15)
    raw = block * (size // piece) + rest.compress(bytes(size % piece)) + rest.flush()
    return b"\x78\xda" + raw + struct.pack(">HH", size % 65521, 1) if wrapped else raw


def tiff(*tags: tuple[int, int, int, int], following: int = 0, data: bytes = b"") -> bytes:
    """A little-endian TIFF with one directory: (tag, type, count, value), then `data` at byte 8."""
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory + struct.pack("<I", following)


def grey_tiff(width: int, height: int, *more: tuple[int, int, int, int], **options: Any) -> bytes:
    plain = {256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, 1), 262: (3, 1), 277: (3, 1), 278: (4, height)}
    plain |= {273: (4, 8), 279: (4, width * height % 2**32)}
    tags = {tag: (tag, kind, 1, value) for tag, (kind, value) in plain.items()}
    tags |= {tag[0]: tag for tag in more}
    return tiff(*tags.values(), **options)


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def lying_headers(pictures: dict[str, bytes]) -> dict[str, bytes]:
    """A few hundred bytes whose headers promise billions of pixels."""
    jpeg, gif = bytearray(pictures["baseline.jpg"]), bytearray(pictures["plain.gif"])
    bmp, webp = bytearray(pictures["rgb.bmp"]), bytearray(pictures["lossless.webp"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp[18:26] = struct.pack("<ii", 2**31 - 1, 2**31 - 1)
    webp[21:25] = (int.from_bytes(webp[21:25], "little") | (1 << 28) - 1).to_bytes(4, "little")
    return {
        "lying_jpeg": bytes(jpeg),
        "lying_gif": bytes(gif),
        "lying_bmp": bytes(bmp),
        "lying_webp": bytes(webp),
        "lying_png": png(100_000, 100_000, chunk(b"IDAT", zlib.compress(b"\0"))),
        "lying_png_2_to_31": png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", b"")),
        "lying_tiff": grey_tiff(2**31 - 1, 2**31 - 1),
        "lying_tiff_2_to_32": grey_tiff(2**32 - 1, 2**32 - 1),
        "one_pixel_high": png(2**31 - 1, 1, chunk(b"IDAT", zlib.compress(b"\0"))),
        "one_pixel_wide": png(1, 2**31 - 1, chunk(b"IDAT", zlib.compress(b"\0"))),
        "no_pixels": png(0, 0, chunk(b"IDAT", zlib.compress(b"\0"))),
    }


def largest_images() -> dict[str, bytes]:
    """Pictures just below the limit: small as files, and all of their pixels are really there."""
    width, height = 10_240, 10_240
    turned = Image.Exif()
    turned[0x0112] = 5
    return {
        "largest_rgba": png(width, height, chunk(b"IDAT", bomb((4 * width + 1) * height)), colour=6),
        "largest_grey16": png(width, height, chunk(b"IDAT", bomb((2 * width + 1) * height)), depth=16, colour=0),
        "largest_interlaced": png(width, height, chunk(b"IDAT", bomb(2**20 * 320)), interlaced=1),
        "largest_jpeg_turned": encoded(Image.new("RGB", (width, height)), "JPEG", exif=turned, subsampling=0),
        "largest_progressive": encoded(Image.new("RGB", (width, 9300)), "JPEG", progressive=True, subsampling=0),
        "largest_webp": encoded(Image.new("RGBA", (16_383, 3200)), "WEBP", lossless=True, method=0, quality=0),
        "cmyk_progressive": encoded(Image.new("CMYK", (width, height - 1024)), "JPEG", progressive=True, quality=10),
        "webp_beyond": encoded(Image.new("RGB", (16_383, 3300)), "WEBP", lossless=True, method=0, quality=0),
    }


def bombs(pictures: dict[str, bytes]) -> dict[str, bytes]:
    """What grows or goes on when it is read."""
    dots = chunk(b"IDAT", zlib.compress(b"\0\1\2\3" * 1))
    text = bomb(2**30)
    many = chunk(b"zTXt", b"k\0\0" + bomb(2**20))
    jpeg = pictures["progressive.jpg"]
    long = encoded(Image.new("RGB", (6000, 6000)), "JPEG", progressive=True, subsampling=0)
    scan = long.rindex(b"\xff\xda")
    frame = pictures["animated.gif"]
    first = frame.index(b"\x21\xf9\x04")
    apng = pictures["animated.png"]
    following = apng.rindex(b"IEND") - 4
    tail = apng[apng.index(b"fcTL", apng.index(b"IDAT")) - 4 : following]
    webp = pictures["animated.webp"]
    frames = webp[webp.index(b"ANMF") :] * 3000
    size = len(webp) - 8 + len(frames)
    huge_exif = b"Exif\0\0" + tiff((0x8769, 4, 1, 8), following=8)
    wide = grey_tiff(64, 64, (322, 4, 1, 2**16), (323, 4, 1, 2**16), (324, 4, 1, 8), (325, 4, 1, 64), data=bytes(64))
    deflated = bomb(2**30)
    tiles = ((259, 3, 1, 8), (322, 4, 1, 2**15), (323, 4, 1, 2**15), (324, 4, 1, 8), (325, 4, 1, len(deflated)))
    gigabyte = grey_tiff(64, 64, *tiles, data=deflated)
    strip = grey_tiff(64, 64, (259, 3, 1, 8), (279, 4, 1, len(deflated)), data=deflated)
    return {
        "text_bomb": png(1, 1, chunk(b"zTXt", b"k\0\0" + text), dots),
        "text_bomb_international": png(1, 1, chunk(b"iTXt", b"k\0\1\0\0\0" + text), dots),
        "text_bombs_many": png(1, 1, *[many] * 2000, dots),
        "text_bombs_behind": png(1, 1, dots, *[many] * 2000),
        "profile_bomb": png(1, 1, chunk(b"iCCP", b"k\0\0" + text), dots),
        "pixels_too_many": png(64, 64, chunk(b"IDAT", text)),
        "chunks_empty": png(64, 64, *[chunk(b"IDAT", b"")] * 200_000),
        "chunk_2_to_31": png(1, 1, dots).replace(b"\0\0\0\x0cIDAT", b"\x7f\xff\xff\xffIDAT"),
        "scans_10000": long[:-2] + long[scan:-2] * 10_000 + b"\xff\xd9",
        "markers_200000": jpeg[:2] + segment(0xFE, b"x") * 200_000 + jpeg[2:],
        "profiles_255": jpeg[:2]
        + b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 255]) + bytes(65_000)) for n in range(1, 256))
        + jpeg[2:],
        "exif_loop": jpeg[:2] + segment(0xE1, huge_exif) + jpeg[2:],
        "mpf_lying": pictures["several.jpg"].replace(b"MPF\0", b"MPF\0" + b"\xff" * 8),
        "frames_gif": frame[:-1] + frame[first:-1] * 3000 + b";",
        "frames_gif_endless": frame[:-1] + frame[first:-1] * 3000,
        "blocks_gif": frame[:first] + (b"\x21\xfe\xff" + bytes(255) + b"\0") * 20_000 + frame[first:],
        "frames_png": apng[:following] + tail * 2000 + apng[following:],
        "frames_png_claimed": apng.replace(apng[33:53], chunk(b"acTL", b"\x7f\xff\xff\xff\0\0\0\0")),
        "frames_webp": b"RIFF" + struct.pack("<I", size) + webp[8:] + frames,
        "directory_loop": grey_tiff(8, 8, following=8 + 64, data=bytes(64)),
        "directory_of_itself": grey_tiff(8, 8, (330, 4, 1, 72), following=72, data=bytes(64)),
        "directory_65535": struct.pack("<2sHIH", b"II", 42, 8, 65_535) + struct.pack("<HHII", 256, 4, 1, 8) * 65_535,
        "tag_2_to_32": grey_tiff(8, 8, (270, 2, 2**32 - 1, 8), data=bytes(64)),
        "strips_2_to_32": grey_tiff(8, 8, (273, 4, 2**32 - 1, 8), (279, 4, 2**32 - 1, 8), data=bytes(64)),
        "strip_to_itself": grey_tiff(8000, 8000, data=bytes(64)),
        "tile_2_to_16": wide,
        "tile_bomb": gigabyte,
        "strip_bomb": strip,
        "big_tiff_loop": struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + struct.pack("<QQ", 2**63, 16),
        "bmp_run_length": pictures["palette.bmp"][:30] + b"\1" + pictures["palette.bmp"][31:],
        "bmp_palette_2_to_31": pictures["palette.bmp"][:46] + b"\xff\xff\xff\x7f" + pictures["palette.bmp"][50:],
        "bmp_offset": pictures["rgb.bmp"][:10] + b"\xff\xff\xff\x7f" + pictures["rgb.bmp"][14:],
        "polyglot_gif_zip": pictures["plain.gif"] + b"PK\3\4" + bytes(100),
        "polyglot_jpeg_html": jpeg[:2] + segment(0xFE, b"<script>alert(1)</script>") + jpeg[2:],
        "polyglot_png_pickle": png(1, 1, dots) + pickle.dumps(["x"]),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "xpm": b'/* XPM */ static char *a[] = { "999999 999999 2 1",',
        "nothing": b"",
    }


def make_largest(folder: Path) -> None:
    folder.mkdir()
    for name, data in largest_images().items():
        (folder / name).write_bytes(data)


def make_images(folder: Path) -> None:
    folder.mkdir()
    pictures = make_pictures()
    cases = {**lying_headers(pictures), **bombs(pictures)}
    cases |= {f"cut_{name}": data[: len(data) // 2] for name, data in pictures.items()}
    for name, data in cases.items():
        (folder / name).write_bytes(data)


# A source folder


def odd_names() -> list[bytes]:
    """File names that are bytes like any other to the file system."""
    return [
        b"two\nlines.jpg",
        b"not \xff\xfe utf-8.jpg",
        b"x" * 251 + b".jpg",
        "right\u202egpj.exe.jpg".encode(),
        "\u200f\u2066both\u2069.jpg".encode(),
        b"-rf.jpg",
        b"--help.jpg",
        b"bell\x07 and \x1b[2J\x1b]0;title\x07.jpg",
        b"tab\t and \r return.jpg",
        b" .jpg",
        b"~.jpg",
        b"*?[a].jpg",
        b"$(id) `id` ;id.jpg",
        b"%s%n%00.jpg",
        b"C:\\windows\\..\\x.jpg",
        "e\u0301.jpg".encode(),
        "\u00e9.jpg".encode(),
        b"CON.jpg",
    ]


def make_photos(folder: Path, canary: Path) -> None:
    folder.mkdir()
    photo, root = make_pictures()["baseline.jpg"], os.fsencode(folder)
    for number, name in enumerate(odd_names()):
        place = os.path.join(root, b"odd \xff\nclass", name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(photo + bytes([number]))  # bytes behind the picture, so that no two files are the same
    plain = folder / "plain"
    plain.mkdir()
    (plain / "good.jpg").write_bytes(photo)
    (plain / "cut.jpg").write_bytes(photo[:200])
    (plain / "text.jpg").write_bytes(b"no picture")
    (plain / "empty.png").write_bytes(b"")
    (plain / "lying.png").write_bytes(png(100_000, 100_000))
    (plain / "canary.jpg").symlink_to(canary)
    write_sparse(plain / "sparse.jpg", photo[:300], 2**40)
    (plain / "loop").symlink_to("..")
    (plain / "self.jpg").symlink_to("self.jpg")
    (plain / "nowhere.jpg").symlink_to("nowhere")
    (plain / "zero.jpg").symlink_to("/dev/zero")
    (plain / "stdin.jpg").symlink_to("/dev/stdin")
    os.mkfifo(plain / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(plain):  # a socket's path may have 107 bytes only
        server.bind("socket.jpg")
    with contextlib.suppress(OSError):  # only root may, and not everywhere
        os.mknod(plain / "device.jpg", stat.S_IFCHR | 0o644, os.makedev(1, 5))
    deep = plain
    for _ in range(60):
        deep /= "deep"
    deep.mkdir(parents=True)
    (deep / "bottom.jpg").write_bytes(photo)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--largest", action="store_true", help="only pictures of a hundred million pixels")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True)
    if options.largest:
        make_largest(folder / "images")
        return 0
    canary, fifo, ran = folder / "canary.h5", folder / "canary.fifo", folder / "ran"
    make_cache(canary, samples(CANARY))
    os.mkfifo(fifo)  # whoever opens it waits for ever
    (folder / "canary.txt").write_text(CANARY.decode())
    make_caches(folder / "caches", canary, fifo)
    hostile_heads(folder / "heads", ran)
    hostile_weights(folder / "weights", ran)
    make_images(folder / "images")
    make_photos(folder / "photos", folder / "canary.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
