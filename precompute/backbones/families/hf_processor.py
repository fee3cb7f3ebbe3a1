"""The image processor of a model of transformers, by its JSON file, as our `Transform`.

The library's own processor is not run: it would make other pixels of a JPEG in each of its two forms. Its settings say
the same for both. What ours cannot do is an error that names the field.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from precompute.backbones.families.hf_folder import HFFolder
from precompute.errors import BackboneError, WeightsError
from precompute.inputs.images.transform import INTERPOLATIONS, Transform

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By Pillow's numbers, which is what `resample` holds."""

LARGE = 384
"""From this size on ConvNeXT's processor squashes pictures, and below it crops them."""


@dataclass(frozen=True)
class Settings:
    """What a kind of processor does where its file has no effect.

    size, crop: as in the file · square: whether a size that is one number is that of both sides · cropped: whether it
    crops.
    """

    size: Any
    resample: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    square: bool = True
    cropped: bool = False
    crop: int = 224
    crop_pct: float | None = None


_CLIP = Settings(224, 3, CLIP_MEAN, CLIP_STD, square=False, cropped=True)
KINDS: dict[str, Settings] = {
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "ViT": Settings(224, 2, HALF, HALF),
    "DeiT": Settings(256, 3, HALF, HALF, cropped=True),
    "Beit": Settings(224, 3, HALF, HALF),
    "Siglip": Settings(224, 3, HALF, HALF, square=False),
    "DINOv3ViT": Settings(224, 2, IMAGENET_MEAN, IMAGENET_STD),
    "ConvNext": Settings(384, 3, HALF, HALF, square=False, crop_pct=224 / 256),
}
"""The first part of `image_processor_type`; the rest is ImageProcessor, or FeatureExtractor in older files."""

OF_MODEL = {
    **dict.fromkeys(("clip", "clip_vision_model"), "CLIP"),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), "Bit"),
    **dict.fromkeys(("dinov3_vit", "dinov3_convnext"), "DINOv3ViT"),
    **dict.fromkeys(("siglip", "siglip_vision_model"), "Siglip"),
    **dict.fromkeys(("vit", "swin", "swinv2"), "ViT"),
    **dict.fromkeys(("convnext", "convnextv2", "resnet"), "ConvNext"),
    **{"deit": "DeiT", "beit": "Beit"},
}
"""Where a file names none: the one that the library takes, by model_type."""

IDLE = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class", "do_convert_rgb"),
    *("default_to_square", "data_format", "input_data_format", "return_tensors", "disable_grouping", "device"),
    *("image_seq_length", "model_input_names", "crop_pct", "size", "crop_size", "resample", "do_resize"),
    *("do_center_crop", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    *("_valid_processor_keys", "transformers_version", "size_divisor", "antialias", "interpolation"),
)
"""Fields that are read here, and those that change no pixel of a picture in colour."""


def transform_of(folder: HFFolder) -> Transform:
    """Raises BackboneError, with file and field, for what ours cannot do, WeightsError for what is out of range."""
    found, where = _read(folder)
    defaults = _defaults(found, str(folder.config["model_type"]), where)
    _check_steps(found, where)
    size = _size(found.get("size"), defaults, found, where)
    mean, std = (_triple(found, name, where) for name in ("image_mean", "image_std"))
    normalised = found.get("do_normalize", True)
    values: dict[str, Any] = {
        **_geometry(size, found, defaults, where),
        "interpolation": _interpolation(found.get("resample", defaults.resample), where),
        "mean": (mean or defaults.mean) if normalised else (0.0, 0.0, 0.0),
        "std": (std or defaults.std) if normalised else (1.0, 1.0, 1.0),
    }
    return Transform(**values)


def _read(folder: HFFolder) -> tuple[dict[str, Any], str]:
    """As the library does it: what a processor holds of images, else the file of the image processor itself."""
    nested = (folder.optional_json(PROCESSOR) or {}).get("image_processor")
    if isinstance(nested, dict):
        return nested, f"{folder.path}/{PROCESSOR}"
    found = folder.optional_json(PREPROCESSOR)
    if found is None:
        raise BackboneError(
            f"{folder.path} has no {PREPROCESSOR}, so what pictures its model takes is not known.",
            hint="Save it with the model: AutoImageProcessor.from_pretrained(NAME).save_pretrained(FOLDER).",
        )
    return found, f"{folder.path}/{PREPROCESSOR}"


