"""Which columns of a data set hold the images, ids, labels and splits, and what its description says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from precompute.errors import SourceError
from precompute.sources.base import Reading, ascii_name
from precompute.sources.data_files import DataFile, ImageColumn, Part
from precompute.sources.header import choose
from precompute.sources.parquet import plain_type

IMAGE_NAMES = ("image", "img")


@dataclass(frozen=True)
class Columns:
    """What is read of a file. parts: names of the columns that hold id, label and split · further: of those kept."""

    image: ImageColumn
    parts: Mapping[str, str]
    further: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys([*self.parts.values(), *self.further]))


def columns_of(part: Part, file: DataFile, reading: Reading, *, has_splits: bool) -> Columns:
    """Which columns of `file` are read; has_splits: the data set says them. Raises SourceError."""
    image = _image(file, reading.columns.get("path"))
    named = {**reading.columns, "path": image.name}
    header = file.schema.names
    if "label" not in named:
        labels = label_columns(part, file)
        named |= {"label": labels[0]} if len(labels) == 1 else {}
    chosen = choose(header, replace(reading, columns=named), file.shown)
    taken = {what: header[place] for what, place in chosen.parts.items() if what != "path"}
    if "id" not in named:
        taken.pop("id", None)
    if "split" not in named and has_splits:
        taken.pop("split", None)
    for name in (*taken.values(), *chosen.further):
        plain_type(kind_of(file, name), name, file.shown)
    return Columns(image, taken, tuple(chosen.further))


def label_columns(part: Part, file: DataFile) -> list[str]:
    """Columns that may be the labels: `label`, else those of classes."""
    header = file.schema.names
    return ["label"] if "label" in header else [name for name in header if class_names(part, file, name)]


def has_images(schema: Any, reading: Reading) -> bool:
    """Whether a Parquet file is to be read for its images, not as a table of paths, which may be bytes, too."""
    asked = reading.columns.get("path")
    if asked is None and "path" in schema.names:
        return False
    described = features_of(schema)

    def counts(name: str, kind: Any) -> bool:
        feature = described.get(name)
        said_so = name in IMAGE_NAMES or (isinstance(feature, dict) and feature.get("_type") == "Image")
        return asked in (None, name) and (_is_struct(kind) or (_is_bytes(kind) and said_so))

    return any(counts(one.name, one.type) for one in schema)


def _image(file: DataFile, asked: str | None) -> ImageColumn:
    """The column requested, else the only one of structs with bytes, else `image` or `img`."""
    kinds = {one.name: one.type for one in file.schema}
    found = [name for name, kind in kinds.items() if _is_struct(kind)]
    if len(found) != 1:
        found = [name for name in IMAGE_NAMES if name in kinds and _is_image(kinds[name])]
    name = asked if asked is not None else found[0] if len(found) == 1 else None
    if name is None or name not in kinds or not _is_image(kinds[name]):
        what = "no column of images" if asked is None else f"no images in {ascii_name(asked)!r}"
        columns = ", ".join(ascii_name(f"{one} ({kind})")[:100] for one, kind in list(kinds.items())[:20])
        raise SourceError(
            f"{file.shown} has {what}: bytes, or a struct of bytes and path. Its columns: {columns}.",
            hint="Name the column that holds them: --path-column NAME.",
        )
    kind = kinds[name]
    is_struct = _is_struct(kind)
    return ImageColumn(name, is_struct, is_struct and kind.get_field_index("path") >= 0)


def kind_of(file: DataFile, name: str) -> Any:
    return file.schema.field(name).type


def class_names(part: Part, file: DataFile, name: str) -> list[str]:
    """Names of the classes that the numbers in a column stand for; none where it holds something else."""
    from pyarrow import types

    feature = (part.features or features_of(file.schema)).get(name)
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    if not (isinstance(names, list) and all(isinstance(one, str) for one in names)):
        return []
    return names if file.schema.names.count(name) == 1 and types.is_integer(kind_of(file, name)) else []


def features_of(schema: Any) -> dict[str, Any]:
    """What Hugging Face's datasets wrote about the columns of a file; {} where there is nothing of the kind."""
    try:
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        found = stored["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_struct(kind: Any) -> bool:
    """Of bytes and perhaps path."""
    from pyarrow import types

    if not types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    place = kind.get_field_index("path")
    return _is_bytes(kind.field("bytes").type) and (
        place < 0 or types.is_string(kind.field(place).type) or types.is_large_string(kind.field(place).type)
    )


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_image(kind: Any) -> bool:
    return _is_bytes(kind) or _is_struct(kind)
