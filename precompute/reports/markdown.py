"""Strangers' text in Markdown: it stays text."""

from __future__ import annotations

import re
from typing import Any

ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
MARKUP = re.compile(r"([\\`*_{}\[\]<>#!|~&$])|(https?:|www\.|@)")


def escaped(value: Any) -> str:
    """Text as Markdown that shows it: one line, nothing in it is markup."""
    return MARKUP.sub(_escape, line(value))


def _escape(found: re.Match[str]) -> str:
    if found[2]:  # what would become a link by itself
        return found[2].replace(":", "&#58;").replace(".", "&#46;").replace("@", "&#64;")
    return ENTITIES.get(found[1], f"\\{found[1]}")


def code(value: Any) -> str:
    """Text inside single backticks."""
    return line(value).replace("`", "'")


def line(value: Any) -> str:
    """One line of printable characters: others, such as those that turn the writing direction, as escapes."""
    text = " ".join(str(value).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
