"""`precompute verify`: does every row still match its checksum, and its sample?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from precompute.cli._options import columns_taken, source_options
from precompute.cli._output import finished, json_option, note, print_json, print_pairs, progress_bar, stop_on_signal
from precompute.cli._streams import SKIPPED

if TYPE_CHECKING:
    from precompute.cache import Cache, Verification
    from precompute.extraction.conduct import Progress
    from precompute.extraction.result import Extraction
    from precompute.extraction.source_comparison import SourceComparison

NAMED = 10


@click.command(no_args_is_help=True)
@click.argument("cache", type=click.Path())
@click.option(
    "--source", type=click.Path(), help="Also compare with the samples of this folder, table or list, by their SHA-256."
)
@click.option("--repair", is_flag=True, help="Compute damaged rows again from the samples of --source.")
@click.option("-b", "--backbone", help="For --repair: confirm a backbone that is code.")
@click.option("--weights", help="For --repair: the new place of the weights, if they have moved.")
@click.option("--augment", help="For --repair: confirm transforms that are code.")
@source_options
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    cache: str,
    source: str | None,
    repair: bool,
    backbone: str | None,
    weights: str | None,
    augment: str | None,
    as_json: bool,
    **reading: Any,
) -> None:
    """Read every row of CACHE once and compare it with its checksum.

    \b
    Examples:
      precompute verify photos.h5
      precompute verify photos.h5 --source photos
      precompute verify photos.h5 --source photos --repair
      precompute verify photos.h5 --source labels.csv --root photos
      precompute verify photos.h5 --json

    \b
    Exit status: 0 whole, 1 rows are damaged or missing, or the source has other samples; 3 repaired, but those of some
    rows could not be read again.
    """
    from precompute.cache import open_cache

    if repair and source is None:
        raise click.UsageError("--repair needs the samples: --source FOLDER.")
    if not repair and (backbone or weights or augment):
        raise click.UsageError("-b, --weights and --augment belong to --repair.")
    read_as = columns_taken(reading)
    if source is None and (read_as["root"] or read_as["columns"]):
        raise click.UsageError("--root and the names of columns belong to --source.")
    if repair:
        from precompute.extraction.output import check_cache_output

        check_cache_output(cache, overwrite=True, inputs=(weights,))  # before all is read, not after it
    opened = open_cache(cache)
    found = _rows(opened)
    mended = None
    if repair and source is not None and not found.whole:
        mended = _repair(cache, source, {"backbone": backbone, "weights": weights, "augment": augment}, read_as)
        opened = open_cache(cache)
        found = _rows(opened)
    against = None if source is None else _source(opened, source, read_as)
    ids = opened.column("samples/id")
    damaged = [os.fsdecode(bytes(ids[row])) for row in found.damaged]
    if as_json:
        summary: dict[str, object] = {
            "path": cache,
            "whole": found.whole,
            "good": len(found.good),
            "damaged": damaged,
            "pending": len(found.pending),
            "ids_in_order": found.ids_in_order,
        }
        if mended is not None:
            summary["repaired"] = {"computed": mended.computed, "copied": mended.copied, "failures": _failed(mended)}
        print_json(summary if against is None else {**summary, "source": {"path": source, **vars(against)}})
    else:
        if mended is not None:
            _tell_repair(mended)
        _report(opened, found, damaged, against)
    if not found.whole or (against is not None and not against.same):
        ctx.exit(1)
    ctx.exit(SKIPPED if mended is not None and mended.failed else 0)


def _repair(cache: str, source: str, trusted: dict[str, Any], read_as: dict[str, Any]) -> Extraction:
    from precompute.extraction.repair import repair as run

    with progress_bar("repair", "samples") as draw, stop_on_signal() as stop:

        def show(progress: Progress) -> None:
            stop.batches_begin()
            draw(progress.done, progress.total, f"{progress.rate:.1f} {progress.unit}/s")

        mended = run(cache, source, progress=show, stop=stop, **trusted, **read_as)
    finished(cache)
    return mended


def _failed(mended: Extraction) -> list[dict[str, str]]:
    return [{"id": name, "reason": reason, "detail": detail} for name, reason, detail in mended.failed]


def _tell_repair(mended: Extraction) -> None:
    from precompute.cache import status_text

    for name, reason, detail in mended.failed:
        note(f"Without features: {name}: {status_text(reason)} ({detail})")
    note(f"Repaired: {mended.computed:,} rows computed again, {mended.reused:,} were good and copied.")


def _rows(opened: Cache) -> Verification:
    from precompute.cache import verify as run

    with _counted("verify", "rows", len(opened) * len(opened.layers)) as count:
        return run(opened, progress=count)


def _source(opened: Cache, source: str, reading: dict[str, Any]) -> SourceComparison:
    from precompute.extraction.source_comparison import compare_source

    with _counted("compare", "files", len(opened)) as count:
        return compare_source(opened, source, progress=count, **reading)


@contextlib.contextmanager
def _counted(what: str, unit: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar for counts of how many more are done."""
    done = 0
    with progress_bar(what, unit) as draw:

        def count(more: int) -> None:
            nonlocal done
            done += more
            draw(done, total, "")

        yield count


def _report(opened: Cache, found: Verification, damaged: list[str], against: SourceComparison | None) -> None:
    pairs: list[tuple[str, object]] = [
        ("rows that match their checksum", f"{len(found.good):,} of {len(opened):,}"),
        ("damaged", f"{len(damaged):,}"),
        ("not computed yet", f"{len(found.pending):,}"),
        ("ids in order", "yes" if found.ids_in_order else "no"),
    ]
    named = [("Damaged", damaged)]
    if against is not None:
        pairs += [(f"{opened.words.plural} {kind}", f"{len(names):,}") for kind, names in vars(against).items()]
        named += [(kind.capitalize(), list(names)) for kind, names in vars(against).items()]
    for kind, names in named:
        for name in names[:NAMED]:
            note(f"{kind}: {name}")
    print_pairs(None, pairs)
    if not found.whole:
        unit = opened.words.plural
        note(f"To repair it: precompute verify {opened.path} --source SOURCE --repair, with the source of the {unit}.")
    elif against is not None and not against.same:
        note("To update it, run the `precompute extract` command that made it again, with --rehash.")
