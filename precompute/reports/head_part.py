"""One head in the document of a report: its verdict, scores, confusions, mistakes, reliability and leaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.heads.scoring.calibration import BINS, reliability
from precompute.heads.scoring.scores import wilson_interval
from precompute.reports.commands import without_folders
from precompute.reports.outcomes import MOST_ITEMS, Cells, Outcomes, cells_of, outcomes_of
from precompute.reports.pairs import leak_pairs
from precompute.reports.places import Places, readable
from precompute.reports.scored import ScoredHead
from precompute.training.calibration import FITTED_ON
from precompute.training.leaks import Leaks
from precompute.training.score_names import LINES_OF, interval_of, percent
from precompute.training.targets import CLASSES, LABELS, NUMBER

MOST_CHOICES = 20  # values of a list among what a head chose
OF_SOLVERS = {
    "objective",
    "gap",
    "iterations",
    "stopped_early",
    "converged",
}  # which `summary` speaks of where it matters
DIGITS = 5  # of a probability


def head_part(head: ScoredHead, places: Places) -> dict[str, Any]:
    """JSON-ready. places: gives each sample that is referred to its place in the report."""
    training, fitted = head.training, head.side.saved.head
    choices = fitted.choices()
    selected = training.get("selected_on")
    return {
        "name": readable(head.name),
        "kind": str(training.get("head")),
        "layer": str(training.get("layer")),
        "trained_on": len(head.parts["train"]) if "train" in head.parts else 0,
        "seconds": _number(training.get("seconds")),
        "summary": fitted.summary(),
        "choices": {name: value for name, value in choices.items() if name not in OF_SOLVERS and _is_short(value)},
        "seed": training.get("seed") if isinstance(training.get("seed"), int) else None,
        "selected_on": selected if isinstance(selected, str) else None,
        "groups": head.groups,
        "notes": [readable(without_folders(line)) for line in [*_lines(training.get("notes")), *head.notes]],
        "scored": [_scored(head, split, places) for split in head.splits],
    }


def _scored(head: ScoredHead, split: str, places: Places) -> dict[str, Any]:
    scores, found = head.scored.scores[split], outcomes_of(head, split)
    cells = cells_of(found, scores, len(head.names)) if head.task == CLASSES else None
    mistakes = found.mistakes()
    chosen = _chosen(found, cells, mistakes)
    place_of = np.full(len(found.rows), -1, np.int64)
    place_of[chosen] = np.arange(len(chosen))
    return {
        "split": split,
        "n": len(found.rows),
        "note": _note(head, split),
        "verdict": verdict(head, split),
        "metrics": list(_metrics(head, split)),
        "per_class": _per_class(head, split),
        "confusion": None if cells is None else _confusion(cells, place_of),
        "items": _items(found, chosen, places),
        "mistakes": place_of[mistakes].tolist(),
        "reliability": _reliability(head, split, found) if head.task == CLASSES else None,
        "leaks": _leaks(head, split, places),
    }


def verdict(head: ScoredHead, split: str, *, scores: Any = None) -> dict[str, Any]:
    """The first score of the task, with its interval, and the same in words."""
    scores, unit = head.scored.scores[split] if scores is None else scores, head.side.cache.words.plural
    name, title, form = LINES_OF[head.task][0]
    value, ends = getattr(scores, name), interval_of(scores, name, grouped=head.groups is not None)
    said = None if ends is None else f"95%: {form(ends[0])} to {form(ends[1])}"
    behind = "" if said is None else f" ({said})"
    if value is None:
        words = f"{title} is not defined on {scores.n:,} {unit}: {scores.undefined.get(name, 'no reason is known')}"
    elif head.task == CLASSES:
        words = f"{form(value)} of {scores.n:,} {unit} are right{behind}"
    else:
        words = f"{title} {form(value)} on {scores.n:,} {unit}{behind}"
    return {
        "metric": title,
        "value": value,
        "interval": None if ends is None else list(ends),
        "percent": form is percent,
        "text": None if value is None else form(value),
        "n": scores.n,
        "words": words,
    }


def _note(head: ScoredHead, split: str) -> str | None:
    if head.training.get("selected_on") == split:
        return f"{split} chose a setting, so its score is optimistic"
    calibration = head.scored.calibration
    if calibration is not None and calibration.applied and split == FITTED_ON:
        return "val chose the temperature: its log loss and calibration are optimistic"
    return None


def _metrics(head: ScoredHead, split: str) -> Iterator[dict[str, Any]]:
    scores = head.scored.scores[split]
    for name, title, form in LINES_OF[head.task]:
        value, ends = getattr(scores, name), interval_of(scores, name, grouped=head.groups is not None)
        if value is None and name == "top5_accuracy":
            continue
        chance = getattr(scores, "calibration_error_by_chance", None) if name == "calibration_error" else None
        text = None if ends is None else f"{form(ends[0])} to {form(ends[1])}"
        yield {
            "name": title,
            "value": value,
            "interval": None if ends is None else list(ends),
            "percent": form is percent,
            "text": "-" if value is None else form(value),
            "interval_text": text if chance is None else f"by chance to {form(chance)}",
            "undefined": scores.undefined.get(name),
        }


def _per_class(head: ScoredHead, split: str) -> list[dict[str, Any]] | None:
    scores = head.scored.scores[split]
    if head.task == NUMBER:
        return None
    if head.task == LABELS:
        names = ("predicted", "threshold", "average_precision", "auc", "precision", "recall", "f1")
        return [
            {"class": place, "n": row["positives"], **{name: row[name] for name in names}}
            for place, row in enumerate(scores.per_label)
        ]
    shown = ("predicted", "precision", "recall", "recall_interval", "f1")
    return [
        {"class": place, "n": row["images"], **{name: row[name] for name in shown}}
        for place, row in enumerate(scores.per_class)
    ]


def _chosen(found: Outcomes, cells: Cells | None, mistakes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which samples of the split the report lists: all, or of many those that something refers to."""
    if len(found.rows) <= MOST_ITEMS:
        return np.arange(len(found.rows))
    named = [mistakes, *([] if cells is None else cells.members.values())]
    return np.unique(np.concatenate(named))


