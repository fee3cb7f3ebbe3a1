"""A head file and its backbone as one module: a decoded picture in, probabilities or a number out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from precompute.backbones.load import Backbone
from precompute.cache import INT8, as_read
from precompute.cache.columns import channel_axis
from precompute.errors import HeadError
from precompute.extraction.rebuild import EXTERNAL
from precompute.finetuning.opening import HeadFile
from precompute.graphs.heads import AtTemperature, head_module
from precompute.graphs.resize import ResizeAndCrop
from precompute.heads import SavedHead
from precompute.inputs.images.preprocess import ImagePreprocess
from precompute.inputs.images.transform import NVJPEG
from precompute.system.samples import modality_of_spec, words_of_spec
from precompute.training.layers import LayerInput, joined
from precompute.training.scoring import answer
from precompute.training.targets import CLASSES, LABELS, NUMBER

IMAGE, PILLOW = "image", "pillow"
"""The inputs of a graph."""
OUTPUTS = {CLASSES: "probabilities", LABELS: "probabilities", NUMBER: "number"}
PIXELS = "pixels"
"""The input of a graph without resize: what a network is given."""


class ReadBack(nn.Module):
    """The activation (1, *shape) of a layer as a feature file gives it back, float32. axes: names of its axes."""

    def __init__(self, storage: str, axes: Sequence[str]) -> None:
        super().__init__()
        self.channel = channel_axis(axes) if storage == INT8 else None
        self.rounds = storage == "float16" or (storage == INT8 and self.channel is None)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = features.to(torch.float32)
        if self.rounds:
            return features.to(torch.float16).to(torch.float32)
        if self.channel is None:
            return features
        positions = [axis for axis in range(1, features.ndim) if axis != features.ndim + self.channel]
        low = features.amin(dim=positions, keepdim=True)
        step = (features.amax(dim=positions, keepdim=True) - low) / 255
        step = torch.where(step < float(np.finfo(np.float32).tiny), torch.zeros_like(step), step)
        codes = torch.round((features - low) / torch.where(step > 0, step, torch.ones_like(step)))
        return torch.clamp(codes, 0, 255) * step + low


class SideBySide(nn.Module):
    """Features (1, d) of the activations of several layers, see `LayerInput`."""

    def __init__(self, inputs: Sequence[LayerInput]) -> None:
        super().__init__()
        self.inputs = tuple(inputs)

    def forward(self, *stored: torch.Tensor) -> torch.Tensor:
        found = []
        for one, activation in zip(self.inputs, stored, strict=True):
            values = activation.reshape(1, *one.shape)
            if one.positions:
                axes = [axis + 1 for axis in one.positions]
                values = values.narrow(axes[0], one.prefix, values.shape[axes[0]] - one.prefix).mean(dim=axes)
            found.append(values.reshape(1, one.width) * one.scale)
        return torch.cat(found, dim=1)


class Core(nn.Module):
    """The network behind resize and crop: (1, crop, crop, 3) uint8 -> the output of the head."""

    def __init__(self, model: Backbone, file: HeadFile, saved: SavedHead, storage: str) -> None:
        super().__init__()
        self.body = model.body()
        place = {tap.layer: number for number, tap in enumerate(model.taps)}
        self.places = [place[layer] for layer in file.layers]
        self.stored = nn.ModuleList(ReadBack(storage, model.taps[at].axes) for at in self.places)
        self.join = SideBySide(file.inputs) if file.inputs else None
        self.head = head_module(saved.head, file.path)
        temperature = file.metadata.get("temperature")
        self.temperature = nn.Identity() if temperature is None else AtTemperature(temperature)
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        taps = self.body(pixels)
        features = [stored(taps[at]) for stored, at in zip(self.stored, self.places, strict=True)]
        x = features[0].reshape(1, -1) if self.join is None else self.join(*features)
        found: torch.Tensor = self.temperature(self.head(x)).to(torch.float32)
        return found


class WholeGraph(nn.Module):
    """(H, W, 3) uint8 and `pillow` (1,) bool -> probabilities (K,) of classes or (L,) of labels, or a number (1,)."""

    def __init__(self, resize: ResizeAndCrop, core: nn.Module) -> None:
        super().__init__()
        self.resize, self.core = resize, core

    def forward(self, image: torch.Tensor, pillow: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.core(self.resize(image, pillow))[0]
        return found


@dataclass(frozen=True)
class Network:
    """What a graph is made of, and what it must equal: `expected`.

    storage: how the features were stored that the head was trained on.
    """

    file: HeadFile
    saved: SavedHead
    model: Backbone
    storage: str
    core: Core

    @property
    def task(self) -> str:
        return self.file.task

    @property
    def preprocess(self) -> ImagePreprocess:
        return cast(ImagePreprocess, self.model.preprocess)

    @property
    def names(self) -> list[str]:
        """Of classes or labels; none of a number."""
        attribute = {CLASSES: "classes_", LABELS: "labels_"}.get(self.task)
        return [str(name) for name in getattr(self.saved.head, attribute)] if attribute else []

    @property
    def thresholds(self) -> list[float] | None:
        return [float(one) for one in self.saved.head.thresholds_] if self.task == LABELS else None

    def whole(self) -> WholeGraph:
        """With resize and crop in front."""
        return WholeGraph(ResizeAndCrop(self.preprocess.transform), self.core).eval()

    @torch.inference_mode()
    def expected(self, pixels: torch.Tensor) -> NDArray[np.float64]:
        """What `predict` says, at fp32 with torch: (K,), (L,) or (1,), of (crop, crop, 3) uint8."""
        taps = self.core.body(pixels[None])
        read = [as_read(tap.numpy(), self.storage, self.model.taps[at].axes) for at, tap in enumerate(taps)]
        chosen = [read[at].reshape(1, -1) for at in self.core.places]
        features = joined(self.file.inputs, chosen) if self.file.inputs else chosen[0]
        said = answer(self.saved.head, features, self.task)
        found: NDArray[Any] = said if self.task == NUMBER else self.saved.scaled(said)[0]
        return found.astype(np.float64)

    def metadata(self) -> dict[str, str]:
        """What a graph's file says of it: texts, those that end in _json JSON."""
        known = self.file.metadata
        named = {"classes_json": json.dumps(self.names)} if self.task == CLASSES else {}
        if self.task == LABELS:
            named = {"labels_json": json.dumps(self.names), "thresholds_json": json.dumps(self.thresholds)}
        if "temperature" in known:
            named["temperature"] = repr(known["temperature"])
        return {
            "made_by": f"precompute {version('precompute')}",
            "task": self.task,
            **named,
            "backbone": self.model.name,
            "weights": self.model.weights,
            "weights_source_json": json.dumps(portable_source(self.model.source)),
            "layers_json": json.dumps(list(self.file.layers)),
            "head": head_kind(self.saved.head),
            "transform_json": json.dumps(self.model.preprocess.spec()),
            "precision": "fp32",
            "input": "image: one picture, upright, RGB, (height, width, 3) uint8; pillow: whether it was no plain JPEG",
        }


