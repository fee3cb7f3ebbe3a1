"""Families of backbones: what a name may stand for, one file each; `registry` finds a name's family by its form."""

from precompute.backbones.families.registry import TINY, build, family_of, is_factory, names

__all__ = ["TINY", "build", "family_of", "is_factory", "names"]
