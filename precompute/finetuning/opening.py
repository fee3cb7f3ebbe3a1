"""Heads and tails by their files: what there is to predict with, whichever kind it is."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from precompute.backbones.load import Backbone
from precompute.errors import HeadFormatError, HeadMismatchError
from precompute.extraction.rebuild import Origin, rebuild_backbone
from precompute.finetuning.tail_file import TAIL_FORMAT, SavedTail, load_tail
from precompute.heads import SavedHead, load_head
from precompute.heads.persistence.encoding import is_of
from precompute.system.untrusted import open_without_waiting
from precompute.training.kinds import task_of
from precompute.training.layers import LayerInput, saved_inputs
from precompute.training.views import averaged


def is_tail(path: str | os.PathLike[str]) -> bool:
    """Whether the file at `path` says that it is a tail, of any version; False where it cannot be read."""
    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and is_of(file, TAIL_FORMAT)
    except OSError:
        return False  # whoever loads it says why


def open_head(path: str | os.PathLike[str]) -> HeadFile:
    """The head, tail or whole network in a file. Raises what `load_head` and `load_tail` raise."""
    return HeadFile(os.fspath(path), load_tail(path) if is_tail(path) else load_head(path))


@dataclass(frozen=True)
class HeadFile:
    """A head or a tail from a file. A tail can predict once it is attached to its backbone."""

    path: str
    saved: SavedHead | SavedTail

    @property
    def is_tail(self) -> bool:
        """Whether it needs a backbone to predict, from features too."""
        return isinstance(self.saved, SavedTail)

    @property
    def metadata(self) -> dict[str, Any]:
        """The JSON object that was saved with it."""
        return self.saved.metadata

    @property
    def task(self) -> str:
        """One of `training.targets.TASKS`."""
        return self.saved.task if isinstance(self.saved, SavedTail) else task_of(self.saved.head)

    @property
    def inputs(self) -> tuple[LayerInput, ...]:
        """What a head of several layers takes; none of one layer. Raises HeadFormatError where that cannot be."""
        return () if self.is_tail else saved_inputs(self.metadata, self.path, self.n_features)

    @property
    def layers(self) -> tuple[str, ...]:
        """Whose features it takes, side by side where they are several."""
        return tuple(one.name for one in self.inputs) or (str(self.metadata.get("layer")),)

    @property
    def averages(self) -> int:
        """Over how many views, 0 for none."""
        return averaged(self.metadata)

    @property
    def n_features(self) -> int:
        """How many numbers it takes."""
        return self.saved.n_features if isinstance(self.saved, SavedTail) else int(self.saved.head.n_features_in_)

    @property
    def origin(self) -> Origin:
        """The words for it."""
        kind = "tail" if self.is_tail else "head"
        return Origin(f"The {kind} {self.path}", "was trained", "on", HeadMismatchError, HeadFormatError)

    def attach(self, backbone: Backbone, *, tail: str | None = None, device: str = "cpu") -> SavedHead:
        """What predicts from features of its layer; see `SavedTail.attach`. A head is that already."""
        if isinstance(self.saved, SavedTail):
            factory = tail if self.saved.factory is not None else None
            return self.saved.attach(backbone, tail=factory, device=device)
        return self.saved

    def alone(
        self,
        *,
        backbone: str | None = None,
        weights: str | None = None,
        augment: str | Sequence[str] | None = None,
        tail: str | None = None,
        device: str = "cpu",
    ) -> SavedHead:
        """The same where nobody has its backbone: it is loaded, where this is a tail."""
        if not isinstance(self.saved, SavedTail):
            return self.saved
        model = self.backbone(backbone=backbone, weights=weights, augment=augment)
        return self.attach(model, tail=tail, device=device)

    def backbone(
        self,
        *,
        backbone: str | None = None,
        weights: str | None = None,
        augment: str | Sequence[str] | None = None,
    ) -> Backbone:
        """The one that it was trained behind, cut at its layers, which makes plain views. Raises as `rebuild_backbone`
        does, and HeadMismatchError where a layer has another shape by now."""
        spec, source = self.metadata.get("spec"), self.metadata.get("weights_source", {})
        given: dict[str, Any] = {"backbone": backbone, "weights": weights, "augment": augment}
        model, _ = rebuild_backbone(spec, source, self.origin, **given, layers=set(self.layers), plain=True)
        self.check_shapes(model.name, {tap.layer: tap.shape for tap in model.taps})
        return model

    def check_shapes(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise HeadMismatchError unless it takes activations of these shapes, by layer, which the backbone `name`
        gives."""
        if inputs := self.inputs:
            fit = all(shapes[one.name] == one.shape for one in inputs)
        else:
            fit = math.prod(shapes[self.layers[0]]) == self.n_features
        if not fit:
            gives = ", ".join(str(shapes[layer]) for layer in self.layers)
            raise HeadMismatchError(
                f"{self.origin.file} takes {self.n_features} features; {name} gives {gives}.", hint="Train it again."
            )
