"""`precompute export`: a feature file, a head, a tail or a whole network in; a file for other programs out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from precompute.cli._options import overwrite_option
from precompute.cli._output import finished, json_option, note, print_json, print_pairs, progress_bar

TABLES = (".npz", ".csv", ".parquet")
GRAPHS = (".onnx", ".pt2")
PIPELINES = (".joblib",)
STATES = (".safetensors", ".pth", ".pt")
CARDS = (".md",)
OF_CACHE, OF_GRAPH, OF_BACKBONE = ("layer", "plain_view"), ("check", "int8", "tail"), ("backbone", "weights")


@click.command(no_args_is_help=True)
@click.argument("file", type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(), required=True, help="Write to this file; its ending sets the format."
)
@click.option("--layer", help="For a feature file: the layer, if it holds several.")
@click.option("--plain-view", is_flag=True, help="For a feature file: write only the plain view of several.")
@click.option(
    "--check",
    metavar="SOURCE",
    help="For .onnx and .pt2: compare with predict on these pictures.  [default: those of the training]",
)
@click.option(
    "--int8", is_flag=True, help="For .onnx: quantise the network to 8 bits, and report the change in accuracy."
)
@click.option("-b", "--backbone", help="For a head: confirm a backbone that is your own code.")
@click.option(
    "--weights", help="For a head: the current place of the backbone's weights; they must be those of the training."
)
@click.option("--tail", help="For a tail: confirm one that is your own code (package.module:factory).")
@overwrite_option
@json_option
def export(file: str, output: str, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Write FILE for other programs. The ending of -o sets the format.

    \b
    For a feature file, its features with ids, labels, splits and further columns:
      .npz .csv .parquet     (.parquet needs pip install 'precompute[parquet]')
    For a head, a tail or a whole network:
      .onnx .pt2             resize, backbone, head and temperature as one graph
                             (.onnx needs pip install 'precompute[onnx]')
      .joblib                of a head: a scikit-learn pipeline, which takes features
      .safetensors .pth      of a tail or a whole network: the weights of the network
      .md                    a model card: data, scores, intervals, leaks, licence

    A graph takes a decoded picture of any size and returns the result of `precompute predict`. It is compared with
    `predict` on real pictures before it is saved; a probability that differs by more than 0.0001 is an error.

    Every row of a feature file is compared with its checksum first. Rows without features are left out.

    WARNING: a .joblib file is a pickle. Loading one runs the code in it, so load only files that you made or
    trust. FILE itself holds no code.

    \b
    Examples:
      precompute export photos.h5 -o photos.parquet
      precompute export photos.safetensors -o photos.onnx
      precompute export photos.safetensors -o photos.onnx --int8 --check photos
      precompute export photos.safetensors -o photos.pt2
      precompute export photos.safetensors -o photos.joblib
      precompute export full.safetensors -o resnet18-photos.pth
      precompute export photos.safetensors -o README.md
    """
    run(file, output, overwrite=overwrite, as_json=as_json, **options)


def run(file: str, output: str, *, overwrite: bool, as_json: bool, older: bool = False, **options: Any) -> None:
    """What `export` and, `older`, `export-head` do. options: those of one kind of FILE or output alone."""
    from precompute.errors import HeadFormatError

    given = {name for name, value in options.items() if value}
    ending = os.path.splitext(output)[1].lower()
    if not output:
        _refuse_no_name()
    if older or ending in (*GRAPHS, *PIPELINES, *CARDS, *STATES) or _is_head(file):
        kind, write = _of_head(ending, older)
        allowed = {GRAPHS: (*OF_GRAPH, *OF_BACKBONE), STATES: OF_BACKBONE, CARDS: ()}.get(kind, ())
        if kind is PIPELINES and _is_tail(file):
            allowed = OF_BACKBONE
    else:
        write, allowed = _features, OF_CACHE
    if odd := sorted(given - set(allowed)):
        raise click.UsageError(_misplaced(odd[0], ending))
    try:
        summary, lines = write(file, output, overwrite, **options)
    except HeadFormatError as error:
        if not _is_cache(file):
            raise
        raise click.UsageError(
            f"{file} holds features, and what ends in {ending} is made of a head: train one first (precompute "
            f"train-head {file}), or end the name of -o in {', '.join(TABLES)}."
        ) from error
    finished(output)
    print_json(summary) if as_json else print_pairs(None, lines)


Lines = list[tuple[str, object]]
Write = Callable[..., tuple[dict[str, Any], Lines]]


def _is_head(file: str) -> bool:
    from precompute.cli._head_info import looks_like_head

    return looks_like_head(file)


def _is_cache(file: str) -> bool:
    from precompute.extraction.output import is_hdf5

    return is_hdf5(file)


def _is_tail(file: str) -> bool:
    from precompute.finetuning.opening import is_tail

    return is_tail(file)


