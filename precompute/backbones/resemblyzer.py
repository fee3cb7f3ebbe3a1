"""Resemblyzer's voice encoder, `-b resemblyzer --weights FILE`: who speaks, as 256 numbers.

The network of Wan et al. (*Generalized End-to-End Loss for Speaker Verification*, ICASSP 2018) as the package
Resemblyzer (resemble-ai, Apache-2.0) trained it. Its weights are not included: FILE is a .safetensors or .pth file of
the package's `model_state`.
"""

from __future__ import annotations

import torch
from torch import nn

MELS, WIDTH, LAYERS = 40, 256, 3
NORM_FLOOR = 1e-12  # where all values are 0, which ReLU allows


class VoiceEncoder(nn.Module):
    """(B, frames, 40) mel power -> (B, 256): the last state of an LSTM, linear, ReLU, divided by its L2 norm.

    similarity_weight, similarity_bias: of the training's loss; they are in the file of weights and are not used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MELS, WIDTH, num_layers=LAYERS, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.similarity_weight = nn.Parameter(torch.ones(1))
        self.similarity_bias = nn.Parameter(torch.zeros(1))

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        # By the last output, which is the last layer's last state: some engines leave the states themselves out
        states, _ = self.lstm(mel)
        found = torch.relu(self.linear(states[:, -1]))
        return found / (found * found).sum(1, keepdim=True).sqrt().clamp(min=NORM_FLOOR)
