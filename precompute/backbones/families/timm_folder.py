"""timm's folder of a model: config.json, which names one of timm's networks, and its weights.

It may come from a stranger. Of config.json only what describes the network and its pictures is used, each value within
bounds; where it says to load something else from, such as a path or an address, is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from precompute.backbones.families.bounds import Check, checked, flag, number, out_of_bounds, whole
from precompute.backbones.model_folder import ModelFolder
from precompute.errors import WeightsError

CONFIG = "config.json"
MAX_TOKENS = 2**16
WORD = re.compile(r"[A-Za-z0-9_.\-]{0,64}")


def _word(value: Any) -> bool:
    return isinstance(value, str) and WORD.fullmatch(value) is not None


ONE, TWO, STAGES = range(1, 2), range(1, 3), range(1, 9)
"""How many numbers a list may have."""
SIDE, PATCH, WIDTH, DEPTH = whole(1, 2048, TWO), whole(4, 64, TWO), whole(1, 8192, STAGES), whole(1, 128, STAGES)
RATE = number(0, 1)
ARGUMENTS: dict[str, Check] = {
    **dict.fromkeys(("img_size", "ref_feat_shape"), SIDE),
    "patch_size": PATCH,
    **dict.fromkeys(("embed_dim", "embed_dims", "dims", "num_features", "head_hidden_size", "stem_width"), WIDTH),
    **dict.fromkeys(("depth", "depths", "layers", "num_heads", "cardinality", "base_width", "stem_size"), DEPTH),
    **dict.fromkeys(("window_size", "reg_tokens", "num_reg_tokens"), whole(0, 64, STAGES)),
    **dict.fromkeys(("mlp_ratio", "rope_temperature", "width_factor"), number(0, 1000)),
    **dict.fromkeys(("init_values", "ls_init_value", "norm_eps"), number(-10, 10)),
    **dict.fromkeys(("drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate"), RATE),
    **dict.fromkeys(("patch_drop_rate", "drop_block_rate"), RATE),
    **dict.fromkeys(
        ("global_pool", "pos_embed", "act_layer", "norm_layer", "weight_init", "stem_type", "rope_type"), _word
    ),
    **dict.fromkeys(("class_token", "no_embed_class", "dynamic_img_size", "dynamic_img_pad", "strict_img_size"), flag),
    **dict.fromkeys(("pre_norm", "final_norm", "fc_norm", "qkv_bias", "qk_norm", "use_fc_norm", "conv_mlp"), flag),
    **dict.fromkeys(("use_rot_pos_emb", "use_abs_pos_emb", "scale_mlp", "head_norm_first", "deep_stem"), flag),
    **dict.fromkeys(("avg_down", "reg_token", "fix_init"), flag),
}
"""Arguments that a network may be built with, with bounds: far above any model, and within a machine's memory."""


def _triple(low: float, high: float) -> Check:
    one = number(low, high)
    return lambda value: isinstance(value, list) and len(value) == 3 and all(map(one, value))


def _names(value: Any) -> bool:
    several = value if isinstance(value, list) else [value]
    return len(several) <= 8 and all(map(_word, several))


SETTINGS: dict[str, Check] = {
    "input_size": lambda value: whole(1, 2048, range(1, 4))(value) and isinstance(value, list) and len(value) == 3,
    "fixed_input_size": flag,
    "interpolation": _word,
    "crop_pct": number(0.05, 20),
    "crop_mode": _word,
    "mean": _triple(-1e6, 1e6),
    "std": _triple(1e-6, 1e6),
    "num_classes": whole(0, 2**20, ONE),
    "label_offset": whole(0, 2**20, ONE),
    "pool_size": SIDE,
    "first_conv": _names,
    "classifier": _names,
}
"""What is used of `pretrained_cfg`. Its `url`, `file`, `hf_hub_id`, `state_dict` and `custom_load` never are."""


@dataclass(frozen=True)
class TimmFolder:
    """architecture: as the file says, maybe no name of timm's · settings: of its pretrained_cfg · arguments: of its
    network, next to the name · folder: where it lies.
    """

    folder: ModelFolder
    architecture: str
    settings: dict[str, Any]
    arguments: dict[str, Any]

    @property
    def config(self) -> str:
        """The path of config.json, for messages."""
        return f"{self.folder.path}/{CONFIG}"

    @classmethod
    def read(cls, path: str) -> TimmFolder:
        """Raises WeightsError, with the file and the value, for one that is not a folder of timm's or out of bounds."""
        folder = ModelFolder(path)
        found = folder.json(CONFIG)
        where = f"{folder.path}/{CONFIG}"
        architecture = found.get("architecture")
        if not isinstance(architecture, str):
            raise WeightsError(
                f"{where} names no architecture, so timm did not save it.",
                hint="A folder of timm's holds config.json with `architecture` and model.safetensors.",
            )
        nested = found.get("pretrained_cfg", found)  # an older form has its values beside the name
        if not isinstance(nested, dict):
            raise out_of_bounds(where, "pretrained_cfg", nested, "timm")
        merged = {**nested, **({"num_classes": found["num_classes"]} if "num_classes" in found else {})}
        settings = checked(where, merged, SETTINGS, "timm")
        given = found.get("model_args") or {}
        if not isinstance(given, dict):
            raise out_of_bounds(where, "model_args", given, "timm")
        if given.get("in_chans", 3) != 3 or settings.get("input_size", [3])[0] != 3:
            raise WeightsError(
                f"The network of {where} takes pictures of other than three channels.",
                hint="Use one for RGB pictures.",
            )
        kept = {name: value for name, value in given.items() if name not in ("in_chans", "num_classes")}
        arguments = checked(where, kept, ARGUMENTS, "timm", "to be passed to the network")
        _check_tokens(where, settings, arguments)
        return cls(folder, architecture, _repaired(settings, arguments), arguments)


def _repaired(settings: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """As timm does it: the size of the pictures is the one that the network is built for."""
    if arguments.get("dynamic_img_size") or arguments.get("strict_img_size") is False:
        settings = {**settings, "fixed_input_size": False}
    size = arguments.get("img_size")
    if size is not None and settings.get("fixed_input_size"):
        settings = {**settings, "input_size": (3, *(size if isinstance(size, tuple) else (size, size)))}
    return settings


def _check_tokens(where: str, settings: dict[str, Any], arguments: dict[str, Any]) -> None:
    sides = [arguments.get("img_size", 0), *settings.get("input_size", ())[1:]]
    patch = arguments.get("patch_size", 8)
    largest = max(max(one) if isinstance(one, tuple) else one for one in sides)
    if (largest / (min(patch) if isinstance(patch, tuple) else patch)) ** 2 > MAX_TOKENS:
        raise WeightsError(
            f"{where} cuts pictures of {largest} pixels a side into more than {MAX_TOKENS:,} tokens.",
            hint="Use a folder saved by timm.",
        )
