"""What a run leaves behind about itself: never part of the key."""

from __future__ import annotations

import os
import platform
import socket
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from precompute.backbones import Backbone
from precompute.engine import EngineChoice
from precompute.guard import Trial

LIBRARIES = ("precompute", "torch", "torchvision", "openvino", "pillow", "h5py", "numpy")


def run_record(choice: EngineChoice, trials: list[Trial], model: Backbone, root: bytes) -> dict[str, Any]:
    """JSON-ready: when, where, with what and from what the rows were made, and how well the engine proved itself."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "engine": choice.engine,
        "device": choice.device,
        "precision": choice.precision,
        "batch_size": choice.batch_size,
        "compiled": choice.compiled,
        "guard": [trial.to_dict() for trial in trials],
        "chosen": choice.why,
        "weights": model.source,
        "notes": list(model.notes),
        "source": os.fsdecode(os.path.abspath(root)),
        "versions": {name: _version(name) for name in LIBRARIES},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
