"""`precompute export-head`: a head file in, a scikit-learn pipeline in a joblib file out."""

from __future__ import annotations

import click

from precompute.cli._options import overwrite_option
from precompute.cli._output import finished, json_option, note, print_json, print_pairs

WARNING = "a joblib file is a pickle: whoever loads it runs the code in it, so load only files that you made or trust"


@click.command("export-head", no_args_is_help=True)
@click.argument("head", type=click.Path())
@click.option("-o", "--output", type=click.Path(), required=True, help="Write the pipeline to this .joblib file.")
@overwrite_option
@json_option
def export_head(head: str, output: str, overwrite: bool, as_json: bool) -> None:
    """Write the head in the file HEAD as a scikit-learn pipeline, for programs without precompute.

    The pipeline consists of scikit-learn's own classes, takes features (no images) and predicts as the head does. Load
    it with joblib.load, with the version of scikit-learn that wrote it. A head that scikit-learn has no equal of is
    refused with the reason.

    WARNING: a joblib file is a pickle. Whoever loads one runs the code in it, so load only files that you made or
    trust. HEAD itself holds no code, and `precompute predict` needs nothing else.

    \b
    Examples:
      precompute export-head photos.safetensors -o photos.joblib
      precompute export-head photos.safetensors -o photos.joblib --json
    """
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
    if "temperature" in saved.metadata:
        note("Note: the temperature of --calibrate stays behind: classes are the same, not its probabilities")
    if layers:
        pooled = " (means over positions)" if any(one.positions for one in layers) else ""
        names = ", ".join(one.name for one in layers)
        note(f"Note: it takes the features{pooled} of {names} side by side, in this order")
    note(f"Note: {WARNING}")
    steps = [type(step).__name__ for _, step in pipeline.steps]
    can = [name for name in ("predict", "predict_proba", "decision_function") if hasattr(pipeline, name)]
    if as_json:
        summary = {"head": head, "output": output, "steps": steps, "methods": can, "scikit_learn": sklearn.__version__}
        print_json(summary)
        return
    print_pairs(
        None,
        [
            ("pipeline", " -> ".join(steps)),
            ("methods", ", ".join(can)),
            ("takes", f"features (n, {saved.head.n_features_in_})"),
            ("scikit-learn", sklearn.__version__),
            ("saved", output),
        ],
    )
