"""Name or factory -> frozen Backbone: the cut module, its transform, its weights and what to call them in the key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from precompute.backbones import layers, weights
from precompute.backbones.families import family_of, is_factory
from precompute.backbones.families.base import Family, Loaded
from precompute.backbones.layers import Tap
from precompute.backbones.layout import BATCH
from precompute.backbones.whole import WholeNetwork, network_input
from precompute.errors import BackboneError, UsageError
from precompute.inputs.base import MOST_SHAPES, Preprocess, shape_of
from precompute.inputs.images.augmentation import Augmentation, augment_names, check_views
from precompute.inputs.images.preprocess import ImagePreprocess
from precompute.inputs.images.transform import Transform
from precompute.inputs.kinds import files_of, transform_spec
from precompute.system.steps import step

AUTO = "auto"
MAX_LAYERS = 64  # of one file
VIEW = "view"
"""The word for the axis of views, see cache/FORMAT.md."""


@dataclass(frozen=True)
class Backbone:
    """A frozen network cut at some layers, ready to run.

    module: the network's input -> for each tap (B, *shape) · network: the whole network, which shares its parameters
    with `module` · taps: ascending by layer · weights: SHA-256 of the state
    dict · source: where the weights came from, as JSON, enough to load them again · notes: choices worth telling ·
    file: path, size and mtime_ns of the weights' file as it was before it was read, None where they are no file ·
    settings: what else decides the features, by the names that it bears in the key.
    """

    name: str
    module: nn.Module
    network: nn.Module
    taps: tuple[Tap, ...]
    preprocess: Preprocess
    weights: str
    source: dict[str, Any]
    notes: tuple[str, ...] = ()
    file: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_code(self) -> bool:
        """Whether it is code of the user's own, which may change."""
        return is_factory(self.name)

    @property
    def family(self) -> Family:
        """What its name belongs to, which knows how the network is cut."""
        return family_of(self.name)

    @property
    def exact(self) -> bool:
        """Whether there is nothing to compute that another engine or precision would be faster at."""
        return self.family.exact

    @property
    def unit(self) -> str:
        """What messages call the samples that it takes: images, texts or clips."""
        return files_of(self.preprocess.modality).plural

    @property
    def one(self) -> str:
        """What messages call one of them, such as "image"."""
        return files_of(self.preprocess.modality).single.partition(" ")[2]

    @property
    def stored(self) -> tuple[Tap, ...]:
        """What a file holds of a sample: `taps`, with an axis of views in front where there are several."""
        views = self.preprocess.views
        if views == 1:
            return self.taps
        return tuple(replace(tap, shape=(views, *tap.shape), axes=(VIEW, *tap.axes)) for tap in self.taps)

    @property
    def windows(self) -> int:
        """How many of the views are windows of a clip, behind their mean; 0 where views are made otherwise."""
        return self.preprocess.views - 1 if self.preprocess.merges else 0

    def plain(self) -> Backbone:
        """The same with the plain view alone."""
        return replace(self, preprocess=self.preprocess.plain())

    @property
    def identity(self) -> str | None:
        """Names code and weights of `module`, to keep what is compiled; None for code that may change."""
        if self.is_code:
            return None
        more = [json.dumps(self.settings, sort_keys=True)] if self.settings else []
        return " ".join([self.name, self.weights, *more, *(f"{tap.layer} {tap.pooling}" for tap in self.taps)])

    def body(self) -> nn.Module:
        """The whole network in one pass, in fp32: a batch as `Preprocess.host` gives it -> one tensor for each tap."""
        return WholeNetwork(self.preprocess.device(), self.module, torch.float32).eval()

    def spec(self, *, precision: str, storage: str) -> dict[str, Any]:
        """Everything that changes a feature's value, for the cache's key."""
        return {
            "backbone": self.name,
            "weights": self.weights,
            "layers": [{"name": tap.layer, "pooling": tap.pooling, "axes": list(tap.axes)} for tap in self.stored],
            "transform": transform_spec(self.preprocess.modality, self.preprocess.spec()),
            "precision": precision,
            "storage": storage,
            "views": self.preprocess.views,
            **self.settings,
            **({} if (augment := self.preprocess.augment_spec()) is None else {"augment": augment}),
        }


