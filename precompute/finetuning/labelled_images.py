"""A source of images to train on, beside the feature file that says which image a row is, and what is known of it.

The file holds what enters the network's classifier, for every image: the linear head is fitted on that, near-duplicates
are looked for in it, and a head beside the network costs nothing more. It is one that the user names, or is made by
`extract` beside the output, so that a run that was killed while it was made goes on there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from precompute.backbones.layers import INPUT
from precompute.backbones.load import Backbone, load_backbone
from precompute.cache import Cache, difference, key_of, open_cache
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
from precompute.sources.base import Reading, Source
from precompute.sources.registry import open_source

FEATURES = ".features.h5"
"""What stands behind the output's name in that of the feature file beside it."""

AUGMENT = ("crop", "flip")
"""What images are trained on unasked: parts of random size and place, half of them mirrored, as He et al. 2016
(arXiv:1512.03385, section 3.4) and torchvision's recipes have it."""

NOTHING = "none"  # --augment none
PRECISION, STORAGE = "fp32", "float32"  # of activations that are computed and not stored
SHOWN = 3  # ids that an error names


def open_images(
    source: str | os.PathLike[str] | Source | Any,
    out: str | os.PathLike[str],
    *,
    backbone: str,
    weights: str = "DEFAULT",
    transform: Mapping[str, Any] | None = None,
    freeze_to: str | None = None,
    augment: str | Sequence[str] | None = None,
    features: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], int] | None = None,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
) -> Data:
    """The images of `source` as activations of the layer `freeze_to`, or of the network's input where that is None.

    out: the output of the training, beside whose name (and FEATURES) the feature file is made, or brought up to date,
    unless `features` names one. augment: the steps that views are made by, AUGMENT by default, "none" for plain images
    alone. device: of the frozen part. For the rest see `extract`. Whoever asked closes the activations.
    Raises what `extract` and `load_backbone` raise; CacheKeyError and CacheError where `features` is of another network
    or other images.
    """
    samples = open_samples(source, root, columns, keep)
    given: dict[str, Any] = {"weights": weights, "transform": dict(transform or {})}
    plain = load_backbone(backbone, **given)
    (tap,) = plain.taps
    if features is None:
        path = f"{os.fspath(out)}{FEATURES}"
        run: dict[str, Any] = {"device": device, "workers": workers, "progress": progress, "stop": stop}
        extract(samples, path, backbone=backbone, precision=PRECISION, **given, **run)
        cache = open_cache(path)
    else:
        cache = open_cache(features)
        _check_network(cache, plain)
    _check_images(cache, samples)
    cut = load_backbone(backbone, **given, layer=freeze_to or INPUT, pooling="none")
    preprocess, notes = _views(cut.preprocess, augment)
    activations = activations_of(cache, samples, cut, preprocess=preprocess, device=device, workers=workers)
    spec = cut.spec(precision=PRECISION, storage=STORAGE)
    return Data(
        cache=cache,
        backbone=cut,
        layer=cut.taps[0].layer,
        activations=activations,
        spec=spec,
        key=key_of(spec),
        weights_source=cut.source,
        name=os.path.basename(cache.path),
        frozen=cache.plain_features(tap.layer),
        notes=notes,
    )


def _check_network(cache: Cache, plain: Backbone) -> None:
    """Raise CacheKeyError unless `cache` holds what enters the classifier of this very network."""
    now = plain.spec(precision=PRECISION, storage=STORAGE)
    deciding = ("backbone", "weights", "transform")
    lines = difference(*({name: spec.get(name) for name in deciding} for spec in (cache.spec, now)))
    (tap,) = plain.taps
    if not lines and (tap.layer not in cache.layers or cache.plain_features(tap.layer).shape[1:] != tap.shape):
        lines = [f"layers: {', '.join(cache.layers)} -> {tap.layer} {tap.pooling}"]
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
        where = "not there any more" if gone else f"not in {cache.path}"
        raise CacheError(
            f"{cache.path} is not of the images of {samples.name}: {len(gone) or len(new):,} are {where}: "
            f"{', '.join(names)}{', ...' if len(gone or new) > SHOWN else ''}.",
            hint="Bring the file up to date with `precompute extract`, or leave --features out.",
        )


def _views(preprocess: Preprocess, augment: str | Sequence[str] | None) -> tuple[Preprocess, tuple[str, ...]]:
    """With the views that training draws from, and what there is to say of them."""
    names = AUGMENT if augment is None else augment_names(augment)
    if not isinstance(preprocess, ImagePreprocess):
        if augment is not None:
            raise UsageError(
                "The factory has a preprocessing of its own, which makes its own views.", hint="Leave --augment out."
            )
        return preprocess, ()
    if names == (NOTHING,):
        return preprocess, ("trained on the plain images alone",)
    made = replace(preprocess, views=MANY_VIEWS, augmentation=Augmentation.of(names))
    return made, (f"trained on other views of each image in each epoch ({', '.join(names)})",)
