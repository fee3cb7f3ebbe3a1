"""Name or factory -> frozen Backbone: the cut module, its transform, its weights and what to call them in the key."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from precompute.backbones import checkpoints, families, layers, weights
from precompute.backbones.families import TINY
from precompute.backbones.layers import Tap
from precompute.backbones.layout import BATCH
from precompute.backbones.ngram_hash import NGRAM_HASH, Unchanged
from precompute.backbones.whole import WholeNetwork, network_input
from precompute.errors import BackboneError, UsageError, WeightsError
from precompute.inputs.base import MOST_SHAPES, Preprocess, shape_of
from precompute.inputs.images.augmentation import Augmentation, augment_names, check_views
from precompute.inputs.images.preprocess import ImagePreprocess
from precompute.inputs.images.transform import Transform
from precompute.inputs.kinds import files_of, transform_spec
from precompute.inputs.text.ngrams import NgramPreprocess

POOLINGS = ("auto", *layers.POOLINGS)
MAX_LAYERS = 64  # of one file
MAX_SEED = 2**63 - 1  # of torch.manual_seed
VIEW = "view"
"""The word for the axis of views, see cache/FORMAT.md."""


@dataclass(frozen=True)
class Backbone:
    """A frozen network cut at some layers, ready to run.

    module: the network's input -> for each tap (B, *shape) · network: the whole network, which shares its parameters
    with `module` · taps: ascending by layer · weights: SHA-256 of the state
    dict · source: where the weights came from, as JSON, enough to load them again · notes: choices worth telling ·
    file: path, size and mtime_ns of the weights' file as it was before it was read, None where they are no file.
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

    @property
    def is_code(self) -> bool:
        """Whether it is code of the user's own, which may change."""
        return families.is_factory(self.name)

    @property
    def exact(self) -> bool:
        """Whether there is nothing to compute that another engine or precision would be faster at."""
        return self.name == NGRAM_HASH

    @property
    def unit(self) -> str:
        """What messages call the samples that it takes: images, texts or clips."""
        return files_of(self.preprocess.modality).plural

    @property
    def stored(self) -> tuple[Tap, ...]:
        """What a file holds of a sample: `taps`, with an axis of views in front where there are several."""
        views = self.preprocess.views
        if views == 1:
            return self.taps
        return tuple(replace(tap, shape=(views, *tap.shape), axes=(VIEW, *tap.axes)) for tap in self.taps)

    def plain(self) -> Backbone:
        """The same with the plain view alone."""
        return replace(self, preprocess=self.preprocess.plain())

    @property
    def identity(self) -> str | None:
        """Names code and weights of `module`, to keep what is compiled; None for code that may change."""
        if self.is_code:
            return None
        return " ".join([self.name, self.weights, *(f"{tap.layer} {tap.pooling}" for tap in self.taps)])

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

    name: `tiny`, a torchvision classification model, `ngram-hash` for texts, or `package.module:factory`; a factory
    returns a module, or a pair of it and its `Preprocess`.
    weights: an entry such as DEFAULT or IMAGENET1K_V1, `random` or `random:SEED`, or the path of a state dict. For a
    factory DEFAULT means the weights it returns.
    layer: any node of torchvision's get_graph_node_names, `output`, or `input` for what enters the network; by default
    what enters the final classifier.
    Several are taken in one pass: a list, each `NAME` or `NAME:POOLING`; `all-blocks` stands for the output of each
    stage or block.
    pooling: "none", "mean" (over positions: of a map, or tokens without a class token) or "auto" (mean only in front of
    a convolutional classifier), for layers that do not name theirs.
    transform: values of Transform that replace those of the weights entry.
    views, augment: how many inputs are made of one image, and of what, see `precompute.extraction.extract.extract`.
    Raises BackboneError, WeightsError and UsageError; see their messages for the ways out.
    """
    families.check_name(name)
    steps = augment_names(augment)
    if views != 1 or steps:
        check_views(views, steps)
    if pooling not in POOLINGS:
        options = ", ".join(POOLINGS)
        raise UsageError(f"pooling must be one of {options}. Got {pooling!r} instead.", hint="See --pooling.")
    loaded = _with_weights(name, weights)
    loaded.model.requires_grad_(False)
    preprocess, notes = _preprocess(loaded, transform), loaded.notes
    if steps:
        preprocess = _with_views(preprocess, views, steps)
    if layer is None:
        chosen, found_pooling, more = _choose_layer(name, loaded.model)
        wanted, notes = [(chosen, found_pooling if pooling == "auto" else pooling)], (*notes, *more)
    else:
        wanted = _wanted(loaded.model, [layer] if isinstance(layer, str) else layer, pooling)
    digest = weights_digest(loaded.model)
    module, taps = _cut(name, loaded.model, wanted, preprocess)
    return Backbone(name, module, loaded.model, taps, preprocess, digest, loaded.source, notes, loaded.file)


def _wanted(model: nn.Module, given: Sequence[str], pooling: str) -> list[tuple[str, str]]:
    """Pairs of a layer and its pooling, ascending by layer."""
    found: dict[str, str] = {}
    for text in given:
        name, _, suffix = text.rpartition(":")
        if suffix not in POOLINGS or not name:
            name, suffix = text, pooling
        for layer in layers.blocks(model) if name == layers.ALL_BLOCKS else [name]:
            if layer in found:
                raise UsageError(f"The layer {layer!r} is named twice.", hint="Name each layer once: see --layer.")
            found[layer] = "none" if suffix == "auto" else suffix
    if not 1 <= len(found) <= MAX_LAYERS:
        raise UsageError(
            f"A file holds between 1 and {MAX_LAYERS} layers. Got {len(found)} instead.", hint="See --layer."
        )
    return sorted(found.items())


def _cut(
    name: str, model: nn.Module, wanted: list[tuple[str, str]], preprocess: Preprocess
) -> tuple[nn.Module, tuple[Tap, ...]]:
    """`model` cut at its taps, whose shapes are found by running a few empty samples."""
    first = next((one for one in model.parameters() if one.is_floating_point()), None)
    dtype = torch.float32 if first is None else first.dtype
    batch = tuple(torch.stack([one] * BATCH) for one in preprocess.example())
    try:
        with torch.inference_mode():
            inputs = network_input(preprocess.device(), batch, dtype)
        module, taps = layers.cut(model, wanted, inputs)
        _check_shapes(name, module, taps, preprocess, dtype)
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
    for batch in (tuple(torch.stack([one] * BATCH) for one in example) for example in examples[1:]):
        with torch.inference_mode():
            found = module(*network_input(preprocess.device(), batch, dtype))
        for tap, features in zip(taps, found, strict=True):
            if tuple(features.shape[1:]) != tap.shape:
                raise BackboneError(
                    f"The layer {tap.layer!r} of {name} gives features of {tuple(features.shape[1:])} for samples of "
                    f"{', '.join(str(tuple(one.shape[1:])) for one in batch)}, and of {tap.shape} for others.",
                    hint="Take a layer or a --pooling that leaves one vector for each sample.",
                )


def _preprocess(loaded: _Loaded, transform: Mapping[str, Any] | None) -> Preprocess:
    if isinstance(loaded.base, Transform):
        return ImagePreprocess(replace(loaded.base, **transform) if transform else loaded.base)
    if transform:
        raise UsageError(
            f"The backbone has a preprocessing of its own, so {', '.join(transform)} cannot be set.",
            hint="Leave these options out.",
        )
    return loaded.base


def _with_views(preprocess: Preprocess, views: int, steps: Sequence[str]) -> Preprocess:
    if isinstance(preprocess, ImagePreprocess):
        return replace(preprocess, views=views, augmentation=Augmentation.of(steps))
    raise UsageError(
        "The backbone has a preprocessing of its own, which makes its own views.",
        hint="Leave --views and --augment out; its Preprocess says how many `views` it makes.",
    )


def weights_digest(model: nn.Module) -> str:
    """The name of a model's weights: SHA-256 of its state dict."""
    return weights.digest_of(model.state_dict())


