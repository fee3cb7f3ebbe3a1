"""A folder with a model in the form that libraries of the Hugging Face hub save, from any author: files are checked.

A file must be in the folder itself. In the hub's own cache the files of a snapshot are links to `blobs` next to it, and
these are followed; no other link is, so that a folder from a stranger reads no file of this machine.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from precompute.errors import WeightsError

MAX_CONFIG_BYTES = 2 * 2**20  # those of the largest models have 0.1 MiB, most of it names of classes
SAFETENSORS = "model.safetensors"
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".tar", ".npz")


class ModelFolder:
    """path: absolute."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))
        if not os.path.isdir(self.path):
            raise WeightsError(f"There is no folder {path}.", hint="Name the folder that holds config.json.")
        real = Path(os.path.realpath(self.path))
        cached = real.parent.name == "snapshots" and real.parent.parent.name.startswith("models--")
        self._roots = (real, real.parent.parent / "blobs") if cached else (real,)

    def has(self, name: str) -> bool:
        return os.path.lexists(os.path.join(self.path, name))

    def file(self, name: str) -> str:
        """The path of a file in the folder. Raises WeightsError where it is none, or a link out of the folder."""
        path = os.path.join(self.path, name)
        try:
            real = Path(os.path.realpath(path, strict=True))
            regular = stat.S_ISREG(os.stat(real).st_mode)
        except OSError as error:
            raise WeightsError(
                f"{path} cannot be read: {error.strerror}.", hint=f"A folder of a model holds {name}."
            ) from error
        if not any(real.is_relative_to(root) for root in self._roots):
            raise WeightsError(
                f"{path} is a link to {real}, out of the folder, and is not followed.",
                hint="Put a copy of the file in its place, if it is yours.",
            )
        if not regular:
            raise WeightsError(f"{path} is not a file.", hint=f"A folder of a model holds {name}.")
        return path

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file. Raises WeightsError where it holds none, or more than MAX_CONFIG_BYTES."""
        found = self._json(name)
        if not isinstance(found, dict):
            raise WeightsError(
                f"{os.path.join(self.path, name)} holds no JSON object.", hint="Use a folder saved by the library."
            )
        return found

    def json_list(self, name: str) -> list[Any]:
        """The same for a JSON array."""
        found = self._json(name)
        if not isinstance(found, list):
            raise WeightsError(
                f"{os.path.join(self.path, name)} holds no JSON array.", hint="Use a folder saved by the library."
            )
        return found

    def _json(self, name: str) -> Any:
        path = self.file(name)
        with open(path, "rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise WeightsError(
                f"{path} has more than {MAX_CONFIG_BYTES:,} bytes, too many for the settings of a model.",
                hint="Use a folder saved by the library.",
            )
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise WeightsError(
                f"{path} holds no JSON: {str(error)[:200]}.", hint="Use a folder saved by the library."
            ) from error

    def safetensors(self) -> str:
        """The path of the weights, `model.safetensors` or the one file of that kind.

        Raises WeightsError where there is none or several, and names those that are pickles and are not loaded.
        """
        try:
            names = sorted(os.listdir(self.path))
        except OSError as error:
            raise WeightsError(
                f"{self.path} cannot be read: {error.strerror}.", hint="Look at the rights of the folder."
            ) from error
        safe = [name for name in names if name.endswith(".safetensors")]
        if SAFETENSORS in safe or len(safe) == 1:
            return self.file(SAFETENSORS if SAFETENSORS in safe else safe[0])
        if safe:
            raise WeightsError(
                f"{self.path} holds several weights: {', '.join(safe[:8])}.", hint="Name one: --weights PATH."
            )
        pickles = [name for name in names if name.endswith(PICKLES)]
        if pickles:
            raise WeightsError(
                f"{self.path} holds its weights as {', '.join(pickles[:8])}, a form that can run code, and no "
                f"{SAFETENSORS}.",
                hint="Save them with safetensors; or name the file with --weights PATH: of a state dict nothing is "
                "executed.",
            )
        raise WeightsError(f"{self.path} holds no {SAFETENSORS}.", hint="Name the weights: --weights PATH.")
