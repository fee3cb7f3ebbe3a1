"""Environment variables that change what precompute and its libraries do."""

from __future__ import annotations

import os
from collections.abc import Iterator

from precompute.diagnosis.finding import OK, Finding
from precompute.system.addresses import without_secrets

VARIABLES = {
    "PRECOMPUTE_ENGINE": "what --engine auto stands for",
    "PRECOMPUTE_PRECISION": "what --precision auto stands for",
    "XDG_CACHE_HOME": "where caches lie",
    "TORCH_HOME": "where torchvision's weights lie",
    "HF_HOME": "where the hub's cache lies",
    "HF_HUB_CACHE": "the hub's cache",
    "HF_HUB_OFFLINE": "whether the hub is asked",
    "HDF5_USE_FILE_LOCKING": "HDF5's own locks",
    "CUDA_VISIBLE_DEVICES": "GPUs that may be seen",
    "OMP_NUM_THREADS": "threads of torch on the CPU",
    "SLURM_CPUS_PER_TASK": "cores of this job",
    "RAY_ADDRESS": "the cluster of --executor ray",
    "TMPDIR": "the folder for temporary files",
}


def known() -> Iterator[Finding]:
    """Those that are set."""
    for name, words in VARIABLES.items():
        if value := os.environ.get(name):
            shown = without_secrets(value)
            yield Finding("variables", name, OK, f"{shown} ({words})", details={"value": shown})
