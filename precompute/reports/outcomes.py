"""What a head said of each sample of one split compared with the truth: which are right, and how confident it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.reports.scored import ScoredHead
from precompute.training.targets import CLASSES, LABELS, Rows

MOST_ITEMS = 20_000  # samples of a split that a report lists one by one: about a megabyte
MOST_MISTAKES = 100
MOST_OF_CELL = 100
MOST_CLASSES = 40  # a matrix with more rows cannot be read
MOST_CELLS = 40  # of the confusions that stand in its place


@dataclass(frozen=True)
class Outcomes:
    """(n,) each, in the order of the split's rows.

    true, predicted: places of classes, (n, L) bool of labels, or numbers · probability: of the predicted class; of
    labels that of the one in `wrong` · wrong: of labels the most confidently wrong one, -1 for none · right: all of
    it · badness: by which mistakes are put in order, the worst first; -inf for what is right.
    """

    rows: Rows
    task: str
    true: NDArray[Any]
    predicted: NDArray[Any]
    probability: NDArray[np.float64]
    wrong: NDArray[np.int64]
    right: NDArray[np.bool_]
    badness: NDArray[np.float64]

    def mistakes(self, most: int = MOST_MISTAKES) -> Rows:
        """Which of the samples, the worst first; of equals the first in the file. Of numbers the largest errors."""
        order = np.argsort(-self.badness, kind="stable")[:most]
        found: Rows = order[self.badness[order] > -np.inf]
        return found


def outcomes_of(head: ScoredHead, split: str) -> Outcomes:
    """Of one scored split of a head."""
    rows, said = head.parts[split], head.answers[split]
    true: NDArray[Any] = head.side.target.of(rows)
    none = np.full(len(rows), -1)
    if head.task == CLASSES:
        places = np.searchsorted(head.side.saved.head.classes_, true)
        best = said.argmax(axis=1)
        confidence = said[np.arange(len(rows)), best].astype(np.float64)
        right = best == places
        badness = np.where(right, -np.inf, confidence)
        return Outcomes(rows, head.task, places, best, confidence, none, right, badness)
    if head.task == LABELS:
        has, there = true == 1, said > head.side.saved.head.thresholds_
        surprise = np.where(has != there, np.abs(said.astype(np.float64) - has), -np.inf)
        worst = surprise.argmax(axis=1)
        badness = surprise[np.arange(len(rows)), worst]
        right = badness == -np.inf
        probability = said[np.arange(len(rows)), worst].astype(np.float64)
        return Outcomes(rows, head.task, has, there, probability, np.where(right, -1, worst), right, badness)
    numbers = said.astype(np.float64)
    error = np.abs(numbers - true)
    return Outcomes(
        rows, head.task, true, numbers, np.zeros(len(rows)), none, error == 0, np.where(error == 0, -np.inf, error)
    )


@dataclass(frozen=True)
class Cells:
    """Cells of a confusion matrix and which samples are in each, the most confident first.

    matrix: (K, K) for up to MOST_CLASSES classes, else None · largest: (true, predicted, samples) of the most frequent
    confusions otherwise · members: by cell, MOST_OF_CELL at most.
    """

    matrix: NDArray[np.int64] | None
    largest: list[tuple[int, int, int]]
    members: dict[tuple[int, int], Rows]


def cells_of(found: Outcomes, scores: Any, n_classes: int) -> Cells:
    """Of the classes of one split. scores: its `Scores`, whose confusion matrix this is."""
    true, predicted, count = scores.confusions()
    if n_classes <= MOST_CLASSES:
        shown = list(zip(true.tolist(), predicted.tolist(), count.tolist(), strict=True))
        matrix, largest = np.asarray(scores.confusion), []
    else:
        wrong = np.flatnonzero(true != predicted)
        chosen = wrong[np.argsort(-count[wrong], kind="stable")[:MOST_CELLS]]
        shown = [(int(true[i]), int(predicted[i]), int(count[i])) for i in chosen]
        matrix, largest = None, shown
    order = np.argsort(-found.probability, kind="stable")
    code = (found.true * n_classes + found.predicted)[order]
    by_cell = np.argsort(code, kind="stable")  # inside a cell the most confident stay first
    code, order = code[by_cell], order[by_cell]
    members = {}
    for i, j, _ in shown:
        start = np.searchsorted(code, i * n_classes + j)
        stop = np.searchsorted(code, i * n_classes + j, side="right")
        members[i, j] = order[start : min(stop, start + MOST_OF_CELL)]
    return Cells(matrix, largest, members)
