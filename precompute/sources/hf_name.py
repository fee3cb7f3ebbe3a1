"""`hf-dataset:NAME`: a data set of the Hugging Face hub by its name, or of a local folder, loaded by `datasets`.

`datasets` downloads it and writes Arrow files into its own cache; these are read here, and no image is decoded by it.
Only its builders of data files are used. None of them runs code of the data set, and none unpickles.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from precompute.errors import SourceError
from precompute.sources.arrow_images import ArrowImages
from precompute.sources.base import FileKind, Reading, ascii_name
from precompute.sources.data_files import Part
from precompute.sources.embedded import EmbeddedImages, open_parts
from precompute.sources.hf_folder import is_saved, parquet_below, parquet_parts, saved_parts
from precompute.system.addresses import QUERY, without_secrets

MARK = "hf-dataset:"
FORM = re.compile(r"(?P<name>[^:@#]+)(:(?P<config>[^:@#]+))?(@(?P<revision>[^:@#]+))?(#(?P<split>[^:@#]+))?")
BUILDERS = ("arrow", "cache", "imagefolder", "parquet", "webdataset")
"""Modules of datasets whose builders read images from data files; `cache` is what was built before, when offline."""

INSTALL = "pip install 'precompute[hf]'"
SYNTAX = (
    "Write hf-dataset:OWNER/NAME, with :CONFIG, @REVISION and #SPLIT behind it where they are needed, in this order."
)


@dataclass(frozen=True)
class Wanted:
    """What a name requests. name: on the hub, or of a local folder."""

    name: str
    config: str | None = None
    revision: str | None = None
    split: str | None = None


def recognises(name: str) -> bool:
    """What begins with hf-dataset: and is not a folder."""
    return name.startswith(MARK) and not os.path.isdir(name)


def understood(source: str) -> Wanted:
    """The parts of `hf-dataset:OWNER/NAME:CONFIG@REVISION#SPLIT`. Raises SourceError."""
    text = source.removeprefix(MARK)
    if os.path.isdir(text):
        return Wanted(text)
    if "://" in text:  # it may hold a password
        raise SourceError("hf-dataset: is for names on the hub and folders, not for addresses.", hint=SYNTAX)
    found = FORM.fullmatch(text)
    if found is None or "\0" in text:
        raise SourceError(f"{ascii_name(source)} is not a name of a data set.", hint=SYNTAX)
    return Wanted(**found.groupdict())


def open_name(
    name: str, kind: FileKind, *, reading: Reading, limit: int | None, stop: Callable[[], int] | None
) -> EmbeddedImages:
    """The images of a data set by its name. Raises SourceError and Stopped."""
    wanted = understood(name)
    local = os.path.isdir(wanted.name)
    parts, roots = _parts(name, wanted)
    if wanted.split is not None:
        words = [part.word for part in parts]
        parts = [part for part in parts if part.word == wanted.split]
        if not parts:
            raise SourceError(
                f"{ascii_name(name)} has no split {ascii_name(wanted.split)!r}.",
                hint=f"It has: {', '.join(map(ascii_name, words)) or 'none'}.",
            )
    behind = name[len(MARK) + len(wanted.name) :]
    origin = f"{MARK}{os.path.abspath(wanted.name)}{behind}" if local else name
    return open_parts(name, parts, kind, reading=reading, limit=limit, stop=stop, roots=roots, origin=origin)


def _parts(source: str, wanted: Wanted) -> tuple[list[Part], tuple[str, ...]]:
    """The splits, and the folders in which images that have a path alone may lie. Raises SourceError."""
    if not os.path.isdir(wanted.name):
        parts, cache = _loaded(source, wanted)
        return parts, (cache,)
    folder = os.path.abspath(wanted.name)
    if is_saved(folder):
        return saved_parts(wanted.name), (folder,)
    if wanted.config is None and (files := parquet_below(wanted.name)):
        return parquet_parts(wanted.name, files), (folder,)
    parts, cache = _loaded(source, wanted)
    return parts, (folder, cache)


def _loaded(source: str, wanted: Wanted) -> tuple[list[Part], str]:
    """The splits as `datasets` has built them, and the folder of its caches. Raises SourceError."""
    shown = ascii_name(source)
    try:
        import datasets
    except ImportError as error:
        raise SourceError(f"{shown} needs datasets: {error}.", hint=f"Install it: {INSTALL}") from error
    try:
        with _bars_on_terminals_alone(datasets):
            builder = datasets.load_dataset_builder(wanted.name, wanted.config, revision=wanted.revision)
            _check_builder(builder, shown)
            builder.download_and_prepare()
            built: dict[str, Any] = dict(builder.as_dataset())
    except SourceError:
        raise
    except Exception as error:  # of the network, the hub, the data set or a library below: of any class
        raise SourceError(
            f"{shown} cannot be loaded: {_reason(error)}",
            hint="Check its name, its config and the network; with HF_DATASETS_OFFLINE=1 only what is in the cache is "
            "used. " + SYNTAX,
        ) from error
    parts = []
    for word, one in built.items():
        paths = [str(file["filename"]) for file in one.cache_files]
        files = tuple(ArrowImages(path, ascii_name(path)) for path in paths)
        parts.append(Part(str(word), files, one.features.to_dict()))
    return parts, str(datasets.config.HF_CACHE_HOME)


@contextmanager
def _bars_on_terminals_alone(datasets: Any) -> Iterator[None]:
    """A download may take hours, so the library's own bars stay where someone sees them, and fill no log."""
    asked = "HF_DATASETS_DISABLE_PROGRESS_BARS" in os.environ
    quiet = not (asked or sys.stderr.isatty() or datasets.are_progress_bars_disabled())
    if quiet:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            datasets.enable_progress_bars()


def _check_builder(builder: Any, shown: str) -> None:
    modules = {base.__module__ for base in type(builder).__mro__}
    known = {f"datasets.packaged_modules.{name}.{name}" for name in BUILDERS}
    if not modules & known:
        raise SourceError(
            f"{shown} is read by {type(builder).__module__}, not from data files with images.",
            hint=f"Data sets of these kinds are read: {', '.join(BUILDERS)}.",
        )


def _reason(error: Exception) -> str:
    """The first line of an error, without what an address has behind a `?` or before an `@`: it may be a secret."""
    lines = str(error).strip().splitlines() or [""]
    line = QUERY.sub("", without_secrets(lines[0]))
    return f"{type(error).__name__}: {ascii_name(line)[:300]}"
