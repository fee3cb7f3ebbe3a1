"""Feed mutated caches, heads, images or weights to the code that reads them, and look for what must never happen.

    python scripts/fuzz.py cache --number 20000 --seed 7

A case is known by seed and number alone, whatever ran before it and in how many processes: `--first 4711 --number 1`
runs one again. Each worker is a process of its own, which says which case it is at, so that a crash, a hang
(10 seconds) or more than 1 GiB of memory is a failure with its number, and its file is kept. The last line on stdout
is one JSON object; the exit status is 1 where anything failed.

What must hold. cache, int8: refused with a CacheFormatError, or every row that `verify` calls good is the original one,
byte for byte, name and label included; int8 are files of 8 bits. head: HeadFormatError, or the same arrays. image:
SampleError, or a tensor of the right shape. weights: WeightsError, or a state dict whose every byte can be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fuzzing.cases import TARGETS
from fuzzing.runner import fuzz
from fuzzing.worker import work


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--number", type=int, default=10_000, help="how many cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to go on or to repeat one")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for the files that failed")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        folder, *numbers = options.worker
        return work(options.target, Path(folder), *map(int, numbers))
    result = fuzz(
        options.target,
        options.number,
        seed=options.seed,
        first=options.first,
        jobs=options.jobs,
        keep=options.keep,
        said=sys.stderr,
    )
    print(json.dumps(result))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
