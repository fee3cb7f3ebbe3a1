"""Name or factory -> frozen Backbone: the cut module, its transform, its weights and what to call them in the key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from precompute.backbones import checkpoints, families, layers, weights
from precompute.backbones.families import TINY
from precompute.errors import BackboneError, UsageError, WeightsError
from precompute.inputs.images.transform import Transform

POOLINGS = ("auto", *layers.POOLINGS)
MAX_SEED = 2**63 - 1  # of torch.manual_seed


@dataclass(frozen=True)
class Backbone:
    """A frozen network cut at one layer, ready to run.

    module: (B, 3, crop, crop) normalised float images -> (B, *shape) features · axes: what each axis of `shape` is (see
    cache/FORMAT.md) · weights: SHA-256 of the state dict ·
    source: where the weights came from, as JSON, enough to load them again · notes: choices worth telling ·
    file: path, size and mtime_ns of the weights' file as it was before it was read, None where they are no file.
    """

    name: str
    module: nn.Module
    layer: str
    pooling: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    transform: Transform
    weights: str
    source: dict[str, Any]
    notes: tuple[str, ...] = ()
    file: dict[str, Any] | None = None

    @property
    def identity(self) -> str | None:
        """Names code and weights of `module`, to keep what is compiled; None for code that may change."""
        if families.is_factory(self.name):
            return None
        return f"{self.name} {self.weights} {self.layer} {self.pooling}"

    def spec(self, *, decoder: str, precision: str, storage: str) -> dict[str, Any]:
        """Everything that changes a feature's value, for the cache's key."""
        return {
            "backbone": self.name,
            "weights": self.weights,
            "layers": [{"name": self.layer, "pooling": self.pooling, "axes": list(self.axes)}],
            "transform": {**self.transform.spec(), "decoder": decoder},
            "precision": precision,
            "storage": storage,
            "views": 1,
        }


def load_backbone(
    name: str,
    *,
    weights: str = "DEFAULT",
    layer: str | None = None,
    pooling: str = "auto",
    transform: Mapping[str, Any] | None = None,
) -> Backbone:
    """The backbone `name`, with weights, cut at `layer`.

    name: `tiny`, a torchvision classification model, or `package.module:factory`.
    weights: an entry such as DEFAULT or IMAGENET1K_V1, `random` or `random:SEED`, or the path of a state dict. For a
    factory DEFAULT means the weights it returns.
    layer: any node of torchvision's get_graph_node_names, or `output`; by default what enters the final classifier.
    pooling: "none", "mean" (over positions: of a map, or tokens without a class token) or "auto" (mean only in front of
    a convolutional classifier).
    transform: values of Transform that replace those of the weights entry.
    Raises BackboneError and WeightsError; see their messages for the ways out.
    """
    families.check_name(name)
    if pooling not in POOLINGS:
        options = ", ".join(POOLINGS)
        raise UsageError(f"pooling must be one of {options}. Got {pooling!r} instead.", hint="See --pooling.")
    model, source, base, notes, file = _with_weights(name, weights)
    model.requires_grad_(False)
    chosen = replace(base, **transform) if transform else base
    if layer is None:
        layer, found_pooling, more = _choose_layer(name, model)
        notes += more
    else:
        found_pooling = "none"
    pooling = found_pooling if pooling == "auto" else pooling
    digest = weights_digest(model)
    module = layers.cut(model, layer, pooling, chosen.crop)
    shape = _feature_shape(module, chosen, name)
    return Backbone(
        name=name,
        module=module,
        layer=layer,
        pooling=pooling,
        shape=shape,
        axes=layers.axes_of(module, shape, chosen.crop),
        transform=chosen,
        weights=digest,
        source=source,
        notes=notes,
        file=file,
    )


def weights_digest(model: nn.Module) -> str:
    """The name of a model's weights: SHA-256 of its state dict."""
    return weights.digest_of(model.state_dict())


