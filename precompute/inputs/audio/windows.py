"""Where the windows of a clip begin, and how much of each is sound."""

from __future__ import annotations

import math
from dataclasses import dataclass

from precompute.errors import UsageError


@dataclass(frozen=True)
class Window:
    """start: its first sample in the clip, below 0 where zeros are in front · real: samples of it that are sound ·
    frames: of these, whole ones; at least 1.
    """

    start: int
    real: int
    frames: int


@dataclass(frozen=True)
class Layout:
    """Windows of one length, a fixed distance apart, over a clip of any length; all numbers are samples.

    size: of a window · hop: from one to the next · frame, step: of the frames that are computed inside of one.

    Where the hop is as long as the window, a window reaches `frame - step` samples into the next, so that each frame of
    the clip is in exactly one of them: means over windows, weighted by frames, are then means over the clip.
    """

    size: int
    hop: int
    frame: int
    step: int

    def frames(self, real: int) -> int:
        """Whole frames in the first `real` samples of a window; 1 where they fill none, with zeros behind them."""
        return max(1, 1 + (min(real, self.size) - self.frame) // self.step)

    def windows(self, samples: int) -> list[Window]:
        """Of a clip of so many samples, 1 at least: one window or more, as many as hold each whole frame of the clip.

        The last one has zeros behind its sound.
        """
        frames = max(1, 1 + (samples - self.frame) // self.step)
        count = 1 + max(0, -(-(frames - self.frames(self.size)) // (self.hop // self.step)))
        return [
            Window(start, min(self.size, samples - start), self.frames(samples - start))
            for start in range(0, count * self.hop, self.hop)
        ]


def layout_of(rate: int, window: float, hop: float, *, frame: int, step: int) -> Layout:
    """Windows of `window` seconds, `hop` apart, rounded to whole frames. Raises UsageError for lengths out of range.

    A window of n steps holds n frames, the last of which reaches `frame - step` samples beyond its end.
    """
    if not (math.isfinite(window) and math.isfinite(hop) and 0 < hop <= window <= 3600):
        raise UsageError(
            f"A window must be longer than 0 s and at most 3600 s, and its hop no longer. Got a window of {window!r} s "
            f"and a hop of {hop!r} s instead.",
            hint="For example --window 2 --hop 1.",
        )
    steps, hops = (max(1, round(seconds * rate / step)) for seconds in (window, hop))
    return Layout(steps * step + frame - step, hops * step, frame, step)
