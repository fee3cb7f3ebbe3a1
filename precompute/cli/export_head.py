"""`precompute export-head`: an older name of what `precompute export` does with a head, kept for scripts."""

from __future__ import annotations

import json
from typing import Any

import click

from precompute.cli._options import overwrite_option
from precompute.cli._output import json_option, note

WARNING = "a joblib file is a pickle: loading it runs the code in it, so load only files that you made or trust"
Lines = list[tuple[str, object]]


@click.command("export-head", no_args_is_help=True, hidden=True)
@click.argument("head", type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(), required=True, help="Write to this file; its ending sets the format."
)
@click.option("-b", "--backbone", help="For a tail: confirm a backbone that is your own code.")
@click.option(
    "--weights", help="For a tail: the current place of the backbone's weights; they must be those of the training."
)
@overwrite_option
@json_option
def export_head(
    head: str, output: str, backbone: str | None, weights: str | None, overwrite: bool, as_json: bool
) -> None:
    """Write the head, tail or whole network in the file HEAD for other programs: see `precompute export`, which does
    the same.

    WARNING: a .joblib file is a pickle. Loading one runs the code in it, so load only files that you made or
    trust.

    \b
    Examples:
      precompute export-head photos.safetensors -o photos.joblib
      precompute export-head full.safetensors -o resnet18-photos.pth
    """
    from precompute.cli.export import run

    run(head, output, overwrite=overwrite, as_json=as_json, older=True, backbone=backbone, weights=weights)


def pipeline(head: str, output: str, overwrite: bool, **options: Any) -> tuple[dict[str, Any], Lines]:
    """A .joblib file of a head. A tail has none: what that raises says which endings it has."""
    from precompute.finetuning.opening import is_tail

    if is_tail(head):
        return network(head, output, overwrite, **options)
    import numpy as np
    import sklearn

    from precompute.heads import load_head
    from precompute.heads.persistence.export import EXPORT, write_joblib
    from precompute.system.output import check_output
    from precompute.training.layers import saved_inputs

    check_output(output, EXPORT, overwrite=overwrite, inputs=(head,))
    saved = load_head(head)
    layers = saved_inputs(saved.metadata, head, int(saved.head.n_features_in_))
    multiplied = np.repeat([one.scale for one in layers], [one.width for one in layers]) if layers else None
    made = write_joblib(output, saved.head, overwrite=overwrite, multiplied=multiplied)
    _note_temperature(saved.metadata)
    if layers:
        pooled = " (means over positions)" if any(one.positions for one in layers) else ""
        names = ", ".join(one.name for one in layers)
        note(f"Note: it takes the features{pooled} of {names} side by side, in this order")
    note(f"Note: {WARNING}")
    steps = [type(step).__name__ for _, step in made.steps]
    can = [name for name in ("predict", "predict_proba", "decision_function") if hasattr(made, name)]
    takes = f"features (n, {saved.head.n_features_in_})"
    return _summary(
        {
            **{"head": head, "output": output, "steps": steps, "methods": can, "takes": takes},
            "scikit_learn": sklearn.__version__,
        }
    )


def network(head: str, output: str, overwrite: bool, **options: Any) -> tuple[dict[str, Any], Lines]:
    """The state dict of a tail or whole network. A head alone has none."""
    from typing import cast

    from precompute.errors import HeadError
    from precompute.finetuning.opening import is_tail, open_head
    from precompute.finetuning.tail_head import TailHead
    from precompute.finetuning.whole_network import check_network_output, write_network

    weights = options.get("weights")
    check_network_output(output, overwrite=overwrite, inputs=(head, weights))
    file = open_head(head)
    if not is_tail(head):
        raise HeadError(
            f"The head {head} has trained nothing of the network, so it has no weights to write.",
            hint="Export the network and the head as one graph (-o photos.onnx), or the head alone (-o photos.joblib).",
        )
    model = file.backbone(backbone=options.get("backbone"), weights=weights)
    found = cast("TailHead", file.attach(model).head)
    about = write_network(output, found, model, overwrite=overwrite)
    _note_temperature(file.metadata)
    return _summary({"head": head, "output": output, **about})


def _note_temperature(metadata: dict[str, Any]) -> None:
    if "temperature" in metadata:
        note("Note: the temperature of --calibrate stays behind: classes are the same, not its probabilities")


def _summary(summary: dict[str, Any]) -> tuple[dict[str, Any], Lines]:
    lines = {
        "pipeline": " -> ".join(summary.get("steps", ())),
        "methods": ", ".join(summary.get("methods", ())),
        "takes": summary.get("takes"),
        "scikit-learn": summary.get("scikit_learn"),
        "network": summary.get("backbone"),
        "outputs": ", ".join(summary.get("outputs", ())),
        "transform": json.dumps(summary["transform"]) if "transform" in summary else None,
        "load it into": summary.get("load_with"),
        "saved": summary["output"],
    }
    return summary, [(name, value) for name, value in lines.items() if value]
