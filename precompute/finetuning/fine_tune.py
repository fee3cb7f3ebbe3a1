"""Fine-tune what is behind a layer, and score it on images it has not seen."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import torch

from precompute.cache import Cache
from precompute.errors import UsageError
from precompute.extraction.conduct import Progress
from precompute.extraction.output import is_hdf5
from precompute.finetuning.data import open_cached
from precompute.finetuning.device import device_of
from precompute.finetuning.labelled_images import ImageOptions, open_images
from precompute.finetuning.loop import Conduct, Watch
from precompute.finetuning.settings import TailSettings
from precompute.finetuning.tail_file import TAIL
from precompute.finetuning.tuning import Tuning, tune
from precompute.finetuning.wanted import Wanted
from precompute.sources.base import Source
from precompute.system.output import check_output
from precompute.training.targets import AUTO

NAMES_OF_CACHES = (".h5", ".hdf5")


def fine_tune(
    source: Cache | str | os.PathLike[str] | Source | Any,
    out: str | os.PathLike[str] | None = None,
    *,
    layer: str | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    tail: str | None = None,
    epochs: int = 30,
    learning_rate: float = 1e-4,
    weight_decay: float = 1e-4,
    warmup: float = 1.0,
    batch_size: int = 32,
    patience: int = 8,
    dropout: float = 0.0,
    label_smoothing: float = 0.0,
    schedule: str = "cosine",
    seed: int = 0,
    device: str = "cpu",
    precision: str = AUTO,
    checkpoint_seconds: float = 30.0,
    overwrite: bool = False,
    freeze_to: str | None = None,
    augment: str | Sequence[str] | None = None,
    features: str | os.PathLike[str] | None = None,
    transform: Mapping[str, Any] | None = None,
    workers: int | None = None,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], int] | None = None,
    stepping: contextlib.AbstractContextManager[None] | None = None,
    watch: Watch | None = None,
    **wanted: Any,
) -> Tuning:
    """Train the network behind a layer with a new output layer, and score it: on a cache of that layer's activations,
    or on images, for which it may also be the whole network.

    LP-FT (Kumar et al., ICLR 2022): first the linear head that `train-head` would fit on the frozen tail's features,
    then tail and head together at a small rate. See `TailSettings` for the settings. The epoch of the lowest
    loss on the selection set is kept, and the linear head alone counts as epoch 0: by that loss, fine-tuning never ends
    worse than it began. The selection set is val where there is a test split too, else a hold-out of train.

    source: a cache with the unpooled activations of `layer`; with several views an epoch draws one of each sample's.
    backbone, weights are then as for `predict`: a confirmation for code of the user's own, and where the weights are.

    source: or images, as `extract` takes them. backbone, which must be given, weights, transform, workers, root,
    columns and keep are then as for `extract`. freeze_to: the layer up to which the network stays as it is, by default
    none. augment: the steps for the views, of which each epoch draws another for each image: by default "crop,flip",
    "none" for plain images. features: a cache of these images with the input of the network's classifier. By default it
    is made first, at `out` + ".features.h5", and left there: `compare` and `train_head` take it, and the same call uses
    it again. progress: called while it is made. An image that has changed since is an error.

    wanted: the options of `train_head` named in `Wanted`; their columns are those of the cache, or of the source's
    table.
    tail: `package.module:factory` of a tail of the user's own, see `precompute.backbones.tail.own_tail`.
    out: the file of the tail. While it is trained, `OUT.checkpoint` holds its state, every `checkpoint_seconds`: the
    same call continues from there, with the same result on a CPU, byte for byte. overwrite: replace whatever file has
    the name of the output, and a checkpoint of another training.
    stop: asked after each step, a signal's number ends the training, resumable; stepping: entered for that time.
    watch: called with epoch, step (from 0) and loss of each step.
    device: "auto" is CUDA where it is there. precision: "fp32", "bf16" (mixed, on CUDA), or "auto", bf16 there.

    Raises TrainingError for a loss that is not finite, too little memory, and labels that nothing can be learned from;
    HeadError and its kinds for output and checkpoint, CacheLockedError where another process writes the output;
    BackboneError for a layer that cannot be cut at; CacheError, HeadMismatchError, DeviceError, UsageError, Stopped;
    of images SampleError, SourceError and what `extract` raises.
    """
    settings = TailSettings(
        epochs=epochs,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        batch_size=batch_size,
        patience=patience,
        dropout=dropout,
        label_smoothing=label_smoothing,
        schedule=schedule,
        seed=seed,
        device=device,
        precision=precision,
    )
    asked = Wanted(**wanted)
    asked.check()
    settings = resolved(settings)
    keep = keep if features is not None else asked.columns(keep)
    images = ImageOptions(freeze_to, augment, features, transform, workers, root, columns, keep, progress, stop)
    if _is_cache(source):
        images.refuse(source)
        data = open_cached(source, layer, backbone=backbone, weights=weights)
    else:
        _check_images(source, out, asked, layer=layer, backbone=backbone, features=features, overwrite=overwrite)
        data = open_images(source, out, images, backbone=str(backbone), weights=weights, device=settings.device)
    try:
        if tail is not None:
            data = replace(data, frozen=None)  # what is there is that of the network's own tail
        how = Conduct(seconds=checkpoint_seconds, stop=stop, stepping=stepping, watch=watch)
        return tune(data, out, asked, settings, how, tail=tail, overwrite=overwrite)
    finally:
        data.activations.close()


def _is_cache(source: Any) -> TypeGuard[Cache | str | os.PathLike[str]]:
    """Whether activations are meant, and not images; a name of a feature file that is none is one that is missing."""
    if not isinstance(source, str | os.PathLike):
        return isinstance(source, Cache)
    return is_hdf5(source) or os.fspath(source).endswith(NAMES_OF_CACHES)


def resolved(settings: TailSettings) -> TailSettings:
    """With a device that is there, and the precision that runs on it. Raises UsageError and DeviceError."""
    device = device_of(settings.device)
    on_cuda = torch.device(device).type == "cuda"
    precision = ("bf16" if on_cuda else "fp32") if settings.precision == AUTO else settings.precision
    found = replace(settings, device=device, precision=precision)
    found.check()
    return found


def _check_images(
    source: Any,
    out: str | os.PathLike[str] | None,
    wanted: Wanted,
    *,
    layer: str | None,
    backbone: str | None,
    features: str | os.PathLike[str] | None,
    overwrite: bool,
) -> None:
    """Raise what can be known before features are computed."""
    shown = source if isinstance(source, str | os.PathLike) else "The source"
    if backbone is None:
        raise UsageError(
            f"{shown} is not a feature file; to train on images, the network must be named.",
            hint="For example -b resnet18. To train on stored activations, give the cache that holds them.",
        )
    if layer is not None:
        raise UsageError(
            f"{shown} holds images, so --layer has no effect.",
            hint="Name the layer up to which the network stays as it is by --freeze-to.",
        )
    if wanted.average_views:
        raise UsageError(
            "A network that is trained from images predicts from the plain image.", hint="Leave --average-views out."
        )
    if out is None and features is None:
        raise UsageError(
            "The input of the classifier is computed first, and needs a file.",
            hint="Name the output, -o OUT, next to which it is written, or an existing file of it, --features CACHE.",
        )
    if out is not None:  # before the work, not after it
        check_output(out, TAIL, overwrite=overwrite, inputs=(features, wanted.groups_file, wanted.labels))
