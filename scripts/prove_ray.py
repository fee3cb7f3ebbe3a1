"""What the executor of Ray promises, tried at length on clusters of processes on this machine.

    python scripts/prove_ray.py kills [--rows 2500] [--every 5]
    python scripts/prove_ray.py memory [--rows 20000 --rows 200000]

kills: four nodes compute SqueezeNet. Every few seconds a node dies and another joins, and in between the process of an
actor that is in the middle of a block; after a third of the rows the command itself. All of that by SIGKILL; then the
command is run again. The file must be that of the local executor, and what was computed twice no more than what was
under way.

memory: the largest memory of the command and of all object stores, while so many rows go through a network that costs
nothing, on two nodes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from precompute import load_backbone, open_cache
from precompute.extraction.executors.ray_flow import LEAST_BLOCKS, MOST_BATCHES, UNDER_WAY

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))
counted: Any = import_module("counted")
ray_clusters: Any = import_module("ray_clusters")

NODES, BATCH = 4, 8
SIDE = 144


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    proofs = parser.add_subparsers(dest="proof", required=True)
    one = proofs.add_parser("kills")
    one.add_argument("--rows", type=int, default=2500)
    one.add_argument("--every", type=float, default=5.0, help="seconds")
    other = proofs.add_parser("memory")
    other.add_argument("--rows", type=int, action="append")
    asked = parser.parse_args()
    os.environ.update({"PRECOMPUTE_ENGINE": "torch", "PRECOMPUTE_PRECISION": "fp32", "OMP_NUM_THREADS": "1"})
    os.environ["PYTHONPATH"] = os.pathsep.join((str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")))
    with tempfile.TemporaryDirectory() as folder:
        if asked.proof == "kills":
            kills(Path(folder), asked.rows, asked.every)
        else:
            for rows in asked.rows or (20_000, 200_000):
                memory(Path(folder), rows)


def command(source: Path, out: Path, executor: str, *more: str) -> list[str]:
    options = ["--resize", str(SIDE), "--crop", str(SIDE), "--executor", executor, "-o", str(out), "--json", *more]
    return [sys.executable, "-m", "precompute", "extract", str(source), *options]


def kills(folder: Path, rows: int, every: float) -> None:
    photos, log = folder / "photos", folder / "counted"
    make_photos(photos, rows)
    network = ("-b", "counted:squeezenet", "--batch-size", str(BATCH))
    os.environ[counted.VARIABLE] = str(folder / "counted-here")
    load_backbone("counted:squeezenet", transform={"resize": SIDE, "crop": SIDE})
    examples = set(counted.times(folder / "counted-here"))
    began = time.monotonic()
    subprocess.run(command(photos, folder / "local.h5", "local", *network), check=True, capture_output=True)
    print(f"local: {time.monotonic() - began:.0f} s, {counted.times(folder / 'counted-here').total():,} computed")
    log.touch()
    os.environ[counted.VARIABLE] = str(log)
    with ray_clusters.cluster() as made:
        ray_clusters.add(made, NODES)
        os.environ["RAY_ADDRESS"] = made.address
        line = command(photos, folder / "ray.h5", "ray", *network)
        killer, began = Killer(made, log, every), time.monotonic()
        status, _ = killer.watch(line, rows / 3)
        print(f"the command: {time.monotonic() - began:.0f} s, exit status {status}")
        status, result = killer.watch(line, math.inf)
        print(f"run again: {time.monotonic() - began:.0f} s in all, exit status {status}")
    lost = killer.nodes + killer.actors
    block = BATCH * max(1, min(MOST_BATCHES, rows // (NODES * LEAST_BLOCKS * BATCH)))
    bound = UNDER_WAY * block * (lost + NODES)
    samples = set(counted.times(folder / "counted-here", besides=examples))
    found = counted.times(log, besides=examples)
    twice = found.total() - len(found)
    print(f"killed: {killer.nodes} nodes, {killer.actors} actors, 1 command")
    print(f"rows: {rows:,}; kept by the first run {result['reused']:,}, computed by the second {result['computed']:,}")
    print(f"in all computed {found.total():,}, twice {twice:,}, under way when killed at most {bound:,}")
    different = differences(folder / "local.h5", folder / "ray.h5")
    print("columns that differ:", ", ".join(different) or "none")
    held = result["reused"] + result["computed"]
    if different or held != rows or twice > bound or set(found) != samples:
        raise SystemExit("It does not hold.")


class Killer:
    """Kills nodes and actors. log: what `counted` writes."""

    def __init__(self, cluster: Any, log: Path, every: float) -> None:
        self._cluster, self._log, self._every = cluster, log, every
        self.nodes = self.actors = 0

    def watch(self, line: list[str], most: float) -> tuple[int, dict[str, Any]]:
        """Run a command and kill meanwhile, at last the command itself, once so many inputs have been computed.

        Its exit status, and what it says.
        """
        with tempfile.TemporaryFile("w+") as said:
            driver = subprocess.Popen(line, stdout=said)
            at = time.monotonic() + self._every / 2
            turns = itertools.cycle((self._kill_actor, self._kill_node))
            while driver.poll() is None:
                time.sleep(0.05)
                actors = counted.processes(self._log, besides=driver.pid)  # which computes an example
                if len(actors) >= most:
                    driver.kill()
                elif actors and time.monotonic() > at:
                    at += self._every / 2
                    next(turns)(actors[-1])
            said.seek(0)
            text = said.read()
        return driver.returncode, json.loads(text) if text else {}

    def _kill_node(self, _: int) -> None:
        oldest = self._cluster.list_all_nodes()[1]  # behind the head
        self._cluster.remove_node(oldest, allow_graceful=False)
        self.nodes += 1
        node = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": ray_clusters.STORE}
        self._cluster.add_node(wait=False, **node)  # which would wait until the other is known to be dead

    def _kill_actor(self, last: int) -> None:
        """That which has just computed a batch, so that it is most likely within a block."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(last, signal.SIGKILL)
            self.actors += 1


