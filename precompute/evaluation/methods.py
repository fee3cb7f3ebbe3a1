"""What can be learned of labelled images, and by which means: one small object a method, for `depth`.

A method prepares what it needs once (a feature file in the folder), and is then fitted on drawn rows and asked about
the test rows, as often as there are draws. Row numbers are those of the reference, the feature file of the head.
"""

from __future__ import annotations

import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, open_cache
from precompute.errors import TrainingError
from precompute.evaluation.draws import spread_of
from precompute.evaluation.records import Records
from precompute.extraction.conduct import Progress
from precompute.extraction.extract import extract
from precompute.heads import RowView
from precompute.sources.base import Source
from precompute.training.kinds import make_head
from precompute.training.targets import Rows, Target

Answers = NDArray[np.int64]  # (n,) places in the names of the classes


@dataclass(frozen=True)
class Ground:
    """The common ground of all methods.

    source: the images · folder: for files · records: of that folder · backbone, weights: the network · transform:
    replaces its own values · run: how features are computed, as `extract` takes it · progress, stop: of extractions.
    """

    source: Source
    folder: str
    records: Records
    backbone: str
    weights: str
    transform: dict[str, Any]
    run: dict[str, Any]
    progress: Callable[[Progress], None] | None = None
    stop: Callable[[], int] | None = None

    def path(self, name: str) -> str:
        """Of a feature file in the folder."""
        return os.path.join(self.folder, f"{name}.h5")

    def extract(self, name: str, **options: Any) -> Cache:
        """The feature file NAME.h5 of all images, computed or found up to date, and written down what it took.

        Raises what `extract` raises.
        """
        path = self.path(name)
        given = {"backbone": self.backbone, "weights": self.weights, "transform": self.transform, **self.run, **options}
        done = extract(self.source, path, progress=self.progress, stop=self.stop, **given)
        if done.computed and done.forward_seconds:  # what an earlier run had computed is counted at the same pace
            seconds = done.start_seconds + done.rows * done.forward_seconds / done.computed
            self.records.add({"file": name}, {"seconds": seconds, "bytes": done.bytes})
        return open_cache(path)

    def cost(self, name: str) -> tuple[float | None, int]:
        """Seconds and bytes of a feature file; None where this folder has no record of making it."""
        found = self.records.get({"file": name})
        if found is not None:
            return found["seconds"], found["bytes"]
        path = self.path(name)
        return None, os.path.getsize(path) if os.path.exists(path) else 0


class Method(ABC):
    """One way to learn from labelled images.

    name: for tables · file: the feature file that it is on, without its suffix · pretrained: whether it uses the
    weights of the backbone, so that it is transfer.
    """

    name: str
    file: str
    pretrained: bool = True

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """JSON-ready, with all that decides a result next to rows, seed, and the reference's own settings."""

    @abstractmethod
    def prepare(self, reference: Cache) -> None:
        """Compute what every fit needs. Raises what `extract` raises."""

    @abstractmethod
    def fit_and_score(self, train: Rows, test: Rows, target: Target, seed: int) -> Answers:
        """What it says of the rows `test` after being fitted on the rows `train`. Raises TrainingError."""

    @abstractmethod
    def command(self) -> str:
        """How to do it with all labels, from the folder's own files."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Release what `prepare` holds."""


class HeadOnFeatures(Method):
    """A logistic head on one layer's features: raw pixels, random weights, or the pretrained backbone."""

    def __init__(self, name: str, ground: Ground, *, pretrained: bool = True, **options: Any) -> None:
        self.name, self.file, self.pretrained = name, name, pretrained
        self._ground, self._options = ground, options
        self._cache: Cache | None = None

    def settings(self) -> dict[str, Any]:
        """See `Method`."""
        return {"head": "logistic", "features": self._options}

    def prepare(self, reference: Cache) -> None:
        """See `Method`."""
        is_reference = os.path.basename(reference.path) == f"{self.name}.h5"
        self._cache = reference if is_reference else self._ground.extract(self.name, **self._options)
        check_same_images(reference, self._cache)

    def fit_and_score(self, train: Rows, test: Rows, target: Target, seed: int) -> Answers:
        """See `Method`. Features are divided by their spread over the drawn images, as in `few_shot`."""
        assert self._cache is not None
        features = self._cache.plain_features(self._cache.layers[0])
        return fit_and_answer(lambda: make_head("logistic", {}, seed=seed), features, train, test, target)

    def command(self) -> str:
        """See `Method`."""
        return shlex.join(["precompute", "train-head", self._ground.path(self.file), "-o", "head.safetensors"])


def fit_and_answer(make: Callable[[], Any], features: Any, train: Rows, test: Rows, target: Target) -> Answers:
    """Fit a head on `train` of `features`, an array (N, ...) or what reads like one, and ask it about `test`.

    Raises TrainingError.
    """
    X = np.asarray(features[train], dtype=np.float32)
    scale = spread_of(X.reshape(len(train), -1))
    head = make()
    try:
        head.fit(X / scale, target.values[train].astype(np.int64))
    except ValueError as error:
        raise TrainingError(
            f"A head cannot be fitted on {len(train)} images: {error}", hint="Use more labels: --shots."
        ) from error
    view = RowView(features, test)
    return np.concatenate([np.asarray(head.predict(block / scale), np.int64) for _, block in view.blocks()])


def check_same_images(one: Cache, other: Cache) -> None:
    """Raise TrainingError unless both files have the same images in the same rows, each with features."""
    if one.path == other.path:
        return
    for name in ("samples/id", "samples/digest"):
        if not np.array_equal(one.column(name), other.column(name)):
            raise TrainingError(
                f"{other.path} holds other images than {one.path}: some changed while features were computed.",
                hint="Run the same command again.",
            )
