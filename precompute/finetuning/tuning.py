"""One fine-tuning: from data and labels to a trained tail, its scores and its file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from precompute.backbones.tail import own_tail, tail_of
from precompute.cache.lock import WriteLock, lock_path
from precompute.engines.devices import check_device
from precompute.errors import HeadFormatError, HeadMismatchError, UsageError
from precompute.finetuning.activations import ActivationRows
from precompute.finetuning.checkpoint import NEW_SUFFIX, SUFFIX, Checkpoint, State
from precompute.finetuning.data import Data
from precompute.finetuning.loop import Conduct, Trainer, check_arrays, criterion_of
from precompute.finetuning.lp_ft import begin, linear_head, tuned_head
from precompute.finetuning.network import TailNetwork, prepared
from precompute.finetuning.settings import TailSettings
from precompute.finetuning.start import (
    Frozen,
    Linear,
    choose_samples,
    frozen_features,
    goals,
)
from precompute.finetuning.tail_file import OWN_TAIL, TAIL, save_tail
from precompute.finetuning.tail_head import TailHead
from precompute.finetuning.wanted import Wanted
from precompute.heads import RowView, choose_thresholds, paired, paired_labels, paired_numbers
from precompute.system.output import Output, check_output
from precompute.training.calibration import FITTED_ON
from precompute.training.fitting import DEFAULT_THRESHOLDS
from precompute.training.head import Training, asked_record, file_summary, kept_together
from precompute.training.membership import split_record
from precompute.training.scoring import SCORED, answer, score, score_answers
from precompute.training.splits import parts_of, whole_rows
from precompute.training.targets import CLASSES, LABELS, NUMBER, Rows, check_target, target_digest
from precompute.training.views import AVERAGED, check_views, mean_over, view_notes

KIND = "tail"


@dataclass(frozen=True)
class Tuning(Training):
    """As `Training`, and what fine-tuning changed.

    before: by split, scores of the linear head that it began with · paired: by split, the tail compared with that head
    on the same images · skipped: how many images of a SOURCE could not be read; 0 of a cache, which knows its own.
    """

    before: dict[str, Any]
    paired: dict[str, Any]
    skipped: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **super().to_dict(),
            "before": {split: scores.to_dict() for split, scores in self.before.items()},
            "paired": {split: found.to_dict() for split, found in self.paired.items()},
            "skipped": self.skipped,
        }


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
        state, linear = kept or begin(frozen, self.target, self.samples, self.together, self.settings)
        network = TailNetwork(module, linear.layer)
        how = replace(conduct, checkpoint=checkpoint)
        trainer = Trainer(
            network,
            self.data.activations,
            goals(self.target, linear.names, linear.mean, linear.scale),
            self.samples,
            self.views,
            criterion_of(self.target.task, len(linear.layer.bias), linear.scale, self.settings.device),
            self.settings,
            state,
            how,
        )
        trainer.run()
        seconds = time.monotonic() - began
        head = tuned_head(
            *(network, self.data.activations.shape, self.target.task, state, linear, self.samples, self.settings)
        )
        tuning = self._scored(head, linear_head(linear, self.target.task), frozen, seconds)
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
            unit="images",
            before={
                split: score(start, task, self.target.of(rows), begun[split], self.together[rows])
                for split, rows in self.scored.items()
            },
            paired=compared,
            skipped=self.data.skipped,
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
        record, wanted = self.relabelling.record(), self.wanted
        asked = asked_record(
            groups=wanted.groups,
            groups_file=wanted.groups_file,
            groups_column=wanted.groups_column,
            similarity=wanted.similarity,
            plain=wanted.plain_view,
        )
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
                **({"asked": asked} if asked else {}),
            },
        }
