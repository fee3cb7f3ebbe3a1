"""Makes the hostile heads: code for safetensors, damage, and forgery behind right digests."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from .good import SPEC, make_heads
from .parts import Payload, write_sparse
from .tensors import safetensors_cases

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
