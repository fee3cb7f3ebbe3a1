"""`precompute backbones`: what there is to choose from."""

from __future__ import annotations

import click

from precompute.cli._options import complete_backbone
from precompute.cli._output import json_option, print_json, print_table


@click.command()
@click.argument("pattern", required=False, shell_complete=complete_backbone)
@click.option("--layers", is_flag=True, help="List the layers of the backbone PATTERN instead.")
@json_option
def backbones(pattern: str | None, layers: bool, as_json: bool) -> None:
    """List backbones: width of their features, input size, parameters, cost, published accuracy.

    PATTERN is a part of the name, or has shell wildcards. The prefixes timm: and open_clip: list those libraries'
    models and need the extras of these names. Nothing is downloaded. With more than 20 of their models the number of
    parameters is omitted, and for timm also the width.

    \b
    Examples:
      precompute backbones
      precompute backbones resnet
      precompute backbones 'vit_*' --json
      precompute backbones resnet18 --layers
      precompute backbones 'timm:vit*small*'
      precompute backbones 'open_clip:*SigLIP*'
    """
    from precompute.backbones.catalog import catalog, layer_names

    if layers:
        if pattern is None:
            raise click.UsageError("--layers needs the name of a backbone.")
        names = layer_names(pattern)
        if as_json:
            print_json({"backbone": pattern, "layers": names})
        else:
            click.echo("\n".join(names))
        return
    entries = catalog(pattern)
    if as_json:
        print_json({"backbones": [entry.to_dict() for entry in entries]})
        return
    rows = [
        (
            entry.name,
            "-" if entry.width is None else entry.width,
            entry.modality if entry.input_size is None else entry.input_size,
            "-" if entry.params is None else f"{entry.params / 1e6:.1f}",
            "-" if entry.gflops is None else f"{entry.gflops:.2f}",
            "-" if entry.accuracy is None else f"{entry.accuracy:.1f}",
            ", ".join(entry.weights),
        )
        for entry in entries
    ]
    print_table(
        None,
        ("backbone", "width", "input", "params (M)", "GFLOPs", "ImageNet top-1 (%)", "weights, the default first"),
        rows,
    )