@dataclass(frozen=True)
class _Loaded:
    """A model with weights. base: its own transform or preprocessing · source, notes, file: see Backbone."""

    model: nn.Module
    source: dict[str, Any]
    base: Transform | Preprocess
    notes: tuple[str, ...] = ()
    file: dict[str, Any] | None = None


def _with_weights(name: str, choice: str) -> _Loaded:
    if name == NGRAM_HASH:
        return _ngram_hash(choice)
    base, origin = _own_transform(name)
    word, _, seed = choice.partition(":")
    if word == "random":
        model, source = _random(name, seed)
        return _Loaded(model, source, base, (f"weights are random; the transform is {origin}",))
    if choice == "DEFAULT" and name == TINY:
        from precompute.backbones.tiny import tiny

        return _Loaded(tiny(), {"kind": "embedded"}, base)
    about: tuple[str, ...] = (f"the transform is {origin}",)
    own: Preprocess | None = None
    if families.is_factory(name):
        model, own = families.run_factory(name)
        about = () if own else about
        if choice == "DEFAULT":
            return _Loaded(model, {"kind": "factory"}, own or base, about)
    known = families.entries(name)
    find = layers.final_classifier
    if choice == "DEFAULT" or choice in known:
        entry = families.default_entry(name) if choice == "DEFAULT" else known[choice]
        state, file = weights.download(entry)
        model = families.build(name, seed=None)
        notes = weights.fit_into(model, state, source=str(entry), model_name=name, find_classifier=find)
        source = {"kind": "entry", "entry": entry.name, "file": Path(file["path"]).name}
        return _Loaded(model, source, Transform.from_preset(entry.transforms()), notes, file)
    if not _looks_like_path(choice):
        options = ", ".join(["DEFAULT", *known, "random"])
        raise WeightsError(f"{name} has no weights {choice!r}.", hint=f"Take one of {options}, or the path of a file.")
    if not families.is_factory(name):
        model = families.build(name, seed=None)
    file = checkpoints.identity_of(choice)
    notes = weights.fit_into(model, checkpoints.load_file(choice), source=choice, model_name=name, find_classifier=find)
    source = {"kind": "file", "path": str(Path(choice).absolute())}
    return _Loaded(model, source, own or base, (*about, *notes), file)


def _ngram_hash(choice: str) -> _Loaded:
    if choice != "DEFAULT":
        raise WeightsError(f"{NGRAM_HASH} has no weights, so there are none to choose.", hint="Leave --weights out.")
    return _Loaded(Unchanged().eval(), {"kind": "embedded"}, NgramPreprocess())


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
        if name == NGRAM_HASH:
            return layers.OUTPUT, "none", ()
        if not families.is_factory(name):
            raise
        return layers.OUTPUT, "none", (f"the output of {name} is the feature: {error.message}",)
    return layer, pooling, ()
