"""torchvision's classification models, by their names there."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import nn

import precompute.backbones._torchvision  # noqa: F401

# isort: split
import torchvision
from torchvision.models import get_model, get_model_weights, list_models

from precompute.backbones import layers
from precompute.backbones import weights as state_dicts
from precompute.backbones.families.base import DEFAULT, Entry, Family, Loaded, path_of, random_seed, with_file
from precompute.backbones.families.registry import listed
from precompute.backbones.meta import ParametersOnMeta
from precompute.errors import BackboneError
from precompute.inputs.images.transform import Transform

SCALED_INPUT = ("googlenet", "inception_v3")  # that torchvision's own weights feed with another scale


class Torchvision(Family):
    """Names without a colon."""

    def names(self) -> list[str]:
        return [str(name) for name in list_models(module=torchvision.models)]

    def check(self, name: str) -> None:
        if name in self.names():
            return
        close = difflib.get_close_matches(name.lower(), listed(), n=5, cutoff=0.5)
        also = f" Close: {', '.join(close)}." if close else ""
        raise BackboneError(
            f"Unknown backbone {name!r}.{also}",
            hint="See all with `precompute backbones`; your own model is named package.module:factory.",
        )

    def load(self, name: str, weights: str) -> Loaded:
        entries = {entry.name: entry for entry in get_model_weights(name)}
        base, origin = own_transform(name)
        seed = random_seed(weights)
        if seed is not None:
            model = self.build(name, seed=seed)
            return Loaded(
                name, model, {"kind": "random", "seed": seed}, base, (f"weights are random; the transform is {origin}",)
            )
        if weights == DEFAULT or weights in entries:
            entry = get_model_weights(name).DEFAULT if weights == DEFAULT else entries[weights]
            return self._published(name, entry)
        path = path_of(name, weights, list(entries))
        return with_file(self, name, self.build(name, seed=None), path, base, (f"the transform is {origin}",))

    def _published(self, name: str, entry: Any) -> Loaded:
        state, file = state_dicts.download(entry)
        model = self.build(name, seed=None)
        notes = state_dicts.fit_into(
            model, state, source=str(entry), model_name=name, find_classifier=self.final_classifier
        )
        source = {"kind": "entry", "entry": entry.name, "file": Path(file["path"]).name}
        return Loaded(name, model, source, Transform.from_preset(entry.transforms()), notes, file)

    def build(self, name: str, *, seed: int | None) -> nn.Module:
        if seed is None:
            with ParametersOnMeta():
                return _construct(name, init=False).eval()
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
            torch.manual_seed(seed)
            return _construct(name, init=True).eval()

    def describe(self, name: str, *, quick: bool = False) -> Entry:  # noqa: ARG002 - all of them are shown
        layer, _, width = layers.default_layer(self.build(name, seed=None))
        default = get_model_weights(name).DEFAULT
        meta = default.meta
        others = [entry.name for entry in get_model_weights(name) if entry.name != default.name]
        return Entry(
            name=name,
            width=width,
            input_size=Transform.from_preset(default.transforms()).crop,
            params=meta["num_params"],
            gflops=meta["_ops"],
            accuracy=meta["_metrics"].get("ImageNet-1K", {}).get("acc@1"),
            layer=layer,
            weights=(default.name, *others),
        )

    def loading_code(self, name: str, outputs: int) -> str:
        more = ", aux_logits=False, transform_input=True, init_weights=False" if name in SCALED_INPUT else ""
        return f"torchvision.models.get_model({name!r}, num_classes={outputs}{more})"


def own_transform(name: str) -> tuple[Transform, str]:
    """The transform where no weights entry decides it, and in words where it comes from."""
    for entry in get_model_weights(name):
        return Transform.from_preset(entry.transforms()), f"that of {entry}"
    return Transform(), "ImageNet's usual one"


def _construct(name: str, *, init: bool) -> nn.Module:
    extra: dict[str, Any] = {}
    if name in SCALED_INPUT:
        # What torchvision itself sets for its published weights: their input is scaled otherwise, and they have
        # auxiliary heads. Given here because weights from a path are the same weights.
        extra = {"transform_input": True, "aux_logits": True, "init_weights": init}
    model: nn.Module = get_model(name, weights=None, **extra)
    return model


FAMILY = Torchvision()
