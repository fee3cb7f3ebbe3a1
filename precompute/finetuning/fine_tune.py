"""Fine-tune what lies behind a layer, and score it on images it has not seen."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from precompute.backbones.tail import own_tail, tail_of
from precompute.cache import Cache, open_cache
from precompute.cache.lock import WriteLock, lock_path
from precompute.engines.devices import check_device
from precompute.errors import CacheFormatError, HeadFormatError, HeadMismatchError, UsageError
from precompute.extraction.conduct import Progress
from precompute.extraction.output import is_hdf5
from precompute.extraction.rebuild import Origin, rebuild_backbone
from precompute.finetuning.activations import ActivationRows, CachedActivations
from precompute.finetuning.checkpoint import NEW_SUFFIX, SUFFIX, Checkpoint, State
from precompute.finetuning.data import Data
from precompute.finetuning.device import device_of
from precompute.finetuning.labelled_images import ImageOptions, open_images
from precompute.finetuning.loop import Conduct, Trainer, Watch, check_arrays, criterion_of, entry_of, measure
from precompute.finetuning.network import TailNetwork, prepared
from precompute.finetuning.settings import TailSettings
from precompute.finetuning.start import (
    Frozen,
    Linear,
    choose_samples,
    fit_linear,
    frozen_features,
    goals,
)
from precompute.finetuning.tail_file import OWN_TAIL, TAIL, save_tail
from precompute.finetuning.tail_head import Fitted, TailHead
from precompute.heads import RowView, choose_thresholds, paired, paired_labels, paired_numbers
from precompute.sources.base import Source
from precompute.system.output import Output, check_output
from precompute.training.calibration import FITTED_ON
from precompute.training.fitting import DEFAULT_THRESHOLDS
from precompute.training.head import Training, file_summary, kept_together
from precompute.training.membership import split_record
from precompute.training.relabelling import Relabelling
from precompute.training.scoring import SCORED, answer, score, score_answers
from precompute.training.splits import parts_of, whole_rows
from precompute.training.targets import AUTO, CLASSES, LABELS, NUMBER, Rows, check_target, target_digest
from precompute.training.views import AVERAGED, check_views, mean_over, view_notes

KIND = "tail"
NAMES_OF_CACHES = (".h5", ".hdf5")


@dataclass(frozen=True)
class Wanted:
    """What is to be learned, and how it is scored: the options of `train_head` with these names."""

    groups: str | None = None
    groups_file: str | os.PathLike[str] | None = None
    groups_column: str | None = None
    label_column: str | Sequence[str] | None = None
    label_separator: str | None = None
    split_column: str | None = None
    task: str = AUTO
    labels: str | os.PathLike[str] | None = None
    expect: int | None = None
    similarity: float | None = None
    plain_view: bool = False
    average_views: bool = False
    calibrated: bool = False

    def columns(self, also: Sequence[str] = ()) -> tuple[str, ...]:
        """The further columns that it takes from a cache, behind those of `also`."""
        labels = (self.label_column,) if isinstance(self.label_column, str) else self.label_column or ()
        named = (*also, *labels, self.split_column, self.groups_column)
        return tuple(name for name in dict.fromkeys(named) if name is not None)

    def check(self) -> Relabelling:
        """Raise UsageError for what contradicts itself; where target and splits come from."""
        if self.similarity is not None and not 0 < self.similarity <= 1:
            given = f"Got {self.similarity!r} instead."
            raise UsageError(f"similarity must be above 0 and at most 1. {given}", hint="Try 0.9.")
        return Relabelling.of(
            self.label_column,
            self.split_column,
            self.labels,
            expected=self.expect,
            task=self.task,
            separator=self.label_separator,
        )


@dataclass(frozen=True)
class Tuning(Training):
    """As `Training`, and what fine-tuning changed.

    before: by split, scores of the linear head that it began with · paired: by split, the tail compared with that head
    on the same images.
    """

    before: dict[str, Any]
    paired: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **super().to_dict(),
            "before": {split: scores.to_dict() for split, scores in self.before.items()},
            "paired": {split: found.to_dict() for split, found in self.paired.items()},
        }


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

    LP-FT (Kumar et al., ICLR 2022): first the linear head that `train-head` would fit on what the frozen tail gives,
    then tail and head together at a small rate. See `TailSettings` for what the settings mean. The epoch of the lowest
    loss on the selection set is kept, and the linear head alone counts as epoch 0: by that loss, fine-tuning never ends
    worse than it began. The selection set is val where there is a test split too, else a hold-out of train.

    source: a cache with the unpooled activations of `layer`; with several views an epoch draws one of each sample's.
    backbone, weights are then as for `predict`: a confirmation for code of the user's own, and where the weights are.

    source: or images, as `extract` takes them. backbone, which must be given, weights, transform, workers, root,
    columns and keep are then as for `extract`. freeze_to: the layer up to which the network stays as it is, by default
    none. augment: what views are made by, of which each epoch draws another of each image: by default "crop,flip",
    "none" for plain images. features: a cache of these images with what enters the network's classifier. By default it
    is made first, at `out` + ".features.h5", and left there: `compare` and `train_head` take it, and the same call uses
    it again. progress: called while it is made. An image that has changed since is an error.

    wanted: the options of `train_head` named in `Wanted`; their columns are those of the cache, or of the source's
    table.
    tail: `package.module:factory` of a tail of the user's own, see `precompute.backbones.tail.own_tail`.
    out: the file of the tail. While it is trained, `OUT.checkpoint` holds its state, every `checkpoint_seconds`: the
    same call goes on from there, with the same result on a CPU, byte for byte. overwrite: replace whatever file has
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
            f"{shown} is no feature file; to train on images, the network must be named.",
            hint="Such as -b resnet18. To train on stored activations, give the cache that holds them.",
        )
    if layer is not None:
        raise UsageError(
            f"{shown} holds images, so --layer says nothing.",
            hint="Name the layer up to which the network stays as it is by --freeze-to.",
        )
    if wanted.average_views:
        raise UsageError(
            "A network that is trained from images predicts from the plain image.", hint="Leave --average-views out."
        )
    if out is None and features is None:
        raise UsageError(
            "What enters the classifier is computed first, and needs a file.",
            hint="Name the output, -o OUT, beside which it is put, or a file that holds it already, --features CACHE.",
        )
    if out is not None:  # before the work, not after it
        check_output(out, TAIL, overwrite=overwrite, inputs=(features, wanted.groups_file, wanted.labels))


def open_cached(
    source: Cache | str | os.PathLike[str],
    layer: str | None,
    *,
    backbone: str | None = None,
    weights: str | None = None,
) -> Data:
    """A cache's layer, with the backbone that made it, found again by the digest of its weights."""
    cache = source if isinstance(source, Cache) else open_cache(source)
    activations = CachedActivations(cache, layer)
    layer = layer or cache.layers[0]
    origin = Origin(f"The cache {cache.path}", "was made", "with", HeadMismatchError, CacheFormatError)
    found = cache.last_run.get("weights", {})
    model, _ = rebuild_backbone(
        cache.spec, found, origin, backbone=backbone, weights=weights, layers={layer}, plain=True
    )
    name = os.path.basename(cache.path)
    return Data(cache, layer, model, layer, activations, cache.spec, cache.key, found, name)


