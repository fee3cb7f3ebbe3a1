"""`precompute verify`: does every row still match its checksum?"""

from __future__ import annotations

import click

from precompute.cli._output import json_option, note, print_json, print_pairs, progress_bar

NAMED = 10


@click.command(no_args_is_help=True)
@click.argument("cache", type=click.Path())
@json_option
@click.pass_context
def verify(ctx: click.Context, cache: str, as_json: bool) -> None:
    """Read every row of CACHE once and hold it against its checksum.

    \b
    Examples:
      precompute verify photos.h5
      precompute verify photos.h5 --json

    \b
    Exit status: 0 whole, 1 rows are damaged or missing.
    """
    from precompute.cache import open_cache
    from precompute.cache import verify as run

    opened = open_cache(cache)
    total, done = len(opened) * len(opened.layers), 0
    with progress_bar("verify", "rows") as draw:

        def show(rows: int) -> None:
            nonlocal done
            done += rows
            draw(done, total, "")

        found = run(opened, progress=show)
    ids = opened.column("samples/id")
    damaged = [ids[row].decode(errors="surrogateescape") for row in found.damaged]
    told = {
        "path": cache,
        "whole": found.whole,
        "good": len(found.good),
        "damaged": damaged,
        "pending": len(found.pending),
        "ids_in_order": found.ids_in_order,
    }
    if as_json:
        print_json(told)
    else:
        for name in damaged[:NAMED]:
            note(f"Damaged: {name}")
        print_pairs(
            None,
            [
                ("rows that match their checksum", f"{len(found.good):,} of {len(opened):,}"),
                ("damaged", f"{len(found.damaged):,}"),
                ("not computed yet", f"{len(found.pending):,}"),
                ("ids in order", "yes" if found.ids_in_order else "no"),
            ],
        )
        if not found.whole:
            note("To mend it run the `precompute extract` command that made the file once more, to a new output.")
    ctx.exit(0 if found.whole else 1)
