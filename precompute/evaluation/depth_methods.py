"""Which methods `depth` knows, by name; a new one is a class in `methods` and a line here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from precompute.cache import Cache
from precompute.errors import UsageError
from precompute.evaluation.methods import Ground, HeadOnFeatures, Method
from precompute.system.code import is_code

PIXELS = {"backbone": "torch.nn:Flatten", "weights": "DEFAULT", "transform": {"resize": 32, "crop": 32}}
NAMES = ("pixels", "random", "head")
OPTIONAL: tuple[str, ...] = ()


def names_of(asked: Sequence[str]) -> list[str]:
    """Those asked for, in the order of NAMES; all but OPTIONAL where none are. Raises UsageError for unknown ones."""
    if strange := [name for name in asked if name not in NAMES]:
        raise UsageError(f"There is no method {strange[0]!r}.", hint=f"Methods are {', '.join(NAMES)}.")
    return [name for name in NAMES if name in asked or (not asked and name not in OPTIONAL)]


def methods_of(
    names: Sequence[str], ground: Ground, reference: Cache, training: dict[str, Any]
) -> tuple[list[Method], list[str]]:
    """The methods, in order, and notes on those that this backbone does not allow."""
    del reference, training
    found: list[Method] = []
    notes: list[str] = []
    for name in names:
        if name == "random" and is_code(ground.backbone):
            notes.append("random: a factory decides about its own weights, so there are no random ones")
        elif name == "pixels":
            found.append(HeadOnFeatures(name, ground, pretrained=False, **PIXELS))
        elif name == "random":
            found.append(HeadOnFeatures(name, ground, pretrained=False, weights="random"))
        else:
            found.append(HeadOnFeatures(name, ground))
    return found, notes
