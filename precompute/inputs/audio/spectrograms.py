"""The spectrograms that Whisper and CLAP were trained on, as transformers' feature extractors make them.

Each of their networks takes windows of one length. A window is what the library's extractor makes of that part of the
clip alone: frames are centred, and the sound is reflected at both ends of the window.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from precompute.inputs.audio.mel import MelSpectrogram
from precompute.inputs.audio.preprocess import AudioPreprocess, Tensors
from precompute.inputs.audio.windows import Layout, Window, layout_of

FLOOR = 1e-10
"""The least power that both take a logarithm of."""

PADDINGS = ("repeatpad", "repeat", "pad")
"""How CLAP fills a window that is longer than its sound."""


@dataclass(frozen=True)
class CentredMelPreprocess(AudioPreprocess):
    """Windows of `chunk` seconds and no others.

    size: samples of a window · fft, mel_step: of a frame of the spectrogram, and from one to the next · mels: bands,
    from `low` to `high` Hz.
    """

    window: float = 30.0
    hop: float = 30.0
    chunk: float = 30.0
    fft: int = 400
    mel_step: int = 160
    mels: int = 80
    low: float = 0.0
    high: float = 8000.0

    def __post_init__(self) -> None:
        self.check_window(self.chunk)
        super().__post_init__()

    @property
    @abstractmethod
    def position(self) -> int:
        """Samples from one position of the network's output to the next, in whole numbers of which windows begin."""

    @property
    def layout(self) -> Layout:
        step = self.position
        found = layout_of(self.rate, self.window, self.hop, frame=step, step=step)
        return replace(found, size=int(self.chunk * self.rate))

    def spec(self) -> dict[str, Any]:
        mel = {"fft": self.fft, "step": self.mel_step, "mels": self.mels, "low": float(self.low)}
        more = {"high": float(self.high), "scale": "slaney", "norm": "slaney", "power": 2, "floor": FLOOR, "formula": 1}
        return {**super().spec(), "frame": self.position, "step": self.position, "mel": {**mel, **more}}


class CentredMel(nn.Module):
    """(B, samples) -> (B, frames, mels) power, at least FLOOR: frame i has its centre at sample i * mel_step."""

    def __init__(self, preprocess: CentredMelPreprocess) -> None:
        super().__init__()
        self.margin = preprocess.fft // 2
        self.mel = MelSpectrogram(
            preprocess.rate,
            frame=preprocess.fft,
            step=preprocess.mel_step,
            mels=preprocess.mels,
            low=preprocess.low,
            high=preprocess.high,
        )

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        padded = F.pad(wave.unsqueeze(1), (self.margin, self.margin), mode="reflect").squeeze(1)
        return torch.clamp(self.mel(padded), min=FLOOR)


@dataclass(frozen=True)
class WhisperPreprocess(CentredMelPreprocess):
    """(samples,) and (1,) int64, the positions of the encoder that are sound: two frames of the spectrogram each.

    What is behind the sound is silence. Logarithms to the base 10, at most 8 below the largest of a window.
    """

    most_inputs = 8
    """Whose attention is between all of 1,500 positions each."""

    @property
    def position(self) -> int:
        return 2 * self.mel_step

    def places(self, samples: int) -> list[Window]:
        """The last position counts where any of it is sound: so does the library's own mask."""
        return [replace(one, frames=-(-one.real // self.position)) for one in super().places(samples)]

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "log": {"base": 10, "range": 8, "add": 4, "divide": 4}, "centred": "reflect"}

    def device(self) -> nn.Module:
        return _WhisperMel(self)


class _WhisperMel(nn.Module):
    """-> (B, mels, frames), without the last frame, and the counts."""

    def __init__(self, preprocess: WhisperPreprocess) -> None:
        super().__init__()
        self.mel = CentredMel(preprocess)

    def forward(self, wave: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.log10(self.mel(wave)[:, :-1])
        least = found.amax(dim=(1, 2), keepdim=True) - 8.0
        return ((torch.maximum(found, least) + 4.0) / 4.0).transpose(1, 2), counts


@dataclass(frozen=True)
class ClapPreprocess(CentredMelPreprocess):
    """(samples,) and (1,) int64, frames that are sound. A window that is longer than its sound repeats it, as whole as
    it fits, with silence behind (`repeatpad`), or cut at the end (`repeat`), or is silent behind it (`pad`).
    """

    window: float = 10.0
    hop: float = 10.0
    chunk: float = 10.0
    rate: int = 48_000
    fft: int = 1024
    mel_step: int = 480
    mels: int = 64
    low: float = 50.0
    high: float = 14_000.0
    padding: str = "repeatpad"

    @property
    def position(self) -> int:
        return self.mel_step

    def _cut(self, wave: NDArray[np.float32], places: Sequence[Window]) -> tuple[Tensors, ...]:
        return tuple(
            (torch.from_numpy(self._filled(wave[one.start : one.start + one.real])), torch.tensor([one.frames]))
            for one in places
        )

    def _filled(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        size, times = self.layout.size, self.layout.size // len(sound)
        if self.padding == "repeat":
            return np.tile(sound, times + 1)[:size]
        found = np.zeros(size, dtype=np.float32)
        whole = np.tile(sound, times) if self.padding == "repeatpad" else sound
        found[: len(whole)] = whole
        return found

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "log": {"base": 10, "multiply": 10}, "centred": "reflect", "padding": self.padding}

    def device(self) -> nn.Module:
        return _ClapMel(self)


class _ClapMel(nn.Module):
    """-> (B, 1, frames, mels) decibels."""

    def __init__(self, preprocess: ClapPreprocess) -> None:
        super().__init__()
        self.mel = CentredMel(preprocess)

    def forward(self, wave: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        del counts
        return (10.0 * torch.log10(self.mel(wave))).unsqueeze(1)
