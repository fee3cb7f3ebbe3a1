"""A source of images to train on, next to the feature file that says which image a row is, and what is known of it.

The file holds the input of the network's classifier, for every image: the linear head is fitted on it, near-duplicates
are searched in it, and a head in addition costs nothing more. It is one that the user names, or is made by
`extract` next to the output, so that a run killed in the meantime resumes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from precompute.backbones.crossing import Crossings
from precompute.backbones.layers import INPUT
from precompute.backbones.load import Backbone, load_backbone
from precompute.cache import Cache, difference, key_of, open_cache, status_name
from precompute.errors import CacheError, CacheKeyError, UsageError
from precompute.extraction.conduct import Progress
from precompute.extraction.extract import extract
from precompute.extraction.matching import positions
from precompute.extraction.repair import KnownSamples, table_of
from precompute.finetuning.data import Data
from precompute.finetuning.pixels import MANY_VIEWS, PixelActivations
from precompute.inputs.base import Preprocess
from precompute.inputs.images.augmentation import Augmentation, augment_names
from precompute.inputs.images.formats import IMAGES
from precompute.inputs.images.preprocess import ImagePreprocess
from precompute.inputs.kinds import check_images
from precompute.sources.base import Reading, Source
from precompute.sources.registry import open_source

FEATURES = ".features.h5"
"""What is behind the output's name in that of the feature file next to it."""

AUGMENT = ("crop", "flip")
"""What images are trained on by default: parts of random size and place, half of them mirrored, as He et al. 2016
(arXiv:1512.03385, section 3.4) and torchvision's recipes have it."""

NOTHING = "none"  # --augment none
PRECISION, STORAGE = "fp32", "float32"  # of activations that are computed and not stored
SHOWN = 3  # ids that an error names

FINE_TUNING = "A network is trained from"


@dataclass(frozen=True)
class ImageOptions:
    """What a training from images takes, and one from a cache does not; see `fine_tune` for the meaning.

    stop: of the extraction before it.
    """

    freeze_to: str | None = None
    augment: str | Sequence[str] | None = None
    features: str | os.PathLike[str] | None = None
    transform: Mapping[str, Any] | None = None
    workers: int | None = None
    root: str | None = None
    columns: Mapping[str, str] | None = None
    keep: Sequence[str] = ()
    progress: Callable[[Progress], None] | None = None
    stop: Callable[[], int] | None = None

    def refuse(self, cache: Any) -> None:
        """Raise UsageError for options without effect on a cache."""
        names = ("freeze_to", "augment", "features", "transform", "workers", "root", "columns")
        for name in names:
            if getattr(self, name):
                shown = cache.path if isinstance(cache, Cache) else os.fspath(cache)
                hint = "To train behind another layer, extract that one." if name == "freeze_to" else "Leave it out."
                raise UsageError(f"{shown} holds activations, so {name} has no effect.", hint=hint)


def open_images(
    source: str | os.PathLike[str] | Source | Any,
    out: str | os.PathLike[str] | None,
    options: ImageOptions,
    *,
    backbone: str,
    weights: str | None = None,
    device: str = "cpu",
) -> Data:
    """The images of `source` as activations of the layer `options.freeze_to`, or of the network's input.

    out: the output of the training, next to whose name the feature file is made, or brought up to date, unless
    `options.features` names one. device: of the frozen part. Anyone who asked closes the activations.
    Raises what `extract` and `load_backbone` raise; CacheKeyError and CacheError where the features are of another
    network or other images.
    """
    check_images(backbone, FINE_TUNING)
    given: dict[str, Any] = {"weights": weights or "DEFAULT", "transform": dict(options.transform or {})}
    plain = load_backbone(backbone, **given)
    check_images(backbone, FINE_TUNING, plain.preprocess.modality)  # before a source of others is listed as images
    samples = open_samples(source, options.root, options.columns, options.keep)
    cut = load_backbone(backbone, **given, layer=options.freeze_to or INPUT, pooling="none")
    if options.freeze_to is not None:
        Crossings.of(cut).place_of(options.freeze_to)  # before the features, not after them
    preprocess, notes = _views(cut.preprocess, options.augment)
    if options.features is not None:
        cache = open_cache(options.features)
        _check_network(cache, plain)
    else:
        assert out is not None  # whoever calls has looked
        cache = _made(samples, f"{os.fspath(out)}{FEATURES}", backbone, given, device, options)
        notes = (*notes, f"the input of the classifier is kept in {cache.path}")
    _check_images(cache, samples)
    broken = np.flatnonzero(~cache.ok).tolist()
    notes = (*notes, *_named(cache, broken))
    activations = activations_of(cache, samples, cut, preprocess=preprocess, device=device, workers=options.workers)
    layer = plain.taps[0].layer
    spec = replace(cut, preprocess=preprocess).spec(precision=PRECISION, storage=STORAGE)
    return Data(
        cache=cache,
        cache_layer=layer,
        backbone=cut,
        layer=cut.taps[0].layer,
        activations=activations,
        spec=spec,
        key=key_of(spec),
        weights_source=cut.source,
        name=os.path.basename(cache.path),
        frozen=cache.plain_features(layer).reshape(len(cache), -1),
        notes=notes,
        skipped=len(broken),
    )


