"""head file x images -> labels, with the very features that the head was trained on, or those of a cache."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from precompute.backbones.load import Backbone
from precompute.cache import Cache, open_cache, status_name
from precompute.engines.choice import Asked, candidates, choose
from precompute.engines.machine import Machine
from precompute.errors import HeadFormatError, HeadMismatchError, UsageError
from precompute.extraction.executors.base import Work
from precompute.extraction.executors.local import LocalExecutor
from precompute.extraction.output import HDF5_SIGNATURE
from precompute.extraction.rebuild import Origin, rebuild_backbone
from precompute.extraction.sampling import sample_of
from precompute.heads import RidgeRegressionHead, RowView, SavedHead, load_head
from precompute.heads.scoring.scores import wilson_interval
from precompute.inputs.images.formats import IMAGES
from precompute.sources.base import Reading, Source
from precompute.sources.registry import open_source
from precompute.training.membership import trained_layer
from precompute.training.relabelling import Relabelling, recorded
from precompute.training.splits import whole_rows

AT_ONCE = 65_536  # rows of a cache, whose probabilities are in memory at the same time


@dataclass(frozen=True)
class Prediction:
    """One image. label: the most probable class · true: the class of its folder or its label in a
    table, None where that is no class of the head."""

    id: str
    label: str
    probability: float
    true: str | None


@dataclass(frozen=True)
class Predictions:
    """All images in the order of their ids. failed: (id, reason, detail) of those without a prediction.

    warnings: what the user should know of the engine that ran.
    """

    classes: tuple[str, ...]
    items: tuple[Prediction, ...]
    failed: tuple[tuple[str, str, str], ...]
    warnings: tuple[str, ...]
    seconds: float

    @property
    def scored(self) -> int:
        """Images with a label, of a folder or table, that is a class of the head."""
        return sum(item.true is not None for item in self.items)

    @property
    def accuracy(self) -> float | None:
        """Share of the scored images that are right; None where none can be scored."""
        return self._hits() / self.scored if self.scored else None

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """Wilson's 95% interval of the accuracy."""
        return wilson_interval(self._hits(), self.scored) if self.scored else None

    def _hits(self) -> int:
        return sum(item.label == item.true for item in self.items)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "n": len(self.items),
            "classes": self.classes,
            "scored": self.scored,
            "accuracy": self.accuracy,
            "accuracy_interval": self.accuracy_interval,
            "predictions": [vars(item) for item in self.items],
            "failed": [{"id": name, "reason": reason, "detail": detail} for name, reason, detail in self.failed],
            "warnings": self.warnings,
            "seconds": self.seconds,
        }


