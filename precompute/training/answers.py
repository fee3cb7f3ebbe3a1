"""What a saved head says of samples, next to what is known of them: one class, several labels, or a number each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from precompute.cache import Cache
from precompute.errors import UsageError
from precompute.heads import LabelScores, NumberScores, SavedHead
from precompute.heads.scoring.scores import wilson_interval
from precompute.system.samples import IMAGES, Words, words_of_spec
from precompute.training.columns import SEPARATOR, Values, find_target, own_values
from precompute.training.kinds import task_of
from precompute.training.layers import joined, saved_inputs
from precompute.training.relabelling import Relabelling, recorded, recorded_columns
from precompute.training.scoring import answer, score
from precompute.training.targets import CLASSES, LABELS, NUMBER, Target
from precompute.training.views import averaged, mean_over


@dataclass(frozen=True)
class Prediction:
    """One image. label: the most probable class · true: the class of its folder or its label in a
    table, None where that is no class of the head."""

    id: str
    label: str
    probability: float
    true: str | None


@dataclass(frozen=True)
class LabelsPrediction:
    """One image. labels: those whose probability is above their threshold · probabilities: of every label of the head ·
    true: its labels, None where they are not known or are not all labels of the head."""

    id: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    true: tuple[str, ...] | None


@dataclass(frozen=True)
class NumberPrediction:
    """One image, the number predicted for it, and its true one, None where it is not known."""

    id: str
    number: float
    true: float | None


Item: TypeAlias = Prediction | LabelsPrediction | NumberPrediction
Truth: TypeAlias = Callable[[int], Any]


@dataclass(frozen=True)
class Predictions:
    """All images in the order of their ids. failed: (id, reason, detail) of those without a prediction.

    warnings: what the user should know of the engine that ran, and why nothing is scored · task: "classes", "labels" or
    "number" · labels: of a head for several, in the order of its probabilities · scores: of labels and numbers, None
    where none can be scored · head: the path of its file · words: what its samples are called.
    """

    classes: tuple[str, ...]
    items: tuple[Any, ...]
    failed: tuple[tuple[str, str, str], ...]
    warnings: tuple[str, ...]
    seconds: float
    task: str = CLASSES
    labels: tuple[str, ...] = ()
    scores: LabelScores | NumberScores | None = None
    head: str | None = None
    words: Words = IMAGES

    @property
    def scored(self) -> int:
        """Images whose class, labels or number is known, and known to the head."""
        return sum(item.true is not None for item in self.items)

    @property
    def accuracy(self) -> float | None:
        """Share of the scored images that are right; None where none can be scored, and of labels and numbers."""
        return self._hits() / self.scored if self.task == CLASSES and self.scored else None

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """Wilson's 95% interval of the accuracy."""
        return wilson_interval(self._hits(), self.scored) if self.task == CLASSES and self.scored else None

    def _hits(self) -> int:
        return sum(item.label == item.true for item in self.items)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        if self.task == CLASSES:
            known: dict[str, Any] = {
                "classes": self.classes,
                "scored": self.scored,
                "accuracy": self.accuracy,
                "accuracy_interval": self.accuracy_interval,
            }
        else:
            known = {"labels": self.labels} if self.task == LABELS else {}
            known |= {"scored": self.scored, "scores": self.scores and self.scores.to_dict()}
        return {
            "n": len(self.items),
            "task": self.task,
            **known,
            "predictions": [vars(item) for item in self.items],
            "failed": [{"id": name, "reason": reason, "detail": detail} for name, reason, detail in self.failed],
            "warnings": self.warnings,
            "seconds": self.seconds,
        }


