"""One set of photos in every form that a source may have: the same features, through kills and changes.

    python scripts/check_sources.py PHOTOS [-b tiny] [--weights DEFAULT] [--forms folder,csv,...]

PHOTOS is a folder SPLIT/CLASS/FILE, such as hymenoptera. For each form: extracted into a new file; extracted by a
process of its own that is killed (SIGKILL) in the middle and run again; and brought up to date after one photo was
added, one edited and one deleted. Prints a row for each form, and exits with 1 where features, labels or splits are
not those of the folder, or a resumed or updated file is not as a fresh one, bit for bit. Arrays are decoded already, so
they are compared with a folder of the same pixels as PNG files. The S3 forms lie in a real server on loopback, which
the script starts. A further form is one function and one line in FORMS.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from precompute import extract, open_cache
from precompute.cache import Cache

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
listings: Any = importlib.import_module("listings")
hub_files: Any = importlib.import_module("hub_files")
object_store: Any = importlib.import_module("object_store")

PIXELS = 256  # edge of the pictures of an array, which all have one size
KILL_FROM, TRIES, BATCH = 24, 20, 8
SAMPLES = ("id", "size", "mtime_ns", "digest", "status", "label", "split")


@dataclass(frozen=True)
class Written:
    """What `extract` is given for a form: SOURCE and arguments."""

    source: str
    options: dict[str, Any] = field(default_factory=dict)


def as_folder(photos: Path, place: Path) -> Written:
    del place
    return Written(str(photos))


def as_listing(ending: str) -> Callable[[Path, Path], Written]:
    def write(photos: Path, place: Path) -> Written:
        path = listings.write_listing(place / f"all.{ending}", listings.rows_of_folder(photos))
        return Written(str(path), {"root": str(photos)})

    return write


def as_shards(photos: Path, place: Path) -> Written:
    """Of 64 photos, `train-000.tar`, with a `.cls` beside each photo."""
    shutil.rmtree(place / "shards", ignore_errors=True)
    (place / "shards").mkdir()
    for split in sorted(path for path in photos.iterdir() if path.is_dir()):
        files = sorted(path for path in split.glob("*/*") if path.name[0] != ".")
        for number, start in enumerate(range(0, len(files), 64)):
            with tarfile.open(place / "shards" / f"{split.name}-{number:03}.tar", "w") as tar:
                for path in files[start : start + 64]:
                    label = place / "label"
                    label.write_text(path.parent.name)
                    key = f"{path.parent.name}/{path.name.replace('.', '-')}"  # a sample's name ends at its first dot
                    tar.add(label, f"{key}.cls")
                    tar.add(path, key + path.suffix)
    return Written(str(place / "shards/*.tar"))


def as_arrays(photos: Path, place: Path) -> Written:
    rows = listings.rows_of_folder(photos)
    images = [np.asarray(Image.open(photos / row["path"]).convert("RGB")) for row in rows]
    columns: dict[str, Any] = {
        name: np.array([row[of] for row in rows]) for name, of in (("id", "path"), ("label",) * 2, ("split",) * 2)
    }
    np.savez(place / "all.npz", images=np.stack(images), **columns)
    return Written(str(place / "all.npz"))


def as_hub(form: str) -> Callable[[Path, Path], Written]:
    def write(photos: Path, place: Path) -> Written:
        return Written(str(hub_files.write_form(form, place, photos)))

    return write


class ObjectStore:
    """Forms that lie in a bucket of a server, which runs until the script ends."""

    def __init__(self) -> None:
        self._server: Any = None
        self._buckets: dict[Path, tuple[Any, dict[str, bytes]]] = {}

    def holds(self, form: Callable[[Path, Path], Written] | None) -> Callable[[Path, Path], Written]:
        """form: writes below its place what then lies in the bucket beside the photos; None for the photos alone."""

        def write(photos: Path, place: Path) -> Written:
            written = Written(str(photos)) if form is None else form(photos, place)
            bucket, there = self._bucket(place)
            now = {
                path.relative_to(place).as_posix(): path.read_bytes()
                for top in (photos, place / "shards", *place.glob("all.*"))
                for path in ([top] if top.is_file() else sorted(top.rglob("*")))
                if path.is_file()
            }
            for name in there.keys() - now.keys():
                bucket.delete(name)
                del there[name]
            for name, data in now.items():
                if there.get(name) != data:  # what stays as it is keeps its stamps
                    bucket.put(name, data)
                    there[name] = data
            moved = {name: value.replace(str(place), bucket.url) for name, value in written.options.items()}
            return Written(written.source.replace(str(place), bucket.url), moved)

        return write

    def _bucket(self, place: Path) -> tuple[Any, dict[str, bytes]]:
        if self._server is None:
            self._server = object_store.Server(place / "server")
            atexit.register(self._server.stop)
            os.environ.update(self._server.environment)
        if place not in self._buckets:
            self._buckets[place] = object_store.Bucket(self._server, f"bucket-{len(self._buckets)}"), {}
        return self._buckets[place]


STORE = ObjectStore()
FORMS: dict[str, Callable[[Path, Path], Written]] = {
    "folder": as_folder,
    "csv": as_listing("csv"),
    "parquet": as_listing("parquet"),
    "file list": as_listing("txt"),
    "tar shards": as_shards,
    "hf save_to_disk": as_hub("saved"),
    "hf parquet folder": as_hub("hub"),
    "hf parquet file": as_hub("table"),
    "s3 prefix": STORE.holds(None),
    "s3 csv": STORE.holds(as_listing("csv")),
    "s3 shards": STORE.holds(as_shards),
    "npz": as_arrays,
}
DECODED, UNLABELLED = ("npz",), ("file list",)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("-b", "--backbone", default="tiny")
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--forms", default=",".join(FORMS))
    options = parser.parse_args(arguments)
    good = True
    print(
        f"{'form':18} {'rows':>5} {'as the folder':>14} {'killed at':>10} {'resumed':>8} {'changed':>9} {'updated':>8}"
    )
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder), options.photos, {"backbone": options.backbone, "weights": options.weights})
        for form in options.forms.split(","):
            row = check.row(form)
            good = good and all(value is not False for value in row)
            shown = [
                {True: "equal", False: "DIFFERS"}.get(value, value) if isinstance(value, bool) else value
                for value in row
            ]
            print("{:18} {:>5} {:>14} {:>10} {:>8} {:>9} {:>8}".format(form, *shown), flush=True)
    return 0 if good else 1


class Check:
    """The photos as they are and as PNG files of one size, each before and after the changes."""

    def __init__(self, place: Path, photos: Path, how: dict[str, Any]) -> None:
        self.place, self.how = place, {**how, "batch_size": BATCH}
        self.sets: dict[bool, tuple[Path, Path]] = {}
        for decoded in (False, True):
            before, after = place / f"before-{decoded}", place / f"after-{decoded}"
            copy(photos, before, decoded=decoded)
            shutil.copytree(before, after)
            change(after)
            self.sets[decoded] = before, after

    def row(self, form: str) -> tuple[int, bool, int, bool, str, bool]:
        """Rows, whether they are the folder's, rows done when killed, whether resumed, changed and updated right."""
        place = self.place / form
        place.mkdir()
        photos, decoded = place / "photos", form in DECODED
        before, after = self.sets[decoded]
        shutil.copytree(before, photos)
        written = FORMS[form](photos, place)
        fresh = self.made(written, place / "fresh.h5")
        equal = rows_of(fresh, form) == rows_of(self.made(Written(str(before)), place / "folder.h5"), form)
        killed = self.kill(written, place / "a.h5")
        resumed = extract(written.source, place / "a.h5", **self.how, **written.options)
        whole = resumed.reused == killed and same(open_cache(place / "a.h5"), fresh)
        shutil.rmtree(photos)
        shutil.copytree(after, photos)
        written = FORMS[form](photos, place)
        updated = extract(written.source, place / "a.h5", **self.how, **written.options)
        now = self.made(written, place / "now.h5")
        right = same(open_cache(place / "a.h5"), now) and updated.computed == 2
        right = right and rows_of(now, form) == rows_of(self.made(Written(str(after)), place / "after.h5"), form)
        return len(fresh), equal, killed, whole, f"{updated.computed} of {len(now)}", right

    def made(self, written: Written, out: Path) -> Cache:
        extract(written.source, out, **self.how, **written.options)
        return open_cache(out)

    def kill(self, written: Written, out: Path) -> int:
        """Rows that a process had done when it was killed; one that was too quick is run again."""
        options = [text for name, value in written.options.items() for text in (f"--{name}", value)]
        command = [sys.executable, "-m", "precompute", "extract", written.source, *options, "-o", out]
        command += ["-b", self.how["backbone"], "--weights", self.how["weights"], "--batch-size", str(BATCH)]
        partial = out.with_name(f"{out.name}.partial")
        for _ in range(TRIES):
            process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and rows_done(partial) < KILL_FROM:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            if process.wait() == -signal.SIGKILL and not out.exists() and (done := rows_done(partial)):
                return done
            if process.returncode not in (0, -signal.SIGKILL):
                break
            out.unlink(missing_ok=True)
        raise SystemExit(f"{written.source}: it could not be killed in the middle")


