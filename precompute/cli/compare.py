"""`precompute compare`: two head files on the same images, and whether their difference is more than chance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from precompute.cli._options import SEED
from precompute.cli._output import json_option, note, print_json, print_pairs, training_progress

if TYPE_CHECKING:
    from precompute.evaluation.comparison import Comparison


@click.command(no_args_is_help=True)
@click.argument("head_a", type=click.Path())
@click.argument("head_b", type=click.Path())
@click.argument("cache_a", type=click.Path())
@click.argument("cache_b", type=click.Path(), required=False)
@click.option("--groups", help="Regular expression that finds an image's group in its id, as for train-head.")
@click.option("--groups-file", type=click.Path(), help="CSV file with the columns id and group, instead.")
@click.option("--seed", type=SEED, metavar="INTEGER", default=0, show_default=True, help="Of the bootstrap.")
@json_option
def compare(
    head_a: str,
    head_b: str,
    cache_a: str,
    cache_b: str | None,
    groups: str | None,
    groups_file: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Compare the heads HEAD_A and HEAD_B on images that neither was trained on.

    CACHE_A and CACHE_B hold the features that they were trained on: one file, or two of the same photos, such as those
    of two backbones; images are matched by id. Scores the images of test that both heads were scored on, else of val,
    else of the hold-out.

    \b
    Examples:
      precompute compare logistic.safetensors mlp.safetensors photos.h5
      precompute compare resnet18.safetensors vit_b_16.safetensors resnet18.h5 vit_b_16.h5
      precompute compare a.safetensors b.safetensors photos.h5 --groups 'patient_(\\d+)' --json
    """
    from precompute.evaluation.comparison import compare as run

    with training_progress("compare"):
        result = run(head_a, head_b, cache_a, cache_b, groups=groups, groups_file=groups_file, seed=seed)
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)


def _print(result: Comparison) -> None:
    for line in result.notes:
        note(f"Note: {line}")
    left_out = "\n".join(f"{count:,} {reason}" for reason, count in result.left_out.items())
    print_pairs(
        None,
        [
            ("images", f"{result.result.n:,} of {result.split}"),
            ("groups", None if result.groups is None else f"{result.groups:,}"),
            ("left out", left_out or None),
            *_result(result),
            ("verdict", result.words),
        ],
    )


def _result(result: Comparison) -> list[tuple[str, str]]:
    found: Any = result.result
    (a, b), (low, high) = result.heads, found.interval
    if result.task == "classes":
        unit = "images" if result.groups is None else "groups"
        return [
            (f"A  {a}", f"{found.accuracies[0]:.1%} right"),
            (f"B  {b}", f"{found.accuracies[1]:.1%} right"),
            ("A - B", f"{100 * found.difference:+.1f} points (95%: {100 * low:+.1f} to {100 * high:+.1f})"),
            ("only one right", f"A on {found.only_a:,} {unit}, B on {found.only_b:,}"),
            ("McNemar", f"p = {found.p_value:.2g} (exact, two-sided)"),
        ]
    metric, form = found.metric.replace("_", " "), ".3f" if result.task == "labels" else ".4g"
    return [
        (f"A  {a}", f"{metric} {found.values[0]:{form}}"),
        (f"B  {b}", f"{metric} {found.values[1]:{form}}"),
        ("A - B", f"{found.difference:+{form}} (95%: {low:+{form}} to {high:+{form}})"),
        ("bootstrap", f"p = {found.p_value:.2g} (two-sided)"),
    ]
