"""Section: the forward pass alone, by batch size, precision, and way of running it; and the engine around it."""

from __future__ import annotations

import contextlib
import copy
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from check_gpu.inputs import noise, transform_of
from check_gpu.running import Report
from check_gpu.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from precompute import Backbone

    Call = Callable[[], object]

CUDA_BATCHES, CPU_BATCHES = (32, 64, 128, 256, 512, 1024), (8, 32)
MAIN_BATCH = {"cuda": 256, "cpu": 8}
SMALL_BATCH = 32
MEASURE_SECONDS = 0.15
ROUNDS = 3
COMPILE_SECONDS = {"cuda": 15.0, "cpu": 75.0}
"""With less than this left no compilation is begun."""


def measure(settings: Settings, report: Report) -> None:
    from precompute import load_backbone

    models = {}
    for name in settings.backbones:
        with report.attempt(name):
            models[name] = load_backbone(name, weights="random:0")
    for model in models.values():
        with report.attempt(model.name):
            _by_batch(model, settings, report)
    for model in models.values():
        with report.attempt(model.name):
            _by_precision(model, settings, report)
            _engine(model, settings, report)
    for model in models.values():
        name = f"{model.name} compiled"
        if settings.device == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
            report.skip(name, "there is no C++ compiler")
        elif report.enough(name, COMPILE_SECONDS[settings.device]):
            with report.attempt(name):
                _compiled(model, settings, report)


def _by_batch(model: Backbone, settings: Settings, report: Report) -> None:
    """Eager and, on CUDA, as a CUDA graph."""

    precision = "bf16" if settings.cuda else "fp32"
    network = _network(model, precision, settings)
    an_image = 0.0 if settings.cuda else _seconds_an_image(network, model, settings)
    for batch in CUDA_BATCHES if settings.cuda else CPU_BATCHES:
        if report.enough(f"{model.name} {precision} batch {batch}", 2 + 3 * batch * an_image):
            _at_batch(network, _images(model, batch, precision, settings), model.name, precision, settings, report)
            _empty(settings)
    if not settings.cuda:
        report.skip(f"{model.name} graph", "CUDA graphs need CUDA")


def _seconds_an_image(network: nn.Module, model: Backbone, settings: Settings) -> float:
    import torch

    image = _images(model, 1, "fp32", settings)
    with torch.inference_mode():
        network(image)
        began = time.perf_counter()
        network(image)
        return time.perf_counter() - began


def _at_batch(
    network: nn.Module, images: torch.Tensor, name: str, precision: str, settings: Settings, report: Report
) -> None:
    import torch

    with report.attempt(f"{name} {precision} batch {len(images)} eager"), torch.inference_mode():
        _row(report, settings, name, "eager", precision, len(images), lambda: network(images))
    if settings.cuda:
        with report.attempt(f"{name} {precision} batch {len(images)} graph"):
            _row(report, settings, name, "eager + graph", precision, len(images), _graph(network, images))


def _by_precision(model: Backbone, settings: Settings, report: Report) -> None:
    import torch

    batch = MAIN_BATCH[settings.device]
    for precision in ("fp32", "tf32", "fp16") if settings.cuda else ("bf16",):
        name = f"{model.name} {precision} batch {batch}"
        if not report.enough(name, 2 if settings.cuda else 8):
            continue
        with report.attempt(name), torch.inference_mode(), _tf32(precision == "tf32"):
            call = partial(_network(model, precision, settings), _images(model, batch, precision, settings))
            _row(report, settings, model.name, "eager", precision, batch, call)
        _empty(settings)


def _engine(model: Backbone, settings: Settings, report: Report) -> None:
    """As a run has it: uint8 pixels in host memory in, float32 features in host memory out; small batches as a graph."""
    for batch in (MAIN_BATCH["cuda"], SMALL_BATCH) if settings.cuda else (MAIN_BATCH["cpu"],):
        _engine_at(model, batch, settings, report)


