"""`precompute demo`: the main job on data that comes with scikit-learn, or that it makes itself."""

from __future__ import annotations

import click

from precompute.cli._options import overwrite_option
from precompute.cli._output import finished, json_option, note, print_json, print_pairs, print_table


@click.command()
@click.option("--audio", is_flag=True, help="Sounds that it makes itself, with mel-statistics, in place of digits.")
@click.option("--folder", type=click.Path(), help="Keep samples, caches and head here.  [default: a temporary folder]")
@overwrite_option
@json_option
def demo(audio: bool, folder: str | None, overwrite: bool, as_json: bool) -> None:
    """Extract scikit-learn's digits with the embedded backbone, train heads on 50 labels and on all.

    Sets the embedded backbone beside raw pixels and beside the same backbone with random weights. Needs no download.
    With --audio: six kinds of sounds, tones to noise, which it writes as WAV files and describes by their mel spectra.

    \b
    Examples:
      precompute demo
      precompute demo --folder demo --json
      precompute demo --audio
    """
    if audio:
        from precompute.demo.audio import run_audio_demo as run

        title, unit = "Sounds", "clips"
    else:
        from precompute.demo import run_demo as run

        title, unit = "Digits", "images"
    result = run(folder, overwrite=overwrite, say=note)
    finished(folder)
    if as_json:
        print_json(result.to_dict())
        return
    rows = [(row.features, row.width, f"{row.few:.1%} ± {row.few_spread:.1%}", f"{row.all:.1%}") for row in result.rows]
    print_table(
        f"{title}: accuracy on {result.tested} {unit} that no head has seen",
        ("features", "width", f"{result.labels} labels", f"all {result.trained} labels"),
        rows,
        right=1,
    )
    print_pairs(
        None,
        [
            (
                f"{result.labels} labels",
                f"mean and standard deviation of {result.draws} draws, 5 {unit} a class",
            ),
            (
                "time",
                f"{result.extract_seconds:.1f} s to extract once, {result.train_seconds:.2f} s to train each head",
            ),
            ("kept in", folder),
        ],
    )
