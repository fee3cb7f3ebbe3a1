"""cache x head -> a fitted head and honest scores."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, open_cache
from precompute.errors import TrainingError, UsageError
from precompute.heads import LogisticHead, MLPSearch, RowView, Scores, save_head
from precompute.heads.persistence.head_file import HEAD
from precompute.system.output import check_output
from precompute.training.calibration import FITTED_ON, Calibration
from precompute.training.groups import group_names, join
from precompute.training.kinds import make_head
from precompute.training.leaks import Leaks
from precompute.training.membership import split_record
from precompute.training.published import find_protocol
from precompute.training.relabelling import Relabelling
from precompute.training.scoring import score_head
from precompute.training.splits import Rows, check_classes, digest_groups, parts_of, whole_rows
from precompute.training.views import AVERAGED, check_views, fit_rows, trained_features, view_notes

# Long, and of no use to whoever has the head: the report and --json hold them.
NOT_IN_FILE = {"choices", "leaks", "without_leaks", "two_labels"}
# Classes up to which a head file holds what scores say of each class and pair of classes: about 3 MB a split.
MOST_IN_FILE = 1000
NOT_OF_MANY = {"confusion", "per_class"}


@dataclass(frozen=True)
class Training:
    """A fitted head and how good it is.

    head: the estimator; its classes are the class names · rows: samples by split, as used · scores: by split ·
    leaks, without_leaks: what each split shares with the training images, and its scores without those, where any
    are left · two_labels: ids of pictures that occur under several classes · groups: how many the user's groups are
    after joining those that share a picture, None where none were given · calibration: None without split val ·
    selected_on: the scored split that chose a setting (its score flatters), None where every score is clean ·
    choices: what the fit decided, such as C and how · protocol: the number that a published protocol asks for ·
    notes: what the reader of the scores should know ·
    seconds: fitting, selection included; scoring and reading excluded.
    """

    head: Any
    kind: str
    layer: str
    rows: dict[str, int]
    scores: dict[str, Scores]
    leaks: dict[str, Leaks]
    without_leaks: dict[str, Scores]
    two_labels: list[list[str]]
    groups: int | None
    calibration: Calibration | None
    selected_on: str | None
    choices: dict[str, Any]
    protocol: dict[str, Any] | None
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
        }


def train_head(
    cache: Cache | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    head: str = "logistic",
    layer: str | None = None,
    seed: int = 0,
    groups: str | None = None,
    groups_file: str | os.PathLike[str] | None = None,
    groups_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
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
    a fifth, in which byte-identical images never stand on both sides. What has to be chosen (C, when to stop) is
    chosen on val if there is a test split, else inside the training part, so that a score is left that chose nothing.
    A logistic head that chose C on val is then fitted on val too, which is not scored any more.

    head: a key of HEADS. settings: parameters of that head's class. out: where to save the head, one
    .safetensors file that `predict` needs nothing else beside; overwrite: also where a file stands that is no head.
    groups: a regular expression with one part in
    parentheses that finds in each id what must stay on one side of hold-out and folds, such as `patient_(\\d+)`;
    groups_file: the same from a CSV file with the columns id and group; groups_column: from a further column of the
    cache. label_column, split_column: further columns with the labels and the splits, in place of the cache's own.
    labels: a CSV file with the columns id and label, joined by id; samples that it does not name have no label; expect:
    how many it must name at least. similarity: the cosine from which an image is
    suspected to be nearly one of the training images (0.9 unless given; if given, all images are compared, however many
    they are). calibrated: the head's probabilities are
    those at the temperature that fits val best; no prediction changes.
    protocol: "simclr" or "simclr:DATASET", see `precompute.training.published`; needs split test and the logistic head.
    plain_view: of a cache with several views, train on the plain one alone. By default every head is trained on all of
    them, in which a sample counts once (see `precompute.training.views`). average_views: predict, and score, by the
    mean of the probabilities of all views, in place of those of the plain view.
    search: try MLP_GRID, less what `settings` names, by MLPSearch, within `time_budget` seconds where that is given.
    Raises TrainingError for labels that nothing can be learned from, CacheError for damaged rows (each is compared with
    its checksum), HeadError, UsageError.
    """
    followed = find_protocol(protocol) if protocol is not None else None
    if followed:
        settings = followed.settings(head, settings, calibrated=calibrated)
    estimator = make_head(head, settings, seed=seed, search=search)
    if not isinstance(cache, Cache):
        cache = open_cache(cache)
    if out is not None:  # before the training, not after it
        check_output(out, HEAD, overwrite=overwrite, inputs=(cache.path, groups_file, labels))
    table = None if labels is None else os.fspath(labels)
    relabelling = Relabelling(label_column, split_column, table, expect)
    cache, labelled = relabelling.apply(cache)
    features, views = trained_features(cache, layer, plain=plain_view)
    layer = layer or cache.layers[0]
    check_views(cache, views, average=average_views, plain_only=followed is not None)
    if similarity is not None and not 0 < similarity <= 1:
        raise UsageError(f"similarity must be above 0 and at most 1. Got {similarity!r} instead.", hint="Try 0.9.")
    whole = whole_rows(cache, layer)
    digests, together, n_groups = _together(
        cache, np.flatnonzero(whole & (cache.labels >= 0)), groups, groups_file, groups_column
    )
    parts, notes = parts_of(cache, whole, seed, together)
    notes = [*labelled, *view_notes(cache, views, average=average_views), *notes]
    if followed:
        parts, more = followed.parts(parts, cache.labels, together, seed)
        notes += more
    if calibrated and FITTED_ON not in parts:
        raise UsageError(
            f"{cache.path} has no split val to fit a temperature on.",
            hint="Add a folder val/ beside train/ and extract again, or leave --calibrate away.",
        )
    names = np.array(cache.classes, dtype=np.str_)
    label = cache.labels
    check_classes(cache, parts)

    # What a temperature is fitted on must not have been trained on, and C's choice ends in training on val too
    selection = "val" if "val" in parts and "test" in parts and not calibrated else None
    train, held = parts["train"], parts[selection] if selection else None
    validation = None if held is None else (RowView(cache.plain_features(layer), held), names[label[held]])
    began = time.monotonic()
    try:
        fit_rows(
            *(estimator, features, views, train, names[label[train]]), groups=together[train], validation=validation
        )
    except ValueError as error:
        raise TrainingError(
            f"The {head} head cannot be trained: {error}",
            hint="Check the settings and the cache: precompute info CACHE.",
        ) from error
    seconds = time.monotonic() - began
    choices, used_validation = estimator.choices(), estimator.used_validation()
    if isinstance(estimator, MLPSearch):
        estimator = estimator.best_estimator_
    rows = {split: len(found) for split, found in parts.items()}
    if used_validation and isinstance(estimator, LogisticHead):
        parts["train"] = np.union1d(parts["train"], parts.pop("val"))
        notes.append("val chose C and was then trained on as well, so it has no score; choices hold that of each C")
    scored = score_head(
        *(estimator, cache, layer, parts, digests, together),
        calibrated=calibrated,
        similarity=similarity,
        average=average_views,
    )
    result = Training(
        head=estimator,
        kind=head,
        layer=layer,
        rows=rows,
        scores=scored.scores,
        leaks=scored.leaks,
        without_leaks=scored.without_leaks,
        two_labels=scored.two_labels,
        groups=n_groups,
        calibration=scored.calibration,
        selected_on=selection if used_validation and selection in scored.scores else None,
        choices=choices,
        protocol=followed.result(scored.scores["test"]) if followed else None,
        notes=(*notes, *scored.notes),
        seconds=seconds,
    )
    if out is not None:
        save_head(
            out,
            estimator,
            metadata=_metadata(cache, layer, result, seed, parts, relabelling, average=average_views),
            overwrite=overwrite,
        )
    return result


def _together(
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


def _metadata(
    cache: Cache,
    layer: str,
    result: Training,
    seed: int,
    parts: dict[str, Rows],
    relabelling: Relabelling,
    *,
    average: bool,
) -> dict[str, Any]:
    """What `predict` needs, and what a reader of the head file wants to know."""
    summary = {name: value for name, value in result.to_dict().items() if name not in NOT_IN_FILE}
    if len(result.classes) > MOST_IN_FILE:
        summary["scores"] = {
            split: {name: value for name, value in scores.items() if name not in NOT_OF_MANY}
            for split, scores in summary["scores"].items()
        }
    calibration = result.calibration
    return {
        "spec": cache.spec,
        "key": cache.key,
        "layer": layer,
        "shape": list(cache.plain_features(layer).shape[1:]),
        **({AVERAGED: cache.views} if average else {}),
        "weights_source": cache.last_run.get("weights", {}),
        **({"temperature": calibration.temperature} if calibration and calibration.applied else {}),
        "training": {
            **summary,
            "seed": seed,
            "cache": os.path.basename(cache.path),
            "split": split_record(cache, parts),
            **({"relabelling": record} if (record := relabelling.record()) else {}),
        },
    }
