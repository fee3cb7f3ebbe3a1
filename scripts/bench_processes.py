"""Threads against processes that read and decode: images a second, and processor time of the process with the engine.

    python scripts/bench_processes.py [--sides 32,224] [--images 12000] [--rounds 3] [--network 10000]

Writes JPEG files whose short side is that of the network's input (at 224: 256, so that each is resized), and runs the
executors over them with an engine that computes nothing: it copies each batch as the others do and gives zeros. Each
measurement is a process of its own; they take turns, and medians are printed. The clock runs from the first block
after a quarter of the images to the last one, so that neither the start of processes nor what they decoded meanwhile
counts; how long the first block took is printed beside. "Driver" is the processor time, in microseconds an image, of
the process that drives the engine, all of its threads: an upper bound of the time in which it holds the interpreter's
lock. At 32 pixels nearly all of it is that; at 224 threads decode in it too, mostly without the lock, and half of the
rest is copying. "Main" is that of its main thread alone. With `--network N` the engine also takes as long as a network
of N images a second would, asleep, as beside a GPU.

Expected before measuring, on two cores: threads 200 to 300 us of the driver at 32 pixels, and some 4,000 images/s;
processes at most 60 us of the driver, and 1.3 times the images/s of threads (two processes that decode share two cores
with the driver, so nearly all of the gain is the waiting for the lock). At 224 pixels decoding takes 1 to 2 ms, and
both are the same within 5%. A network of 10,000 images/s changes nothing for threads, which never reach that, and
holds processes at no more than that; asleep, it takes nothing from either.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BATCH = 256


def make_pictures(folder: Path, side: int, count: int) -> None:
    """JPEG files of noise that has been smoothed, `side` (at 224: 256) x a third more."""
    random, short = np.random.default_rng(side), side if side < 224 else side * 8 // 7
    folder.mkdir()
    for number in range(count):
        small = Image.fromarray(random.integers(0, 256, (8, 10, 3), dtype=np.uint8))
        picture = small.resize((short * 4 // 3, short), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:06}.jpg", quality=90)


def measure(kind: str, workers: int, folder: str, side: int, network: float) -> None:
    """One run, in this process; prints what it took as JSON."""
    import torch

    from precompute.backbones.load import load_backbone
    from precompute.engines.base import Engine, EngineChoice, buffers_of, fill
    from precompute.engines.choice import Decision
    from precompute.extraction.executors.base import Executor, Work
    from precompute.extraction.executors.local import LocalExecutor
    from precompute.extraction.owners import Owners
    from precompute.inputs.images.preprocess import ImagePreprocess
    from precompute.inputs.images.transform import Transform
    from precompute.inputs.kinds import IMAGE, files_of
    from precompute.sources.registry import open_source

    class Null(Engine):
        """Copies a batch and gives zeros, after as long as a network of so many images a second takes."""

        depth = 2

        def __init__(self, example: tuple[torch.Tensor, ...]) -> None:
            super().__init__(EngineChoice("null", "cpu", "fp32", BATCH))
            self._buffers, self._counts = buffers_of(example, BATCH), list[int]()
            self._ready = 0.0

        def start(self, samples: Any) -> None:
            fill(self._buffers, samples)
            self._counts.append(len(samples))
            if network:
                self._ready = max(self._ready, time.perf_counter()) + len(samples) / network

        def finish(self) -> tuple[Any, ...]:
            count = self._counts.pop(0)
            if network:
                time.sleep(max(0.0, self._ready - len(self._counts) * BATCH / network - time.perf_counter()))
            return (np.zeros((count, 8), np.float32),)

    executor: Executor
    if kind == "processes":
        from precompute.extraction.executors.processes import ProcessExecutor

        executor = ProcessExecutor(workers)
    else:
        executor = LocalExecutor(workers)
    executor.__enter__()  # as a command would, before it loads a network
    backbone = load_backbone("tiny")
    transform = Transform(resize=side if side < 224 else side * 8 // 7, crop=side)
    object.__setattr__(backbone, "preprocess", ImagePreprocess(transform))
    source = open_source(folder, files_of(IMAGE))
    engine = Null(backbone.preprocess.example())
    work = Work(source, backbone, Decision(engine.choice, engine, "float32"))
    owners, seen, started = Owners([], len(source)), 0, time.perf_counter()
    with backbone.preprocess.session():
        blocks = executor.blocks(work, np.arange(len(source)), claim=owners.claim)
        first = len(next(blocks))
        began = time.perf_counter()
        while first < len(source) / 4:
            first += len(next(blocks))
        before = time.perf_counter(), time.process_time(), time.thread_time()
        for block in blocks:
            seen += len(block)
            after = time.perf_counter(), time.process_time(), time.thread_time()
    wall, process, main = (later - earlier for later, earlier in zip(after, before, strict=True))
    executor.close()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert first + seen == len(source)
    print(
        json.dumps(
            {
                "rate": seen / wall,
                "driver": process / seen * 1e6,
                "main": main / seen * 1e6,
                "start": began - started,
                "children": children.ru_utime + children.ru_stime,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sides", default="32,224")
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--network", type=float, default=0.0, help="images a second of a stand-in network")
    parser.add_argument("--kinds", default="threads,processes")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        kind, workers, folder, side, network = given.one
        measure(kind, int(workers), folder, int(side), float(network))
        return
    kinds = given.kinds.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        for side in map(int, given.sides.split(",")):
            folder = Path(temporary) / str(side)
            make_pictures(folder, side, given.images)
            found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
            for _ in range(given.rounds):
                for kind in kinds:
                    one = [sys.executable, __file__, "--one", kind, given.workers, folder, side, given.network]
                    done = subprocess.run(list(map(str, one)), check=True, capture_output=True, text=True)
                    found[kind].append(json.loads(done.stdout.splitlines()[-1]))
            for kind, results in found.items():
                middle = {name: statistics.median(one[name] for one in results) for name in results[0]}
                print(
                    f"{side} pixels, {given.workers} {kind}: {middle['rate']:,.0f} images/s, driver "
                    f"{middle['driver']:.0f} us an image, main {middle['main']:.0f}; first block after "
                    f"{middle['start']:.1f} s, children {middle['children']:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
