"""A cache and its heads in one HTML file that needs nothing else: see docs/report.md."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from precompute.cache import Cache, open_cache
from precompute.errors import UsageError
from precompute.evaluation.comparison import Where
from precompute.finetuning.device import device_of
from precompute.finetuning.labelled_images import open_samples
from precompute.heads.base.progress import report as progress
from precompute.reports.commands import base_name
from precompute.reports.comparison_part import check_heads_alike
from precompute.reports.document import Asked, make_document
from precompute.reports.feature_map import AUTO, check_map
from precompute.reports.media import MOST
from precompute.reports.results import read_results
from precompute.reports.scored import Given, ScoredHead, score_saved
from precompute.system.output import Kind, Output, check_output
from precompute.training.head import Training
from precompute.training.relabelling import Relabelling

MARK = b'content="precompute report"'
"""The content of a `meta` at the start of every report, by which it is known again."""
SEARCHED = 1024  # bytes

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Report:
    """A report that was written. bytes: of the file · rows: of the cache · map: how the map was made, None without ·
    pictures: samples that it shows, be they pictures, texts or clips · heads: base names · notes: as it has them."""

    path: str
    bytes: int
    seconds: float
    rows: int
    map: str | None
    pictures: int
    heads: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "heads": list(self.heads), "notes": list(self.notes)}


def _check_report(path: str) -> None:
    """Raise UsageError where precompute did not write the file."""
    try:
        with open(path, "rb") as file:
            begins = file.read(SEARCHED)
    except OSError as error:
        raise UsageError(f"The report {path!r} cannot be read: {error.strerror}.", hint="") from error
    if MARK not in begins:
        raise UsageError(f"{path!r} exists, and is no report of precompute.", hint="")


REPORT = Kind(UsageError, _check_report)


def check_report_output(path: Path, *, overwrite: bool = False, inputs: Iterable[Path | None] = ()) -> Output:
    """Raise UsageError where a report could not or must not be written to `path`: before the work, not after it."""
    return check_output(path, REPORT, overwrite=overwrite, inputs=inputs)


def report(
    cache: Path,
    heads: Path | Sequence[Path] = (),
    out: Path = "report.html",
    *,
    source: Any = None,
    thumbnails: int | None = None,
    compare: bool = False,
    results: Sequence[Path] = (),
    map: str = AUTO,  # noqa: A002 - the word of --map
    layer: str | None = None,
    seed: int = 0,
    labels: Path | None = None,
    groups: str | None = None,
    groups_file: Path | None = None,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    weights: str | None = None,
    backbones: Sequence[str] = (),
    tails: Sequence[str] = (),
    device: str = "auto",
    trained: Training | None = None,
    overwrite: bool = False,
) -> Report:
    """Write a report about a cache, and heads that were trained on it, into one HTML file.

    For each head: the verdict with an interval, scores, confusions, mistakes, reliability and leaks, on the rows that
    it was not trained on, as `train_head` scored them. For the cache: duplicates, a map of its features and how it was
    made; without heads, only this part. The same cache, heads and seed give the same document, except its date.

    heads: files of `train_head` or `fine_tune`, trained on this very cache; a tail needs the activations in the cache,
    or `source`. source: where the samples are, if not where the cache was made from; root, columns: as for `extract`.
    thumbnails: how many samples are shown as small pictures, beginnings of texts or short clips, 0 for none; by default
    600 images, 3,000 texts or 100 clips. Samples that have changed since are not shown; the report says how many.
    compare: compare the heads in pairs. results: JSON files of `few-shot`, `depth` and `rank`, for their curves.
    map: "auto" draws up to 3,000 rows by scikit-learn, "all" all of them by openTSNE, "none" no map. layer: of the map,
    by default that of the first head. seed: of map, samples and bootstrap of comparisons.
    labels, groups, groups_file: as for `train_head`, where the heads were trained on a table or groups that their files
    do not hold. trained: what `train_head` returned for the only head, whose scores are then not computed again.
    weights, backbones, tails, device: of tails, as for `compare`.

    Raises UsageError for options and files that cannot be used, HeadMismatchError for heads that do not fit the cache,
    TrainingError for heads of different tasks, SourceError for a `source` that cannot be read, CacheError for damaged
    rows, and what `load_head` and `open_cache` raise.
    """
    began = time.monotonic()
    paths = [os.fspath(heads)] if isinstance(heads, str | os.PathLike) else [os.fspath(one) for one in heads]
    _check_asked(thumbnails, compare, paths)
    if trained is not None and len(paths) != 1:
        raise UsageError("trained is what train_head returned for the only head.", hint="Name that head alone.")
    check_map(map)
    files = [one if isinstance(one, str | os.PathLike) else None for one in (source, weights)]
    inputs = (cache, *paths, *results, labels, groups_file, *files)
    output = check_report_output(out, overwrite=overwrite, inputs=inputs)
    curves = [read_results(path) for path in results]
    named = (root is not None or columns) and source is None
    if named:
        raise UsageError("root and columns say how a source is read, and none is given.", hint="Add --source SOURCE.")
    with contextlib.ExitStack() as opened:
        opened_cache = opened.enter_context(open_cache(cache))
        opened_cache.check_table()
        if layer is not None:
            opened_cache.plain_features(layer)  # raises where there is none
        scored = _scored(
            paths,
            cache,
            opened_cache,
            Given(labels, groups, groups_file),
            _Network(source, root, columns, weights, tuple(backbones), tuple(tails), device),
            opened,
            trained,
        )
        target = scored[0].side.target if scored else Relabelling.of(table=labels).apply(opened_cache)[1]
        asked = Asked(
            map=map,
            layer=layer,
            seed=seed,
            thumbnails=thumbnails,
            compare=compare,
            source=source,
            root=root,
            columns=columns,
            groups=groups,
            groups_file=groups_file,
            curves=curves,
            given=[
                ("--source", _named(source)),
                ("--root", _named(root)),
                *((f"--{part}-column", name) for part, name in (columns or {}).items()),
                ("--thumbnails", thumbnails),
                ("--compare", compare),
                *(("--results", _named(path)) for path in results),
                ("--map", None if map == AUTO else map),
                ("--layer", layer),
                ("--seed", seed or None),
                *(("--labels", _named(labels)), ("--groups", groups), ("--groups-file", _named(groups_file))),
                ("--weights", _named(weights)),
                *(("--backbone", _named(one)) for one in backbones),
                *(("--tail", _named(one)) for one in tails),
                ("--device", None if device == "auto" else device),
            ],
        )
        document = make_document(opened_cache, target, scored, asked)
    from precompute.reports.render import render

    page = render(document).encode("utf-8")
    if MARK not in page[:SEARCHED]:
        raise AssertionError("the page does not say that it is a report of precompute")
    output.write(lambda file: file.write(page))
    drawn = document["map"]
    return Report(
        path=os.fspath(out),
        bytes=len(page),
        seconds=time.monotonic() - began,
        rows=document["counts"]["rows"],
        map=None if drawn is None else f"{drawn['method']} of {drawn['rows']:,} of {drawn['of']:,} rows",
        pictures=len(document["media"]["of"]),
        heads=tuple(head.name for head in scored),
        notes=tuple(document["notes"]),
    )


def _named(path: Any) -> str | None:
    """A path in the command of the report, which others read; None of what has no name."""
    return base_name(os.fsdecode(path)) if isinstance(path, str | os.PathLike) else None


@dataclass(frozen=True)
class _Network:
    """What tails and networks need; see `report`."""

    source: Any
    root: str | None
    columns: Mapping[str, str] | None
    weights: str | None
    backbones: tuple[str, ...]
    tails: tuple[str, ...]
    device: str


def _scored(
    paths: Sequence[str],
    path: Path,
    cache: Cache,
    given: Given,
    network: _Network,
    opened: contextlib.ExitStack,
    trained: Training | None,
) -> list[ScoredHead]:
    """Every head, scored on the cache. Raises UsageError for two of one name."""
    found: list[ScoredHead] = []
    for done, head in enumerate(paths):
        progress("heads of the report", done, len(paths))
        where = Where(
            network.weights, network.backbones, network.tails, device_of(network.device), _images(network, head, cache)
        )
        found.append(score_saved(head, path, where, given, opened, trained=trained))
    if paths:
        progress("heads of the report", len(paths), len(paths))
    check_heads_alike(found)
    return found


def _images(network: _Network, head: str, cache: Cache) -> Any:
    """The source, opened, for a network whose features are in no cache; None of all others, which need no images."""
    from precompute.finetuning.opening import is_tail, open_head

    if network.source is None or not is_tail(head) or open_head(head).layers[0] in cache.layers:
        return None
    return open_samples(network.source, network.root, network.columns)


def _check_asked(thumbnails: int | None, compare: bool, heads: Sequence[str]) -> None:
    if thumbnails is not None and (
        isinstance(thumbnails, bool) or not isinstance(thumbnails, int) or not 0 <= thumbnails <= MOST
    ):
        raise UsageError(
            f"thumbnails must be from 0 to {MOST:,}. Got {thumbnails!r} instead.", hint="See --thumbnails."
        )
    if compare and len(heads) < 2:
        raise UsageError("There is nothing to compare with fewer than two heads.", hint="Name two heads or more.")
    names = [os.path.basename(head) for head in heads]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"Two heads have the name {twice[0]!r}, so the report could not distinguish them.",
            hint="Rename one of them.",
        )
