"""Which family a name belongs to, by its form alone; a family's file is imported when a name of it is used.

A new family is one file next to this one, with a `FAMILY`, and one line in EMBEDDED, or in `kinds.FAMILIES` for a
prefix, which is then the name of the file. No torch here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from precompute.inputs.kinds import FAMILIES
from precompute.system.code import is_code

if TYPE_CHECKING:
    from torch import nn

    from precompute.backbones.families.base import Family

TINY, NGRAM_HASH, MEL_STATISTICS, RESEMBLYZER = "tiny", "ngram-hash", "mel-statistics", "resemblyzer"
HERE = "precompute.backbones.families"

PREFIXES: dict[str, str] = {prefix: prefix for prefix in FAMILIES}
"""`PREFIX:...` -> the module of its family. What has a colon and none of these in front of it is a factory."""

EMBEDDED = {TINY: "tiny", NGRAM_HASH: "ngram_hash", MEL_STATISTICS: "sound", RESEMBLYZER: "sound"}
"""Names without a colon that are no torchvision's -> the module of their family."""

BARE = ("tiny", "torchvision")
"""Modules of the families whose names have no colon, in the order in which they are listed."""


def prefix_of(name: str) -> str:
    """The prefix of a family in front of `name`; empty where there is none."""
    prefix, colon, _ = name.partition(":")
    return prefix if colon and prefix in PREFIXES else ""


def is_factory(name: str) -> bool:
    """Whether `name` has the form `package.module:factory`, and is of no family's."""
    return is_code(name) and not prefix_of(name)


def family_of(name: str) -> Family:
    """The family that a name of this form belongs to, whether or not there is such a backbone."""
    if prefix := prefix_of(name):
        return _family(PREFIXES[prefix])
    if is_factory(name):
        return _family("factory")
    return _family(EMBEDDED.get(name, "torchvision"))


def packages_of(name: str) -> tuple[str, ...]:
    """Packages whose releases decide what a name stands for, besides torch and torchvision."""
    return family_of(name).packages if prefix_of(name) else ()


def names() -> list[str]:
    """Those for images whose names have no prefix: `tiny` and every torchvision classification model."""
    return [name for module in BARE for name in _family(module).names()]


def listed() -> list[str]:
    """All names without a prefix, those for images first."""
    return [*names(), *(name for name in EMBEDDED if name != TINY)]


def build(name: str, *, seed: int | None) -> nn.Module:
    """The network of `name` in eval mode; with random parameters for `seed`, or with none (meta device) for None."""
    return family_of(name).build(name, seed=seed)


def _family(module: str) -> Family:
    family: Family = import_module(f"{HERE}.{module}").FAMILY
    return family
