"""The methods of `depth` that see more of a network than the input of its classifier."""

from __future__ import annotations

import math
import shlex
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.backbones.load import load_backbone
from precompute.backbones.tail import tail_of
from precompute.cache import Cache, open_cache
from precompute.cache.key import spec_layers
from precompute.evaluation.methods import Answers, Ground, Method, check_same_images, fit_and_answer
from precompute.finetuning.activations import ActivationRows, Activations, CachedActivations
from precompute.finetuning.labelled_images import ImageOptions, open_images
from precompute.finetuning.on_rows import Given, calibrate, fit_on_rows
from precompute.finetuning.settings import TailSettings
from precompute.finetuning.tail_head import TailHead
from precompute.heads import AttentiveHead, SelectedHead
from precompute.training.splits import digest_groups
from precompute.training.targets import Rows, Target

CHANNEL = "channel"
SCRATCH_RATE = 1e-3  # weights that were never trained move further than those that are good already


class AllLayers(Method):
    """Head2Toe: a linear head on the most relevant features of all blocks, averaged over positions."""

    name = "all-layers"
    file = "layers"

    def __init__(self, ground: Ground, layers: list[str]) -> None:
        self._ground, self._layers = ground, layers
        self._features: NDArray[Any] | None = None
        self._widths: list[int] = []

    def settings(self) -> dict[str, Any]:
        """See `Method`."""
        return {"head": "SelectedHead", "layers": self._layers}

    def prepare(self, reference: Cache) -> None:
        """See `Method`."""
        cache = self._ground.extract(self.file, layer=self._layers, pooling="mean")
        check_same_images(reference, cache)
        parts = [np.asarray(cache.plain_features(name)).reshape(len(cache), -1) for name in cache.layers]
        self._widths = [part.shape[1] for part in parts]
        self._features = np.concatenate(parts, axis=1)

    def fit_and_score(self, train: Rows, test: Rows, target: Target, seed: int) -> Answers:
        """See `Method`."""
        assert self._features is not None
        return fit_and_answer(
            lambda: SelectedHead(layers=self._widths, random_state=seed), self._features, train, test, target
        )

    def command(self) -> str:
        """See `Method`."""
        return shlex.join(
            ["precompute", "train-head", self._ground.path(self.file), "--layer", "all", "-o", "head.safetensors"]
        )


class Attentive(Method):
    """An attentive head on the last map or tokens of the network."""

    name = "attentive"
    file = "map"

    def __init__(self, ground: Ground, layer: str) -> None:
        self._ground, self._layer = ground, layer
        self._cache: Cache | None = None

    def settings(self) -> dict[str, Any]:
        """See `Method`."""
        return {"head": "AttentiveHead", "layer": self._layer}

    def prepare(self, reference: Cache) -> None:
        """See `Method`."""
        self._cache = self._ground.extract(self.file, layer=self._layer, pooling="none")
        check_same_images(reference, self._cache)

    def fit_and_score(self, train: Rows, test: Rows, target: Target, seed: int) -> Answers:
        """See `Method`."""
        assert self._cache is not None
        axes, _ = spec_layers(self._cache.spec)[self._layer]
        features = self._cache.plain_features(self._layer)
        sizes = dict(zip(axes, features.shape[1:], strict=True))
        tokens = math.prod(size for axis, size in sizes.items() if axis != CHANNEL)
        options = {"tokens": tokens, "channels_first": axes[0] == CHANNEL, "random_state": seed}
        flat = features.reshape(len(features), -1)
        return fit_and_answer(lambda: AttentiveHead(**options), flat, train, test, target)

    def command(self) -> str:
        """See `Method`."""
        return shlex.join(
            ["precompute", "train-head", self._ground.path(self.file), "--head", "attentive", "-o", "head.safetensors"]
        )


