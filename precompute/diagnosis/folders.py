"""Folders that precompute and its libraries keep things in, and limits of the system."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from precompute.diagnosis.finding import NOTE, OK, PROBLEM, Finding
from precompute.errors import PrecomputeError

GIB = 2**30
LITTLE_SPACE = 2 * GIB
FEW_FILES = 1024
MOST_COUNTED = 20_000  # entries of a folder that are looked at for its size


def kept() -> Iterator[Finding]:
    """The caches of precompute, torch and the hub, and the folder for temporary files."""
    from precompute.engines.model_cache import folder as compiled

    home = os.path.expanduser("~")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    torch = os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")
    hub = os.environ.get("HF_HUB_CACHE") or os.path.join(
        os.environ.get("HF_HOME") or os.path.join(cache, "huggingface"), "hub"
    )
    yield _kept("compiled models", compiled(), "$XDG_CACHE_HOME")
    yield _kept("weights of torchvision", Path(torch, "hub", "checkpoints"), "$TORCH_HOME")
    yield _kept("weights of the hub", Path(hub), "$HF_HOME")  # timm's, open_clip's and transformers'
    try:
        place = tempfile.gettempdir()
    except OSError as error:
        yield Finding("folders", "temporary files", PROBLEM, f"no folder can be written: {error}", "Set TMPDIR to one.")
        return
    yield _kept("temporary files", Path(place), "$TMPDIR", counted=False)


def _kept(name: str, place: Path, variable: str, *, counted: bool = True) -> Finding:
    """A folder that is made when it is needed."""
    there = next((one for one in (place, *place.parents) if one.is_dir()), Path("/"))
    free = shutil.disk_usage(there).free
    files, size = _held(place) if counted else (0, 0)
    details = {"path": str(place), "exists": place.is_dir(), "files": files, "bytes": size, "free": free}
    held = f"{files:,} files, {size / GIB:.2f} GiB; " if files else "nothing in it; " if counted else ""
    text = f"{place}: {held}{free / GIB:.1f} GiB are free"
    if not os.access(there, os.W_OK):
        hint = f"Without it the same work is done each time. Set {variable} to a folder that can be written."
        return Finding("folders", name, NOTE, f"{text}; it cannot be written", hint, details)
    if free < LITTLE_SPACE:
        return Finding("folders", name, NOTE, text, f"Make room there, or set {variable} to a larger disk.", details)
    return Finding("folders", name, OK, text, details=details)


def _held(place: Path) -> tuple[int, int]:
    """Files and bytes below a folder, links not followed; of a very large one the first entries."""
    files = size = seen = 0
    for folder, _, names in os.walk(place):
        for name in names:
            seen += 1
            if seen > MOST_COUNTED:
                return files, size
            try:
                status = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            if not os.path.islink(os.path.join(folder, name)):
                files, size = files + 1, size + status.st_size
    return files, size


def limits() -> Iterator[Finding]:
    """Open files, and the memory that processes share."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    details: dict[str, Any] = {"soft": soft, "hard": hard}
    if 0 <= soft < FEW_FILES:
        hint = f"Allow more for many --workers: ulimit -n {min(4096, hard) if hard >= 0 else 4096}"
        yield Finding("system", "open files", NOTE, f"{soft:,} at most", hint, details)
    else:
        yield Finding("system", "open files", OK, f"{soft:,} at most" if soft >= 0 else "no limit", details=details)
    nameless = hasattr(os, "memfd_create")
    size = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None
    words = "memory without a name" if nameless else f"files in {tempfile.gettempdir()} that are deleted at once"
    of_libraries = f"; /dev/shm, which other libraries take, has {size / GIB:.2f} GiB" if size is not None else ""
    details = {"nameless": nameless, "dev_shm": size}
    yield Finding("system", "shared memory", OK, f"--executor processes takes {words}{of_libraries}", details=details)


def output(folder: str) -> Iterator[Finding]:
    """Whether a feature file can be written in `folder`: lock, reservation, HDF5 and rename are tried in it."""
    place = Path(folder)
    if place.is_file() or (place.suffix == ".h5" and not place.is_dir()):
        place = place.absolute().parent  # of a feature file that is there, or will be
    name = "output"
    if not place.is_dir():
        yield Finding("folders", name, PROBLEM, f"{place} is no folder", f"Make it: mkdir -p {place}")
        return
    free = shutil.disk_usage(place).free
    details = {"path": str(place), "free": free}
    try:
        with tempfile.TemporaryDirectory(prefix=".precompute-doctor-", dir=place) as inside:
            words = _tried(os.path.join(inside, "a.h5"))
    except PrecomputeError as error:
        yield Finding("folders", name, PROBLEM, error.message, error.hint, details)
        return
    except OSError as error:
        text = f"{place}: a feature file cannot be written there: {error.strerror or error}"
        yield Finding("folders", name, PROBLEM, text, "Choose another folder, or request the right to write.", details)
        return
    text = f"{place}: {words}; {free / GIB:.1f} GiB are free"
    if free < LITTLE_SPACE:
        yield Finding("folders", name, NOTE, text, "See `precompute plan` for the bytes that a file takes.", details)
    else:
        yield Finding("folders", name, OK, text, details=details)


def _tried(path: str) -> str:
    """Do what a run does with its output. Raises OSError and CacheError."""
    import h5py

    from precompute.cache.lock import WriteLock
    from precompute.system import reserve, sync, write_at

    with WriteLock(path):
        with open(path + ".partial", "wb") as file:
            reserve(file.fileno(), 4096)
            write_at(file.fileno(), b"\0" * 4096, 0)
            sync(file.fileno())
        os.replace(path + ".partial", path)
    with h5py.File(path, "w") as made:
        made["a"] = [1, 2, 3]
    with h5py.File(path, "r") as found, open(path, "rb") as other:
        whole = found["a"][()].tolist() == [1, 2, 3]
        try:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return f"can be written; HDF5's locking does not work ({error.strerror}): set HDF5_USE_FILE_LOCKING=FALSE"
    if not whole:
        raise OSError("the written bytes are not read back")
    return "can be written, with lock, reservation and rename"
