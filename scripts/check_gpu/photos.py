"""Section: the JPEGs that all later sections read, no two with the same bytes."""

from __future__ import annotations

from pathlib import Path

from check_gpu.running import Report
from check_gpu.settings import Settings

SIZES = ((500, 375), (375, 500), (500, 333), (500, 400))


def measure(settings: Settings, report: Report) -> None:
    from bench_extract import copy_distinct

    count = wanted(settings)
    if settings.photos is None:
        originals = make(Path(settings.place, "made"), 8 if settings.quick else 64)
        report.row("photos", value=f"made here, {len(SIZES)} sizes of about 500x375, since no --photos was given")
    else:
        originals = Path(settings.photos)
        if not any(path.suffix.lower() in (".jpg", ".jpeg") for path in originals.rglob("*")):
            raise FileNotFoundError(f"there is no JPEG below {originals}")
        report.row("photos", value=str(originals))
    copy_distinct(originals, Path(settings.source), count)
    sizes = [path.stat().st_size for path in Path(settings.source).rglob("*.jpg")]
    report.row(
        "copies", value=f"{len(sizes):,} with different bytes, {sum(sizes) / len(sizes) / 1024:.0f} KiB on average"
    )


def wanted(settings: Settings) -> int:
    """How many JPEGs the largest measurement reads."""
    if settings.images is not None:
        return settings.images
    if settings.quick:
        return 96
    return max(1024, min(8192, 512 * settings.cores)) if settings.cuda else 400


def make(folder: Path, count: int) -> Path:
    """`count` JPEGs with structure at all scales, about as many bytes a pixel as a photo has."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        pixels = np.zeros((height, width, 3))
        for cells, strength in ((3, 70), (12, 35), (48, 20), (160, 12)):
            coarse = generator.uniform(-1, 1, (cells, cells, 3))
            layers = [
                Image.fromarray(coarse[:, :, band].astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
                for band in range(3)
            ]
            pixels += strength * np.stack([np.asarray(layer) for layer in layers], axis=2)
        pixels += 128 + generator.normal(0, 4, pixels.shape)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number:03}.jpg", quality=90)
    return folder
