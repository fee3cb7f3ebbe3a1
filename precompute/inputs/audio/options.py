"""What can be set of how clips become inputs, and what a file's settings say of it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

POOL, KEEP = "pool", "keep"
OPTIONS = ("window", "hop", "max_seconds", "windows")
"""See `AudioPreprocess`."""


def options_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """OPTIONS that lead to the settings `spec` of a file, which may come from a stranger: numbers and words alone."""
    transform, augment = spec.get("transform"), spec.get("augment")
    given = transform if isinstance(transform, Mapping) else {}
    found: dict[str, Any] = {
        name: float(given[name])
        for name in ("window", "hop", "max_seconds")
        if isinstance(given.get(name), int | float) and not isinstance(given[name], bool)
    }
    if isinstance(augment, Mapping) and augment.get("windows") == KEEP:
        found["windows"] = KEEP
    return found