def _with_weights(
    name: str, choice: str
) -> tuple[nn.Module, dict[str, Any], Transform, tuple[str, ...], dict[str, Any] | None]:
    """(model, where its weights came from, its own transform, notes, the file as it was before it was read)."""
    base, origin = _own_transform(name)
    word, _, seed = choice.partition(":")
    if word == "random":
        return (*_random(name, seed), base, (f"weights are random; the transform is {origin}",), None)
    if choice == "DEFAULT" and families.is_factory(name):
        return families.run_factory(name), {"kind": "factory"}, base, (f"the transform is {origin}",), None
    if choice == "DEFAULT" and name == TINY:
        from precompute.backbones.tiny import tiny

        return tiny(), {"kind": "embedded"}, base, (), None
    known = families.entries(name)
    find = layers.final_classifier
    if choice == "DEFAULT" or choice in known:
        entry = families.default_entry(name) if choice == "DEFAULT" else known[choice]
        state, file = weights.download(entry)
        model = families.build(name, seed=None)
        notes = weights.fit_into(model, state, source=str(entry), model_name=name, find_classifier=find)
        source = {"kind": "entry", "entry": entry.name, "file": Path(file["path"]).name}
        return model, source, Transform.from_preset(entry.transforms()), notes, file
    if not _looks_like_path(choice):
        options = ", ".join(["DEFAULT", *known, "random"])
        raise WeightsError(f"{name} has no weights {choice!r}.", hint=f"Take one of {options}, or the path of a file.")
    model = families.run_factory(name) if families.is_factory(name) else families.build(name, seed=None)
    file = checkpoints.identity_of(choice)
    notes = weights.fit_into(model, checkpoints.load_file(choice), source=choice, model_name=name, find_classifier=find)
    source = {"kind": "file", "path": str(Path(choice).absolute())}
    return model, source, base, (f"the transform is {origin}", *notes), file


def _random(name: str, seed: str) -> tuple[nn.Module, dict[str, Any]]:
    if families.is_factory(name):
        raise WeightsError(f"{name} decides about its own weights.", hint="Let the factory return random weights.")
    if seed and not (seed.isdecimal() and len(seed) <= len(str(MAX_SEED)) and int(seed) <= MAX_SEED):
        raise WeightsError(
            f"The seed in random:{seed:.40} is not a whole number from 0 to {MAX_SEED}.",
            hint="Such as --weights random:1.",
        )
    number = int(seed or 0)
    return families.build(name, seed=number), {"kind": "random", "seed": number}


def _own_transform(name: str) -> tuple[Transform, str]:
    """The transform where no weights entry decides it, and in words where it comes from."""
    if name == TINY:
        from precompute.backbones import tiny

        return Transform(tiny.SIZE, tiny.SIZE, tiny.INTERPOLATION, tiny.MEAN, tiny.STD), "the embedded backbone's"
    for entry in families.entries(name).values():
        return Transform.from_preset(entry.transforms()), f"that of {entry}"
    return Transform(), "ImageNet's usual one"


def _looks_like_path(choice: str) -> bool:
    return os.sep in choice or Path(choice).suffix != "" or Path(choice).exists()


def _choose_layer(name: str, model: nn.Module) -> tuple[str, str, tuple[str, ...]]:
    try:
        layer, pooling, _ = layers.default_layer(model)
    except BackboneError as error:
        if not families.is_factory(name):
            raise
        return layers.OUTPUT, "none", (f"the output of {name} is the feature: {error.message}",)
    return layer, pooling, ()


def _feature_shape(module: nn.Module, transform: Transform, name: str) -> tuple[int, ...]:
    """Shape of one image's features, by running one grey image."""
    first = next(module.parameters(), None)
    images = torch.zeros(1, 3, transform.crop, transform.crop, dtype=None if first is None else first.dtype)
    try:
        with torch.inference_mode():
            features: torch.Tensor = module(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise BackboneError(
            f"{name} does not take images of {transform.crop} x {transform.crop}: {error}",
            hint="Give the size it was built for: --crop PIXELS (and --resize PIXELS).",
        ) from error
    if features.ndim < 2 or features.shape[0] != 1:
        raise BackboneError(
            f"The layer gives shape {tuple(features.shape)} for one image, which does not begin with the batch.",
            hint="Name a layer whose output is (batch, features...) with --layer.",
        )
    return tuple(features.shape[1:])