def _items(found: Outcomes, chosen: NDArray[np.int64], places: Places) -> dict[str, Any]:
    listed: dict[str, Any] = {"place": places.of(found.rows[chosen]).tolist()}
    for name in ("true", "predicted"):
        values = getattr(found, name)[chosen]
        if found.task == LABELS:
            listed[name] = [np.flatnonzero(row).tolist() for row in values]
        else:
            listed[name] = values.tolist()
    if found.task != NUMBER:
        listed["probability"] = np.round(found.probability[chosen], DIGITS).tolist()
    if found.task == LABELS:
        listed["wrong"] = found.wrong[chosen].tolist()
    return listed


def _confusion(cells: Cells, place_of: NDArray[np.int64]) -> dict[str, Any]:
    members = {cell: place_of[rows].tolist() for cell, rows in cells.members.items()}
    if cells.matrix is None:
        return {"matrix": None, "cells": {}, "largest": [[i, j, n, members[i, j]] for i, j, n in cells.largest]}
    return {"matrix": cells.matrix.tolist(), "cells": {f"{i},{j}": rows for (i, j), rows in members.items()}}


def _reliability(head: ScoredHead, split: str, found: Outcomes) -> dict[str, Any]:
    """The bins of the calibration error; an interval is Wilson's for the share that is right."""
    scores, calibration = head.scored.scores[split], head.scored.calibration
    confidence = head.answers[split].max(axis=1)
    counts, right, total = reliability(found.right, confidence)
    bins = [
        {
            "low": place / BINS,
            "high": (place + 1) / BINS,
            "n": n,
            "confidence": total[place] / n if n else None,
            "accuracy": hits / n if n else None,
            "interval": list(wilson_interval(hits, n)) if n else None,
        }
        for place, (n, hits) in enumerate(zip(counts.tolist(), right.tolist(), strict=True))
    ]
    return {
        "bins": bins,
        "ece": scores.calibration_error,
        "ece_by_chance": scores.calibration_error_by_chance,
        "temperature": None if calibration is None else calibration.temperature,
        "why_not": None if calibration is None else calibration.reason,
        "applied": calibration is not None and calibration.applied,
    }


def _leaks(head: ScoredHead, split: str, places: Places) -> dict[str, Any]:
    leaks: Leaks = head.scored.leaks[split]
    without = head.scored.without_leaks.get(split)
    sample = leaks.to_dict()["sample"]
    return {
        "identical": leaks.identical,
        "grouped": leaks.grouped,
        "near": len(leaks.near),
        "similarity": leaks.similarity,
        "sample": sample,
        "left": leaks.left,
        "pairs": leak_pairs(head, split, places),
        "without": None if without is None else verdict(head, split, scores=without),
    }


def _is_short(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= MOST_CHOICES and all(not isinstance(one, list | tuple | dict) for one in value)
    return not isinstance(value, dict)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _lines(value: Any) -> list[str]:
    return [line for line in value if isinstance(line, str)] if isinstance(value, list | tuple) else []
