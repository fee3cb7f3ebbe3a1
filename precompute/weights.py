"""State dicts: found, loaded without running code, understood, and named by their contents."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import stat
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from precompute.errors import WeightsError

StateDict = dict[str, torch.Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema", "net", "network", "module", "teacher", "student")
"""Keys under which training scripts keep the state dict inside a checkpoint."""

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.", "encoder.")
"""What DistributedDataParallel, torch.compile, Lightning and the like put before every name."""

NAMES_SHOWN = 8
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer, so that a batch job does not hang where there is no network


def digest_of(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors, in the order of their names; 64 hex digits.

    The same for a .pth and a .safetensors file of the same weights.
    """
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name}\n{tensor.dtype}\n{tuple(tensor.shape)}\n".encode())
        sha.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return sha.hexdigest()


def load_file(path: str) -> StateDict:
    """The state dict in a .pth/.pt or .safetensors file, on the CPU; nothing in it is executed.

    Raises WeightsError where the file is missing, is not a checkpoint, or needs unpickling of code.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise WeightsError(
            f"The weights file {path} cannot be read: {error.strerror}.",
            hint="--weights takes an entry such as DEFAULT, `random`, or the path of a .pth or .safetensors file.",
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise WeightsError(f"The weights file {path} is not an ordinary file.", hint="Name a .pth or .safetensors file.")
    try:
        loaded = _load_safetensors(path) if path.endswith(".safetensors") else _load_pickle_free(path)
    except Exception as error:
        raise WeightsError(
            f"The weights file {path} cannot be loaded safely: {type(error).__name__}: {str(error).splitlines()[0]:.300}",
            hint="Save the weights alone: torch.save(model.state_dict(), 'weights.pth'), or use safetensors.",
        ) from error
    return _unwrap(loaded, path)


def _load_safetensors(path: str) -> Any:
    from safetensors.torch import load_file as load

    return load(path)


def _load_pickle_free(path: str) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _unwrap(loaded: Any, path: str) -> StateDict:
    for _ in range(3):  # {"model": {"state_dict": ...}} occurs, deeper nesting does not
        if not isinstance(loaded, Mapping):
            break
        if loaded and all(isinstance(value, torch.Tensor) for value in loaded.values()):
            return dict(loaded)
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
            if tensors:
                return tensors
            break
        loaded = inner
    raise WeightsError(
        f"The weights file {path} holds no state dict.",
        hint="Expected a mapping from parameter names to tensors, alone or under "
        f"{', '.join(WRAPPERS[:3])}; save it with torch.save(model.state_dict(), 'weights.pth').",
    )


def fit_into(model: nn.Module, state: StateDict, *, source: str, model_name: str) -> None:
    """Load `state` into `model`, strictly, after removing prefixes that wrappers leave.

    Raises WeightsError with the missing, unexpected and differently shaped names where it does not fit.
    """
    wanted = model.state_dict()
    state = _without_prefix(state, wanted)
    if model_name.startswith("densenet"):
        state = _modern_densenet(state)
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


def _without_prefix(state: StateDict, wanted: Mapping[str, torch.Tensor]) -> StateDict:
    """Strip wrapper prefixes for as long as that makes more names known."""
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


def download(entry: Any) -> tuple[StateDict, str]:
    """State dict of a torchvision weights entry, downloaded once into TORCH_HOME, and the path of its file.

    Raises WeightsError naming the missing file and the ways out where it is not there and cannot be fetched.
    """
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, os.path.basename(entry.url))
    if not os.path.exists(path):
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
        try:
            # The same call and the same name check that torchvision's own get_state_dict makes.
            os.makedirs(folder, exist_ok=True)
            prefix = torch.hub.HASH_REGEX.search(os.path.basename(path))
            torch.hub.download_url_to_file(entry.url, path, prefix.group(1) if prefix else None, progress=False)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"The weights {entry} are not on this machine and could not be downloaded ({error}).\n"
                f"Missing file: {path}",
                hint="Three ways out: copy that file there from a machine with a network (or set TORCH_HOME to where "
                "it lies); name a file you have with --weights PATH; or go without, with -b tiny or --weights random.",
            ) from error
        finally:
            socket.setdefaulttimeout(before)
    return load_file(path), path
