"""A network as a graph of torch.export, and that as ONNX; both opened again by what users open them with."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.torch_version import TorchVersion

from precompute.errors import HeadError, PrecomputeError, reason_of
from precompute.graphs.network import IMAGE, PILLOW, PIXELS

OPSET = 18
TORCH = "2.11"
"""The oldest whose ONNX files were tried. That of 2.6 cannot write BatchNorm, whatever the other libraries are."""
INSTALL = "Install it: pip install 'precompute[onnx]'"
METADATA_FILE = "precompute.json"
"""In a .pt2 file: the metadata as a JSON object."""
MOST_BYTES = 2**31 - 2**20  # of an ONNX file, which is one message of Protocol Buffers

Run = Callable[[NDArray[np.uint8], bool], NDArray[np.floating]]
"""A picture (H, W, 3) and whether it is Pillow's -> the output of a graph."""


def need_onnx() -> tuple[Any, Any]:
    """(onnx, onnxruntime). Raises HeadError where a library is missing, or torch is too old."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx.export needs it
    except ImportError as error:
        raise HeadError(f"An .onnx file needs onnx, onnxscript and onnxruntime: {error}.", hint=INSTALL) from error
    if TorchVersion(torch.__version__) < TORCH:
        raise HeadError(
            f"An .onnx file needs torch {TORCH} or newer, and this is torch {torch.__version__}.",
            hint=f"{INSTALL}; or write a .pt2 file, which this torch can.",
        )
    return onnx, onnxruntime


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch's exporters warn and log of their own parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def exported(module: nn.Module, name: str, *, crop: int | None = None) -> torch.export.ExportedProgram:
    """The graph of `module`, which takes a picture of any size and `pillow`; with `crop` (1, crop, crop, 3) alone.

    name: of the head. Raises HeadError for a network whose code torch.export cannot follow.
    """
    if crop is None:
        given: tuple[torch.Tensor, ...] = (torch.zeros(333, 500, 3, dtype=torch.uint8), torch.tensor([False]))
        shapes: Any = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}, None)
    else:
        given, shapes = (torch.zeros(1, crop, crop, 3, dtype=torch.uint8),), None
    with quiet(), torch.no_grad():
        try:
            return torch.export.export(module, given, dynamic_shapes=shapes, strict=False)
        except PrecomputeError:
            raise
        except Exception as error:  # torch.export raises whatever a network's code leads it to
            raise HeadError(
                f"The network of {name} cannot be exported: {reason_of(error)}",
                hint="Use `precompute predict`; export the head alone with -o head.joblib.",
            ) from error


def onnx_of(program: torch.export.ExportedProgram, name: str, *, output: str, crop: bool = False) -> Any:
    """The ONNX model of a graph that `exported` gave. crop: whether it takes what a network is given.

    Raises HeadError for an operation that ONNX has no equal of, or for more than 2 GiB.
    """
    onnx, _ = need_onnx()
    inputs = [PIXELS] if crop else [IMAGE, PILLOW]
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                input_names=inputs,
                output_names=[output],
                opset_version=OPSET,
                verbose=False,
            )
            assert made is not None
            model = made.model_proto
        except PrecomputeError:
            raise
        except Exception as error:  # and so does its translation
            raise HeadError(
                f"The network of {name} cannot be written as ONNX: {reason_of(error)}",
                hint="Write a .pt2 file, which holds any operation of torch.",
            ) from error
    if (size := model.ByteSize()) > MOST_BYTES:
        raise HeadError(
            f"The network of {name} takes {size:,} bytes, and an ONNX file holds at most 2 GiB.",
            hint="Write a .pt2 file.",
        )
    _drop_unused(model.graph)
    for value, sizes in ((IMAGE, ("height", "width")),):
        for given in (one for one in model.graph.input if one.name == value):
            for place, size_name in enumerate(sizes):
                given.type.tensor_type.shape.dim[place].dim_param = size_name
    del model.graph.value_info[:]  # which name these sizes otherwise
    onnx.checker.check_model(model)
    return model


def _drop_unused(graph: Any) -> None:
    """Take out initialisers that no node uses: onnxruntime warns of each."""
    used = {output.name for output in graph.output} | _names_used(graph)
    kept = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _names_used(graph: Any) -> set[str]:
    used: set[str] = set()
    for node in graph.node:
        used |= set(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                used |= _names_used(attribute.g) | {output.name for output in attribute.g.output}
    return used


def described(model: Any, metadata: Mapping[str, str]) -> bytes:
    """The ONNX file of a model with metadata."""
    onnx, _ = need_onnx()
    onnx.helper.set_model_props(model, dict(metadata))
    model.producer_name = "precompute"
    content: bytes = model.SerializeToString()
    return content


def write_pt2(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """The .pt2 file of a graph with metadata."""
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(dict(metadata))})
    return file.getvalue()


def run_onnx(path: str) -> Run:
    """Opens a file with onnxruntime on the CPU."""
    _, onnxruntime = need_onnx()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(image: NDArray[np.uint8], pillow: bool) -> NDArray[np.floating]:
        (found,) = session.run(None, {IMAGE: image, PILLOW: np.array([pillow])})
        answer: NDArray[np.floating] = found
        return answer

    return run


def run_pt2(path: str) -> Run:
    """Opens a file with torch."""
    with quiet():
        module = torch.export.load(path).module()

    @torch.no_grad()
    def run(image: NDArray[np.uint8], pillow: bool) -> NDArray[np.floating]:
        found: NDArray[np.floating] = module(torch.from_numpy(image), torch.tensor([pillow])).numpy()
        return found

    return run
