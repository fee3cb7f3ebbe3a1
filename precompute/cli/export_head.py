"""`precompute export-head`: a head file in, a scikit-learn pipeline in a joblib file out; a tail file in, the weights
of the whole network out."""

from __future__ import annotations

import json
from typing import Any

import click

from precompute.cli._options import overwrite_option
from precompute.cli._output import finished, json_option, note, print_json, print_pairs

WARNING = "a joblib file is a pickle: loading it runs the code in it, so load only files that you made or trust"


@click.command("export-head", no_args_is_help=True)
@click.argument("head", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    required=True,
    help="Write to this file: .joblib of a head; .safetensors or .pth of a tail or whole network.",
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
    """Write the head, tail or whole network in the file HEAD for programs without precompute.

    A head becomes a scikit-learn pipeline. It consists of scikit-learn's own classes, takes features (no images) and
    predicts as the head does. Load it with joblib.load, with the version of scikit-learn that wrote it. A head without
    an equivalent in scikit-learn is refused with the reason.

    WARNING: a joblib file is a pickle. Loading one runs the code in it, so load only files that you made or
    trust. HEAD itself holds no code, and `precompute predict` needs nothing else.

    A tail or whole network becomes the state dict of the whole network, the trained and the frozen part, with the
    new classifier in place: plain tensors, which torchvision.models.get_model(NAME, num_classes=K) loads strictly. It
    takes images as `precompute extract` preprocesses them, and gives logits.

    \b
    Examples:
      precompute export-head photos.safetensors -o photos.joblib
      precompute export-head photos.safetensors -o photos.joblib --json
      precompute export-head full.safetensors -o resnet18-photos.pth
    """
    from precompute.finetuning.opening import is_tail

    if is_tail(head):
        summary = _network(head, output, backbone, weights, overwrite=overwrite)
    elif backbone is not None or weights is not None:
        raise click.UsageError("-b and --weights are for a tail; a head needs no backbone.")
    else:
        summary = _pipeline(head, output, overwrite=overwrite)
    print_json(summary) if as_json else _print(summary)


def _pipeline(head: str, output: str, *, overwrite: bool) -> dict[str, Any]:
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
    pipeline = write_joblib(output, saved.head, overwrite=overwrite, multiplied=multiplied)
    finished(output)
    _note_temperature(saved.metadata)
    if layers:
        pooled = " (means over positions)" if any(one.positions for one in layers) else ""
        names = ", ".join(one.name for one in layers)
        note(f"Note: it takes the features{pooled} of {names} side by side, in this order")
    note(f"Note: {WARNING}")
    steps = [type(step).__name__ for _, step in pipeline.steps]
    can = [name for name in ("predict", "predict_proba", "decision_function") if hasattr(pipeline, name)]
    takes = f"features (n, {saved.head.n_features_in_})"
    return {
        **{"head": head, "output": output, "steps": steps, "methods": can, "takes": takes},
        "scikit_learn": sklearn.__version__,
    }


def _network(head: str, output: str, backbone: str | None, weights: str | None, *, overwrite: bool) -> dict[str, Any]:
    from typing import cast

    from precompute.finetuning.opening import open_head
    from precompute.finetuning.tail_head import TailHead
    from precompute.finetuning.whole_network import check_network_output, write_network

    check_network_output(output, overwrite=overwrite, inputs=(head, weights))
    file = open_head(head)
    model = file.backbone(backbone=backbone, weights=weights)
    found = cast("TailHead", file.attach(model).head)
    about = write_network(output, found, model, overwrite=overwrite)
    finished(output)
    _note_temperature(file.metadata)
    return {"head": head, "output": output, **about}


def _note_temperature(metadata: dict[str, Any]) -> None:
    if "temperature" in metadata:
        note("Note: the temperature of --calibrate stays behind: classes are the same, not its probabilities")


def _print(summary: dict[str, Any]) -> None:
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
    print_pairs(None, [(name, value) for name, value in lines.items() if value])
