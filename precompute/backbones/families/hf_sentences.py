"""Folders of sentence-transformers: which of its modules follow on the network, by modules.json and their settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from precompute.backbones.families.hf_folder import HFFolder
from precompute.errors import WeightsError

MODULES = "modules.json"
PACKAGE = "sentence_transformers."
POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
NEWER = {"mean_sqrt_len_tokens": "mean_sqrt_len"}
KNOWN = ("cls", "max", "mean", "mean_sqrt_len")
LIMITS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


@dataclass(frozen=True)
class Sentences:
    """What follows on a network, or is in front of it; nothing of it for a folder that is none.

    pooling: a word of `hf_encoder.POOLINGS` · normalise: features have the length 1 · max_length: tokens · lower: texts
    are made of small letters · prompt: in front of each text.
    """

    pooling: str | None = None
    normalise: bool = False
    max_length: int | None = None
    lower: bool = False
    prompt: str = ""

    @classmethod
    def read(cls, folder: HFFolder) -> Sentences:
        """Raises WeightsError for a module that precompute does not have, by its name."""
        if not folder.has(MODULES):
            return cls()
        pooling, normalise = None, False
        for place, (kind, path) in enumerate(_modules(folder)):
            if place == 0:
                if kind != "Transformer" or path:
                    raise _other(folder, kind if kind != "Transformer" else f"{kind} in {path!r}")
            elif kind == "Pooling" and place == 1:
                pooling = _pooling(folder, path)
            elif kind == "Normalize" and pooling is not None:
                normalise = True
            else:
                raise _other(folder, kind)
        limits = next((found for name in LIMITS if (found := folder.optional_json(name)) is not None), {})
        return cls(pooling, normalise, _length(folder, limits), limits.get("do_lower_case") is True, _prompt(folder))


def _modules(folder: HFFolder) -> list[tuple[str, str]]:
    """The last part of the name of each module's class, and its folder. The names are compared, never imported."""
    found = folder.json_list(MODULES)
    try:
        listed = [(str(one["type"]), str(one["path"])) for one in sorted(found, key=lambda one: int(one["idx"]))]
    except (TypeError, KeyError, ValueError) as error:
        raise WeightsError(
            f"{folder.path}/{MODULES} does not say which modules there are.",
            hint="Use a folder saved by the library.",
        ) from error
    if strange := [kind for kind, _ in listed if not kind.startswith(PACKAGE)]:
        raise WeightsError(
            f"{folder.path}/{MODULES} requests that code be run ({strange[0][:100]}), and precompute runs none of a "
            "folder's.",
            hint="If you trust that code, call it in your own factory: package.module:factory.",
        )
    return [(kind.rpartition(".")[2], path) for kind, path in listed]


def _pooling(folder: HFFolder, path: str) -> str:
    name = f"{path}/config.json"
    if not path.replace("_", "").isalnum():
        raise WeightsError(
            f"{folder.path}/{MODULES} names the folder {path[:100]!r}, which is not a name of one in it.",
            hint="Use a folder saved by the library.",
        )
    found = folder.json(name)
    modes = found.get("pooling_mode", [word for key, word in POOLINGS.items() if found.get(key) is True] or ["mean"])
    modes = [modes] if isinstance(modes, str) else modes
    words = [NEWER.get(str(one), str(one)) for one in modes] if isinstance(modes, list) else []
    if len(words) != 1 or words[0] not in KNOWN:
        raise WeightsError(
            f"{folder.path}/{name} pools by {' and '.join(words)[:100] or json.dumps(modes)[:100]}, which precompute "
            "does not have.",
            hint=f"It has one of {', '.join(KNOWN)}.",
        )
    return words[0]


def _length(folder: HFFolder, limits: dict[str, Any]) -> int | None:
    found = limits.get("max_seq_length")
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= 2**20:
        raise WeightsError(
            f"{folder.path} gives max_seq_length as {repr(found)[:64]}, which is out of range.",
            hint="Use a folder saved by the library.",
        )
    return found


def _prompt(folder: HFFolder) -> str:
    """What the library puts in front of each text by default."""
    found = folder.optional_json("config_sentence_transformers.json") or {}
    name, prompts = found.get("default_prompt_name"), found.get("prompts")
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    if not isinstance(prompt, str) or len(prompt) > 10_000:
        raise WeightsError(
            f"{folder.path}/config_sentence_transformers.json names the prompt {repr(name)[:64]} and does not hold it.",
            hint="Use a folder saved by the library.",
        )
    return prompt


def _other(folder: HFFolder, kind: str) -> WeightsError:
    return WeightsError(
        f"{folder.path}/{MODULES} has the module {kind[:100]} where precompute does not have it.",
        hint="It has a Transformer, a Pooling, and a Normalize behind it. Give others in your own factory: "
        "package.module:factory.",
    )