def _defaults(found: dict[str, Any], model_type: str, where: str) -> Settings:
    named = found.get("image_processor_type", found.get("feature_extractor_type"))
    if named is None:
        return KINDS[OF_MODEL.get(model_type, "ViT")]
    kind = str(named).removesuffix("Fast").removesuffix("Pil")
    kind = kind.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if kind not in KINDS:
        raise _cannot(where, "image_processor_type", named)
    return KINDS[kind]


def _check_steps(found: dict[str, Any], where: str) -> None:
    for name, value in found.items():
        if name not in IDLE and value not in (None, False):
            raise _cannot(where, name, value)
    for name in ("do_resize", "do_rescale"):
        if found.get(name, True) is not True:
            raise _cannot(where, name, found[name])
    factor = found.get("rescale_factor", 1 / 255)
    if not _is_number(factor) or abs(factor * 255 - 1) > 1e-6:
        raise _cannot(where, "rescale_factor", factor)
    if found.get("interpolation") not in (None, *INTERPOLATIONS):
        raise _cannot(where, "interpolation", found["interpolation"])


def _size(given: Any, defaults: Settings, found: dict[str, Any], where: str) -> tuple[bool, int]:
    """Whether both sides become so many pixels, or the shorter one; and how many."""
    given = defaults.size if given is None else given
    if _is_side(given):
        return found.get("default_to_square", defaults.square) is True, given
    kept = {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else {}
    if set(kept) == {"shortest_edge"} and _is_side(kept["shortest_edge"]):
        return False, kept["shortest_edge"]
    if set(kept) == {"height", "width"} and _is_side(kept["height"]) and kept["height"] == kept["width"]:
        return True, kept["height"]
    raise _cannot(where, "size", given)


def _geometry(size: tuple[bool, int], found: dict[str, Any], defaults: Settings, where: str) -> dict[str, Any]:
    squash, side = size
    crop_pct = found.get("crop_pct", defaults.crop_pct)
    if crop_pct is not None:  # ConvNeXT's
        if not _is_number(crop_pct) or not 0.05 <= crop_pct <= 1:
            raise _cannot(where, "crop_pct", crop_pct)
        if found.get("do_center_crop"):
            raise _cannot(where, "do_center_crop", found["do_center_crop"])
        if side >= LARGE:
            return {"resize": side, "crop": side, "squash": True}
        return {"resize": int(side / crop_pct), "crop": side, "floor_crop": True}
    if not found.get("do_center_crop", defaults.cropped):
        if not squash:
            raise _cannot(where, "size", found.get("size", side), "without do_center_crop, so pictures differ in size")
        return {"resize": side, "crop": side, "squash": True}
    crop = found.get("crop_size")
    crop = defaults.crop if crop is None else crop
    if isinstance(crop, dict) and crop.get("height") == crop.get("width"):
        crop = crop.get("height")
    if not _is_side(crop):
        raise _cannot(where, "crop_size", crop)
    return {"resize": side, "crop": crop, "squash": squash, "floor_crop": True}


def _interpolation(number: Any, where: str) -> str:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(RESAMPLE):
        raise _cannot(where, "resample", number)
    return RESAMPLE[number]


def _triple(found: dict[str, Any], name: str, where: str) -> tuple[float, float, float] | None:
    given = found.get(name)
    if given is None:
        return None
    values = [given] * 3 if _is_number(given) else given
    if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
        raise _cannot(where, name, given)
    if name == "image_std" and min(values) <= 0:
        raise WeightsError(
            f"{where} gives {name} as {repr(given)[:100]}, which is out of range.",
            hint="Use a folder saved by transformers.",
        )
    return float(values[0]), float(values[1]), float(values[2])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2048


def _cannot(where: str, name: str, value: Any, why: str = "which precompute cannot do") -> BackboneError:
    known = {one.name for one in fields(Transform)}
    return BackboneError(
        f"{where} requires pictures with {name[:64]} {repr(value)[:100]}, {why}.",
        hint=f"It has {', '.join(sorted(known))}; give another in your own factory, with a Preprocess: "
        "package.module:factory.",
    )