def memory(folder: Path, rows: int) -> None:
    images = folder / f"{rows}.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8))
    with ray_clusters.cluster() as made:
        ray_clusters.add(made, 2)
        os.environ["RAY_ADDRESS"] = made.address
        import_module("ray").init(made.address, log_to_driver=False)
        summary = import_module("ray._private.internal_api").memory_summary
        network = ("-b", "counted:means", "--batch-size", "32")
        out = folder / f"{rows}.h5"
        began = time.monotonic()
        driver = subprocess.Popen(command(images, out, "ray", *network), stdout=subprocess.PIPE, text=True)
        held, stores = 0, 0.0
        while driver.poll() is None:
            with contextlib.suppress(OSError):
                held = max(held, bytes_of(driver.pid, "RssAnon"))
            found = re.findall(r"Plasma memory usage ([\d.]+) MiB", summary(made.address, stats_only=True))
            stores = max(stores, *map(float, found))
            time.sleep(0.1)
        assert driver.stdout is not None
        result = json.loads(driver.stdout.read())
    print(
        f"{rows:,} rows: {result['computed']:,} computed in {time.monotonic() - began:.0f} s; "
        f"the command at most {held / 2**20:.0f} MiB of its own, all object stores together {stores:.1f} MiB",
        flush=True,
    )


def bytes_of(process: int, field: str) -> int:
    """Bytes."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def make_photos(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"class{number % 4}"
        place.mkdir(parents=True, exist_ok=True)
        values = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(values).resize((SIDE, SIDE)).save(place / f"{number:06d}.jpg")


def differences(one: Path, other: Path) -> list[str]:
    """Names of columns, but for the records of runs."""
    ours, theirs = open_cache(one), open_cache(other)
    names = sorted({*ours.layout.columns, *theirs.layout.columns} - {"provenance"})
    return [name for name in names if ours.column(name).tobytes() != theirs.column(name).tobytes()]


if __name__ == "__main__":
    main()
