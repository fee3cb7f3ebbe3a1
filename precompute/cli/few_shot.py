"""`precompute few-shot`: how good a head is after a few labelled images."""

from __future__ import annotations

from typing import Any

import click

from precompute.cli._options import SEED, label_column_option, label_separator_option, overwrite_option, task_option
from precompute.cli._output import (
    finished,
    json_option,
    note,
    print_json,
    print_pairs,
    print_table,
    training_progress,
)


class Shots(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """Whole numbers, separated by commas."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            shots = tuple(int(number) for number in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 1,5,20", param, ctx)
        if min(shots) < 1:
            self.fail(f"{value!r} contains a number below 1", param, ctx)
        return shots


@click.command("few-shot", no_args_is_help=True)
@click.argument("caches", metavar="CACHE...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--shots",
    type=Shots(),
    help="Training samples a class, a label, or for numbers in all.  [default: 1,2,5,10,20,50; 10,20,50,100,200 for "
    "numbers]",
)
@click.option(
    "--draws", type=click.IntRange(min=1), default=5, show_default=True, help="Draws for each number of samples."
)
@click.option("--head", help="A kind of head, as in train-head.  [default: logistic; ridge for numbers]")
@task_option
@click.option("--layer", multiple=True, help="The layer, if the caches hold several; repeat for more layers, or all.")
@label_column_option
@label_separator_option
@click.option(
    "--split-column", metavar="NAME", help="A further column with train, val and test, instead of the cache's own."
)
@click.option("--plain-view", is_flag=True, help="Train only on the plain view, with caches of several.")
@click.option("--average-views", is_flag=True, help="Score by the mean over all views instead of the plain view.")
@click.option("--plot", type=click.Path(), help="Draw the curves (.png, .svg, .pdf).")
@click.option("--title", help="Title of the picture.")
@click.option("--seed", type=SEED, metavar="INTEGER", default=0, show_default=True, help="Seed of the draws.")
@overwrite_option
@json_option
def few_shot(
    caches: tuple[str, ...], plot: str | None, title: str | None, overwrite: bool, as_json: bool, **settings: Any
) -> None:
    """Train heads on a few labelled samples of each class and score them on samples they have not seen.

    Samples are drawn from split train and scored on test (else val, else a hold-out of a fifth), always the same.
    Byte-identical samples are never on both sides. Several caches of the same samples get the same draws: compare a
    backbone with the same network with random weights, and with raw pixels. Each curve has its file's name.

    The score is the accuracy; for several labels the mean average precision, by samples of each label; for
    numbers R2, by samples in all.

    \b
    Examples:
      precompute few-shot photos.h5
      precompute few-shot mobilenet.h5 random.h5 pixels.h5 --plot few-shot.png
      precompute few-shot photos.h5 --shots 1,5,25 --draws 20 --json
      precompute few-shot blocks.h5 --layer all
      precompute few-shot cards.h5 --label-column card_count --task number --shots 20,100
    """
    from precompute.cli._options import one_or_several
    from precompute.evaluation.learning_curve import few_shot as run

    settings["layer"] = one_or_several(settings["layer"])

    if plot is not None:
        from precompute.reports.plots import check_plot, plot_few_shot

        check_plot(plot, overwrite=overwrite, inputs=caches)
    with training_progress("few-shot"):
        curves = run(caches, **settings, say=note)
    if plot is not None:
        plot_few_shot(curves, plot, title=title, overwrite=overwrite)
        finished(plot)
    if as_json:
        columns = list(settings["label_column"])
        asked = {
            **settings,
            "shots": [point.shots for point in curves[0].points],
            **{name: getattr(curves[0], name) for name in ("task", "head")},
            "label_column": columns if len(columns) > 1 else next(iter(columns), None),
        }
        print_json({"curves": [curve.to_dict() for curve in curves], "plot": plot, **asked})
        return
    for curve in curves:
        for line in curve.notes:
            note(f"Note: {curve.name}: {line}")
    from precompute.evaluation.learning_curve import EACH

    first = curves[0]
    form = "{:.1%}" if first.task == "classes" else "{:.3f}"
    rows = [
        (curve.name, point.shots, form.format(point.score), _interval(point.interval, form))
        for curve in curves
        for point in curve.points
    ]
    metric = first.metric.replace("_", " ").replace("r2", "R2")
    header = ("features", f"{first.unit} {EACH[first.task]}", metric, "95% interval over draws")
    print_table(None, header, rows, right=1)
    predicted = "a number" if first.task == "number" else f"{first.n_classes} {first.task}"
    print_pairs(
        None,
        [
            ("head", f"{first.head}, {predicted}"),
            ("tested on", ", ".join(sorted({f"{curve.tested:,} {curve.unit} of {curve.split}" for curve in curves}))),
            ("draws", f"{settings['draws']} for each number of {first.unit}"),
            ("drawn", plot),
        ],
    )


def _interval(interval: tuple[float, float] | None, form: str) -> str:
    return "-" if interval is None else f"{form.format(interval[0])} to {form.format(interval[1])}"
