"""What the executor of Ray costs: one actor on one node beside the local executor, in turn.

    python scripts/bench_ray.py [PHOTOS] [--backbone resnet50] [--limit 2000] [--rounds 5]

Both compute the same rows with the same engine, into new files, after a first run of each that is not counted. Prints
of each run the seconds from the first read to the last row written, without those in which the actor starts, which
stand beside them as do those of the whole call; medians, their ratio (aim: at most 1.1), and whether all columns are
equal. PHOTOS: by default those of flowers beside the repository, see tests/conftest.py.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from precompute import extract, open_cache
from precompute.extraction.executors.base import Executor, Work
from precompute.extraction.executors.local import LocalExecutor
from precompute.extraction.executors.ray import RayExecutor
from precompute.extraction.executors.ray_pool import RayPool
from precompute.system import cores

PHOTOS = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "flowers_small" / "flowers"


class Timed(RayExecutor):
    """start: seconds in which actors started, so far."""

    start = 0.0

    def _pool_for(self, work: Work, stop: Callable[[], object] | None) -> RayPool:
        began = time.perf_counter()
        try:
            return super()._pool_for(work, stop)
        finally:
            self.start += time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="?", default=str(PHOTOS))
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Timed(workers=cores()) as ray:
        made = {"local": Path(folder, "local.h5"), "ray": Path(folder, "ray.h5")}
        executors: dict[str, Executor] = {"local": LocalExecutor(), "ray": ray}
        times: dict[str, list[float]] = {name: [] for name in executors}
        for number in range(asked.rounds + 1):
            for name, executor in executors.items():
                seconds, words = _run(asked, made[name], executor)
                if number:
                    times[name].append(seconds)
                print(f"{number or 'warm-up'} {name}: {seconds:.2f} s; {words}", flush=True)
        medians = {name: statistics.median(found) for name, found in times.items()}
        words = ", ".join(f"{name} {median:.2f} s" for name, median in medians.items())
        print(f"medians: {words}; ray / local = {medians['ray'] / medians['local']:.3f}")
        print("columns that differ:", ", ".join(_different(made["local"], made["ray"])) or "none")


def _run(asked: argparse.Namespace, out: Path, executor: Executor) -> tuple[float, str]:
    out.unlink(missing_ok=True)
    before = executor.start if isinstance(executor, Timed) else 0.0
    options = {"backbone": asked.backbone, "weights": asked.weights, "limit": asked.limit}
    began = time.perf_counter()
    made = extract(asked.photos, out, executor=executor, **options)
    whole = time.perf_counter() - began
    start = executor.start - before if isinstance(executor, Timed) else 0.0
    words = f"the actor's start {start:.2f} s, {whole:.2f} s in all, {made.computed} computed"
    words += f" with {made.engine} in {made.precision}"
    return made.forward_seconds - start, f"{words}; {made.stages.words if made.stages else ''}"


def _different(one: Path, other: Path) -> list[str]:
    ours, theirs = open_cache(one), open_cache(other)
    names = sorted(set(ours.layout.columns) - {"provenance"})
    return [name for name in names if ours.column(name).tobytes() != theirs.column(name).tobytes()]


if __name__ == "__main__":
    main()
