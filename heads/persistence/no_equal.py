"""The error of a head that scikit-learn has no equal of."""

from __future__ import annotations

from typing import Any

from precompute.errors import HeadError

__all__ = ["no_equal"]


def no_equal(head: Any, why: str) -> HeadError:
    """What to raise for `head`, which cannot be exported; `why` ends the message."""
    return HeadError(
        f"This {type(head).__name__} cannot be exported to scikit-learn: {why}.",
        hint="Use the head itself: precompute.load_head(FILE).head, or `precompute predict`.",
    )
