"""State dicts: named by their contents, fitted into a model, and fetched where torchvision publishes them."""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from precompute.backbones.checkpoints import StateDict, identity_of, load_file
from precompute.errors import BackboneError, WeightsError

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.", "encoder.")
"""What DistributedDataParallel, torch.compile, Lightning and the like put before every name."""

AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""GoogLeNet's and Inception's further classifiers. torchvision drops them after loading its own weights."""

NAMES_SHOWN = 8
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer, so that a batch job does not hang where there is no network


def digest_of(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors, in the order of their names; 64 hex digits.

    The same for a .pth and a .safetensors file of the same weights. cache/FORMAT.md specifies it to the byte.
    """
    sha = hashlib.sha256()
    for name in sorted(state):  # by code points, which is the order of their bytes in UTF-8
        tensor = state[name].detach().cpu().contiguous()
        dtype, shape = str(tensor.dtype).removeprefix("torch."), ",".join(map(str, tensor.shape))
        sha.update(f"{name}\n{dtype}\n{shape}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def fit_into(
    model: nn.Module, state: StateDict, *, source: str, model_name: str, find_classifier: Callable[[nn.Module], str]
) -> tuple[str, ...]:
    """Load `state` into `model`, strictly, after removing prefixes that wrappers leave; notes worth telling come back.

    Only the final classifier (`find_classifier` gives its name) may be another one, fine-tuned on other classes, or
    missing, since features come from before it. It is then filled with NaN, so that nobody takes its scores for real
    ones. The same goes for auxiliary heads, which serve training alone.

    Raises WeightsError with the missing, unexpected and differently shaped names where it does not fit.
    """
    wanted = model.state_dict()
    state = without_prefix(state, wanted)
    if model_name.startswith("densenet"):
        state = _modern_densenet(state)
    notes: tuple[str, ...] = ()
    if _shapes(state) != _shapes(wanted):
        try:
            heads = [find_classifier(model), *AUXILIARY]
        except BackboneError:  # no classifier to tell apart
            heads = [*AUXILIARY]
        state, notes = _without_other_heads(state, wanted, heads, source)
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    lines = [
        f"  {len(names)} {kind}: {', '.join(names[:NAMES_SHOWN])}{', ...' if len(names) > NAMES_SHOWN else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if lines:
        raise WeightsError(
            "\n".join([f"The weights {source} do not fit {model_name}:", *lines]),
            hint="Check that the backbone's name (-b) is the one these weights were trained for.",
        )
    # BatchNorm's counter plays no part in inference and is missing from converted checkpoints.
    counters = {name: torch.zeros_like(wanted[name], device="cpu") for name in wanted if name not in state}
    state = {name: state[name].to(wanted[name].dtype) for name in wanted if name in state} | counters
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False)
    return notes


def _without_other_heads(
    state: StateDict, wanted: Mapping[str, torch.Tensor], heads: list[str], source: str
) -> tuple[StateDict, tuple[str, ...]]:
    """`state` with NaN instead of those `heads` that do not fit, and a note for each."""
    notes = []
    for head in heads:
        inside = {name: tensor for name, tensor in wanted.items() if name.startswith(f"{head}.")}
        given = {name: tensor for name, tensor in state.items() if name.startswith(f"{head}.")}
        if _shapes(inside) == _shapes(given):
            continue
        state = {name: tensor for name, tensor in state.items() if name not in given}
        state |= {name: torch.full(tensor.shape, torch.nan) for name, tensor in inside.items()}
        notes.append(f"{source} has {'another' if given else 'no'} {head}; the features do not depend on it")
    return state, tuple(notes)


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def without_prefix(state: StateDict, wanted: Mapping[str, torch.Tensor]) -> StateDict:
    """`state` without wrapper prefixes, stripped for as long as that makes more names known."""
    while True:
        known = sum(name in wanted for name in state)
        if known == len(state):
            return state
        for prefix in PREFIXES:
            stripped = {name.removeprefix(prefix): value for name, value in state.items()}
            if len(stripped) == len(state) and sum(name in wanted for name in stripped) > known:
                state = stripped
                break
        else:
            doubled = next((p for p in PREFIXES if state and all(name.startswith(p) for name in state)), None)
            if doubled is None:
                return state
            state = {name.removeprefix(doubled): value for name, value in state.items()}


def _modern_densenet(state: StateDict) -> StateDict:
    """torchvision's published DenseNet checkpoints still say `norm.1` where its modules say `norm1`."""
    pattern = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:\w+))$")
    return {pattern.sub(lambda match: match[1] + match[2], name): value for name, value in state.items()}


def download(entry: Any) -> tuple[StateDict, dict[str, Any]]:
    """State dict of a torchvision weights entry, downloaded once into TORCH_HOME, and the identity of its file.

    Raises WeightsError naming the missing file and the remedies where it is not there and cannot be fetched.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
    if not path.exists():
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
        try:
            # The same call and the same name check that torchvision's own get_state_dict makes.
            path.parent.mkdir(parents=True, exist_ok=True)
            prefix = torch.hub.HASH_REGEX.search(path.name)
            torch.hub.download_url_to_file(entry.url, str(path), prefix.group(1) if prefix else None, progress=False)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise WeightsError(
                f"The weights {entry} are not on this machine and could not be downloaded ({error}).\n"
                f"Missing file: {path}",
                hint="Three options: copy that file there from a machine with a network (or set TORCH_HOME to where "
                "it lies); name a file you have with --weights PATH; or use -b tiny or --weights random.",
            ) from error
        finally:
            socket.setdefaulttimeout(before)
    try:
        file = identity_of(str(path))
        return load_file(str(path)), file
    except WeightsError as error:
        raise WeightsError(error.message, hint="Delete that file; the next run downloads it again.") from error
