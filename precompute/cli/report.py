"""`precompute report`: a cache and its heads in one HTML file to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from precompute.cli._options import SEED, columns_taken, group_options, overwrite_option, source_options
from precompute.cli._output import finished, json_option, note, print_json, print_pairs, training_progress

if TYPE_CHECKING:
    from precompute.reports.report import Report


@click.command(no_args_is_help=True)
@click.argument("cache", type=click.Path())
@click.argument("heads", nargs=-1, metavar="[HEAD]...", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="Write the report to this .html file.")
@click.option("--source", type=click.Path(), help="Where the samples are now.  [default: where CACHE was made from]")
@click.option(
    "--thumbnails",
    type=click.IntRange(0),
    metavar="N",
    help="Samples to show as pictures, texts or clips, 0 for none.  [default: 600 images, 3000 texts, 100 clips]",
)
@click.option("--compare", is_flag=True, help="Compare the heads in pairs, and show the samples they disagree on.")
@click.option(
    "--results",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="Draw the curves that few-shot, depth or rank printed with --json. Several times: several files.",
)
@click.option(
    "--map",
    "kind",
    type=click.Choice(["auto", "none", "all"]),
    default="auto",
    show_default=True,
    help="auto: up to 3,000 rows, by scikit-learn; all: every row, by openTSNE (pip install 'precompute[map]').",
)
@click.option("--layer", metavar="NAME", help="Layer of the map.  [default: that of the first head]")
@click.option(
    "--seed", type=SEED, metavar="INTEGER", default=0, show_default=True, help="Of the map and the comparisons."
)
@click.option("--labels", type=click.Path(), help="The CSV file of labels that the heads were trained on, if any.")
@group_options
@source_options
@click.option("--weights", help="Of a tail: where the weights of its backbone are now, if they have moved.")
@click.option(
    "-b", "--backbone", "backbones", multiple=True, help="Confirm a backbone of a tail that is your own code."
)
@click.option("--tail", "tails", multiple=True, help="Confirm a tail that is your own code.")
@click.option("--device", default="auto", show_default=True, help="Of tails: auto, cpu, cuda, cuda:1, ...")
@overwrite_option
@json_option
def report(cache: str, heads: tuple[str, ...], output: str, kind: str, as_json: bool, **options: Any) -> None:
    """Write a report of CACHE, and of heads that were trained on it, to one HTML file that opens without a network.

    It shows, of each HEAD: the score with its interval, the confusion matrix with its pictures, the most confident
    mistakes, leaks as pairs, reliability, curves. Of CACHE: duplicates, a map of the features, and how it was made.

    \b
    Examples:
      precompute report photos.h5 photos.safetensors -o report.html
      precompute report photos.h5 logistic.safetensors mlp.safetensors -o report.html --compare
      precompute report photos.h5 photos.safetensors -o report.html --source /mnt/photos --thumbnails 2000
      precompute few-shot photos.h5 --json > few-shot.json
      precompute report photos.h5 photos.safetensors -o report.html --results few-shot.json
      precompute report photos.h5 -o report.html --map all
    """
    from precompute.reports.report import report as run

    with training_progress("report"):
        result = run(cache, heads, output, map=kind, **columns_taken(options))
    finished(output)
    if as_json:
        print_json(result.to_dict())
    else:
        print_report(result)


def print_report(result: Report) -> None:
    """Notes, then what was written."""
    for line in result.notes:
        note(f"Note: {line}")
    print_pairs(
        None,
        [
            ("report", result.path),
            ("heads", ", ".join(result.heads) or None),
            ("map", result.map),
            ("shown", f"{result.pictures:,} samples as pictures, texts or clips" if result.pictures else None),
            ("size", f"{result.bytes:,} bytes, {result.seconds:.1f} s"),
        ],
    )
