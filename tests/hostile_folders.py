"""What a stranger may have done to the folder of a model: changes that the tests of its families share."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], None]
"""Of a folder that is good."""


def written(name: str, data: bytes) -> Change:
    """With other bytes in a file, which may be new."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


def linked(name: str) -> Change:
    """The file lies outside, and a link to it inside."""

    def change(folder: Path) -> None:
        outside = folder.parent / f"outside-{Path(name).name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return change


class Runs:
    """Unpickling it makes a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("was-run",)


def pickled(name: str, weights: str = "model.safetensors") -> Change:
    """The weights are a pickle that runs code, in the file `name`; `weights`: the file that they were in."""

    def change(folder: Path) -> None:
        (folder / weights).unlink()
        (folder / name).write_bytes(pickle.dumps(Runs()))

    return change
