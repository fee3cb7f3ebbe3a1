"""What a run leaves behind about itself: never part of the key."""

from __future__ import annotations

import platform
import socket
from datetime import UTC, datetime
from typing import Any

from precompute.backbones.load import Backbone
from precompute.engines.choice import Decision
from precompute.system import version_of

LIBRARIES = ("precompute", "torch", "torchvision", "openvino", "pillow", "h5py", "numpy")


def run_record(decision: Decision, model: Backbone, origin: str) -> dict[str, Any]:
    """JSON-ready: when, where, with what and from what the rows were made, and how well the engine proved itself."""
    choice = decision.choice
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
        "guard": [trial.to_dict() for trial in decision.trials],
        "chosen": choice.why,
        "weights": model.source,
        "notes": list(model.notes),
        "source": origin,
        "versions": {name: version_of(name) or "not installed" for name in (*LIBRARIES, *model.family.packages)},
    }