def load_backbone(
    name: str,
    *,
    weights: str = "DEFAULT",
    layer: str | Sequence[str] | None = None,
    pooling: str = "auto",
    transform: Mapping[str, Any] | None = None,
    views: int = 1,
    augment: str | Sequence[str] | None = None,
) -> Backbone:
    """The backbone `name`, with weights, cut at one layer or several.

    name: `tiny`, a torchvision classification model, or `package.module:factory`; a factory returns a module, or a
    pair of it and its `Preprocess`.
    weights: an entry such as DEFAULT or IMAGENET1K_V1, `random` or `random:SEED`, or the path of a state dict. For a
    factory DEFAULT means the weights it returns.
    layer: any node of torchvision's get_graph_node_names, `output`, or `input` for the input of the network; by default
    the input of the final classifier.
    Several are taken in one pass: a list, each `NAME` or `NAME:POOLING`; `all-blocks` stands for the output of each
    stage or block.
    pooling: "none", "mean" (over positions: of a map, or tokens without a class token) or "auto" (mean only in front of
    a convolutional classifier), for layers that do not name theirs; hf: backbones know further words
    (`precompute.backbones.families.hf_encoder`).
    transform: values of Transform that replace those of the weights entry.
    views, augment: how many inputs are made of one image, and of what, see `precompute.extraction.extract.extract`.
    Raises BackboneError, WeightsError and UsageError; see their messages for the remedies.
    """
    family = family_of(name)
    family.check(name)
    steps = augment_names(augment)
    if views != 1 or steps:
        check_views(views, steps)
    poolings = (AUTO, *family.poolings)
    if pooling not in poolings:
        options = ", ".join(poolings)
        raise UsageError(f"pooling must be one of {options}. Got {pooling!r} instead.", hint="See --pooling.")
    with step(f"loading {name}"):
        loaded = family.load(name, weights)
    loaded.model.requires_grad_(False)
    preprocess, notes = _preprocess(loaded, transform), loaded.notes
    if steps:
        preprocess = _with_views(preprocess, views, steps)
    if layer is None:
        chosen, found_pooling, more = family.default_layer(loaded.name, loaded.model)
        wanted, notes = [(chosen, found_pooling if pooling == AUTO else pooling)], (*notes, *more)
    else:
        wanted = _wanted(family, loaded.model, [layer] if isinstance(layer, str) else layer, pooling)
    digest = weights_digest(loaded.model)
    module, taps = _cut(family, loaded, wanted, preprocess)
    return Backbone(
        loaded.name,
        module,
        loaded.model,
        taps,
        preprocess,
        digest,
        loaded.source,
        notes,
        loaded.file,
        loaded.settings,
    )


def _wanted(family: Family, model: nn.Module, given: Sequence[str], pooling: str) -> list[tuple[str, str]]:
    """Pairs of a layer and its pooling, ascending by layer."""
    found: dict[str, str] = {}
    for text in given:
        name, _, suffix = text.rpartition(":")
        if suffix not in (AUTO, *family.poolings) or not name:
            name, suffix = text, pooling
        for layer in family.blocks(model) if name == layers.ALL_BLOCKS else [name]:
            if layer in found:
                raise UsageError(f"The layer {layer!r} is named twice.", hint="Name each layer once: see --layer.")
            found[layer] = family.own_pooling(model, layer) if suffix == AUTO else suffix
    if not 1 <= len(found) <= MAX_LAYERS:
        raise UsageError(
            f"A file holds between 1 and {MAX_LAYERS} layers. Got {len(found)} instead.", hint="See --layer."
        )
    return sorted(found.items())


