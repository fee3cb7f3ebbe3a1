"""What can be set of how texts become tokens, and what a file's settings say of it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OPTIONS = ("max_length",)
"""See `TokenPreprocess`."""


def options_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """OPTIONS that lead to the settings `spec` of a file, which may come from a stranger: whole numbers alone."""
    transform = spec.get("transform")
    given = transform.get("max_length") if isinstance(transform, Mapping) else None
    return {"max_length": given} if isinstance(given, int) and not isinstance(given, bool) else {}
