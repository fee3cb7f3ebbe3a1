"""`precompute compare`: two heads, tails or whole networks on the same images, and whether their difference is more
than chance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from precompute.cli._options import SEED, columns_taken, source_options
from precompute.cli._output import json_option, note, print_json, print_pairs, training_progress

if TYPE_CHECKING:
    from precompute.evaluation.comparison import Comparison


@click.command(no_args_is_help=True)
@click.argument("head_a", type=click.Path())
@click.argument("head_b", type=click.Path())
@click.argument("cache_a", type=click.Path())
@click.argument("cache_b", type=click.Path(), required=False)
@click.option("--groups", help="Regular expression that finds a sample's group in its id, as for train-head.")
@click.option("--groups-file", type=click.Path(), help="CSV file with the columns id and group, instead of --groups.")
@click.option("--seed", type=SEED, metavar="INTEGER", default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--source", type=click.Path(), help="The images, to compare a network trained from images.")
@click.option("-b", "--backbone", "backbones", multiple=True, help="Confirm a tail's backbone that is your own code.")
@click.option("--tail", "tails", multiple=True, help="Confirm a tail that is your own code.")
@click.option(
    "--weights-a", help="Where the weights of HEAD_A's backbone are now, if it is a tail and they have moved."
)
@click.option("--weights-b", help="The same for HEAD_B.")
@click.option(
    "--device", default="auto", show_default=True, help="Device for tails and networks: auto, cpu, cuda, cuda:1, ..."
)
@source_options
@json_option
def compare(
    head_a: str,
    head_b: str,
    cache_a: str,
    cache_b: str | None,
    groups: str | None,
    groups_file: str | None,
    seed: int,
    source: str | None,
    backbones: tuple[str, ...],
    tails: tuple[str, ...],
    weights_a: str | None,
    weights_b: str | None,
    device: str,
    as_json: bool,
    **reading: Any,
) -> None:
    """Compare HEAD_A and HEAD_B, each a file of `train-head` or `fine-tune`, on images that neither was trained on.

    CACHE_A and CACHE_B hold the features that the heads were trained on: one file, or two of the same photos, for
    example from two backbones or two layers; images are matched by id. Scores the images of test that both heads were
    scored on, else of val, else of the hold-out.

    No cache holds the input of a network that was trained from images: it is computed from the images of --source. The
    cache argument then lists these images: use the one of --features, or the network's own .features.h5.

    \b
    Examples:
      precompute compare logistic.safetensors mlp.safetensors photos.h5
      precompute compare resnet18.safetensors vit_b_16.safetensors resnet18.h5 vit_b_16.h5
      precompute compare head.safetensors tail.safetensors avgpool.h5 layer3.h5
      precompute compare head.safetensors full.safetensors photos.h5 --source photos
      precompute compare a.safetensors b.safetensors photos.h5 --groups 'patient_(\\d+)' --json
    """
    from precompute.evaluation.comparison import compare as run

    read_as = columns_taken(reading)
    if source is None and (read_as["root"] or read_as["columns"]):
        raise click.UsageError("--root and the names of columns belong to --source.")
    given: dict[str, Any] = {
        "groups": groups,
        "groups_file": groups_file,
        "seed": seed,
        "weights_a": weights_a,
        "weights_b": weights_b,
    }
    given |= {"backbones": backbones, "tails": tails, "device": device, "source": source}
    with training_progress("compare"):
        result = run(head_a, head_b, cache_a, cache_b, **given, **read_as)
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
            (result.unit, f"{result.result.n:,} of {result.split}"),
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
        unit = result.unit if result.groups is None else "groups"
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
