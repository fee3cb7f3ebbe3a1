"""Data sets as Hugging Face's datasets writes them, written with pyarrow alone, in each form that a source may have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

try:
    import pyarrow
    from pyarrow import parquet
except ImportError:
    pyarrow = None

needs_pyarrow = pytest.mark.skipif(pyarrow is None, reason="needs pyarrow (pip install 'precompute[parquet]')")
needs_datasets = pytest.mark.skipif(
    find_spec("datasets") is None, reason="needs datasets (pip install 'precompute[hf]')"
)
FORMS = ["saved", "hub", "table"]
"""A folder of `save_to_disk` with a folder for each split, Parquet files as the hub has them, one Parquet file."""

Item = dict[str, Any]


def features(classes: Iterable[str]) -> dict[str, Any]:
    return {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}


def items_of_folder(photos: Path, *, between: str = "/") -> dict[str, list[Item]]:
    """A row for each file of photos/SPLIT/CLASS/..., by split, in no particular order. Labels are class names.

    between: class and name in the path of the image. What datasets writes itself has no / in it.
    """
    items: dict[str, list[Item]] = {}
    files = sorted(path for path in photos.glob("*/*/*") if path.is_file() and path.name[0] != ".")
    for path in (*files[1::2], *files[::2]):
        split, label, name = path.relative_to(photos).parts
        stored = f"{label}{between}{name}"
        items.setdefault(split, []).append(
            {"image": {"bytes": path.read_bytes(), "path": stored}, "label": label, "split": split}
        )
    return items


def arrow_table(items: list[Item], classes: list[str] | None = None) -> Any:
    """Labels as numbers of `classes`, described in the schema; or as they are."""
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    columns: dict[str, Any] = {"image": pyarrow.array([item["image"] for item in items], image)}
    for name in [name for name in items[0] if name != "image"] if items else []:
        values = [item[name] for item in items]
        if name == "label" and classes is not None:
            values = [classes.index(value) for value in values]
        columns[name] = pyarrow.array(values)
    table = pyarrow.table(columns)
    if classes is None:
        return table
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features(classes)}})})


def write_arrow(path: Path, table: Any, *, rows_per_batch: int = 5, options: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema, options=options) as stream:
        for batch in table.to_batches(rows_per_batch):
            stream.write_batch(batch)
    return path


def save(folder: Path, items: list[Item], classes: list[str] | None, *, files: int = 1) -> Path:
    """What Dataset.save_to_disk writes."""
    table = arrow_table(items, classes)
    names = [f"data-{number:05}-of-{files:05}.arrow" for number in range(files)]
    step = -(-len(table) // files)
    for number, name in enumerate(names):
        write_arrow(folder / name, table.slice(number * step, step))
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features(classes)} if classes else {}))
    return folder


def save_all(folder: Path, splits: Mapping[str, list[Item]], classes: list[str] | None, *, files: int = 2) -> Path:
    """What DatasetDict.save_to_disk writes."""
    shutil.rmtree(folder, ignore_errors=True)
    for split, items in splits.items():
        save(folder / split, items, classes, files=files)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def write_parquet(path: Path, items: list[Item], classes: list[str] | None, *, rows_per_group: int = 5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow_table(items, classes), path, row_group_size=rows_per_group)
    return path


def write_form(form: str, place: Path, photos: Path) -> Path:
    """The photos of a folder in one of FORMS, below `place`; without ids of their own they are those of the folder."""
    splits = items_of_folder(photos)
    classes = sorted({item["label"] for items in splits.values() for item in items})
    if form == "saved":
        plain = {split: [{**item} for item in items] for split, items in splits.items()}
        for item in (item for items in plain.values() for item in items):
            del item["split"]
        return save_all(place / "saved", plain, classes)
    if form == "hub":
        folder = place / "hub"
        shutil.rmtree(folder, ignore_errors=True)
        for split, items in splits.items():
            word = {"val": "validation"}.get(split, split)
            half = -(-len(items) // 2)
            for number in range(2):
                name = f"{word}-{number:05}-of-00002.parquet"
                write_parquet(folder / "data" / name, items[number * half : (number + 1) * half], classes)
        return folder
    rows = [{**item, "name": f"{split}/{item['image']['path']}"} for split, items in splits.items() for item in items]
    return write_parquet(place / "photos.parquet", rows, None)
