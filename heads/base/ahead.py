"""What comes next is made while the last is used: reading a file and multiplying what was read go on at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    Item = TypeVar("Item")

__all__ = ["ahead"]


def ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """The same items, in order; each is made by a thread while the one before it is used. One is held in advance."""
    left, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as reader:
        coming = reader.submit(next, left, end)
        while (item := coming.result()) is not end:
            coming = reader.submit(next, left, end)
            yield item  # type: ignore[misc]  # not the end
