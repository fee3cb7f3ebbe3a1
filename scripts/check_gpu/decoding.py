"""Section: JPEG to pixels, by precompute's threads and by processes, and by torchvision's decoder on the device."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from check_gpu.running import Report
from check_gpu.settings import Settings

if TYPE_CHECKING:
    import torch

    from precompute.inputs.images.preprocess import ImagePreprocess
    from precompute.inputs.images.transform import Transform
    from precompute.sources.folder import FolderSource

IMAGES_A_WORKER = 256
COMPARED = 48
CHUNK = 8
UPRIGHT = (None, 1)
_shared: dict[str, Any] = {}  # what forked workers find


def measure(settings: Settings, report: Report) -> None:
    import torch

    from precompute.inputs.images.formats import IMAGES
    from precompute.inputs.images.preprocess import ImagePreprocess
    from precompute.inputs.images.transform import Transform
    from precompute.sources.folder import list_folder

    source, preprocess = list_folder(settings.source, IMAGES), ImagePreprocess(Transform())
    # Processes first: they are forked, and threads of OpenMP do not survive that
    for way, rate in (("processes", _processes), ("threads", _threads)):
        for workers in worker_counts(settings.cores):
            count = min(len(source), (32 if settings.quick else IMAGES_A_WORKER) * workers)
            if report.enough(f"{way} {workers}", 2):
                with report.attempt(f"{way} {workers}"):
                    _row(report, way, workers, count, *rate(source, preprocess, workers, count))
    if report.enough("on the device", 3):
        with report.attempt("on the device"):
            _on_device(source, preprocess, settings, report)
    if settings.cuda and report.enough("threads, nvjpeg", 3):
        with report.attempt("threads, nvjpeg"):
            there = ImagePreprocess(Transform(decoder="nvjpeg"))
            for workers in sorted({settings.cores, 4 * settings.cores}):  # most of them wait for the device
                count = min(len(source), IMAGES_A_WORKER * settings.cores)
                with there.session():
                    _row(report, "threads, nvjpeg", workers, count, *_threads(source, there, workers, count))
    if report.enough("threads, torch with one thread each", 2):
        count = min(len(source), IMAGES_A_WORKER * settings.cores)
        torch.set_num_threads(1)
        seconds, cpu = _threads(source, preprocess, settings.cores, count)
        _row(report, "threads, torch with one thread each", settings.cores, count, seconds, cpu)


def worker_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and all of them."""
    return sorted({*(2**power for power in range(cores.bit_length()) if 2**power <= cores), cores})


def _row(report: Report, way: str, workers: int, count: int, seconds: float, cpu: float) -> None:
    report.row(
        way,
        workers=workers,
        images=count,
        images_per_s=round(count / seconds, 1),
        cpu_ms_per_image=round(1e3 * cpu / count, 2),
    )


def _threads(source: FolderSource, preprocess: ImagePreprocess, workers: int, count: int) -> tuple[float, float]:
    """(seconds, processor seconds) of precompute's own way: threads that share this interpreter."""
    from precompute.extraction.pipeline import read

    def one(row: int) -> bool:
        return read(source, row, preprocess, None).tensors is not None

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, range(min(count, 2 * workers))))
        wall, cpu = time.perf_counter(), time.process_time()
        good = sum(pool.map(one, range(count)))
        seconds = time.perf_counter() - wall, time.process_time() - cpu
    _check(good, count)
    return seconds


def _processes(source: FolderSource, preprocess: ImagePreprocess, workers: int, count: int) -> tuple[float, float]:
    """The same by forked processes, which write the pixels into memory that all share."""
    size = 3 * preprocess.transform.crop**2
    memory = mmap.mmap(-1, count * size)
    _shared.update(source=source, preprocess=preprocess, memory=memory, size=size)
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    try:
        with multiprocessing.get_context("fork").Pool(workers, initializer=_one_thread) as pool:
            pool.map(_decode_chunk, chunks[: 2 * workers], chunksize=1)
            wall = time.perf_counter()
            done = list(pool.imap_unordered(_decode_chunk, chunks))
            seconds = time.perf_counter() - wall
    finally:
        _shared.clear()
    _check(sum(good for good, _ in done), count)
    return seconds, sum(cpu for _, cpu in done)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _decode_chunk(rows: range) -> tuple[int, float]:
    """(images written to the shared memory, processor seconds)."""
    from precompute.extraction.pipeline import read

    began, good, size = time.process_time(), 0, _shared["size"]
    for row in rows:
        tensors = read(_shared["source"], row, _shared["preprocess"], None).tensors
        if tensors is not None:
            _shared["memory"][row * size : (row + 1) * size] = tensors[0].contiguous().numpy().data.cast("B")
            good += 1
    return good, time.process_time() - began


