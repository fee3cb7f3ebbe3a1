"""A head file as a graph in a file, which is compared with `predict` before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from precompute.errors import HeadError, UsageError
from precompute.finetuning.opening import open_head
from precompute.graphs.build import Run, described, exported, need_onnx, onnx_of, run_onnx, run_pt2, write_pt2
from precompute.graphs.int8 import Int8Scores, quantised
from precompute.graphs.network import OUTPUTS, Network, check_graph, network_of
from precompute.graphs.pictures import Pictures, any_pictures, find_pictures
from precompute.system.output import Kind, check_output
from precompute.training.targets import CLASSES, LABELS, NUMBER

ONNX, PT2 = ".onnx", ".pt2"
TOLERANCE = 1e-4
"""Of probabilities, and of numbers relative to those above 1: between a graph and `predict`, both in fp32."""


@dataclass(frozen=True)
class Compared:
    """A graph compared with `predict`. pictures: how many, which: where from · skipped: further ones that a graph
    resizes in another order than Pillow does · largest_difference: of a probability, or of a number · picture: the one
    with it · other_classes: pictures with another class, or another set of labels."""

    pictures: int
    which: str
    skipped: int
    largest_difference: float
    picture: str
    other_classes: int


@dataclass(frozen=True)
class ExportedGraph:
    """path: the file · names: classes or labels, in the order of the output · inputs, gives: of the graph, in words ·
    compared: in fp32 · int8: of a graph of 8 bits."""

    path: str
    task: str
    names: tuple[str, ...]
    backbone: str
    bytes: int
    inputs: tuple[str, ...]
    gives: str
    compared: Compared
    int8: Int8Scores | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def export_graph(
    head: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    check: str | os.PathLike[str] | None = None,
    int8: bool = False,
    backbone: str | None = None,
    weights: str | None = None,
    tail: str | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ExportedGraph:
    """Write the head, tail or whole network in the file `head` with its backbone as one graph: `path` ends in .onnx, or
    in .pt2 for torch.export.load.

    The graph takes one decoded picture, `image` (H, W, 3) uint8, upright and in RGB, of any size, and `pillow` (1,)
    bool: whether the picture's file was no plain JPEG (see docs/deploy.md). It resizes, crops and normalises as
    `predict` does, and gives `probabilities` (K,) of classes or (L,) of labels, or a `number` (1,), float32. Names of
    classes and all that there is to know of it are its metadata.

    Before the file gets its name, it is opened again and compared with `predict` at fp32: on pictures of `check`, a
    source as `predict` takes it; by default on those that the head was trained on, or where they are gone on made ones.

    int8: quantise the network (ONNX alone), calibrated on pictures of the source; compared by accuracy.
    backbone, weights, tail: see `predict`. progress: called with what is done next.
    Raises UsageError for another ending; HeadError for a head that no graph can be made of, a missing library, or a
    graph that differs from `predict` by more than 1e-4; what opening the head, its backbone and `check` raises.
    """
    say = progress or _silent
    name = os.fspath(path)
    ending = os.path.splitext(name)[1].lower()
    if ending not in (ONNX, PT2):
        raise UsageError(f"A graph is no {ending or 'file without an ending'}.", hint="End its name in .onnx or .pt2.")
    if int8 and ending != ONNX:
        raise UsageError("--int8 is for ONNX.", hint="End the name of the output in .onnx, or leave --int8 out.")
    output = check_output(name, KIND, overwrite=overwrite, inputs=(os.fspath(head), weights))
    file = open_head(head)
    check_graph(file)
    if ending == ONNX:
        need_onnx()
    pictures = find_pictures(file, check)
    say("loading the backbone")
    network = network_of(file, backbone=backbone, weights=weights, tail=tail)
    metadata = network.metadata()
    say("making the graph")
    program = exported(network.whole(), file.path)
    found: list[Any] = []
    if ending == ONNX:
        say("writing ONNX")
        model = onnx_of(program, file.path, output=OUTPUTS[network.task])

    def write_fp32(made: BinaryIO) -> None:
        made.write(described(model, metadata) if ending == ONNX else write_pt2(program, metadata))
        made.flush()
        say("comparing with predict")
        run = run_onnx(made.name) if ending == ONNX else run_pt2(made.name)
        found.append(compare(network, run, pictures))
        found.append(os.path.getsize(made.name))

    def write_int8(made: BinaryIO) -> None:
        from tempfile import TemporaryDirectory

        with TemporaryDirectory(prefix="precompute-") as folder:
            plain = os.path.join(folder, "fp32.onnx")
            with open(plain, "wb") as fp32:
                fp32.write(described(model, metadata))
            say("comparing with predict")
            run = run_onnx(plain)
            found.append(compare(network, run, pictures))
            say("quantising")
            content, scores = quantised(network, run, pictures, folder, metadata)
        made.write(content)
        made.flush()
        found.extend([os.path.getsize(made.name), scores])

    output.write(write_int8 if int8 else write_fp32)
    compared, size = found[:2]
    scores = found[2] if int8 else None
    inputs = (
        "image: (height, width, 3) uint8, upright, RGB",
        "pillow: (1,) bool, whether the picture's file was no plain JPEG",
    )
    gives = {CLASSES: f"probabilities: ({len(network.names)},) float32 of the classes",
             LABELS: f"probabilities: ({len(network.names)},) float32, one for each label",
             NUMBER: "number: (1,) float32"}[network.task]  # fmt: skip
    return ExportedGraph(
        name,
        network.task,
        tuple(network.names),
        network.model.name,
        size,
        inputs,
        gives,
        compared,
        scores,
        _notes(network),
    )


def _notes(network: Network) -> tuple[str, ...]:
    precision, notes = network.file.metadata["spec"]["precision"], []
    if precision != "fp32":
        notes.append(
            f"the head was trained on features computed in {precision}; the graph computes in fp32, so `predict`, "
            f"which uses {precision}, may differ from it a little more"
        )
    return tuple(notes)


def compare(network: Network, run: Run, pictures: Pictures) -> Compared:
    """A graph compared with `predict`, on pictures of any size; on `any_pictures` where all of `pictures` are skipped.

    Raises HeadError where a value differs by more than `TOLERANCE`, or a class that is not as good as equal.
    """
    count, skipped, worst, where, others = 0, 0, 0.0, "", 0
    for picture in pictures.checked(network.preprocess.transform):
        if picture.other_order:
            skipped += 1
            continue
        expected = network.expected(picture.network_input)
        found = run(picture.pixels, picture.pillow).astype(np.float64)
        differs = difference(network.task, expected, found)
        count, others = count + 1, others + decides_otherwise(network, expected, found)
        if not where or not differs <= worst:
            worst, where = differs, picture.name
    if not count and (skipped or pictures.own):
        return replace(compare(network, run, any_pictures()), skipped=skipped)
    if not count:
        raise HeadError(
            f"No picture {pictures.about} could be decoded, so the graph cannot be checked.",
            hint="Name a folder of pictures: --check FOLDER",
        )
    if not worst <= TOLERANCE or others:
        raise HeadError(
            f"The graph does not predict as `precompute predict` does: on {count} pictures {pictures.about} a value "
            f"differs by up to {worst:.2g} ({where}), and {others} have another class. Up to {TOLERANCE:g} is allowed.",
            hint="Nothing was written. Please report it, with the backbone and the kind of head.",
        )
    return Compared(count, pictures.about, skipped, worst, where, others)


def difference(task: str, expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """The largest of one picture; infinite where the shapes differ or a value is none."""
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    scale = np.maximum(1.0, np.abs(expected)) if task == NUMBER else 1.0
    return float((np.abs(found - expected) / scale).max())


def decides_otherwise(network: Network, expected: NDArray[np.float64], found: NDArray[np.float64]) -> bool:
    """Whether another class or set of labels follows, beyond what a difference of `TOLERANCE` explains."""
    if network.task == NUMBER or expected.shape != found.shape:
        return False
    if network.task == CLASSES:
        return bool(expected.max() - expected[found.argmax()] > 2 * TOLERANCE)
    thresholds = np.array(network.thresholds)
    sure = np.abs(expected - thresholds) > TOLERANCE
    return bool(((expected > thresholds) != (found > thresholds))[sure].any())


def _silent(text: str) -> None:
    del text


def _refuse(path: str) -> None:
    raise HeadError(f"{path!r} exists, and whose model it holds cannot be known.", hint="")


KIND = Kind(HeadError, _refuse)
