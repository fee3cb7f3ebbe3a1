"""Which step a command is at while it has no samples to count: listing, loading, compiling, comparing, copying.

A step reports its name when it begins; nobody need listen. A listener is set for a block of code by `listening`, so
that no function between the two passes it on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

Listener = Callable[[str], None]
_listener: ContextVar[Listener | None] = ContextVar("step_listener", default=None)
_current: ContextVar[str] = ContextVar("step", default="")


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside, `listener` is called with the name of each step of this thread that begins, and "" where none is left."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """A step named `what`, such as "loading resnet18". Inside another step it is the one that is shown."""
    listener = _listener.get()
    if listener is None:
        yield
        return
    token = _current.set(what)
    listener(what)
    try:
        yield
    finally:
        _current.reset(token)
        listener(_current.get())
