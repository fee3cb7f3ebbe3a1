"""Clips as Resemblyzer takes them: raised to a common level, in partials of 1.6 s, as mel power spectrograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from precompute.errors import UsageError
from precompute.inputs.audio.mel import MelSpectrogram
from precompute.inputs.audio.preprocess import AudioPreprocess
from precompute.inputs.audio.windows import Layout, Window

PARTIAL, STRIDE = 160, 77  # frames of a partial, and from one to the next: 1.3 partials a second
LEAST_COVERED = 0.75  # of the last partial, or it is left out
LEAST_LEVEL = -30.0  # dB below full scale, of the root mean square


@dataclass(frozen=True)
class PartialsPreprocess(AudioPreprocess):
    """What the package Resemblyzer 0.1.4 does in front of its network, except for the cutting of silence.

    Partials count alike, and their mean is divided by its L2 norm. Frames are centred, with zeros around the clip.
    """

    window: float = PARTIAL / 100
    hop: float = STRIDE / 100

    frame, step = 400, 160
    mels, high = 40, 8000.0

    def __post_init__(self) -> None:
        if (self.window, self.hop) != (PARTIAL / 100, STRIDE / 100):
            raise UsageError(
                f"resemblyzer was trained on windows of {PARTIAL / 100} s and takes no others.",
                hint="Leave --window and --hop out.",
            )
        super().__post_init__()

    @property
    def layout(self) -> Layout:
        """Windows from the first sample of a partial's first frame to the last of its last."""
        return Layout((PARTIAL - 1) * self.step + self.frame, STRIDE * self.step, self.frame, self.step)

    def places(self, samples: int) -> list[Window]:
        frames = math.ceil((samples + 1) / self.step)
        starts = list(range(0, max(1, frames - PARTIAL + STRIDE + 1), STRIDE))
        if len(starts) > 1 and (samples - starts[-1] * self.step) / (PARTIAL * self.step) < LEAST_COVERED:
            starts.pop()
        size, padding = self.layout.size, self.frame // 2
        return [
            Window(first, min(size, samples - first), PARTIAL)
            for first in (one * self.step - padding for one in starts)
        ]

    def level(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raised where its root mean square is below LEAST_LEVEL, never lowered."""
        power = float(np.mean(np.square(wave, dtype=np.float64)))
        least = 10.0 ** (LEAST_LEVEL / 10)
        return wave * np.float32(math.sqrt(least / power)) if 0 < power < least else wave

    def spec(self) -> dict[str, Any]:
        mel = {"mels": self.mels, "scale": "slaney", "norm": "slaney", "low": 0.0, "high": self.high, "power": 2}
        more = {"mel": {**mel, "formula": 1}, "level": LEAST_LEVEL, "centred": True, "least_covered": LEAST_COVERED}
        return {**super().spec(), **more, "pooling": "mean over windows, then L2"}

    def merge(self, features: NDArray[np.floating], weights: Sequence[float]) -> NDArray[np.float32]:
        pooled = np.average(features, axis=0, weights=weights)
        norm = float(np.linalg.norm(pooled))
        return self._with_windows((pooled / norm if norm else pooled).astype(np.float32), features)

    def device(self) -> nn.Module:
        return PowerMel(self)


class PowerMel(nn.Module):
    """(B, samples) and counts, of which all frames count -> (B, frames, mels) power."""

    def __init__(self, preprocess: PartialsPreprocess) -> None:
        super().__init__()
        self.mel = MelSpectrogram(
            preprocess.rate, frame=preprocess.frame, step=preprocess.step, mels=preprocess.mels, high=preprocess.high
        )

    def forward(self, wave: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        del counts
        found: torch.Tensor = self.mel(wave)
        return found
