"""The first import of torchvision, without torch's compiler.

`torchvision.ops` asks `torch._dynamo.utils` for one function, which only detection networks call, and so every start
pays for the whole of torch.compile: 0.9 of 2.8 s (torch 2.14). While torchvision is imported, a stand-in for that
module gives a function that finds the real one when it is called. Nothing else is changed, and nothing at all where
either is there already.

A module that imports torchvision at its top imports this one first.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo.utils"


class _StandIn(ModuleType):
    """`torch._dynamo.utils` while torchvision is imported; whatever else is asked of it is the real one's."""

    def is_compile_supported(self, device_type: str) -> bool:
        return bool(_real().is_compile_supported(device_type))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks of any module
            raise AttributeError(name)
        return getattr(_real(), name)


def _real() -> Any:
    if isinstance(sys.modules.get(COMPILER), _StandIn):
        del sys.modules[COMPILER]
    return importlib.import_module(COMPILER)


def import_torchvision() -> None:
    """Import torchvision; see the module."""
    import torch  # noqa: F401  before the stand-in: it must find its own module

    if "torchvision" in sys.modules or COMPILER in sys.modules:
        return
    stand_in = sys.modules[COMPILER] = _StandIn(COMPILER)
    try:
        import torchvision  # noqa: F401
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]


import_torchvision()
