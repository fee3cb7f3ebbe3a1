"""cache x head -> a fitted head and honest scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, open_cache
from precompute.errors import UsageError
from precompute.heads import save_head
from precompute.heads.persistence.head_file import HEAD
from precompute.system.output import check_output
from precompute.training.calibration import FITTED_ON, Calibration
from precompute.training.fitting import Seen, fit_head
from precompute.training.groups import group_names, join
from precompute.training.kinds import DEFAULT_HEAD, check_asked, fit_to_layer, head_of_task, make_head
from precompute.training.layers import JoinedCache, with_layers
from precompute.training.leaks import Leaks
from precompute.training.membership import split_record
from precompute.training.published import find_protocol
from precompute.training.relabelling import Relabelling
from precompute.training.scoring import score_head
from precompute.training.splits import digest_groups, parts_of, whole_rows
from precompute.training.targets import AUTO, CLASSES, LABELS, NAMES, Rows, Target, check_target
from precompute.training.views import AVERAGED, check_views, trained_features, view_notes

# Long, and of no use to whoever has the head: the report and --json hold them.
NOT_IN_FILE = {"choices", "leaks", "without_leaks", "two_labels"}
# Classes up to which a head file holds what scores say of each class and pair of classes: about 3 MB a split.
MOST_IN_FILE = 1000
NOT_OF_MANY = {"confusion", "per_class", "per_label"}


@dataclass(frozen=True)
class Training:
    """A fitted head and how good it is.

    layer, layers: whose features it takes; of several layers `layer` has all their names · head: the estimator; its
    classes are the class names · task: "classes", "labels" or "number" · rows: samples by split, as used · scores: by
    split, of the kind that the task has · leaks, without_leaks: what each split shares with the training images, and
    its scores without those, where any are left · two_labels: ids of pictures that occur under several classes, or with
    other labels or numbers · groups: how many the user's groups are after joining those that share a picture, None
    where none were given · calibration: None without split val · selected_on: the scored split that chose a setting
    (its score is optimistic), None where every score is clean · choices: what the fit decided, such as C and how ·
    protocol: the number that a published protocol requests · notes: what the reader of the scores should know ·
    seconds: fitting, selection included; scoring and reading excluded · unit: what the samples are called.
    """

    head: Any
    task: str
    kind: str
    layer: str
    rows: dict[str, int]
    scores: dict[str, Any]
    leaks: dict[str, Leaks]
    without_leaks: dict[str, Any]
    two_labels: list[list[str]]
    groups: int | None
    calibration: Calibration | None
    selected_on: str | None
    choices: dict[str, Any]
    protocol: dict[str, Any] | None
    notes: tuple[str, ...]
    seconds: float
    layers: tuple[str, ...]
    unit: str = field(default="images", kw_only=True)

    @property
    def classes(self) -> list[str]:
        """Names of the classes; none where it predicts labels or numbers."""
        return [str(name) for name in self.head.classes_] if self.task == CLASSES else []

    @property
    def labels(self) -> list[str]:
        """Names of the labels, of which a sample may have several; none where it predicts classes or numbers."""
        return [str(name) for name in self.head.labels_] if self.task == LABELS else []

    @property
    def thresholds(self) -> dict[str, float]:
        """The probability above which a label is predicted, by label."""
        return dict(zip(self.labels, map(float, self.head.thresholds_), strict=True)) if self.task == LABELS else {}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "head": self.kind,
            "task": self.task,
            "layer": self.layer,
            "layers": list(self.layers),
            "classes": self.classes,
            **({"labels": self.labels, "thresholds": self.thresholds} if self.task == LABELS else {}),
            "rows": self.rows,
            "scores": {split: scores.to_dict() for split, scores in self.scores.items()},
            "leaks": {split: leaks.to_dict() for split, leaks in self.leaks.items()},
            "without_leaks": {split: scores.to_dict() for split, scores in self.without_leaks.items()},
            "two_labels": self.two_labels,
            "groups": self.groups,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "selected_on": self.selected_on,
            "choices": self.choices,
            "protocol": self.protocol,
            "notes": list(self.notes),
            "seconds": self.seconds,
            "unit": self.unit,
        }


def train_head(
    cache: Cache | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    head: str | None = None,
    layer: str | Sequence[str] | None = None,
    seed: int = 0,
    groups: str | None = None,
    groups_file: str | os.PathLike[str] | None = None,
    groups_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    split_column: str | None = None,
    task: str = AUTO,
    labels: str | os.PathLike[str] | None = None,
    expect: int | None = None,
    similarity: float | None = None,
    plain_view: bool = False,
    average_views: bool = False,
    calibrated: bool = False,
    search: bool = False,
    protocol: str | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> Training:
    """Train a head on cached features and score it on images it has not seen.

    Trains on split train and scores on val and test; where the cache has no such splits, on a stratified hold-out of
    a fifth, in which byte-identical images are never on both sides. Settings (C, when to stop) are
    chosen on val if there is a test split, else inside the training part, so that one score is independent of them.
    A logistic head that chose C on val is then fitted on val too, and val gets no score.

    head: logistic (the default), ridge, mlp, knn, centroid, attentive or selected; for labels logistic, ridge, mlp or
    knn, for numbers ridge (the default there), mlp or knn. settings: parameters of that head's class.
    layer: one of several; or a list of some, or "all": their features, pooled where they hold positions and
    concatenated (see `precompute.training.layers`). The selected head, the default there, selects among them; others
    use all. attentive needs one layer with positions. out: where to save the head, one
    .safetensors file, all that `predict` needs; overwrite: also replace a file that is not a head.
    groups: a regular expression with one part in
    parentheses that extracts the group from each id, kept on one side of hold-out and folds, such as `patient_(\\d+)`;
    groups_file: the same from a CSV file with the columns id and group; groups_column: from a further column of the
    cache. label_column, split_column: further columns with the labels and the splits, instead of the cache's own;
    several label columns hold 0 and 1, and each is a label. labels: a CSV file with the columns id (or path) and label;
    samples that it does not name have no label; expect: how many it must name at least.
    task: "classes", "labels" (several a sample), "number", or "auto", which finds it: text in which any value holds `;`
    (or the label_separator) is labels, numbers of which any is not whole are numbers, all else is classes.
    similarity: the cosine from which a sample is
    suspected near-duplicate of a training sample (default: 0.9, for clips 0.98; if given, all samples are
    compared, however many they are). calibrated: the head's probabilities use
    the temperature that fits val best; no prediction changes.
    protocol: "simclr" or "simclr:DATASET", see `precompute.training.published`; needs split test and the logistic head.
    plain_view: with several views, train only on the plain one. By default every head is trained on all of
    them, and a sample counts once (see `precompute.training.views`). average_views: predict, and score, by the
    mean of the probabilities of all views, instead of those of the plain view.
    search: try MLP_GRID, except what `settings` fixes, by MLPSearch, within `time_budget` seconds if given.
    protocol, calibrated and search are for classes.
    Raises TrainingError for labels that nothing can be learned from, CacheError for damaged rows (each is compared with
    its checksum), HeadError, UsageError.
    """
    check_asked(head, settings, search=search)
    followed = find_protocol(protocol) if protocol is not None else None
    if followed:
        settings = followed.settings(head or DEFAULT_HEAD[CLASSES], settings, calibrated=calibrated)
    if similarity is not None and not 0 < similarity <= 1:
        raise UsageError(f"similarity must be above 0 and at most 1. Got {similarity!r} instead.", hint="Try 0.9.")
    relabelling = Relabelling.of(
        label_column, split_column, labels, expected=expect, task=task, separator=label_separator
    )
    if not isinstance(cache, Cache):
        cache = open_cache(cache)
    if out is not None:  # before the training, not after it
        check_output(out, HEAD, overwrite=overwrite, inputs=(cache.path, groups_file, labels))
    cache, target, labelled = relabelling.apply(cache)
    _check_task(target.task, calibrated=calibrated, protocol=protocol)
    cache, layer, pooled = with_layers(cache, layer)
    head = head_of_task(head, target.task, several=isinstance(cache, JoinedCache))
    estimator = make_head(head, settings, seed=seed, search=search, task=target.task)
    features, views = trained_features(cache, layer, plain=plain_view)
    layer = layer or cache.layers[0]
    fit_to_layer(estimator, cache, layer)
    check_views(cache, views, average=average_views, plain_only=followed is not None)
    whole = whole_rows(cache, layer)
    digests, together, n_groups = kept_together(
        cache, np.flatnonzero(whole & target.known), groups, groups_file, groups_column
    )
    parts, notes = parts_of(cache, whole, seed, together, target)
    if isinstance(cache, JoinedCache):
        cache = cache.scaled(parts["train"])
        features, _ = trained_features(cache, layer, plain=plain_view)
    notes = [*labelled, *pooled, *view_notes(cache, views, average=average_views), *notes]
    if followed:
        parts, more = followed.parts(parts, target.values, together, seed, cache.words.plural)
        notes += more
    if calibrated and FITTED_ON not in parts:
        raise UsageError(
            f"{cache.path} has no split val to fit a temperature on.",
            hint="Add a folder val/ next to train/ and extract again, or leave out --calibrate.",
        )
    notes += check_target(target, parts, cache.path, cache.words)
    # What a temperature is fitted on must not have been trained on, and C's choice ends in training on val too
    selection = "val" if "val" in parts and "test" in parts and not calibrated else None
    seen = Seen(cache, layer, features, views, average_views)
    fitted = fit_head(head, estimator, seen, target, parts, together, selection)
    estimator, parts = fitted.estimator, fitted.parts
    notes += fitted.notes
    scored = score_head(
        *(estimator, cache, layer, target, parts, digests, together),
        calibrated=calibrated,
        similarity=similarity,
        average=average_views,
    )
    result = Training(
        head=estimator,
        task=target.task,
        kind=head,
        layer=layer,
        rows=fitted.rows,
        scores=scored.scores,
        leaks=scored.leaks,
        without_leaks=scored.without_leaks,
        two_labels=scored.two_labels,
        groups=n_groups,
        calibration=scored.calibration,
        selected_on=selection if fitted.used_validation and selection in scored.scores else None,
        choices=fitted.choices,
        protocol=followed.result(scored.scores["test"]) if followed else None,
        notes=(*notes, *scored.notes),
        seconds=fitted.seconds,
        layers=tuple(one.name for one in cache.inputs) if isinstance(cache, JoinedCache) else (layer,),
        unit=cache.words.plural,
    )
    if out is not None:
        asked = asked_record(
            groups=groups, groups_file=groups_file, groups_column=groups_column, similarity=similarity, plain=plain_view
        )
        metadata = _metadata(cache, layer, target, result, seed, parts, relabelling, asked, average=average_views)
        save_head(out, estimator, metadata=metadata, overwrite=overwrite)
    return result


def _check_task(task: str, *, calibrated: bool, protocol: str | None) -> None:
    """Raise UsageError for what makes sense for classes alone."""
    asked = {"--calibrate": calibrated, "--protocol": protocol is not None}
    if task != CLASSES and (given := [option for option, value in asked.items() if value]):
        raise UsageError(
            f"{given[0]} is for --task {CLASSES}, and this target is {NAMES[task]}.",
            hint=f"Leave out {given[0]}, or give --task {CLASSES}.",
        )


def asked_record(
    *,
    groups: str | None,
    groups_file: str | os.PathLike[str] | None,
    groups_column: str | None,
    similarity: float | None,
    plain: bool,
) -> dict[str, Any]:
    """For a head's file, what else its scores and leaks depend on besides its cache; empty where nothing was given."""
    file = None if groups_file is None else os.path.basename(os.fspath(groups_file))
    given = {"groups": groups, "groups_file": file, "groups_column": groups_column, "similarity": similarity}
    given["plain_view"] = True if plain else None
    return {name: value for name, value in given.items() if value is not None}


