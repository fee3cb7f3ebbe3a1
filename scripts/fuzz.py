"""Feed mutated caches, heads, images or weights to the code that reads them, and look for what must never happen.

    python scripts/fuzz.py cache --number 20000 --seed 7

A case is known by seed and number alone, whatever ran before it and in how many processes: `--first 4711 --number 1`
runs one again. Each worker is a process of its own, which says which case it is at, so that a crash, a hang
(10 seconds) or more than 1 GiB of memory is a failure with its number, and its file is kept. The last line on stdout
is one JSON object; the exit status is 1 where anything failed.

What must hold. cache: refused with a CacheFormatError, or every row that `verify` calls good is the original one, byte
for byte, name and label included. head: HeadFormatError, or the same arrays. image: ImageError, or a tensor of the
right shape. weights: WeightsError, or a state dict whose every byte can be read.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import mmap
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from make_hostile import checked_blocks, lookup3, make_cache, make_heads, make_pictures, make_weights

SECONDS = 10.0
"""A case that takes longer counts as a hang."""
MEMORY = 2**30
MARGIN = 3 * 2**30  # of address space above what a worker starts with: a runaway ends there, not with the machine
OUT_OF_MEMORY = 77  # exit status of a worker that a case made too big to go on
SAVE_EVERY = 500
PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "hymenoptera"
INTERESTING = (0, 1, 2, 127, 128, 255, 4096, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


class WrongError(Exception):
    """What must never happen has happened."""


class Target(ABC):
    """One kind of file. Mutates a known good one, and judges what its reader makes of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "mutated"

    @abstractmethod
    def mutate(self, rng: random.Random) -> None:
        """Put the mutated file at `path`."""

    @abstractmethod
    def check(self) -> str:
        """ "opened", or the reason why it was refused. Raises WrongError, or whatever the reader let through."""

    def restore(self) -> None:  # noqa: B027 - most targets write the whole file each time
        """Undo `mutate`."""


def interesting(rng: random.Random) -> bytes:
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(INTERESTING) if rng.random() < 0.8 else rng.getrandbits(64)
    value %= 1 << 8 * width
    return value.to_bytes(width, "little" if rng.random() < 0.5 else "big")


def edited(data: bytes, place: int, rng: random.Random) -> bytes:
    """What to write at `place`: a bit, a byte, a number that often breaks things, or bytes from elsewhere in `data`."""
    kind = rng.random()
    if kind < 0.25:
        return bytes([data[place] ^ 1 << rng.randrange(8)])
    if kind < 0.45:
        return bytes([rng.randrange(256)])
    if kind < 0.55:
        return bytes([(data[place] + rng.choice((-1, 1))) % 256])
    if kind < 0.85:
        return interesting(rng)
    start = rng.randrange(len(data))
    return data[start : start + rng.randrange(1, 40)]