def copy(photos: Path, place: Path, *, decoded: bool) -> None:
    """Photos in SPLIT/CLASS; decoded: as PNG files of PIXELS in both directions."""
    for path in sorted(path for path in photos.glob("*/*/*") if path.name[0] != "."):
        there = place / path.relative_to(photos)
        there.parent.mkdir(parents=True, exist_ok=True)
        if decoded:
            with Image.open(path) as image:
                image.convert("RGB").resize((PIXELS, PIXELS)).save(there.with_suffix(".png"), compress_level=1)
        else:
            shutil.copy2(path, there)


def change(photos: Path) -> None:
    """Add one photo, edit one, delete one."""
    paths = sorted(path for path in photos.glob("*/*/*"))
    with Image.open(paths[0]) as image:
        turned = image.convert("RGB").transpose(Image.Transpose.ROTATE_180)
        mirrored = image.convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned.save(paths[0].with_name(f"new{paths[0].suffix}"))
    mirrored.save(paths[1])  # another photo's place
    os.unlink(paths[-1])


def rows_done(path: Path) -> int:
    return int(open_cache(path).ok.sum()) if path.exists() else 0


def rows_of(cache: Cache, form: str) -> dict[object, tuple[bytes, str | None, str | None]]:
    """Features, class and split by the SHA-256 of the photo, or for decoded ones by their id."""
    features, split = cache.features(), cache.split
    keys = cache.ids if form in DECODED else [bytes(digest) for digest in cache.column("samples/digest")]
    found: dict[object, tuple[bytes, str | None, str | None]] = {}
    for row, key in enumerate(keys):
        label = int(cache.labels[row])
        told = (None, None) if form in UNLABELLED else (cache.classes[label] if label >= 0 else None, str(split[row]))
        found[key] = (features[row].tobytes(), *told)
    return found


def same(one: Cache, other: Cache) -> bool:
    """Every row and every column, bit for bit; of stamps those that a source has."""
    columns = [f"samples/{name}" for name in SAMPLES]
    alike = all(np.array_equal(one.column(name), other.column(name)) for name in columns)
    return alike and one.classes == other.classes and one.features().tobytes() == other.features().tobytes()


if __name__ == "__main__":
    sys.exit(main())