def predict(
    head: str | os.PathLike[str],
    source: str | os.PathLike[str] | Source,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Predictions:
    """Classify the images of `source` (see `extract`; also one image alone) with a saved head, or the rows of a cache.

    A cache must hold features such as the head was trained on; no image is read and no backbone is made, so `backbone`,
    `weights`, `batch_size`, `workers`, `root` and `columns` are refused then. Rows without features are among `failed`.

    Backbone, layer, transform and precision come from the head file; the weights are found again where they came
    from, or at `weights`, and must have the digest that the head was trained with.

    backbone: must be given, as a confirmation, for a head whose backbone is code of the user's own. progress: called
    with (done, total). root, columns: see `extract`.
    Raises HeadFormatError, HeadMismatchError, BackboneError, WeightsError, SourceError, DeviceError; of a cache
    CacheError and UsageError.
    """
    began = time.monotonic()
    saved = load_head(head)
    if isinstance(saved.head, RidgeRegressionHead):
        raise HeadMismatchError(
            f"The head {os.fspath(head)} predicts numbers, and `predict` gives images a class.",
            hint="Load it with precompute.load_head and call its predict on the features of a cache.",
        )
    classifier = saved.head
    if isinstance(source, str | os.PathLike) and _is_hdf5(source):
        given: dict[str, Any] = {"backbone": backbone, "weights": weights, "batch_size": batch_size, "workers": workers}
        given |= {"root": root, "columns": columns or None}
        if says_nothing := [name for name, value in given.items() if value is not None]:
            raise UsageError(
                f"{os.fspath(source)} holds features, so {says_nothing[0]} says nothing.",
                hint=f"Leave out --{says_nothing[0].replace('_', '-')}, or name a folder of images.",
            )
        return _of_cache(saved, os.fspath(head), source, progress, began)
    samples = open_source(source, IMAGES, reading=Reading.of(root, columns))
    model, precision, storage = rebuild(saved, os.fspath(head), backbone=backbone, weights=weights)
    asked = Asked(precision=precision, device=device, batch_size=batch_size, dtype=storage.name)
    found = candidates(asked, Machine.here(), images=len(samples), module=model.module)
    classes = tuple(str(name) for name in classifier.classes_)
    items: list[tuple[int, Prediction]] = []
    failed: list[tuple[int, tuple[str, str, str]]] = []
    done = 0
    with model.preprocess.session():
        decision = choose(found, model, sample_of(samples, model.preprocess, workers=workers))
        for block in LocalExecutor(workers).blocks(Work(samples, model, decision), np.arange(len(samples))):
            if block.features is not None:
                # Rounded as in the cache, so that a prediction equals one from cached features.
                (features,) = block.features
                X = features.astype(storage).astype(np.float32).reshape(len(block.decoded), -1)
                for item, row in zip(block.decoded, saved.predict_proba(X), strict=True):
                    best, true = int(row.argmax()), samples.label_name(item.row)
                    known = true if true in classes else None
                    name = samples.id_of(item.row)
                    items.append((item.row, Prediction(name, classes[best], float(row[best]), known)))
            for item in block.failed:
                assert item.error is not None  # that is what puts it here
                failed.append((item.row, (samples.id_of(item.row), item.error.reason, item.error.message)))
            done += len(block)
            if progress is not None:
                progress(done, len(samples))
    return Predictions(
        classes,
        tuple(item for _, item in sorted(items, key=lambda pair: pair[0])),
        tuple(one for _, one in sorted(failed)),
        decision.warnings,
        time.monotonic() - began,
    )


def _is_hdf5(path: str | os.PathLike[str]) -> bool:
    if not os.path.isfile(path):  # a pipe is not opened
        return False
    try:
        with open(path, "rb") as file:
            return file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    except OSError:
        return False  # whoever lists the source says why


def _of_cache(
    saved: SavedHead,
    head: str,
    path: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None,
    began: float,
) -> Predictions:
    classes = tuple(str(name) for name in saved.head.classes_)
    items: list[Prediction] = []
    with open_cache(path) as cache:
        layer = trained_layer(saved, cache, head)
        whole = whole_rows(cache, layer)
        relabelled = _as_trained(saved, cache)
        ids, names = cache.column("samples/id"), (*relabelled.classes, None)  # the label -1 is the last
        labels, rows = relabelled.labels, np.flatnonzero(whole)
        view = RowView(cache.features(layer), rows)
        for start in range(0, len(rows), AT_ONCE):
            chosen = np.arange(start, min(start + AT_ONCE, len(rows)))
            for row, proba in zip(rows[chosen].tolist(), saved.predict_proba(view.take(chosen)), strict=True):
                best, true = int(proba.argmax()), names[labels[row]]
                known = true if true in classes else None
                items.append(Prediction(os.fsdecode(bytes(ids[row])), classes[best], float(proba[best]), known))
            if progress is not None:
                progress(len(items), len(rows))
        status = cache.status
        failed = tuple(
            (os.fsdecode(bytes(ids[row])), status_name(int(status[row])), f"a row of {cache.path} without features")
            for row in np.flatnonzero(~whole).tolist()
        )
    return Predictions(classes, tuple(items), failed, (), time.monotonic() - began)


def _as_trained(saved: SavedHead, cache: Cache) -> Cache:
    """`cache` with the labels of the column that the head was trained on, where it has that."""
    column = recorded(saved.metadata).get("label_column")
    return Relabelling(column).apply(cache)[0] if column in cache.columns else cache


def rebuild(
    saved: SavedHead, path: str, *, backbone: str | None = None, weights: str | None = None
) -> tuple[Backbone, str, np.dtype[Any]]:
    """The backbone that a head was trained on, its precision and the dtype its features were stored in.

    Raises HeadMismatchError where weights, transform or layer differ from those of the training.
    """
    model, spec = rebuild_backbone(
        saved.metadata.get("spec"),
        saved.metadata.get("weights_source", {}),
        Origin(f"The head {path}", "was trained", "on", HeadMismatchError, HeadFormatError),
        backbone=backbone,
        weights=weights,
        layer=str(saved.metadata.get("layer")),
    )
    shape = model.taps[0].shape
    if int(np.prod(shape)) != int(saved.head.n_features_in_):
        raise HeadMismatchError(
            f"The head {path} takes {saved.head.n_features_in_} features; {model.name} gives {shape}.",
            hint="Train the head again.",
        )
    return model, spec["precision"], np.dtype(spec["storage"])