def kept_together(
    cache: Cache, rows: Rows, pattern: str | None, file: str | os.PathLike[str] | None, column: str | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], int | None]:
    """(N,) the same number for identical files; the same for what must stay together; how many groups those are."""
    digests = digest_groups(cache)
    names = group_names(cache, rows, pattern=pattern, file=file, column=column)
    if names is None or not len(rows):
        return digests, digests, None
    together = np.full(len(cache), -1, np.int64)
    together[rows] = join(digests[rows], names)
    return digests, together, len(np.unique(together[rows]))


def file_summary(result: dict[str, Any], target: Target) -> dict[str, Any]:
    """What of a result a head's file holds."""
    summary = {name: value for name, value in result.items() if name not in NOT_IN_FILE}
    if len(target.names) > MOST_IN_FILE:
        summary["scores"] = {
            split: {name: value for name, value in scores.items() if name not in NOT_OF_MANY}
            for split, scores in summary["scores"].items()
        }
    return summary


def _layers(cache: Cache, layer: str) -> dict[str, Any]:
    """Which features a head takes: `layer` and its shape, or for several `layers` and how each becomes features."""
    if isinstance(cache, JoinedCache):
        return {"layers": [one.to_dict() for one in cache.inputs]}
    return {"layer": layer, "shape": list(cache.plain_features(layer).shape[1:])}


def _metadata(
    cache: Cache,
    layer: str,
    target: Target,
    result: Training,
    seed: int,
    parts: dict[str, Rows],
    relabelling: Relabelling,
    asked: dict[str, Any],
    *,
    average: bool,
) -> dict[str, Any]:
    """What `predict` needs, and what a reader of the head file wants to know."""
    calibration = result.calibration
    return {
        "spec": cache.spec,
        "key": cache.key,
        **_layers(cache, layer),
        **({AVERAGED: cache.views} if average else {}),
        "weights_source": cache.last_run.get("weights", {}),
        **({"temperature": calibration.temperature} if calibration and calibration.applied else {}),
        "training": {
            **file_summary(result.to_dict(), target),
            "seed": seed,
            "cache": os.path.basename(cache.path),
            "split": split_record(cache, target, parts),
            **({"relabelling": record} if (record := relabelling.record()) else {}),
            **({"asked": asked} if asked else {}),
        },
    }
