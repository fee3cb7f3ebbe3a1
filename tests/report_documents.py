"""Documents of reports as precompute.reports.document builds them, made up: every task, modality and odd case."""

from __future__ import annotations

import base64
import io
import wave
from typing import Any

import numpy as np
from PIL import Image

HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "'\"><svg onload=document.title='owned'>",
    "photo\u202egpj.exe",
    "two\nlines\tand a tab",
    "</script><script>document.title='owned'</script>",
    "{{ 7*7 }}{% raw %}",
    "שלום עולם",
    "long " * 60,
    "\udcff not UTF-8",
    "__proto__",
    "<!--",
)
UNITS = {"image": ("image", "images"), "text": ("text", "texts"), "audio": ("clip", "clips")}


def _picture(rng: np.random.Generator, label: int) -> str:
    """A small JPEG with a pattern of its class."""
    y, x = np.mgrid[0:96, 0:96] / 96
    wave_ = np.sin((x * (3 + label) + y * (2 + 2 * label)) * 3 + rng.uniform(0, 6))
    tint = np.array([[0.9, 0.5, 0.3], [0.3, 0.6, 0.8], [0.5, 0.8, 0.4], [0.8, 0.7, 0.3]])[label % 4]
    pixels = (128 + 90 * wave_[..., None] * tint + rng.normal(0, 12, (96, 96, 3))).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _clip(rng: np.random.Generator) -> str:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(4000)
        sound.writeframes((8000 * np.sin(np.arange(800) * rng.uniform(0.2, 1))).astype("<i2").tobytes())
    return "data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode()


def _text(rng: np.random.Generator, label: int) -> str:
    words = (
        "the film",
        "a story",
        "was slow",
        "and bright",
        "without end",
        "for everyone",
        "<b>loud</b>",
        "quiet & small",
    )
    return f"Text of {label}: " + " ".join(rng.choice(words, 30))


def _media(rng: np.random.Generator, modality: str, label: int) -> str:
    if modality == "image":
        return _picture(rng, label)
    return _clip(rng) if modality == "audio" else _text(rng, label)


def packed(values: Any, dtype: str) -> str:
    return base64.b64encode(np.asarray(values).astype(dtype).tobytes()).decode()


