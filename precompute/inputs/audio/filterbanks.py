"""Kaldi's filterbank, as the Audio Spectrogram Transformer was trained on it and transformers' extractor makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from precompute.inputs.audio.mel import MelSpectrogram
from precompute.inputs.audio.preprocess import AudioPreprocess, frame_mask

FRAME, STEP, FFT = 400, 160, 512
LOW = 20.0  # Hz
PREEMPHASIS = 0.97
FLOOR = 1.192092955078125e-07
"""The least power that a logarithm is taken of: the precision of float32."""


class KaldiSpectrogram(MelSpectrogram):
    """(B, samples) fp32 -> (B, frames, mels) power, of frames without their mean and with raised high frequencies.

    All of this is linear in the samples of a frame up to the power, so it is one matrix with the DFT.
    """

    def __init__(self, rate: int, mels: int) -> None:
        nn.Module.__init__(self)
        self.frame, self.step, self.piece = FRAME, STEP, 80
        self.register_buffer("basis", torch.from_numpy(_basis()).float(), persistent=False)
        self.register_buffer("filters", torch.from_numpy(_filters(rate, mels)).float(), persistent=False)


def _basis() -> NDArray[np.float64]:
    """(FRAME, 2 * (FFT // 2 + 1))."""
    centred = np.eye(FRAME) - 1 / FRAME
    raised = np.eye(FRAME) - PREEMPHASIS * np.eye(FRAME, k=1)
    raised[0, 0] -= PREEMPHASIS
    places = np.arange(FRAME)
    angles = 2 * np.pi / FFT * (places[:, None] * np.arange(FFT // 2 + 1) % FFT)
    dft = np.concatenate([np.cos(angles), -np.sin(angles)], axis=1)
    found: NDArray[np.float64] = centred @ raised @ (np.hanning(FRAME)[:, None] * dft)
    return found


def _filters(rate: int, mels: int) -> NDArray[np.float64]:
    """(FFT // 2 + 1, mels): triangles on Kaldi's mel scale, not corrected for their area."""

    def mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    bins = mel(np.arange(FFT // 2 + 1, dtype=np.float64) * (rate / FFT))
    lowest, highest = mel(np.array([LOW, rate // 2]))
    edges = np.linspace(lowest, highest, mels + 2)
    rising = (bins[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    found: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return found


@dataclass(frozen=True)
class FilterbankPreprocess(AudioPreprocess):
    """(samples,) and (1,) int64, frames that are sound. Windows hold `frames` frames, which follow on each other.

    mean, deviation: of the logarithms, subtracted and divided by, twice the deviation. Frames behind the sound are 0
    before that.
    """

    window: float = 10.24
    hop: float = 10.24
    frames: int = 1024
    mels: int = 128
    mean: float = 0.0
    deviation: float = 0.5

    def __post_init__(self) -> None:
        self.check_window(self.frames * STEP / self.rate)
        super().__post_init__()

    def spec(self) -> dict[str, Any]:
        scale = {"mels": self.mels, "scale": "kaldi", "norm": "none", "low": LOW, "high": float(self.rate // 2)}
        frames = {"fft": FFT, "preemphasis": PREEMPHASIS, "power": 2, "log": "e", "floor": FLOOR, "formula": 1}
        more = {"mean": float(self.mean), "deviation": float(self.deviation)}
        return {**super().spec(), "mel": {**scale, **frames}, **more}

    def device(self) -> nn.Module:
        return _LogFilterbank(self)


class _LogFilterbank(nn.Module):
    """-> (B, frames, mels)."""

    def __init__(self, preprocess: FilterbankPreprocess) -> None:
        super().__init__()
        self.mel = KaldiSpectrogram(preprocess.rate, preprocess.mels)
        self.mean, self.scale = preprocess.mean, 2 * preprocess.deviation

    def forward(self, wave: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        found = torch.log(torch.clamp(self.mel(wave), min=FLOOR))
        return (found * frame_mask(counts, found.shape[1]).unsqueeze(-1) - self.mean) / self.scale
