"""`tiny`: the embedded backbone."""

from __future__ import annotations

import torch
from torch import nn

from precompute.backbones import tiny
from precompute.backbones.families.base import DEFAULT, Entry, Family, Loaded, path_of, random_seed, with_file
from precompute.backbones.families.registry import TINY
from precompute.backbones.meta import ParametersOnMeta
from precompute.inputs.images.transform import Transform


class Tiny(Family):
    """The one backbone that needs no file."""

    def names(self) -> list[str]:
        return [TINY]

    def check(self, name: str) -> None:
        """Its name is all there is."""

    def load(self, name: str, weights: str) -> Loaded:
        base = Transform(tiny.SIZE, tiny.SIZE, tiny.INTERPOLATION, tiny.MEAN, tiny.STD)
        origin = "the transform is the embedded backbone's"
        seed = random_seed(weights)
        if seed is not None:
            model = self.build(name, seed=seed)
            return Loaded(name, model, {"kind": "random", "seed": seed}, base, (f"weights are random; {origin}",))
        if weights == DEFAULT:
            return Loaded(name, tiny.tiny(), {"kind": "embedded"}, base)
        path = path_of(name, weights)
        return with_file(self, name, self.build(name, seed=None), path, base, (origin,))

    def build(self, name: str, *, seed: int | None) -> nn.Module:  # noqa: ARG002 - there is one
        if seed is None:
            with ParametersOnMeta():
                return tiny.TinyBackbone().eval()
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
            torch.manual_seed(seed)
            return tiny.TinyBackbone().eval()

    def describe(self, name: str) -> Entry:
        from precompute.backbones import layers

        model = self.build(name, seed=None)
        layer, _, width = layers.default_layer(model)
        params = sum(parameter.numel() for parameter in model.parameters())
        return Entry(name, width, tiny.SIZE, params, None, None, layer, (DEFAULT,))

    def loading_code(self, name: str, outputs: int) -> str:  # noqa: ARG002 - there is one
        return f"precompute.backbones.tiny.TinyBackbone(num_classes={outputs})"


FAMILY = Tiny()
