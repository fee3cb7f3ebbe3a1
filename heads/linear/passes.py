"""One reading of the features for as many fits as wait for one.

A fit is a generator: it yields each `Pass` it needs and is sent the sums that it requested. So fits of several folds go
in step, and a block of features that has been read, from memory or a file, serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from precompute.heads.base.arrays import Array
    from precompute.heads.linear.design import Design

__all__ = ["Found", "Pass", "Steps", "alone", "together"]

Found = TypeVar("Found")
# Rows that a product sums over in its own dtype. With all rows of a large block at once, float32 lost so much of the
# gradient that fits with a weak penalty took three times the steps.
SUMMED_AT_ONCE = 2048


@dataclass(frozen=True)
class Pass:
    """All rows, block by block.

    weight: (n,) on the host; a block without any is left out · visit: is given the rows, their features (b, axes) and
    the logits (outputs, b) of `coefficients` (axes + 1, outputs), intercepts last, or None without them. Where
    `outputs` is not 0 it returns as many numbers a row, (outputs, b). Their products with the features, and their sums,
    are what the fit is sent: (axes + 1, outputs).
    """

    weight: npt.NDArray[np.float64]
    visit: Callable[[slice, Array, Array | None], Array | None]
    coefficients: Array | None = None
    outputs: int = 0


Steps = Generator[Pass, Any, Found]


def alone(design: Design, fit: Steps[Found]) -> Found:
    """What the fit returns."""
    return together(design, [fit])[0]


def together(design: Design, fits: Sequence[Steps[Found]]) -> list[Found]:
    """What the fits return; all that wait for a pass share it."""
    found: dict[int, Found] = {}
    sums: dict[int, Any] = dict.fromkeys(range(len(fits)))
    while sums:
        passes: dict[int, Pass] = {}
        for number, total in sums.items():
            try:
                passes[number] = fits[number].send(total)
            except StopIteration as done:
                found[number] = done.value
        sums = dict(zip(passes, _read(design, list(passes.values())), strict=True)) if passes else {}
    return [found[number] for number in range(len(fits))]


def _read(design: Design, passes: Sequence[Pass]) -> list[Array | None]:
    """The sums that each pass requests."""
    axes, xp = design.shape[1], design.arrays.xp
    sums = [design.arrays.zeros(axes + 1, one.outputs) if one.outputs else None for one in passes]
    asked: list[Array] = [one.coefficients for one in passes if one.coefficients is not None]
    stacked: Any = xp.concatenate(asked, 1) if len(asked) > 1 else asked[0] if asked else None
    columns = max(sum(one.shape[1] for one in asked), sum(one.outputs for one in passes))
    for rows, block in design.blocks(columns):
        logits: Any = None
        start = 0
        answers: list[tuple[Array, Array]] = []
        for one, total in zip(passes, sums, strict=True):
            width = 0 if one.coefficients is None else one.coefficients.shape[1]
            start += width
            if not one.weight[rows].any():
                continue
            if width and logits is None:
                logits = stacked[:-1].T @ block.T
                logits += stacked[-1][:, None]
            answer = one.visit(rows, block, logits[start - width : start] if width else None)
            if answer is not None:
                answers.append((total, answer))
        if answers:
            of_all = xp.concatenate([answer for _, answer in answers]) if len(answers) > 1 else answers[0][1]
            products, totals, start = _product(of_all, block), of_all.sum(1), 0
            for total, answer in answers:
                part = slice(start, start + len(answer))
                total[:-1] += products[part].T
                total[-1] += totals[part]
                start = part.stop
    return sums


def _product(numbers: Array, block: Array) -> Array:
    """`numbers` (k, b) times `block` (b, axes), summed over few rows at a time: float32 keeps more digits of it.

    (Some libraries take ten times as long for `block.T @ numbers.T`.)
    """
    product = numbers[:, :SUMMED_AT_ONCE] @ block[:SUMMED_AT_ONCE]
    for start in range(SUMMED_AT_ONCE, len(block), SUMMED_AT_ONCE):
        rows = slice(start, start + SUMMED_AT_ONCE)
        product += numbers[:, rows] @ block[rows]
    return product
