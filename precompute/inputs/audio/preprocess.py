"""Clips as an input: decoded, resampled and cut into windows in threads; spectrograms on the device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from precompute.errors import UsageError
from precompute.inputs.audio.decode import decode, decoder
from precompute.inputs.audio.mel import MelSpectrogram
from precompute.inputs.audio.options import KEEP, OPTIONS, POOL
from precompute.inputs.audio.windows import Layout, Window, layout_of
from precompute.inputs.base import Inputs, Preprocess

MAX_SECONDS = 300.0
"""The longest clip, unless more is requested: 5 minutes at 16 kHz take 19 MB in memory, twice that while decoded."""

LONGEST = 24 * 3600.0
MOST_WINDOWS = 1023  # kept of a clip: with their mean in front they are the views of a file, which are 1,024 at most
Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class AudioPreprocess(Preprocess):
    """Mono at `rate` samples a second, in windows of `window` seconds, `hop` seconds apart, the last one padded.

    `host` gives (samples,) float32 and (1,) int64, the number of whole frames in it that are sound. A clip is as many
    inputs of the network as it has windows; features are pooled over them, see `merge`. windows: "pool", or "keep":
    then view 0 is the pooled one and the others are windows, as many as a clip of `max_seconds` has. A clip with fewer
    begins again with its first one.

    max_seconds: longer clips fail as TOO_LARGE.
    """

    window: float
    hop: float
    rate: int = 16_000
    max_seconds: float = MAX_SECONDS
    windows: str = POOL

    modality = "audio"
    merges = True
    frame, step = 400, 160
    """Samples of a frame, and from one frame to the next."""

    def __post_init__(self) -> None:
        if not 0 < self.max_seconds <= LONGEST:
            raise UsageError(
                f"max_seconds must lie between 0 and {LONGEST:g}. Got {self.max_seconds!r} instead.",
                hint="See --max-seconds.",
            )
        if self.windows not in (POOL, KEEP):
            raise UsageError(f"windows must be {POOL} or {KEEP}. Got {self.windows!r} instead.", hint="See --windows.")
        if self.windows == KEEP and self._most > MOST_WINDOWS:
            raise UsageError(
                f"A clip of {self.max_seconds:g} s has {self._most:,} windows, and {MOST_WINDOWS:,} can be kept.",
                hint="Set the longest clip there is: --max-seconds SECONDS.",
            )

    @property
    def layout(self) -> Layout:
        return layout_of(self.rate, self.window, self.hop, frame=self.frame, step=self.step)

    @property
    def _most(self) -> int:
        return len(self.places(int(self.max_seconds * self.rate)))

    @property
    def views(self) -> int:  # type: ignore[override]
        return 1 if self.windows == POOL else 1 + self._most

    def check_window(self, seconds: float) -> None:
        """Raise UsageError where windows are of another length than the one that the network is built for."""
        if self.window != seconds:
            raise UsageError(
                f"This network takes windows of {seconds:g} s and no others. Got {self.window:g} s instead.",
                hint="Leave --window out; --hop SECONDS sets how far they lie apart.",
            )

    def with_options(self, options: Mapping[str, Any]) -> AudioPreprocess:
        """With some of OPTIONS set otherwise. Raises UsageError for others."""
        if strange := sorted({*options} - {*OPTIONS}):
            raise UsageError(
                f"{' and '.join(strange)} cannot be set for a backbone that takes clips.",
                hint=f"It knows {', '.join(OPTIONS)}.",
            )
        return replace(self, **options)

    def spec(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "channels": "mean",
            "window": float(self.window),
            "hop": float(self.hop),
            "frame": self.frame,
            "step": self.step,
            "max_seconds": float(self.max_seconds),
            "pooling": "mean over windows, by frames",
            "decoder": decoder(),
        }

    def augment_spec(self) -> dict[str, Any] | None:
        return None if self.windows == POOL else {"windows": KEEP}

    def plain(self) -> AudioPreprocess:
        return self if self.windows == POOL else replace(self, windows=POOL)

    def places(self, samples: int) -> list[Window]:
        """The windows of a clip of so many samples."""
        return self.layout.windows(samples)

    def level(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """The whole clip as the network wants it to sound; as it is, by default."""
        return wave

    def inputs(self, raw: bytes, digest: bytes | None = None) -> Inputs:
        del digest
        return self.windows_of(decode(raw, self.rate, self.max_seconds))

    def windows_of(self, wave: NDArray[np.float32]) -> Inputs:
        """The inputs of a clip that is decoded: (samples,) mono at `rate`."""
        wave = self.level(wave)
        places = self.places(len(wave))
        return Inputs(self._cut(wave, places), tuple(float(one.frames) for one in places))

    def merge(self, features: NDArray[np.floating], weights: Sequence[float]) -> NDArray[np.float32]:
        """(windows, *shape) -> (*shape), or (views, *shape): the mean by the frames of each window, in float64."""
        pooled = np.average(features, axis=0, weights=weights).astype(np.float32)
        return self._with_windows(pooled, features)

    def _with_windows(self, pooled: NDArray[np.float32], features: NDArray[np.floating]) -> NDArray[np.float32]:
        if self.windows == POOL:
            return pooled
        kept = features[np.arange(self._most) % len(features)].astype(np.float32, copy=False)
        return np.concatenate([pooled[None], kept])

    def host(self, raw: bytes, view: int = 0) -> Tensors:
        """One window: of view 0 the first, of view k that with the number k - 1, beginning again behind the last."""
        wave = self.level(decode(raw, self.rate, self.max_seconds))
        places = self.places(len(wave))
        return self._cut(wave, [places[max(0, view - 1) % len(places)]])[0]

    def window_size(self, samples: int) -> int:  # noqa: ARG002 - all windows are alike, by default
        """The length of each window of a clip of so many samples, one of those in `examples`."""
        return self.layout.size

    def count(self, window: Window) -> int:
        """The number that enters the network next to a window: how much of it is sound, in whole frames by default."""
        return window.frames

    def _cut(self, wave: NDArray[np.float32], places: Sequence[Window]) -> tuple[Tensors, ...]:
        """Windows of the clip, in memory that they share as far as they overlap."""
        size, front = self.window_size(len(wave)), -places[0].start if places[0].start < 0 else 0
        end = max(one.start for one in places) + size
        padded = torch.zeros(front + max(end, 0))
        there = wave[: max(0, end)]
        padded[front : front + len(there)] = torch.from_numpy(there)
        return tuple(
            (padded[front + one.start : front + one.start + size], torch.tensor([self.count(one)])) for one in places
        )

    def example(self) -> Tensors:
        return torch.zeros(self.layout.size), torch.tensor([self.layout.frames(self.layout.size)])

    @abstractmethod
    def device(self) -> nn.Module: ...


def frame_mask(counts: torch.Tensor, frames: int) -> torch.Tensor:
    """(B, 1) numbers of real frames -> (B, frames) fp32, 1 for those and 0 for what is padding."""
    return (torch.arange(frames, device=counts.device) < counts).to(torch.float32)


class LogMel(nn.Module):
    """(B, samples) and (B, 1) counts -> (B, frames, mels) ln(power + floor), and the (B, frames) mask of real frames.

    The floor is about the power of the noise that 16 bits leave in a band, so that digital silence is no outlier.
    """

    FLOOR = 1e-6

    def __init__(self, preprocess: AudioPreprocess, mels: int, high: float) -> None:
        super().__init__()
        frame, step = preprocess.frame, preprocess.step
        self.mel = MelSpectrogram(preprocess.rate, frame=frame, step=step, mels=mels, high=high)

    def forward(self, wave: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mel = torch.log(self.mel(wave) + self.FLOOR)
        return mel, frame_mask(counts, mel.shape[1])


@dataclass(frozen=True)
class LogMelPreprocess(AudioPreprocess):
    """Log-mel spectrograms of windows that follow on each other: each frame of a clip is in one of them."""

    window: float = 1.0
    hop: float = 1.0
    mels: int = 64

    def spec(self) -> dict[str, Any]:
        mel = {"mels": self.mels, "scale": "slaney", "norm": "slaney", "low": 0.0, "high": self.rate / 2}
        return {**super().spec(), "mel": {**mel, "power": 2, "log": "e", "floor": LogMel.FLOOR, "formula": 1}}

    def device(self) -> nn.Module:
        return LogMel(self, self.mels, self.rate / 2)
