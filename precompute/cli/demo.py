"""`precompute demo`: the main job on data that comes with scikit-learn."""

from __future__ import annotations

import click

from precompute.cli._options import overwrite_option
from precompute.cli._output import finished, json_option, note, print_json, print_pairs, print_table


@click.command()
@click.option("--folder", type=click.Path(), help="Keep images, caches and head here.  [default: a temporary folder]")
@click.option("--text", "of_text", is_flag=True, help="On made-up questions with the backbone ngram-hash instead.")
@overwrite_option
@json_option
def demo(folder: str | None, of_text: bool, overwrite: bool, as_json: bool) -> None:
    """Extract scikit-learn's digits with the embedded backbone, train heads on 50 labels and on all.

    Sets the embedded backbone beside raw pixels and beside the same backbone with random weights. Needs no download.
    With --text: questions, and a head that says what is asked for.

    \b
    Examples:
      precompute demo
      precompute demo --folder demo --json
      precompute demo --text
    """
    if of_text:
        _text(folder, overwrite=overwrite, as_json=as_json)
        return
    from precompute.demo import run_demo

    result = run_demo(folder, overwrite=overwrite, say=note)
    finished(folder)
    if as_json:
        print_json(result.to_dict())
        return
    rows = [(row.features, row.width, f"{row.few:.1%} ± {row.few_spread:.1%}", f"{row.all:.1%}") for row in result.rows]
    print_table(
        f"Digits: accuracy on {result.tested} images that no head has seen",
        ("features", "width", f"{result.labels} labels", f"all {result.trained} labels"),
        rows,
        right=1,
    )
    print_pairs(
        None,
        [
            ("50 labels", f"mean and standard deviation of {result.draws} draws, 5 images a class"),
            (
                "time",
                f"{result.extract_seconds:.1f} s to extract once, {result.train_seconds:.2f} s to train each head",
            ),
            ("kept in", folder),
        ],
    )


def _text(folder: str | None, *, overwrite: bool, as_json: bool) -> None:
    from precompute.demo import run_text_demo

    result = run_text_demo(folder, overwrite=overwrite, say=note)
    finished(folder)
    if as_json:
        print_json(result.to_dict())
        return
    print_pairs(
        f"What a question asks for: {', '.join(result.classes)}",
        [
            ("features", "ngram-hash: hashed n-grams, nothing learned"),
            ("trained on", f"{result.trained} questions"),
            ("accuracy", f"{result.accuracy:.1%} of {result.tested} questions about places that were not in training"),
            ("time", f"{result.extract_seconds:.1f} s to extract, {result.train_seconds:.2f} s to train the head"),
            ("kept in", folder),
        ],
    )