class _Trained(Method):
    """What trains part of a network. training: values of TailSettings."""

    def __init__(self, ground: Ground, training: dict[str, Any], device: str) -> None:
        self._ground, self._training, self._device = ground, training, device
        self._given: Activations | None = None
        self._reference: Cache | None = None
        self._backbone: Any = None

    def settings(self) -> dict[str, Any]:
        """See `Method`."""
        return {"training": self._settings(0).record() | {"seed": 0, "device": self._device.partition(":")[0]}}

    def _settings(self, seed: int) -> TailSettings:
        return TailSettings(**{**self._training, "seed": seed, "device": self._device})

    def fit_and_score(self, train: Rows, test: Rows, target: Target, seed: int) -> Answers:
        """See `Method`."""
        assert self._given is not None
        assert self._reference is not None
        head = self._fit(self._given, self._reference, train, target, seed)
        found = head.predict_proba(ActivationRows(self._given, test)).argmax(axis=1)
        answers: Answers = np.array([target.names.index(str(name)) for name in head.classes_], np.int64)[found]
        return answers

    def _fit(self, activations: Activations, reference: Cache, train: Rows, target: Target, seed: int) -> TailHead:
        frozen = reference.plain_features(reference.layers[0])
        given = Given(activations, target, digest_groups(reference), frozen.reshape(len(frozen), -1))
        tail = tail_of(self._backbone, self._backbone.taps[0].layer)
        return fit_on_rows(tail, given, train, self._settings(seed), stop=self._ground.stop)

    def close(self) -> None:
        """See `Method`."""
        if self._given is not None:
            self._given.close()


class Tail(_Trained):
    """The network behind a layer, from its weights, on activations that were computed once."""

    def __init__(self, layer: str, ground: Ground, training: dict[str, Any], device: str) -> None:
        super().__init__(ground, training, device)
        self.name, self.file, self._layer = f"tail:{layer}", f"tail-{layer}", layer

    def prepare(self, reference: Cache) -> None:
        """See `Method`."""
        cache = self._ground.extract(self.file, layer=self._layer, pooling="none")
        check_same_images(reference, cache)
        self._backbone = load_backbone(
            self._ground.backbone,
            weights=self._ground.weights,
            layer=self._layer,
            pooling="none",
            transform=self._ground.transform,
        )
        self._given, self._reference = CachedActivations(cache, self._layer), reference

    def command(self) -> str:
        """See `Method`."""
        path = self._ground.path(self.file)
        return shlex.join(["precompute", "fine-tune", path, "--layer", self._layer, "-o", "tail.safetensors"])


class Everything(_Trained):
    """The whole network, from the images; from random weights where it is not `pretrained`."""

    def __init__(
        self, ground: Ground, training: dict[str, Any], device: str, augment: str | None, *, pretrained: bool
    ) -> None:
        rate = {} if pretrained else {"learning_rate": SCRATCH_RATE}
        super().__init__(ground, {**rate, **training}, device)
        self.name, self.file = ("everything", "head") if pretrained else ("scratch", "random")
        self.pretrained, self._augment = pretrained, augment

    def settings(self) -> dict[str, Any]:
        """See `Method`."""
        return {**super().settings(), "augment": self._augment}

    @property
    def _weights(self) -> str:
        return self._ground.weights if self.pretrained else "random"

    def prepare(self, reference: Cache) -> None:
        """See `Method`."""
        cache = reference if self.pretrained else self._ground.extract(self.file, weights="random")
        options = ImageOptions(
            augment=self._augment,
            features=cache.path,
            transform=self._ground.transform,
            workers=self._ground.run["workers"],
        )
        opened = open_images(
            *(self._ground.source, None, options),
            backbone=self._ground.backbone,
            weights=self._weights,
            device=self._device,
        )
        self._given, self._backbone, self._reference = opened.activations, opened.backbone, open_cache(cache.path)
        check_same_images(reference, self._reference)

    def _fit(self, activations: Activations, reference: Cache, train: Rows, target: Target, seed: int) -> TailHead:
        if self.pretrained:
            return super()._fit(activations, reference, train, target, seed)
        settings = self._settings(seed)
        tail = tail_of(self._backbone, self._backbone.taps[0].layer).to(self._device)
        calibrate(tail, activations, train, batch_size=settings.batch_size, device=self._device)
        given = Given(activations, target, digest_groups(reference))
        return fit_on_rows(tail, given, train, settings, stop=self._ground.stop)

    def command(self) -> str:
        """See `Method`."""
        ground = self._ground
        words = ["precompute", "fine-tune", ground.source.name, "-b", ground.backbone]
        words += [] if self._weights == "DEFAULT" else ["--weights", self._weights]
        for name in ("resize", "crop"):
            words += [f"--{name}", str(ground.transform[name])] if name in ground.transform else []
        return shlex.join([*words, "-o", f"{self.name}.safetensors"])
