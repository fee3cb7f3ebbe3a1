"""State dicts: found, loaded without running code, understood, and named by their contents."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import pickle
import pickletools
import re
import socket
import stat
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from precompute.errors import BackboneError, WeightsError

StateDict = dict[str, torch.Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema", "net", "network", "module", "teacher", "student")
"""Keys under which training scripts keep the state dict inside a checkpoint."""

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.", "encoder.")
"""What DistributedDataParallel, torch.compile, Lightning and the like put before every name."""

AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""GoogLeNet's and Inception's further classifiers. torchvision drops them after loading its own weights."""

MAX_HEADER_BYTES = 2 * 2**20
"""Of a safetensors header or a pickle, which name and describe tensors: 0.2 MiB for 1000 of them. Each byte of a pickle
can make an object of a few hundred bytes."""
MAX_TUPLES = 50_000  # four a tensor; to hash 150,000, each inside the next, overflows the stack and kills the process
SPARSE_BYTES, SPARSE_SHARE = 2**30, 8  # a file above the first, of which the disk holds less than this part
FLOATS = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
DTYPES = FLOATS | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
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
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def identity_of(path: str) -> dict[str, Any]:
    """Absolute path, size and modification time of a weights file, by which it is taken for the same again.

    Asked before the file is read: should another take its place meanwhile, that one is not taken for it.
    """
    status = _status(path)
    return {"path": os.path.abspath(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _status(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise WeightsError(
            f"The weights file {path} cannot be read: {error.strerror}.",
            hint="--weights takes an entry such as DEFAULT, `random`, or the path of a .pth or .safetensors file.",
        ) from error


def load_file(path: str) -> StateDict:
    """The state dict in a .pth/.pt or .safetensors file, on the CPU; nothing in it is executed.

    Raises WeightsError where the file is missing, is not a checkpoint, or needs unpickling of code.
    """
    status = _status(path)
    if not stat.S_ISREG(status.st_mode):
        raise WeightsError(f"The weights file {path} is not a file.", hint="Name a .pth or .safetensors file.")
    try:
        if status.st_size > SPARSE_BYTES and status.st_blocks * 512 * SPARSE_SHARE < status.st_size:
            raise ValueError(f"of its {status.st_size:,} bytes, most were never written")
        loaded = _load_safetensors(path) if path.endswith(".safetensors") else _load_pickle_free(path)
    except Exception as error:
        raise WeightsError(
            f"The weights file {path} cannot be loaded safely: {_why_not_loaded(error)}",
            hint="Save the weights alone: torch.save(model.state_dict(), 'weights.pth'), or use safetensors.",
        ) from error
    return _unwrap(loaded, path)


def _load_safetensors(path: str) -> Any:
    from safetensors.torch import load_file as load

    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # The library allows 100 MB: room for millions of empty tensors. What cannot be a length at all it names itself.
        if MAX_HEADER_BYTES < length <= os.path.getsize(path):
            raise ValueError(f"its header has {length:,} bytes, more than the limit of {MAX_HEADER_BYTES:,}")
        text = file.read(min(length, MAX_HEADER_BYTES))
    try:
        names = [pair[0] for pair in json.loads(text, object_pairs_hook=list) if isinstance(pair, tuple)]
    except (TypeError, ValueError, RecursionError):
        names = []  # no header: the library says so
    if len(names) != len(set(names)):  # the library takes the last of them, others the first
        raise ValueError("its header names a tensor twice")
    return load(path)


def _load_pickle_free(path: str) -> Any:
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            # torch's own reader, so that what is looked at is what will be loaded.
            archive = torch._C.PyTorchFileReader(path)
            claimed = sum(archive.get_record_size(name) for name in archive.get_all_records())
            if claimed > os.path.getsize(path):  # torch.save never compresses
                raise ValueError(f"it is compressed, and would take {claimed:,} bytes")
            _check_pickle(io.BytesIO(archive.get_record("data.pkl")))
        else:
            file.seek(0)
            for _ in range(5):  # torch's older format: two numbers, the machine, the state dict, the storages' names
                _check_pickle(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is TorchScript: the error that follows says so too
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_pickle(file: IO[bytes]) -> None:
    """Raise ValueError for one that would take much memory or crash the interpreter, before any of it is loaded."""
    start = tuples = 0
    try:
        start = file.tell()
        for code, _, place in pickletools.genops(file):
            tuples += code.name.startswith("TUPLE")
            if tuples > MAX_TUPLES or (place is not None and place - start > MAX_HEADER_BYTES):
                break
        else:
            return
    except Exception:  # noqa: BLE001 - no pickle at all: torch.load stops at the same place, and says so better
        return
    raise ValueError(f"its pickle has more than {MAX_TUPLES:,} tuples or {MAX_HEADER_BYTES:,} bytes")


def _why_not_loaded(error: Exception) -> str:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to unpickle it all the same
        found = re.search(r"GLOBAL (\S+)", text)
        return f"it holds Python objects ({found[1]})" if found else "it is not a checkpoint, or is damaged"
    return ": ".join(filter(None, (type(error).__name__, re.split(r"\.\s|\n", text)[0])))


def _unwrap(loaded: Any, path: str) -> StateDict:
    for _ in range(3):  # {"model": {"state_dict": ...}} occurs, deeper nesting does not
        if not isinstance(loaded, Mapping):
            break
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            tensors = {
                name: value
                for name, value in loaded.items()
                if isinstance(name, str) and isinstance(value, torch.Tensor)
            }
            if tensors:
                _check_tensors(tensors, path)
                return tensors
            break
        loaded = inner
    raise WeightsError(
        f"The weights file {path} holds no state dict.",
        hint="Expected a mapping from parameter names to tensors, alone or under "
        f"{', '.join(WRAPPERS[:3])}; save it with torch.save(model.state_dict(), 'weights.pth').",
    )


def _check_tensors(tensors: StateDict, path: str) -> None:
    """Only plain tensors with all of their values: one that is sparse, or repeats a value, can claim any size."""
    for name, tensor in tensors.items():
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in DTYPES
        if not dense or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise WeightsError(
                f"The weights file {path} cannot be loaded safely: its {name[:80]!r}, {tensor.dtype} "
                f"{tuple(tensor.shape)}, is not stored as plain numbers.",
                hint="Save the weights as dense, contiguous tensors of a common type, such as float32.",
            )


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
    state = _without_prefix(state, wanted)
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
    """`state` with NaN in place of those `heads` that do not fit, and a note for each."""
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


def download(entry: Any) -> tuple[StateDict, dict[str, Any]]:
    """State dict of a torchvision weights entry, downloaded once into TORCH_HOME, and the identity of its file.

    Raises WeightsError naming the missing file and the ways out where it is not there and cannot be fetched.
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
                hint="Three ways out: copy that file there from a machine with a network (or set TORCH_HOME to where "
                "it lies); name a file you have with --weights PATH; or go without, with -b tiny or --weights random.",
            ) from error
        finally:
            socket.setdefaulttimeout(before)
    try:
        file = identity_of(str(path))
        return load_file(str(path)), file
    except WeightsError as error:
        raise WeightsError(error.message, hint="Delete that file; the next run downloads it again.") from error
