"""Makes the hostile tails: code for safetensors, damage, and forgery behind right digests."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from .good import make_tail
from .parts import Payload, write_sparse
from .tensors import safetensors_cases

FITTED = {"best_epoch": 10**9, "history": [], "linear": 1, "settings": [], "target_scale": 0, "thresholds": [0.5]}
STRINGS: dict[str, tuple[str, str]] = {
    "task": ("task", "os.system"),
    "task_labels": ("task", "labels"),
    "task_number": ("task", "number"),
    "names_few": ("names", '{"dtype":"str","values":["a","b"]}'),
    "names_twice": ("names", '{"dtype":"str","values":["a","a","b"]}'),
    "names_numbers": ("names", '{"dtype":"int64","values":[1,2,3]}'),
    "names_objects": ("names", '{"dtype":"object","values":[[],{},1]}'),
    "shape_none": ("shape", "[]"),
    "shape_negative": ("shape", "[192,-4,-4]"),
    "shape_object": ("shape", '{"a":1}'),
    "shape_true": ("shape", "[true]"),
    "shape_huge": ("shape", "[1000000000,1000000000]"),
    "shape_injected": ("shape", '[1],"shape":[2]'),
    "shape_other": ("shape", "[192,5,5]"),
    "deep": ("metadata", '{"a":' * 100_000),
    "nan": ("metadata", '{"a":NaN}'),
    "metadata_list": ("metadata", "[]"),
    "temperature": ("metadata", '{"temperature":-1}'),
    "fitted_list": ("fitted", "[]"),
    "fitted_params": ("fitted", '{"__class__":"os.system"}'),
}
METADATA: dict[str, dict[str, Any]] = {
    "factory": {"tail": "canary_module:make"},
    "factory_number": {"tail": 3},
    "spec_none": {"spec": None},
    "spec_list": {"spec": [1]},
    "weights_other": {"spec": {"backbone": "tiny", "weights": "0" * 64}},
    "layer_nowhere": {"layer": "../../nowhere"},
    "layer_number": {"layer": 3},
    "layer_behind": {"layer": "embed.0"},
}


def _arrays(arrays: dict[str, Any]) -> dict[str, dict[str, Any]]:
    first = min(name for name in arrays if name.startswith("tail."))
    weight, bias = arrays["output.weight"], arrays["output.bias"]
    return {
        "arrays_missing": {name: value for name, value in arrays.items() if name != first},
        "arrays_more": {**arrays, "tail.more": bias},
        "arrays_other": {**arrays, first: bias},
        "arrays_foreign": {**arrays, "code": bias},
        "arrays_half": {**arrays, first: arrays[first].astype(np.float16)},
        "arrays_integers": {**arrays, first: np.ones(arrays[first].shape, np.int32)},
        "no_output": {name: value for name, value in arrays.items() if name != "output.weight"},
        "output_flat": {**arrays, "output.weight": weight.ravel()},
        "output_more": {**arrays, "output.weight": np.concatenate([weight, weight])},
        "output_bias": {**arrays, "output.bias": bias[:2]},
        "width": {**arrays, "output.weight": weight[:, :7].copy()},
    }


def hostile_tails(folder: Path, target: Path) -> None:
    from precompute.finetuning.tail_file import TAIL_FORMAT
    from precompute.heads.persistence.encoding import decode, encoded

    folder.mkdir()
    good = folder / "good.safetensors"
    make_tail(good)
    data = good.read_bytes()

    def write(name: str, content: bytes) -> None:
        (folder / f"{name}.safetensors").write_bytes(content)

    for name, blob in safetensors_cases().items():
        write(name, blob)
    write("pickle", pickle.dumps(Payload(target)))
    for part in range(8):
        write(f"cut_{part}", data[: len(data) * part // 8])
    write_sparse(folder / "header_200_mb.safetensors", (200 * 10**6).to_bytes(8, "little"), 201 * 10**6)
    write_sparse(folder / "sparse_100_gb.safetensors", data, 10**11)
    write_sparse(folder / "sparse_1_gb.safetensors", _claiming(11 * 10**8), 11 * 10**8 + 4096)
    write("flipped", data[:-1] + bytes([data[-1] ^ 1]))
    write("newer", data.replace(b'"version":"1"', b'"version":"9"', 1))
    write("a_head", data.replace(b"precompute-tail", b"precompute-head", 1))
    with good.open("rb") as file:
        arrays, strings = decode(file, len(data), TAIL_FORMAT)
    strings = {key: value for key, value in strings.items() if key not in ("format", "version", "digest")}
    forged = {name: (arrays, {**strings, key: value}) for name, (key, value) in STRINGS.items()}
    fitted = json.loads(strings["fitted"])
    for key, value in FITTED.items():
        forged[f"fitted_{key}"] = (arrays, {**strings, "fitted": json.dumps({**fitted, key: value})})
    for name, changed in _arrays(arrays).items():
        forged[name] = (changed, strings)
    for name, (values, said) in forged.items():
        write(name, b"".join(encoded(values, said, TAIL_FORMAT)))
    for name, metadata in METADATA.items():
        make_tail(folder / f"{name}.safetensors", metadata)
    (folder / "folder.safetensors").mkdir()
    os.mkfifo(folder / "fifo.safetensors")
    (folder / "zero.safetensors").symlink_to("/dev/zero")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")


def _claiming(size: int) -> bytes:
    """A header for one array of `size` bytes, behind which a sparse file may hold nothing, and a wrong digest."""
    header: dict[str, Any] = {
        "__metadata__": {"format": "precompute-tail", "version": "1", "digest": "0" * 64},
        "output.weight": {"dtype": "F32", "shape": [1, size // 4], "data_offsets": [0, size]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (4096 - 8 - len(text))
    return len(text).to_bytes(8, "little") + text
