"""cache x head -> a fitted head and honest scores."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, open_cache
from precompute.errors import TrainingError, UsageError
from precompute.heads import LogisticHead, MLPHead, MLPSearch, RowView, Scores, evaluate, save_head
from precompute.heads.search import MLP_GRID
from precompute.selection import HOLDOUT, Rows, check_classes, digest_groups, duplicates, parts_of, whole_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from precompute.cache.provenance import Record

HEADS: Mapping[str, Any] = {"logistic": LogisticHead, "mlp": MLPHead}


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
    search: bool = False,
    time_budget: float | None = None,
    **settings: Any,
) -> Training:
    """Train a head on cached features and score it on images it has not seen.

    Trains on split train and scores on val and test; where the cache has no such splits, on a stratified hold-out of
    a fifth, in which byte-identical images never stand on both sides. What has to be chosen (C, when to stop) is
    chosen on val if there is a test split, else inside the training part, so that a score is left that chose nothing.

    head: "logistic" or "mlp". settings: parameters of LogisticHead or MLPHead. out: where to save the head, one
    .safetensors file that `predict` needs nothing else beside. search: try MLP_GRID, less what `settings` names, by
    MLPSearch, for no more than `time_budget` seconds where that is given.
    Raises TrainingError for labels that nothing can be learned from, CacheError for damaged rows (each is held against
    its checksum), HeadError, UsageError.
    """
    if head not in HEADS:
        raise UsageError(f"head must be one of {', '.join(HEADS)}. Got {head!r} instead.", hint="See --head.")
    if search and head != "mlp":
        raise UsageError(f"search is for the mlp head. Got {head!r} instead.", hint="Leave out --search.")
    if time_budget is not None and not search:
        raise UsageError("A time budget limits a search, and none was asked for.", hint="Add --search.")
    if not isinstance(cache, Cache):
        cache = open_cache(cache)
    features = cache.features(layer)
    layer = layer or cache.layers[0]
    parts, notes = parts_of(cache, whole_rows(cache, layer), seed)
    names = np.array(cache.classes, dtype=np.str_)
    labels = cache.labels
    digests = digest_groups(cache)
    check_classes(cache, parts)
    notes += duplicates(cache, parts, digests)

    def arrays(rows: Rows) -> tuple[RowView, NDArray[np.str_]]:
        return RowView(features, rows), names[labels[rows]]

    selection = "val" if "val" in parts and "test" in parts else None
    estimator = HEADS[head](random_state=seed, **settings)
    if search:
        estimator = _search_for(estimator, settings, time_budget)
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
    choices, used = _choices(estimator)
    if isinstance(estimator, MLPSearch):
        estimator = estimator.best_estimator_
    scores = {}
    for split in parts.keys() - {"train"}:
        X, y = arrays(parts[split])
        scores[split] = evaluate(y, estimator.predict_proba(X), estimator.classes_)
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


def _search_for(head: MLPHead, settings: Mapping[str, Any], time_budget: float | None) -> MLPSearch:
    """The search around `head` for all that `settings` leaves open."""
    grid = {name: values for name, values in MLP_GRID.items() if name not in settings}
    if not grid:
        raise UsageError(f"{', '.join(MLP_GRID)} are all given: nothing is left to search.", hint="Leave out --search.")
    return MLPSearch(head, param_grid=grid, time_budget=time_budget)


def _choices(estimator: Any) -> tuple[dict[str, Any], bool]:
    """What the fit decided, and whether the validation data it was given had a part in it."""
    if isinstance(estimator, LogisticHead):
        chosen = {"C": estimator.C_, "C_source": estimator.C_source_, "converged": estimator.converged_}
        return {
            **chosen,
            "iterations": estimator.n_iter_,
            "trials": estimator.trials_,
        }, estimator.C_source_ == "validation"
    if isinstance(estimator, MLPSearch):
        found, used = _choices(estimator.best_estimator_)
        names = ("best_params", "trials", "cut_short", "n_untried")
        return {**found, **{name: getattr(estimator, f"{name}_") for name in names}}, used
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
