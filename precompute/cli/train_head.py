"""`precompute train-head`: a feature file in, a head and its scores out."""

from __future__ import annotations

import os
import shlex
from typing import Any

import click

from precompute.cli._options import (
    SEED,
    Seconds,
    learning_options,
    one_or_several,
    overwrite_option,
    task_option,
)
from precompute.cli._output import finished, json_option, print_json, training_progress
from precompute.cli._training import report_training
from precompute.cli.report import print_report

OPTIONS = {  # the parameters of each kind of head that are options here; any other is a usage error
    "logistic": ("C", "time_budget", "device"),
    "mlp": (
        *("hidden", "dropout", "batch_norm", "label_smoothing", "mixup", "weight_decay", "learning_rate", "schedule"),
        *("batch_size", "max_epochs", "patience", "search", "time_budget", "device", "plot"),
    ),
    "knn": ("k", "temperature", "device"),
    "ridge": ("alpha",),
    "centroid": ("metric",),
    "selected": ("fraction", "C", "device"),
    "attentive": (
        *("queries", "dropout", "label_smoothing", "weight_decay", "learning_rate", "schedule", "batch_size"),
        *("max_epochs", "patience", "device", "plot"),
    ),
}


class Widths(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """Widths of the hidden layers, separated by commas; 0 for none."""

    name = "WIDTH,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(width) for width in value.split(",")) if value != "0" else ()
        except ValueError:
            self.fail(f"{value!r} is not a list of widths such as 256,128", param, ctx)


class Strength(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """A positive number, or auto."""

    name = "NUMBER|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        try:
            return "auto" if value == "auto" else float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)


@click.command("train-head", no_args_is_help=True)
@click.argument("cache", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="Save the head to this .safetensors file.")
@click.option(
    "--head",
    type=click.Choice(list(OPTIONS)),
    help="[default: logistic; ridge for numbers; selected for the classes of several layers]",
)
@task_option
@click.option("--layer", multiple=True, help="The layer, if the cache holds several; repeat for more layers, or all.")
@click.option("--C", "C", type=Strength(), help="Logistic, selected: inverse strength of the penalty.  [default: auto]")
@click.option(
    "--fraction", type=Strength(), help="Selected: share of the features of all layers to keep.  [default: auto]"
)
@click.option("--queries", type=int, help="Attentive: weighted means over the positions.  [default: 4]")
@click.option("--hidden", type=Widths(), help="MLP: widths of the hidden layers.  [default: 256]")
@click.option("--dropout", type=float, help="MLP, attentive: probability of dropping a unit.  [default: 0.2]")
@click.option("--batch-norm", is_flag=True, default=None, help="MLP: normalise hidden layers over the batch.")
@click.option(
    "--label-smoothing",
    type=float,
    help="MLP, attentive: share of the target spread over all classes.  [default: 0]",
)
@click.option("--mixup", type=float, help="MLP: alpha by which pairs of features are mixed.  [default: 0, none]")
@click.option("--weight-decay", type=float, help="MLP, attentive: AdamW's weight decay.  [default: 1e-4, 1e-2]")
@click.option("--learning-rate", type=float, help="MLP, attentive: AdamW's learning rate.  [default: 1e-3]")
@click.option(
    "--schedule",
    type=click.Choice(["constant", "cosine"]),
    help="MLP, attentive: learning rate.  [default: cosine]",
)
@click.option("--batch-size", type=int, help="MLP, attentive: samples of a training step.  [default: 256, 64]")
@click.option("--max-epochs", type=int, help="MLP, attentive: epochs at most.  [default: 200, 100]")
@click.option("--patience", type=int, help="MLP, attentive: epochs without improvement that end it.  [default: 20]")
@click.option(
    "--search", is_flag=True, default=None, help="MLP: try 24 settings at once; options given here are fixed."
)
@click.option(
    "--time-budget",
    type=Seconds(),
    help="Logistic, MLP: time limit for choosing C, or for --search.",
)
@click.option("--device", help="Where to compute: cpu, cuda, cuda:1, ...; not ridge, centroid.  [default: cpu]")
@click.option(
    "--plot",
    type=click.Path(),
    help="MLP, attentive: draw loss and accuracy by epoch (.png, .svg, .pdf).",
)
@click.option("--k", type=int, help="kNN: number of neighbours that vote.  [default: 20]")
@click.option("--temperature", type=float, help="kNN: a smaller value gives the nearest more weight.  [default: 0.07]")
@click.option("--alpha", type=Strength(), help="Ridge: strength of the penalty.  [default: auto]")
@click.option(
    "--metric",
    type=click.Choice(["mahalanobis", "cosine", "euclidean"]),
    help="Centroid: distance.  [default: mahalanobis]",
)
@click.option(
    "--protocol",
    metavar="simclr[:DATASET]",
    help="Logistic: the published linear probe, to compare with a paper; DATASET (pets, ...) sets the metric.",
)
@click.option(
    "--seed",
    type=SEED,
    metavar="INTEGER",
    default=0,
    show_default=True,
    help="Seed of the hold-out, the folds and the MLP.",
)
@learning_options
@click.option(
    "--calibrate", is_flag=True, help="Calibrate probabilities with the temperature that fits split val best."
)
@click.option("--per-class", is_flag=True, help="Precision, recall and F1 of each class or label.")
@click.option(
    "--report", "page", type=click.Path(), metavar="OUT.html", help="Also write a report of the head; it needs -o."
)
@overwrite_option
@json_option
def train_head(
    cache: str,
    output: str | None,
    head: str | None,
    task: str,
    layer: tuple[str, ...],
    seed: int,
    groups: str | None,
    groups_file: str | None,
    groups_column: str | None,
    label_column: tuple[str, ...],
    label_separator: str | None,
    split_column: str | None,
    labels: str | None,
    expect: int | None,
    similarity: float | None,
    plain_view: bool,
    average_views: bool,
    calibrate: bool,
    per_class: bool,
    overwrite: bool,
    as_json: bool,
    page: str | None,
    plot: str | None,
    protocol: str | None,
    **given: Any,
) -> None:
    """Train a light head on the features in CACHE and score it on samples it has not seen.

    Trains on split train and scores on val and test; without such splits on a stratified hold-out of a fifth.
    Byte-identical samples are never on both sides.

    The task is detected from the labels: several labels a sample if any text contains `;`, a number if all are
    numbers and any is not whole, else one class. --task overrides it. Several label columns of 0 and 1 are one label
    each. An empty cell means no label, and the sample is left out; a lone `;` is a sample with none of the labels.

    --layer all, or several --layer, uses the pooled features of all these layers, for example of a file that `extract
    --layer all-blocks` made in one pass. The selected head keeps the most relevant features; other heads use all.
    --head attentive learns which positions of a layer matter: extract it with --pooling none.

    \b
    Examples:
      precompute train-head photos.h5
      precompute train-head photos.h5 -o photos.safetensors
      precompute train-head photos.h5 -o photos.safetensors --report report.html
      precompute train-head photos.h5 --C 0.1 --json
      precompute train-head photos.h5 --head mlp --hidden 512,128 --dropout 0.5
      precompute train-head photos.h5 --head knn --k 5
      precompute train-head photos.h5 --head ridge --alpha 100
      precompute train-head blocks.h5 --layer all -o photos.safetensors
      precompute train-head blocks.h5 --layer features.14 --layer features.17 --head ridge
      precompute train-head tokens.h5 --head attentive --queries 8
      precompute train-head pets.h5 --protocol simclr:pets
      precompute train-head scans.h5 --groups 'patient_(\\d+)' --per-class
      precompute train-head scans.h5 --label-column finding --groups-column patient
      precompute train-head views.h5 --head mlp --average-views
      precompute train-head photos.h5 --labels labels.csv --expect 300
      precompute train-head cards.h5 --label-column ranks --label-separator ' ' --per-class
      precompute train-head cards.h5 --label-column jack --label-column queen --label-column king
      precompute train-head cards.h5 --label-column card_count --task number
      precompute train-head photos.h5 --head mlp --search --time-budget 60 --plot curves.png
    """
    from precompute.training.head import train_head as run

    settings = {name: value for name, value in given.items() if value is not None}
    # Without --head it depends on the labels which of the two it is: what neither has is refused here already.
    heads = [head] if head else ["ridge"] if task == "number" else ["logistic", "ridge"]
    if head is None and task != "number" and (len(layer) > 1 or layer == ("all",)):
        heads.append("selected")
    allowed = {name for one in heads for name in OPTIONS[one]}
    foreign = [name for name in (*settings, *(["plot"] if plot is not None else [])) if name not in allowed]
    if foreign:
        raise click.UsageError(f"--{foreign[0].replace('_', '-')} does not belong to --head {heads[0]}.")
    if plot is not None:
        from precompute.reports.plots import check_plot, plot_history

        # before the training, not after it
        check_plot(plot, overwrite=overwrite, inputs=(cache, groups_file, labels, output))
    if page is not None:
        from precompute.reports.report import check_report_output

        if output is None:
            raise click.UsageError("--report shows a head that is saved: give -o HEAD.safetensors too.")
        check_report_output(page, overwrite=overwrite, inputs=(cache, output, groups_file, labels, plot))
    with training_progress("train-head"):
        result = run(
            cache,
            output,
            head=head,
            task=task,
            layer=one_or_several(layer),
            seed=seed,
            groups=groups,
            groups_file=groups_file,
            groups_column=groups_column,
            label_column=label_column or None,
            label_separator=label_separator,
            split_column=split_column,
            labels=labels,
            expect=expect,
            similarity=similarity,
            plain_view=plain_view,
            average_views=average_views,
            calibrated=calibrate,
            protocol=protocol,
            overwrite=overwrite,
            **settings,
        )
    finished(output)
    if plot is not None:
        plot_history(result.choices["history"], plot, best_epoch=result.choices["best_epoch"], overwrite=overwrite)
    shown = None
    if page is not None and output is not None:
        from precompute.reports.report import report

        with training_progress("report"):
            shown = report(
                *(cache, output, page),
                seed=seed,
                labels=labels,
                groups_file=groups_file,
                trained=result,
                overwrite=overwrite,
            )
    if as_json:
        reported = {} if shown is None else {"report": shown.to_dict()}
        print_json({**result.to_dict(), "cache": cache, "output": output, **reported})
        return
    tables = {"--labels": labels, "--groups-file": groups_file}
    commands = _next(cache, output, None if shown is not None else tables)
    report_training(result, output, per_class=per_class, next_lines=commands)
    if shown is not None:
        print_report(shown)


def _next(cache: str, output: str | None, tables: dict[str, str | None] | None) -> str | None:
    """Commands to paste, a line each: what the head says of new samples, and how it did, as a page.

    tables: files that the page needs again, by option; None where the page has been made.
    """
    if output is None:
        return None
    commands = [["precompute", "predict", output, "new-samples"]]
    if tables is not None:
        given = [word for option, path in tables.items() if path is not None for word in (option, path)]
        page = f"{os.path.splitext(output)[0]}.html"
        commands.append(["precompute", "report", cache, output, *given, "-o", page])
    return "\n".join(map(shlex.join, commands))
