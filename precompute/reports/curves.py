"""Curves in the document of a report: the epochs of a head, and what `few-shot`, `depth` and `rank` printed as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from precompute.reports.places import readable
from precompute.reports.scored import ScoredHead

MOST_EPOCHS = 2000
CLASSIFIER = {"loss": "cross-entropy", "accuracy": "accuracy"}
NUMBERS = {"loss": "squared error, scaled", "absolute_error": "absolute error"}


def history_curves(head: ScoredHead) -> Iterator[dict[str, Any]]:
    """Loss and score by epoch of a head that was trained in epochs; nothing of others."""
    choices = head.side.saved.head.choices()
    history = choices.get("history")
    if not isinstance(history, list) or not history:
        return
    is_number = any("train_absolute_error" in entry for entry in history)
    step = max(1, -(-len(history) // MOST_EPOCHS))
    for name, title in (NUMBERS if is_number else CLASSIFIER).items():
        lines = []
        for part, words in (("train", "train"), ("validation", "validation")):
            points = [
                [entry["epoch"], entry[f"{part}_{name}"], None, None]
                for entry in history[::step]
                if entry.get(f"{part}_{name}") is not None
            ]
            if points:
                mark = choices.get("best_epoch")
                lines.append({"name": words, "points": points, "dashed": part == "validation", "mark": mark})
        if lines:
            yield {
                "kind": "history",
                "title": f"{readable(head.name)}: {title} by epoch",
                "x": "epoch",
                "y": title,
                "percent": name == "accuracy",
                "log": False,
                "by_chance": None,
                "head": readable(head.name),
                "lines": lines,
            }
