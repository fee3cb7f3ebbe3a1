"""`torchvision:NAME`: the data sets of torchvision whose items are (image, label), all splits together.

Their items are decoded by torchvision. They do not say whether one has changed, so a second run reads all again.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from precompute.errors import SourceError, UsageError, reason_of
from precompute.sources.base import FileKind, Reading, Source, ascii_name
from precompute.sources.embedded import numbered
from precompute.sources.memory import dataset

MARK = "torchvision:"
BY_TRAIN = {"train": {"train": True}, "test": {"train": False}}


def _by_split(**words: str) -> dict[str, dict[str, Any]]:
    """Arguments for each of our splits: `split=WORD`."""
    return {ours: {"split": theirs} for ours, theirs in words.items()}


TRAIN_TEST = _by_split(train="train", test="test")
ALL_THREE = _by_split(train="train", val="val", test="test")
SETS: dict[str, dict[str, dict[str, Any]]] = {
    "Caltech101": {"": {}},
    "Caltech256": {"": {}},
    "Country211": _by_split(train="train", val="valid", test="test"),
    "DTD": ALL_THREE,
    "EuroSAT": {"": {}},
    "FashionMNIST": BY_TRAIN,
    "FGVCAircraft": ALL_THREE,
    "Flowers102": ALL_THREE,
    "Food101": TRAIN_TEST,
    "GTSRB": TRAIN_TEST,
    "ImageFolder": {"": {}},
    "Imagenette": _by_split(train="train", val="val"),
    "KMNIST": BY_TRAIN,
    "MNIST": BY_TRAIN,
    "OxfordIIITPet": _by_split(train="trainval", test="test"),
    "RenderedSST2": ALL_THREE,
    "StanfordCars": TRAIN_TEST,
    "STL10": TRAIN_TEST,
    "SUN397": {"": {}},
    "SVHN": TRAIN_TEST,
    "USPS": BY_TRAIN,
}
"""Arguments of torchvision's class by the name of our split; "" where it has none."""

UNPICKLED = ("CIFAR10", "CIFAR100", "LSUN", "LSUNClass")
"""Torchvision unpickles them, which may run what is in their files."""


@dataclass(frozen=True)
class Joined:
    """Items of several data sets one behind the other. rows: which of them all · targets: names of their classes."""

    parts: tuple[Any, ...]
    rows: tuple[int, ...]
    targets: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(len, self.parts)))

    def __getitem__(self, place: int) -> Any:
        number = self.rows[place]
        part = bisect.bisect_right(self._ends, number)
        return self.parts[part][number - (self._ends[part - 1] if part else 0)]


def recognises(name: str) -> bool:
    """What begins with torchvision: and is not a folder."""
    return name.startswith(MARK) and not os.path.isdir(name)


def open_set(
    name: str, kind: FileKind, *, reading: Reading, limit: int | None, stop: Callable[[], int] | None
) -> Source:
    """The images of a data set that is in the folder `--root`; nothing is downloaded. Raises SourceError."""
    del kind, stop
    wanted = name.removeprefix(MARK)
    if wanted in UNPICKLED:
        raise SourceError(
            f"torchvision unpickles the files of {wanted}, and unpickling can run code, so it is not opened by name.",
            hint=f"Where you trust them: precompute.extract(torchvision.datasets.{wanted}(FOLDER), ...) in Python.",
        )
    if wanted not in SETS:
        raise SourceError(
            f"{ascii_name(name)} is not a data set of (image, label) that is known here.",
            hint=f"Known are {', '.join(SETS)}. In Python precompute.extract takes any other one.",
        )
    if reading.root is None:
        raise UsageError(f"{name} needs the folder that holds its files.", hint="Name it: --root FOLDER.")
    parts = {split: _part(wanted, reading.root, given) for split, given in SETS[wanted].items()}
    targets = [label for part in parts.values() for label in _labels(part)]
    ids = [one for split, part in parts.items() for one in numbered(split, 0, len(part))]
    splits = [split for split, part in parts.items() for _ in range(len(part))]
    rows = tuple(sorted(range(len(ids)), key=ids.__getitem__)[:limit])
    joined = Joined(tuple(parts.values()), rows, tuple(targets[row] for row in rows))
    made = dataset(joined, ids=[ids[row] for row in rows], splits=[splits[row] for row in rows], name=name)
    made.notes = (f"{wanted} is decoded by torchvision, and read again in each run",)
    return made


def _part(name: str, root: str, given: dict[str, Any]) -> Any:
    from torchvision import datasets

    shown = ascii_name(root)
    try:
        return getattr(datasets, name)(root, **given)
    except Exception as error:  # torchvision's own, of many classes: what is missing, damaged or not installed
        arguments = ", ".join([f"{root!r}", *(f"{key}={value!r}" for key, value in given.items()), "download=True"])
        fetch = f'python -c "import torchvision; torchvision.datasets.{name}({arguments})"'
        raise SourceError(
            f"torchvision finds no {name} in {shown}: {reason_of(error)}",
            hint="Name a folder of class folders: --root FOLDER."
            if name == "ImageFolder"
            else f"Download or unpack it there once: {fetch}",
        ) from error


def _labels(part: Any) -> list[str]:
    """Names of the classes of all items, without decoding them where the data set has a list of labels."""
    known = map(vars(part).get, ("targets", "labels", "_labels", "y"))
    found = next((labels for labels in known if labels is not None), None)
    if found is None:
        samples = vars(part).get("_samples")
        found = [label for _, label in samples] if samples is not None else None
    if found is None or len(found) != len(part):
        found = [part[number][1] for number in range(len(part))]
    plain = [label.item() if hasattr(label, "item") else label for label in found]
    names = getattr(part, "classes", getattr(part, "categories", None))
    if names is not None and all(isinstance(label, int) and 0 <= label < len(names) for label in plain):
        return [str(names[label]) for label in plain]
    return [str(label) for label in plain]
