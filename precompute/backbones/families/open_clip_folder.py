"""open_clip's folder of a model: open_clip_config.json and its weights.

It may come from a stranger. Of the config only what describes the image tower and its pictures is used, each value
within bounds; names of other models and files in it, such as of tokenizers, are never followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from precompute.backbones.families.bounds import Check, checked, flag, number, out_of_bounds, whole
from precompute.backbones.families.open_clip_towers import Tower, library
from precompute.backbones.model_folder import ModelFolder
from precompute.errors import WeightsError

CONFIG = "open_clip_config.json"
SAFETENSORS = "open_clip_model.safetensors"
MAX_TOKENS = 2**16
LONGEST = 64  # of a word
TOWER = "in its image tower"


def _word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def _few_numbers(value: Any) -> bool:
    """For example {"eps": 1e-6} or {"approximate": "tanh"}."""
    known: dict[str, Check] = {"eps": number(0, 1), "approximate": lambda one: one in ("none", "tanh")}
    return isinstance(value, dict) and all(name in known and known[name](one) for name, one in value.items())


VISION: dict[str, Check] = {
    "layers": whole(1, 128, [4]),
    "width": whole(8, 8192),
    "head_width": whole(1, 1024),
    "patch_size": whole(1, 256),
    "image_size": whole(1, 2048, [2]),
    "mlp_ratio": number(0.1, 64),
    "ls_init_value": number(-10, 10),
    "patch_dropout": number(0, 1),
    "attentional_pool": lambda value: flag(value) or value in ("parallel", "cascade"),
    "attn_pooler_queries": whole(1, 4096),
    "attn_pooler_heads": whole(1, 256),
    "pos_embed_type": lambda value: value in ("learnable", "sin_cos_2d"),
    "pool_type": lambda value: value in ("tok", "avg"),
    **dict.fromkeys(("no_ln_pre", "final_ln_after_pool", "output_tokens", "qk_norm", "scaled_cosine_attn"), flag),
    **dict.fromkeys(("scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), flag),
    "block_type": lambda value: value in ("default", "custom"),
    **dict.fromkeys(("act_kwargs", "norm_kwargs"), _few_numbers),
    "timm_model_name": _word,
    "timm_model_pretrained": flag,
    **dict.fromkeys(("timm_pool", "timm_proj"), _word),
    "timm_proj_bias": flag,
    **dict.fromkeys(("timm_drop", "timm_drop_path"), number(0, 1)),
}
"""What an image tower may be built from, with bounds: far above any model, and within a machine's memory."""

MODEL: dict[str, Check] = {"embed_dim": whole(1, 65536), "quick_gelu": flag}


def _channels(low: float, high: float) -> Check:
    one = number(low, high)
    return lambda value: one(value) or (isinstance(value, list) and len(value) == 3 and all(map(one, value)))


PICTURES: dict[str, Check] = {
    "size": whole(1, 2048, [2]),
    "mode": lambda value: value == "RGB",
    "mean": _channels(-1e6, 1e6),
    "std": _channels(1e-6, 1e6),
    "interpolation": _word,
    "resize_mode": _word,
}
"""What is used of `preprocess_cfg`; `fill_color` matters to a `resize_mode` that is refused."""


@dataclass(frozen=True)
class OpenClipFolder:
    """folder: where it lies · tower: its image tower."""

    folder: ModelFolder
    tower: Tower

    @property
    def config(self) -> str:
        """The path of the config, for messages."""
        return f"{self.folder.path}/{CONFIG}"

    @classmethod
    def read(cls, path: str) -> OpenClipFolder:
        """Raises WeightsError, with the file and the value, where it is none of open_clip's or out of bounds."""
        folder = ModelFolder(path)
        where, found = f"{folder.path}/{CONFIG}", folder.json(CONFIG)
        model, pictures = found.get("model_cfg"), found.get("preprocess_cfg") or {}
        vision = model.get("vision_cfg") if isinstance(model, dict) else None
        if not isinstance(model, dict) or not isinstance(vision, dict) or "embed_dim" not in model:
            raise WeightsError(
                f"{where} names no model_cfg with embed_dim and vision_cfg, so open_clip did not save it.",
                hint=f"A folder of open_clip's holds {CONFIG} and {SAFETENSORS}.",
            )
        if not isinstance(pictures, dict):
            raise out_of_bounds(where, "preprocess_cfg", pictures, "open_clip")
        outer = checked(where, {name: model[name] for name in MODEL if name in model}, MODEL, "open_clip", TOWER)
        kept = checked(where, vision, VISION, "open_clip", TOWER)
        _check_trunk(where, kept.get("timm_model_name"))
        _check_tokens(where, kept)
        shown = checked(
            where, {name: pictures[name] for name in PICTURES if name in pictures}, PICTURES, "open_clip", TOWER
        )
        tower = Tower(
            outer["embed_dim"],
            kept,
            outer.get("quick_gelu", False),
            {name: value for name, value in shown.items() if name not in ("size", "mode")},
        )
        return cls(folder, tower)

    def weights(self) -> str:
        """The path of the weights. Raises WeightsError where there are none that run no code."""
        return self.folder.file(SAFETENSORS) if self.folder.has(SAFETENSORS) else self.folder.safetensors()


def _check_trunk(where: str, name: str | None) -> None:
    """Raise WeightsError for what is no network of timm's: it could be a path, or an address to load from."""
    if name is None:
        return
    library()
    import timm

    if name.partition(".")[0] not in timm.list_models():
        raise WeightsError(
            f"{where} names the network {name!r}, which timm {timm.__version__} does not have.",
            hint="Update timm, or see its models with `precompute backbones timm:`.",
        )


def _check_tokens(where: str, vision: dict[str, Any]) -> None:
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    largest = max(size) if isinstance(size, tuple) else size
    if not vision.get("timm_model_name") and (largest / patch) ** 2 > MAX_TOKENS:
        raise WeightsError(
            f"{where} cuts pictures of {largest} pixels a side into more than {MAX_TOKENS:,} tokens.",
            hint="Use a folder saved by open_clip.",
        )
