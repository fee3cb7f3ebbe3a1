"""Where tails run."""

from __future__ import annotations

from precompute.engines.devices import check_device
from precompute.engines.machine import Machine


def device_of(asked: str) -> str:
    """`asked`, or for "auto" CUDA where it is there, else the CPU. Raises DeviceError for one that cannot be used."""
    if asked == "auto":
        return "cuda" if Machine.here().cuda else "cpu"
    check_device(asked)
    return asked
