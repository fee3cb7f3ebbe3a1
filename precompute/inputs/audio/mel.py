"""Mel spectrograms by matrix products alone, so that every engine computes them: no FFT, no complex numbers.

The Slaney mel scale (Auditory Toolbox, 1998: linear below 1 kHz, logarithmic above) and its triangles of equal area,
librosa's defaults. A power spectrum is |DFT(frame * periodic Hann window)|^2, without any scaling.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

LINEAR_HZ, BREAK_HZ = 200 / 3, 1000.0  # a mel below the break, where the logarithmic part begins
LOG_STEP = math.log(6.4) / 27.0


def hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    above = BREAK_HZ / LINEAR_HZ + np.log(np.maximum(hz, BREAK_HZ) / BREAK_HZ) / LOG_STEP
    return np.where(hz < BREAK_HZ, hz / LINEAR_HZ, above)


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    least = BREAK_HZ / LINEAR_HZ
    return np.where(mel < least, mel * LINEAR_HZ, BREAK_HZ * np.exp(LOG_STEP * (np.maximum(mel, least) - least)))


def mel_filters(rate: int, frame: int, mels: int, low: float, high: float) -> NDArray[np.float64]:
    """(frame // 2 + 1, mels): how much each bin of a power spectrum of `frame` samples adds to each band."""
    bins = np.arange(frame // 2 + 1) * (rate / frame)
    lowest, highest = hz_to_mel(np.array([low, high]))
    edges = mel_to_hz(np.linspace(lowest, highest, mels + 2))
    rising = (bins[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    found: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))
    return found


def dft_basis(frame: int) -> NDArray[np.float64]:
    """(frame, 2 * (frame // 2 + 1)): real and imaginary parts of the DFT behind a periodic Hann window."""
    places = np.arange(frame)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * places / frame)
    # The angle from the remainder: of numbers up to frame^2 the cosine would lose digits
    angles = 2 * np.pi / frame * (places[:, None] * np.arange(frame // 2 + 1) % frame)
    return np.concatenate([np.cos(angles), -np.sin(angles)], axis=1) * hann[:, None]


class MelSpectrogram(nn.Module):
    """(B, samples) fp32 -> (B, frames, mels) power: frame i begins at sample i * step; nothing is padded.

    Frames and step have a common divisor of some size, such as 400 and 160: frames are assembled of pieces so long.
    """

    basis: torch.Tensor
    filters: torch.Tensor

    def __init__(self, rate: int, *, frame: int, step: int, mels: int, low: float = 0.0, high: float) -> None:
        super().__init__()
        self.frame, self.step, self.piece = frame, step, math.gcd(frame, step)
        self.register_buffer("basis", torch.from_numpy(dft_basis(frame)).float(), persistent=False)
        filters = torch.from_numpy(mel_filters(rate, frame, mels, low, high)).float()
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        spectrum = self._frames(wave) @ self.basis
        real, imaginary = spectrum.chunk(2, dim=-1)
        return (real * real + imaginary * imaginary) @ self.filters

    def _frames(self, wave: torch.Tensor) -> torch.Tensor:
        """(B, frames, frame). By slices, which every engine knows; `unfold` is not in all of them."""
        count, stride = 1 + (wave.shape[1] - self.frame) // self.step, self.step // self.piece
        used = (count - 1) * self.step + self.frame
        pieces = wave[:, :used].reshape(wave.shape[0], -1, self.piece)
        last = (count - 1) * stride + 1
        return torch.cat([pieces[:, k : k + last : stride] for k in range(self.frame // self.piece)], dim=-1)
