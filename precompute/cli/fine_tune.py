"""`precompute fine-tune`: a file of activations in, a trained tail and its scores out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from precompute.cli._options import (
    SEED,
    Seconds,
    label_column_option,
    label_separator_option,
    overwrite_option,
    task_option,
)
from precompute.cli._output import finished, json_option, print_json, stop_on_signal, training_progress
from precompute.cli._scores import headline
from precompute.cli._signals import Signals
from precompute.cli.train_head import report_training

if TYPE_CHECKING:
    from precompute.finetuning.fine_tune import Tuning


@click.command("fine-tune", no_args_is_help=True)
@click.argument("cache", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="Save the tail to this .safetensors file.")
@click.option("--layer", help="Behind which layer of the cache to train, where it holds several.")
@click.option("-b", "--backbone", help="Needed, as a confirmation, where the backbone is code of your own.")
@click.option("--weights", help="Where the backbone's weights are now, if not where they were.")
@click.option("--tail", metavar="PACKAGE.MODULE:FACTORY", help="Layers of your own in place of those behind the cut.")
@task_option
@click.option("--epochs", type=int, default=30, show_default=True, help="At most.")
@click.option("--learning-rate", type=float, default=1e-4, show_default=True, help="AdamW's, at its highest.")
@click.option("--weight-decay", type=float, default=1e-4, show_default=True, help="AdamW's, of weights alone.")
@click.option("--warmup", type=float, default=1.0, show_default=True, help="Epochs in which the rate rises from 0.")
@click.option("--schedule", type=click.Choice(["cosine", "constant"]), default="cosine", show_default=True)
@click.option("--batch-size", type=int, default=32, show_default=True, help="Samples a step.")
@click.option("--patience", type=int, default=8, show_default=True, help="Epochs without improvement, then it stops.")
@click.option("--dropout", type=float, default=0.0, show_default=True, help="Of what enters the output layer.")
@click.option(
    "--label-smoothing", type=float, default=0.0, show_default=True, help="Share of the target spread over all classes."
)
@click.option(
    "--seed", type=SEED, metavar="INTEGER", default=0, show_default=True, help="Of hold-out, batches, views, dropout."
)
@click.option("--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda, cuda:1, ...")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="bf16: mixed, on CUDA.",
)
@click.option(
    "--checkpoint-seconds", type=Seconds(), default=30.0, show_default=True, help="From one checkpoint to the next."
)
@click.option("--groups", help="Regular expression whose first (...) finds in an id what must stay on one side.")
@click.option("--groups-file", type=click.Path(), help="CSV file with the columns id and group, instead.")
@click.option("--groups-column", metavar="NAME", help="A further column of the cache, instead.")
@label_column_option
@label_separator_option
@click.option("--split-column", metavar="NAME", help="A further column with train, val and test, the same.")
@click.option("--labels", type=click.Path(), help="CSV file with the columns id (or path) and label, instead.")
@click.option("--expect", type=int, metavar="N", help="Samples that --labels must name at least.")
@click.option(
    "--similarity", type=float, help="Cosine from which an image is a suspected near-duplicate.  [default: 0.9]"
)
@click.option("--plain-view", is_flag=True, help="Train on the plain view alone, of a cache with several.")
@click.option(
    "--average-views", is_flag=True, help="Predict and score by the mean over all views, not by the plain one."
)
@click.option("--calibrate", "calibrated", is_flag=True, help="Probabilities at the temperature that fits val best.")
@click.option("--per-class", is_flag=True, help="Precision, recall and F1 of each class or label.")
@click.option("--plot", type=click.Path(), help="Draw loss and accuracy by epoch (.png, .svg, .pdf).")
@overwrite_option
@json_option
def fine_tune(
    cache: str,
    output: str | None,
    per_class: bool,
    plot: str | None,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Train what lies behind a layer, on its activations in CACHE, and score it on images it has not seen.

    First the linear head that train-head would fit on what the frozen layers give, then these layers and the head
    together at a small rate (LP-FT). The epoch with the lowest loss on val, or on a hold-out where there is no split
    test, is kept; the linear head alone is epoch 0. Scores stand beside those of that head on the same images.

    CACHE holds unpooled activations of a layer. With --views each epoch draws one of the views of each image. A
    training that was killed goes on where it was by the same command: OUTPUT.checkpoint holds its state meanwhile.

    \b
    Examples:
      precompute fine-tune deep.h5 -o tail.safetensors
      precompute fine-tune deep.h5 --layer layer3 -o tail.safetensors --plot curves.png
      precompute fine-tune deep.h5 --epochs 10 --learning-rate 3e-5 --dropout 0.2
      precompute fine-tune deep.h5 --device cuda --precision bf16 --batch-size 128
      precompute fine-tune deep.h5 --tail mypackage.tails:two_convolutions -o tail.safetensors
    """
    from precompute.finetuning.fine_tune import fine_tune as run

    if plot is not None:
        from precompute.reports.plots import check_plot

        check_plot(plot, overwrite=overwrite, inputs=(cache, given["groups_file"], given["labels"], output))
    options = {**given, "label_column": given["label_column"] or None}
    with training_progress("fine-tune"), stop_on_signal() as stop:
        result = run(cache, output, overwrite=overwrite, stop=stop, stepping=_gently(stop), **options)
    finished(output)
    if plot is not None:
        _draw(result, plot, overwrite=overwrite)
    if as_json:
        print_json({**result.to_dict(), "cache": cache, "output": output})
    else:
        report_training(result, output, per_class=per_class, more=_changes(result))


@contextlib.contextmanager
def _gently(signals: Signals) -> Iterator[None]:
    """Inside, a signal ends the training after the step in flight, with a checkpoint."""
    signals.batches_begin()
    try:
        yield
    finally:
        signals.batches_end()


def _changes(result: Tuning) -> Iterator[tuple[str, str]]:
    """What fine-tuning changed on each split, and whether that is more than chance."""
    for split, found in result.paired.items():
        before, after = (headline(result.task, scores[split]) for scores in (result.before, result.scores))
        low, high = found.interval
        by = f"difference {found.difference:+.3f} (95%: {low:+.3f} to {high:+.3f}, p {found.p_value:.3f})"
        told = " be" if found.distinct else "not be"
        yield (
            f"before, {split}",
            f"{before}, by the linear head alone; after: {after}\n{by}, which can{told} told from chance",
        )


def _draw(result: Tuning, plot: str, *, overwrite: bool) -> None:
    from precompute.reports.plots import plot_history

    best = result.choices["best_epoch"]
    plot_history(result.choices["history"], plot, best_epoch=best, overwrite=overwrite)
