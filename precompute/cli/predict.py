"""`precompute predict`: a head file and images or their features in, classes and probabilities out."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from precompute.cli._options import columns_taken, source_options
from precompute.cli._output import json_option, note, print_json, print_table, progress_bar, terminal
from precompute.cli._streams import SKIPPED

if TYPE_CHECKING:
    from precompute.prediction import Predictions


@click.command(no_args_is_help=True)
@click.argument("head", type=click.Path())
@click.argument("source", type=click.Path())
@click.option("-b", "--backbone", help="Confirm a backbone that is code of your own (package.module:factory).")
@click.option("--weights", help="Where the backbone's weights are now; they must be those of the training.")
@click.option("--format", "style", type=click.Choice(["table", "csv", "jsonl"]), default="table", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--batch-size", type=int, help="Images a forward pass.  [default: by engine and device]")
@click.option("--workers", type=int, help="Decoding threads.  [default: one for each core]")
@source_options
@json_option
@click.pass_context
def predict(
    ctx: click.Context,
    /,
    head: str,
    source: str,
    backbone: str | None,
    weights: str | None,
    style: str,
    device: str,
    batch_size: int | None,
    workers: int | None,
    as_json: bool,
    **reading: Any,
) -> None:
    """Classify the images of SOURCE with the head file HEAD: one image, or whatever `extract` takes, such
    as a folder, a table, a list of files or tar shards.

    SOURCE may also be a cache with features such as the head was trained on: then no image is read.

    The head file knows its backbone, layer and transform, and refuses other weights than those of its training. Where
    folders are named after classes, or a table has labels, the accuracy is reported as well.

    \b
    Examples:
      precompute predict photos.safetensors new-photos
      precompute predict photos.safetensors one.jpg
      precompute predict photos.safetensors photos.h5
      precompute predict photos.safetensors new-photos --format csv > predictions.csv
    """
    from precompute.prediction import predict as run

    terminal().for_programs = as_json or style != "table"
    with progress_bar("predict", "images") as draw:
        result = run(
            head,
            source,
            backbone=backbone,
            weights=weights,
            device=device,
            batch_size=batch_size,
            workers=workers,
            progress=lambda done, total: draw(done, total, ""),
            **columns_taken(reading),
        )
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result, style)
    ctx.exit(SKIPPED if result.failed else 0)


def _print(result: Predictions, style: str) -> None:
    from precompute.cache import status_text

    if style == "table":
        rows = [(item.id, item.label, f"{item.probability:.3f}") for item in result.items]
        print_table(None, ("image", "class", "probability"), rows, right=2)
    elif style == "csv":
        # Names that are not UTF-8 go out as the bytes they are.
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("id", "class", "probability"))
        writer.writerows((item.id, item.label, f"{item.probability:.6f}") for item in result.items)
    else:
        for item in result.items:
            click.echo(json.dumps({"id": item.id, "class": item.label, "probability": item.probability}))
    for line in result.warnings:
        note(f"Warning: {line}")
    for name, reason, detail in result.failed:
        note(f"Skipped: {name}: {status_text(reason)} ({detail})")
    if result.accuracy is not None and result.accuracy_interval is not None:
        low, high = result.accuracy_interval
        note(f"{result.accuracy:.1%} of {result.scored:,} are right by their labels (95%: {low:.1%} to {high:.1%})")
