"""Networks of 8 bits by onnxruntime's quantisation, and how much they lose.

The network behind resize and crop is quantised: convolutions and matrix products, with ranges from pictures (static,
QDQ), or, where there are none, with ranges found while it runs (dynamic). The head and the resize stay as they are; of
a tail or a whole network the output layer does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from precompute.graphs.build import Run, described, exported, need_onnx, onnx_of, quiet, run_onnx
from precompute.graphs.network import OUTPUTS, PIXELS, Network
from precompute.graphs.pictures import Pictures
from precompute.graphs.resize import ResizeAndCrop
from precompute.heads.scoring.scores import wilson_interval
from precompute.training.targets import CLASSES, LABELS

QUANTISED = ["Conv", "MatMul", "Gemm"]
BEHIND = ("core.temperature", "core.join", "core.stored")
"""Names of the modules around a head."""
HEAD, OUTPUT = "core.head", "core.head.network.output"
"""Of a head, and of the output layer of a tail."""


@dataclass(frozen=True)
class Int8Scores:
    """kind: static or dynamic · calibrated_on: pictures · pictures: others, that both graphs ran on · which: words for
    these · agree: share with the same class, or the same labels; None of a number · largest_difference,
    mean_difference: of outputs · scored: labelled pictures among them that the head was not trained on, and the
    accuracy of both with its 95% interval, None where there are none."""

    kind: str
    calibrated_on: int
    pictures: int
    which: str
    agree: float | None
    largest_difference: float
    mean_difference: float
    scored: int
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    fp32_accuracy: float | None = None
    fp32_accuracy_interval: tuple[float, float] | None = None


def quantised(
    network: Network, fp32: Run, pictures: Pictures, folder: str, metadata: Mapping[str, str]
) -> tuple[bytes, Int8Scores]:
    """The ONNX file of 8 bits, and its scores compared with those of `fp32`. folder: for files in between."""
    onnx, _ = need_onnx()
    crop = network.preprocess.transform.crop
    core = onnx_of(exported(_Alone(network.core).eval(), network.file.path, crop=crop), network.file.path,
                   output=OUTPUTS[network.task], crop=True)  # fmt: skip
    plain, prepared, made = (os.path.join(folder, name) for name in ("core.onnx", "prepared.onnx", "int8.onnx"))
    onnx.save(core, plain)
    inputs = [picture.network_input.numpy()[None] for picture in pictures.calibrating(network.preprocess.transform)]
    with quiet():
        kind = _quantise(plain, prepared, made, inputs, kept=(*BEHIND, OUTPUT if network.file.is_tail else HEAD))
    resize = onnx_of(
        exported(ResizeAndCrop(network.preprocess.transform).eval(), network.file.path),
        network.file.path,
        output="resized",
    )
    small = onnx.load(made)
    small.ir_version = resize.ir_version = max(small.ir_version, resize.ir_version)
    whole = onnx.compose.merge_models(
        resize, small, io_map=[("resized", PIXELS)], prefix1="resize/", prefix2="network/"
    )
    _rename(whole, {"resize/image": "image", "resize/pillow": "pillow",
                    f"network/{OUTPUTS[network.task]}": OUTPUTS[network.task]})  # fmt: skip
    content = described(whole, {**metadata, "precision": f"int8, {kind}"})
    path = os.path.join(folder, "whole.onnx")
    with open(path, "wb") as file:
        file.write(content)
    return content, _scores(network, fp32, run_onnx(path), pictures, kind, len(inputs))


class _Alone(nn.Module):
    """The output of one picture without an axis of pictures, as a whole graph gives it."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.core(pixels)[0]
        return found


def _quantise(plain: str, prepared: str, made: str, inputs: list[NDArray[np.uint8]], *, kept: tuple[str, ...]) -> str:
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # Its optimisation would drop the names of modules. torch's exporter has fused and folded already
    quant_pre_process(plain, prepared, skip_symbolic_shape=True, skip_optimization=True)
    left = [node.name for node in onnx.load(prepared).graph.node if is_of(node, kept)]
    if not inputs:
        quantize_dynamic(
            prepared, made, op_types_to_quantize=QUANTISED, nodes_to_exclude=left, weight_type=QuantType.QUInt8
        )
        return "dynamic"

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.rest: Iterator[NDArray[np.uint8]] = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            found = next(self.rest, None)
            return None if found is None else {PIXELS: found}

    quantize_static(
        prepared,
        made,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=QUANTISED,
        nodes_to_exclude=left,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return "static"


def is_of(node: Any, modules: tuple[str, ...]) -> bool:
    """Whether a node is of one of these, by the names of modules that torch's exporter leaves with it."""
    scopes = {one.key: one.value for one in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
    return any(f"'{module}'" in scopes or f"'{module}." in scopes for module in modules)


def _rename(model: Any, names: Mapping[str, str]) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    _rename_nodes(model.graph, names)


def _rename_nodes(graph: Any, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(one, one) for one in node.input]
        node.output[:] = [names.get(one, one) for one in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_nodes(attribute.g, names)


def _scores(network: Network, fp32: Run, int8: Run, pictures: Pictures, kind: str, calibrated_on: int) -> Int8Scores:
    transform = network.preprocess.transform
    names = network.names if network.task == CLASSES else []
    found = [
        (fp32(one.pixels, one.pillow), int8(one.pixels, one.pillow), place)
        for one, place in pictures.compared(transform, names)
    ]
    which = pictures.roles.about if found else f"pictures {pictures.about}"
    if not found:
        found = [
            (fp32(one.pixels, one.pillow), int8(one.pixels, one.pillow), -1) for one in pictures.checked(transform)
        ]
    plain, small = (np.array([pair[at] for pair in found], np.float64) for at in (0, 1))
    true = np.array([place for *_, place in found], np.intp)
    if pictures.source is not None and pictures.roles.scored and network.task == CLASSES and not (true >= 0).any():
        which = f"{which}; none has one of its classes, so there is no accuracy"
    return Int8Scores(
        kind,
        calibrated_on,
        len(found),
        which,
        _agreement(network, plain, small),
        float(np.abs(plain - small).max()),
        float(np.abs(plain - small).mean()),
        **_accuracies(plain, small, true),
    )


def _agreement(network: Network, plain: NDArray[np.float64], small: NDArray[np.float64]) -> float | None:
    if network.task == CLASSES:
        return float((plain.argmax(axis=1) == small.argmax(axis=1)).mean())
    if network.task == LABELS:
        thresholds = np.array(network.thresholds)
        return float(((plain > thresholds) == (small > thresholds)).all(axis=1).mean())
    return None


def _accuracies(plain: NDArray[np.float64], small: NDArray[np.float64], true: NDArray[np.intp]) -> dict[str, Any]:
    scored = true >= 0
    n = int(scored.sum())
    if not n:
        return {"scored": 0}
    hits = {
        name: int((values.argmax(axis=1) == true)[scored].sum()) for name, values in (("int8", small), ("fp32", plain))
    }
    return {
        "scored": n,
        "accuracy": hits["int8"] / n,
        "accuracy_interval": wilson_interval(hits["int8"], n),
        "fp32_accuracy": hits["fp32"] / n,
        "fp32_accuracy_interval": wilson_interval(hits["fp32"], n),
    }
