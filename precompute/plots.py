"""Pictures for `--plot`, drawn by matplotlib, which comes with an extra: pip install 'precompute[plot]'."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precompute.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from precompute.learning_curve import FewShotCurve

INSTALL = "pip install 'precompute[plot]'"
FORMATS = (".pdf", ".png", ".svg")
DOTS_PER_INCH = 110  # a picture as wide as a page of docs, and small as a file
TRAIN, HELD = "#0072b2", "#d55e00"  # two of Okabe and Ito's colours, which colour-blind eyes tell apart too
COLORS = (TRAIN, HELD, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "os^Dvp*"


def check_plot(path: str | os.PathLike[str]) -> None:
    """Raise UsageError where `path` could not be drawn to: before the work, not after it."""
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise UsageError(
            f"The picture {str(target)!r} must end in one of {', '.join(FORMATS)}.", hint="Such as --plot curves.png"
        )
    if not target.absolute().parent.is_dir():
        raise UsageError(f"The folder of the picture {str(target)!r} does not exist.", hint="Make it, or name another.")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(f"Drawing needs matplotlib: {error}.", hint=f"Install it: {INSTALL}") from error


def plot_history(
    history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], *, best_epoch: int | None = None
) -> None:
    """Draw an MLPHead's `history_`: loss and accuracy by epoch, in training and in validation.

    The epoch whose weights were kept is marked. The suffix of `path` says the format. Raises UsageError without
    matplotlib.
    """
    check_plot(path)
    figure = _figure(9, 3.6)
    epochs = [entry["epoch"] for entry in history]
    for axes, name, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("cross-entropy", "accuracy"), strict=True
    ):
        for part, color, style in (("train", TRAIN, "-"), ("validation", HELD, "--")):
            values = [entry[f"{part}_{name}"] for entry in history]
            if values and values[0] is not None:
                axes.plot(
                    epochs, values, color=color, linestyle=style, label=part, marker="." if len(epochs) < 3 else ""
                )
        if best_epoch:
            axes.axvline(best_epoch, color="0.4", linewidth=1, linestyle=":", label=f"kept: epoch {best_epoch}")
        axes.set(xlabel="epoch", ylabel=label)
        axes.legend(frameon=False)
    figure.axes[0].set_ylim(bottom=0)
    _save(figure, path)


def plot_few_shot(curves: Sequence[FewShotCurve], path: str | os.PathLike[str], *, title: str | None = None) -> None:
    """Draw accuracy over labelled images a class, a line for each of `curves` with its 95% interval over draws.

    Raises UsageError without matplotlib.
    """
    check_plot(path)
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    for number, curve in enumerate(curves):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        shots = [point.shots for point in curve.points]
        axes.plot(shots, [100 * point.accuracy for point in curve.points], color=color, marker=marker, label=curve.name)
        spread = [(point.shots, *point.interval) for point in curve.points if point.interval is not None]
        if spread:
            at, low, high = zip(*spread, strict=True)
            axes.fill_between(at, [100 * v for v in low], [100 * v for v in high], color=color, alpha=0.15, linewidth=0)
    every = sorted({point.shots for curve in curves for point in curve.points})
    axes.set_xscale("log")
    axes.set_xticks(every, [str(shots) for shots in every])
    axes.minorticks_off()
    axes.axhline(100 / curves[0].n_classes, color="0.4", linewidth=1, linestyle=":", label="chance")
    axes.set(xlabel="labelled images a class", ylabel="accuracy on test images (%)", title=title)
    axes.set_ylim(0, 100)
    axes.legend(frameon=False)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    """A figure of its own: pyplot would change global state and might look for a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    for axes in figure.axes:
        axes.grid(color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    # Without the version of matplotlib and the date, the same curves give the same bytes.
    stamp = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    figure.savefig(path, metadata=stamp[Path(path).suffix.lower()])
