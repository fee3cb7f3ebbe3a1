"""How `info` shows a head file. It may come from anyone, so what is not as `train-head` writes it is left out."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from typing import Any

from precompute.cli._output import print_pairs
from precompute.cli._scores import headline

MOST_CLASSES = 20  # or labels that are named; --json has all
LONGEST_HEADER = 2**32


def looks_like_head(path: str) -> bool:
    """Whether the first bytes of a file are those of safetensors: the length of a header, then its JSON."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # opening it as a cache says why
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        start = os.read(descriptor, 9)
    finally:
        os.close(descriptor)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < LONGEST_HEADER


def describe_head(path: str) -> dict[str, Any]:
    """JSON-ready: what the head at `path` is, takes and gives, and how it was trained and scored."""
    from precompute.heads import load_head
    from precompute.training.kinds import task_of
    from precompute.training.layers import saved_inputs

    saved = load_head(path)
    task = task_of(saved.head)
    labels = [str(name) for name in saved.head.labels_] if task == "labels" else []
    training = _object(saved.metadata.get("training"))
    return {
        "path": path,
        "kind": type(saved.head).__name__,
        "task": task,
        "classes": [str(name) for name in saved.head.classes_] if task == "classes" else [],
        "labels": labels,
        "thresholds": dict(zip(labels, map(float, saved.head.thresholds_), strict=True)) if labels else {},
        "n_features": int(saved.head.n_features_in_),
        "parameters": saved.head.get_params(),
        "temperature": saved.metadata.get("temperature"),
        "average_views": saved.metadata.get("average_views"),
        "layer": saved.metadata.get("layer"),
        "layers": [one.to_dict() for one in saved_inputs(saved.metadata, path, int(saved.head.n_features_in_))],
        "key": saved.metadata.get("key"),
        "spec": _object(saved.metadata.get("spec")),
        "weights": _object(saved.metadata.get("weights_source")),
        "training": {
            name: value
            for name, value in training.items()
            if name not in ("classes", "labels", "thresholds", "task", "split")
        },
        "bytes": os.path.getsize(path),
    }


def print_head(summary: dict[str, Any]) -> None:
    """The same for people."""
    spec, training = summary["spec"], summary["training"]
    classes, thresholds = summary["classes"], summary["thresholds"]
    print_pairs(
        summary["path"],
        [
            ("head", summary["kind"]),
            ("classes", _named(classes)),
            ("labels", _named([f"{label} (above {value:.3f})" for label, value in thresholds.items()])),
            ("backbone", spec.get("backbone")),
            ("weights", json.dumps(summary["weights"]) if summary["weights"] else None),
            ("layer", summary["layer"]),
            ("layers", _named([_described(one) for one in summary["layers"]])),
            ("takes", f"{summary['n_features']:,} features, {spec.get('precision')} stored as {spec.get('storage')}"),
            ("transform", json.dumps(spec["transform"]) if "transform" in spec else None),
            ("parameters", ", ".join(f"{name} {value}" for name, value in summary["parameters"].items())),
            ("temperature", summary["temperature"]),
            ("predicts by", f"the mean over {summary['average_views']} views" if summary["average_views"] else None),
            ("trained on", training.get("cache")),
            *_scores(training, summary["task"]),
            ("seed", training.get("seed")),
            ("key", summary["key"]),
            ("size", f"{summary['bytes']:,} bytes"),
        ],
    )


def _named(names: list[str]) -> str | None:
    if not names:
        return None
    return f"{len(names):,}: " + ", ".join(names[:MOST_CLASSES]) + (", ..." if len(names) > MOST_CLASSES else "")


def _described(layer: dict[str, Any]) -> str:
    shape = " x ".join(map(str, layer["shape"]))
    return f"{layer['name']} ({shape}{', averaged over positions' if layer['positions'] else ''})"


def _scores(training: dict[str, Any], task: str) -> Iterator[tuple[str, str]]:
    """Images by split, and the first score on each that was scored."""
    scores = _object(training.get("scores"))
    for split, images in _object(training.get("rows")).items():
        score = headline(task, _object(scores.get(split)))
        yield split, f"{images} images" if score is None else f"{images} images, {score}"


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
