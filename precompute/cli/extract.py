"""`precompute extract`: images in, one feature file out."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import TYPE_CHECKING, Any

import click

from precompute.cli._options import (
    allow_skipped_option,
    computation,
    executor_options,
    keep_option,
    layer_lines,
    shard_option,
    source_options,
    taken_apart,
    view_words,
)
from precompute.cli._output import (
    duration,
    finished,
    json_option,
    note,
    print_json,
    print_pairs,
    progress_bar,
    stop_on_signal,
    verbose_option,
)
from precompute.cli._signals import LAST
from precompute.cli._streams import SKIPPED

if TYPE_CHECKING:
    from precompute.extraction.conduct import Progress
    from precompute.extraction.result import Extraction


@click.command(no_args_is_help=True)
@click.argument("source", type=click.Path())
@computation
@source_options
@keep_option
@click.option("-o", "--output", required=True, type=click.Path(), help="The feature file to make or to update.")
@click.option(
    "--on-error",
    type=click.Choice(["skip", "stop"]),
    default="skip",
    show_default=True,
    help="How to handle a broken sample.",
)
@click.option("--limit", type=int, help="Only the first N samples, by id.")
@shard_option
@click.option("--reuse", multiple=True, type=click.Path(), help="Also copy rows of this feature file; may be repeated.")
@click.option(
    "--join", is_flag=True, help="Only copy, compute nothing: a sample in none of the --reuse files is an error."
)
@allow_skipped_option
@click.option(
    "--overwrite", is_flag=True, help="Replace an output with other settings, with other samples, or of another kind."
)
@click.option("--dry-run", is_flag=True, help="Only report the rows to reuse, read and drop, and the disk needed.")
@executor_options
@click.option(
    "--rehash", is_flag=True, help="Read all files again, to find edits that kept size and modification time."
)
@verbose_option
@json_option
@click.pass_context
def extract(
    ctx: click.Context, /, source: str, output: str, as_json: bool, allow_skipped: bool, verbose: bool, **options: Any
) -> None:
    """Run a frozen backbone once over the images, texts or clips of SOURCE and keep its features.

    SOURCE is a folder: class sub-folders give labels, train, val and test folders above them give the split, and files
    are recognised by their content. Or a table (.csv, .tsv, .parquet) with a column `path` and optionally `id`,
    `label` and `split`. Or a list of files, one path a line: a .txt, @FILE, or - for standard input.
    Or WebDataset shards: 'shards/*.tar' or 'data-{000..099}.tar', in quotation marks. Or a Hugging Face data set: a
    folder of save_to_disk or of Parquet files, or hf-dataset:NAME. Or torchvision:NAME with --root. Folders, tables,
    lists and shards may be in an object store: s3://bucket/prefix.

    The backbone decides which files are samples: texts are .txt files or the column `text` of a table, clips are
    WAV, FLAC, OGG and MP3.

    Run the same command again after an interruption, or after adding, editing or deleting samples: only the missing
    rows are computed.

    \b
    Examples:
      precompute extract photos -b resnet18 -o photos.h5
      precompute extract digits -b tiny -o digits.h5
      precompute extract labels.csv --root photos --label-column species -b resnet18 -o species.h5
      precompute extract hf-dataset:AI-Lab-Makerere/beans -b resnet18 -o beans.h5
      precompute extract torchvision:FashionMNIST --root data -b resnet18 -o fashion.h5
      precompute extract s3://bucket/photos -b resnet18 -o photos.h5
      precompute extract questions.csv -b ngram-hash -o questions.h5
      precompute extract sounds -b mel-statistics -o sounds.h5
      precompute extract photos -b timm:vit_small_patch16_224 -o vits.h5
      precompute extract photos -b vit_b_16 --weights IMAGENET1K_SWAG_LINEAR_V1 -o vit.h5
      precompute extract photos -b resnet50 --weights my-weights.pth --layer layer3 --pooling mean -o l3.h5
      precompute extract photos -b resnet50 --layer layer3:mean --layer layer4:mean --layer avgpool -o layers.h5
      precompute extract photos -b resnet50 --views 8 --augment flip,crop,color -o views.h5
      precompute extract photos -b resnet50 --shard 1/4 -o part1.h5
      precompute extract photos -b resnet50 --executor ray -o photos.h5
      precompute extract photos -b resnet50 --reuse part1.h5 --reuse part2.h5 --join -o photos.h5
      precompute extract photos -b mypackage.models:make_net --resize 128 --crop 128 -o mine.h5

    \b
    Exit status: 0 done, 3 done but some samples were skipped (0 with --allow-skipped), 129/130/143 stopped and
    resumable.
    """
    options = taken_apart(options)
    with progress_bar("extract", "samples") as draw, stop_on_signal() as stop:
        from precompute.extraction.extract import extract as run

        def show(progress: Progress) -> None:
            stop.batches_begin(last=LAST)
            extra = f"{progress.rate:.1f} {progress.unit}/s, {duration(progress.remaining)} left"
            draw(progress.done, progress.total, extra + (f", {progress.failures} failed" if progress.failures else ""))

        result = run(source, output, progress=show, stop=stop, **options)
    finished(None if options["dry_run"] else result.path)
    if as_json:
        print_json(result.to_dict())
    elif options["dry_run"]:
        _plan(result)
    else:
        _summary(result, verbose=verbose, part=options["part"] is not None)
    ctx.exit(SKIPPED if result.failures and not allow_skipped else 0)


def _plan(result: Extraction) -> None:
    free = shutil.disk_usage(os.path.dirname(result.path) or ".").free
    print_pairs(
        None,
        [
            ("cache", result.path),
            ("samples", f"{result.rows:,} {_labels(result)}{_splits(result)}"),
            ("reuse", f"{result.reused:,} rows unopened"),
            ("read", f"{result.to_read:,} {result.unit}, computed unless their bytes are known"),
            ("views", view_words(result.views, result.windows, result.unit[:-1]) if result.views > 1 else None),
            ("drop", f"{result.dropped:,} rows no longer listed"),
            ("disk needed", f"{result.bytes:,} bytes, {free:,} are free"),
        ],
    )


def _summary(result: Extraction, *, verbose: bool, part: bool) -> None:
    """verbose: also why it ran so, and where the time went · part: the file holds a part of the samples."""
    from precompute.cache import status_text

    for line in result.notes:
        note(f"Note: {line}")
    for line in result.warnings:
        note(f"Warning: {line}")
    if result.computed and not verbose:
        for reason in result.advice:  # worth knowing at once: this machine could be faster
            note(f"Note: {reason}")
    for line in result.ignored:
        note(f"Ignored: {line}")
    for name, reason, detail in result.failed:
        note(f"Skipped: {name}: {status_text(reason)} ({detail})")
    if result.cut:
        more = ", ..." if result.cut > len(result.cut_named) else ""
        note(f"Cut off at the end: {', '.join(result.cut_named)}{more}")
    failed = sum(result.failures.values())
    print_pairs(
        None,
        [
            ("cache", f"{result.path} ({_size(result.bytes)})"),
            ("samples", f"{result.rows:,} {result.unit} {_labels(result)}{_splits(result)}"),
            ("features", layer_lines(result.layers, result.dtype, result.views)),
            ("computed", f"{_computed(result)} with {_engine(result)}" if result.computed else "nothing new"),
            ("batch size", f"{result.batch_size:,}" if verbose and result.computed else None),
            ("chosen", result.why.replace("; ", "\n") if verbose and result.computed and result.why else None),
            ("compared", result.audit.words if verbose and result.audit else None),
            ("time spent", result.stages.words.replace("; ", "\n") if verbose and result.stages else None),
            ("reused", f"{result.reused:,} rows unopened" if result.reused else None),
            ("copied", f"{result.copied:,} rows of {result.unit} seen before" if result.copied else None),
            ("dropped", f"{result.dropped:,} rows no longer listed" if result.dropped else None),
            ("skipped", f"{failed:,} ({_reasons(result)})" if failed else "none"),
            ("cut off", _cut(result) if result.cut else None),
            ("time", _time(result)),
            ("next", None if part else _next(result)),
        ],
    )


def _size(count: int) -> str:
    """Such as `2.5 MB`, or `812 bytes`."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:,} bytes"


