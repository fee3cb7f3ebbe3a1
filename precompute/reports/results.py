"""Files of `--results`: what `few-shot`, `depth` and `rank` printed with `--json`, as curves of a report.

The files may come from strangers: their size is checked before they are read, and every value before it is used.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from typing import Any

from precompute.errors import UsageError
from precompute.reports.places import readable
from precompute.system.untrusted import open_without_waiting

MOST_BYTES = 16 * 2**20
MOST_LINES = 60
MOST_POINTS = 2000
LETTERS = 200  # of a name
HINT = "Give what `precompute few-shot`, `depth` or `rank` printed with --json: precompute few-shot CACHE --json > FILE"

Object = dict[str, Any]


def read_results(path: str | os.PathLike[str]) -> Object:
    """The curve of one file, JSON-ready. Raises UsageError for anything but such a file."""
    shown = os.fspath(path)
    found = _parsed(shown)
    kinds: dict[str, Callable[[Object], Object]] = {"curves": _few_shot, "standings": _depth, "candidates": _rank}
    make = next((kind for key, kind in kinds.items() if key in found), None)
    if make is None:
        said = found.get("error")
        if isinstance(said, dict) and isinstance(said.get("message"), str):
            raise UsageError(f"{shown} holds an error, and no results: {said['message'][:LETTERS]}", hint=HINT)
        raise UsageError(f"{shown} holds no results of few-shot, depth or rank.", hint=HINT)
    try:
        return make(found)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{shown} does not hold the results that it begins with: {what}.", hint=HINT) from error


def _parsed(path: str) -> Object:
    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{path} is not an ordinary file.", hint=HINT)
            if status.st_size > MOST_BYTES:
                raise UsageError(f"{path} has {status.st_size:,} bytes, more than {MOST_BYTES:,}.", hint=HINT)
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"The results {path} cannot be read: {reason}.", hint=HINT) from error
    try:
        found = json.loads(data.decode(), parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {str(error)[:LETTERS]}.", hint=HINT) from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} is not one JSON object.", hint=HINT)
    return found


def _refused(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _few_shot(found: Object) -> Object:
    curves = _list(found, "curves", MOST_LINES)
    first = _object(curves[0])
    task, metric = _text(first, "task"), _text(first, "metric")
    lines = []
    for curve in map(_object, curves):
        points = []
        for point in map(_object, _list(curve, "points", MOST_POINTS)):
            score = point.get("accuracy", point.get("score"))
            points.append([_number(point, "shots"), _finite(score, "a score"), *_interval(point.get("interval"))])
        lines.append({"name": _text(curve, "name"), "points": points, "dashed": False, "mark": None})
    each = {"classes": "a class", "labels": "a label"}.get(task, "in all")
    unit = readable(str(first.get("unit", "samples")))[:LETTERS]
    return _curve(
        kind="few-shot",
        title=f"Few shots: {_called(metric)} by labelled {unit}",
        x=f"labelled {unit} {each}",
        y=_called(metric),
        metric=metric,
        by_chance=None if first.get("chance") is None else _number(first, "chance"),
        lines=lines,
    )


def _depth(found: Object) -> Object:
    classes = _number(found, "n_classes")
    if not 1 <= classes <= 10**6:
        raise ValueError(f"n_classes is {classes}")
    points: dict[str, list[list[float | None]]] = {}
    for point in map(_object, _list(found, "points", MOST_POINTS)):
        shots = point["shots"]
        at = _number(point, "labels") / classes if shots == "all" else _finite(shots, "shots")
        values = [at, _number(point, "score"), *_interval(point.get("interval"))]
        points.setdefault(_text(point, "method"), []).append(values)
    pretrained = {
        _text(one, "name"): one.get("pretrained") for one in map(_object, _list(found, "methods", MOST_LINES))
    }
    lines = [
        {"name": name, "points": points[name], "dashed": not is_pretrained, "mark": None}
        for name, is_pretrained in pretrained.items()
        if name in points
    ]
    return _curve(
        kind="depth",
        title=f"How deep to train {_text(found, 'backbone')}",
        x="labelled images a class",
        y="accuracy",
        metric="accuracy",
        by_chance=1 / classes,
        lines=lines,
        words=found.get("verdict"),
    )


def _rank(found: Object) -> Object:
    metric = _text(found, "metric")
    lines = []
    for place, one in enumerate(map(_object, _list(found, "candidates", MOST_LINES)), start=1):
        point = [place, _number(one, "score"), *_interval(one.get("interval"))]
        name = _text(one, "name")
        lines.append({"name": name, "points": [point], "dashed": one.get("group") != 1, "mark": None})
    return _curve(
        kind="rank",
        title=f"Backbones and layers by {_called(metric)}",
        x="rank",
        y=_called(metric),
        metric=metric,
        by_chance=None,
        lines=lines,
        words=found.get("verdict"),
    )


def _curve(
    *,
    kind: str,
    title: str,
    x: str,
    y: str,
    metric: str,
    by_chance: float | None,
    lines: list[Object],
    words: Any = None,
) -> Object:
    return {
        "kind": kind,
        "title": title,
        "x": x,
        "y": y,
        "percent": metric == "accuracy",
        "log": kind != "rank",
        "by_chance": by_chance,
        "words": readable(words)[: 5 * LETTERS] if isinstance(words, str) else None,
        "lines": lines,
    }


def _called(metric: str) -> str:
    return {"r2": "R2"}.get(metric, metric.replace("_", " "))


def _list(found: Object, name: str, most: int) -> list[Any]:
    value = found[name]
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise ValueError(f"{name} must be a list of 1 to {most:,}")
    return value


def _object(value: Any) -> Object:
    if not isinstance(value, dict):
        raise ValueError("it lists something that is no object")
    return value


def _text(found: Object, name: str) -> str:
    value = found[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text")
    return readable(value)[:LETTERS]


def _number(found: Object, name: str) -> float:
    return _finite(found[name], name)


def _finite(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number")
    return float(value)


def _interval(value: Any) -> tuple[float | None, float | None]:
    if value is None:
        return None, None
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("an interval must have two ends")
    low, high = (_finite(end, "the end of an interval") for end in value)
    return low, high
