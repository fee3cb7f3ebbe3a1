"""cache x head -> a fitted head and honest scores."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, Status, open_cache
from precompute.errors import TrainingError, UsageError
from precompute.heads import LogisticHead, MLPHead, Scores, evaluate, holdout, save_head

if TYPE_CHECKING:
    from collections.abc import Mapping

    from precompute.cache.provenance import Record

HEADS: Mapping[str, Any] = {"logistic": LogisticHead, "mlp": MLPHead}
HOLDOUT = "hold-out"
HOLDOUT_FRACTION = 0.2
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Training:
    """A fitted head and how good it is.

    head: the estimator; its classes are the class names · rows: samples by split, as used · scores: by split ·
    selected_on: the scored split that chose a setting (its score flatters), None where every score is clean ·
    choices: what the fit decided, such as C and how · notes: what the reader of the scores should know ·
    seconds: fitting, selection included; scoring and reading excluded.
    """

    head: Any
    kind: str
    layer: str
    rows: dict[str, int]
    scores: dict[str, Scores]
    selected_on: str | None
    choices: dict[str, Any]
    notes: tuple[str, ...]
    seconds: float

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.head.classes_]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "head": self.kind,
            "layer": self.layer,
            "classes": self.classes,
            "rows": self.rows,
            "scores": {split: scores.to_dict() for split, scores in self.scores.items()},
            "selected_on": self.selected_on,
            "choices": self.choices,
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def train_head(
    cache: Cache | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    head: str = "logistic",
    layer: str | None = None,
    seed: int = 0,
    **settings: Any,
) -> Training:
    """Train a head on cached features and score it on images it has not seen.

    Trains on split train and scores on val and test; where the cache has no such splits, on a stratified hold-out of
    a fifth, in which byte-identical images never stand on both sides. What has to be chosen (C, when to stop) is
    chosen on val if there is a test split, else inside the training part, so that a score is left that chose nothing.

    head: "logistic" or "mlp". settings: parameters of LogisticHead or MLPHead. out: where to save the head, one
    .safetensors file that `predict` needs nothing else beside.
    Raises TrainingError for labels that nothing can be learned from, CacheError, HeadError, UsageError.
    """
    if head not in HEADS:
        raise UsageError(f"head must be one of {', '.join(HEADS)}. Got {head!r} instead.", hint="See --head.")
    if not isinstance(cache, Cache):
        cache = open_cache(cache)
    features = cache.features(layer)
    layer = layer or cache.layers[0]
    parts, notes = _parts(cache, seed)
    names = np.array(cache.classes, dtype=np.str_)
    labels = cache.labels
    digests = _digest_groups(cache)
    _check_classes(cache, parts)
    notes += _duplicates(cache, parts, digests)

    def arrays(rows: Rows) -> tuple[NDArray[np.floating], NDArray[np.str_]]:
        return np.asarray(features[rows]).reshape(len(rows), -1), names[labels[rows]]

    selection = "val" if "val" in parts and "test" in parts else None
    estimator = HEADS[head](random_state=seed, **settings)
    X, y = arrays(parts["train"])
    validation = arrays(parts[selection]) if selection else None
    began = time.monotonic()
    try:
        estimator.fit(X, y, validation=validation, groups=digests[parts["train"]])
    except ValueError as error:
        raise TrainingError(
            f"The {head} head cannot be trained: {error}",
            hint="Check the settings and the cache: precompute info CACHE.",
        ) from error
    seconds = time.monotonic() - began
    scores = {}
    for split in parts.keys() - {"train"}:
        X, y = arrays(parts[split])
        scores[split] = evaluate(y, estimator.predict_proba(X), estimator.classes_)
    choices, used = _choices(estimator)
    result = Training(
        head=estimator,
        kind=head,
        layer=layer,
        rows={split: len(rows) for split, rows in parts.items()},
        scores={split: scores[split] for split in ("val", "test", HOLDOUT) if split in scores},
        selected_on=selection if used else None,
        choices=choices,
        notes=tuple(notes),
        seconds=seconds,
    )
    if out is not None:
        save_head(out, estimator, metadata=_metadata(cache, layer, result, seed))
    return result


def _parts(cache: Cache, seed: int) -> tuple[dict[str, Rows], list[str]]:
    """Row numbers of train and of what is scored."""
    labelled = cache.labels >= 0
    usable = cache.ok & labelled
    notes = []
    if skipped := int((~labelled).sum()):
        notes.append(f"{skipped} samples have no label and are left out")
    if broken := int((labelled & ~usable).sum()):
        pending = int((labelled & (cache.status == Status.PENDING)).sum())
        notes.append(f"{broken} samples have no features ({pending} not computed yet) and are left out")
    if not usable.any():
        raise TrainingError(
            f"{cache.path} holds no labelled features.",
            hint="Put the images into one folder for each class (photos/cats, photos/dogs) and extract again.",
        )
    split = cache.split
    parts = {name: np.flatnonzero(usable & (split == name)) for name in ("train", "val", "test")}
    parts = {name: rows for name, rows in parts.items() if len(rows)}
    if not parts:
        parts["train"] = np.flatnonzero(usable)
    elif "train" not in parts:
        raise TrainingError(
            f"{cache.path} has the splits {', '.join(parts)}, but no usable images in train.",
            hint="Add a folder train/ with the same class folders, and extract again.",
        )
    if parts.keys() == {"train"}:
        pool = parts["train"]
        try:
            train, held = holdout(
                cache.labels[pool], groups=_digest_groups(cache)[pool], fraction=HOLDOUT_FRACTION, seed=seed
            )
        except ValueError as error:
            raise TrainingError(
                f"{cache.path} has too few images to hold any out for scoring: no class has two different ones.",
                hint="Add images, at least two different ones for each class.",
            ) from error
        parts = {"train": pool[train], HOLDOUT: pool[held]}
        notes.append(f"no val or test split: scored on a stratified hold-out of {HOLDOUT_FRACTION:.0%} (seed {seed})")
    return parts, notes


def _digest_groups(cache: Cache) -> NDArray[np.int64]:
    """(N,) the same number for byte-identical files."""
    digests = np.ascontiguousarray(cache.column("samples/digest")).view("V32").ravel()
    groups: NDArray[np.int64] = np.unique(digests, return_inverse=True)[1]
    return groups


def _check_classes(cache: Cache, parts: dict[str, Rows]) -> None:
    """Raise TrainingError for one class, or for a class that is scored but was never seen."""
    labels = cache.labels
    present = {split: set(np.unique(labels[rows]).tolist()) for split, rows in parts.items()}
    if len(present["train"]) < 2:
        only = cache.classes[next(iter(present["train"]))]
        raise TrainingError(
            f"All training images of {cache.path} have one class, {only!r}; there is nothing to tell apart.",
            hint="Add a folder with images of a second class beside it, and extract again.",
        )
    for split, found in present.items():
        if unseen := sorted(cache.classes[label] for label in found - present["train"]):
            raise TrainingError(
                f"Split {split} of {cache.path} has classes without usable training images: {', '.join(unseen[:8])}"
                f"{', ...' if len(unseen) > 8 else ''}.",
                hint="Add training images of these classes or take them out of the split, and extract again.",
            )


def _duplicates(cache: Cache, parts: dict[str, Rows], groups: NDArray[np.int64]) -> list[str]:
    """Notes on byte-identical images where they make scores flatter or labels doubtful."""
    notes = []
    train = np.unique(groups[parts["train"]])
    for split, rows in parts.items():
        leaked = 0 if split == "train" else int(np.isin(groups[rows], train).sum())
        if leaked:
            notes += [f"{leaked} images of {split} are byte-identical to training images: its score flatters"]
    rows = np.concatenate(list(parts.values()))
    pairs = np.unique(np.stack([groups[rows], cache.labels[rows]]), axis=1)
    if doubtful := int((np.unique(pairs[0], return_counts=True)[1] > 1).sum()):
        notes.append(f"{doubtful} pictures occur under more than one class, byte for byte")
    return notes


def _choices(estimator: Any) -> tuple[dict[str, Any], bool]:
    """What the fit decided, and whether the validation data it was given had a part in it."""
    if isinstance(estimator, LogisticHead):
        chosen = {"C": estimator.C_, "C_source": estimator.C_source_, "converged": estimator.converged_}
        return {
            **chosen,
            "iterations": estimator.n_iter_,
            "trials": estimator.trials_,
        }, estimator.C_source_ == "validation"
    chosen = {
        "best_epoch": estimator.best_epoch_,
        "epochs": estimator.n_iter_,
        "stopped_on": estimator.validation_source_,
        "history": estimator.history_,
    }
    return chosen, estimator.validation_source_ == "given"


def _metadata(cache: Cache, layer: str, result: Training, seed: int) -> dict[str, Any]:
    """What `predict` needs, and what a reader of the head file wants to know."""
    records: list[Record] = cache.provenance
    told = {name: value for name, value in result.to_dict().items() if name != "choices"}
    return {
        "spec": cache.spec,
        "key": cache.key,
        "layer": layer,
        "shape": list(cache.features(layer).shape[1:]),
        "weights_source": records[-1].get("weights", {}) if records else {},
        "training": {**told, "seed": seed, "cache": os.path.basename(cache.path)},
    }