def portable_source(source: Any) -> dict[str, Any]:
    """Where weights came from, without folders of this machine."""
    source = source if isinstance(source, dict) else {}
    return {name: str(value).rsplit("/", 1)[-1] if name == "path" else value for name, value in source.items()}


def head_kind(head: Any) -> str:
    """The word for a head, a tail included."""
    from precompute.heads.persistence.kinds import kind_of

    try:
        return kind_of(head)
    except ValueError:
        return "tail"


def check_graph(file: HeadFile) -> None:
    """Raise HeadError for a head that no graph can be made of, before its backbone is loaded."""
    spec = file.metadata.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    if spec.get("backbone") == EXTERNAL:
        raise HeadError(
            f"{file.origin.file} was trained on imported features, so there is no network to export with it.",
            hint="Export the head alone: precompute export HEAD -o head.joblib",
        )
    if (modality := modality_of_spec(spec)) != "image":
        raise HeadError(
            f"{file.origin.file} predicts from {words_of_spec(spec).plural}. A graph holds everything behind the "
            f"decoder of pictures; tokens of text and windows of sound are not part of one ({modality}).",
            hint="Use `precompute predict`, or export the head alone, which takes features: -o head.joblib",
        )
    if file.averages:
        raise HeadError(
            f"{file.origin.file} averages over {file.averages} views, which are drawn from the bytes of a picture's "
            "file. A graph sees pixels alone.",
            hint="Train a head without --average-views.",
        )
    transform = spec.get("transform")
    if isinstance(transform, dict) and NVJPEG in str(transform.get("decoder")):
        raise HeadError(
            f"{file.origin.file} was trained on pictures that nvJPEG decoded and resized, which a graph cannot do.",
            hint="Extract with --decoder cpu, train again, and export that head.",
        )
    if isinstance(transform, dict) and transform.get("fast_decode"):
        raise HeadError(
            f"{file.origin.file} was trained with --fast-decode, by which the size of a JPEG decides at which size it "
            "is decoded. A graph begins behind the decoder and sees that size alone.",
            hint="Extract without --fast-decode, train again, and export that head.",
        )


def network_of(
    file: HeadFile, *, backbone: str | None = None, weights: str | None = None, tail: str | None = None
) -> Network:
    """The backbone of `file` and the head behind it, on the CPU in fp32. Options as those of `predict`.

    Raises HeadError for what cannot be a graph; as `HeadFile.backbone` and `HeadFile.attach` do.
    """
    check_graph(file)
    model = file.backbone(backbone=backbone, weights=weights)
    if not isinstance(model.preprocess, ImagePreprocess):
        raise HeadError(
            f"{model.name} has its own preprocessing, which is code and no part of a graph.",
            hint="Use `precompute predict`.",
        )
    saved = file.attach(model, tail=tail)
    storage = str(file.metadata["spec"]["storage"])
    return Network(file, saved, model, storage, Core(model, file, saved, storage))
