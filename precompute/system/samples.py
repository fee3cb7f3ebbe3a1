"""What messages call samples: images, texts or clips, by the settings of the file that holds their features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IMAGE, TEXT, AUDIO = "image", "text", "audio"
NAMED = (TEXT, AUDIO)
"""Modalities that are in a file's settings, under `transform`; where none is there, the samples are images."""


@dataclass(frozen=True)
class Words:
    """single: such as "an image" · plural: "images" · things: another word for several, where there is one."""

    single: str
    plural: str
    things: str

    @property
    def one(self) -> str:
        """Such as "image"."""
        return self.single.partition(" ")[2]


IMAGES = Words("an image", "images", "pictures")
WORDS = {IMAGE: IMAGES, TEXT: Words("a text", "texts", "texts"), AUDIO: Words("a clip", "clips", "clips")}


def modality_of_spec(spec: Any) -> str:
    """What the backbone takes that a file was made with, by its settings, which may come from a stranger."""
    transform = spec.get("transform") if isinstance(spec, Mapping) else None
    named = transform.get("modality") if isinstance(transform, Mapping) else None
    return named if isinstance(named, str) and named in NAMED else IMAGE


def words_of_spec(spec: Any) -> Words:
    """What to call the samples of a file with these settings."""
    return WORDS[modality_of_spec(spec)]
