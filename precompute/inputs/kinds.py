"""Which files are samples follows from what a backbone takes: images, texts or clips. One table; no NumPy here.

A source is listed before its backbone is loaded wherever that is possible, so that a run with nothing to do ends
without torch. What a backbone takes is known from its name (`modality_of_name`), or from the settings of a file that
was made with it (`modality_of_spec`); where neither says it, as for code of the user's own, the backbone is loaded
first.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from precompute.errors import UsageError
from precompute.system.samples import AUDIO, IMAGE, NAMED, TEXT, modality_of_spec

if TYPE_CHECKING:
    from precompute.sources.base import FileKind  # which loads NumPy

__all__ = [
    "AUDIO",
    "IMAGE",
    "NAMED",
    "TEXT",
    "check_images",
    "files_of",
    "modality_of_name",
    "modality_of_spec",
    "options_of",
    "transform_spec",
]

FORMATS = {IMAGE: ("images", "IMAGES"), TEXT: ("text", "TEXTS"), AUDIO: ("audio", "CLIPS")}
"""Package below this one, and the name of the `FileKind` in its `formats`, which is imported when it is requested."""

EMBEDDED = {"tiny": IMAGE, "ngram-hash": TEXT, "mel-statistics": AUDIO, "resemblyzer": AUDIO}
"""What the backbones inside the package take."""

FAMILIES: dict[str, str | None] = {"timm": IMAGE, "open_clip": IMAGE, "hf": None}
"""What all backbones take whose name begins so, up to the colon; None where each declares it itself."""


def modality_of_name(backbone: str) -> str | None:
    """What the backbone of this name takes; None where only the loaded backbone declares it."""
    family, colon, _ = backbone.partition(":")
    if colon:
        return FAMILIES.get(family)
    return EMBEDDED.get(backbone, IMAGE)  # torchvision's classification models have the other names


def files_of(modality: str) -> FileKind:
    """The files that hold samples of this modality.

    A modality of the user's own is read from files of images, or from a `Source` of their own.
    """
    package, name = FORMATS.get(modality, FORMATS[IMAGE])
    kind: FileKind = getattr(import_module(f"precompute.inputs.{package}.formats"), name)
    return kind


def transform_spec(modality: str, spec: dict[str, Any]) -> dict[str, Any]:
    """What a file's settings say under `transform` of a preprocessing that says `spec` of itself."""
    return {"modality": modality, **spec} if modality in NAMED else spec


def options_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What `load_backbone` takes as `transform`, by the settings of a file; nothing for images, and code's own."""
    if modality_of_spec(spec) == AUDIO:
        from precompute.inputs.audio.options import options_of

        return options_of(spec)
    if modality_of_spec(spec) == TEXT:
        from precompute.inputs.text import options

        return options.options_of(spec)
    return {}


def check_images(backbone: str, doing: str, modality: str | None = None) -> None:
    """Raise UsageError where `backbone` is known not to take images. doing: such as "rank compares backbones on".

    modality: of its samples, where it is loaded already.
    """
    known = modality or modality_of_name(backbone)
    if known in NAMED:
        raise UsageError(
            f"{doing} images alone so far, and {backbone} takes {files_of(known).plural}.",
            hint="Extract its features (precompute extract), and use the commands that take feature files: "
            "train-head, few-shot, compare.",
        )
