"""`precompute rank`: which backbone, and which layer, suits these images?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from precompute.cli._options import (
    SEED,
    complete_backbone,
    computing,
    executor_options,
    group_options,
    label_separator_option,
    overwrite_option,
    running_options,
    source_options,
    taken_apart,
    task_option,
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
    from precompute.evaluation.rank import Ranked, Ranking
    from precompute.extraction.conduct import Progress


@click.command(no_args_is_help=True)
@click.argument("source", type=click.Path())
@click.option(
    "-b",
    "--backbone",
    "backbones",
    shell_complete=complete_backbone,
    multiple=True,
    required=True,
    metavar="NAME[=WEIGHTS]",
    help="As for extract; several times. WEIGHTS is an entry, random[:SEED] or a file.",
)
@computing("layer", "pooling")
@click.option(
    "-n", "--images", "n", type=click.IntRange(min=1), default=2000, show_default=True, help="Images in the sample."
)
@click.option("-o", "--output", type=click.Path(), help="Folder to keep the sample's feature files in, for reruns.")
@task_option
@label_separator_option
@group_options
@source_options
@running_options
@executor_options
@click.option("--plot", type=click.Path(), help="Draw scores with their intervals (.png, .svg, .pdf).")
@click.option("--title", help="Title of the picture.")
@click.option(
    "--seed", type=SEED, metavar="INTEGER", default=0, show_default=True, help="Seed of sample, folds and bootstrap."
)
@overwrite_option
@json_option
def rank(
    source: str,
    backbones: tuple[str, ...],
    output: str | None,
    plot: str | None,
    title: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare backbones on a sample of SOURCE; report the best and those not significantly different from it.

    The same images, drawn by class from split train (never from val or test), go once through each backbone; on each
    layer a k-NN vote and a small logistic probe are cross-validated. Candidates are compared on the same images. With
    --layer several layers are tried (all-blocks: the output of each stage), averaged over positions unless they name
    another pooling. The table also has the time and the bytes of the full extraction, measured on the sample, and
    Kendall's tau between this order and the order by number of parameters.

    \b
    Examples:
      precompute rank photos -b resnet18 -b mobilenet_v2
      precompute rank photos -b resnet18 -b mobilenet_v2=weights.pth -b resnet50=random:1 -n 500
      precompute rank photos -b resnet50 -b vit_b_16 --layer all-blocks -o trial --plot rank.png
      precompute rank photos -b resnet50 -b vit_b_16 -b convnext_base --executor ray
    """
    from precompute.evaluation.rank import rank as run

    if plot is not None:
        from precompute.reports.plots import check_plot, plot_ranking

        check_plot(plot, overwrite=overwrite)
    with (
        training_progress("rank"),
        progress_bar("rank", "images") as draw,
        stop_on_signal() as stop,
    ):

        def show(progress: Progress) -> None:
            stop.batches_begin()
            draw(progress.done, progress.total, f"{progress.rate:.1f} images/s")

        def say(line: str) -> None:
            stop.batches_end()
            note(line)

        taken = taken_apart({**options, "views": 1})
        del taken["views"]
        result = run(source, backbones, out=output, progress=show, stop=stop, say=say, **taken)
    if plot is not None:
        plot_ranking(result, plot, title=title, overwrite=overwrite)
        finished(plot)
    if as_json:
        print_json({**result.to_dict(), "plot": plot})
    else:
        _print(result, plot)


def _print(result: Ranking, plot: str | None) -> None:
    for line in result.notes:
        note(f"Note: {line}")
    metric = result.metric.replace("_", " ").replace("r2", "R2")
    columns = ("", "backbone", "layer", "width", metric, "95% interval", "k-NN", "params (M)", "time", "bytes")
    print_table(None, columns, [_row(one, result.metric) for one in result.candidates], right=3)
    tau = "-" if result.tau is None else f"{result.tau:+.2f}"
    print_pairs(
        None,
        [
            ("tried on", f"{result.tried:,} of {result.images:,} images, {duration(result.seconds)}"),
            ("by size", f"Kendall's tau {tau} between this order of backbones and that by parameters"),
            ("kept in", result.folder),
            ("drawn", plot),
            ("answer", result.words),
        ],
    )


def _row(one: Ranked, metric: str) -> tuple[object, ...]:
    form = "{:.1%}" if metric == "accuracy" else "{:.3f}"
    low, high = map(form.format, one.interval)
    return (
        one.group,
        one.backbone_name,
        one.layer,
        one.width,
        form.format(one.score),
        f"{low} to {high}",
        form.format(one.knn),
        f"{one.parameters / 1e6:.2f}",
        "-" if one.cost.seconds is None else duration(one.cost.seconds),
        f"{one.cost.bytes:,}",
    )
