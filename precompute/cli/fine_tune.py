"""`precompute fine-tune`: activations or images in, a trained tail or whole network and its scores out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from precompute.cli._cuts import show_cuts
from precompute.cli._options import (
    SEED,
    Seconds,
    allow_skipped_option,
    complete_backbone,
    learning_options,
    overwrite_option,
    task_option,
    transform_options,
    transform_taken,
)
from precompute.cli._output import (
    duration,
    finished,
    json_option,
    print_json,
    progress_bar,
    stop_on_signal,
    training_progress,
)
from precompute.cli._scores import headline
from precompute.cli._signals import Signals
from precompute.cli._streams import SKIPPED
from precompute.cli._training import report_training

if TYPE_CHECKING:
    from precompute.extraction.conduct import Progress
    from precompute.finetuning.tuning import Tuning


@click.command("fine-tune", no_args_is_help=True)
@click.argument("source", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="Save the tail to this .safetensors file.")
@click.option("--layer", help="The layer behind which to train, if the cache holds several.")
@click.option(
    "-b",
    "--backbone",
    shell_complete=complete_backbone,
    help="For images: the network. For a cache: confirm a network that is your own code.",
)
@click.option("--weights", help="Its weights, as for extract. For a cache: their new place, if they have moved.")
@click.option("--freeze-to", metavar="LAYER", help="For images: train only the layers behind this one.  [default: all]")
@click.option(
    "--augment",
    metavar="STEP,...",
    help="For images: what each epoch's views are made by, as for extract, or none. Leave flip out where left and "
    "right differ, as in digits.  [default: crop,flip]",
)
@click.option(
    "--features",
    type=click.Path(),
    help="For images: a cache of the inputs of the classifier.  [default: OUTPUT.features.h5, made first]",
)
@click.option("--tail", metavar="PACKAGE.MODULE:FACTORY", help="Your own layers instead of those behind the cut.")
@click.option(
    "--cut",
    type=click.Choice(["auto"]),
    help="For images: propose where to cut, with the cost of each cut; train nothing.",
)
@task_option
@click.option("--epochs", type=int, default=30, show_default=True, help="At most.")
@click.option("--learning-rate", type=float, default=1e-4, show_default=True, help="AdamW's peak learning rate.")
@click.option(
    "--weight-decay", type=float, default=1e-4, show_default=True, help="AdamW's weight decay, for weights only."
)
@click.option(
    "--warmup", type=float, default=1.0, show_default=True, help="Epochs in which the learning rate rises from 0."
)
@click.option("--schedule", type=click.Choice(["cosine", "constant"]), default="cosine", show_default=True)
@click.option("--batch-size", type=int, default=32, show_default=True, help="Samples in a step.")
@click.option(
    "--patience", type=int, default=8, show_default=True, help="Stop after this many epochs without improvement."
)
@click.option("--dropout", type=float, default=0.0, show_default=True, help="Dropout before the output layer.")
@click.option(
    "--label-smoothing", type=float, default=0.0, show_default=True, help="Share of the target spread over all classes."
)
@click.option(
    "--seed", type=SEED, metavar="INTEGER", default=0, show_default=True, help="Of hold-out, batches, views, dropout."
)
@click.option("--device", default="cpu", show_default=True, help="Where to compute: auto, cpu, cuda, cuda:1, ...")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Precision of the training; auto is mixed bf16 on CUDA, and fp32 on a CPU.",
)
@click.option(
    "--checkpoint-seconds", type=Seconds(), default=30.0, show_default=True, help="Interval between two checkpoints."
)
@learning_options
@click.option(
    "--calibrate", "calibrated", is_flag=True, help="Calibrate probabilities with the temperature that fits val best."
)
@click.option("--per-class", is_flag=True, help="Precision, recall and F1 of each class or label.")
@click.option("--plot", type=click.Path(), help="Draw loss and accuracy by epoch (.png, .svg, .pdf).")
@transform_options
@click.option("--workers", type=int, help="For images: decoding threads.  [default: one for each core]")
@click.option("--root", type=click.Path(), help="For images: as for extract.")
@click.option("--path-column", metavar="NAME", help="For images: as for extract.")
@click.option("--id-column", metavar="NAME", help="For images: as for extract.")
@allow_skipped_option
@overwrite_option
@json_option
@click.pass_context
def fine_tune(
    ctx: click.Context,
    /,
    source: str,
    output: str | None,
    cut: str | None,
    per_class: bool,
    allow_skipped: bool,
    plot: str | None,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Train the network behind a layer, or a whole network, and score it on images it has not seen.

    First fits the linear head that train-head would fit on the features, then trains these layers and the head
    together at a small rate (LP-FT). The epoch with the lowest loss on val, or on a hold-out if there is no split
    test, is kept; the linear head alone is epoch 0. Scores are compared with those of that head on the same images.

    SOURCE is a cache with unpooled activations of a layer, which takes the least time. If the cache has views, each
    epoch draws one of the views of each image.

    Or SOURCE holds images, as for extract: then the whole network -b is trained, or the part behind --freeze-to, on
    other views of each image in each epoch. The input of the classifier is computed first, and kept in
    OUTPUT.features.h5, because the linear head is fitted on it. See docs/whole-networks.md.

    The same command resumes a training that was killed: OUTPUT.checkpoint holds its state.

    \b
    Examples:
      precompute fine-tune deep.h5 -o tail.safetensors
      precompute fine-tune deep.h5 --layer layer3 -o tail.safetensors --plot curves.png
      precompute fine-tune deep.h5 --epochs 10 --learning-rate 3e-5 --dropout 0.2
      precompute fine-tune deep.h5 --device cuda --precision bf16 --batch-size 128
      precompute fine-tune photos -b resnet18 --cut auto
      precompute fine-tune photos -b resnet18 -o full.safetensors
      precompute fine-tune photos -b resnet18 --freeze-to layer2 --augment flip,crop,color -o deep.safetensors
      precompute fine-tune photos -b resnet50 --device cuda --batch-size 64 -o full.safetensors
      precompute fine-tune deep.h5 --tail mypackage.tails:two_convolutions -o tail.safetensors

    \b
    Exit status: 0 done, 3 done but some images of SOURCE were skipped (0 with --allow-skipped), 129/130/143 stopped
    and resumable.
    """
    if cut is not None:
        show_cuts(source, given, as_json=as_json)
        return
    from precompute.finetuning.fine_tune import fine_tune as run

    if plot is not None:
        from precompute.reports.plots import check_plot

        check_plot(plot, overwrite=overwrite, inputs=(source, given["groups_file"], given["labels"], output))
    columns = {part: name for part in ("path", "id") if (name := given.pop(f"{part}_column")) is not None}
    options = {**transform_taken(given), "columns": columns, "label_column": given["label_column"] or None}
    with training_progress("fine-tune"), stop_on_signal() as stop, contextlib.ExitStack() as bar:
        draw: Callable[[int, int, str], None] | None = None

        def show(now: Progress) -> None:
            nonlocal draw
            stop.batches_begin()
            draw = draw or bar.enter_context(progress_bar("extract", "samples"))
            draw(now.done, now.total, f"{now.rate:.1f} images/s, {duration(now.remaining)} left")
            if now.done == now.total:  # the training has a bar of its own
                stop.batches_end()
                bar.close()
                draw = None

        options |= {"overwrite": overwrite, "stop": stop, "stepping": _gently(stop), "progress": show}
        result = run(source, output, **options)
    finished(output)
    if plot is not None:
        _draw(result, plot, overwrite=overwrite)
    if as_json:
        print_json({**result.to_dict(), "source": source, "output": output})
    else:
        report_training(result, output, per_class=per_class, more=_changes(result))
    ctx.exit(SKIPPED if result.skipped and not allow_skipped else 0)


@contextlib.contextmanager
def _gently(signals: Signals) -> Iterator[None]:
    """Inside, a signal ends the training after the current step, with a checkpoint."""
    signals.batches_begin()
    try:
        yield
    finally:
        signals.batches_end()


def _changes(result: Tuning) -> Iterator[tuple[str, str]]:
    """What fine-tuning changed on each split, and whether that is significant."""
    for split, found in result.paired.items():
        before, after = (headline(result.task, scores[split]) for scores in (result.before, result.scores))
        low, high = found.interval
        by = f"difference {found.difference:+.3f} (95%: {low:+.3f} to {high:+.3f}, p {found.p_value:.3f})"
        verdict = "significant" if found.distinct else "not significant"
        yield (
            f"before, {split}",
            f"{before}, by the linear head alone; after: {after}\n{by}, {verdict}",
        )


def _draw(result: Tuning, plot: str, *, overwrite: bool) -> None:
    from precompute.reports.plots import plot_history

    best = result.choices["best_epoch"]
    plot_history(result.choices["history"], plot, best_epoch=best, overwrite=overwrite)
