"""`precompute predict`: files of heads, tails or whole networks, and images or their features in; classes, labels or
numbers out."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from precompute.cli._options import allow_skipped_option, columns_taken, source_options
from precompute.cli._output import json_option, note, print_json, print_table, progress_bar, terminal
from precompute.cli._scores import score_words
from precompute.cli._streams import SKIPPED

if TYPE_CHECKING:
    from precompute.prediction import Predictions
    from precompute.system.samples import Words


@click.command(no_args_is_help=True)
@click.argument("heads", metavar="HEAD...", nargs=-1, required=True, type=click.Path())
@click.argument("source", type=click.Path())
@click.option("-b", "--backbone", help="Confirm a backbone that is your own code (package.module:factory).")
@click.option("--weights", help="The current place of the backbone's weights; they must be those of the training.")
@click.option("--augment", help="Confirm your own transforms that a head averages over, as package.module:name.")
@click.option("--tail", help="Confirm a tail that is your own code (package.module:factory).")
@click.option("--format", "style", type=click.Choice(["table", "csv", "jsonl"]), default="table", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option(
    "--batch-size",
    type=int,
    help="Inputs a forward pass: images, texts, or windows of clips.  [default: by engine and device]",
)
@click.option("--workers", type=int, help="Decoding threads.  [default: one for each core]")
@allow_skipped_option
@source_options
@json_option
@click.pass_context
def predict(
    ctx: click.Context,
    /,
    heads: tuple[str, ...],
    source: str,
    backbone: str | None,
    weights: str | None,
    augment: str | None,
    tail: str | None,
    style: str,
    device: str,
    batch_size: int | None,
    workers: int | None,
    allow_skipped: bool,
    as_json: bool,
    **reading: Any,
) -> None:
    """Predict a class, several labels or a number for the samples of SOURCE with HEAD, a file of `train-head` or
    `fine-tune`. SOURCE is one image or clip, or any source of `extract`: a folder, a table, a list of files, ...

    SOURCE may also be a cache with features or activations like those that HEAD was trained on: then no sample is read.

    Several heads and tails of one backbone, with the same weights and transform, share one pass over the samples: each
    sample is read, and the frozen part computed, once. Their layers may differ.

    The file stores its backbone, layer and transform, and refuses weights other than those of its training. If
    folders are named after classes, or a table has labels, the accuracy is reported as well; for labels and numbers
    if the head was trained on such labels, if --label-column names them, or from the column of a cache.

    \b
    Examples:
      precompute predict photos.safetensors new-photos
      precompute predict photos.safetensors one.jpg
      precompute predict photos.safetensors photos.h5
      precompute predict photos.safetensors new-photos --format csv > predictions.csv
      precompute predict full.safetensors new-photos
      precompute predict ranks.safetensors count.safetensors new-photos --json
    """
    from precompute.prediction import predict_each as run

    if as_json and ctx.get_parameter_source("style") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--json and --format exclude each other: leave one of them out.")
    terminal().for_programs = as_json or style != "table"
    called: list[Words] = []
    with progress_bar("predict", lambda: called[0].plural) as draw:
        results = run(
            heads,
            source,
            backbone=backbone,
            weights=weights,
            augment=augment,
            tail=tail,
            device=device,
            batch_size=batch_size,
            workers=workers,
            progress=lambda done, total: draw(done, total, ""),
            begins=called.append,
            **columns_taken(reading),
        )
    if as_json:
        found = [result.to_dict() for result in results]
        several = {"heads": [{"head": head, **one} for head, one in zip(heads, found, strict=True)]}
        print_json(found[0] if len(found) == 1 else several)
    else:
        _print(results, style)
    ctx.exit(SKIPPED if results[0].failed and not allow_skipped else 0)


def _print(results: Sequence[Predictions], style: str) -> None:
    from precompute.cache import status_text

    lines = zip(*(result.items for result in results), strict=True)
    if style == "table":
        rows = [(items[0].id, *(cell for item in items for cell in _cells(item))) for items in lines]
        columns = [name for result in results for name in _named(result, ("labels",), alone=len(results) == 1)]
        print_table(None, (results[0].words.one, *columns), rows, right=2 if len(results) == 1 else 99)
    elif style == "csv":
        # Names that are not UTF-8 go out as the bytes they are.
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
        writer = csv.writer(sys.stdout, lineterminator="\n")
        columns = []
        for result in results:
            of_labels = ("labels", *(f"probability of {label}" for label in result.labels))
            columns += _named(result, of_labels, alone=len(results) == 1)
        writer.writerow(("id", *columns))
        writer.writerows((items[0].id, *(value for item in items for value in _values(item))) for items in lines)
    else:
        for items in lines:
            for result, item in zip(results, items, strict=True):
                head = {"head": result.head} if len(results) > 1 else {}
                click.echo(json.dumps({**head, "id": item.id, **_object(result, item)}))
    for line in dict.fromkeys(line for result in results for line in result.warnings):
        note(f"Warning: {line}")
    for name, reason, detail in results[0].failed:
        note(f"Skipped: {name}: {status_text(reason)} ({detail})")
    for result in results:
        if (words := _score(result)) is not None:
            note(f"{result.head}: {words}" if len(results) > 1 else words)


def _named(result: Predictions, of_labels: tuple[str, ...], *, alone: bool) -> list[str]:
    """The names of a head's columns; with several heads also its file's."""
    names = {"classes": ("class", "probability"), "labels": of_labels, "number": ("number",)}[result.task]
    return list(names) if alone else [f"{result.head}: {name}" for name in names]


def _cells(item: Any) -> tuple[str, ...]:
    """As a table for people shows one image."""
    if hasattr(item, "number"):
        return (f"{item.number:.4g}",)
    return (item.label, f"{item.probability:.3f}") if hasattr(item, "label") else (", ".join(item.labels) or "-",)


def _values(item: Any) -> tuple[str, ...]:
    """As a CSV file has it. Several labels are separated as in a column that they are learned from."""
    if hasattr(item, "number"):
        return (repr(item.number),)
    if hasattr(item, "label"):
        return item.label, f"{item.probability:.6f}"
    return ";".join(item.labels) or ";", *(f"{value:.6f}" for value in item.probabilities)


def _object(result: Predictions, item: Any) -> dict[str, Any]:
    if result.task == "number":
        return {"number": item.number}
    if result.task == "classes":
        return {"class": item.label, "probability": item.probability}
    return {"labels": item.labels, "probabilities": dict(zip(result.labels, item.probabilities, strict=True))}


def _score(result: Predictions) -> str | None:
    """One line on how many are right, or how good labels or numbers are; None where nothing is known of the images."""
    if result.accuracy is not None and result.accuracy_interval is not None:
        low, high = result.accuracy_interval
        return f"{result.accuracy:.1%} of {result.scored:,} are right by their labels (95%: {low:.1%} to {high:.1%})"
    if result.scores is None:
        return None
    known = "labels" if result.task == "labels" else "numbers"
    return f"{', '.join(score_words(result.task, result.scores))}, by the {known} that {result.scored:,} have"