def _cut(
    family: Family, loaded: Loaded, wanted: list[tuple[str, str]], preprocess: Preprocess
) -> tuple[nn.Module, tuple[Tap, ...]]:
    """The network cut at its taps, whose shapes are found by running a few empty samples."""
    name, model = loaded.name, loaded.model
    first = next((one for one in model.parameters() if one.is_floating_point()), None)
    dtype = torch.float32 if first is None else first.dtype
    batch = tuple(torch.stack([one] * BATCH) for one in preprocess.example())
    try:
        with torch.inference_mode():
            inputs = network_input(preprocess.device(), batch, dtype)
        module, taps = family.cut(model, wanted, inputs)
        _check_shapes(name, module, taps, preprocess, dtype)
        _check_merged(name, taps, preprocess)
        return module, taps
    except (RuntimeError, AssertionError, ValueError) as error:
        if isinstance(preprocess, ImagePreprocess):
            size = preprocess.transform.crop
            raise BackboneError(
                f"{name} does not take images of {size} x {size}: {error}",
                hint="Give the size it was built for: --crop PIXELS (and --resize PIXELS).",
            ) from error
        shapes = ", ".join(str(tuple(one.shape)) for one in batch)
        raise BackboneError(
            f"{name} does not take what its preprocessing gives, {shapes}: {error}",
            hint="Let the factory return a module and a Preprocess that fit together.",
        ) from error


def _check_shapes(
    name: str, module: nn.Module, taps: tuple[Tap, ...], preprocess: Preprocess, dtype: torch.dtype
) -> None:
    """Raise BackboneError where samples of other shapes than the first lead to features of another shape."""
    examples = preprocess.examples()
    if not 1 <= len({shape_of(one) for one in examples}) == len(examples) <= MOST_SHAPES:
        raise BackboneError(
            f"The preprocessing of {name} names {len(examples)} shapes of samples.",
            hint=f"Let its `examples` give between 1 and {MOST_SHAPES}, each once.",
        )
    for batch in (tuple(torch.stack([one] * BATCH) for one in example) for example in preprocess.tried()[1:]):
        with torch.inference_mode():
            found = module(*network_input(preprocess.device(), batch, dtype))
        for tap, features in zip(taps, found, strict=True):
            if tuple(features.shape[1:]) != tap.shape:
                raise BackboneError(
                    f"The layer {tap.layer!r} of {name} gives features of {tuple(features.shape[1:])} for samples of "
                    f"{', '.join(str(tuple(one.shape[1:])) for one in batch)}, and of {tap.shape} for others.",
                    hint="Use a layer or a --pooling that leaves one vector for each sample.",
                )


def _check_merged(name: str, taps: tuple[Tap, ...], preprocess: Preprocess) -> None:
    """Raise BackboneError where positions in one window of a clip would be averaged with those in another."""
    for tap in taps:
        if preprocess.merges and len(tap.shape) > 1:
            raise BackboneError(
                f"The layer {tap.layer!r} of {name} has positions, {' x '.join(map(str, tap.shape))}, and a clip is as "
                "many windows as it needs, whose features are pooled.",
                hint="Use --pooling mean, or a layer that gives one vector.",
            )


def _preprocess(loaded: Loaded, transform: Mapping[str, Any] | None) -> Preprocess:
    if isinstance(loaded.base, Transform):
        if strange := sorted({*(transform or {})} - {one.name for one in fields(Transform)}):
            raise UsageError(
                f"{' and '.join(strange)} cannot be set for a backbone that takes images.",
                hint="Leave it out." if len(strange) == 1 else "Leave them out.",
            )
        return ImagePreprocess(replace(loaded.base, **transform) if transform else loaded.base)
    return loaded.base.with_options(transform) if transform else loaded.base


def _with_views(preprocess: Preprocess, views: int, steps: Sequence[str]) -> Preprocess:
    if isinstance(preprocess, ImagePreprocess):
        return replace(preprocess, views=views, augmentation=Augmentation.of(steps))
    raise UsageError(
        "The backbone has its own preprocessing, which makes its own views.",
        hint="Leave --views and --augment out; its Preprocess says how many `views` it makes.",
    )


def weights_digest(model: nn.Module) -> str:
    """The name of a model's weights: SHA-256 of its state dict."""
    return weights.digest_of(model.state_dict())
