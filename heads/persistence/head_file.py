"""Heads in files: one .safetensors file per head, written whole or not at all, and read without trusting it.

Any safetensors library opens the file. Its metadata holds, as strings: `format` ("precompute-head"), `version` ("1" or
"2"), `head` (its kind, a key of `kinds.KINDS`), then as JSON `params` (constructor arguments, less `device`),
`fitted` (attributes that are no arrays), `classes` and `metadata` (the caller's own), and `digest`: the
SHA-256 of the whole file with the 64 digits of the digest itself written as zeros. In version 2 arrays may be float64,
and a string longer than 1 MiB is the array `json:KEY` of its ASCII characters instead. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sklearn.utils.validation import check_is_fitted

from precompute.errors import HeadError
from precompute.heads.base.labels import MultilabelHead
from precompute.heads.persistence.content import restore, serialise
from precompute.heads.persistence.encoding import HEAD_FORMAT, TooLargeError, encode, write_json
from precompute.heads.persistence.output import HEAD
from precompute.heads.persistence.reading import read_whole
from precompute.heads.scoring.temperature import check_temperature, scale
from precompute.system.output import check_output

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from precompute.heads.persistence.encoding import Arrays
    from precompute.heads.persistence.kinds import Head

__all__ = ["HEAD", "SavedHead", "load_head", "save_head"]


@dataclass(frozen=True)
class SavedHead:
    """A fitted head from a file, and the JSON object that was saved with it."""

    head: Head
    metadata: dict[str, Any]

    def predict_proba(self, X: Any) -> npt.NDArray[np.floating]:
        """Probabilities (n, K) as `precompute predict` reports them: those of `head`, at the temperature of its file.

        A head of `train-head --calibrate` has the number `temperature` in its metadata; `head` itself ignores
        it, and predicts the same classes. Of several labels (n, L), each label's own; heads of numbers have none.
        """
        return self.scaled(self.head.predict_proba(X))

    def scaled(self, proba: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Probabilities (n, K) of `head` at the temperature of its file."""
        return scale(proba, self.metadata["temperature"]) if "temperature" in self.metadata else proba


def save_head(
    path: str | os.PathLike[str], head: Head, *, metadata: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write a fitted head and `metadata`, a JSON object with string keys (scores, settings, the cache's spec).

    The file appears under its name in one step once it is complete and on the disk, so a crash leaves the old one. The
    same head and metadata give the same bytes. Labels must be strings or integers. A file that is not a head is
    replaced only with `overwrite`, and a device, pipe or folder never; a link is followed.

    Raises HeadError if the head cannot be saved or the file cannot be written, NotFittedError if it is not fitted.
    """
    check_is_fitted(head)
    output = check_output(path, HEAD, overwrite=overwrite)
    try:
        arrays, strings = serialise(head)
        blob = encode(arrays, {**strings, "metadata": write_json(dict(metadata))})
    except TooLargeError as error:
        raise HeadError(
            f"The head for {_shown(path)} cannot be saved: {error}.",
            hint="Leave large things out of the metadata, or train on fewer classes, features or (kNN) images.",
        ) from error
    except (TypeError, ValueError) as error:
        raise HeadError(
            f"The head for {_shown(path)} cannot be saved: {error}.",
            hint="Use labels that are strings or integers, and metadata that JSON can hold (finite numbers only).",
        ) from error
    output.write(lambda file: file.write(blob))


def load_head(path: str | os.PathLike[str]) -> SavedHead:
    """Read a head that `save_head` wrote. The file may come from anyone: it is checked, and holds no code.

    Raises HeadFormatError for anything but a whole head file of a known version (a pickle, a pipe, a file truncated,
    one flipped bit, arrays that do not fit each other), HeadError if the file cannot be read at all.
    """
    return SavedHead(*read_whole(path, HEAD_FORMAT, "train-head", _restored))


def _restored(arrays: Arrays, strings: dict[str, str]) -> tuple[Head, dict[str, Any]]:
    head, metadata = restore(arrays, strings)
    _check_temperature(head, metadata)
    return head, metadata


def _check_temperature(head: Head, metadata: dict[str, Any]) -> None:
    """Raise ValueError unless a temperature is a number, and of a head that has one."""
    check_temperature(metadata.get("temperature", 1.0))
    if "temperature" in metadata and isinstance(head, MultilabelHead):
        raise ValueError("it has a temperature, which the probabilities of several labels do not have")


def _shown(path: str | os.PathLike[str]) -> str:
    """The path in quotes, with bytes that are not UTF-8 as escapes, so that the message can be printed anywhere."""
    return repr(os.fspath(path))