class Answers:
    """What one head says, taken together row by row.

    path: of its file · layers: whose features it takes, side by side where they are several · averages: over how many
    views, 0 for none.
    """

    def __init__(self, path: str, saved: SavedHead) -> None:
        self.path, self.saved, self.task = path, saved, task_of(saved.head)
        self._inputs = saved_inputs(saved.metadata, path, int(saved.head.n_features_in_))
        self.layers = tuple(one.name for one in self._inputs) or (str(saved.metadata.get("layer")),)
        self.averages = averaged(saved.metadata)
        names = {CLASSES: "classes_", LABELS: "labels_"}.get(self.task)
        self.names = tuple(map(str, getattr(saved.head, names))) if names else ()
        self._rows: list[tuple[int, Item]] = []
        self._warnings: list[str] = []

    @property
    def n_features(self) -> int:
        return int(self.saved.head.n_features_in_)

    def of_view(self, activations: Sequence[Any], view: int) -> Any:
        """Its features (n, d) of one view of the activations (n, views, ...) of each of its layers."""
        of_view = [one[:, view] for one in activations]
        return joined(self._inputs, of_view) if self._inputs else of_view[0]

    @property
    def trained_elsewhere(self) -> bool:
        """Whether on a column or a table instead of the labels that its cache had."""
        known = recorded(self.saved.metadata)
        return bool(recorded_columns(self.saved.metadata)) or known.get("table") is not None

    def add(self, rows: Sequence[int], ids: Sequence[str], view: Callable[[int], Any], truth: Truth) -> None:
        """Predict features. view: gives those of one view (n, d) · truth: what is known of a row, None for nothing."""
        said = mean_over(lambda number: answer(self.saved.head, view(number), self.task), max(1, self.averages))
        if self.task == NUMBER:
            self._rows += [
                (row, NumberPrediction(name, number, truth(row)))
                for row, name, number in zip(rows, ids, said.tolist(), strict=True)
            ]
            return
        proba = self.saved.scaled(said)
        if self.task == CLASSES:
            best = proba.argmax(axis=1).tolist()
            highest = proba.max(axis=1).tolist()
            self._rows += [
                (row, Prediction(name, self.names[place], float(p), self._known(truth(row))))
                for row, name, place, p in zip(rows, ids, best, highest, strict=True)
            ]
            return
        there = proba > self.saved.head.thresholds_
        for row, name, has, values in zip(rows, ids, there.tolist(), proba.tolist(), strict=True):
            labels = tuple(label for label, yes in zip(self.names, has, strict=True) if yes)
            self._rows.append((row, LabelsPrediction(name, labels, tuple(values), self._known(truth(row)))))

    def _known(self, true: Any) -> Any:
        """What the head can be scored by: a class, or labels, that it knows."""
        if true is None:
            return None
        if self.task == CLASSES:
            return true if true in self.names else None
        return true if set(true) <= set(self.names) else None

    def result(self, failed: Sequence[tuple[str, str, str]], warnings: Sequence[str], seconds: float) -> Predictions:
        """All of it, in the order of the rows, with scores of what is known."""
        items = tuple(item for _, item in sorted(self._rows, key=lambda pair: pair[0]))
        classes = self.names if self.task == CLASSES else ()
        labels, scores = self.names if self.task == LABELS else (), self._scores(items)
        words = words_of_spec(self.saved.metadata.get("spec"))
        told = (*warnings, *self._warnings)
        return Predictions(classes, items, tuple(failed), told, seconds, self.task, labels, scores, self.path, words)

    def _scores(self, items: Sequence[Any]) -> Any:
        known = [item for item in items if item.true is not None]
        if self.task == CLASSES or not known:
            return None
        if self.task == NUMBER:
            true, said = (np.array([getattr(item, name) for item in known]) for name in ("true", "number"))
        else:
            true = np.array([[name in item.true for name in self.names] for item in known], np.uint8)
            said = np.array([item.probabilities for item in known])
        return score(self.saved.head, self.task, true, said, None)

    def truth_of_cache(self, cache: Cache) -> Truth:
        """Of the columns that the head was trained on, where the cache has them; else of its own labels, which say
        nothing of labels and numbers that come from elsewhere."""
        columns, known = recorded_columns(self.saved.metadata), recorded(self.saved.metadata)
        if columns and set(columns) <= set(cache.columns):
            separator = known.get("label_separator")
            relabelling = Relabelling(columns, task=self.task, separator=separator)
            return self._truth(lambda: relabelling.apply(cache)[1])
        return self.truth_of_labels(own_values(cache), are_meant=not self.trained_elsewhere)

    def truth_of_labels(self, values: Values, *, are_meant: bool) -> Truth:
        """Of a source's own labels. are_meant: whether these are what the head predicts, by what it was trained on or
        by the user's word. Labels of which none holds a separator are classes, and do not count as several."""
        separator = recorded(self.saved.metadata).get("label_separator")
        separator = separator if isinstance(separator, str) and separator else SEPARATOR
        is_one = self.task == LABELS and not any(separator in text for text in values.texts)
        if self.task != CLASSES and (not are_meant or is_one):
            return _nothing_known
        return self._truth(lambda: find_target(values, self.task, separator if self.task == LABELS else None)[0])

    def _truth(self, find: Callable[[], Target]) -> Truth:
        """Of the target that `find` gives; nothing, and a warning, where what is there is no such target."""
        try:
            return _by_row(find())
        except UsageError as error:
            self._warnings.append(f"{self.path} is not scored: {error.message}")
            return _nothing_known


def _nothing_known(row: int) -> None:
    del row


def _by_row(target: Target) -> Truth:
    def truth(row: int) -> Any:
        if not target.known[row]:
            return None
        value = target.values[row]
        if target.task == CLASSES:
            return target.names[value]
        return float(value) if target.task == NUMBER else tuple(target.names[i] for i in np.flatnonzero(value))

    return truth
