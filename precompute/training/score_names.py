"""The scores that a reader is shown of each task: their names, how they are called, and how each is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def percent(value: float) -> str:
    return f"{value:.1%}"


def decimal(value: float) -> str:
    return f"{value:.3f}"


def plain(value: float) -> str:
    return f"{value:.4g}"


Lines = tuple[tuple[str, str, Callable[[float], str]], ...]  # name of the score, what the table calls it, how written
LINES: Lines = (
    ("accuracy", "accuracy", percent),
    ("balanced_accuracy", "balanced accuracy", percent),
    ("top5_accuracy", "top-5 accuracy", percent),
    ("macro_f1", "macro F1", decimal),
    ("auc", "AUC, one vs rest", decimal),
    ("log_loss", "log loss", decimal),
    ("calibration_error", "calibration error", decimal),
)
LINES_OF_LABELS: Lines = (
    ("mean_average_precision", "mean average precision", decimal),
    ("micro_average_precision", "average precision, micro", decimal),
    ("auc", "AUC, mean of labels", decimal),
    ("micro_auc", "AUC, micro", decimal),
    ("macro_f1", "F1, macro", decimal),
    ("micro_f1", "F1, micro", decimal),
    ("hamming_loss", "Hamming loss", decimal),
    ("subset_accuracy", "all labels right", percent),
)
LINES_OF_NUMBERS: Lines = (
    ("r2", "R2", decimal),
    ("mae", "mean absolute error", plain),
    ("rmse", "root mean squared error", plain),
    ("spearman", "Spearman's rank correlation", decimal),
)
MAIN = {"mean_average_precision", "micro_f1", "r2", "mae"}  # that one line has room for
LINES_OF = {"classes": LINES, "labels": LINES_OF_LABELS, "number": LINES_OF_NUMBERS}


def interval_of(scores: Any, name: str, *, grouped: bool) -> tuple[float, float] | None:
    """Wilson's for a share, unless the samples are not independent: Wilson's interval ignores groups."""
    wilson: tuple[float, float] | None = getattr(scores, f"{name}_interval", None)
    return scores.intervals.get(name) if grouped or wilson is None else wilson
