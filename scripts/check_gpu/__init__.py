"""Check and measure precompute on a GPU: what `scripts/check_gpu.sh` runs.

Each section runs in a process of its own with a time limit, so that one that crashes, hangs or spoils its CUDA context
costs the others nothing. What it has measured by then is kept.
"""
