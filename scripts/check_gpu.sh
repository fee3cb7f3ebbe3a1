#!/usr/bin/env bash
# Check and measure precompute on this machine's GPU, in under 8 minutes, without a network and without installing
# anything: `scripts/check_gpu.sh -o results` (see `--help`). PYTHON names the Python that has torch.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root:$root/scripts${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m check_gpu "$@"