def scrambled(data: bytes, rng: random.Random, *, others: Sequence[bytes] = ()) -> bytes:
    """`data` with one to five edits, among them cuts, repetitions and pieces of other files; most near its ends."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        if not result:
            break
        near = rng.random()
        low, high = (0, 256) if near < 0.45 else (len(result) - 160, len(result)) if near < 0.6 else (0, len(result))
        place = rng.randrange(max(0, low), min(len(result), high))
        kind = rng.random()
        if kind < 0.8:
            new = edited(bytes(result[: place + 1]), place, rng)
            result[place : place + len(new)] = new
        elif kind < 0.85:
            del result[place:]
        elif kind < 0.9:
            del result[place : place + rng.randrange(1, 64)]
        elif kind < 0.95:
            start = rng.randrange(len(result))
            result[place:place] = result[start : start + rng.randrange(1, 200)]
        elif others:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            result[place:] = other[start:]
    return bytes(result)


class CacheTarget(Target):
    """Edits a small cache in place, and mends libhdf5's own checksums so that edits of its structure get past them."""

    def __init__(self, folder: Path) -> None:
        from precompute.cache import open_cache, verify

        super().__init__(folder)
        self.path.unlink(missing_ok=True)  # of a worker that crashed
        make_cache(self.path)
        self.base = self.path.read_bytes()
        self.blocks = checked_blocks(self.base)
        cache = open_cache(self.path)
        if not verify(cache, workers=1).whole:
            raise WrongError("the file to mutate is not whole")
        self.columns = [column for column in cache.layout.columns.values() if column.name != "provenance"]
        self.expected, self.spec = self.described(cache), cache.spec
        self.descriptor = os.open(self.path, os.O_RDWR)
        self.touched: list[tuple[int, int]] = []
        self.cut = False

    @staticmethod
    def described(cache: Any) -> list[tuple[Any, ...]]:
        """All that is known of each row."""
        classes = (*cache.classes, None)
        columns = [cache.column(f"samples/{name}") for name in ("digest", "size", "mtime_ns", "status")]
        features = [(layer, cache.features(layer)) for layer in cache.layers]
        named = zip(cache.ids, cache.labels.tolist(), cache.split.tolist(), strict=True)
        return [
            (
                identity,
                classes[label],
                split,
                *(column[row].tobytes() for column in columns),
                *((layer, array.shape[1:], array.dtype.str, array[row].tobytes()) for layer, array in features),
            )
            for row, (identity, label, split) in enumerate(named)
        ]

    def write(self, place: int, data: bytes) -> None:
        data = data[: len(self.base) - place]
        os.pwrite(self.descriptor, data, place)
        self.touched.append((place, len(data)))

    def mutate(self, rng: random.Random) -> None:
        mended = set()
        for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
            kind = rng.random()
            if kind < 0.6:
                block = rng.choice(self.blocks)
                start, length = block
                place = start + rng.randrange(length)
                data = self.base[start : start + length]
                self.write(place, edited(data, place - start, rng)[: start + length - place])
                if kind < 0.55:
                    mended.add(block)
            elif kind < 0.93:
                self.change_column(rng)
            elif kind < 0.97:
                place = rng.randrange(len(self.base))
                self.write(place, edited(self.base, place, rng))
            else:
                os.ftruncate(self.descriptor, rng.randrange(len(self.base) + 1))
                self.cut = True
                return
        for start, length in sorted(mended):
            self.write(start + length, struct.pack("<I", lookup3(os.pread(self.descriptor, length, start))))

    def change_column(self, rng: random.Random) -> None:
        column = rng.choice(self.columns)
        if not column.nbytes:
            return
        data = self.base[column.offset : column.offset + column.nbytes]
        place = rng.randrange(len(data))
        if rng.random() < 0.6:
            self.write(column.offset + place, edited(data, place, rng)[: len(data) - place])
            return
        first, second = (rng.randrange(column.shape[0]) * column.row_bytes for _ in range(2))
        self.write(column.offset + first, data[second : second + column.row_bytes])
        if rng.random() < 0.5:
            self.write(column.offset + second, data[first : first + column.row_bytes])

    def check(self) -> str:
        from precompute.cache import open_cache, verify
        from precompute.errors import CacheFormatError

        try:
            cache = open_cache(self.path)
        except CacheFormatError as error:
            return reason(error.message, self.path)
        found = verify(cache, workers=1)
        _ = cache.provenance, cache.ok, repr(cache)
        rows = self.described(cache)
        if len(rows) != len(self.expected) or cache.spec != self.spec:
            raise WrongError(f"{len(rows)} rows instead of {len(self.expected)}, made with {cache.spec}")
        for row in found.good.tolist():
            if rows[row] != self.expected[row]:
                raise WrongError(f"row {row} is called good: {rows[row]} instead of {self.expected[row]}")
        return "opened" if found.whole else "opened, some rows damaged"

    def restore(self) -> None:
        if self.cut:
            size = os.fstat(self.descriptor).st_size
            os.pwrite(self.descriptor, self.base[size:], size)
            self.cut = False
        for place, length in self.touched:
            os.pwrite(self.descriptor, self.base[place : place + length], place)
        self.touched.clear()