def _made(
    samples: Source, path: str, backbone: str, given: dict[str, Any], device: str, options: ImageOptions
) -> Cache:
    """The input of the classifier of each image, computed as far as it is not there yet."""
    extract(
        samples,
        path,
        backbone=backbone,
        precision=PRECISION,
        device=device,
        workers=options.workers,
        progress=options.progress,
        stop=options.stop,
        **given,
    )
    return open_cache(path)


def _check_network(cache: Cache, plain: Backbone) -> None:
    """Raise CacheKeyError unless `cache` holds the input of the classifier of this very network."""
    now = plain.spec(precision=PRECISION, storage=STORAGE)
    deciding = ("backbone", "weights", "transform")
    lines = difference(*({name: spec.get(name) for name in deciding} for spec in (cache.spec, now)))
    (tap,) = plain.taps
    if not lines and (tap.layer not in cache.layers or cache.plain_features(tap.layer).shape[1:] != tap.shape):
        lines = [f"layers: {', '.join(cache.layers)} -> {tap.layer} {tap.pooling}"]
    if cache.views > 1:
        lines.append(f"views: {cache.views} -> 1")
    if lines:
        raise CacheKeyError(
            f"The features in {cache.path} are not those of this network (there -> now):",
            difference=lines,
            hint="Leave --features out: the features are then computed first.",
        )


def open_samples(source: Any, root: str | None, columns: Mapping[str, str] | None, keep: Sequence[str] = ()) -> Source:
    """The images of `source`, see `extract`."""
    return open_source(source, IMAGES, reading=Reading.of(root, columns, keep), alone=False)


def activations_of(
    cache: Cache,
    samples: Source,
    backbone: Backbone,
    *,
    preprocess: Preprocess | None = None,
    device: str = "cpu",
    workers: int | None = None,
) -> PixelActivations:
    """Those of the rows of `cache`, computed from the images of `samples` with the same ids; see `PixelActivations`."""
    known, digests = KnownSamples(table_of(cache), samples), cache.column("samples/digest")
    return PixelActivations(known, digests, backbone, preprocess=preprocess, device=device, workers=workers)


def _check_images(cache: Cache, samples: Source) -> None:
    """Raise CacheError where either lists images that the other does not."""
    known = KnownSamples(table_of(cache), samples)
    gone = [row for row in np.flatnonzero(cache.ok).tolist() if not known.holds(row)]
    new = np.flatnonzero(positions(known.table.ids, samples.table.ids) < 0).tolist()
    if gone or new:
        names = [known.sample_name(row) for row in gone[:SHOWN]] or [samples.sample_name(row) for row in new[:SHOWN]]
        where = "no longer there" if gone else f"not in {cache.path}"
        raise CacheError(
            f"{cache.path} is not of the images of {samples.name}: {len(gone) or len(new):,} are {where}: "
            f"{', '.join(names)}{', ...' if len(gone or new) > SHOWN else ''}.",
            hint="Update the file with `precompute extract`, or leave --features out.",
        )


def _named(cache: Cache, rows: list[int]) -> tuple[str, ...]:
    """A line that names these images, which have no features, and why they have none."""
    ids, status = cache.column("samples/id"), cache.status
    named = [f"{os.fsdecode(bytes(ids[row]))} ({status_name(int(status[row]))})" for row in rows[:SHOWN]]
    return (f"left out: {', '.join(named)}{', ...' if len(rows) > SHOWN else ''}",) if rows else ()


def _views(preprocess: Preprocess, augment: str | Sequence[str] | None) -> tuple[Preprocess, tuple[str, ...]]:
    """With the views that training draws from, and what there is to say of them."""
    names = AUGMENT if augment is None else augment_names(augment)
    if not isinstance(preprocess, ImagePreprocess):
        if augment is not None:
            raise UsageError(
                "The factory has its own preprocessing, which makes its own views.", hint="Leave --augment out."
            )
        return preprocess, ()
    if names == (NOTHING,):
        return preprocess, ("trained on the plain images alone",)
    made = replace(preprocess, views=MANY_VIEWS, augmentation=Augmentation.of(names))
    return made, (f"trained on other views of each image in each epoch ({', '.join(names)})",)
