"""What every kind of file has: mutated, judged, restored, and refused with a message that names it."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from pathlib import Path


class WrongError(Exception):
    """What must never happen has happened."""


class Target(ABC):
    """One kind of file. Mutates a known good one, and judges what its reader makes of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "mutated"

    @abstractmethod
    def mutate(self, rng: random.Random) -> None:
        """Put the mutated file at `path`."""

    @abstractmethod
    def check(self) -> str:
        """ "opened", or the reason why it was refused. Raises WrongError, or whatever the reader let through."""

    def restore(self) -> None:  # noqa: B027 - most targets write the whole file each time
        """Undo `mutate`."""


def reason(message: str, path: Path) -> str:
    """The message without what is different each time. It must name the file."""
    if str(path) not in message:
        raise WrongError(f"a message that does not name the file: {message}")
    text = message.replace(repr(str(path)), "").replace(str(path), "").split(" (")[0]
    text = re.sub(r"GLOBAL .*|\(.*|'[^']*'|`[^`]*`|\b[\d,]+\b", "", text)
    return " ".join(text.split())[:70]
