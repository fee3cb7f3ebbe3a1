"""A head on the cache that it was trained on: what it says of the samples that it has not seen, scored as `train-head`
scored it, by the same code."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.evaluation.comparison import Side, Where, side_of
from precompute.heads import RowView
from precompute.training.calibration import scaled
from precompute.training.head import Training, kept_together
from precompute.training.layers import pooled_features
from precompute.training.membership import PARTS
from precompute.training.scoring import SCORED, Scored, answer, score_answers
from precompute.training.targets import LABELS, NUMBER, Rows
from precompute.training.views import averaged, predicted

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Given:
    """What a head's scores depend on that its file cannot hold. labels: the table of labels · groups, groups_file: see
    `train_head`, where the head's file does not say it."""

    labels: Path | None = None
    groups: str | None = None
    groups_file: Path | None = None


@dataclass(frozen=True)
class ScoredHead:
    """side: the head and its cache · parts: rows by split, as it used them · answers: by scored split, probabilities
    (n, K) of classes at its temperature, (n, L) of labels, or numbers (n,) · scored: as `train-head` had it · groups:
    how many the user's are, None without."""

    side: Side
    parts: dict[str, Rows]
    answers: dict[str, NDArray[np.floating]]
    scored: Scored
    groups: int | None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return os.path.basename(self.side.name)

    @property
    def task(self) -> str:
        return self.side.target.task

    @property
    def names(self) -> list[str]:
        """Of classes or labels, in the order of its answers; none of numbers."""
        head: Any = self.side.saved.head
        return [] if self.task == NUMBER else [str(n) for n in (head.labels_ if self.task == LABELS else head.classes_)]

    @property
    def training(self) -> dict[str, Any]:
        """What its file says of the training; it may come from a stranger."""
        found = self.side.saved.metadata.get("training")
        return found if isinstance(found, dict) else {}

    @property
    def splits(self) -> list[str]:
        """Scored ones, the one that counts first: test, which chose nothing, before val."""
        return sorted(self.answers, key=("test", "val", SCORED[2]).index)


def score_saved(
    path: Path,
    cache: Path,
    where: Where,
    given: Given,
    opened: contextlib.ExitStack,
    *,
    trained: Training | None = None,
) -> ScoredHead:
    """Open a head, tail or network and score it on every split of its cache that it was not trained on.

    opened: closes what computes features from images · trained: what training it gave, whose scores are then not
    computed again. Raises HeadMismatchError where the cache is not the one that it was trained on, or holds other
    features; UsageError for groups that cannot be found; what `compare` raises.
    """
    side = side_of(path, cache, where, opened, labels=given.labels, labels_option="--labels")
    target, head, metadata = side.target, side.saved.head, side.saved.metadata
    usable = side.whole & target.known
    parts = {
        name: rows
        for code, name in enumerate(PARTS)
        if code and len(rows := np.flatnonzero((side.codes == code) & usable))
    }
    training = metadata.get("training")
    training = training if isinstance(training, dict) else {}
    asked = training.get("asked")
    asked = asked if isinstance(asked, dict) else {}
    grouping, notes = _grouping(given, training, side)
    digests, together, groups = kept_together(side.cache, np.flatnonzero(usable), *grouping)
    average = bool(averaged(metadata))

    def said(rows: Rows) -> NDArray[np.floating]:
        if side.images is not None:
            return answer(head, RowView(side.images, rows), target.task)
        return predicted(lambda X: answer(head, X, target.task), side.cache, side.layer, rows, average=average)

    raw = {split: said(parts[split]) for split in SCORED if split in parts and "train" in parts}
    if trained is not None:
        scored = Scored(
            trained.scores,
            trained.leaks,
            trained.without_leaks,
            trained.two_labels,
            trained.calibration,
            list(trained.notes),
        )
        answers = {split: scaled(p, scored.calibration) for split, p in raw.items() if split in scored.scores}
        return ScoredHead(side, parts, answers, scored, groups, notes)
    calibration = training.get("calibration")
    applied = isinstance(calibration, dict) and calibration.get("applied") is True and "val" in raw
    similarity = asked.get("similarity")
    scored = score_answers(
        *(head, raw, side.cache, _compared_by(side), target, parts, digests, together),
        calibrated=applied,
        similarity=float(similarity) if isinstance(similarity, int | float) and 0 < similarity <= 1 else None,
    )
    answers = {split: scaled(p, scored.calibration) for split, p in raw.items()}
    return ScoredHead(side, parts, answers, scored, groups, notes)


def recorded_grouping(training: dict[str, Any]) -> tuple[str | None, str | None]:
    """Pattern or column of the groups that a head was trained with, at most one of them; (None, None) without, and
    where they came from a file, which a head does not hold."""
    asked = training.get("asked")
    asked = asked if isinstance(asked, dict) else {}
    pattern, column = asked.get("groups"), asked.get("groups_column")
    if isinstance(pattern, str):
        return pattern, None
    return None, column if isinstance(column, str) else None


def _grouping(
    given: Given, training: dict[str, Any], side: Side
) -> tuple[tuple[str | None, Path | None, str | None], list[str]]:
    """Pattern, file and column of the user's groups, of which at most one is there, and what there is to say of it."""
    if given.groups is not None or given.groups_file is not None:
        return (given.groups, given.groups_file, None), []
    pattern, column = recorded_grouping(training)
    if pattern is not None or column is not None:
        return (pattern, None, column), []
    if training.get("groups") is None:
        return (None, None, None), []
    return (None, None, None), [
        f"{os.path.basename(side.name)} was trained with groups, which its file does not hold: intervals count each "
        f"{side.cache.words.one} as one observation; give --groups or --groups-file for those of the training"
    ]


def _compared_by(side: Side) -> Any:
    """The features (N, ...) by which near-duplicates are found."""
    if side.images is not None:
        return side.cache.plain_features(side.cache.layers[0])
    tail = side.saved.metadata.get("training", {}).get("head") == "tail"
    return pooled_features(side.cache, side.layer) if tail else side.cache.plain_features(side.layer)
