"""Braces in the pattern of shards: {000..099} and {train,val}, as a shell and webdataset write them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from precompute.errors import SourceError
from precompute.sources.base import ascii_name

MAX_SHARDS = 1_000_000
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")


def expand_braces(text: str) -> list[str]:
    """`a{00..02}` -> a00, a01, a02; `{a,b}` -> a, b; several multiply. Raises SourceError for more than MAX_SHARDS."""
    parts: list[Sequence[str]] = []
    count, end = 1, 0
    for group in BRACES.finditer(text):
        numbers = RANGE.fullmatch(group[1])
        first, last = numbers.groups() if numbers else ("", "")
        if not first and "," not in group[1]:
            continue  # as in a shell, it stands for itself
        number = abs(int(last) - int(first)) + 1 if first else group[1].count(",") + 1
        count *= number
        if count > MAX_SHARDS:
            raise SourceError(
                f"{ascii_name(text)} expands to more than {MAX_SHARDS:,} shards.",
                hint="Check the numbers in its braces.",
            )
        parts += [[text[end : group.start()]], _numbers(first, last) if first else group[1].split(",")]
        end = group.end()
    return ["".join(one) for one in itertools.product(*parts, [text[end:]])]


def _numbers(first: str, last: str) -> list[str]:
    """As wide as the wider of the two where one of them begins with a zero."""
    start, stop = int(first), int(last)
    padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if start <= stop else -1
    return [f"{number:0{width}}" for number in range(start, stop + step, step)]
