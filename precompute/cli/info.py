"""`precompute info`: what is in a feature file, a head or a tail, or how two feature files differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from precompute.cli._head_info import describe_head, looks_like_head, print_head
from precompute.cli._options import shape_words
from precompute.cli._output import json_option, print_json, print_pairs, print_table

if TYPE_CHECKING:
    from precompute.cache import Cache


@click.command(no_args_is_help=True)
@click.argument("caches", nargs=-1, required=True, type=click.Path(), metavar="FILE [OTHER]")
@json_option
def info(caches: tuple[str, ...], as_json: bool) -> None:
    """Show the contents of FILE, a feature file, a head or a tail; with OTHER, the settings in which two files differ.

    \b
    Examples:
      precompute info photos.h5
      precompute info photos.h5.partial
      precompute info photos.safetensors
      precompute info full.safetensors
      precompute info photos.h5 other.h5
    """
    from precompute.cache import difference, open_cache

    if len(caches) > 2:
        raise click.UsageError("Name one file, or two to compare.")
    if heads := [path for path in caches if looks_like_head(path)]:
        if len(caches) > 1:
            raise click.UsageError(f"{heads[0]} is a head or a tail; two of them are compared by `precompute compare`.")
        head = describe_head(heads[0])
        print_json(head) if as_json else print_head(head)
        return
    opened = [open_cache(path) for path in caches]
    if len(opened) == 1:
        summary = _describe(opened[0])
        if as_json:
            print_json(summary)
        else:
            _print(summary)
        return
    lines = difference(opened[0].spec, opened[1].spec)
    if as_json:
        print_json({"files": list(caches), "same": not lines, "difference": lines})
    elif lines:
        click.echo("\n".join([f"{caches[0]} -> {caches[1]}", *(f"  {line}" for line in lines)]))
    else:
        click.echo(f"{caches[0]} and {caches[1]} were made with the same settings.")


def _describe(cache: Cache) -> dict[str, Any]:
    import numpy as np

    from precompute.cache import split_name, status_name

    def counts(values: Any, name: Callable[[int], str]) -> dict[str, int]:
        codes, numbers = np.unique(values, return_counts=True)
        return {name(int(code)): int(number) for code, number in zip(codes, numbers, strict=True)}

    labels = cache.labels
    return {
        "path": cache.path,
        "samples": len(cache),
        "unit": cache.words.plural,
        "status": counts(cache.status, status_name),
        "splits": counts(cache.column("samples/split"), split_name),
        "classes": {name: int((labels == number).sum()) for number, name in enumerate(cache.classes)},
        "layers": {
            layer: {"shape": list(cache.features(layer).shape[1:]), "dtype": cache.storage(layer)}
            for layer in cache.layers
        },
        "views": cache.views,
        "columns": list(cache.columns),
        "bytes": cache.layout.file_size,
        "key": cache.key,
        "spec": cache.spec,
        "provenance": cache.provenance,
    }


def _print(summary: dict[str, Any]) -> None:
    from precompute.cache import status_text

    unit = summary["unit"]

    def joined(counts: dict[str, int]) -> str:
        return ", ".join(f"{count:,} {name}" for name, count in counts.items())

    status = {status_text(name): count for name, count in summary["status"].items()}
    pairs = [
        ("samples", f"{summary['samples']:,} ({joined(status)})"),
        ("splits", joined(summary["splits"])),
        ("size", f"{summary['bytes']:,} bytes"),
        ("key", summary["key"]),
    ]
    for layer, form in summary["layers"].items():
        pairs.append(("features", f"{layer}, {shape_words(form['shape'], summary['views'])} {form['dtype']}"))
    if summary["columns"]:
        pairs.append(("columns", ", ".join(summary["columns"])))
    pairs += [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in summary["spec"].items()]
    print_pairs(summary["path"], pairs)
    if summary["classes"]:
        print_table(None, ("class", unit), [(name, f"{n:,}") for name, n in summary["classes"].items()], right=1)
    from precompute.cache.reader import FOUND

    records = [record for record in summary["provenance"] if FOUND.isdisjoint(record)]
    runs = [
        (run.get("started"), run.get("host"), run.get("device"), run.get("engine"), run.get("source"))
        for run in records
    ]
    print_table("runs that added rows", ("started", "host", "device", "engine", "source"), runs)
    from precompute.reports.commands import extract_command

    last = records[-1] if records else {}
    found = [
        ("last run", extract_command(last)),
        ("chosen", _chosen(last)),
        ("compared", _audit(summary["provenance"], unit)),
    ]
    found.append(("cut off", _cut(summary["provenance"])))
    print_pairs(None, [(name, value) for name, value in found if value is not None])


def _chosen(record: dict[str, Any]) -> str | None:
    """Why the run of `record` used the engine and the precision that it did, a reason a line."""
    why = record.get("chosen")
    return why.replace("; ", "\n") if isinstance(why, str) and why else None


def _audit(records: list[dict[str, Any]], unit: str) -> str | None:
    """What the last audit of a run found, in words; None where there is none that makes sense."""
    audit: dict[str, Any] = next(
        (record["audit"] for record in reversed(records) if isinstance(record.get("audit"), dict)), {}
    )
    images, worst, median = (audit.get(name) for name in ("images", "worst", "median"))
    if not all(isinstance(value, int | float) for value in (images, worst, median)):
        return None
    return f"{images} {unit} also ran in fp32 torch: cosine at worst {worst:.5f}, median {median:.5f}"


def _cut(records: list[dict[str, Any]]) -> str | None:
    """How many samples all runs have cut off at the end, as they computed them; None where none did."""
    counts = [record["cut"].get("samples") for record in records if isinstance(record.get("cut"), dict)]
    whole = [count for count in counts if isinstance(count, int)]
    if not whole:
        return None
    return f"{sum(whole):,} samples, at the end, by {len(whole)} run{'s' if len(whole) > 1 else ''} (--max-length)"
