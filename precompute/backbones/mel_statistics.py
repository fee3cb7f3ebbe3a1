"""The embedded backbone for sound, `-b mel-statistics`: what a clip's log-mel spectrogram is like, over time.

It has no weights and has learnt nothing: for each of 64 mel bands the mean over the clip's frames, their standard
deviation, and that of the changes from each frame to the next. It is there so that the whole road runs with no
download, and as what a backbone that has learnt something should beat. The order of what is heard is lost on it, but
for the changes.
"""

from __future__ import annotations

import torch
from torch import nn

LEAST_VARIANCE = 1e-6  # under the root, whose slope at 0 would be infinite in low precision


class MelStatistics(nn.Module):
    """(B, frames, mels) log-mel and (B, frames) mask of real frames -> (B, 3 * mels).

    First the means, then the standard deviations (divided by n), then the root mean squares of the differences of
    neighbouring frames; all over real frames.
    """

    def forward(self, mel: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        real = mask.unsqueeze(-1)
        mean, deviation = _moments(mel, real)
        both = real[:, 1:] * real[:, :-1]
        changes = (mel[:, 1:] - mel[:, :-1]) * both
        square = (changes * changes).sum(1) / both.sum(1).clamp(min=1.0)
        return torch.cat([mean, deviation, torch.sqrt(square + LEAST_VARIANCE)], dim=1)


def _moments(mel: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation over real frames, (B, mels) each."""
    count = real.sum(1).clamp(min=1.0)
    mean = (mel * real).sum(1) / count
    away = (mel - mean.unsqueeze(1)) * real
    return mean, torch.sqrt((away * away).sum(1) / count + LEAST_VARIANCE)
