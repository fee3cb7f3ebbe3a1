"""How `train-head` shows scores: a table with intervals, what leaked, and calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from precompute.cli._output import print_table

if TYPE_CHECKING:
    from precompute.heads import Scores
    from precompute.training.head import Training


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _decimal(value: float) -> str:
    return f"{value:.3f}"


PAIRS = 5  # near-duplicates that the report names; --json has all

# name of the score, what the table calls it, how it is written
LINES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("accuracy", "accuracy", _percent),
    ("balanced_accuracy", "balanced accuracy", _percent),
    ("top5_accuracy", "top-5 accuracy", _percent),
    ("macro_f1", "macro F1", _decimal),
    ("auc", "AUC, one vs rest", _decimal),
    ("log_loss", "log loss", _decimal),
    ("calibration_error", "calibration error", _decimal),
)


def print_scores(result: Training) -> None:
    """One line a score, two columns a split. Below each other, as a name, a number and an interval read best."""
    columns = [""]
    for split, scores in result.scores.items():
        columns += [f"{split}, {scores.n:,} images", "95% interval"]
    rows = []
    for name, title, form in LINES:
        cells = [title]
        for scores in result.scores.values():
            value, ends = getattr(scores, name), _interval(scores, name, grouped=result.groups is not None)
            cells.append("-" if value is None else form(value))
            chance = scores.calibration_error_by_chance if name == "calibration_error" else None
            cells.append("" if ends is None else f"{form(ends[0])} to {form(ends[1])}")
            cells[-1] = cells[-1] if chance is None else f"by chance to {form(chance)}"
        if name != "top5_accuracy" or any(cell not in ("-", "") for cell in cells[1:]):
            rows.append(cells)
    print_table(None, columns, rows, right=1)


def _interval(scores: Scores, name: str, *, grouped: bool) -> tuple[float, float] | None:
    """Wilson's for a share, unless the images are no observations of their own: Wilson's knows of no groups."""
    wilson: tuple[float, float] | None = getattr(scores, f"{name}_interval", None)
    return scores.intervals.get(name) if grouped or wilson is None else wilson


def print_per_class(split: str, scores: Scores, classes: list[str]) -> None:
    """Images, precision, recall with Wilson's interval, and F1 of each class; - where there is nothing to divide by."""

    def cell(value: float | None) -> str:
        return "-" if value is None else _percent(value)

    rows = []
    for name, row in zip(classes, scores.per_class, strict=True):
        ends: Any = row["recall_interval"]
        interval = "" if ends is None else f"{ends[0]:.1%} to {ends[1]:.1%}"
        f1 = "-" if row["f1"] is None else _decimal(row["f1"])
        rows.append((name, f"{row['images']:,}", cell(row["precision"]), cell(row["recall"]), interval, f1))
    print_table(f"{split}, by class", ("", "images", "precision", "recall", "95% interval", "F1"), rows, right=1)


def leak_lines(result: Training) -> Iterator[tuple[str, str]]:
    """What each split shares with the training images, and its accuracy without."""
    for split, leaks in result.leaks.items():
        counts = [f"{leaks.identical} byte-identical to training images"]
        if result.groups is not None:
            counts.append(f"{leaks.grouped} of a group in training")
        of = f" in a sample of {leaks.sample.searched:,} of {leaks.sample.of:,} images" if leaks.sample else ""
        counts.append(f"{len(leaks.near)} near-duplicates{of}")
        clean = result.without_leaks.get(split)
        text = "".join(f"\n{near.similarity:.3f}  {near.id}  {near.train_id}" for near in leaks.near[:PAIRS])
        text += "\n..." if len(leaks.near) > PAIRS else ""
        text += "" if clean is None else f"\naccuracy without them {clean.accuracy:.1%} ({clean.n:,} images)"
        yield f"leaks in {split}", ", ".join(counts) + text
    if result.groups is not None:
        yield "groups", f"{result.groups:,} groups kept whole; the intervals draw groups"


def calibration_lines(result: Training) -> Iterator[tuple[str, str]]:
    """The temperature, and log loss and calibration error before and after it."""
    found = result.calibration
    if found is None:
        return
    if found.temperature is None:
        yield "temperature", f"not fitted: {found.reason}"
        return
    lines = [f"{found.temperature:.3f}, fitted on val, {'applied' if found.applied else 'not applied (--calibrate)'}"]
    for split, before in found.before.items():
        after = found.after[split]
        lines.append(
            f"{split}: log loss {before['log_loss']:.3f} -> {after['log_loss']:.3f}, calibration error "
            f"{before['calibration_error']:.3f} -> {after['calibration_error']:.3f}"
            + (" (chose the temperature)" if split == "val" else "")
        )
    yield "temperature", "\n".join(lines)
