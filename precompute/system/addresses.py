"""Addresses in what is shown or recorded: without what may be a secret in them."""

from __future__ import annotations

import re

LOGIN = re.compile(r"://\S*@")
"""Up to the last @ of a word: a password may hold a / or an @ itself."""
QUERY = re.compile(r"\?\S+")
"""A signature, a token."""


def without_secrets(text: str) -> str:
    """A text without user, password and query of the addresses in it; one without an address stays as it is."""
    return QUERY.sub("", LOGIN.sub("://", text)) if "://" in text else text
