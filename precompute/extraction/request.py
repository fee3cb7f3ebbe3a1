"""A finished file that the same command made from the same files is known again without loading the network.

Loading torch and a backbone, and hashing its weights, takes seconds; finding out that nothing has changed should not.
So each run writes down the requested settings, and which weights file it read, the way it does for images: by path,
size and modification time. Where anything differs, or with `rehash`, the weights are loaded and named by their bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from glob import glob
from typing import Any

from precompute.backbones.families import is_factory, packages_of
from precompute.cache import Cache, canonical_json
from precompute.errors import CacheFormatError
from precompute.extraction.matching import make_plan, up_to_date
from precompute.extraction.output import CacheOutput
from precompute.inputs.audio.decode import decoder
from precompute.inputs.images.augmentation import DRAWS, augment_names, check_views
from precompute.inputs.images.transform import DECODER
from precompute.inputs.kinds import AUDIO, modality_of_name
from precompute.sources.base import Reading, Source
from precompute.sources.remote.address import absolute
from precompute.system import version_of
from precompute.system.code import is_code

DECIDING = ("precompute", "torch", "torchvision", "openvino")
"""Packages whose release decides what DEFAULT, `auto`, a layer's name or a random seed stand for."""

ENVIRONMENT = (
    *("HOME", "TORCH_HOME", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES"),
    *("PRECOMPUTE_ENGINE", "PRECOMPUTE_PRECISION"),
)
"""Variables that decide where weights are looked for, and what `auto` is."""


@dataclass(frozen=True)
class Request:
    """The user's request, `auto` and defaults unresolved; see `extract` for the meaning."""

    backbone: str
    weights: str
    layer: str | Sequence[str] | None
    pooling: str
    transform: dict[str, Any]
    engine: str
    precision: str
    compile: str
    dtype: str
    device: str
    batch_size: int | None
    views: int = 1
    augment: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", augment_names(self.augment))
        check_views(self.views, self.augment)
        if self.layer is not None and not isinstance(self.layer, str):
            object.__setattr__(self, "layer", list(self.layer))

    def options(self) -> dict[str, Any]:
        """The same as JSON, for the record: what was asked of precompute, and nothing else of the program around it."""
        options: dict[str, Any] = json.loads(json.dumps(self._asked(), default=_plain))
        return options

    def _asked(self) -> dict[str, Any]:
        """Every field; without those of views where there is one, as in records from before there were several."""
        asked = asdict(self)
        return asked if self.views > 1 else {name: asked[name] for name in asked if name not in ("views", "augment")}

    def record(
        self,
        weights_file: dict[str, Any] | None,
        reading: Reading,
        *,
        part: str | None = None,
        limit: int | None = None,
        reuse: Sequence[str] = (),
    ) -> dict[str, Any]:
        """What a run's record says for later ones. `weights_file` is that of `Backbone`, `reading` of the source."""
        root = {} if reading.root is None else {"root": absolute(reading.root)}
        columns = {"columns": dict(reading.columns)} if reading.columns else {}
        keep = {"keep": list(reading.keep)} if reading.keep else {}
        return {
            "request": self.name(),
            "options": {**self.options(), **root, **columns, **keep, **({"part": part} if part else {})}
            | ({"limit": limit} if limit is not None else {})
            | ({"reuse": list(reuse)} if reuse else {}),
            "weights_file": weights_file,
        }

    def name(self) -> str | None:
        """SHA-256 over this and all else that decides the settings; None if it may differ next time.

        That is code of the user's, which may change, and values that are no JSON, such as arrays.
        """
        if is_factory(self.backbone) or any(map(is_code, self.augment)):
            return None
        around = {
            "decoder": DECODER,
            "folder": os.getcwd(),  # what a relative path of weights starts from
            "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
            "accelerators": sorted(glob("/dev/nvidia[0-9]*")),
            "versions": {name: version_of(name) for name in (*DECIDING, *packages_of(self.backbone))},
            **({"draws": DRAWS} if self.views > 1 else {}),
            **({"sound": decoder()} if modality_of_name(self.backbone) == AUDIO else {}),
        }
        try:
            asked = canonical_json({**self._asked(), **around})
        except (TypeError, ValueError):
            return None
        return hashlib.sha256(asked.encode("ascii")).hexdigest()


def unchanged(output: CacheOutput, source: Source, request: Request) -> tuple[Cache, dict[str, Any]] | None:
    """The finished file and the record of the run that `request` repeats, if nothing is to be done."""
    name = request.name()
    if name is None or any(map(os.path.lexists, (output.partial, output.kept))):
        return None
    try:
        cache = output.open(output.path)
    except CacheFormatError:
        return None  # the longer way tells what is wrong
    if cache is None:
        return None
    records = [record for record in cache.provenance if record.get("request") == name]
    if not records or not _same_file(records[-1].get("weights_file")):
        return None
    plan = make_plan(source, output, (cache,), refuse=False)
    return (cache, records[-1]) if up_to_date(plan, source.table, output) else None


def _plain(value: Any) -> Any:
    """Of a value that is not JSON, such as an array, one that is."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _same_file(then: Any) -> bool:
    if then is None:
        return True  # weights that are no file: embedded, or from a seed
    try:
        status = os.stat(then["path"])
        same = bool((status.st_size, status.st_mtime_ns) == (then["size"], then["mtime_ns"]))
        return same and all(map(_same_file, then.get("also", ())))  # such as a folder's config.json
    except (OSError, TypeError, KeyError, ValueError, AttributeError):
        return False
