"""How far a fit, a search or a comparison is, for anyone who listens.

Loops report where they are with `report`; nobody need listen. A listener is set for a block of code by `listening`, so
that no function between the two hands it down.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Listener", "Progress", "listening", "report"]


@dataclass(frozen=True)
class Progress:
    """what: is counted, such as "values of C" · done, total: so many of so many · note: the best so far, in words."""

    what: str
    done: int
    total: int
    note: str = ""


Listener = Callable[[Progress], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Inside, `listener` is called with each report of this thread; where it is None, the listener outside is."""
    if listener is None:
        yield
        return
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(what: str, done: int, total: int, note: str = "") -> None:
    """Say how far this is; costs next to nothing where nobody listens. What the listener raises goes through."""
    listener = _listener.get()
    if listener is not None:
        listener(Progress(what, done, total, note))
