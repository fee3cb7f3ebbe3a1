"""Makes the hostile heads: code for safetensors, damage, and forgery behind right digests."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

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


# Behind a right digest: the kind of head, and what stands in place of one of its strings or arrays.
FORGED: dict[str, tuple[str, str, Any]] = {
    "forged_kind_swap": ("ridge", "head", "knn"),
    "forged_regression_swap": ("ridge-regression", "head", "ridge"),
    "forged_regression_classes": ("ridge-regression", "classes", '{"dtype":"str","values":["a","b"]}'),
    "forged_several_swap": ("multilabel-ridge", "head", "multilabel-logistic"),
    "forged_several_as_classes": ("multilabel-knn", "head", "knn"),
    "forged_several_names": ("multilabel-mlp", "classes", '{"dtype":"str","values":["a","a"]}'),
    "forged_several_few": ("multilabel-logistic", "classes", '{"dtype":"str","values":["a"]}'),
    "forged_several_rows": ("multilabel-knn", "targets", np.full((36, 2), 7, np.int32)),
    "forged_several_shape": ("multilabel-knn", "targets", np.zeros((36, 3), np.int32)),
    "forged_number_swap": ("knn-regression", "head", "mlp-regression"),
    "forged_number_targets": ("knn-regression", "targets", np.zeros((36, 2))),
    "forged_number_layer": ("mlp-regression", "weight_1", np.zeros((2, 3))),
    "forged_neighbours": ("knn", "fitted", '{"k":1000000000}'),
    "forged_no_neighbours": ("knn", "params", '{"k":0,"temperature":0.07}'),
    "forged_temperature": ("knn", "params", '{"k":3,"temperature":1e-300}'),
    "forged_labels_beyond": ("knn", "labels", np.full(36, 3, np.int32)),
    "forged_labels_negative": ("knn", "labels", np.full(36, -1, np.int32)),
    "forged_labels_few": ("knn", "labels", np.zeros(35, np.int32)),
    "forged_labels_real": ("knn", "labels", np.zeros(36, np.float32)),
    "forged_rows_of_integers": ("knn", "features", np.zeros((36, 4), np.int32)),
    "forged_rows_flat": ("knn", "features", np.zeros(144, np.float16)),
    "forged_half_coefficients": ("ridge", "coef", np.zeros((3, 4), np.float16)),
    "forged_alpha": ("ridge", "params", '{"alpha":-1,"class_weight":null}'),
    "forged_metric": ("centroid", "params", '{"metric":"os.system","shrinkage":0.5}'),
    "forged_shrinkage": ("centroid", "params", '{"metric":"mahalanobis","shrinkage":0}'),
    "forged_centroids": ("centroid", "centroids", np.zeros((2, 4), np.float32)),
    "forged_directions": ("centroid", "directions", np.zeros((3, 5), np.float32)),
    "forged_sharpness": ("centroid", "fitted", '{"temperature":0,"covariance_type":"full"}'),
    "forged_kept": ("selected", "kept", np.array([0, 4], np.int32)),
    "forged_kept_twice": ("selected", "kept", np.array([1, 1], np.int32)),
    "forged_kept_negative": ("selected", "kept", np.array([-1, 1], np.int32)),
    "forged_kept_real": ("selected", "kept", np.zeros(2, np.float32)),
    "forged_kept_flat": ("selected", "kept", np.zeros((1, 2), np.int32)),
    "forged_selected_swap": ("selected", "head", "logistic"),
    "forged_query": ("attentive", "query", np.zeros((2, 3))),
    "forged_attention_weight": ("attentive", "weight", np.zeros((3, 5))),
    "forged_attention_scale": ("attentive", "scale", np.zeros(2)),
    "forged_attention_swap": ("attentive", "head", "mlp"),
    "forged_covariance": ("centroid", "fitted", '{"temperature":1,"covariance_type":["full"]}'),
}


def opened(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Arrays and strings of a head file, less those that are made anew for each file."""
    from precompute.heads.persistence import encoding

    with path.open("rb") as file:
        arrays, strings = encoding.decode(file, path.stat().st_size)
    return arrays, {key: value for key, value in strings.items() if key not in ("format", "version", "digest")}


def hostile_heads(folder: Path, target: Path) -> None:
    import joblib

    from precompute.heads import load_head, save_head
    from precompute.heads.persistence import encoding

    folder.mkdir()
    made = {path.stem: path for path in make_heads(folder)}
    good = made["logistic"]
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
    arrays, strings = opened(good)
    for name, changes in {
        "forged_kind": {"head": "os.system"},
        "forged_params": {"params": '{"__class__":"os.system"}'},
        "forged_deep": {"metadata": '{"a":' * 100_000},
        "forged_nan": {"metadata": '{"a":NaN}'},
        "forged_classes": {"classes": '{"dtype":"object","values":[[],{}]}'},
    }.items():
        (folder / f"{name}.safetensors").write_bytes(encoding.encode(arrays, {**strings, **changes}))
    for name, (kind, place, forged) in FORGED.items():
        arrays, strings = opened(made[kind])
        (strings if isinstance(forged, str) else arrays)[place] = forged
        (folder / f"{name}.safetensors").write_bytes(encoding.encode(arrays, strings))
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
    one: dict[str, Any] = {"name": "a", "shape": [2], "positions": [], "prefix": 0, "scale": 1.0}
    impossible: dict[str, Any] = {
        "layers_none": [],
        "layers_words": "all",
        "layers_width": [one, {**one, "name": "b", "shape": [3]}],
        "layers_twice": [one, one],
        "layers_huge": [one, {**one, "name": "b", "shape": [10**30], "positions": [0]}],
        "layers_axis": [one, {**one, "name": "b", "positions": [7]}],
        "layers_prefix": [one, {**one, "name": "b", "shape": [3, 2], "positions": [0], "prefix": 3}],
        "layers_scale": [one, {**one, "name": "b", "scale": 0}],
        "layers_key": [one, {**one, "name": "b", "__class__": "os.system"}],
    }
    for name, layers in impossible.items():
        of_several = {"layers": layers, "spec": SPEC, "weights_source": {"kind": "embedded"}}
        save_head(folder / f"{name}.safetensors", saved.head, metadata=of_several)
    (folder / "folder.safetensors").mkdir()
    os.mkfifo(folder / "fifo.safetensors")
    (folder / "zero.safetensors").symlink_to("/dev/zero")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
