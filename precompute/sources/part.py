"""Part I of N of a source, for jobs that share the work; `extract --reuse` joins the parts."""

from __future__ import annotations

from precompute.errors import UsageError
from precompute.sources.base import Source
from precompute.sources.chosen import ChosenSource

PARTS_NAMED = 10  # of those that are missing


class PartOfSource(ChosenSource):
    """Part `number` of `of` of the samples of `whole`, in the order of ids: neighbours stay together.

    Attributes: whole: what engines prove themselves on, so that all parts choose alike · part: I/N.
    """

    def __init__(self, whole: Source, number: int, of: int) -> None:
        bounds = [len(whole) * edge // of for edge in (number - 1, number)]
        if bounds[0] == bounds[1]:
            raise UsageError(
                f"{whole.name} has {len(whole):,} samples, and part {number} of {of} has none of them.",
                hint="Use fewer parts.",
            )
        super().__init__(whole, slice(*bounds), f"{whole.name} (part {number} of {of})")
        self.part = f"{number}/{of}"


def part_of(source: Source, part: str) -> PartOfSource:
    """`part` is I/N, such as 1/4 to 4/4. Raises UsageError for another, and for a part without samples."""
    return PartOfSource(source, *part_numbers(part))


def part_numbers(part: str) -> tuple[int, int]:
    """I and N of I/N. Raises UsageError for what is no part."""
    first, slash, last = part.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UsageError(
            f"A part of a source is I/N with I from 1 to N. Got {part!r} instead.",
            hint="For example 1/4 to 4/4. Tasks of a job array count from 1 with --array=1-N, with the N of I/N.",
        )
    return int(first), int(last)


def parts_missing(parts: set[str]) -> str:
    """Which parts are not among `parts`, each I/N, in words; "" where all are, or where that is not known."""
    numbers = [part_numbers(part) for part in parts]
    found, of = {number for number, _ in numbers}, {last for _, last in numbers}
    if len(of) != 1:
        return ""
    rest = [str(number) for number in range(1, max(of) + 1) if number not in found]
    named = ", ".join(rest[:PARTS_NAMED]) + (", ..." if len(rest) > PARTS_NAMED else "")
    return f"{named} of {max(of)}" if rest else ""