class HeadTarget(Target):
    """Half of the files are damaged; half are forged, with a digest that is right."""

    def __init__(self, folder: Path) -> None:
        from precompute.heads import load_head

        super().__init__(folder)
        self.bases = []
        for path in make_heads(folder):
            saved = load_head(path)
            self.bases.append((path.read_bytes(), self.arrays(saved.head), saved.metadata))
        self.forged = False
        self.base = self.bases[0]

    @staticmethod
    def arrays(head: Any) -> dict[str, Any]:
        names = ("coef_", "intercept_", "mean_", "scale_", "weights_", "biases_", "classes_")
        return {
            name: [np.asarray(part).tobytes() for part in value] if isinstance(value, list) else value.tobytes()
            for name in names
            if (value := getattr(head, name, None)) is not None
        }

    def mutate(self, rng: random.Random) -> None:
        from precompute.heads import _headfile as headfile

        self.base = rng.choice(self.bases)
        data = scrambled(self.base[0], rng)
        self.forged = rng.random() < 0.5
        if self.forged:
            import hashlib

            length = int.from_bytes(self.base[0][:8], "little")
            text = scrambled(self.base[0][8 : 8 + length], rng) if rng.random() < 0.8 else data[8 : 8 + length]
            data = len(text).to_bytes(8, "little") + text + data[8 + length :]
            blank = headfile.DIGEST.sub(f'"digest":"{headfile.NO_DIGEST}"'.encode(), text)
            digest = hashlib.sha256(data[:8] + blank + data[8 + len(text) :]).hexdigest()
            text = headfile.DIGEST.sub(f'"digest":"{digest}"'.encode(), text)
            data = data[:8] + text + data[8 + len(text) :]
        self.path.write_bytes(data)

    def check(self) -> str:
        from precompute.errors import HeadFormatError
        from precompute.heads import load_head

        try:
            saved = load_head(self.path)
        except HeadFormatError as error:
            return reason(error.message, self.path)
        if not self.forged:
            if self.arrays(saved.head) != self.base[1] or saved.metadata != self.base[2]:
                raise WrongError("other arrays or metadata than in the original")
            return "opened"
        features = np.zeros((2, saved.head.n_features_in_), dtype=np.float32)
        with np.errstate(all="ignore"):  # what a forger writes may overflow; it must not break anything
            if saved.head.predict(features).shape != (2,):
                raise WrongError("a forged head that does not predict")
        return "opened, forged"


class ImageTarget(Target):
    """Small pictures of every format, and a few real photos where they are there."""

    def __init__(self, folder: Path) -> None:
        from precompute.transform import Transform

        super().__init__(folder)
        self.bases = list(make_pictures().values())
        photos = [path for path in PHOTOS.rglob("*") if path.suffix in (".jpg", ".jpeg", ".gif")]
        smallest = sorted(photos, key=lambda path: (path.stat().st_size, path.name))
        self.bases += [path.read_bytes() for path in smallest[:8]]
        self.transform = Transform(resize=20, crop=16)
        for data in self.bases:
            self.data = data
            if self.check() != "opened":
                raise WrongError("a picture to mutate does not decode")

    def mutate(self, rng: random.Random) -> None:
        self.data = scrambled(rng.choice(self.bases), rng, others=self.bases)
        if self.data.startswith(b"\x89PNG") and rng.random() < 0.8:
            self.data = with_right_sums(self.data)

    def check(self) -> str:
        import torch

        from precompute.cache import Status
        from precompute.decode import decode
        from precompute.errors import ImageError

        try:
            pixels = decode(self.data, self.transform)
        except ImageError as error:
            if error.reason not in Status.__members__ or not error.message:
                raise WrongError(f"the reason {error.reason!r}, the message {error.message!r}") from error
            return error.reason
        if tuple(pixels.shape) != (3, 16, 16) or pixels.dtype != torch.uint8:
            raise WrongError(f"{tuple(pixels.shape)} {pixels.dtype}")
        return "opened"


