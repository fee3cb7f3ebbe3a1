"""`precompute plan`: what an extraction will take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from precompute.cli._options import (
    computation,
    keep_option,
    layer_lines,
    shard_option,
    source_options,
    taken_apart,
    view_words,
)
from precompute.cli._output import duration, json_option, note, print_json, print_pairs

if TYPE_CHECKING:
    from precompute.extraction.forecast import Forecast


@click.command(no_args_is_help=True)
@click.argument("source", type=click.Path())
@computation
@source_options
@keep_option
@shard_option
@click.option("-o", "--output", type=click.Path(), help="The planned feature file; its existing rows are reused.")
@json_option
@click.pass_context
def plan(ctx: click.Context, /, source: str, output: str | None, as_json: bool, **options: Any) -> None:
    """Report the time, memory and disk that `precompute extract` with the same arguments needs; write nothing.

    SOURCE is any source of `extract`: a folder, a table, tar shards, a data set, ... Samples spread over the source are
    run through the same engine for up to 10 seconds, so time and memory are measured, not guessed.

    \b
    Examples:
      precompute plan photos -b resnet50
      precompute plan photos -b resnet50 --views 8 --augment flip,crop,color
      precompute plan photos -b vit_b_16 --precision bf16 -o photos.h5
      precompute plan photos -b resnet50 --shard 1/4

    \b
    Exit status: 0, or 1 where the disk has no room for the file.
    """
    from precompute.extraction.forecast import forecast

    found = forecast(source, output, **taken_apart(options))
    if as_json:
        print_json(found.to_dict())
    else:
        _tell(found)
    ctx.exit(0 if found.fits else 1)


def _tell(found: Forecast) -> None:
    for line in found.warnings:
        note(f"Warning: {line}")
    basis = (
        f"{found.rate:,.1f} {found.unit}/s, measured on {found.measured:,} of them in {found.measured_seconds:.1f} s"
    )
    gigabyte = 2**30
    print_pairs(
        None,
        [
            (found.unit, f"{found.images:,}, {found.to_read:,} of them to be read"),
            ("unreadable", f"{found.failed:,} of those looked at" if found.failed else None),
            ("features", layer_lines(found.layers, found.dtype, found.views)),
            ("views", _views(found) if found.views > 1 else None),
            ("windows", f"about {found.passes:,} of the clips to be read" if _has_windows(found) else None),
            ("engine", f"{found.engine} on {found.device} in {found.precision}, {found.batch_size} at a time"),
            ("chosen", found.why.replace("; ", "\n") or None),
            ("time", f"about {duration(found.seconds)} ({basis}; {found.start_seconds:.1f} s to start)"),
            ("time spent", found.stages.replace("; ", "\n")),
            ("memory", f"about {found.memory / gigabyte:.2f} GiB of RAM" + _on_device(found)),
            (
                "disk",
                f"{found.bytes:,} bytes; {found.free:,} are free" + ("" if found.fits else ", which is TOO LITTLE"),
            ),
        ],
    )


def _views(found: Forecast) -> str:
    if found.windows:
        return view_words(found.views, found.windows, found.unit[:-1])
    return f"{found.views} of each sample: {found.passes:,} forward passes at most"


def _has_windows(found: Forecast) -> bool:
    return bool(found.windows) or found.passes != found.views * found.to_read


def _on_device(found: Forecast) -> str:
    return f", {found.device_memory / 2**30:.2f} GiB on {found.device}" if found.device_memory else ""
