"""A finished file that the same command made from the same files is known again without loading the network.

Loading torch and a backbone, and hashing its weights, takes seconds; finding out that nothing has changed should not.
So each run writes down what it was asked for, and which weights file it read, the way it does for images: by path,
size and modification time. Where anything differs, or with `rehash`, the weights are loaded and named by their bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from glob import glob
from typing import Any

from precompute.cache import Cache, canonical_json, open_cache
from precompute.errors import CacheFormatError
from precompute.extraction.matching import kept_path, make_plan, partial_path, up_to_date
from precompute.inputs.images.transform import DECODER
from precompute.sources.base import Source
from precompute.system import version_of

DECIDING = ("precompute", "torch", "torchvision", "openvino")
"""Packages whose release decides what DEFAULT, `auto`, a layer's name or a random seed stand for."""

ENVIRONMENT = (
    *("HOME", "TORCH_HOME", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES"),
    *("PRECOMPUTE_ENGINE", "PRECOMPUTE_PRECISION"),
)
"""Variables that decide where weights are looked for, and what `auto` is."""


@dataclass(frozen=True)
class Request:
    """What a user asked for, `auto` and defaults unresolved; see `extract` for the meaning."""

    backbone: str
    weights: str
    layer: str | list[str] | None
    pooling: str
    transform: dict[str, Any]
    engine: str
    precision: str
    compile: str
    dtype: str
    device: str
    batch_size: int | None

    def options(self) -> dict[str, Any]:
        """The same as JSON, for the record: what was asked of precompute, and nothing else of the program around it."""
        options: dict[str, Any] = json.loads(json.dumps(asdict(self), default=_plain))
        return options

    def name(self) -> str | None:
        """SHA-256 over this and all else that decides the settings; None for what cannot be told to be the same again.

        That is code of the user's, which may change, and values that are no JSON, such as arrays.
        """
        if ":" in self.backbone:
            return None
        around = {
            "decoder": DECODER,
            "folder": os.getcwd(),  # what a relative path of weights starts from
            "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
            "accelerators": sorted(glob("/dev/nvidia[0-9]*")),
            "versions": {name: version_of(name) for name in DECIDING},
        }
        try:
            asked = canonical_json({**asdict(self), **around})
        except (TypeError, ValueError):
            return None
        return hashlib.sha256(asked.encode("ascii")).hexdigest()


def remember(request: Request, weights_file: dict[str, Any] | None) -> dict[str, Any]:
    """What a run's record says for later ones. `weights_file` is that of `Backbone`."""
    return {"request": request.name(), "options": request.options(), "weights_file": weights_file}


def unchanged(path: str, source: Source, request: Request) -> tuple[Cache, dict[str, Any]] | None:
    """The finished file at `path` and the record of the run that `request` repeats, if nothing is to be done."""
    name = request.name()
    if name is None or not os.path.exists(path) or any(map(os.path.lexists, (partial_path(path), kept_path(path)))):
        return None
    try:
        cache = open_cache(path)
    except CacheFormatError:
        return None  # the longer way tells what is wrong
    records = [record for record in cache.provenance if record.get("request") == name]
    if not records or not _same_file(records[-1].get("weights_file")):
        return None
    plan = make_plan(source, path, (cache,), limit=None, overwrite=True, rehash=False)
    return (cache, records[-1]) if up_to_date(plan, source.table, path) else None


def _plain(value: Any) -> Any:
    """Of a value that is no JSON, such as an array, one that is."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _same_file(then: Any) -> bool:
    if then is None:
        return True  # weights that are no file: embedded, or from a seed
    try:
        status = os.stat(then["path"])
        return bool((status.st_size, status.st_mtime_ns) == (then["size"], then["mtime_ns"]))
    except (OSError, TypeError, KeyError, ValueError):
        return False
