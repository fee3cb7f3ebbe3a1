"""Backbones to choose from: how they are named, and features of some images by each, with what they cost."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from precompute.backbones.load import load_backbone
from precompute.cache import Cache, Layer, bytes_needed, open_cache
from precompute.cache.key import spec_layers
from precompute.errors import UsageError
from precompute.evaluation.records import Records
from precompute.extraction.conduct import Progress
from precompute.extraction.executors.base import Executor
from precompute.extraction.extract import extract
from precompute.extraction.matching import samples_of
from precompute.inputs.kinds import check_images
from precompute.sources.base import Source

RANKING = "rank compares backbones on"
MOST_NAME = 80  # characters of a backbone's name in that of its file


@dataclass(frozen=True)
class Candidate:
    """A backbone and its weights, as `load_backbone` takes them."""

    backbone: str
    weights: str = "DEFAULT"

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """NAME or NAME=WEIGHTS, such as resnet18, mobilenet_v2=weights.pth or resnet50=random:1."""
        name, sign, weights = text.partition("=")
        if not name or (sign and not weights):
            raise UsageError(f"{text!r} names no backbone.", hint="For example resnet18, or mobilenet_v2=weights.pth.")
        return cls(name, weights or "DEFAULT")

    @property
    def name(self) -> str:
        """For tables and messages: weights are named where they are not the default, files without their folder."""
        return self.backbone if self.weights == "DEFAULT" else f"{self.backbone}={os.path.basename(self.weights)}"


@dataclass(frozen=True)
class Computation:
    """How features are computed, as `extract` takes it; the same for every candidate.

    layer, pooling: without a layer the input of the classifier; for layers that are named the mean over positions,
    unless they name another pooling.
    """

    layer: tuple[str, ...] = ()
    pooling: str = "auto"
    transform: Mapping[str, Any] = field(default_factory=dict)
    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None

    def cut(self) -> dict[str, Any]:
        """Arguments of `load_backbone` and of `extract`."""
        pooling = "mean" if self.layer and self.pooling == "auto" else self.pooling
        return {"layer": list(self.layer) or None, "pooling": pooling, "transform": dict(self.transform)}

    def run(self) -> dict[str, Any]:
        """Further arguments of `extract`."""
        names = ("engine", "precision", "device", "batch_size", "workers")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Cost:
    """What a full extraction takes, by what the sample took.

    images: of the whole source · rate: images a second, None where no image was computed and none had been · seconds:
    of the whole extraction, None without a rate · start_seconds: of them, until the first image · bytes: of its file
    with this layer alone.
    """

    images: int
    rate: float | None
    seconds: float | None
    start_seconds: float
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Featured:
    """A candidate's features of the sample. parameters: see `check_candidates` · costs: by layer."""

    candidate: Candidate
    cache: Cache
    parameters: int
    costs: dict[str, Cost]
    notes: tuple[str, ...]


def check_candidates(candidates: Sequence[Candidate], computation: Computation) -> list[int]:
    """How many parameters each network has up to the last layer that is taken. Every one is loaded: a name, weights or
    a layer that is not there, or that does not fit, ends the command before anything is computed.

    Raises BackboneError, WeightsError and UsageError.
    """
    if not candidates:
        raise UsageError("There is no backbone to choose from.", hint="Name two or more: -b resnet18 -b resnet50")
    names = [candidate.name for candidate in candidates]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"The backbone {twice[0]} is named twice.", hint="Name each once, or other weights of it.")
    sizes = []
    for one in candidates:
        check_images(one.backbone, RANKING)
        loaded = load_backbone(one.backbone, weights=one.weights, **computation.cut())
        check_images(one.backbone, RANKING, loaded.preprocess.modality)
        sizes.append(sum(parameter.numel() for parameter in loaded.module.parameters()))
    return sizes


def features_of(
    candidate: Candidate,
    source: Source,
    whole: Source,
    folder: str,
    computation: Computation,
    *,
    parameters: int,
    executor: Executor | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], int] | None = None,
) -> Featured:
    """Extract `source`, some images of `whole`, to a file in `folder`, or take what is there already.

    executor: see `extract`.

    Raises what `extract` raises.
    """
    records = Records(os.path.join(folder, "rates.jsonl"))
    path = os.path.join(folder, file_name(candidate, computation))
    done = extract(
        source,
        path,
        backbone=candidate.backbone,
        weights=candidate.weights,
        executor=executor,
        progress=progress,
        stop=stop,
        **computation.cut(),
        **computation.run(),
    )
    cache = open_cache(done.path)
    key = {"rate": cache.key}
    if done.computed and done.forward_seconds:
        records.add(key, {"images": done.computed / done.forward_seconds, "start_seconds": done.start_seconds})
    measured = records.get(key) or {}
    rate, start = measured.get("images"), measured.get("start_seconds", 0.0)
    seconds = None if rate is None else start + len(whole) / rate
    costs = {name: Cost(len(whole), rate, seconds, start, _bytes(cache, name, whole)) for name in cache.layers}
    return Featured(candidate, cache, parameters, costs, done.warnings)


def file_name(candidate: Candidate, computation: Computation) -> str:
    """One for each backbone, weights and cut, so that files of several runs stand next to each other."""
    settings = [asdict(candidate), computation.cut()]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', candidate.backbone)[:MOST_NAME]}-{digest}.h5"


def _bytes(cache: Cache, name: str, whole: Source) -> int:
    axes, pooling = spec_layers(cache.spec)[name]
    features = cache.features(name)
    layer = Layer(features.shape[1:], features.dtype, axes, pooling)
    return bytes_needed(samples_of(whole.table), {name: layer}, whole.table.columns)


def width_of(cache: Cache, layer: str) -> int:
    """How many features of one sample `layer` holds."""
    return math.prod(cache.plain_features(layer).shape[1:])