def make_document(
    *,
    task: str | None = "classes",
    modality: str = "image",
    classes: list[str] | None = None,
    samples: int = 400,
    heads: int = 2,
    compare: bool = False,
    media: int = 60,
    hostile: bool = False,
    wrong: float = 0.15,
    seed: int = 0,
) -> dict[str, Any]:
    """A document with `samples` samples in train and val, of which val is scored by `heads` heads.

    media: how many samples have a picture, text or clip. hostile: class names and ids that try to break the page.
    """
    rng = np.random.default_rng(seed)
    names = classes if classes is not None else ["ants", "bees", "wasps"]
    if hostile:
        names = [HOSTILE[index % len(HOSTILE)] + ("" if index < len(HOSTILE) else str(index)) for index in range(12)]
    label = rng.integers(0, max(1, len(names)), samples)
    split = (np.arange(samples) % 5 >= 3).astype(int)
    ids = [
        f"{'val' if split[at] else 'train'}/{names[label[at]] if names else 'x'}/{at:05d}.jpg" for at in range(samples)
    ]
    if hostile:
        ids = [f"{HOSTILE[at % len(HOSTILE)]} {at}" for at in range(samples)]
    target: list[Any] = [None] * samples
    if task == "number":
        target = [float(value) for value in np.round(rng.gamma(3, 4, samples), 2)]
    elif task == "labels":
        target = [
            sorted({int(label[at]), int(rng.integers(0, len(names)))}) if rng.random() > 0.1 else []
            for at in range(samples)
        ]
    scored = np.flatnonzero(split == 1)
    made = [_head(rng, at, task, names, label, target, scored, wrong) for at in range(heads)]
    shown = [int(at) for head in made for at in head["scored"][0]["mistakes"]]
    places = dict.fromkeys([int(scored[at]) for at in shown] + list(range(min(samples, media // 2))))
    unit = UNITS[modality]
    return {
        "version": 1,
        "title": HOSTILE[0] if hostile else "ants.h5",
        "precompute": "0.1.0",
        "made": "2026-11-28T15:40:00Z",
        "task": task,
        "modality": modality,
        "unit": {"one": unit[0], "plural": unit[1]},
        "classes": names,
        "notes": [],
        "samples": {
            "id": ids,
            "label": [int(value) if task == "classes" else -1 for value in label],
            "split": split.tolist(),
            "target": target,
        },
        "splits": ["train", "val"],
        "media": {
            "kind": modality,
            "of": {str(at): _media(rng, modality, int(label[at])) for at in list(places)[:media]},
        },
        "heads": made,
        "comparison": _comparison(made, scored) if compare else None,
        "duplicates": {"two_labels": [[1, 4]], "identical": [[2, 7], [3, 8, 9]]} if samples > 9 else None,
        "curves": _curves(rng),
        "map": make_map(rng, label if task == "classes" else np.full(samples, -1), split, made, label),
        "made_by": {
            "settings": [["backbone", "mobilenet_v2"], ["image size", 224], ["precision", "fp32"]],
            "runs": [
                {
                    "when": "2026-11-28T15:30:00Z",
                    "version": "0.1.0",
                    "command": "precompute extract ants -o ants.h5",
                    "computed": samples,
                    "engine": "torch",
                    "device": "cpu",
                    "seconds": 12.34,
                }
            ],
            "versions": {"torch": "2.14.0", "numpy": "2.3.1"},
            "commands": ["precompute extract ants -o ants.h5", "precompute train-head ants.h5 -o ants.safetensors"],
            "weights": {"name": "MobileNet_V2_Weights.IMAGENET1K_V1", "sha256": "ab" * 32},
            "key": "0123456789abcdef" * 4,
            "source": HOSTILE[1] if hostile else "ants",
        },
    }


def _head(
    rng: np.random.Generator,
    at: int,
    task: str | None,
    names: list[str],
    label: Any,
    target: list[Any],
    scored: Any,
    wrong: float,
) -> dict[str, Any]:
    n, size = len(scored), len(names)
    missed = rng.random(n) < wrong * (at + 1)
    truth: list[Any]
    said: list[Any]
    if task == "number":
        truth = [target[place] for place in scored]
        said = [float(value + rng.normal(0, 1 + 4 * wrong)) for value in truth]
        mistakes = sorted(range(n), key=lambda item: -abs(truth[item] - said[item]))[:24]
    elif task == "labels":
        truth = [target[place] for place in scored]
        said = [
            sorted(set(value) ^ {int(rng.integers(0, size))}) if miss else value
            for value, miss in zip(truth, missed, strict=True)
        ]
        mistakes = [item for item in range(n) if missed[item]][:24]
    else:
        truth = [int(label[place]) for place in scored]
        said = [
            int((value + rng.integers(1, size)) % size) if miss and size > 1 else value
            for value, miss in zip(truth, missed, strict=True)
        ]
    probability = [float(value) for value in rng.beta(6, 1.5, n) * 0.5 + 0.5]
    if task not in ("number", "labels"):
        mistakes = sorted(
            (item for item in range(n) if truth[item] != said[item]), key=lambda item: -probability[item]
        )[:24]
    value = 1 - sum(a != b for a, b in zip(truth, said, strict=True)) / n if task != "number" else 0.81
    metric = {"classes": "accuracy", "labels": "mean average precision", "number": "R2"}.get(task or "", "accuracy")
    low, high = max(0.0, value - 0.05), min(1.0, value + 0.03)
    percent = task != "number"
    return {
        "name": f"head{at}.safetensors",
        "kind": ("logistic", "mlp", "knn")[at % 3],
        "layer": "flatten",
        "trained_on": len(label) - n,
        "seconds": 0.4 + at,
        "choices": {"C": 0.1},
        "seed": 0,
        "selected_on": None,
        "notes": [],
        "scored": [
            {
                "split": "val",
                "n": n,
                "verdict": {
                    "metric": metric,
                    "value": value,
                    "interval": [low, high],
                    "percent": percent,
                    "words": f"{value:.1%} of {n} samples are right (95%: {low:.1%} to {high:.1%})",
                },
                "metrics": [
                    {"name": "balanced accuracy", "value": value - 0.01, "interval": [low, high], "percent": percent},
                    {"name": "macro F1", "value": float("nan"), "interval": None, "percent": percent},
                    {"name": "log loss", "value": 0.213, "interval": None, "percent": False},
                ],
                "per_class": [] if task == "number" else [_class(index, truth, said, task) for index in range(size)],
                "confusion": _confusion(size, truth, said) if task == "classes" else None,
                "items": {
                    "place": [int(place) for place in scored],
                    "true": truth,
                    "predicted": said,
                    "probability": None if task == "number" else probability,
                },
                "mistakes": mistakes,
                "reliability": None if task == "number" else _reliability(rng, n),
                "leaks": {
                    "identical": 1,
                    "grouped": 0,
                    "near": 2,
                    "similarity": 0.9,
                    "sample": None,
                    "pairs": [
                        {
                            "a": int(scored[item]),
                            "b": item,
                            "similarity": 0.97,
                            "same_class": item % 2 == 0,
                            "kind": ("near", "identical")[item % 2],
                        }
                        for item in range(min(3, n))
                    ],
                    "without": {"value": value - 0.01, "interval": [low, high], "n": n - 3},
                },
            }
        ],
    }


def _class(index: int, truth: list[Any], said: list[Any], task: str | None) -> dict[str, Any]:
    bears = [index in item if isinstance(item, list) else item == index for item in truth]
    given = [index in item if isinstance(item, list) else item == index for item in said]
    both = sum(a and b for a, b in zip(bears, given, strict=True))
    n = sum(bears)
    recall = both / n if n else None
    row = {
        "class": index,
        "n": n,
        "recall": recall,
        "recall_interval": None if recall is None else [max(0, recall - 0.1), min(1, recall + 0.05)],
        "precision": both / sum(given) if sum(given) else None,
        "f1": None if recall is None else recall * 0.98,
    }
    return row | ({"threshold": 0.5, "average_precision": recall} if task == "labels" else {})


def _confusion(size: int, truth: list[int], said: list[int]) -> dict[str, Any]:
    matrix = np.zeros((size, size), int)
    cells: dict[str, list[int]] = {}
    for item, (a, b) in enumerate(zip(truth, said, strict=True)):
        matrix[a, b] += 1
        cells.setdefault(f"{a},{b}", []).append(item)
    if size > 40:
        pairs = sorted(
            ((int(matrix[a, b]), int(a), int(b)) for a, b in zip(*np.nonzero(matrix), strict=True) if a != b),
            reverse=True,
        )
        return {"largest": [[a, b, n, cells[f"{a},{b}"]] for n, a, b in pairs[:40]]}
    return {
        "matrix": matrix.tolist(),
        "cells": {key: items for key, items in cells.items() if len(set(key.split(","))) > 1},
    }


def _reliability(rng: np.random.Generator, n: int) -> dict[str, Any]:
    bins = []
    for at in range(10):
        inside = 0 if at < 3 else n * (at - 2) // 30
        low = at / 10
        bins.append(
            {
                "low": low,
                "high": low + 0.1,
                "n": inside,
                "confidence": low + 0.05 if inside else None,
                "accuracy": min(1.0, low + 0.02 * at) if inside else None,
                "interval": [max(0, low - 0.1), min(1, low + 0.25)] if inside else None,
            }
        )
    return {"bins": bins, "ece": 0.031, "temperature": 1.4, "applied": True}


def _comparison(heads: list[dict[str, Any]], scored: Any) -> dict[str, Any]:
    items = [head["scored"][0]["items"] for head in heads]
    differ = [at for at in range(len(scored)) if len({str(item["predicted"][at]) for item in items}) > 1][:20]
    return {
        "heads": [head["name"] for head in heads],
        "split": "val",
        "pairs": [
            {
                "a": 0,
                "b": 1,
                "words": "head0 is right on 4.1% more of the images than head1 (95%: 1.0% to 7.2%).",
                "difference": 0.041,
                "interval": [0.01, 0.072],
                "p": 0.01234,
                "metric": "accuracy",
                "test": "McNemar",
                "n": len(scored),
                "groups": 12,
                "split": "val",
                "left_out": {"trained on by one of them": 3},
                "notes": ["val chose a setting of <b>head0</b>, so its score is optimistic"],
            }
        ],
        "n_disagree": 1234,
        "disagree": [
            {
                "place": int(scored[at]),
                "true": items[0]["true"][at],
                "predicted": [item["predicted"][at] for item in items],
            }
            for at in differ
        ],
    }


def _curves(rng: np.random.Generator) -> list[dict[str, Any]]:
    def points(xs: list[float], level: float) -> list[list[float | None]]:
        return [
            [
                x,
                level * (1 - 0.5 / (at + 1)),
                level * (1 - 0.5 / (at + 1)) - 0.04,
                min(1, level * (1 - 0.5 / (at + 1)) + 0.03),
            ]
            for at, x in enumerate(xs)
        ]

    shots = [1.0, 2, 5, 10, 20, 50, 100]
    return [
        {
            "kind": "few-shot",
            "title": "Accuracy by labelled images",
            "x": "labelled images a class",
            "y": "accuracy",
            "percent": True,
            "log": True,
            "by_chance": 0.33,
            "lines": [
                {"name": "logistic", "points": points(shots, 0.97), "dashed": False, "mark": None},
                {"name": "<b>knn</b>", "points": points(shots, 0.9), "dashed": True, "mark": None},
            ],
        },
        {
            "kind": "history",
            "title": "Loss by epoch",
            "x": "epoch",
            "y": "cross-entropy",
            "percent": False,
            "log": False,
            "by_chance": None,
            "lines": [
                {
                    "name": name,
                    "points": [[at, scale / (1 + at / 5) + 0.02 * at * (scale < 1), None, None] for at in range(30)],
                    "dashed": False,
                    "mark": 12,
                }
                for name, scale in (("train", 1.1), ("held out", 0.9))
            ],
        },
    ]


def make_map(
    rng: np.random.Generator, label: Any, split: Any, heads: list[dict[str, Any]], cluster: Any
) -> dict[str, Any]:
    """A map with a cloud of points for each value of `cluster`, over the whole extent of uint16."""
    n = len(label)
    centre = rng.uniform(0.1, 0.9, (int(cluster.max()) + 1, 2))
    spread = centre[cluster] + rng.normal(0, 0.05, (n, 2))
    spread = (spread - spread.min(axis=0)) / np.ptp(spread, axis=0).clip(1e-9)
    right = {}
    for head in heads:
        items = head["scored"][0]["items"]
        marks = np.full(n, -1)
        marks[items["place"]] = [a == b for a, b in zip(items["true"], items["predicted"], strict=True)]
        right[head["name"]] = packed(marks, "i1")
    return {
        "method": "t-SNE of 50 principal components (scikit-learn)",
        "rows": n,
        "of": n,
        "drawn": "all rows",
        "layer": "flatten",
        "seed": 0,
        "perplexity": 30,
        "x": packed(np.round(spread[:, 0] * 65535), "<u2"),
        "y": packed(np.round(spread[:, 1] * 65535), "<u2"),
        "place": packed(np.arange(n), "<u4"),
        "label": packed(label, "<i4"),
        "label_type": "int32",
        "split": packed(split, "i1"),
        "right": right,
        "ids": "samples",
    }
