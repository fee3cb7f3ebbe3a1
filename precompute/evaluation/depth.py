"""How deep should be trained with this many labels, and from what? One table of measured answers.

Every method is fitted on the same draws of the training images and asked about the same test images. What is finished
is in the folder, so that a killed run resumes (`records`), and so do the feature files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.backbones.load import load_backbone
from precompute.cache import Cache, canonical_json
from precompute.errors import Stopped, TrainingError, UsageError
from precompute.evaluation.depth_methods import methods_of, names_of
from precompute.evaluation.depth_result import ALL, Depth, DepthMethod, DepthPoint, interval_of, standing
from precompute.evaluation.draws import drawn, pool_of
from precompute.evaluation.learning_curve import DRAWS
from precompute.evaluation.methods import Ground, Method
from precompute.evaluation.records import Records
from precompute.extraction.conduct import Progress
from precompute.heads.base.progress import report
from precompute.inputs.images.formats import IMAGES
from precompute.inputs.kinds import check_images, modality_of_name
from precompute.sources.base import Reading, Source
from precompute.sources.registry import open_source
from precompute.training.groups import group_names, join
from precompute.training.relabelling import Relabelling
from precompute.training.splits import HOLDOUT, digest_groups, parts_of, whole_rows
from precompute.training.targets import AUTO, CLASSES, NAMES, Rows, Target, check_target, target_digest

COMPARING = "depth compares methods on"
SHOTS: tuple[int | str, ...] = (1, 5, 20, 100, ALL)


@dataclass(frozen=True, eq=False)
class Task:
    """What is learned and tested on. pool: rows to draw from · test: rows · groups: (N,) what is one observation ·
    digest: of images, targets and test rows."""

    cache: Cache
    target: Target
    pool: Rows
    test: Rows
    split: str
    groups: NDArray[np.int64]
    digest: str
    notes: list[str]


@dataclass(frozen=True, eq=False)
class Fit:
    """One fit that is due. key: of its record."""

    shots: int | str
    draw: int
    rows: Rows
    key: dict[str, Any]


def depth(
    source: str | os.PathLike[str] | Source | Any,
    out: str | os.PathLike[str],
    *,
    backbone: str,
    weights: str = "DEFAULT",
    shots: Sequence[int | str] = SHOTS,
    draws: int = DRAWS,
    methods: Sequence[str] = (),
    seed: int = 0,
    groups: str | None = None,
    groups_file: str | os.PathLike[str] | None = None,
    training: Mapping[str, Any] | None = None,
    augment: str | None = None,
    transform: Mapping[str, Any] | None = None,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], int] | None = None,
    say: Callable[[str], None] | None = None,
) -> Depth:
    """Compare methods from a head on raw pixels to training the whole network, by labelled images a class.

    out: a folder for feature files and results, which a later call with the same arguments uses again. backbone,
    weights, transform, engine to columns: as for `extract`. shots: numbers of images of each class, and "all". draws:
    how often they are drawn, the same draws for every method; all labels are one draw. methods: names as
    `precompute depth --help` lists them, by default all but scratch. groups, groups_file: as for `train_head`, for the
    hold-out of a source without splits. training: values of `TailSettings` for the methods that train a network;
    augment: the views that images are trained in where everything is, see `fine_tune`.

    Images are drawn from split train and scored on test, or on val where there is no test; without either on a
    stratified hold-out of a fifth. Byte-identical images are never on both sides, and count once among those drawn.

    Raises UsageError, TrainingError for anything but classes and where there is too little to learn, and what `extract`
    and `fine_tune` raise.
    """
    names = names_of(methods)
    _check_numbers(shots, draws)
    check_images(backbone, COMPARING)
    if modality_of_name(backbone) is None:  # code of the user's own, or a family that takes several kinds
        model = load_backbone(backbone, weights=weights or "DEFAULT", transform=dict(transform or {}))
        check_images(backbone, COMPARING, model.preprocess.modality)
    records, folder = _folder(out)
    opened = open_source(source, IMAGES, reading=Reading.of(root, columns), stop=stop, alone=False)
    run = {"engine": engine, "precision": precision, "device": device, "batch_size": batch_size, "workers": workers}
    ground = Ground(opened, folder, records, backbone, weights, dict(transform or {}), run, progress, stop)
    if say is not None:
        say(f"head: features of {len(opened):,} images")
    cache = ground.extract("head")
    task = _task(cache, seed, groups, groups_file)
    chosen, notes = methods_of(names, ground, cache, dict(training or {}), augment)
    notes = [*task.notes, *notes]
    numbers, more = _numbers(task, shots)
    notes += more
    found: dict[tuple[str, int | str], list[tuple[Rows, dict[str, Any]]]] = {}
    costs: dict[str, DepthMethod] = {}
    for method in chosen:
        if say is not None:
            say(f"{method.name}: {len(numbers)} numbers of labels, {draws} draws each")
        due = _fits(method, task, numbers, draws, seed)
        _run(method, due, task, records, stop)
        costs[method.name] = DepthMethod(method.name, method.pretrained, *ground.cost(method.file), method.command())
        for fit in due:
            found.setdefault((method.name, fit.shots), []).append((fit.rows, records.get(fit.key) or {}))
    return _depth(ground, task, chosen, numbers, found, costs, draws, seed, notes)


def _check_numbers(shots: Sequence[int | str], draws: int) -> None:
    whole = [(name, value) for name, value in (*(("shots", n) for n in shots), ("draws", draws)) if value != ALL]
    for name, value in whole:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(
                f"{name} must be whole numbers of at least 1{', or all' if name == 'shots' else ''}. "
                f"Got {value!r} instead.",
                hint=f"See --{name}.",
            )
    if not shots:
        raise UsageError("shots must hold one number or more.", hint="For example --shots 1,5,all.")


def _folder(out: str | os.PathLike[str]) -> tuple[Records, str]:
    path = os.fspath(out)
    try:
        os.makedirs(path, exist_ok=True)
        return Records(os.path.join(path, "results.jsonl")), path
    except OSError as error:
        raise UsageError(
            f"The folder {path!r} cannot be used: {error.strerror}.", hint="Choose another with -o."
        ) from error


def _task(cache: Cache, seed: int, pattern: str | None, file: str | os.PathLike[str] | None) -> Task:
    cache, target, notes = Relabelling.of(task=AUTO).apply(cache)
    if target.task != CLASSES:
        raise TrainingError(
            f"{cache.path} predicts {NAMES[target.task]}, and depth compares methods only on classes.",
            hint="For labels and numbers: precompute few-shot, and precompute fine-tune for tails.",
        )
    whole = whole_rows(cache, cache.layers[0])
    digests = digest_groups(cache)
    together, rows = digests, np.flatnonzero(whole & target.known)
    names = group_names(cache, rows, pattern=pattern, file=file)
    if names is not None:
        together = np.full(len(cache), -1, np.int64)
        together[rows] = join(digests[rows], names)
    parts, more = parts_of(cache, whole, seed, together, target)
    notes += [*more, *check_target(target, parts, cache.path)]
    split = next(name for name in ("test", "val", HOLDOUT) if name in parts)
    test = parts[split]
    pool, leaked = pool_of(parts["train"], test, target.codes(np.arange(len(cache))), digests)
    if not len(pool):
        raise TrainingError(
            f"All training images of {cache.path} are byte-identical to images of {split}.", hint="Add others."
        )
    check_target(target, {"train": pool, split: test}, cache.path)
    if leaked:
        notes.append(f"{leaked} training images are byte-identical to images of {split} and are never drawn")
    digest = hashlib.sha256(target_digest(cache, target).encode())
    digest.update(np.ascontiguousarray(test, "<i8").tobytes())
    return Task(cache, target, pool, test, split, together, digest.hexdigest(), notes)


def _numbers(task: Task, shots: Sequence[int | str]) -> tuple[list[int | str], list[str]]:
    """Those that some class has more images than, ascending; all at the end."""
    largest = int(np.bincount(task.target.values[task.pool]).max())
    few = sorted({n for n in shots if isinstance(n, int) and n < largest})
    many = sorted({n for n in shots if isinstance(n, int) and n >= largest})
    if not many:
        return [*few, *([ALL] if ALL in shots else [])], []
    words = ", ".join(map(str, many))
    return [*few, ALL], [f"{words} labels a class are all that there are: the largest class has {largest} to draw from"]


def _fits(method: Method, task: Task, numbers: Sequence[int | str], draws: int, seed: int) -> list[Fit]:
    orders = [drawn(task.pool, task.target, np.random.default_rng((seed, draw))) for draw in range(draws)]
    spec = {name: value for name, value in task.cache.spec.items() if name != "layers"}
    settings = hashlib.sha256(canonical_json({"reference": spec, **method.settings()}).encode()).hexdigest()
    fits = []
    for n in numbers:
        for draw, order in enumerate(orders[:1] if n == ALL else orders):
            rows = task.pool if n == ALL else np.unique(np.concatenate([of_class[:n] for of_class in order]))
            key = {"method": method.name, "settings": settings, "data": task.digest, "seed": [seed, draw]}
            key["rows"] = hashlib.sha256(np.ascontiguousarray(rows, "<i8").tobytes()).hexdigest()
            fits.append(Fit(n, draw, rows, key))
    return fits


def _run(method: Method, due: list[Fit], task: Task, records: Records, stop: Callable[[], int] | None) -> None:
    """Fit what has no record yet. Raises Stopped between two fits."""
    missing = [fit for fit in due if records.get(fit.key) is None]
    if not missing:
        return
    with contextlib.closing(method):
        method.prepare(task.cache)
        for number, fit in enumerate(missing):
            report("fits", number, len(missing), method.name)
            if stop is not None and (signum := stop()):
                raise Stopped(
                    f"Stopped with {number:,} of {len(missing):,} fits of {method.name} done.",
                    signum=signum,
                    hint="What is finished is kept. Run the same command again to resume.",
                )
            began = time.monotonic()
            answers = method.fit_and_score(fit.rows, task.test, task.target, fit.key["seed"][0])
            right = answers == task.target.values[task.test]
            result = {"right": np.packbits(right).tobytes().hex(), "seconds": time.monotonic() - began}
            records.add(fit.key, result)
        report("fits", len(missing), len(missing), method.name)


def _depth(
    ground: Ground,
    task: Task,
    chosen: Sequence[Method],
    numbers: Sequence[int | str],
    found: Mapping[tuple[str, int | str], list[tuple[Rows, dict[str, Any]]]],
    costs: dict[str, DepthMethod],
    draws: int,
    seed: int,
    notes: list[str],
) -> Depth:
    points, standings, observed = [], [], task.groups[task.test]
    for n in numbers:
        rights = {one.name: [_right(result, len(task.test)) for _, result in found[one.name, n]] for one in chosen}
        seconds = {one.name: float(np.mean([result["seconds"] for _, result in found[one.name, n]])) for one in chosen}
        for one in chosen:
            scores = tuple(float(right.mean()) for right in rights[one.name])
            labels = max(len(rows) for rows, _ in found[one.name, n])
            interval, over = interval_of(rights[one.name], observed)
            mean = float(np.mean(scores))
            points.append(DepthPoint(one.name, n, labels, scores, mean, interval, over, seconds[one.name]))
        standings.append(standing(n, rights, observed))
    return Depth(
        source=ground.source.name,
        backbone=ground.backbone,
        weights=ground.weights,
        n_classes=len(np.unique(task.target.values[task.pool])),
        split=task.split,
        tested=len(task.test),
        labels=len(task.pool),
        draws=draws,
        methods=tuple(costs[one.name] for one in chosen),
        points=tuple(points),
        standings=tuple(standings),
        notes=tuple(notes),
        folder=ground.folder,
        seed=seed,
    )


def _right(result: Mapping[str, Any], count: int) -> NDArray[np.bool_]:
    bits = np.frombuffer(bytes.fromhex(result["right"]), np.uint8)
    return np.unpackbits(bits, count=count).astype(bool)