def _refuse_no_name() -> None:
    from precompute.reports.card import CARD
    from precompute.system.output import check_output

    check_output("", CARD)


def _of_head(ending: str, older: bool) -> tuple[tuple[str, ...], Write]:
    from precompute.cli.export_head import network, pipeline

    kinds: dict[tuple[str, ...], Write] = {GRAPHS: _graph, PIPELINES: pipeline, STATES: network, CARDS: _card}
    found = next((kind for kind in kinds if ending in kind), None)
    if found is None and older:  # which took any ending
        found = PIPELINES
    if found is None:
        raise click.UsageError(
            f"A head cannot be exported to a {ending or 'file without an ending'}: end the name of -o in "
            f"{', '.join((*GRAPHS, *PIPELINES, *CARDS))}, of a tail or whole network in {', '.join(STATES)} as well."
        )
    return found, kinds[found]


def _misplaced(name: str, ending: str) -> str:
    of = "a feature file" if name in OF_CACHE else "a graph (.onnx, .pt2)"
    if name in OF_BACKBONE:
        of = "a graph (.onnx, .pt2), and for the weights of a tail or a whole network; a head's pipeline needs none"
    short = {"backbone": "-b"}.get(name, f"--{name.replace('_', '-')}")
    return f"{short} is for {of}; {ending or 'this output'} takes no such option."


def _features(cache: str, output: str, overwrite: bool, **options: Any) -> tuple[dict[str, Any], Lines]:
    from precompute.export import export_features

    with progress_bar("export", "rows") as draw:
        result = export_features(
            cache,
            output,
            layer=options.get("layer"),
            plain_view=bool(options.get("plain_view")),
            overwrite=overwrite,
            progress=lambda done, total: draw(done, total, ""),
        )
    if result.left_out:
        note(f"Note: left out {result.left_out:,} of {result.rows + result.left_out:,} rows, which have no features")
    lines: Lines = [
        ("rows", f"{result.rows:,} of {result.layer}"),
        ("columns", ", ".join((*result.columns, "features"))),
        ("saved", output),
    ]
    return {**result.to_dict(), "cache": cache}, lines


def _graph(head: str, output: str, overwrite: bool, **options: Any) -> tuple[dict[str, Any], Lines]:
    from precompute.graphs.export import export_graph

    asked = {name: options.get(name) for name in ("check", "backbone", "weights", "tail")}
    made = export_graph(
        head,
        output,
        int8=bool(options.get("int8")),
        overwrite=overwrite,
        progress=lambda text: note(f"{text} ..."),
        **asked,
    )
    for text in made.notes:
        note(f"Note: {text}")
    found, small = made.compared, made.int8
    lines: Lines = [
        ("graph", f"resize, {made.backbone}, head and temperature; {made.bytes:,} bytes"),
        ("inputs", "\n".join(made.inputs)),
        ("output", made.gives),
        ("checked", f"with predict on {found.pictures} pictures {found.which}, at fp32"),
        ("", f"largest difference {found.largest_difference:.1g}, {found.other_classes} with another class"),
    ]
    if found.skipped:
        lines.append(("", f"tall pictures skipped: {found.skipped}, which Pillow resizes in another order"))
    if small is not None:
        lines.append(("int8", _int8_words(small.kind, small.calibrated_on)))
        if small.accuracy is not None and small.accuracy_interval and small.fp32_accuracy_interval:
            for name, value, (low, high) in (
                ("int8", small.accuracy, small.accuracy_interval),
                ("fp32", small.fp32_accuracy or 0.0, small.fp32_accuracy_interval),
            ):
                lines.append(("", f"{name}: {value:.1%} of {small.scored:,} are right (95%: {low:.1%} to {high:.1%})"))
        same = "" if small.agree is None else f"{small.agree:.1%} of {small.pictures:,} pictures agree; "
        lines.append(("", f"{same}outputs differ by up to {small.largest_difference:.2g}"))
        lines.append(("", f"compared on {small.which}"))
    lines.append(("saved", output))
    return {"head": head, "output": output, **made.to_dict()}, lines


def _int8_words(kind: str, calibrated_on: int) -> str:
    if kind == "dynamic":
        return "dynamic: no pictures were available to calibrate on (--check SOURCE)"
    return f"static, calibrated on {calibrated_on:,} pictures, which are not compared"


def _card(head: str, output: str, overwrite: bool, **options: Any) -> tuple[dict[str, Any], Lines]:
    del options
    from precompute.finetuning.opening import open_head
    from precompute.reports.card import CARD, write_card
    from precompute.system.output import check_output

    check_output(output, CARD, overwrite=overwrite, inputs=(head,))
    file = open_head(head)
    about = write_card(
        output,
        file.metadata,
        kind="tail" if file.is_tail else "head",
        file_name=os.path.basename(head),
        overwrite=overwrite,
    )
    return {"head": head, "output": output, **about}, [("card", about["title"]), ("saved", output)]
