"""`precompute demo`: the main job on data that comes with scikit-learn, or that it makes itself."""

from __future__ import annotations

import click

from precompute.cli._options import overwrite_option
from precompute.cli._output import finished, json_option, note, print_json, print_pairs, print_table


@click.command()
@click.option("--text", "kind", flag_value="text", help="Use made-up questions and ngram-hash instead of digits.")
@click.option("--audio", "kind", flag_value="audio", help="Use generated sounds and mel-statistics instead of digits.")
@click.option("--folder", type=click.Path(), help="Keep samples, caches and head here.  [default: a temporary folder]")
@overwrite_option
@json_option
def demo(kind: str | None, folder: str | None, overwrite: bool, as_json: bool) -> None:
    """Extract scikit-learn's digits with the embedded backbone, train heads on 50 labels and on all.

    Compares the embedded backbone with raw pixels and with the same backbone with random weights. Needs no download.
    With --text: made-up questions, and a head that predicts their kind. With --audio: six kinds of sounds, from tones
    to noise, written as WAV files, with features from their mel spectra.

    \b
    Examples:
      precompute demo
      precompute demo --folder demo --json
      precompute demo --text
      precompute demo --audio
    """
    if kind == "text":
        _text(folder, overwrite=overwrite, as_json=as_json)
        return
    if kind == "audio":
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


def _text(folder: str | None, *, overwrite: bool, as_json: bool) -> None:
    from precompute.demo.text import run_text_demo

    result = run_text_demo(folder, overwrite=overwrite, say=note)
    finished(folder)
    if as_json:
        print_json(result.to_dict())
        return
    print_pairs(
        f"Kinds of questions: {', '.join(result.classes)}",
        [
            ("features", "ngram-hash: hashed n-grams, nothing learned"),
            ("trained on", f"{result.trained} questions"),
            ("accuracy", f"{result.accuracy:.1%} of {result.tested} questions about places that were not in training"),
            ("time", f"{result.extract_seconds:.1f} s to extract, {result.train_seconds:.2f} s to train the head"),
            ("kept in", folder),
        ],
    )