def tune(
    data: Data,
    out: str | os.PathLike[str] | None,
    wanted: Wanted,
    settings: TailSettings,
    conduct: Conduct,
    *,
    tail: str | None = None,
    overwrite: bool = False,
) -> Tuning:
    """`fine_tune` of whatever `data` is. conduct: its checkpoint is made here, where there is an output."""
    wanted.check()
    settings.check()
    if check_device(settings.device) != "cuda" and settings.precision != "fp32":
        raise UsageError("Mixed precision is for CUDA.", hint="Leave --precision out, or add --device cuda.")
    with contextlib.ExitStack() as held:
        output: Output | None = None
        if out is not None:
            suffixes = (SUFFIX, NEW_SUFFIX, lock_path(""))
            inputs = (data.cache.path, wanted.groups_file, wanted.labels)
            output = check_output(out, TAIL, overwrite=overwrite, inputs=inputs, suffixes=suffixes)
            held.enter_context(WriteLock(output.path))
        run = _Run(data, wanted, settings, tail, output, overwrite)
        return run.result(conduct)


class _Run:
    """One fine-tuning, from the labels to the file."""

    def __init__(
        self,
        data: Data,
        wanted: Wanted,
        settings: TailSettings,
        tail: str | None,
        output: Output | None,
        overwrite: bool,
    ) -> None:
        self.data, self.wanted, self.settings, self.factory = data, wanted, settings, tail
        self.output, self.overwrite = output, overwrite
        self.relabelling = wanted.check()
        self.cache, self.target, labelled = self.relabelling.apply(data.cache)
        if wanted.calibrated and self.target.task != CLASSES:
            raise UsageError("--calibrate is for --task classes.", hint="Leave it out.")
        self.views = 1 if wanted.plain_view else data.activations.views
        check_views(self.cache, self.views, average=wanted.average_views, plain_only=False)
        whole = whole_rows(self.cache, data.cache_layer)
        self.digests, self.together, self.n_groups = kept_together(
            self.cache,
            np.flatnonzero(whole & self.target.known),
            wanted.groups,
            wanted.groups_file,
            wanted.groups_column,
        )
        self.parts, notes = parts_of(self.cache, whole, settings.seed, self.together, self.target)
        if wanted.calibrated and FITTED_ON not in self.parts:
            raise UsageError(
                f"{self.cache.path} has no split val to fit a temperature on.", hint="Leave --calibrate out."
            )
        views = view_notes(self.cache, self.views, average=wanted.average_views)
        self.notes = [*data.notes, *labelled, *views, *notes, *check_target(self.target, self.parts, self.cache.path)]
        if settings.precision != "fp32":
            self.notes.append(f"trained in mixed precision, fp32 and {settings.precision}; scored in fp32")
        # What a temperature is fitted on must not have chosen anything.
        can_choose = "val" in self.parts and "test" in self.parts and not wanted.calibrated
        self.selection = "val" if can_choose else None
        self.samples = choose_samples(self.parts, self.target, self.together, self.selection, settings.seed)
        self.scored = {split: self.parts[split] for split in SCORED if split in self.parts}

    def result(self, conduct: Conduct) -> Tuning:
        began = time.monotonic()
        module = prepared(self._tail(), self.settings.device)
        checkpoint = None
        if self.output is not None:
            checkpoint = Checkpoint(self.output.path, self._described())
            checkpoint.check()
        kept = self._kept(checkpoint, module)
        frozen = self._frozen(module)
        state, linear = kept or self._begun(frozen)
        network = TailNetwork(module, linear.layer)
        how = replace(conduct, checkpoint=checkpoint)
        trainer = Trainer(
            network,
            self.data.activations,
            goals(self.target, linear.names, linear.mean, linear.scale),
            self.samples,
            self.views,
            self._criterion(linear, self.settings.device),
            self.settings,
            state,
            how,
        )
        trainer.run()
        seconds = time.monotonic() - began
        head = TailHead(
            *(network, self.data.activations.shape, self.target.task, linear.names),
            self._fitted(state, linear),
            self.settings.device,
        )
        tuning = self._scored(head, self._start(linear), frozen, seconds)
        if self.output is not None:
            save_tail(self.output.path, head, metadata=self._metadata(tuning), overwrite=self.overwrite)
        if checkpoint is not None:
            checkpoint.remove()
        return tuning

    def _tail(self) -> nn.Module:
        if self.factory is None:
            return tail_of(self.data.backbone, self.data.layer)
        return own_tail(self.factory, self.data.backbone, self.data.layer, seed=self.settings.seed)

    def _described(self) -> dict[str, Any]:
        """What a checkpoint belongs to."""
        rows = hashlib.sha256()
        for part in (self.samples.fit, self.samples.held):
            rows.update(len(part).to_bytes(8, "little") + part.astype("<i8").tobytes())
        return {
            "key": self.data.key,
            "layer": self.data.layer,
            "tail": self.factory,
            "images": target_digest(self.cache, self.target),
            "rows": rows.hexdigest(),
            "views": self.views,
            "device": torch.device(self.settings.device).type,
            "settings": self.settings.record(),
        }

    def _kept(self, checkpoint: Checkpoint | None, module: nn.Module) -> tuple[State, Linear] | None:
        """What a checkpoint holds, checked against the tail; None where there is none."""
        try:
            state = None if checkpoint is None else checkpoint.load()
            if checkpoint is None or state is None:
                return None
            try:
                linear = Linear.of_record(state.linear, state.arrays)
                check_arrays(TailNetwork(module, linear.layer), state.arrays)
            except (KeyError, TypeError, ValueError) as error:
                raise checkpoint.damaged(error) from error
        except (HeadFormatError, HeadMismatchError):
            if self.overwrite:
                return None
            raise
        return state, linear

    def _frozen(self, tail: nn.Module) -> Frozen:
        """What the frozen tail gives for all rows that are used, with all views of those that are trained on."""
        if self.data.frozen is not None:
            return Frozen(self.data.frozen, 1)
        train = self.parts["train"]
        views = self.views if self.cache.views > 1 else 1  # those of images are too many to see all
        others = np.sort(np.concatenate([np.zeros(0, np.int64), *self.scored.values()]))
        others_views = self.data.activations.views if self.wanted.average_views else 1
        asked = sorted([(train, views), (others, others_views)], key=lambda one: -one[1])
        folder = None if self.output is None else os.path.dirname(self.output.path) or "."
        return frozen_features(tail, self.data.activations, len(self.cache), asked, folder)

    def _begun(self, frozen: Frozen) -> tuple[State, Linear]:
        """Where a training begins: at the linear head, which is epoch 0."""
        seed, device = self.settings.seed, self.settings.device
        linear = fit_linear(frozen, self.target, self.samples, self.together, seed, device)
        goal = goals(self.target, linear.names, linear.mean, linear.scale)
        criterion, start = self._criterion(linear, "cpu"), self._start(linear)

        def measured(rows: Rows) -> tuple[float, float]:
            outputs = torch.from_numpy(start.outputs(RowView(frozen.plain, rows)))
            return measure([(rows, outputs)], goal, criterion)

        trained = measured(self.samples.fit)
        held = measured(self.samples.held) if len(self.samples.held) else None
        history = [entry_of(0, trained, held, criterion)]
        record, arrays = linear.record()
        return State(history=history, best_loss=(held or trained)[0], linear=record, arrays=arrays), linear

    def _criterion(self, linear: Linear, device: str) -> Any:
        return criterion_of(self.target.task, len(linear.layer.bias), linear.scale, device)

    def _start(self, linear: Linear) -> TailHead:
        """The linear head, on what the frozen tail gives."""
        network = TailNetwork(nn.Identity(), linear.layer)
        nothing = Fitted([], 0, "", linear.chosen, {}, linear.mean, linear.scale)
        return TailHead(network, linear.layer.weight.shape[1:], self.target.task, linear.names, nothing)

    def _fitted(self, state: State, linear: Linear) -> Fitted:
        return Fitted(
            state.history,
            state.best_epoch,
            self.samples.source,
            linear.chosen,
            self.settings.record(),
            linear.mean,
            linear.scale,
        )

    def _answers(self, head: TailHead, rows: Rows) -> NDArray[np.floating]:
        """What the tail says of `rows`: of their plain view, or the mean over all views."""
        activations, task = self.data.activations, self.target.task

        def said(view: int) -> NDArray[np.floating]:
            return answer(head, ActivationRows(activations, rows, view), task)

        return mean_over(said, activations.views) if self.wanted.average_views else said(0)

    def _answers_before(self, start: TailHead, frozen: Frozen, rows: Rows) -> NDArray[np.floating]:
        task = self.target.task
        if not self.wanted.average_views:
            return answer(start, RowView(frozen.plain, rows), task)
        return mean_over(lambda view: answer(start, RowView(frozen.features[:, view], rows), task), frozen.views)

    def _scored(self, head: TailHead, start: TailHead, frozen: Frozen, seconds: float) -> Tuning:
        task, settings = self.target.task, self.settings
        answers = {split: self._answers(head, rows) for split, rows in self.scored.items()}
        begun = {split: self._answers_before(start, frozen, rows) for split, rows in self.scored.items()}
        notes = list(self.notes)
        if task == LABELS and self.selection:
            true = self.target.of(self.parts[self.selection])
            head.set_thresholds(choose_thresholds(true, answers[self.selection]))
            start.set_thresholds(choose_thresholds(true, begun[self.selection]))
            notes.append("val chose the threshold of each label, by its F1")
        elif task == LABELS:
            notes.append(DEFAULT_THRESHOLDS)
        if not head.fitted.best_epoch:
            notes.append(
                "no epoch lowered the loss on the selection set: the linear head is kept, and the tail as it was"
            )
        scored = score_answers(
            *(head, answers, self.cache, frozen.plain, self.target, self.parts, self.digests, self.together),
            calibrated=self.wanted.calibrated,
            similarity=self.wanted.similarity,
        )
        compared = {
            split: found
            for split, rows in self.scored.items()
            if (found := self._paired(head, rows, answers[split], begun[split], settings.seed)) is not None
        }
        return Tuning(
            head=head,
            task=task,
            kind=KIND,
            layer=self.data.layer,
            layers=(self.data.layer,),
            rows={split: len(rows) for split, rows in self.parts.items()},
            scores=scored.scores,
            leaks=scored.leaks,
            without_leaks=scored.without_leaks,
            two_labels=scored.two_labels,
            groups=self.n_groups,
            calibration=scored.calibration,
            selected_on=self.selection,
            choices=head.choices(),
            protocol=None,
            notes=(*notes, *scored.notes),
            seconds=seconds,
            before={
                split: score(start, task, self.target.of(rows), begun[split], self.together[rows])
                for split, rows in self.scored.items()
            },
            paired=compared,
        )

    def _paired(
        self, head: TailHead, rows: Rows, after: NDArray[np.floating], before: NDArray[np.floating], seed: int
    ) -> Any | None:
        """The tail, first, and the linear head on the same images; None where no image has a label."""
        task, true, groups = self.target.task, self.target.of(rows), self.together[rows]
        if task == NUMBER:
            return paired_numbers(true, after, before, groups=groups, seed=seed)
        if task == LABELS:
            return paired_labels(true, after, before, groups=groups, seed=seed) if true.any() else None
        right = (head.classes_[said.argmax(axis=1)] == true for said in (after, before))
        return paired(*right, groups=groups, seed=seed)

    def _metadata(self, result: Tuning) -> dict[str, Any]:
        """What `predict` needs, and what a reader of the file wants to know. No seconds: see `tail_file`."""
        data, calibration = self.data, result.calibration
        summary = file_summary(result.to_dict(), self.target)
        record = self.relabelling.record()
        return {
            "spec": data.spec,
            "key": data.key,
            "layer": data.layer,
            "shape": list(data.activations.shape),
            **({OWN_TAIL: self.factory} if self.factory else {}),
            **({AVERAGED: data.activations.views} if self.wanted.average_views else {}),
            "weights_source": data.weights_source,
            **({"temperature": calibration.temperature} if calibration and calibration.applied else {}),
            "training": {
                **{name: value for name, value in summary.items() if name != "seconds"},
                "seed": self.settings.seed,
                "cache": data.name,
                "split": split_record(self.cache, self.target, self.parts),
                **({"relabelling": record} if record else {}),
            },
        }
