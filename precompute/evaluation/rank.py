"""Which backbone, and which of its layers, should be taken for these images? Tried on a sample of them.

No score that spares the training of a head is reliable (docs/rank.md), so each candidate is tried by what it is for: a
small logistic probe, cross-validated, with a k-NN vote next to it. The candidates answer for the same images, so they
are compared in pairs, and those without a significant difference from the best are reported.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from precompute.errors import Stopped, TrainingError, UsageError
from precompute.evaluation.candidates import (
    Candidate,
    Computation,
    Cost,
    Featured,
    check_candidates,
    features_of,
    width_of,
)
from precompute.evaluation.probes import KNN, PROBE, Trial, separated
from precompute.evaluation.sample import sample_rows, target_of, training_rows
from precompute.extraction.conduct import Conduct, Progress
from precompute.extraction.executors.base import Executor
from precompute.extraction.executors.names import opened
from precompute.heads import Paired, PairedScores
from precompute.heads.base.progress import report
from precompute.inputs.images.formats import IMAGES
from precompute.sources.base import Reading, Source
from precompute.sources.chosen import ChosenSource
from precompute.sources.registry import open_source
from precompute.training.groups import group_names, join
from precompute.training.splits import digest_groups, whole_rows
from precompute.training.targets import AUTO, CLASSES, LABELS, NUMBER, Rows, Target, check_target

SAMPLE = 2000
NAMED = 4  # candidates in a sentence
METRICS = {CLASSES: "accuracy", LABELS: "mean_average_precision", NUMBER: "r2"}


@dataclass(frozen=True)
class Ranked:
    """One layer of one backbone.

    width: its features for one image · score, interval: of the probe, see `Ranking.metric` · knn, knn_interval: of the
    k-NN vote, which chooses nothing · group: 1 for the best and all without a significant difference from it, 2 for
    the best of the rest, and so on · behind: the first of its group compared with it (of the first itself
    that of the group before), None for the best of all · parameters: of the network up to the last layer taken ·
    cost: of a full extraction that keeps this layer, at the pace of one that takes all layers requested.
    """

    backbone: str
    weights: str
    layer: str
    width: int
    score: float
    interval: tuple[float, float]
    knn: float
    knn_interval: tuple[float, float]
    group: int
    behind: Paired | PairedScores | None
    parameters: int
    cost: Cost

    @property
    def backbone_name(self) -> str:
        """With its weights, where they are not the default."""
        return Candidate(self.backbone, self.weights).name

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        behind = None if self.behind is None else self.behind.to_dict()
        return {**asdict(replace(self, behind=None)), "cost": self.cost.to_dict(), "behind": behind}


@dataclass(frozen=True)
class Ranking:
    """Backbones and layers, the best first.

    candidates: group by group, by score inside · images: in the source · tried: how many of them all were tried on ·
    metric: accuracy,
    mean_average_precision or r2 · tau: Kendall's tau-b between the order of backbones (each at its best layer) and
    that by number of parameters, None with fewer than two sizes or scores · folder: where feature files were kept,
    None where they were not · seconds: of the whole call.
    """

    source: str
    images: int
    tried: int
    task: str
    metric: str
    candidates: tuple[Ranked, ...]
    tau: float | None
    notes: tuple[str, ...]
    folder: str | None
    seed: int
    seconds: float

    @property
    def best(self) -> tuple[Ranked, ...]:
        """The best and all that are not significantly different from it."""
        return tuple(one for one in self.candidates if one.group == 1)

    @property
    def words(self) -> str:
        """The answer."""
        names = [self.name_of(one) for one in self.best]
        if len(self.candidates) == 1:
            return f"{names[0]} is the only candidate."
        if len(names) == 1:
            return f"{names[0]} is significantly better than the others."
        cheapest = min(self.best, key=lambda one: (one.cost.seconds or 0.0, one.cost.bytes))
        shown = names if len(names) <= NAMED else [*names[: NAMED - 1], f"{len(names) - NAMED + 1} others"]
        listed = f"{', '.join(shown[:-1])} and {shown[-1]}"
        which = "all candidates" if len(names) == len(self.candidates) > 2 else listed
        return (
            f"No significant difference between {which} with {self.tried:,} images. "
            f"The cheapest of them is {self.name_of(cheapest)}."
        )

    def name_of(self, one: Ranked) -> str:
        """A candidate by its backbone, and by its layer where there are several of that backbone."""
        several = sum(other.backbone_name == one.backbone_name for other in self.candidates) > 1
        return f"{one.backbone_name} {one.layer}" if several else one.backbone_name

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **{name: value for name, value in vars(self).items() if name != "candidates"},
            "notes": list(self.notes),
            "best": [self.name_of(one) for one in self.best],
            "verdict": self.words,
            "candidates": [{"name": self.name_of(one), **one.to_dict()} for one in self.candidates],
        }


@dataclass(frozen=True, eq=False)
class _Tried:
    """What one layer of one backbone answered."""

    of: Featured
    layer: str
    answers: NDArray[Any]
    score: float
    interval: tuple[float, float]
    knn: float
    knn_interval: tuple[float, float]


def rank(
    source: str | os.PathLike[str] | Source | Any,
    backbones: Sequence[str],
    *,
    layer: str | Sequence[str] | None = None,
    pooling: str = "auto",
    n: int = SAMPLE,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    task: str = AUTO,
    label_separator: str | None = None,
    groups: str | None = None,
    groups_file: str | os.PathLike[str] | None = None,
    transform: Mapping[str, Any] | None = None,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    executor: Executor | str | None = None,
    exact: bool = False,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], int] | None = None,
    say: Callable[[str], None] | None = None,
) -> Ranking:
    """Compare backbones, and their layers, on `n` images of `source`, and rank them.

    backbones: each NAME or NAME=WEIGHTS, such as "resnet18" or "resnet50=random:1". layer, pooling, transform, engine
    to columns: as for `extract`, with one executor for all; maps and tokens of layers that are named are averaged over
    positions unless a pooling is named too. n: images, drawn by class from split train (from all where there are no
    splits), never from val or test; they follow from ids and `seed` alone and are the same for every backbone. out: a
    folder for the feature files of the sample, which a later call uses again; by default they are removed.
    task, label_separator, groups, groups_file: as for `train_head`.

    Scores come from a 5-fold cross-validation in which identical files and groups stay together. Candidates are
    compared on the same images (McNemar's test and a paired bootstrap, with Holm's correction for their number); the
    intervals and tests cover other images to score, and not other images to train on.

    Raises UsageError, TrainingError where there is too little to learn, and what `extract` raises. Every backbone is
    loaded before an image is read.
    """
    began = time.monotonic()
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UsageError(f"n must be a whole number of at least 1. Got {n!r} instead.", hint="For example -n 2000.")
    conduct = Conduct(workers, executor=executor, exact=exact)
    candidates = [Candidate.parse(text) for text in backbones]
    computation = Computation(
        (layer,) if isinstance(layer, str) else tuple(layer or ()),
        *(pooling, dict(transform or {}), engine, precision, device, batch_size, workers),
    )
    sizes = check_candidates(candidates, computation)
    whole = open_source(source, IMAGES, reading=Reading.of(root, columns), stop=stop, alone=False)
    target = target_of(whole, task, label_separator)
    rows = sample_rows(whole, target, n, seed)
    notes = _sample_notes(whole, target, n)
    chosen = ChosenSource(whole, rows, f"{len(rows):,} images of {whole.name}")
    with _folder(out) as folder:
        featured = []
        with opened(conduct.executor, workers=workers, exact=exact) as computing:
            for candidate, size in zip(candidates, sizes, strict=True):
                if say is not None:
                    say(f"{candidate.name}: {len(rows):,} images")
                given: dict[str, Any] = {"parameters": size, "executor": computing, "progress": progress, "stop": stop}
                featured.append(features_of(candidate, chosen, whole, folder, computation, **given))
                notes += [f"{candidate.name}: {note}" for note in featured[-1].notes]
        usable, more = _answerable(featured)
        notes += more
        trial = _trial(whole, _of(target, rows[usable]), featured[0], usable, groups, groups_file, seed)
        layers = [(one, name) for one in featured for name in one.cache.layers]
        tried = []
        for number, (one, name) in enumerate(layers):
            report("layers tried", number, len(layers))
            if stop is not None and (signum := stop()):
                hint = "With -o FOLDER the features are kept. Run the same command again."
                raise Stopped(f"Stopped with {number} of {len(layers)} layers tried.", signum=signum, hint=hint)
            tried.append(_try(one, name, usable, trial))
        report("layers tried", len(layers), len(layers))
    ranked = _in_order(tried, trial)
    return Ranking(
        source=whole.name,
        images=len(whole),
        tried=len(trial),
        task=target.task,
        metric=METRICS[target.task],
        candidates=ranked,
        tau=_by_size(ranked),
        notes=tuple(notes),
        folder=None if out is None else os.fspath(out),
        seed=seed,
        seconds=time.monotonic() - began,
    )


@contextlib.contextmanager
def _folder(out: str | os.PathLike[str] | None) -> Iterator[str]:
    if out is None:
        with tempfile.TemporaryDirectory(prefix="precompute-rank-") as folder:
            yield folder
        return
    path = os.fspath(out)
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The folder {path!r} cannot be made: {error.strerror}.", hint="Choose another with -o."
        ) from error
    yield path


def _sample_notes(source: Source, target: Target, n: int) -> list[str]:
    pool = len(training_rows(source, target))
    if n > pool:
        return [f"there are {pool:,} labelled training images, fewer than the {n:,} requested: all are used"]
    return []


def _of(target: Target, rows: Rows) -> Target:
    return replace(target, values=target.values[rows], known=target.known[rows])


def _answerable(featured: Sequence[Featured]) -> tuple[Rows, list[str]]:
    """Rows of the sample that every candidate has features of."""
    whole = np.logical_and.reduce([whole_rows(one.cache, name) for one in featured for name in one.cache.layers])
    usable = np.flatnonzero(whole)
    if not len(usable):
        raise TrainingError("None of the sample's images can be read.", hint="Extract to see each reason.")
    broken = len(whole) - len(usable)
    return usable, [f"{broken:,} images have no features and are left out"] if broken else []


def _trial(
    whole: Source,
    target: Target,
    first: Featured,
    usable: Rows,
    pattern: str | None,
    file: str | os.PathLike[str] | None,
    seed: int,
) -> Trial:
    check_target(target, {"train": np.arange(len(usable))}, f"the sample of {whole.name}")
    together = digest_groups(first.cache)[usable]
    names = group_names(first.cache, usable, pattern=pattern, file=file)
    if names is not None:
        together = join(together, names)
    return Trial.of(target, together, where=whole.name, seed=seed)


def _try(one: Featured, layer: str, usable: Rows, trial: Trial) -> _Tried:
    features = one.cache.plain_features(layer)[usable]
    knn, knn_interval = trial.score(trial.answers(features, KNN))
    answers = trial.answers(features, PROBE[trial.target.task])
    return _Tried(one, layer, answers, *trial.score(answers), knn, knn_interval)


def _in_order(tried: Sequence[_Tried], trial: Trial) -> tuple[Ranked, ...]:
    """Group by group, the best of each first; equal scores by size and name, so that the order is always the same."""
    rest = sorted(tried, key=lambda one: (-one.score, one.of.parameters, one.of.candidate.name, one.layer))
    found: list[Ranked] = []
    group, leader = 0, rest[0]
    while rest:
        group += 1
        before, leader = leader, rest[0]
        results = [trial.paired(leader.answers, other.answers) for other in rest[1:]]
        won = separated(results)
        behind = None if group == 1 else trial.paired(before.answers, leader.answers)
        found.append(_ranked(leader, group, behind))
        pairs = list(zip(rest[1:], results, won, strict=True))
        found += [_ranked(other, group, result) for other, result, lost in pairs if not lost]
        rest = [other for other, _, lost in pairs if lost]
    return tuple(found)


def _ranked(one: _Tried, group: int, behind: Paired | PairedScores | None) -> Ranked:
    return Ranked(
        backbone=one.of.candidate.backbone,
        weights=one.of.candidate.weights,
        layer=one.layer,
        width=width_of(one.of.cache, one.layer),
        score=one.score,
        interval=one.interval,
        knn=one.knn,
        knn_interval=one.knn_interval,
        group=group,
        behind=behind,
        parameters=one.of.parameters,
        cost=one.of.costs[one.layer],
    )


def _by_size(ranked: Sequence[Ranked]) -> float | None:
    """Kendall's tau-b between size and score, of each backbone at its best layer."""
    best = {one.backbone_name: one for one in reversed(ranked)}
    if len(best) < 2:
        return None
    found = float(kendalltau([one.parameters for one in best.values()], [one.score for one in best.values()]).statistic)
    return None if np.isnan(found) else found
