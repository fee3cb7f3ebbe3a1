"""Every N-th part of a source, for jobs that share the work; joined again by `extract --reuse`."""

from __future__ import annotations

from precompute.errors import UsageError
from precompute.sources.base import Source
from precompute.sources.chosen import ChosenSource


class PartOfSource(ChosenSource):
    """Part `number` of `of` of the samples of `whole`, in the order of ids: neighbours stay together.

    Attributes: whole: what engines prove themselves on, so that all parts choose alike · part: I/N.
    """

    def __init__(self, whole: Source, number: int, of: int) -> None:
        bounds = [len(whole) * edge // of for edge in (number - 1, number)]
        if bounds[0] == bounds[1]:
            raise UsageError(
                f"{whole.name} has {len(whole):,} samples, and part {number} of {of} has none of them.",
                hint="Ask for fewer parts.",
            )
        super().__init__(whole, slice(*bounds), f"{whole.name} (part {number} of {of})")
        self.part = f"{number}/{of}"


def part_of(source: Source, part: str) -> PartOfSource:
    """`part` is I/N, such as 1/4 to 4/4. Raises UsageError for another, and for a part without samples."""
    first, slash, last = part.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UsageError(
            f"A part of a source is I/N with I from 1 to N. Got {part!r} instead.", hint="Such as 1/4, to 4/4."
        )
    return PartOfSource(source, int(first), int(last))
