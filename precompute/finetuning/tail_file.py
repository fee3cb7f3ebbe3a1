"""Tails in files: one .safetensors file with what was trained, written whole or not at all, read without trusting it.

Encoded as a head's file is (`precompute.heads.persistence.encoding`), with `format` "precompute-tail". Its arrays are
float32: `tail.NAME` for each parameter behind the cut, by its name in the whole network, and `output.weight` (K, d) and
`output.bias` (K,). Its strings, next to those of the encoding, are `task` and, as JSON, `names` (of the classes or
labels), `shape` (of the activation for one sample), `fitted` (the fields of `tail_head.Fitted`) and `metadata`, as in a
head's file: `spec` names the backbone and the digest of its weights, which the file does not hold. No date and no
seconds: a training that was killed and resumed gives the same bytes. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from precompute.backbones.load import Backbone
from precompute.backbones.tail import own_tail, tail_of
from precompute.errors import BackboneError, HeadError, HeadFormatError, HeadMismatchError, PrecomputeError
from precompute.finetuning.network import OutputLayer, TailNetwork
from precompute.finetuning.tail_head import Fitted, TailHead
from precompute.heads import SavedHead
from precompute.heads.base.file_checks import check_keys
from precompute.heads.base.inputs import check_number
from precompute.heads.persistence.content import (
    describe_names,
    json_object,
    rebuild_classes,
    rebuild_names,
)
from precompute.heads.persistence.encoding import (
    FileFormat,
    TooLargeError,
    encoded,
    write_json,
)
from precompute.heads.persistence.output import kind_of_file
from precompute.heads.persistence.reading import read_whole
from precompute.heads.scoring.temperature import check_temperature
from precompute.system.output import check_output
from precompute.training.targets import CLASSES, LABELS, NUMBER, TASKS

# regnet_y_128gf, the largest network of torchvision, has 2.6 GB.
TAIL_FORMAT = FileFormat("precompute-tail", "tail", ("1",), 4 << 30, range(9))
STRINGS = {"format", "version", "task", "names", "shape", "fitted", "metadata", "digest"}
PARAMETER, WEIGHT, BIAS = "tail.", "output.weight", "output.bias"
OWN_TAIL = "tail"
"""In a tail's metadata: the factory of a tail of the user's own."""
MOST_NUMBERS = 2**31  # in the activation of one sample

Arrays = dict[str, NDArray[Any]]


TAIL = kind_of_file(TAIL_FORMAT)


@dataclass(frozen=True)
class SavedTail:
    """A tail from a file, without its backbone.

    task, names, shape, fitted: see `TailHead` · trained: arrays by their names in the file · metadata: the JSON object
    that was saved with it, as a head's.
    """

    path: str
    task: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    fitted: Fitted
    trained: Arrays
    metadata: dict[str, Any]

    @property
    def layer(self) -> str:
        """Behind which it was cut."""
        return str(self.metadata.get("layer"))

    @property
    def factory(self) -> str | None:
        """Of a tail that is code of the user's own, as `package.module:factory`."""
        found = self.metadata.get(OWN_TAIL)
        return found if isinstance(found, str) else None

    @property
    def n_features(self) -> int:
        """Numbers in the activation of one sample."""
        return math.prod(self.shape)

    def attach(self, backbone: Backbone, *, tail: str | None = None, device: str = "cpu") -> SavedHead:
        """The tail of `backbone` with what was trained: a head on activations (n, *shape) of its layer.

        tail: must be given, as a confirmation, for a tail that is code of the user's own.
        Raises HeadMismatchError for another backbone, other weights or another layer than those of the training;
        HeadFormatError where the file's arrays are not those of the tail; BackboneError for a factory that fails;
        DeviceError.
        """
        spec = self.metadata.get("spec")
        spec = spec if isinstance(spec, dict) else {}
        if spec.get("weights") != backbone.weights:
            raise HeadMismatchError(
                f"The tail {self.path} was trained behind {spec.get('backbone')} with weights "
                f"{spec.get('weights')!s:.12}, not behind {backbone.name} with {backbone.weights:.12}.",
                hint="Use the original weights: --weights PATH. Their contents are compared, the name does not matter.",
            )
        module = self._module(backbone, tail)
        expected = {PARAMETER + name: tuple(value.shape) for name, value in kept_state(module, self.factory).items()}
        width = self.trained[WEIGHT].shape[1]
        own = {name: array for name, array in self.trained.items() if name.startswith(PARAMETER)}
        found = {name: array.shape for name, array in own.items()}
        if found != expected:
            odd = sorted({*found.items()} ^ {*expected.items()})[0][0]
            raise HeadFormatError(
                f"{self.path} does not hold the parameters of the tail of {backbone.name} behind {self.layer!r}: {odd} "
                f"has the shape {found.get(odd, 'none, it is missing')}, and should have {expected.get(odd, 'none')}.",
                hint="Copy it again from an intact copy, or train the tail again.",
            )
        state = {name.removeprefix(PARAMETER): torch.from_numpy(array.copy()) for name, array in own.items()}
        module.load_state_dict(state, strict=False)
        network = TailNetwork(module, OutputLayer(self.trained[WEIGHT], self.trained[BIAS]))
        self._check_width(network, width, backbone.name)
        head: Any = TailHead(network, self.shape, self.task, self.names, self.fitted, device)
        return SavedHead(head, self.metadata)

    def _module(self, backbone: Backbone, tail: str | None) -> nn.Module:
        if self.factory is None:
            if tail is not None:
                raise HeadMismatchError(
                    f"The tail {self.path} is that of {backbone.name}, not {tail}.", hint="Leave --tail out."
                )
            try:
                return tail_of(backbone, self.layer)
            except BackboneError as error:
                raise HeadMismatchError(
                    f"The tail {self.path} does not fit {backbone.name}: {error.message}",
                    hint="Give the backbone and layer that it was trained on.",
                ) from error
        if tail != self.factory:
            raise HeadMismatchError(
                f"The tail {self.path} is code: {self.factory}. A file does not decide which code runs.",
                hint=f"If you trust that code, confirm it: --tail {self.factory}",
            )
        return own_tail(tail, backbone, self.layer)  # what it draws is replaced

    def _check_width(self, network: TailNetwork, width: int, name: str) -> None:
        """Raise HeadMismatchError where the tail does not take what it was trained on, or gives something else."""
        try:
            with torch.inference_mode():
                given = tuple(network.features(torch.zeros(2, *self.shape)).shape)
        except (RuntimeError, ValueError, PrecomputeError) as error:
            raise HeadMismatchError(
                f"The tail {self.path} was trained on activations of shape {self.shape}, which the tail of {name} "
                f"behind {self.layer!r} does not take: {error}",
                hint="Give the backbone, transform and layer that it was trained on.",
            ) from error
        if given != (2, width):
            raise HeadMismatchError(
                f"The output layer of {self.path} takes {width} features, and the tail of {name} behind "
                f"{self.layer!r} gives {given[1:]}.",
                hint="Train the tail again.",
            )


