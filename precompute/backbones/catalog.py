"""What is known of each backbone without downloading anything."""

from __future__ import annotations

import fnmatch

from precompute.backbones.families import family_of, names
from precompute.backbones.families.base import Entry
from precompute.backbones.families.registry import EMBEDDED
from precompute.errors import BackboneError

__all__ = ["Entry", "catalog", "describe", "layer_names"]


def catalog(pattern: str | None = None) -> list[Entry]:
    """The backbones whose name matches `pattern` (shell wildcards, or a part of the name); all for None.

    Figures come from the libraries' own metadata; width and layer from the network itself, built without memory.
    Raises BackboneError where nothing matches.
    """
    chosen = [*names(), *(name for name in EMBEDDED if name not in names())]
    if pattern is not None:
        chosen = [name for name in chosen if fnmatch.fnmatch(name, pattern) or pattern in name]
    if not chosen:
        family_of(str(pattern)).check(str(pattern))
        raise BackboneError(f"No backbone matches {pattern!r}.", hint="See all with `precompute backbones`.")
    return [describe(name) for name in chosen]


def describe(name: str) -> Entry:
    """The entry of one backbone."""
    return family_of(name).describe(name)


def layer_names(name: str) -> list[str]:
    """Every layer of `name` whose features can be had, in the order of execution, from `input` on."""
    family = family_of(name)
    family.check(name)
    return family.layer_names(family.build(name, seed=None))
