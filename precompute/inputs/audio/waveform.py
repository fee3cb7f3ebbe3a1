"""Samples as they are, for networks that begin with convolutions over them: wav2vec 2.0 and its kin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from precompute.inputs.audio.preprocess import AudioPreprocess, Tensors
from precompute.inputs.audio.windows import Window, layout_of

WINDOW = 10.0
"""Seconds: such networks were trained on some 15, and attention to all frames takes the square of it."""

SHARES = (16, 8, 4, 2, 1)
"""A clip that is shorter than the window is one of a half of it, a quarter and so on, the shortest that holds it."""

LEAST_VARIANCE = 1e-7


@dataclass(frozen=True)
class WaveformPreprocess(AudioPreprocess):
    """(samples,) and (1,) int64, how many of them are sound. What is behind them is 0, and a network must mask it.

    frame, step: the receptive field of one of its outputs, and from one to the next · normalize: the whole clip gets
    the mean 0 and the variance 1, by the formula of transformers' Wav2Vec2FeatureExtractor in its own precision.
    """

    window: float = WINDOW
    hop: float = WINDOW
    frame: int = 400
    step: int = 320
    normalize: bool = True

    most_inputs = 8
    """In wav2vec2-base a window of 10 s takes some 0.3 GB in the first convolutions."""

    def level(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.normalize:
            return wave
        scaled: NDArray[np.float32] = (wave - wave.mean()) / np.sqrt(wave.var() + LEAST_VARIANCE)
        return scaled

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of windows, in samples, ascending: the last is that of every window of a clip that has several."""
        found = (
            layout_of(self.rate, self.window / share, min(self.hop, self.window / share), **self._frames).size
            for share in SHARES
        )
        return tuple(sorted({*found}))

    @property
    def _frames(self) -> dict[str, int]:
        return {"frame": self.frame, "step": self.step}

    def window_size(self, samples: int) -> int:
        return next((length for length in self.lengths if length >= samples), self.layout.size)

    def count(self, window: Window) -> int:
        """At least as many as one frame takes: a shorter clip is taken with the zeros behind it."""
        return max(window.real, self.frame)

    def examples(self) -> tuple[Tensors, ...]:
        return tuple((torch.zeros(length), torch.tensor([length])) for length in reversed(self.lengths))

    def example(self) -> Tensors:
        return self.examples()[0]

    def spec(self) -> dict[str, Any]:
        return {
            **super().spec(),
            "lengths": list(self.lengths),
            "normalize": "clip" if self.normalize else "none",
        }

    def device(self) -> nn.Module:
        return _AsTheyAre()


class _AsTheyAre(nn.Module):
    def forward(self, wave: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return wave, counts


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """(frame, step) of convolutions without padding, one behind the other: samples that one output sees, and from that
    of one output to that of the next.
    """
    frame, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        frame += (kernel - 1) * step
        step *= stride
    return frame, step
