"""Makes the hostile caches: links, layouts and types of HDF5's, damage, forgery and holes."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from precompute.cache import canonical_json, key_of, read_layout
from precompute.cache.columns import column_types
from precompute.cache.quantised import QuantisedRows

from .cache_bytes import data_cases, header_of, mended, structure_cases
from .good import INT8_SPEC, MAPS, ROWS, SPEC, WIDTH, make_cache, make_int8_cache, samples


def forge_tables(folder: Path) -> None:
    """Files of a stranger who knows the format: every digest is right, and what it covers is not."""
    good = samples()
    cases: dict[str, dict[str, Any]] = {
        "forged_label_beyond": {"labels": np.full(ROWS, 99, np.int32)},
        "forged_label_negative": {"labels": np.full(ROWS, -7, np.int32)},
        "later_split": {"splits": np.full(ROWS, 200, np.uint8)},  # no forgery: codes may grow
        "forged_ids_unordered": {"ids": good.ids[::-1]},
        "forged_ids_alike": {"ids": np.full(ROWS, b"a.jpg")},
        "forged_ids_elsewhere": {
            "ids": np.array([b"../../canary.txt", b"/etc/passwd", b"a", b"b\n", b"c\x1b[2J", b""])
        },
    }
    for name, changes in cases.items():
        make_cache(folder / f"{name}.h5", replace(good, **changes))


FEATURES = "features/flatten"
Change = Callable[[h5py.File], object]

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


def again(place: str, *arguments: Any, **options: Any) -> Change:
    """Another dataset in place of this one."""

    def change(file: h5py.File) -> None:
        del file[place]
        file.create_dataset(place, *arguments, **options)

    return change


def link(place: str, to: object) -> Change:
    def change(file: h5py.File) -> None:
        target = file[to] if isinstance(to, str) else to
        del file[place]
        file[place] = target

    return change


def attribute(which: str, value: object, **options: Any) -> Change:
    return lambda file: file.attrs.create(which, value, **options)


def groups(place: str) -> Change:
    return lambda file: [file.create_group(f"{place}/one{number:04}") for number in range(3000)]


def named_layer(raw: bytes) -> Change:
    def change(file: h5py.File) -> None:
        for group in (file["features"].id, file["checksums"].id):
            group.links.create_hard(raw, group, b"flatten")
            group.unlink(b"flatten")
        name_layers(file, raw.decode("utf-8", "surrogateescape"))

    return change


def another_layer(link: object) -> Change:
    def change(file: h5py.File) -> None:
        file["features"]["x"] = link if isinstance(link, h5py.ExternalLink) else file[FEATURES]
        file["checksums"]["x"] = file["checksums/flatten"]
        name_layers(file, "flatten", "x")

    return change


def attribute_of(place: str, which: str, value: object, **options: Any) -> Change:
    return lambda file: file[place].attrs.create(which, value, **options)


def spec_of(change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(file: h5py.File) -> None:
        spec = json.loads(json.dumps(SPEC))
        change(spec)
        set_spec(file, spec)

    return apply


def grown_cases(fifo: Path) -> dict[str, Change]:
    """What the format lets grow, and what it does not: layers and their attributes, further columns, `requires`."""

    def unknown_members(file: h5py.File) -> None:
        """What a later precompute may add, and where it may lead."""
        for number, place in enumerate(("/", "samples", "checksums")):
            file[place][f"fifo{number}"] = h5py.ExternalLink(str(fifo), "/x")
            file[place][f"soft{number}"] = h5py.SoftLink("/nowhere")
            file[place].create_dataset(f"new{number}", data=["a"], dtype=h5py.string_dtype())
            file[place].attrs["new"] = ["several", "strings"]
        file[FEATURES].attrs["new"] = 1.5
        file.create_group("samples/group/in/group")

    return {
        "unknown_members": unknown_members,
        "columns_3000": groups("columns"),
        "columns_vlen": again("columns/site", data=["a"] * ROWS, dtype=h5py.string_dtype()),
        "columns_short": again("columns/site", data=np.ones(ROWS - 1, "i8")),
        "columns_complex": again("columns/site", data=np.ones(ROWS, "c8")),
        "columns_wide": again("columns/site", (ROWS, 2**14), "f8"),
        "columns_without_digest": again("columns/site", data=np.ones(ROWS, "i8")),
        "column_digest_other": attribute_of("columns/site", "digest", np.bytes_("0" * 64)),
        "axes_missing": lambda file: file[FEATURES].attrs.__delitem__("axes"),
        "axes_other": attribute_of(FEATURES, "axes", np.bytes_("sample token")),
        "axes_vlen": attribute_of(FEATURES, "axes", "sample channel"),
        "axes_more": spec_of(lambda spec: spec["layers"][0].update(axes=["channel", "height"])),
        "pooling_other": attribute_of(FEATURES, "pooling", np.bytes_("mean")),
        "layers_none": spec_of(lambda spec: spec.pop("layers")),
        "layers_no_list": spec_of(lambda spec: spec.update(layers={"flatten": 1})),
        "layers_twice": spec_of(lambda spec: spec.update(layers=spec["layers"] * 2)),
        "layers_no_text": spec_of(lambda spec: spec["layers"][0].update(pooling=7)),
        "layers_other": spec_of(lambda spec: spec["layers"][0].update(name="\x1b]0;owned\x07")),
        "requires_x": attribute("requires", np.bytes_('["x"]')),
        "requires_escape": attribute("requires", np.bytes_('["\\u001b]0;owned\\u0007"]')),
        "requires_missing": lambda file: file.attrs.__delitem__("requires"),
        "requires_text": attribute("requires", np.bytes_('"x"')),
        "requires_numbers": attribute("requires", np.bytes_("[1]")),
        "requires_deep": attribute("requires", np.bytes_(b"[" * 30_000)),
        "requires_not_utf8": attribute("requires", np.bytes_(b'["\xff"]')),
    }


def h5_cases(canary: Path, fifo: Path) -> dict[str, Callable[[h5py.File], object]]:
    """What h5py itself can write and no cache may hold."""
    name, shape = FEATURES, (ROWS, WIDTH)
    ones = np.ones(shape, np.float32)
    label, ids, status = "samples/label", "samples/id", "samples/status"

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

    enum = h5py.enum_dtype({"PENDING": 0, "OK": 2, "BAD": 1}, basetype="u1")
    cases: dict[str, Callable[[h5py.File], object]] = {
        "soft_link_group": link("samples", h5py.SoftLink("/features")),
        "soft_link_dataset": link(name, h5py.SoftLink("/samples/digest")),
        "soft_link_loop": link(name, h5py.SoftLink("/features/flatten")),
        "soft_link_nowhere": link("classes", h5py.SoftLink("/nowhere")),
        "external_link_group": link("samples", h5py.ExternalLink(str(canary), "/samples")),
        "external_link_dataset": link(name, h5py.ExternalLink(str(canary), "/features/flatten")),
        "external_link_fifo": link("checksums", h5py.ExternalLink(str(fifo), "/checksums")),
        "external_link_layer": another_layer(h5py.ExternalLink(str(fifo), "/x")),
        "external_link_column": link("columns/site", h5py.ExternalLink(str(canary), "/samples/label")),
        "soft_link_columns": link("columns", h5py.SoftLink("/samples")),
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
        "long_ids": again(ids, (ROWS,), "S70000"),
        "group_for_dataset": lambda file: (file.pop(name), file.create_group(name)),
        "dataset_for_group": lambda file: (file.pop("checksums"), file.create_dataset("checksums", data=ones)),
        "named_type": lambda file: (file.pop(name), file.__setitem__(name, np.dtype("f4"))),
        "group_in_itself": lambda file: file["features"].__setitem__("again", file["features"]),
        "root_in_itself": link("samples", "/"),
        "layer_twice": another_layer(None),
        "layers_3000": groups("features"),
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
    return cases | grown_cases(fifo)


SCALES, MAPS_PLACE = "scales/maps", "features/maps"


def int8_axes(*axes: str) -> Change:
    """Other words for the axes of the maps, in both places where they stand."""

    def change(file: h5py.File) -> None:
        layers = [{**INT8_SPEC["layers"][0], "axes": list(axes)}, INT8_SPEC["layers"][1]]
        set_spec(file, {**INT8_SPEC, "layers": layers})
        file[MAPS_PLACE].attrs["axes"] = np.bytes_(" ".join(("sample", *axes)))

    return change


def int8_cases(canary: Path) -> dict[str, Change]:
    """Changes of a file of 8 bits."""
    scales, codes = np.ones((ROWS, MAPS[0], 2), "<f4"), np.ones((ROWS, *MAPS), "u1")
    return {
        "no_scales": lambda file: file.pop("scales"),
        "no_scales_of_maps": lambda file: file["scales"].pop("maps"),
        "scales_no_group": lambda file: (file.pop("scales"), file.create_dataset("scales", data=scales)),
        "scales_short": again(SCALES, data=scales[1:]),
        "scales_of_one_channel": again(SCALES, data=scales[:, :1]),
        "scales_of_positions": again(SCALES, data=np.ones((ROWS, *MAPS, 2), "<f4")),
        "scales_float64": again(SCALES, data=scales.astype("<f8")),
        "scales_big_endian": again(SCALES, data=scales.astype(">f4")),
        "scales_vlen": again(SCALES, (ROWS,), dtype=h5py.vlen_dtype(np.float32)),
        "scales_chunked": again(SCALES, data=scales, chunks=(1, 1, 2)),
        "scales_never_written": again(SCALES, scales.shape, "<f4"),
        "scales_external": link(SCALES, h5py.ExternalLink(str(canary), "/features/flatten")),
        "scales_soft": link(SCALES, h5py.SoftLink("/features/maps")),
        "scales_are_the_vectors": link(SCALES, "features/vector"),
        "codes_signed": again(MAPS_PLACE, data=codes.astype("i1")),
        "codes_float32": again(MAPS_PLACE, data=codes.astype("<f4")),
        "codes_of_the_vector": again("features/vector", data=codes[:, :, 0, 0]),
        "no_channel": int8_axes("token", "height", "width"),
        "two_channels": int8_axes("channel", "channel", "width"),
        "other_channel": int8_axes("height", "channel", "width"),  # which would have two scales
        "not_required": attribute("requires", np.bytes_("[]")),
        "not_in_spec": lambda file: set_spec(file, {**INT8_SPEC, "storage": "float16"}),
        "storage_no_text": lambda file: set_spec(file, {**INT8_SPEC, "storage": ["int8"]}),
    }


def make_int8_caches(folder: Path, canary: Path) -> None:
    make_int8_cache(folder / "int8_good.h5")
    good = (folder / "int8_good.h5").read_bytes()
    scales = read_layout(str(folder / "int8_good.h5")).columns[SCALES]
    for name, change in int8_cases(canary).items():
        path = folder / f"int8_{name}.h5"
        path.write_bytes(good)
        with h5py.File(path, "r+") as file:
            change(file)
    for name, part, value in (("nan", 0, np.nan), ("infinite", 1, np.inf), ("below_0", 1, -1), ("too_large", 1, 3e38)):

        def forge(rows: QuantisedRows, part: int = part, value: float = value) -> None:
            rows.scales[0, 1, part] = value

        make_int8_cache(folder / f"int8_forged_{name}.h5", forge)
    place = scales.offset + scales.row_bytes
    (folder / "int8_scale_changed.h5").write_bytes(good[:place] + b"\1" + good[place + 1 :])
    rows = struct.pack("<Q", ROWS)
    huge = mended(good, header_of(good, scales), rows, struct.pack("<Q", 2**40))
    (folder / "int8_scales_2_to_40.h5").write_bytes(huge)


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
    make_int8_caches(folder, canary)
    with h5py.File(folder / "of_another_kind.h5", "w", libver="latest") as file:
        file.attrs["big"] = np.zeros(10**6)  # libhdf5 keeps it in dense attribute storage
        file["x"] = np.arange(10)
    path = folder / "spec_in_dense_storage.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["format"], file.attrs["version"] = np.bytes_("precompute-features"), np.int64(1)
        file.attrs["requires"] = np.bytes_("[]")
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
        set_spec(file, SPEC)
        file.attrs["format"], file.attrs["requires"] = np.bytes_("precompute-features"), np.bytes_("[]")
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
        file["features/flatten"].attrs["axes"] = np.bytes_("sample channel")
        file["features/flatten"].attrs["pooling"] = np.bytes_("none")


def set_spec(file: h5py.File, spec: dict[str, Any]) -> None:
    """Other settings, under a right key."""
    file.attrs["spec"], file.attrs["key"] = np.bytes_(canonical_json(spec)), np.bytes_(key_of(spec))


def name_layers(file: h5py.File, *names: str) -> None:
    """Let the settings name these layers, otherwise as the good file's."""
    set_spec(file, {**SPEC, "layers": [{**SPEC["layers"][0], "name": name} for name in names]})
