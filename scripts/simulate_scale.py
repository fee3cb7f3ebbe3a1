"""The real driver of `--executor ray`, its real object store and file, and actors that only take their time.

    python scripts/simulate_scale.py [--actors 1,2,5,10,25,50,100] [--seconds 10] [--rate 2500] [--profile ACTORS]

A stand-in for an actor on a GPU sleeps for as long as `look` and `compute` would take there, and gives back features of
the right size: --rate images a second through the network, --reading a second from storage, rows of 2,048 floats.
Many of them live in a few processes (--hosts), since a hundred with torch would not fit into one machine; to the driver
each is an actor with calls and results of its own. Blocks are those of a long run (--rows), which is stopped after
--seconds. The table has, of the time after the first 2 seconds,

    offered    images/s that the stand-ins could do
    got        images/s that were written into the file
    main us    processor time of the driver's main thread for each image: 1e6 / this is the most that it could do with a
               core of its own
    driver us  of all threads of the driver
    store us   of Ray's own process, which holds the object store
    actors us  of the stand-ins' processes: on a cluster this is spread over the nodes

Everything runs on this machine, so that driver, store and stand-ins share its cores, which a cluster's do not.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from precompute import extract
from precompute.errors import Stopped
from precompute.extraction.executors.ray import RayExecutor
from precompute.extraction.executors.ray_actor import ActorSettings, Computed, Ready, digest_of
from precompute.extraction.executors.ray_cluster import ray_library
from precompute.extraction.executors.ray_flow import MOST_BATCHES
from precompute.extraction.executors.ray_pool import RayPool
from precompute.extraction.pipeline import Block, Decoded
from precompute.extraction.provenance import LIBRARIES
from precompute.extraction.timing import StageClock
from precompute.sources.base import Raw, Source, Table
from precompute.system import version_of

BATCH = 64
WIDTH = 2048  # numbers of a row
WARM_UP = 2.0  # seconds that are not counted
STOP = 15  # SIGTERM, as if a user had
STORE_BYTES = 3 * 10**9  # of this machine's object store: all that 100 actors may have under way
SPREAD = 0x9E3779B97F4A7C15  # odd, so that no two rows fall together
TEMPLATE = vars(Decoded(0, b"", 100_000, 0, read_seconds=1e-4, decode_seconds=5e-3))
STAGES = StageClock(on_cpu=False).stages()


@dataclass(frozen=True)
class Times:
    """Of a stand-in. rate: images/s through its network, decoding beside it · reading: images/s from storage."""

    rate: float
    reading: float


class NamedRows(Source):
    """So many samples, whose bytes are their number."""

    def __init__(self, rows: int) -> None:
        self.name = f"{rows} stand-ins for images"
        ids = np.char.mod("row/%09d", np.arange(rows)).astype("S13")
        none = np.full(rows, -1, dtype=np.int32)
        sizes, zeros = np.full(rows, 100_000, dtype=np.int64), np.zeros(rows, dtype=np.int64)
        self.table = Table(ids, sizes, zeros, none, np.zeros(rows, dtype=np.uint8), ())

    def read(self, row: int) -> Raw:
        """See `Source`."""
        return Raw(b"%d" % row, 100_000, 0)


def network() -> nn.Module:
    """What says how wide a row is; it never runs."""
    return nn.Sequential(nn.Conv2d(3, WIDTH, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 2))


class StandIn:
    """One actor: the methods of `RowActor` that the driver calls.

    features: of a batch, one array for each of a block, so that none is sent once for several; given for any samples.
    """

    def __init__(self, times: Times, features: Sequence[NDArray[np.float32]]) -> None:
        self._times, self._features = times, features
        self._gpu, self._disk = threading.Lock(), threading.Lock()

    def ready(self, source: Source, backbone: Any, rows: list[int]) -> Ready:
        """It computes what all others do."""
        names = (*LIBRARIES, *backbone.family.packages)
        versions = {name: version_of(name) or "not installed" for name in names}
        return Ready("stand-in", "stand-in", versions, {row: digest_of(source, row) for row in rows}, None)

    def look(self, rows: NDArray[np.int64], run: int) -> list[Decoded]:  # noqa: ARG002
        """Names for their bytes, after the time that reading takes."""
        with self._disk:
            time.sleep(len(rows) / self._times.reading)
        return [_decoded(row) for row in rows.tolist()]

    def compute(self, rows: NDArray[np.int64], forget: Any, kept: Any, run: int, looked: bool) -> Computed:  # noqa: ARG002
        """Features, after the time that the network takes."""
        with self._gpu:
            time.sleep(len(rows) / self._times.rate)
        blocks = []
        for number, start in enumerate(range(0, len(rows), BATCH)):
            decoded = [_decoded(row) for row in rows[start : start + BATCH].tolist()]
            blocks.append(Block(decoded, (self._features[number][: len(decoded)],)))
        return Computed(blocks, stages=STAGES)

    def forget(self, rows: Any) -> None:
        """See `RowActor`."""

    def halt(self, run: int) -> None:
        """See `RowActor`."""


def _decoded(row: int) -> Decoded:
    """With a digest that no other row has, and that is spread like one; without what its constructor takes."""
    made = object.__new__(Decoded)
    digest = (row * SPREAD % 2**64).to_bytes(8, "little") * 4
    made.__dict__.update(TEMPLATE, row=row, digest=digest)
    return made


class Host:
    """A process in which many stand-ins live, each with threads of its own."""

    def __init__(self, times: Times, many: int) -> None:
        values = np.random.default_rng(0)
        features = [values.standard_normal((BATCH, WIDTH), dtype=np.float32) for _ in range(MOST_BATCHES)]
        self._standing = [StandIn(times, features) for _ in range(many)]

    def call(self, number: int, method: str, *given: Any) -> Any:
        """A method of one of them."""
        return getattr(self._standing[number], method)(*given)

    def processor_seconds(self) -> float:
        """What this process has used."""
        return time.process_time()


@dataclass(frozen=True)
class Handle:
    """What the driver takes for an actor: each attribute is a method with `remote`."""

    host: Any
    number: int

    def __getattr__(self, method: str) -> Method:
        return Method(self, method)


@dataclass(frozen=True)
class Method:
    """One of them."""

    handle: Handle
    name: str

    def options(self, **_: Any) -> Method:
        """Of Ray; none matters here."""
        return self

    def remote(self, *given: Any) -> Any:
        """Call it."""
        return self.handle.host.call.remote(self.handle.number, self.name, *given)


def pool_of(hosts: list[Any], handles: list[Handle]) -> type[RayPool]:
    """A pool whose actors are stand-ins."""

    class StandInPool(RayPool):
        def launch(self, settings: ActorSettings, node: str, cores: int, gpu: float) -> Any:  # noqa: ARG002
            handles.append(Handle(hosts[len(handles) % len(hosts)], len(handles) // len(hosts)))
            return handles[-1]

        def kill(self, handle: Any) -> None:
            """The host stays."""

    return StandInPool


@dataclass
class Seen:
    """The run so far, each time rows were written: wall, rows, processor seconds of the main thread and of all."""

    rows: list[tuple[float, int, float, float]]
    hosts: list[float]
    store: list[float]


def measure(actors: int, asked: argparse.Namespace, folder: Path, profile: cProfile.Profile | None) -> dict[str, float]:
    """One line of the table."""
    ray = ray_library()
    times = Times(asked.rate, asked.reading)
    ray.init(
        num_cpus=2,
        num_gpus=actors,
        object_store_memory=asked.store,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=str(folder / "ray"),
    )
    many = min(actors, asked.hosts)
    each = -(-actors // many)
    host = ray.remote(num_cpus=0, max_concurrency=8 * each)(Host)
    hosts = [host.remote(times, each) for _ in range(many)]
    ray.get([one.processor_seconds.remote() for one in hosts])
    seen = Seen([], [], [])

    def outside() -> None:
        seen.hosts.append(sum(ray.get([one.processor_seconds.remote() for one in hosts])))
        seen.store.append(_children_seconds("raylet"))

    def progress(done: Any) -> None:
        now = time.perf_counter()
        if not seen.rows or (len(seen.hosts) == 0 and now - seen.rows[0][0] > WARM_UP):
            if seen.rows:
                outside()
                if profile is not None:
                    profile.enable()
                now = time.perf_counter()
            seen.rows.append((now, done.done, time.thread_time(), time.process_time()))
        if not stop():
            last[:] = [(now, done.done, time.thread_time(), time.process_time())]

    def stop() -> int:
        over = seen.rows and time.perf_counter() - seen.rows[0][0] > asked.seconds + WARM_UP
        if over and len(seen.hosts) == 1:
            outside()
        return STOP if over else 0

    last: list[tuple[float, int, float, float]] = []
    out = folder / "out.h5"
    executor = RayExecutor()
    executor.pool = pool_of(hosts, [])
    try:
        extract(
            *(NamedRows(asked.rows), out),
            backbone="simulate_scale:network",
            engine="torch",
            precision="fp32",
            dtype="float16",
            compile="off",
            batch_size=BATCH,
            executor=executor,
            progress=progress,
            stop=stop,
        )
    except Stopped:
        if profile is not None:
            profile.disable()
    finally:
        executor.close()
        ray.shutdown()
    for path in folder.glob("out.h5*"):
        path.unlink()
    (began, first, main, process), (ended, end, main_end, process_end) = seen.rows[1], last[0]
    rows = end - first
    return {
        "actors": actors,
        "offered": actors * asked.rate,
        "got": rows / (ended - began),
        "main us": 1e6 * (main_end - main) / rows,
        "driver us": 1e6 * (process_end - process) / rows,
        "store us": 1e6 * (seen.store[1] - seen.store[0]) / rows,
        "actors us": 1e6 * (seen.hosts[1] - seen.hosts[0]) / rows,
    }


def _children_seconds(name: str) -> float:
    """Processor seconds of the processes of this name that this one has started."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = path.read_text().partition(f"({name}) ")
        except OSError:
            continue
        words = rest.split()
        if words and int(words[1]) == os.getpid():
            ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _line(values: Iterable[float]) -> str:
    shown = (f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}" for value in values)
    return f"| {' | '.join(shown)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", default="1,2,5,10,25,50,100")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=2500.0)
    parser.add_argument("--reading", type=float, default=8000.0)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--store", type=int, default=STORE_BYTES, help="Bytes of the object store.")
    parser.add_argument("--folder", help="Where the file is written.  [default: a temporary one]")
    parser.add_argument("--profile", type=int, help="Print where the main thread's time goes with so many actors.")
    asked = parser.parse_args()
    here = str(Path(__file__).resolve().parent)
    sys.path.insert(0, here)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    header = None
    for actors in map(int, asked.actors.split(",")):
        profile = cProfile.Profile() if asked.profile == actors else None
        with tempfile.TemporaryDirectory(prefix="pre-", dir=asked.folder) as folder:
            found = measure(actors, asked, Path(folder), profile)
        if header is None:
            header = " | ".join(found)
            print(f"| {header} |\n|{'---:|' * len(found)}")
        print(_line(found.values()), flush=True)
        if profile is not None:
            pstats.Stats(profile).sort_stats("tottime").print_stats(28)


if __name__ == "__main__":
    main()
