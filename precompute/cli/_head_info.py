"""How `info` shows the file of a head or a tail. It may come from anyone, so what is not as `train-head` and
`fine-tune` write it is left out."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from typing import Any

from precompute.cli._options import shape_words
from precompute.cli._output import print_pairs
from precompute.cli._scores import headline
from precompute.system.samples import words_of_spec

MOST_CLASSES = 20  # or labels that are named; --json has all
LONGEST_HEADER = 2**32
INPUT = "input"  # of precompute.backbones.layers, which loads torch


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
    """JSON-ready: what the head or tail at `path` is, takes and gives, and how it was trained and scored."""
    from precompute.finetuning.opening import open_head

    file = open_head(path)
    names, thresholds, about = _of_tail(file.saved) if file.is_tail else _of_head(file.saved, file.task)
    training = _object(file.metadata.get("training"))
    return {
        "path": path,
        "kind": about.pop("kind"),
        "task": file.task,
        "classes": names if file.task == "classes" else [],
        "labels": names if file.task == "labels" else [],
        "thresholds": dict(zip(names, thresholds, strict=True)) if file.task == "labels" else {},
        "n_features": file.n_features,
        **about,
        "temperature": file.metadata.get("temperature"),
        "average_views": file.metadata.get("average_views"),
        "layer": file.metadata.get("layer"),
        "layers": [one.to_dict() for one in file.inputs],
        "key": file.metadata.get("key"),
        "spec": _object(file.metadata.get("spec")),
        "weights": _object(file.metadata.get("weights_source")),
        "training": {
            name: value
            for name, value in training.items()
            if name not in ("classes", "labels", "thresholds", "task", "split")
        },
        "bytes": os.path.getsize(path),
    }


def _of_head(saved: Any, task: str) -> tuple[list[str], list[float], dict[str, Any]]:
    """Names of classes or labels, thresholds of labels, and what there is to say of an estimator."""
    names = {"classes": "classes_", "labels": "labels_"}.get(task)
    about = {"kind": type(saved.head).__name__, "parameters": saved.head.get_params(), "tail": None}
    thresholds = list(map(float, saved.head.thresholds_)) if task == "labels" else []
    return [str(name) for name in getattr(saved.head, names)] if names else [], thresholds, about


def _of_tail(saved: Any) -> tuple[list[str], list[float], dict[str, Any]]:
    """The same of what was trained behind a layer. No backbone is loaded."""
    fitted = saved.fitted
    tail = {
        "code": saved.factory,
        "shape": list(saved.shape),
        "parameters": int(sum(array.size for array in saved.trained.values())),
        "best_epoch": fitted.best_epoch,
        "epochs": len(fitted.history) - 1,
    }
    kind = "whole network" if saved.layer == INPUT and saved.factory is None else "tail"
    return list(saved.names), list(fitted.thresholds), {"kind": kind, "parameters": fitted.settings, "tail": tail}


def print_head(summary: dict[str, Any]) -> None:
    """The same for people."""
    spec, training = summary["spec"], summary["training"]
    classes, thresholds, tail = summary["classes"], summary["thresholds"], summary["tail"]
    takes = f"{summary['n_features']:,} features"
    if tail is not None:
        takes = f"{shape_words(tail['shape'])} activations"
    print_pairs(
        summary["path"],
        [
            ("head" if tail is None else "kind", summary["kind"]),
            ("trained", tail and f"{tail['parameters']:,} parameters, epoch {tail['best_epoch']} of {tail['epochs']}"),
            ("code", tail and tail["code"]),
            ("classes", _named(classes)),
            ("labels", _named([f"{label} (above {value:.3f})" for label, value in thresholds.items()])),
            ("backbone", spec.get("backbone")),
            ("weights", json.dumps(summary["weights"]) if summary["weights"] else None),
            ("layer", summary["layer"]),
            ("layers", _named([_described(one) for one in summary["layers"]])),
            ("takes", f"{takes}, {spec.get('precision')} stored as {spec.get('storage')}"),
            ("transform", json.dumps(spec["transform"]) if "transform" in spec else None),
            ("parameters", ", ".join(f"{name} {value}" for name, value in summary["parameters"].items())),
            ("temperature", summary["temperature"]),
            ("predicts by", f"the mean over {summary['average_views']} views" if summary["average_views"] else None),
            ("trained on", training.get("cache")),
            *_scores(training, summary["task"], words_of_spec(spec).plural),
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


def _scores(training: dict[str, Any], task: str, unit: str) -> Iterator[tuple[str, str]]:
    """Samples by split, and the first score on each that was scored."""
    scores = _object(training.get("scores"))
    for split, number in _object(training.get("rows")).items():
        score = headline(task, _object(scores.get(split)))
        yield split, f"{number} {unit}" if score is None else f"{number} {unit}, {score}"


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
