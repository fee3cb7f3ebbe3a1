"""`precompute export`: a feature file in, a table of its features out."""

from __future__ import annotations

import click

from precompute.cli._options import overwrite_option
from precompute.cli._output import finished, json_option, note, print_json, print_pairs, progress_bar


@click.command(no_args_is_help=True)
@click.argument("cache", type=click.Path())
@click.option("-o", "--output", type=click.Path(), required=True, help="Write to this .npz, .csv or .parquet file.")
@click.option("--layer", help="The layer, if the cache holds several.")
@click.option("--plain-view", is_flag=True, help="Write only the plain view of several.")
@overwrite_option
@json_option
def export(cache: str, output: str, layer: str | None, plain_view: bool, overwrite: bool, as_json: bool) -> None:
    """Write the features in CACHE with ids, labels, splits and further columns, for programs that do not read HDF5.

    Every row is compared with its checksum first. Rows without features, such as those of broken samples, are left out.
    A .parquet file needs pyarrow: pip install 'precompute[parquet]'.

    \b
    Examples:
      precompute export photos.h5 -o photos.npz
      precompute export photos.h5 -o photos.csv
      precompute export photos.h5 -o photos.parquet --layer layer4
    """
    from precompute.export import export_features

    with progress_bar("export", "rows") as draw:
        result = export_features(
            cache,
            output,
            layer=layer,
            plain_view=plain_view,
            overwrite=overwrite,
            progress=lambda done, total: draw(done, total, ""),
        )
    finished(output)
    if as_json:
        print_json({**result.to_dict(), "cache": cache})
        return
    if result.left_out:
        note(f"Note: left out {result.left_out:,} of {result.rows + result.left_out:,} rows, which have no features")
    print_pairs(
        None,
        [
            ("rows", f"{result.rows:,} of {result.layer}"),
            ("columns", ", ".join((*result.columns, "features"))),
            ("saved", output),
        ],
    )