def _next(result: Extraction) -> str:
    """The command that trains a head on the file, to paste."""
    words = ["precompute", "train-head", result.path]
    if len(result.layers) > 1:
        words += ["--layer", "all"]
    if not result.classes:
        words += ["--labels", "labels.csv"]
    return shlex.join([*words, "-o", f"{os.path.splitext(result.path)[0]}.safetensors"])


def _cut(result: Extraction) -> str:
    """Texts that are longer than the limit are samples all the same."""
    return f"{result.cut:,} of the {result.computed:,} {result.unit} computed in this run, at the end (--max-length)"


def _time(result: Extraction) -> str:
    """The rate counts everything, start-up included."""
    words = f"{result.seconds:.1f} s" if result.seconds < 60 else duration(result.seconds)
    if result.computed and result.forward_seconds:
        words += f", {result.computed / result.seconds:.1f} {result.unit}/s"
        words += f" ({result.start_seconds:.1f} s to start, then {result.computed / result.forward_seconds:.1f}/s)"
    return words


def _engine(result: Extraction) -> str:
    compiled = ", compiled" if result.compiled else ""
    return f"{result.engine}{compiled} in {result.precision} on {result.device}"


def _computed(result: Extraction) -> str:
    images = f"{result.computed:,} {result.unit}"
    if result.windows or result.passes != result.views * result.computed:
        return f"{images} in {result.passes:,} windows"
    return images if result.views == 1 else f"{images} in {result.views} views each, {result.passes:,} forward passes,"


def _labels(result: Extraction) -> str:
    if not result.classes:
        return "without labels"
    return f"in {result.classes:,} class{'es' if result.classes > 1 else ''}"


def _splits(result: Extraction) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in result.splits.items() if name != "none")
    return f" ({counts})" if counts else ""


def _reasons(result: Extraction) -> str:
    from precompute.cache import status_text

    return ", ".join(f"{count} {status_text(name)}" for name, count in result.failures.items())
