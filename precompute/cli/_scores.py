"""How `train-head` shows scores: a table with intervals, what leaked, and calibration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from precompute.cli._output import print_table
from precompute.training.score_names import LINES_OF, MAIN, decimal, interval_of, percent

if TYPE_CHECKING:
    from precompute.heads import LabelScores, Scores
    from precompute.training.head import Training


PAIRS = 5  # near-duplicates that the report names; --json has all


def headline(task: str, scores: Any) -> str | None:
    """The first score of a task in words, None where it is not defined. scores: an object, or its dictionary."""
    name, title, form = LINES_OF[task][0]
    value = scores.get(name) if isinstance(scores, dict) else getattr(scores, name)
    return f"{title} {form(value)}" if isinstance(value, float) else None


def score_words(task: str, scores: Any) -> Iterator[str]:
    """The main scores that are defined, with their intervals, such as `R2 0.760 (95%: 0.702 to 0.801)`."""
    for name, title, form in LINES_OF[task]:
        if name not in MAIN:
            continue
        value, ends = getattr(scores, name), scores.intervals.get(name)
        if value is not None:
            yield f"{title} {form(value)}" + (f" (95%: {form(ends[0])} to {form(ends[1])})" if ends else "")


def print_scores(result: Training) -> None:
    """One line a score, two columns a split. Below each other, as a name, a number and an interval read best."""
    columns = [""]
    for split, scores in result.scores.items():
        columns += [f"{split}, {scores.n:,} {result.unit}", "95% interval"]
    rows = []
    for name, title, form in LINES_OF[result.task]:
        cells = [title]
        for scores in result.scores.values():
            value, ends = getattr(scores, name), interval_of(scores, name, grouped=result.groups is not None)
            cells.append("-" if value is None else form(value))
            chance = getattr(scores, "calibration_error_by_chance", None) if name == "calibration_error" else None
            cells.append("" if ends is None else f"{form(ends[0])} to {form(ends[1])}")
            cells[-1] = cells[-1] if chance is None else f"by chance to {form(chance)}"
        if name != "top5_accuracy" or any(cell not in ("-", "") for cell in cells[1:]):
            rows.append(cells)
    print_table(None, columns, rows, right=1)


def print_each(result: Training) -> None:
    """A table of each split by class or label; there is none of numbers."""
    for split, scores in result.scores.items():
        if result.task == "classes":
            _print_per_class(split, scores, result.classes, result.unit)
        elif result.task == "labels":
            _print_per_label(split, scores, result.thresholds, result.unit)


def _print_per_label(split: str, scores: LabelScores, thresholds: dict[str, float], unit: str) -> None:
    """Threshold, samples that have the label, that are given it, and scores; - where there is nothing to divide by."""
    names = ("average_precision", "auc", "precision", "recall", "f1")
    rows = []
    for (label, threshold), row in zip(thresholds.items(), scores.per_label, strict=True):
        cells = ["-" if row[name] is None else decimal(row[name]) for name in names]
        rows.append((label, decimal(threshold), f"{row['positives']:,}", f"{row['predicted']:,}", *cells))
    columns = ("", "threshold", unit, "predicted", "average precision", "AUC", "precision", "recall", "F1")
    print_table(f"{split}, by label", columns, rows, right=1)


def _print_per_class(split: str, scores: Scores, classes: list[str], unit: str) -> None:
    """How many, precision, recall with Wilson's interval, F1 of each class; - where there is nothing to divide by."""

    def cell(value: float | None) -> str:
        return "-" if value is None else percent(value)

    rows = []
    for name, row in zip(classes, scores.per_class, strict=True):
        ends: Any = row["recall_interval"]
        interval = "" if ends is None else f"{ends[0]:.1%} to {ends[1]:.1%}"
        f1 = "-" if row["f1"] is None else decimal(row["f1"])
        rows.append((name, f"{row['images']:,}", cell(row["precision"]), cell(row["recall"]), interval, f1))
    print_table(f"{split}, by class", ("", unit, "precision", "recall", "95% interval", "F1"), rows, right=1)


def leak_lines(result: Training) -> Iterator[tuple[str, str]]:
    """What each split shares with the training images, and its accuracy without."""
    for split, leaks in result.leaks.items():
        counts = [f"{leaks.identical} byte-identical to training {result.unit}"]
        if result.groups is not None:
            counts.append(f"{leaks.grouped} of a group in training")
        of = f" in a sample of {leaks.sample.searched:,} of {leaks.sample.of:,} {result.unit}" if leaks.sample else ""
        counts.append(f"{len(leaks.near)} near-duplicates{of}")
        clean = result.without_leaks.get(split)
        text = "".join(f"\n{near.similarity:.3f}  {near.id}  {near.train_id}" for near in leaks.near[:PAIRS])
        text += "\n..." if len(leaks.near) > PAIRS else ""
        text += "" if clean is None else _without(result.task, clean, result.unit)
        yield f"leaks in {split}", ", ".join(counts) + text
    if result.groups is not None:
        yield "groups", f"{result.groups:,} groups kept whole; the intervals draw groups"


def _without(task: str, clean: Any, unit: str) -> str:
    name, title, form = LINES_OF[task][0]
    value = getattr(clean, name)
    return f"\n{title} without them {'-' if value is None else form(value)} ({clean.n:,} {unit})"


def calibration_lines(result: Training) -> Iterator[tuple[str, str]]:
    """The temperature; where it is applied, also log loss and calibration error before and after it."""
    found = result.calibration
    if found is None:
        return
    if found.temperature is None:
        yield "temperature", f"not fitted: {found.reason}"
        return
    if not found.applied:
        yield "temperature", f"{found.temperature:.3f} fits val best, not applied (--calibrate applies it)"
        return
    lines = [f"{found.temperature:.3f}, fitted on val, applied"]
    for split, before in found.before.items():
        after = found.after[split]
        lines.append(
            f"{split}: log loss {before['log_loss']:.3f} -> {after['log_loss']:.3f}, calibration error "
            f"{before['calibration_error']:.3f} -> {after['calibration_error']:.3f}"
            + (" (chose the temperature)" if split == "val" else "")
        )
    yield "temperature", "\n".join(lines)
