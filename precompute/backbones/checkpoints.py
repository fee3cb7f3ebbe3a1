"""Checkpoint files: known by their identity, read without running code, and the state dict found in them."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import re
import stat
import warnings
from collections.abc import Mapping
from typing import IO, Any

import torch

from precompute.backbones.archive import read_pickle
from precompute.errors import WeightsError
from precompute.system.untrusted import is_sparse

StateDict = dict[str, torch.Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema", "net", "network", "module", "teacher", "student")
"""Keys under which training scripts keep the state dict inside a checkpoint."""

MAX_HEADER_BYTES = 2 * 2**20
"""Of a safetensors header or a pickle, which name and describe tensors: 0.2 MiB for 1000 of them. Each byte of a pickle
can make an object of a few hundred bytes."""
MAX_TUPLES = 50_000  # four a tensor; to hash 150,000, each inside the next, overflows the stack and kills the process
FLOATS = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
DTYPES = FLOATS | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def identity_of(path: str) -> dict[str, Any]:
    """Absolute path, size and modification time of a weights file, by which it is taken for the same again.

    Asked before the file is read: should another take its place meanwhile, the two are not confused.
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
        if is_sparse(status):
            raise ValueError(f"of its {status.st_size:,} bytes, most were never written")
        loaded = _load_safetensors(path) if path.endswith(".safetensors") else _load_pickle_free(path)
    except Exception as error:
        raise WeightsError(
            f"The weights file {path} cannot be loaded safely: {_why_not_loaded(error)}",
            hint="Save the weights alone: torch.save(model.state_dict(), 'weights.pth'), or use safetensors.",
        ) from error
    # Copies: what is mapped would change, or end the process, with a file that is overwritten while it is in use.
    return {name: tensor.clone() for name, tensor in _unwrap(loaded, path).items()}


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
        zipped = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if zipped:
            _check_pickle(io.BytesIO(read_pickle(file, MAX_HEADER_BYTES)))
        else:
            for _ in range(5):  # torch's older format: two numbers, the machine, the state dict, the storages' names
                _check_pickle(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is TorchScript: the error that follows says so too
        # Mapped, a tensor cannot reach beyond the file. Else torch before 2.10 takes its claim of a size unchecked, and
        # hands out the memory behind what was read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


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