def kept_state(module: nn.Module, factory: str | None) -> dict[str, torch.Tensor]:
    """What a file holds of a tail: its parameters; of one of the user's own its floating-point buffers too, as no
    weights are known that these could come from."""
    kept = dict(module.named_parameters())
    if factory is not None:
        kept |= {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    return {name: value.detach() for name, value in kept.items()}


def save_tail(
    path: str | os.PathLike[str], head: TailHead, *, metadata: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write what was trained, and `metadata`, a JSON object with string keys.

    The file appears under its name in one step once it is whole and on the disk. The same tail and metadata give the
    same bytes. Another file than a tail is replaced with `overwrite` only. Raises HeadError where it cannot be saved.
    """
    output = check_output(path, TAIL, overwrite=overwrite)
    try:
        arrays, strings = _serialise(head, dict(metadata))
        parts = encoded(arrays, strings, TAIL_FORMAT)
    except TooLargeError as error:
        raise HeadError(
            f"The tail for {os.fspath(path)!r} cannot be saved: {error}.",
            hint="Cut further behind, so that less is trained.",
        ) from error
    except (TypeError, ValueError) as error:
        raise HeadError(
            f"The tail for {os.fspath(path)!r} cannot be saved: {error}.",
            hint="Train again at a smaller --learning-rate.",
        ) from error
    output.write(lambda file: file.writelines(parts))


def _serialise(head: TailHead, metadata: dict[str, Any]) -> tuple[Arrays, dict[str, str]]:
    network, factory = head.network, metadata.get(OWN_TAIL)
    tensors = {PARAMETER + name: value for name, value in kept_state(network.tail, factory).items()}
    tensors |= {WEIGHT: network.output.weight.detach(), BIAS: network.output.bias.detach()}
    arrays = {name: value.float().cpu().contiguous().numpy() for name, value in sorted(tensors.items())}
    fitted = asdict(head.fitted)
    if head.task == LABELS:
        fitted["thresholds"] = head.thresholds_.tolist()
    names = {} if head.task == NUMBER else describe_names(head.classes_ if head.task == CLASSES else head.labels_)
    said = {"names": names, "shape": list(head.shape), "fitted": fitted, "metadata": metadata}
    return arrays, {"task": head.task, **{name: write_json(value) for name, value in said.items()}}


def load_tail(path: str | os.PathLike[str]) -> SavedTail:
    """Read a tail that `save_tail` wrote; `attach` puts it behind its backbone. The file may come from anyone.

    Raises HeadFormatError for anything but a whole tail file of a known version, HeadError if it cannot be read at all.
    """
    name = os.fspath(path)
    return read_whole(path, TAIL_FORMAT, "fine-tune", lambda arrays, strings: _restore(name, arrays, strings))


def _restore(path: str, arrays: Arrays, strings: dict[str, str]) -> SavedTail:
    """Raises ValueError for what no tail says."""
    if set(strings) != STRINGS:
        raise ValueError(f"its metadata must have the keys {sorted(STRINGS)}, and has {sorted(strings)}")
    task = strings["task"]
    if task not in TASKS:
        raise ValueError(f"its task, {task!r}, is unknown")
    named, fitted, metadata = (json_object(strings, key) for key in ("names", "fitted", "metadata"))
    shape = json_object({"shape": f'{{"shape":{strings["shape"]}}}'}, "shape")["shape"]
    if not isinstance(shape, list) or not shape or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError("its shape must be a list of whole numbers above 0")
    if math.prod(shape) > MOST_NUMBERS:
        raise ValueError(f"its shape holds more than {MOST_NUMBERS} numbers")
    names = _names(task, named)
    _check_arrays(arrays, 1 if task == NUMBER else len(names))
    if OWN_TAIL in metadata and not isinstance(metadata[OWN_TAIL], str):
        raise ValueError("its tail must be the name of a factory")
    check_temperature(metadata.get("temperature", 1.0))
    if "temperature" in metadata and task != CLASSES:
        raise ValueError("it has a temperature, which is for classes alone")
    return SavedTail(path, task, names, tuple(shape), _fitted(task, fitted, len(names)), arrays, metadata)


def _names(task: str, named: dict[str, Any]) -> tuple[str, ...]:
    if task == NUMBER:
        check_keys("names", named, set())
        return ()
    found = rebuild_classes(named) if task == CLASSES else rebuild_names(named)
    if found.dtype.kind != "U":
        raise ValueError("its names must be text")
    return tuple(found.tolist())


def _check_arrays(arrays: Arrays, outputs: int) -> None:
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ValueError(f"its array {name} must be float32, and is {array.dtype}")
        if not name.startswith(PARAMETER) and name not in (WEIGHT, BIAS):
            raise ValueError(f"it has an array {name!r}, which no tail has")
    weight, bias = arrays.get(WEIGHT), arrays.get(BIAS)
    if weight is None or bias is None:
        raise ValueError(f"it has no {WEIGHT} or no {BIAS}")
    if weight.ndim != 2 or len(weight) != outputs or bias.shape != (outputs,):
        raise ValueError(f"its output layer has the shapes {weight.shape} and {bias.shape}, for {outputs} outputs")


def _fitted(task: str, fitted: dict[str, Any], n_names: int) -> Fitted:
    check_keys("fitted", fitted, {one.name for one in fields(Fitted)})
    history = fitted["history"]
    if not isinstance(history, list) or not history or not all(isinstance(entry, dict) for entry in history):
        raise ValueError("its history must be a list of JSON objects")
    if [entry.get("epoch") for entry in history] != list(range(len(history))):
        raise ValueError("its history must count epochs from 0")
    check_number("best_epoch", fitted["best_epoch"], whole=True, low=0, high=len(history))
    if not isinstance(fitted["stopped_on"], str):
        raise ValueError("its stopped_on must be a string")
    if not all(isinstance(fitted[name], dict) for name in ("linear", "settings")):
        raise ValueError("its linear and settings must be JSON objects")
    check_number("target_mean", fitted["target_mean"], low=-math.inf, open_low=True)
    check_number("target_scale", fitted["target_scale"], low=0, open_low=True)
    thresholds = fitted["thresholds"]
    if not isinstance(thresholds, list) or len(thresholds) != (n_names if task == LABELS else 0):
        raise ValueError("its thresholds must be a list with one for each label")
    for value in thresholds:
        check_number("every threshold", value, low=0, high=1 + 1e-12)
    return Fitted(**fitted)
