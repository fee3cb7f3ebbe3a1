"""Section: from JPEG files to the finished cache, in turn with the DataLoader loop of the tutorials."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from check_gpu.inputs import transform_of
from check_gpu.running import Report
from check_gpu.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from precompute import Backbone

ROUNDS = 3
LOOP_BATCH = {"cuda": 256, "cpu": 32}
LOOP_TIMEOUT = 40.0  # seconds without a batch, after which the loop is given up, and not the section
BASE = "DataLoader loop fp32"
EXTRACTS = {
    "precompute processes": ("auto", "processes", "cpu"),
    "precompute threads": ("auto", "local", "cpu"),
    "precompute nvjpeg": ("auto", "local", "nvjpeg"),
    "precompute fp32": ("fp32", "processes", "cpu"),
}
"""Precision, executor and decoder by label."""
LOOPS = {BASE: "fp32", "DataLoader loop bf16": "bf16"}
PROGRAMS = (*EXTRACTS, *LOOPS)


@dataclass
class Run:
    """Seconds of one run, and those in which it read, decoded and computed; features (n, everything)."""

    seconds: float
    features: NDArray[np.float64]
    images: int
    computing: float
    details: dict[str, Any] = field(default_factory=dict)


def measure(settings: Settings, report: Report) -> None:
    for name in settings.backbones:
        if report.enough(name, 15):
            with report.attempt(name):
                _one_network(name, settings, report)


def _one_network(name: str, settings: Settings, report: Report) -> None:
    import torch

    from precompute import load_backbone

    model = load_backbone(name, weights="random:0")
    if settings.cuda:
        torch.zeros(1, device="cuda")  # CUDA's own start is not part of any program
    programs: dict[str, Callable[[int], Run]] = {
        **{label: partial(_extract, name, *how, settings) for label, how in EXTRACTS.items()},
        **{label: partial(_loop, model, precision, settings) for label, precision in LOOPS.items()},
    }
    if not settings.cuda:
        del programs["precompute nvjpeg"]
    programs = {label: run for label, run in programs.items() if label in (settings.programs or PROGRAMS)}
    pilot = {"cuda": 512, "cpu": 32}[settings.device]
    if settings.cuda:  # libraries load their kernels in the first run of all, which is not the first program's fault
        with report.attempt(f"{name} first"):
            next(iter(programs.values()))(pilot)
    first: dict[str, Run] = {}
    for label, program in list(programs.items()):
        if report.enough(f"{name} {label}", 1.5 * max((run.seconds for run in first.values()), default=2.0)):
            with report.attempt(f"{name} {label} pilot"):
                first[label] = program(pilot)
                report.row(f"{name} {label}", what="first run", images=pilot, seconds=round(first[label].seconds, 2))
    programs = {label: program for label, program in programs.items() if label in first}
    if not programs:
        return
    total = sum(run.seconds for run in first.values())
    count = _how_many(settings, report, pilot, total)
    seen: dict[str, list[Run]] = {label: [] for label in programs}
    expected = total * (2 if settings.cuda else count / pilot)
    for number in range(ROUNDS):
        if not report.enough(f"{name} round {number + 1} of {ROUNDS}", expected):
            break
        began = time.perf_counter()
        for label, program in programs.items():
            with report.attempt(f"{name} {label}"):
                seen[label].append(program(count))
        expected = time.perf_counter() - began
    _report(name, seen, first, report)


def _how_many(settings: Settings, report: Report, pilot: int, seconds: float) -> int:
    """Images for each run: all on CUDA, where most of a first run is start-up, else what three rounds have time for."""
    available = sum(len(files) for _, _, files in os.walk(settings.source))
    if settings.cuda:
        return available
    return min(available, max(pilot, int(pilot * 0.9 * report.left / (ROUNDS * max(seconds, 1e-3)))))


def _report(name: str, seen: dict[str, list[Run]], first: dict[str, Run], report: Report) -> None:
    from check_gpu.features import differences

    base = seen.get(BASE, [])
    for label, runs in seen.items():
        if not runs:
            continue
        both = min(len(runs[-1].features), len(base[-1].features) if base else 0)
        # Within each round, since a machine's speed drifts
        rates = [run.images / run.seconds for run in runs]
        ratios = [rate * other.seconds / other.images for rate, other in zip(rates, base, strict=False)]
        report.row(
            f"{name} {label}",
            what=f"median of {len(runs)}",
            images=runs[-1].images,
            seconds=round(statistics.median(run.seconds for run in runs), 2),
            images_per_s=round(statistics.median(rates), 1),
            spread=f"{min(rates):.0f} to {max(rates):.0f}",
            times_the_fp32_loop=round(statistics.median(ratios), 2) if ratios else None,
            **(differences(runs[-1].features[:both], base[-1].features[:both]) if both else {}),
            steady_images_per_s=_steady(runs, first[label]),
            **runs[-1].details,
        )


def _steady(runs: list[Run], pilot: Run) -> float | None:
    """Images/s of what the runs have more than the first one of few images: without what starts."""
    seconds = statistics.median(run.computing for run in runs) - pilot.computing
    more = runs[-1].images - pilot.images
    return round(more / seconds, 1) if more > 0 and seconds > 0 else None


def _extract(name: str, precision: str, executor: str, decoder: str, settings: Settings, count: int) -> Run:
    import numpy as np

    from precompute import extract, open_cache

    out = os.path.join(settings.place, f"{name}-{precision}-{executor}-{decoder}.h5")
    if os.path.exists(out):
        os.unlink(out)
    began = time.perf_counter()
    result = extract(
        settings.source,
        out,
        backbone=name,
        weights="random:0",
        precision=precision,
        device=settings.device,
        executor=executor,
        transform={"decoder": decoder},
        limit=count,
    )
    seconds = time.perf_counter() - began
    features = np.asarray(open_cache(out).features()[:]).astype(np.float64).reshape(count, -1)
    stages = result.stages.to_dict() if result.stages is not None else {}
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in stages.items()}
    chosen = f"{result.engine} {result.device} {result.precision} batch {result.batch_size}"
    return Run(
        seconds,
        features,
        count,
        result.forward_seconds,
        {
            "chosen": chosen + (" compiled" if result.compiled else ""),
            "why": result.why,
            "warnings": "; ".join(result.warnings),
            "stages": rounded,
        },
    )


def _loop(model: Backbone, precision: str, settings: Settings, count: int) -> Run:
    """The usual loop as somebody who knows torch writes it: workers, pinned memory, channels_last, autocast."""
    import copy

    import numpy as np
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    wanted, device = transform_of(model), torch.device(settings.device)
    steps = Compose(
        [
            Resize(wanted.resize, InterpolationMode(wanted.interpolation)),
            CenterCrop(wanted.crop),
            ToTensor(),
            Normalize(wanted.mean, wanted.std),
        ]
    )
    network = copy.deepcopy(model.module).eval()
    began = time.perf_counter()
    network = network.to(device).to(memory_format=torch.channels_last)
    data = torch.utils.data.Subset(ImageFolder(settings.source, steps), range(count))
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=LOOP_BATCH[settings.device],
        num_workers=settings.cores,
        pin_memory=settings.cuda,
        timeout=LOOP_TIMEOUT,
    )
    parts = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for images, _ in loader:
            moved = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            parts.append(network(moved)[0].flatten(1).float().cpu().numpy())
    features = np.concatenate(parts)
    np.save(os.path.join(settings.place, "loop.npy"), features)
    seconds = time.perf_counter() - began
    return Run(seconds, features.astype(np.float64), count, seconds)
