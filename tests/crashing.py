"""A source and a preprocessing whose decoder may end its process; light, since each process of an executor loads it.

A sample is four numbers: what happens where it is decoded, and three others.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from precompute.errors import SampleError
from precompute.inputs.base import Preprocess
from precompute.sources.base import Raw, Source, Table

NOTHING, SEGFAULT, KILL, EXIT, KILL_ONCE, SLOW, RAISE = range(7)
SLOW_SECONDS = 0.02


class Numbers(Source):
    """what: (N,) for each sample one of the above."""

    name = "numbers"

    def __init__(self, what: np.ndarray) -> None:
        self._values = np.random.default_rng(0).normal(size=(len(what), 4)).astype(np.float32)
        self._values[:, 0] = what
        self.table = Table(
            ids=np.array([f"row {number:06}".encode() for number in range(len(what))]),
            sizes=np.full(len(what), 16),
            mtimes=np.arange(len(what)),
            labels=np.zeros(len(what), dtype=np.int32),
            splits=np.zeros(len(what), dtype=np.uint8),
            classes=(b"a",),
        )

    def read(self, row: int) -> Raw:
        return Raw(self._values[row].tobytes(), 16, int(self.table.mtimes[row]))


class Crashing(Preprocess):
    """The three others, repeated. width: of the network's input."""

    modality = "numbers"

    def __init__(self, width: int = 12) -> None:
        self._width = width

    def spec(self) -> dict[str, Any]:
        return {"modality": self.modality}

    def host(self, raw: bytes, view: int = 0) -> tuple[torch.Tensor, ...]:
        values = torch.frombuffer(bytearray(raw), dtype=torch.float32)
        what = int(values[0])
        if "CRASHING" in os.environ:  # only where the test wants it
            happen(what, Path(os.environ["CRASHING"]) / raw[4:].hex())
        return (values[1:].repeat(self._width // 3 + 1)[: self._width],)

    def example(self) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(self._width),)

    def device(self) -> nn.Module:
        return nn.Identity()


def happen(what: int, once: Path) -> None:
    if what == SEGFAULT:
        ctypes.string_at(0)
    elif what == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == EXIT:
        os._exit(3)
    elif what == KILL_ONCE and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == SLOW:
        time.sleep(SLOW_SECONDS)
    elif what == RAISE:
        raise SampleError("it says so", reason="UNDECODABLE")


def make_network() -> tuple[nn.Module, Preprocess]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), Crashing()
