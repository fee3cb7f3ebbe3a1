"""A folder as transformers saves it: config.json, weights as safetensors, and the files of a tokenizer or a processor.

It may come from a stranger. Nothing in it is run: code that it requests is refused by name, weights are read as tensors
alone, and what names a place to load from is never followed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch

from precompute.backbones.checkpoints import StateDict, load_file
from precompute.backbones.model_folder import SAFETENSORS, ModelFolder
from precompute.errors import WeightsError

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
CODE = ("auto_map", "custom_pipelines", "trust_remote_code")
QUANTISED = ("quantization_config", "compression_config")
MAX_NUMBER, MAX_LAYERS, MAX_SHARDS = 2**22, 512, 512
"""Far above any model; a network larger than its weights is refused besides."""

IDLE = (
    *("architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id", "use_cache"),
    *("finetuning_task", "task_specific_params", "problem_type", "output_attentions", "output_hidden_states"),
    *("attn_implementation", "return_dict", "torchscript", "gradient_checkpointing", "name_or_path", "num_labels"),
)
"""Of config.json what decides no feature, and is left out, besides all names that begin with `_`."""


class HFFolder(ModelFolder):
    """used: the names of the files that were read of it, besides its weights."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.used: list[str] = []

    def file(self, name: str) -> str:
        path = super().file(name)
        if name not in self.used:
            self.used.append(name)
        return path

    @cached_property
    def names(self) -> frozenset[str]:
        """Of all files and folders in it."""
        return frozenset(os.listdir(self.path))

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, without what decides no feature. Raises WeightsError where it requests code, is quantised, or
        holds numbers that no model has."""
        found, where = self.json(CONFIG), f"{self.path}/{CONFIG}"
        self.check_code(found, CONFIG)
        if not isinstance(found.get("model_type"), str):
            raise WeightsError(
                f"{where} names no model_type, so transformers did not save it.",
                hint="A folder of transformers holds config.json with `model_type`, and model.safetensors.",
            )
        for key, value in _inside(found):
            if key in QUANTISED and value:
                raise WeightsError(
                    f"{where} describes quantised weights ({key}), which precompute does not compute with.",
                    hint="Use the folder of the model in float32, float16 or bfloat16.",
                )
            large = MAX_LAYERS if "layers" in key or "depth" in key else MAX_NUMBER
            if isinstance(value, int | float) and not abs(value) <= large and key != "model_max_length":
                raise WeightsError(
                    f"{where} gives {key[:64]} as {repr(value)[:64]}, which is out of range.",
                    hint="Use a folder saved by transformers.",
                )
        kept: dict[str, Any] = _without_idle(found)
        return kept

    def check_code(self, found: Mapping[str, Any], name: str) -> None:
        """Raise WeightsError where the JSON `found` of the file `name` requests code of the folder to be run."""
        for key, value in _inside(found):
            if key in CODE and value:
                raise WeightsError(
                    f"{self.path}/{name} requests that code be run ({key}: {repr(value)[:100]}), and precompute runs "
                    "none of a folder's.",
                    hint="If you trust that code, call it in your own factory: package.module:factory.",
                )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what config.json says, whatever its layout."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    def optional_json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in a file, None where there is none; code that it requests is refused."""
        if not self.has(name):
            return None
        found = self.json(name)
        self.check_code(found, name)
        return found

    def sha256(self, name: str) -> str:
        """Of a file's bytes, for the key."""
        with open(self.file(name), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def weights(self) -> list[str]:
        """The paths of its weights: one file, or those that an index names. Raises WeightsError, see `ModelFolder`."""
        if self.has(SAFETENSORS) or not self.has(INDEX):
            return [self.safetensors()]
        table = self.json(INDEX).get("weight_map")
        names = sorted({*table.values()}) if isinstance(table, dict) and _texts(table) else []
        good = [one for one in names if one.endswith(".safetensors") and os.path.basename(one) == one]
        if not names or good != names or len(names) > MAX_SHARDS:
            raise WeightsError(
                f"{self.path}/{INDEX} does not name files with weights in its folder.",
                hint="Use a folder saved by transformers.",
            )
        return [self.file(name) for name in names]

    def state(self) -> StateDict:
        """All tensors of `weights`. Raises WeightsError for one that two files hold."""
        state: StateDict = {}
        for path in self.weights():
            part = load_file(path)
            if twice := sorted({*state} & {*part}):
                raise WeightsError(
                    f"{path} holds {twice[0][:80]!r}, which another file of the folder holds too.",
                    hint="Use a folder saved by transformers.",
                )
            state.update(part)
        return state


def _texts(table: Mapping[Any, Any]) -> bool:
    return all(isinstance(one, str) for one in table.values())


def _inside(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested JSON, with the name that it is under."""
    if key:
        yield key, value
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _inside(one, str(name))
    elif isinstance(value, list):
        for one in value:
            yield from _inside(one, key)


def _without_idle(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _without_idle(one) for name, one in value.items() if not name.startswith("_") and name not in IDLE
        }
    return [_without_idle(one) for one in value] if isinstance(value, list) else value


def values_in(state: StateDict) -> int:
    """How many numbers a state dict holds."""
    return sum(one.numel() for one in state.values() if isinstance(one, torch.Tensor))
