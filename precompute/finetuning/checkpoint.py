"""What a training is resumed from: `OUT.checkpoint`, next to its output, encoded as tails are and never unpickled.

It holds the state between two steps: parameters, AdamW's two moments of each, the best parameters so far, the history
and the linear head. It is written under another name and renamed, so a kill leaves the one before. It records its data,
backbone and settings; another training refuses it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import difference
from precompute.errors import HeadError, HeadFormatError, HeadMismatchError, naming
from precompute.heads.base.file_checks import check_keys
from precompute.heads.base.inputs import check_number
from precompute.heads.persistence.content import json_object
from precompute.heads.persistence.encoding import FileFormat, TooLargeError, decode, encoded, write_json
from precompute.system import sync
from precompute.system.output import check_beside, sync_folder
from precompute.system.untrusted import open_without_waiting

CHECKPOINT_FORMAT = FileFormat("precompute-checkpoint", "checkpoint", ("1",), 16 << 30, range(9))
SUFFIX, NEW_SUFFIX = ".checkpoint", ".checkpoint.new"
SIGNED = b'{"__metadata__":{"format":"precompute-checkpoint"'
MOST = 2**31  # epochs, and steps of one
STRINGS = {"format", "version", "training", "state", "digest"}

Arrays = dict[str, NDArray[Any]]


@dataclass
class State:
    """Where a training is, between two steps.

    epoch: that is trained, from 1 · step: done in it · sums: of this epoch's losses, scores and samples · history,
    best_epoch, best_loss: see `tail_head.Fitted`; the loss is that of the selection set · linear: what the linear head
    chose, JSON-ready · arrays: parameters and moments by name, as `loop` names them.
    """

    epoch: int = 1
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = 0.0
    linear: dict[str, Any] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)


class Checkpoint:
    """The checkpoint of an output, for a training that `training` describes, JSON-ready.

    Anyone who uses it holds the output's lock.
    """

    def __init__(self, output: str, training: dict[str, Any]) -> None:
        self.path, self._new, self.training = output + SUFFIX, output + NEW_SUFFIX, training

    def check(self) -> None:
        """Raise HeadError where a name that it needs belongs to another file."""
        check_beside(self.path, _is_ours, HeadError)
        check_beside(self._new, _is_ours, HeadError)

    def load(self) -> State | None:
        """The state to continue from, None where there is none.

        Raises HeadMismatchError for one of another training, HeadFormatError for one that is damaged.
        """
        if not check_beside(self.path, _is_ours, HeadError):
            return None
        try:
            with open(self.path, "rb", opener=open_without_waiting) as file:
                arrays, strings = decode(file, os.fstat(file.fileno()).st_size, CHECKPOINT_FORMAT)
            if set(strings) != STRINGS:
                raise ValueError(f"its metadata must have the keys {sorted(STRINGS)}, and has {sorted(strings)}")
            training, state = (json_object(strings, name) for name in ("training", "state"))
            restored = _restored(state, arrays)
        except (ValueError, TypeError) as error:
            raise self.damaged(error) from error
        if lines := difference(training, self.training):
            raise HeadMismatchError(
                "\n".join([f"The checkpoint {self.path!r} belongs to another training (then -> now):", *lines]),
                hint="Use the original settings to resume it; remove it, or use --overwrite, to start anew.",
            )
        return restored

    def damaged(self, why: Exception) -> HeadFormatError:
        """What to raise for a checkpoint that cannot be gone on from."""
        return HeadFormatError(
            f"The checkpoint {self.path!r} is damaged: {why}.", hint="Remove it, or start anew with --overwrite."
        )

    def save(self, state: State) -> None:
        """Replace the checkpoint. Raises ValueError for numbers that are not finite; HeadError where it cannot be
        written."""
        said = {name: value for name, value in vars(state).items() if name != "arrays"}
        try:
            parts = encoded(
                state.arrays, {"training": write_json(self.training), "state": write_json(said)}, CHECKPOINT_FORMAT
            )
        except TooLargeError as error:
            raise HeadError(
                f"The checkpoint {self.path!r} cannot be saved: {error}.", hint="Train fewer layers."
            ) from error
        check_beside(self._new, _is_ours, HeadError)
        try:
            with naming(self._new), open(self._new, "wb") as file:
                file.writelines(parts)
                file.flush()
                sync(file.fileno())
            os.replace(self._new, self.path)
            sync_folder(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(self._new)
            raise HeadError(
                f"The checkpoint {self.path!r} cannot be written: {error.strerror}.",
                hint="Check that the disk has space and that you may write there, and run the same command again.",
            ) from error

    def remove(self) -> None:
        """Remove it, and what a kill has left of the next one."""
        for path in (self.path, self._new):
            if check_beside(path, _is_ours, HeadError):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def _is_ours(content: bytes) -> bool:
    """Ours is signed behind the length of its header, or a part of that: a kill, a full disk or a power cut."""
    signed = content[8:]
    return signed.startswith(SIGNED) or SIGNED.startswith(signed.rstrip(b"\0"))


def _restored(state: dict[str, Any], arrays: Arrays) -> State:
    check_keys("state", state, vars(State()).keys() - {"arrays"})
    for name, low in (("epoch", 1), ("step", 0)):
        check_number(name, state[name], whole=True, low=low, high=MOST)
    check_number("best_epoch", state["best_epoch"], whole=True, low=0, high=state["epoch"])
    check_number("best_loss", state["best_loss"], low=0)
    sums, history = state["sums"], state["history"]
    if not isinstance(sums, list) or len(sums) != 3 or not all(isinstance(value, float) for value in sums):
        raise ValueError("its sums must be three numbers")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise ValueError("its history must be a list of JSON objects")
    if [entry.get("epoch") for entry in history] != list(range(state["epoch"])):
        raise ValueError("its history must have an entry for each epoch before its own")
    if not isinstance(state["linear"], dict):
        raise ValueError("its linear must be a JSON object")
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ValueError(f"its array {name} must be float32, and is {array.dtype}")
    return State(**state, arrays=arrays)
