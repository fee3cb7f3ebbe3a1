"""Image models of transformers: towers, and the pictures that their processor makes."""

from __future__ import annotations

from precompute.backbones.families.hf_encoder import Parts
from precompute.backbones.families.hf_folder import HFFolder
from precompute.backbones.families.hf_models import ModelType
from precompute.errors import BackboneError


def load(folder: HFFolder, kind: ModelType) -> Parts:
    """What `hf_encoder` says. Raises BackboneError and WeightsError for a folder that is none of images."""
    del kind
    raise BackboneError(f"{folder.path} holds a model of images, which precompute does not know yet.", hint="")
