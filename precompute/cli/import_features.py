"""`precompute import`: imported features in, a feature file out."""

from __future__ import annotations

import click

from precompute.cli._options import overwrite_option
from precompute.cli._output import finished, json_option, note, print_json, print_pairs, progress_bar


@click.command("import", no_args_is_help=True)
@click.argument("features", type=click.Path())
@click.option("-o", "--output", type=click.Path(), required=True, help="The feature file to write (HDF5).")
@click.option("--name", help="Name of the model that made the features, with its version.")
@overwrite_option
@json_option
def import_features(features: str, output: str, name: str | None, overwrite: bool, as_json: bool) -> None:
    """Write imported features, in the .npz, .npy or .parquet file FEATURES, as a feature file for heads.

    FEATURES has an array `features` (n, d), and may have `id`, `label` and `split` (n,) and further columns, as
    `precompute export` writes them. Nothing in it is unpickled. Files with the same --name count as features of one
    model: a head trained on one of them predicts on another. Without a name it predicts only on the same features.

    \b
    Examples:
      precompute import clip.npz -o clip.h5 --name clip-vit-b32
      precompute train-head clip.h5 -o clip.safetensors
    """
    from precompute.external.features import import_features as run

    with progress_bar("import", "rows") as draw:
        result = run(
            features,
            output,
            name=name,
            overwrite=overwrite,
            progress=lambda done, total: draw(done // 2, total // 2, ""),
        )
    finished(output)
    if as_json:
        print_json({**result.to_dict(), "source": features})
        return
    if result.narrowed:
        note("Note: float64 became float32")
    if result.not_finite:
        note(f"Note: {result.not_finite:,} rows have NaN or infinity, and count as failed")
    print_pairs(
        None,
        [
            ("rows", f"{result.rows:,} of {' x '.join(map(str, result.shape))} {result.dtype}"),
            ("classes", f"{len(result.classes):,}"),
            ("columns", ", ".join(result.columns) or None),
            ("saved", output),
            ("next", f"precompute train-head {output}" if len(result.classes) > 1 else None),
        ],
    )
