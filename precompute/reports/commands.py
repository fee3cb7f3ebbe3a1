"""The commands that a cache and a head were made by, from what their files say."""

from __future__ import annotations

import inspect
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

MOST_LETTERS = 4000  # of a command that a file from anyone leads to


def extract_command(record: dict[str, Any], *, output: str | None = None, base_names: bool = False) -> str | None:
    """The `precompute extract` that does what the run of `record` did, less what was left to `auto`.

    output: the feature file, for -o · base_names: paths are shortened to their last part.
    """
    options = record.get("options")
    if not isinstance(options, dict):
        return None

    def shown(value: Any) -> str:
        return shortened(str(value)) if base_names else str(value)

    transform = options.get("transform")
    words = ["precompute", "extract", shown(record.get("source"))]
    for name, value in {**options, **(transform if isinstance(transform, dict) else {})}.items():
        if name in ("transform", "columns", "keep", "part", "reuse") or value in (None, False, "auto", "DEFAULT"):
            continue
        several = name == "layer" and isinstance(value, list)
        for one in value if several else [value]:
            words.append(f"--{name.replace('_', '-')}")
            if one is not True:
                words.append(
                    ",".join(map(str, one)) if isinstance(one, list) else shown(one) if _is_path(name) else str(one)
                )
    columns = options.get("columns")
    for part, name in columns.items() if isinstance(columns, dict) else ():
        words += [f"--{part}-column", str(name)]
    keep = options.get("keep")
    for name in keep if isinstance(keep, list) else ():
        words += ["--keep-column", str(name)]
    if options.get("part"):
        words += ["--shard", str(options["part"])]
    reuse = options.get("reuse")
    for path in reuse if isinstance(reuse, list) else ():
        words += ["--reuse", shown(path)]
    if output is not None:
        words += ["-o", output]
    return shlex.join(words)[:MOST_LETTERS]


def _is_path(option: str) -> bool:
    return option in ("weights", "root", "backbone")


def train_command(metadata: dict[str, Any], head: Any, *, cache: str, output: str) -> str | None:
    """The `precompute train-head` that trains such a head again; None of a tail, and where its file does not say.

    head: the estimator, whose parameters are those that were given, or the defaults.
    """
    training = metadata.get("training")
    if not isinstance(training, dict) or not isinstance(training.get("head"), str) or training["head"] == "tail":
        return None
    words = ["precompute", "train-head", cache, "-o", output, "--head", training["head"]]
    layers = training.get("layers")
    if isinstance(layers, list) and len(layers) > 1:
        for layer in layers:
            words += ["--layer", str(layer)]
    elif isinstance(training.get("layer"), str):
        words += ["--layer", training["layer"]]
    words += ["--task", str(training.get("task", "classes"))]
    protocol = training.get("protocol")
    if isinstance(protocol, dict) and protocol.get("name"):
        words += ["--protocol", ":".join(str(protocol[part]) for part in ("name", "dataset") if protocol.get(part))]
    for name, value in _parameters(head):
        words.append(name)
        if value is not True:
            words.append(value)
    words += _asked(metadata, training)
    if isinstance(training.get("seed"), int):
        words += ["--seed", str(training["seed"])]
    return shlex.join(words)[:MOST_LETTERS]


def _asked(metadata: dict[str, Any], training: dict[str, Any]) -> Iterator[str]:
    """Options that say what is learned and how it is scored."""
    for part in ("relabelling", "asked"):
        given = training.get(part)
        for name, value in (given if isinstance(given, dict) else {}).items():
            option = {"table": "--labels"}.get(name, f"--{name.replace('_', '-')}")
            for one in value if isinstance(value, list) else [value]:
                yield option
                if one is not True:
                    yield str(one)
    calibration = training.get("calibration")
    if isinstance(calibration, dict) and calibration.get("applied") is True:
        yield "--calibrate"
    if metadata.get("average_views"):
        yield "--average-views"


def report_command(cache: str, heads: Sequence[str], given: Iterable[tuple[str, Any]]) -> str:
    """The `precompute report` with these options: True for a flag, None and False for what was not given."""
    words = ["precompute", "report", cache, *heads, "-o", "report.html"]
    for option, value in given:
        if value is not None and value is not False:
            words += [option] if value is True else [option, str(value)]
    return shlex.join(words)[:MOST_LETTERS]


OPTIONS = {
    **{name: f"--{name.replace('_', '-')}" for name in ("C", "k", "alpha", "metric", "fraction", "queries", "dropout")},
    **{name: f"--{name.replace('_', '-')}" for name in ("batch_norm", "label_smoothing", "mixup", "weight_decay")},
    **{name: f"--{name.replace('_', '-')}" for name in ("learning_rate", "schedule", "batch_size", "max_epochs")},
    **{"patience": "--patience", "hidden": "--hidden", "temperature": "--temperature"},
}
"""Parameters of heads that are options of `train-head`."""


def _parameters(head: Any) -> list[tuple[str, Any]]:
    """Options of those parameters that are not the class's defaults."""
    defaults = {name: one.default for name, one in inspect.signature(type(head).__init__).parameters.items()}
    found: list[tuple[str, Any]] = []
    for name, option in OPTIONS.items():
        value = head.get_params().get(name) if hasattr(head, "get_params") else None
        if value is None or value is False or name not in defaults or _same(value, defaults[name]):
            continue
        listed = ",".join(map(str, value)) or "0" if isinstance(value, list | tuple) else str(value)
        found.append((option, True if value is True else listed))
    return found


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, list | tuple) and isinstance(default, list | tuple):
        return list(value) == list(default)
    return bool(value == default)


def shortened(path: str) -> str:
    """The last part of a path, without what an address may hold of passwords: for files that others get."""
    scheme, mark, rest = path.partition("://")
    if mark:
        return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"
    prefix, colon, rest = path.partition(":")
    if colon and os.path.isabs(rest):  # a folder of a family, such as timm:/models/one
        return f"{prefix}:{shortened(rest)}"
    if os.path.isabs(path) or path.startswith(("./", "../", "~")):
        return os.path.basename(path.rstrip("/")) or path
    return path


def base_name(path: str) -> str:
    """The last part of any path; an address stays one, see `shortened`."""
    short = shortened(path)
    return short if "://" in short else os.path.basename(short.rstrip("/")) or short


NOTED = re.compile(
    r"(\bsamples are in |\bkept in |\b(?:labels|label|numbers) from (?!column |the file\b|[\d,]+ columns, ))(.+?)"
    r"(?=, which has [\d,]+ rows|: [\d,]+ classes|, several a sample by |, \S+ to \S+$|$)"
)
"""A file in the notes of a training, between the words around it: it may hold spaces."""
ELSEWHERE = re.compile(r"(?<![\w:/.~])(?:/[^\s/'\",;]+|~[\w-]*|\.{1,2})/(?:[^\s/'\",;]+/)+[^\s/'\",;)]*")
"""Any other path from a root, with three names at least: /m/09x is the name of a class."""


def without_folders(text: str) -> str:
    """Words for people, such as a note of a head's file, with paths shortened to their last part."""
    text = NOTED.sub(lambda found: found[1] + (os.path.basename(found[2].rstrip("/")) or found[2]), text)
    return ELSEWHERE.sub(lambda found: shortened(found[0]), text)