def _check(good: int, count: int) -> None:
    if good != count:
        raise RuntimeError(f"{count - good} of {count} images could not be decoded")


def _on_device(source: FolderSource, preprocess: ImagePreprocess, settings: Settings, report: Report) -> None:
    import torch

    paths = [Path(os.fsdecode(source.path(row))) for row in range(len(source))]
    rows = [row for row, path in enumerate(paths[: 2 * COMPARED]) if _upright(path)][:COMPARED]
    _differences(source, rows, preprocess, settings, report)
    batch = 16 if settings.quick else 256
    data = [_bytes(path) for path in paths[:batch]]
    for size in sorted({batch // 4, batch}):
        if report.enough(f"torchvision batch {size}", 2):
            with report.attempt(f"torchvision batch {size}"):
                _device_rates(data[:size], preprocess.transform, settings, report)
    if settings.cuda:
        torch.cuda.empty_cache()


def _device_rates(data: list[torch.Tensor], transform: Transform, settings: Settings, report: Report) -> None:
    import torch

    for way in ("decode", "decode and resize"):

        def run(way: str = way) -> None:
            for picture in _decoded(data, settings):
                if way != "decode":
                    _resized(picture, transform)
            if settings.cuda:
                torch.cuda.synchronize()

        run()
        seconds = []
        for _ in range(3):
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
        wall, cpu = sorted(seconds)[1]
        _row(report, f"torchvision on {settings.device}, {way}, batch {len(data)}", 1, len(data), wall, cpu)


def _decoded(data: list[torch.Tensor], settings: Settings) -> list[torch.Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg

    pictures: list[torch.Tensor] = decode_jpeg(data, mode=ImageReadMode.RGB, device=settings.device)
    return pictures


def _resized(picture: torch.Tensor, transform: Transform) -> torch.Tensor:
    """(3, crop, crop) uint8 on the picture's device, by torchvision's own resize."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    method = InterpolationMode(transform.interpolation)
    resized = functional.resize(picture, [transform.resize], interpolation=method, antialias=True)
    cropped: torch.Tensor = functional.center_crop(resized, [transform.crop, transform.crop])
    return cropped


def _differences(
    source: FolderSource, rows: list[int], preprocess: ImagePreprocess, settings: Settings, report: Report
) -> None:
    """Grey levels between the device's pixels and ours: of the whole picture, and after resizing either way."""
    import numpy as np
    import torch
    from PIL import Image

    from precompute.extraction.pipeline import read

    transform, paths = preprocess.transform, [Path(os.fsdecode(source.path(row))) for row in rows]
    pairs: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for row, path, picture in zip(rows, paths, _decoded([_bytes(path) for path in paths], settings), strict=True):
        whole = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)
        tensors = read(source, row, preprocess, None).tensors
        assert tensors is not None  # as the rates above have shown
        ours = tensors[0].permute(2, 0, 1)
        pairs.setdefault("before resizing", []).append((picture.cpu(), whole))
        pairs.setdefault("after our resizing", []).append((transform.apply_tensor(picture.cpu()), ours))
        pairs.setdefault("after resizing on the device", []).append((_resized(picture, transform).cpu(), ours))
    for way, compared in pairs.items():
        levels = torch.cat([(one.int() - other.int()).abs().flatten() for one, other in compared])
        report.row(
            f"difference {way}",
            images=len(compared),
            max_levels=int(levels.max()),
            mean_levels=round(float(levels.double().mean()), 4),
            share_above_1=round(float((levels > 1).double().mean()), 5),
        )


def _bytes(path: Path) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)


def _upright(path: Path) -> bool:
    from PIL import ExifTags, Image

    with Image.open(path) as image:
        return image.getexif().get(ExifTags.Base.Orientation) in UPRIGHT