def with_right_sums(data: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have."""
    result, place = bytearray(data), 8
    while place + 12 <= len(result):
        end = place + 8 + int.from_bytes(result[place : place + 4], "big")
        if end + 4 > len(result):
            break
        result[end : end + 4] = zlib.crc32(result[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(result)


class WeightsTarget(Target):
    """Checkpoints of both of torch's formats, whose pickles are edited behind right checksums, and safetensors."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        paths = make_weights(folder)
        self.bases = [(path.suffix, path.read_bytes()) for path in paths]
        for path in paths:
            self.path = path
            if self.check() != "opened":  # the first load also imports much, which is not to count as a case's memory
                raise WrongError(f"{self.path} is to be mutated, and does not load")

    def mutate(self, rng: random.Random) -> None:
        suffix, data = rng.choice(self.bases)
        if zipfile.is_zipfile(io.BytesIO(data)) and rng.random() < 0.7:
            data = self.rewritten(data, rng)
        elif suffix == ".safetensors" and rng.random() < 0.7:
            length = int.from_bytes(data[:8], "little")
            text = scrambled(data[8 : 8 + length], rng)
            data = len(text).to_bytes(8, "little") + text + data[8 + length :]
        else:
            data = scrambled(data, rng)
        self.path = self.folder / f"mutated{suffix}"
        self.path.write_bytes(data)

    @staticmethod
    def rewritten(data: bytes, rng: random.Random) -> bytes:
        result = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as new:
            for name in old.namelist():
                spoilt = name.endswith("data.pkl") or rng.random() < 0.05
                new.writestr(zipfile.ZipInfo(name), scrambled(old.read(name), rng) if spoilt else old.read(name))
        return result.getvalue()

    def check(self) -> str:
        from precompute.errors import WeightsError
        from precompute.weights import digest_of, load_file

        try:
            state = load_file(str(self.path))
        except WeightsError as error:
            return reason(error.message, self.path)
        digest_of(state)  # reads every byte that the tensors claim to have
        return "opened"


TARGETS: dict[str, type[Target]] = {
    "cache": CacheTarget,
    "head": HeadTarget,
    "image": ImageTarget,
    "weights": WeightsTarget,
}


def reason(message: str, path: Path) -> str:
    """The message without what is different each time. It must name the file."""
    if str(path) not in message:
        raise WrongError(f"a message that does not name the file: {message}")
    text = message.replace(repr(str(path)), "").replace(str(path), "").split(" (")[0]
    text = re.sub(r"GLOBAL .*|\(.*|'[^']*'|`[^`]*`|\b[\d,]+\b", "", text)
    return " ".join(text.split())[:70]


def case(seed: int, number: int) -> random.Random:
    return random.Random(f"{seed}/{number}")


# In the worker


def work(target: str, folder: Path, seed: int, first: int, stop: int, step: int) -> int:
    """Run the cases `first`, `first + step`, ... below `stop`."""
    from precompute.decode import quiet_pillow

    log = open(folder / "crash", "w")  # noqa: SIM115 - open for as long as the process lives
    faulthandler.enable(log)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and others write there whatever they meet
    sys.stderr = log
    fuzz = TARGETS[target](folder)
    with open(folder / "at", "r+b") as file:
        at = mmap.mmap(file.fileno(), 8)
    outcomes: Counter[str] = Counter()
    before = peak_memory()
    limit = address_space() + MARGIN
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with quiet_pillow():
        for done, number in enumerate(range(first, stop, step)):
            struct.pack_into("<q", at, 0, number)
            fuzz.mutate(case(seed, number))
            try:
                outcomes[fuzz.check()] += 1
            except Exception as error:  # noqa: BLE001 - whatever comes out is a finding
                outcomes["wrong"] += 1
                report(folder, number, f"{type(error).__name__}: {error}"[:500])
            fuzz.restore()
            if peak_memory() - before > MEMORY:
                report(folder, number, f"took {(peak_memory() - before) >> 20} MiB")
                save(folder, outcomes)
                return OUT_OF_MEMORY
            if done % SAVE_EVERY == 0:
                save(folder, outcomes)
    save(folder, outcomes)
    struct.pack_into("<q", at, 0, stop)
    return 0


def report(folder: Path, number: int, what: str) -> None:
    with open(folder / "failures", "a") as file:
        file.write(json.dumps([number, what]) + "\n")


def save(folder: Path, outcomes: Counter[str]) -> None:
    (folder / "outcomes.new").write_text(json.dumps(outcomes))
    (folder / "outcomes.new").replace(folder / "outcomes")


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


# In the process that watches


class Worker:
    """A worker's process, its place in the row of cases, and what it has found."""

    def __init__(self, target: str, folder: Path, seed: int, first: int, stop: int, step: int) -> None:
        self.target, self.folder, self.seed, self.stop, self.step = target, folder, seed, stop, step
        self.outcomes: Counter[str] = Counter()
        self.failures: list[tuple[int, str]] = []
        self.finished = False
        folder.mkdir()
        self.start(first)

    def start(self, first: int) -> None:
        (self.folder / "at").write_bytes(struct.pack("<q", -1))
        (self.folder / "outcomes").write_text("{}")
        numbers = (self.seed, first, self.stop, self.step)
        command = [sys.executable, __file__, self.target, "--worker", str(self.folder), *map(str, numbers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        self.at, self.since = -1, time.monotonic()

    def running(self) -> bool:
        """Look at it once; where it died or hangs, write that down and start it again behind that case."""
        if self.finished:
            return False
        status = self.process.poll()
        (at,) = struct.unpack("<q", (self.folder / "at").read_bytes())
        if at != self.at:
            self.at, self.since = at, time.monotonic()
        if status is None and (self.at < 0 or time.monotonic() - self.since < SECONDS):
            return True
        if status is None:
            self.process.kill()
            self.process.wait()
            self.failures.append((at, f"still not done after {SECONDS:.0f} seconds"))
        elif status not in (0, OUT_OF_MEMORY):
            trace = (self.folder / "crash").read_text() if (self.folder / "crash").exists() else ""
            self.failures.append((at, f"the process ended with {status}: {trace[:1500]}"))
        with contextlib.suppress(FileNotFoundError):
            lines = (self.folder / "failures").read_text().splitlines()
            self.failures += [(number, what) for number, what in map(json.loads, lines)]
            (self.folder / "failures").unlink()
        self.outcomes.update(json.loads((self.folder / "outcomes").read_text()))
        if at < 0 or at + self.step >= self.stop:
            self.finished = True
            return False
        self.start(at + self.step)
        return True


def fuzz(target: str, number: int, *, seed: int, first: int, jobs: int, keep: Path, said: IO[str]) -> dict[str, Any]:
    """Run the cases and say what came of them. Files of failures come to lie under `keep`."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="precompute-fuzz-", dir=memory) as folder:
        stop = first + number
        workers = [
            Worker(target, Path(folder, str(job)), seed, first + job, stop, jobs) for job in range(min(jobs, number))
        ]
        try:
            while sum(worker.running() for worker in workers):  # a sum, so that each of them is looked at
                time.sleep(0.1)
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.wait()
        seconds = time.monotonic() - began
        failures = sorted(failure for worker in workers for failure in worker.failures)
        counted = sum(sum(worker.outcomes.values()) for worker in workers)
        if not failures and counted != number:
            failures.append((-1, f"{counted} cases were counted instead of {number}"))
        for which, what in failures:
            print(f"{target} seed {seed} number {which}: {what}", file=said)
        for which in sorted({which for which, _ in failures if which >= 0})[:100]:
            keep.mkdir(parents=True, exist_ok=True)
            scratch = Path(folder, f"again{which}")
            scratch.mkdir()
            shutil.copy(written(TARGETS[target](scratch), case(seed, which)), keep / f"{target}-{seed}-{which}")
    outcomes = sum((worker.outcomes for worker in workers), Counter[str]())
    opened = sum(count for name, count in outcomes.items() if name.startswith("opened"))
    return {
        "target": target,
        "seed": seed,
        "first": first,
        "run": number,
        "opened": opened,
        "refused": sum(outcomes.values()) - opened - outcomes["wrong"],
        "failures": len(failures),
        "seconds": round(seconds, 1),
        "outcomes": dict(outcomes.most_common()),
    }


def written(target: Target, rng: random.Random) -> Path:
    """The file of one case."""
    target.mutate(rng)
    if isinstance(target, ImageTarget):
        target.path.write_bytes(target.data)
    return target.path


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
