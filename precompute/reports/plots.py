"""Pictures for `--plot`, drawn by matplotlib, which comes with an extra: pip install 'precompute[plot]'."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from precompute.errors import UsageError
from precompute.system.output import Kind, Output, check_output

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.figure import Figure

    from precompute.evaluation.depth_result import Depth
    from precompute.evaluation.learning_curve import FewShotCurve
    from precompute.evaluation.rank import Ranking

INSTALL = "pip install 'precompute[plot]'"
SIGNATURES = {".pdf": b"%PDF-", ".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml"}
AUTHOR = "precompute"  # what a picture of ours says of itself, by which it is known again
SEARCHED = 64 * 1024  # bytes
DOTS_PER_INCH = 110  # a picture as wide as a page of docs, and small as a file
TRAIN, HELD = "#0072b2", "#d55e00"  # two of Okabe and Ito's colours, which colour-blind eyes tell apart too
COLORS = (TRAIN, HELD, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")
MARKERS = "os^Dvp*<>"  # one more than colours, so that no pair of both comes twice among many lines
CLASSIFIER_CURVES = {"loss": "cross-entropy", "accuracy": "accuracy"}
AXES = {  # by task: what 1 is drawn as, the name of the score, and what is counted
    "classes": (100, "accuracy on test images (%)", "a class"),
    "labels": (1, "mean average precision on test images", "a label"),
    "number": (1, "R2 on test images", "in all"),
}


def check_plot(
    path: str | os.PathLike[str], *, overwrite: bool = False, inputs: Iterable[str | os.PathLike[str] | None] = ()
) -> Output:
    """Raise UsageError where `path` could not or must not be drawn to: before the work, not after it.

    An existing file is replaced where precompute drew it, or with `overwrite`. inputs: files that the command uses.
    """
    if _suffix(path) not in SIGNATURES:
        raise UsageError(
            f"The picture {os.fsdecode(path)!r} must end in one of {', '.join(SIGNATURES)}.",
            hint="For example --plot curves.png",
        )
    output = check_output(path, PICTURE, overwrite=overwrite, inputs=inputs)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(f"Drawing needs matplotlib: {error}.", hint=f"Install it: {INSTALL}") from error
    return output


def _check_drawn(path: str) -> None:
    """Raise UsageError where precompute did not draw the file: it signs near the start or, in PDF, the end."""
    try:
        with open(path, "rb") as file:
            data = file.read(SEARCHED)
            if len(data) == SEARCHED:
                file.seek(-SEARCHED, os.SEEK_END)
                data += file.read(SEARCHED)
    except OSError as error:
        raise UsageError(f"The picture {path!r} cannot be read: {error.strerror}.", hint="") from error
    if not data.startswith(tuple(SIGNATURES.values())) or AUTHOR.encode() not in data:
        raise UsageError(f"{path!r} exists, and is not a picture that precompute drew.", hint="")


PICTURE = Kind(UsageError, _check_drawn)


def plot_history(
    history: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    best_epoch: int | None = None,
    overwrite: bool = False,
) -> None:
    """Draw the `history_` of an MLP by epoch: loss and accuracy, of numbers the absolute error.

    The epoch whose weights were kept is marked. The suffix of `path` says the format. Raises UsageError without
    matplotlib, and where the file cannot or, without `overwrite`, must not be written (see `check_plot`).
    """
    output = check_plot(path, overwrite=overwrite)
    figure = _figure(9, 3.6)
    epochs = [entry["epoch"] for entry in history]
    is_number = any("train_absolute_error" in entry for entry in history)
    drawn = {"loss": "squared error, scaled", "absolute_error": "absolute error"} if is_number else CLASSIFIER_CURVES
    for axes, (name, label) in zip(figure.subplots(1, 2), drawn.items(), strict=True):
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
    _save(figure, output, _suffix(path))


def plot_few_shot(
    curves: Sequence[FewShotCurve],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    overwrite: bool = False,
) -> None:
    """Draw accuracy over labelled images a class, a line for each of `curves` with its 95% interval over draws.

    Curves of labels and numbers have their own score and unit on the axes. They must all be of one task.
    Raises UsageError as `plot_history` does.
    """
    output = check_plot(path, overwrite=overwrite)
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    task = curves[0].task
    scale, score, unit = AXES[task]
    for number, curve in enumerate(curves):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        shots = [point.shots for point in curve.points]
        axes.plot(shots, [scale * point.score for point in curve.points], color=color, marker=marker, label=curve.name)
        spread = [(point.shots, *point.interval) for point in curve.points if point.interval is not None]
        if spread:
            at, low, high = zip(*spread, strict=True)
            axes.fill_between(
                at, [scale * v for v in low], [scale * v for v in high], color=color, alpha=0.15, linewidth=0
            )
    every = sorted({point.shots for curve in curves for point in curve.points})
    axes.set_xscale("log")
    axes.set_xticks(every, [str(shots) for shots in every])
    axes.minorticks_off()
    axes.axhline(scale * curves[0].by_chance, color="0.4", linewidth=1, linestyle=":", label="chance")
    called = curves[0].unit
    axes.set(xlabel=f"labelled {called} {unit}", ylabel=score.replace("images", called), title=title)
    # R2 has no lower end: a bad fit on few images would squeeze all that is of interest.
    axes.set_ylim(max(-1.0, min(0.0, axes.get_ylim()[0])) if task == "number" else 0, scale)
    axes.legend(frameon=False)
    _save(figure, output, _suffix(path))


def plot_depth(
    found: Depth, path: str | os.PathLike[str], *, title: str | None = None, overwrite: bool = False
) -> None:
    """Draw accuracy over labelled images a class, a line for each method with its 95% interval.

    All labels are at their mean number a class. What uses the pretrained weights is drawn through, the rest dashed.
    Raises UsageError as `plot_history` does.
    """
    output = check_plot(path, overwrite=overwrite)
    figure = _figure(7.6, 4.4)
    axes = figure.subplots()
    ticks: dict[float, str] = {}
    for number, method in enumerate(found.methods):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        points = [point for point in found.points if point.method == method.name]
        at = [float(p.shots) if isinstance(p.shots, int) else p.labels / found.n_classes for p in points]
        ticks |= {place: str(point.shots) for place, point in zip(at, points, strict=True)}
        style = "-" if method.pretrained else "--"
        scores = [100 * point.score for point in points]
        axes.plot(at, scores, color=color, marker=marker, linestyle=style, label=method.name)
        low, high = zip(*(point.interval for point in points), strict=True)
        axes.fill_between(at, [100 * v for v in low], [100 * v for v in high], color=color, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.axhline(100 / found.n_classes, color="0.4", linewidth=1, linestyle=":", label="chance")
    axes.set(xlabel="labelled images a class", ylabel=f"accuracy on {found.tested:,} images (%)", title=title)
    axes.set_ylim(0, 100)
    figure.legend(loc="outside right upper", frameon=False)
    _save(figure, output, _suffix(path))


def plot_ranking(
    ranking: Ranking, path: str | os.PathLike[str], *, title: str | None = None, overwrite: bool = False
) -> None:
    """Draw the score of each candidate with its 95% interval, the best on top; next to it that of the k-NN vote.

    Those that cannot be distinguished from the best have another colour. Raises UsageError as `plot_history` does.
    """
    output = check_plot(path, overwrite=overwrite)
    shown = ranking.candidates[::-1]
    names = [ranking.name_of(one) for one in shown]
    figure = _figure(4.5 + 0.075 * max(map(len, names)), 1.5 + 0.3 * len(shown))
    axes = figure.subplots()
    scale, score, _ = AXES[ranking.task]
    for group, color, label in (
        (True, TRAIN, "no significant difference from the best"),
        (False, "0.45", "worse than the best"),
    ):
        chosen = [place for place, one in enumerate(shown) if (one.group == 1) == group]
        if chosen:
            values = [scale * shown[place].score for place in chosen]
            ends = [[scale * end for end in shown[place].interval] for place in chosen]
            below = [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]
            above = [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]
            axes.errorbar(values, chosen, xerr=[below, above], fmt="o", color=color, capsize=2, label=label)
    knn = [scale * one.knn for one in shown]
    axes.plot(knn, range(len(shown)), "x", color=HELD, label="k-NN vote")
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set(xlabel=score.replace("test images", f"{ranking.tried:,} images, cross-validated"), title=title)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    _save(figure, output, _suffix(path))


def _figure(width: float, height: float) -> Figure:
    """Its own figure: pyplot would change global state and might look for a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")


def _suffix(path: str | os.PathLike[str]) -> str:
    return os.path.splitext(os.fsdecode(path))[1].lower()


def _save(figure: Figure, output: Output, suffix: str) -> None:
    for axes in figure.axes:
        axes.grid(color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    # Without the version of matplotlib and the date, the same curves give the same bytes.
    stamp = {
        ".png": {"Software": AUTHOR},
        ".svg": {"Creator": AUTHOR, "Date": None},
        ".pdf": {"Creator": AUTHOR, "CreationDate": None},
    }
    output.write(lambda file: figure.savefig(file, format=suffix[1:], metadata=stamp[suffix]))
