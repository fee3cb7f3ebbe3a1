"""`precompute depth`: how deep should be trained with this many labels?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from precompute.cli._options import (
    SEED,
    computing,
    group_options,
    overwrite_option,
    running_options,
    source_options,
    taken_apart,
)
from precompute.cli._output import (
    duration,
    finished,
    json_option,
    note,
    print_json,
    print_pairs,
    print_table,
    progress_bar,
    stop_on_signal,
    training_progress,
)

if TYPE_CHECKING:
    from precompute.evaluation.depth_result import Depth, DepthPoint
    from precompute.extraction.conduct import Progress

ALL = "all"


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """Whole numbers separated by commas, and the word all."""

    name = "N,...,all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int | str, ...]:
        if isinstance(value, tuple):
            return value
        numbers: list[int | str] = []
        for word in value.split(","):
            if word != ALL and not (word.isascii() and word.isdecimal() and int(word) > 0):
                self.fail(f"{value!r} is not a list such as 1,5,20,all", param, ctx)
            numbers.append(word if word == ALL else int(word))
        return tuple(numbers)


@click.command(no_args_is_help=True)
@click.argument("source", type=click.Path())
@computing("backbone", "weights")
@click.option("-o", "--output", required=True, type=click.Path(), help="Folder for feature files and results.")
@click.option(
    "--shots", type=Numbers(), default="1,5,20,100,all", show_default=True, help="Numbers of training images a class."
)
@click.option(
    "--draws", type=click.IntRange(min=1), default=5, show_default=True, help="Draws for each number of images."
)
@click.option(
    "--methods",
    metavar="NAME,...",
    help="Methods: pixels, random, head, all-layers, attentive, tails (or tail:LAYER), everything, scratch.  "
    "[default: all but scratch]",
)
@group_options
@click.option(
    "--epochs", type=click.IntRange(min=1), help="Maximum number of epochs, to train a network.  [default: 30]"
)
@click.option("--learning-rate", type=float, help="Learning rate, to train a network.  [default: 1e-4]")
@click.option("--augment", metavar="STEP,...|none", help="Views for the method everything.  [default: crop,flip]")
@click.option("--train-batch", type=click.IntRange(min=1), help="Images a step, to train a network.  [default: 32]")
@source_options
@running_options
@click.option("--plot", type=click.Path(), help="Draw the curves (.png, .svg, .pdf).")
@click.option("--title", help="Title of the picture.")
@click.option("--seed", type=SEED, metavar="INTEGER", default=0, show_default=True, help="Seed of draws and training.")
@overwrite_option
@json_option
def depth(
    source: str,
    output: str,
    methods: str | None,
    epochs: int | None,
    learning_rate: float | None,
    train_batch: int | None,
    plot: str | None,
    title: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare depths of training on SOURCE and report which one your number of labels supports.

    From cheap to expensive: a logistic head on raw pixels, on the network with random weights, on the pretrained
    network, on all of its layers; an attentive head on its last map; the network behind a cut, fine-tuned (tails); the
    whole network, fine-tuned; and from scratch. Each method is fitted on the same draws of training images and scored
    on the same images of test (else val, else a hold-out of a fifth). Intervals and paired tests against the best
    method are over draws, and with all labels over the scored images.

    Finished results are kept in the folder: run the same command again after an interruption, or with more methods.

    \b
    Examples:
      precompute depth photos -b resnet18 -o photos-depth
      precompute depth photos -b mobilenet_v2 --weights w.pth -o trial --shots 5,20,all --plot depth.png
      precompute depth photos -b resnet18 -o photos-depth --methods pixels,random,head --draws 20 --json
    """
    from precompute.evaluation.depth import depth as run

    if plot is not None:
        from precompute.reports.plots import check_plot, plot_depth

        check_plot(plot, overwrite=overwrite)
    given = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": train_batch}
    training = {name: value for name, value in given.items() if value is not None}
    with training_progress("depth"), progress_bar("depth", "images") as draw, stop_on_signal() as stop:

        def show(progress: Progress) -> None:
            stop.batches_begin()
            draw(progress.done, progress.total, f"{progress.rate:.1f} images/s")

        def say(line: str) -> None:
            stop.batches_end()
            note(line)

        taken = taken_apart({**options, "layer": ()})
        del taken["layer"]
        names = tuple(filter(None, (methods or "").split(",")))
        result = run(source, output, methods=names, training=training, progress=show, stop=stop, say=say, **taken)
    if plot is not None:
        plot_depth(result, plot, title=title, overwrite=overwrite)
        finished(plot)
    if as_json:
        print_json({**result.to_dict(), "plot": plot})
    else:
        _print(result, plot)


def _print(found: Depth, plot: str | None) -> None:
    for line in found.notes:
        note(f"Note: {line}")
    numbers = [one.shots for one in found.standings]
    columns = ("method", *(str(n) for n in numbers), "to prepare", "a fit", "bytes")
    rows = []
    for method in found.methods:
        points = [found.point(method.name, n) for n in numbers]
        marks = ["*" if method.name in one.tied else " " for one in found.standings]
        cells = [_cell(point, mark) for point, mark in zip(points, marks, strict=True)]
        last = points[-1]
        once = "-" if method.seconds is None else duration(method.seconds)
        rows.append((method.name, *cells, once, "-" if last is None else f"{last.seconds:.1f} s", f"{method.bytes:,}"))
    print_table(f"accuracy by labelled images a class of {found.backbone}", columns, rows, right=1)
    print_pairs(
        None,
        [
            ("tested on", f"{found.tested:,} images of {found.split}, {found.n_classes} classes"),
            ("intervals", f"95%, {_over(found)}; * no significant difference from the best"),
            ("kept in", found.folder),
            ("drawn", plot),
            ("answer", found.words),
            ("do it", found.method(found.standings[-1].cheapest).command),
        ],
    )


def _cell(point: DepthPoint | None, mark: str) -> str:
    if point is None:
        return "-"
    return f"{point.score:.1%} ({point.interval[0]:.1%} to {point.interval[1]:.1%}){mark}"


def _over(found: Depth) -> str:
    """What the intervals are over, by number of labels."""
    over = {point.over for point in found.points}
    draws, images = f"over {found.draws} draws", f"over the {found.tested:,} images"
    if len(over) == 1:
        return draws if "draws" in over else images
    return f"{draws}; for {found.points[-1].shots} {images}"
