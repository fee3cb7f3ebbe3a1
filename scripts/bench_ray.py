"""What the executor of Ray costs: one actor on one node beside the local executor, in turn.

    python scripts/bench_ray.py PHOTOS [--backbone resnet50] [--limit 2000] [--rounds 3]

Both compute the same rows with the same engine, into new files, after a first run of each that is not counted. Prints
of each run the time of the whole call, in which an actor starts, and the seconds for all rows at the rate between the
first and the last block; medians of these, their ratio (aim: at most 1.1), and whether all columns are equal.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from precompute import extract, open_cache
from precompute.extraction.executors.base import Executor
from precompute.extraction.executors.local import LocalExecutor
from precompute.extraction.executors.ray import RayExecutor
from precompute.system import cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, RayExecutor(workers=cores()) as ray:
        made = {"local": Path(folder, "local.h5"), "ray": Path(folder, "ray.h5")}
        executors: dict[str, Executor] = {"local": LocalExecutor(), "ray": ray}
        times: dict[str, list[float]] = {name: [] for name in executors}
        for number in range(asked.rounds + 1):
            for name, executor in executors.items():
                run = _run(asked, made[name], executor)
                seconds, words = run()
                if number:
                    times[name].append(seconds)
                print(f"{number or 'warm-up'} {name}: {seconds:.2f} s; {words}", flush=True)
        medians = {name: statistics.median(found) for name, found in times.items()}
        print(f"medians: {medians}; ray / local = {medians['ray'] / medians['local']:.3f}")
        print("columns that differ:", _different(made["local"], made["ray"]) or "none")


def _run(asked: argparse.Namespace, out: Path, executor: Executor) -> Callable[[], tuple[float, str]]:
    def run() -> tuple[float, str]:
        seen: list[tuple[float, int]] = []
        began = time.perf_counter()
        made = extract(
            *(asked.photos, out),
            backbone=asked.backbone,
            weights=asked.weights,
            limit=asked.limit,
            executor=executor,
            progress=lambda progress: seen.append((time.perf_counter(), progress.done)),
        )
        whole = time.perf_counter() - began
        (first, before), (last, after) = seen[0], seen[-1]
        seconds = (last - first) * after / (after - before)
        words = f"{whole:.2f} s in all, {made.computed} computed, {made.engine} {made.precision}"
        return seconds, f"{words}; {made.stages.words if made.stages else ''}"

    out.unlink(missing_ok=True)
    return run


def _different(one: Path, other: Path) -> list[str]:
    ours, theirs = open_cache(one), open_cache(other)
    names = sorted(set(ours.layout.columns) - {"provenance"})
    return [name for name in names if ours.column(name).tobytes() != theirs.column(name).tobytes()]


if __name__ == "__main__":
    main()
