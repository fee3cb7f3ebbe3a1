"""A trained tail put back into its network: one module, and its weights in a file that needs no precompute."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import torch
from safetensors.torch import save
from torch import nn

from precompute.backbones.crossing import example_input
from precompute.backbones.layout import BATCH
from precompute.backbones.load import Backbone
from precompute.backbones.tail import Tail
from precompute.backbones.weights import AUXILIARY
from precompute.errors import BackboneError, HeadError, UsageError
from precompute.finetuning.tail_head import TailHead
from precompute.system.output import Kind, Output, check_output
from precompute.training.targets import NUMBER

SAFETENSORS, PICKLED = ".safetensors", (".pth", ".pt")
TOLERANCE = 1e-4  # relative L2 between the network and its two parts, far above rounding


def whole_network(head: TailHead, backbone: Backbone) -> nn.Module:
    """A copy of `backbone.network`, in fp32 and in eval mode, with all that was trained in place.

    Its final classifier is a new `Linear` of as many outputs as `head` has: logits of classes or labels, or one number.
    backbone: cut at the layer that the tail begins behind. Two random samples run through both, which must agree.
    Raises HeadError where the network cannot hold the trained parameters: its classifier is not a Linear, or is not the
    last thing that it does, or the tail is a module of the user's own.
    """
    tail, output = head.network.tail, head.network.output
    if not isinstance(tail, Tail):
        raise _no_place(backbone, "the tail is your own module, and not part of it")
    network = copy.deepcopy(backbone.network).float().eval()
    try:
        name = _timm_classifier(network, output.out_features) or backbone.family.final_classifier(network)
    except BackboneError as error:
        raise _no_place(backbone, error.message.rstrip(".")) from error
    old = network.get_submodule(name)
    if not isinstance(old, nn.Linear):
        raise _no_place(backbone, f"its classifier, {name}, is a {type(old).__name__} and not a Linear")
    new = nn.Linear(output.in_features, output.out_features)
    _fill(new, head)
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new)
    network.load_state_dict({**network.state_dict(), **_on_cpu(tail.state_dict())})
    _check_agrees(network, head, backbone)
    return network.requires_grad_(False)


def _timm_classifier(network: nn.Module, outputs: int) -> str | None:
    """The name of the classifier that a network of timm's, which is loaded without one, makes itself; else None."""
    reset, get = getattr(network, "reset_classifier", None), getattr(network, "get_classifier", None)
    if reset is None or get is None:
        return None
    reset(outputs)
    return next((name for name, module in network.named_modules() if module is get()), None)


@torch.no_grad()
def _fill(layer: nn.Linear, head: TailHead) -> None:
    """The output layer of `head`; of numbers the ones themselves, where that gives standardised ones."""
    output, fitted = head.network.output, head.fitted
    scale, shift = (fitted.target_scale, fitted.target_mean) if head.task == NUMBER else (1.0, 0.0)
    layer.weight.copy_(output.weight.double() * scale)
    layer.bias.copy_(output.bias.double() * scale + shift)


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().cpu() for name, value in state.items()}


@torch.no_grad()
def _check_agrees(network: nn.Module, head: TailHead, backbone: Backbone) -> None:
    inputs = example_input(backbone, BATCH, seed=1)
    (activation,) = backbone.module(*inputs)
    in_parts = copy.deepcopy(head.network).cpu()
    in_parts.output = nn.Linear(in_parts.output.in_features, in_parts.output.out_features)
    _fill(in_parts.output, head)
    expected = in_parts(activation.float())
    given = network(*(one.float() if one.is_floating_point() else one for one in inputs))
    same_shape = isinstance(given, torch.Tensor) and given.shape == expected.shape
    if not same_shape or not (given - expected).norm() <= TOLERANCE * expected.norm().clamp_min(1e-30):
        raise _no_place(backbone, "it continues behind its classifier, where the trained part ends")


def _no_place(backbone: Backbone, why: str) -> HeadError:
    return HeadError(
        f"{backbone.name} cannot hold the trained parameters: {why}.",
        hint="`precompute predict` needs no such file; finetuning.opening.open_head returns the trained part.",
    )


def network_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """What is saved: the state dict, without classifiers that serve training alone."""
    return {
        name: value.detach().contiguous().clone()
        for name, value in network.state_dict().items()
        if name.partition(".")[0] not in AUXILIARY
    }


def check_network_output(
    path: str | os.PathLike[str], *, overwrite: bool = False, inputs: Sequence[str | os.PathLike[str] | None] = ()
) -> Output:
    """Find out before the work whether the weights of a whole network can and may be written to `path`.

    Raises UsageError for an ending that is neither safetensors' nor torch's, and as `check_output` does.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix != SAFETENSORS and suffix not in PICKLED:
        raise UsageError(
            f"The weights of a whole network are no {suffix or 'file without an ending'}.",
            hint=f"Name a file that ends with {SAFETENSORS}, or with {' or '.join(PICKLED)} for torch.load.",
        )
    return check_output(path, Kind(HeadError, _refuse), overwrite=overwrite, inputs=inputs)


def write_network(
    path: str | os.PathLike[str], head: TailHead, backbone: Backbone, *, overwrite: bool = False
) -> dict[str, Any]:
    """Write the state dict of `whole_network`: by safetensors, or by torch.save where the name ends with .pth or .pt.

    The file appears under its name in one step. What there is to say of it comes back. An existing file is replaced
    with `overwrite` only: nobody can tell whose weights it holds.
    Raises UsageError for another ending, HeadError as `whole_network` does and where it cannot be written.
    """
    output = check_network_output(path, overwrite=overwrite)
    state = network_state(whole_network(head, backbone))
    about = {
        "backbone": backbone.name,
        "load_with": backbone.family.loading_code(backbone.name, head.network.output.out_features),
        "outputs": [str(name) for name in getattr(head, "classes_", getattr(head, "labels_", []))],
        "transform": backbone.preprocess.spec(),
    }

    def write(file: BinaryIO) -> None:
        if output.path.lower().endswith(SAFETENSORS):
            file.write(save(state, metadata={"format": "pt", "precompute": json.dumps(about)}))
        else:
            torch.save(state, file)

    output.write(write)
    return {**about, "tensors": len(state), "parameters": sum(value.numel() for value in state.values())}


def _refuse(path: str) -> None:
    raise HeadError(f"{path!r} exists, and the origin of its weights is unknown.", hint="")