def _engine_at(model: Backbone, batch: int, settings: Settings, report: Report) -> None:
    from precompute.engines.base import EngineChoice
    from precompute.engines.devices import make_engine

    precision = "bf16" if settings.cuda else "fp32"
    name = f"{model.name} {precision} batch {batch} engine"
    if not report.enough(name, 3 if settings.cuda else 12):
        return
    with report.attempt(name):
        choice = EngineChoice("torch", settings.device, precision, batch)
        engine = make_engine(model.module, model.preprocess, choice, identity=None)
        samples = noise(model, batch)
        times = 8 if settings.cuda else 2
        _row(
            report,
            settings,
            model.name,
            "engine, host to host",
            precision,
            batch * times,
            lambda: list(engine.map([samples] * times)),
            shown=batch,
        )
    _empty(settings)


def _compiled(model: Backbone, settings: Settings, report: Report) -> None:
    import torch

    precision, batch = ("bf16" if settings.cuda else "fp32"), MAIN_BATCH[settings.device]
    network, images = _network(model, precision, settings), _images(model, batch, precision, settings)
    with torch.inference_mode():
        expected = network(images)[0].float()
        compiled = torch.compile(network, dynamic=False)
        began = time.perf_counter()
        compiled(images)
        _wait(settings)
        seconds = time.perf_counter() - began
        found = compiled(images)[0].float()
        distance = float((found - expected).norm() / expected.norm())
        _row(
            report,
            settings,
            model.name,
            "compiled",
            precision,
            batch,
            lambda: compiled(images),
            compile_seconds=round(seconds, 1),
            relative_l2_to_eager=float(f"{distance:.2g}"),
        )
    if settings.cuda:
        with report.attempt(f"{model.name} compiled + graph"):
            _row(report, settings, model.name, "compiled + graph", precision, batch, _graph(compiled, images))
    _empty(settings)


def _network(model: Backbone, precision: str, settings: Settings) -> nn.Module:
    """Folded and channels_last, as the engine has it."""
    import torch

    from precompute.engines.torch import folded

    network = copy.deepcopy(folded(model.module)).to(settings.device, _dtype(precision))
    return network.to(memory_format=torch.channels_last)


def _images(model: Backbone, batch: int, precision: str, settings: Settings) -> torch.Tensor:
    import torch

    crop = transform_of(model).crop
    images = torch.randn(batch, 3, crop, crop, device=settings.device)
    return images.to(dtype=_dtype(precision), memory_format=torch.channels_last)


def _dtype(precision: str) -> torch.dtype:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """TF32 in convolutions and matrix products, or neither; without a word torch allows it in convolutions alone."""
    import torch

    matmul = torch.backends.cuda.matmul
    before = torch.backends.cudnn.allow_tf32, matmul.allow_tf32
    torch.backends.cudnn.allow_tf32, matmul.allow_tf32 = allowed, allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, matmul.allow_tf32 = before


def _graph(network: Callable[[torch.Tensor], object], images: torch.Tensor) -> Call:
    """One forward pass captured as a CUDA graph."""
    import torch

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():  # as before capture: a compiled network would be compiled again in another mode
        with torch.cuda.stream(side):
            for _ in range(3):
                network(images)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            network(images)
    return graph.replay


def _row(
    report: Report,
    settings: Settings,
    backbone: str,
    way: str,
    precision: str,
    images: int,
    call: Call,
    *,
    shown: int | None = None,
    **more: Any,
) -> None:
    began = time.perf_counter()
    call()
    _wait(settings)
    first = time.perf_counter() - began
    if settings.cuda:  # cuDNN chooses, the allocator grows
        call()
        _wait(settings)
    seconds = []
    for _ in range(ROUNDS if settings.cuda or first < 2 else 1):
        times, began = 0, time.perf_counter()
        while time.perf_counter() - began < MEASURE_SECONDS:
            for _ in range(1 if times < 4 else 4):
                call()
                times += 1
            _wait(settings)
        seconds.append((time.perf_counter() - began) / times)
    middle = statistics.median(seconds)
    report.row(
        backbone,
        way=way,
        precision=precision,
        batch=shown or images,
        images_per_s=round(images / middle, 1),
        ms_per_call=round(1e3 * middle, 2),
        spread=f"{images / max(seconds):.0f} to {images / min(seconds):.0f}",
        first_call_s=round(first, 2),
        **more,
    )


def _wait(settings: Settings) -> None:
    import torch

    if settings.cuda:
        torch.cuda.synchronize()


def _empty(settings: Settings) -> None:
    import torch

    if settings.cuda:
        torch.cuda.empty_cache()
