"""Which files are texts: by their names alone, since any bytes might be one."""

from __future__ import annotations

from precompute.sources.base import FileKind
from precompute.system.samples import TEXT, WORDS

EXTENSIONS = frozenset({b".txt"})
"""A file with one of these is a sample whatever it holds: should it be no text, that is worth reporting."""


def _never(head: bytes) -> bool:
    """No first bytes tell a text from a program or a table."""
    del head
    return False


TEXTS = FileKind(WORDS[TEXT].single, WORDS[TEXT].plural, "text (.txt)", EXTENSIONS, 0, _never, column="text")
"""Which files of a folder are samples."""
