"""What is known of each backbone without downloading anything."""

from __future__ import annotations

import fnmatch

from precompute.backbones.families import family_of, prefix_of
from precompute.backbones.families.base import Entry
from precompute.backbones.families.registry import listed
from precompute.errors import BackboneError

MANY = 20
"""From more than so many names of a family with a prefix on, what takes building them is left out: seconds each."""

__all__ = ["Entry", "catalog", "describe", "layer_names"]


def catalog(pattern: str | None = None) -> list[Entry]:
    """The backbones whose name matches `pattern` (shell wildcards, or a part of the name); all for None.

    Behind a family's prefix those of the family: `timm:vit*small*`, `hf:` (what the hub's cache has), `hf:./folder`.

    Figures come from the libraries' own metadata; width and layer from the network itself, built without memory.
    Raises BackboneError where nothing matches.
    """
    chosen = family_of(pattern).names() if pattern is not None and prefix_of(pattern) else listed()
    if pattern is not None:
        chosen = [name for name in chosen if fnmatch.fnmatch(name, pattern) or pattern in name]
    if not chosen:
        family_of(str(pattern)).check(str(pattern))
        if pattern is not None and prefix_of(pattern):  # a folder, or a name with a tag or a revision
            return [describe(pattern)]
        raise BackboneError(f"No backbone matches {pattern!r}.", hint="See all with `precompute backbones`.")
    quick = len(chosen) > MANY and bool(prefix_of(chosen[0]))
    return [family_of(name).describe(name, quick=quick) for name in chosen]


def describe(name: str) -> Entry:
    """The entry of one backbone."""
    return family_of(name).describe(name)


def layer_names(name: str) -> list[str]:
    """Every available layer of `name`, in the order of execution, from `input` on."""
    family = family_of(name)
    family.check(name)
    return family.layer_names(family.build(name, seed=None))
