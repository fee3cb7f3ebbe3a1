"""Head files x images -> classes, labels or numbers, with the very features that the heads were trained on, or those of
a cache."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.backbones.layers import INPUT
from precompute.backbones.load import Backbone
from precompute.cache import Cache, as_read, difference, open_cache, plain_spec, status_name
from precompute.engines.choice import Asked
from precompute.errors import HeadFormatError, HeadMismatchError, UsageError
from precompute.extraction.executors.base import Work
from precompute.extraction.executors.names import AUTO, opened
from precompute.extraction.output import is_hdf5
from precompute.extraction.rebuild import rebuild_backbone
from precompute.finetuning.device import device_of
from precompute.finetuning.opening import HeadFile, open_head
from precompute.heads import RowView
from precompute.inputs.kinds import files_of, modality_of_spec
from precompute.sources.base import Reading, Source
from precompute.sources.registry import open_source
from precompute.system.samples import Words, words_of_spec
from precompute.training.answers import Answers, LabelsPrediction, NumberPrediction, Prediction, Predictions
from precompute.training.columns import Values
from precompute.training.membership import trained_layer
from precompute.training.splits import whole_rows

__all__ = ["LabelsPrediction", "NumberPrediction", "Prediction", "Predictions", "predict", "predict_each"]

CUT_NAMED = 5
AT_ONCE = 65_536  # rows of a cache, whose probabilities are in memory at the same time
Progress = Callable[[int, int], None]


def predict(
    head: str | os.PathLike[str],
    source: str | os.PathLike[str] | Source,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    augment: str | Sequence[str] | None = None,
    tail: str | None = None,
) -> Predictions:
    """Classes, labels or numbers of the images of `source` (see `extract`; also one image alone), or of the rows of a
    cache, by a saved head, tail or whole network.

    A cache must hold features such as the head was trained on; no image is read, so `batch_size`, `workers`, `root` and
    `columns` are refused then, and for a head, which needs no backbone, `backbone` and `weights` as well. Rows without
    features are among `failed`.

    Backbone, layer, transform and precision come from the head file; the weights are found again where they came
    from, or at `weights`, and must have the digest that the head was trained with.

    Predictions are scored where the truth is known: the class of a folder or the label of a table. Labels and numbers
    are scored by the columns of a cache that the head was trained on; by the labels of a source if the head was trained
    on such labels, or if `columns` names the column with them.

    A head that averages over views (see `train_head`) gets as many views of each image, in as many forward passes;
    every other head gets the plain one, also if it was trained on several.

    backbone: must be given, as a confirmation, for a head whose backbone is code of the user's own, and so must augment
    where it averages over views that code of the user's own makes, and tail where that is a module of the user's own.
    progress: called with (done, total).
    root, columns: see `extract`.
    Raises HeadFormatError, HeadMismatchError, BackboneError, WeightsError, SourceError, DeviceError; of a cache
    CacheError and UsageError.
    """
    given: dict[str, Any] = {"backbone": backbone, "weights": weights, "device": device, "batch_size": batch_size}
    given |= {"workers": workers, "progress": progress, "root": root, "columns": columns, "augment": augment}
    given |= {"tail": tail}
    return predict_each([head], source, **given)[0]


def predict_each(
    heads: Sequence[str | os.PathLike[str]],
    source: str | os.PathLike[str] | Source,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    augment: str | Sequence[str] | None = None,
    tail: str | None = None,
    begins: Callable[[Words], None] | None = None,
) -> list[Predictions]:
    """What `predict` gives, by each of several heads and tails in one pass: a sample is read and computed once.

    begins: called once the heads are open, with the words for their samples.

    They must have been trained on the features of one backbone, with the same weights, transform and precision; their
    layers may differ. Raises what `predict` does, HeadMismatchError where their features differ.
    """
    began = time.monotonic()
    if not heads:
        raise UsageError(
            "predict needs one head or more.", hint="For example: precompute predict photos.safetensors photos"
        )
    opened = [open_head(path) for path in heads]
    words = words_of_spec(opened[0].metadata.get("spec"))
    if begins is not None:
        begins(words)
    if isinstance(source, str | os.PathLike) and is_hdf5(source):
        of_network = {"backbone": backbone, "weights": weights}
        needless: dict[str, Any] = {} if any(head.is_tail for head in opened) else dict(of_network)
        needless |= {"batch_size": batch_size, "workers": workers, "root": root, "columns": columns or None}
        needless |= {"augment": augment}
        if says_nothing := [name for name, value in needless.items() if value is not None]:
            raise UsageError(
                f"{os.fspath(source)} holds features, so {says_nothing[0]} has no effect.",
                hint=f"Leave out --{says_nothing[0].replace('_', '-')}, or name a folder of {words.plural}.",
            )
        where = device_of(device)
        ready = [Answers(one.path, one.alone(**of_network, tail=tail, device=where)) for one in opened]
        return _of_cache(ready, source, progress, began)
    kind = files_of(modality_of_spec(opened[0].metadata.get("spec")))
    samples = open_source(source, kind, reading=Reading.of(root, columns))
    model, precision, storage = rebuild(opened, backbone=backbone, weights=weights, augment=augment)
    ready = [Answers(one.path, one.attach(model, tail=tail, device=device_of(device))) for one in opened]
    # What enters the network is no computation that another engine would be faster at
    engine = "torch" if all(tap.layer == INPUT for tap in model.taps) else "auto"
    asked = Asked(engine, precision=precision, device=device, batch_size=batch_size, dtype=storage)
    says_labels = "label" in (columns or {})
    return _of_images(ready, samples, model, asked, storage, workers, progress, began, says_labels=says_labels)


def _of_images(
    heads: Sequence[Answers],
    samples: Source,
    model: Backbone,
    asked: Asked,
    storage: str,
    workers: int | None,
    progress: Progress | None,
    began: float,
    *,
    says_labels: bool,
) -> list[Predictions]:
    """says_labels: whether the user named the column with the labels."""
    table, views = samples.table, model.preprocess.views
    classes = tuple(map(os.fsdecode, table.classes))
    values = Values(classes, table.labels, table.ids, numbers=False, path=samples.name, origin="its labels")
    truths = [head.truth_of_labels(values, are_meant=says_labels or not head.trained_elsewhere) for head in heads]
    place = {tap.layer: number for number, tap in enumerate(model.taps)}
    failed: list[tuple[int, tuple[str, str, str]]] = []
    done, cut = 0, list[int]()
    with contextlib.ExitStack() as within:
        within.enter_context(model.preprocess.session())
        executor = within.enter_context(opened(AUTO, workers=workers))
        decision = executor.decide(model, asked, None, samples)[1]()
        for block in executor.blocks(Work(samples, model, decision), np.arange(len(samples))):
            if block.features is not None:
                rows = [item.row for item in block.decoded]
                cut += [item.row for item in block.decoded if item.cut]
                ids = [samples.id_of(row) for row in rows]
                # Rounded as in the cache, so that a prediction equals one from cached features.
                of_taps: list[NDArray[np.float32]] = [
                    as_read(features, storage, tap.axes).reshape(len(rows), views, -1)
                    for features, tap in zip(block.features, model.stored, strict=True)
                ]
                for head, truth in zip(heads, truths, strict=True):
                    head.add(rows, ids, partial(head.of_view, [of_taps[place[one]] for one in head.layers]), truth)
            for item in block.failed:
                assert item.error is not None  # that is what puts it here
                failed.append((item.row, (samples.id_of(item.row), item.error.reason, item.error.message)))
            done += len(block)
            if progress is not None:
                progress(done, len(samples))
    reasons = [one for _, one in sorted(failed)]
    seconds = time.monotonic() - began
    warnings = (*decision.warnings, *_cut_words([samples.id_of(row) for row in sorted(cut)], model.unit))
    return [head.result(reasons, warnings, seconds) for head in heads]


def _cut_words(names: Sequence[str], unit: str) -> tuple[str, ...]:
    """A warning where the ends of samples were left out, as in the features that the head was trained on."""
    if not names:
        return ()
    shown = f"{', '.join(names[:CUT_NAMED])}{', ...' if len(names) > CUT_NAMED else ''}"
    return (f"{len(names):,} {unit} are longer than the backbone takes and were cut off at the end: {shown}",)


def _view_of_cache(cache: Cache, layer: str, rows: NDArray[np.int64], view: int) -> RowView:
    features = cache.features(layer)
    return RowView(features[:, view] if cache.views > 1 else features, rows)


def _of_cache(
    heads: Sequence[Answers], path: str | os.PathLike[str], progress: Progress | None, began: float
) -> list[Predictions]:
    with open_cache(path) as cache:
        trained = {head.path: trained_layer(head.saved, cache, head.path) for head in heads}
        whole = np.logical_and.reduce(
            [whole_rows(one, layer) for layer, one in {layer: one for one, layer in trained.values()}.items()]
        )
        truths = [head.truth_of_cache(cache) for head in heads]
        ids, rows = cache.column("samples/id"), np.flatnonzero(whole)
        for start in range(0, len(rows), AT_ONCE):
            chosen = rows[start : start + AT_ONCE]
            names = [os.fsdecode(bytes(name)) for name in ids[chosen].tolist()]
            for head, truth in zip(heads, truths, strict=True):
                head.add(chosen.tolist(), names, partial(_view_of_cache, *trained[head.path], chosen), truth)
            if progress is not None:
                progress(start + len(chosen), len(rows))
        status = cache.status
        failed = [
            (os.fsdecode(bytes(ids[row])), status_name(int(status[row])), f"a row of {cache.path} without features")
            for row in np.flatnonzero(~whole).tolist()
        ]
        seconds = time.monotonic() - began
        return [head.result(failed, (), seconds) for head in heads]


def rebuild(
    heads: Sequence[HeadFile],
    *,
    backbone: str | None = None,
    weights: str | None = None,
    augment: str | Sequence[str] | None = None,
) -> tuple[Backbone, str, str]:
    """The backbone that heads were trained on, its precision and how its features were stored.

    It makes the views that a head averages over, else the plain one.
    Raises HeadMismatchError where weights, transform or layer differ from those of the training, or the heads among
    themselves.
    """
    first = heads[0]
    alone = len({head.layers for head in heads}) == 1 and len({str(head.metadata.get("key")) for head in heads}) == 1
    plain = not any(head.averages for head in heads)
    model, spec = rebuild_backbone(
        first.metadata.get("spec") if alone else _common_spec(heads, plain=plain),
        first.metadata.get("weights_source", {}),
        first.origin,
        backbone=backbone,
        weights=weights,
        layers={layer for head in heads for layer in head.layers},
        augment=augment,
        plain=plain,
    )
    shapes = {tap.layer: tap.shape for tap in model.taps}
    for head in heads:
        if head.averages and head.averages != model.preprocess.views:
            raise HeadFormatError(
                f"{head.origin.file} averages over {head.averages} views and was trained on {model.preprocess.views}.",
                hint="Train it again.",
            )
        head.check_shapes(model.name, shapes)
    return model, spec["precision"], spec["storage"]


def _common_spec(heads: Sequence[HeadFile], *, plain: bool) -> dict[str, Any]:
    """The settings of heads that differ in nothing but their layers, with all of these.

    plain: views make no difference, as the plain one is enough.
    Raises HeadMismatchError where they differ in more, HeadFormatError where one has none.
    """
    specs = [_spec_and_layers(head, plain=plain) for head in heads]
    common, layers = {**specs[0][0], "layers": []}, list(specs[0][1])
    for head, (spec, own) in zip(heads[1:], specs[1:], strict=True):
        lines = [str(line) for line in difference(common, {**spec, "layers": []})]
        lines += [f"{layer['name']} is pooled in another way" for layer in own for one in layers if _clash(one, layer)]
        if lines:
            raise HeadMismatchError(
                "\n".join([f"{heads[0].path} and {head.path} were trained on different features.", *lines]),
                hint="Predict by heads of one backbone, with the same weights and transform, or by one at a time.",
            )
        layers += [layer for layer in own if layer not in layers]
    return {**common, "layers": layers}


def _clash(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one != other and one.get("name") == other.get("name")


def _spec_and_layers(head: HeadFile, *, plain: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    spec = head.metadata.get("spec")
    spec = plain_spec(spec) if plain and isinstance(spec, dict) else spec
    layers = spec.get("layers") if isinstance(spec, dict) else None
    described = [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
    own = [layer for layer in described if layer.get("name") in head.layers]
    if isinstance(spec, dict) and {layer.get("name") for layer in own} == {*head.layers}:
        return spec, own
    raise HeadFormatError(
        f"{head.origin.file} does not say which features it was trained on.", hint="Use one that precompute made."
    )
