"""`precompute fine-tune SOURCE -b NAME --cut auto`: where to cut, and its cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from precompute.cli._options import transform_taken
from precompute.cli._output import duration, note, print_json, print_table, printable

if TYPE_CHECKING:
    from precompute.finetuning.cut_costs import CutCosts

COLUMNS = ("layer", "activation", "float16", "int8", "an epoch", "trained", "of the network")


def show_cuts(source: str, given: dict[str, Any], *, as_json: bool) -> None:
    """Print the proposed cuts of a backbone and what each costs for SOURCE; nothing is computed or written.

    given: the options of fine-tune.
    """
    from precompute.finetuning.cut_costs import cut_costs

    if given["backbone"] is None:
        raise click.UsageError("--cut auto needs a network: -b NAME.")
    found = cut_costs(
        source,
        given["backbone"],
        weights=given["weights"],
        transform=transform_taken(given)["transform"],
        batch_size=given["batch_size"],
        device=given["device"],
        root=given["root"],
        columns={part: name for part in ("path", "id") if (name := given[f"{part}_column"]) is not None},
    )
    if as_json:
        print_json(found.to_dict())
    else:
        _table(found)


def _table(found: CutCosts) -> None:
    note(
        f"{found.samples:,} samples. The seconds are measured: a few training steps of {found.batch_size} random "
        f"activations on {found.device}."
    )
    rows = (
        (
            one.proposal.layer,
            " x ".join(map(str, one.proposal.shape)),
            size(one.bytes),
            size(one.bytes_int8),
            duration(one.seconds),
            f"{one.proposal.parameters:,}",
            f"{one.proposal.share:.0%}",
        )
        for one in found.prices
    )
    print_table(None, COLUMNS, rows, right=2)
    click.echo("Next, for the last of them (any other layer likewise):")
    for command in found.commands:
        click.echo(f"  {printable(command)}")


def size(count: int) -> str:
    """Bytes in the largest unit that leaves a number of 1 or more, such as 1.3 GB."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} bytes" if units[0] == "bytes" else f"{value:.1f} {units[0]}"
