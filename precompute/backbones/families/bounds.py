"""What a config from a stranger may say: each value that is used has a check, and nothing else is passed on."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

from precompute.errors import WeightsError

Check = Callable[[Any], bool]


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def number(low: float, high: float) -> Check:
    """A finite number within bounds, which NaN is not."""
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def whole(low: int, high: int, counts: Container[int] = ()) -> Check:
    """A whole number, or a list of as many of them as `counts` has."""

    def good(value: Any) -> bool:
        several = value if isinstance(value, list) and len(value) in counts else [value]
        return all(isinstance(one, int) and not isinstance(one, bool) and low <= one <= high for one in several)

    return good


def checked(
    where: str, given: Mapping[str, Any], known: Mapping[str, Check], library: str, asked: str | None = None
) -> dict[str, Any]:
    """Those of `given` that are `known`, lists as tuples and without null. where: the file · library: whose it is.

    asked: what an unknown name would do, such as "in its image tower", for the error; None: it is left out. Raises
    WeightsError for such a name, and for a value out of bounds.
    """
    found = {}
    for name, value in given.items():
        if name not in known:
            if asked is not None:
                raise WeightsError(
                    f"{where} requests {name[:64]!r} {asked}, which is not known to be harmless.",
                    hint="If you trust the folder, load it in your own factory: package.module:factory.",
                )
            continue
        if value is None:
            continue
        if not known[name](value):
            raise out_of_bounds(where, name, value, library)
        found[name] = tuple(value) if isinstance(value, list) else value
    return found


def out_of_bounds(where: str, name: str, value: Any, library: str) -> WeightsError:
    return WeightsError(
        f"{where} gives {name} as {repr(value)[:100]}, which is out of range.",
        hint=f"Use a folder saved by {library}.",
    )
