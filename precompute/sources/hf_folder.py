"""Folders of Hugging Face's datasets: what `save_to_disk` writes, and Parquet files as the hub has them.

They are read by pyarrow alone. What their JSON names is a file in the same folder, or an error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from precompute.errors import SourceError
from precompute.sources.arrow_images import ArrowImages
from precompute.sources.base import FileKind, Reading, ascii_name
from precompute.sources.data_files import Part
from precompute.sources.embedded import EmbeddedImages, open_parts
from precompute.sources.parquet_images import KeptGroups, ParquetImages
from precompute.sources.text import open_regular

SPLITS, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
JSON_BYTES = 64 * 2**20
DATA = "data"  # the folder of a hub's repository that holds its Parquet files, where they are not on top
NUMBERED = re.compile(r"(.+?)[-_.][0-9]{5}-of-[0-9]{5}(-[0-9a-f]{16})?\.parquet", re.IGNORECASE)
"""`train-00000-of-00002.parquet`; older ones have a fingerprint behind."""

AGAIN = "Load it with datasets.load_from_disk, and write it again with save_to_disk."


def recognises(name: str) -> bool:
    """A folder that `save_to_disk` wrote, or with files of the names that the hub gives to Parquet files."""
    return is_saved(name) or bool(_hub_files(name))


def is_saved(name: str) -> bool:
    """Whether the folder `name` was written by `save_to_disk`."""

    def has(*names: str) -> bool:
        return all(os.path.isfile(os.path.join(name, one)) for one in names)

    return has(SPLITS) or has(STATE, INFO)


def open_folder(
    name: str, kind: FileKind, *, reading: Reading, limit: int | None, stop: Callable[[], int] | None
) -> EmbeddedImages:
    """The images of such a folder. Raises SourceError and Stopped."""
    parts = saved_parts(name) if is_saved(name) else parquet_parts(name, _hub_files(name))
    return _opened(name, parts, kind, reading, limit, stop, root=name)


def open_file(
    name: str, kind: FileKind, *, reading: Reading, limit: int | None, stop: Callable[[], int] | None
) -> EmbeddedImages:
    """The images in one Parquet file. Raises SourceError and Stopped."""
    part = Part("", (ParquetImages(name, ascii_name(name), KeptGroups()),))
    root = reading.root if reading.root is not None else os.path.dirname(name) or "."
    return _opened(name, [part], kind, reading, limit, stop, root=root)


def saved_parts(folder: str) -> list[Part]:
    """What `save_to_disk` wrote: a data set of several splits, or of none. Raises SourceError."""
    shown = os.path.join(ascii_name(folder), SPLITS)
    if not os.path.lexists(os.path.join(folder, SPLITS)):
        return [_saved(folder, "")]
    splits = _read_json(os.path.join(folder, SPLITS), shown).get("splits")
    if not isinstance(splits, list) or not splits or not all(map(_is_plain, splits)) or len({*splits}) < len(splits):
        raise SourceError(f"{shown} has no list of splits, each the name of a folder next to it.", hint=AGAIN)
    return [_saved(os.path.join(folder, split), split) for split in splits]


def parquet_parts(folder: str, paths: Sequence[str]) -> list[Part]:
    """Parquet files as splits, by their names or their folders: the files of one word are one split, in order."""
    words: dict[str, list[str]] = {}
    for path in sorted(paths):
        words.setdefault(_word(os.path.relpath(path, folder)), []).append(path)
    kept = KeptGroups()
    return [
        Part(word, tuple(ParquetImages(path, ascii_name(path), kept) for path in files))
        for word, files in words.items()
    ]


def parquet_below(folder: str) -> list[str]:
    """All Parquet files below `folder`, except for hidden ones; links to folders are not entered."""
    return list(_below(folder))


def _below(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path)
            elif entry.name.lower().endswith(".parquet"):
                yield entry.path


def _opened(
    name: str,
    parts: Sequence[Part],
    kind: FileKind,
    reading: Reading,
    limit: int | None,
    stop: Callable[[], int] | None,
    *,
    root: str,
) -> EmbeddedImages:
    origin = os.path.abspath(name)
    return open_parts(
        name, parts, kind, reading=reading, limit=limit, stop=stop, roots=(os.path.abspath(root),), origin=origin
    )


def _saved(folder: str, word: str) -> Part:
    """One split. Raises SourceError."""
    shown = ascii_name(folder)
    state = _read_json(os.path.join(folder, STATE), os.path.join(shown, STATE))
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise SourceError(
            f"{shown} chooses its rows by a list of indices, as old releases of datasets wrote it.",
            hint=AGAIN,
        )
    files = state.get("_data_files")
    names = [one.get("filename") if isinstance(one, dict) else None for one in files] if isinstance(files, list) else []
    if not isinstance(files, list) or not all(map(_is_plain, names)):
        raise SourceError(
            f"{os.path.join(shown, STATE)} has no list of data files, each the name of a file next to it.", hint=AGAIN
        )
    info = _read_json(os.path.join(folder, INFO), os.path.join(shown, INFO))
    features = info.get("features")
    paths = [os.path.join(folder, name) for name in map(str, names)]
    found = tuple(ArrowImages(path, ascii_name(path)) for path in paths)
    return Part(word, found, features if isinstance(features, dict) else {})


def _read_json(path: str, shown: str) -> Mapping[str, Any]:
    """Raises SourceError for anything but a JSON object, or a very large one."""
    with open_regular(path, shown) as file:
        content = file.read(JSON_BYTES + 1)
    try:
        if len(content) > JSON_BYTES:
            raise ValueError(f"more than {JSON_BYTES:,} bytes")
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{shown} cannot be read as JSON: {error}.", hint=AGAIN) from error
    return found


def _is_plain(name: Any) -> bool:
    """Whether it is the name of an entry of a folder, which leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\0"} & {*name}


def _hub_files(folder: str) -> list[str]:
    """Files on top of `folder` or in its `data` that are named as the hub names Parquet files."""
    for place in (folder, os.path.join(folder, DATA)):
        try:
            names = [name for name in os.listdir(place) if NUMBERED.fullmatch(name)]
        except OSError:  # no folder, or not a readable one, which its own kind says
            continue
        if names:
            return sorted(os.path.join(place, name) for name in names)
    return []


def _word(path: str) -> str:
    """`train` for train-00000-of-00002.parquet, train/0000.parquet and train.parquet, also below a folder `data`."""
    folder, name = os.path.split(path)
    numbered = NUMBERED.fullmatch(name)
    if numbered:
        return numbered[1]
    inside = [part for part in folder.split(os.sep) if part not in ("", DATA)]
    return inside[-1] if inside else os.path.splitext(name)[0]
