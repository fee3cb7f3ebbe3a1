"""Heads side by side in the document of a report: is one better, and on which samples do they disagree?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from precompute.evaluation.comparison import check_alike, compared
from precompute.reports.places import Places, readable
from precompute.reports.scored import ScoredHead, recorded_grouping
from precompute.training.targets import CLASSES, LABELS, NUMBER, Rows

MOST = 500  # samples on which heads disagree, one by one


def check_heads_alike(heads: Sequence[ScoredHead]) -> None:
    """Raise TrainingError where heads predict different things: a report is of one task."""
    for other in heads[1:]:
        check_alike(heads[0].side, other.side)


def comparison_part(
    heads: Sequence[ScoredHead], places: Places, *, groups: str | None, groups_file: Any, seed: int
) -> dict[str, Any]:
    """Every pair of heads on the samples that neither was trained on; JSON-ready.

    groups, groups_file: as `compare` takes them; without them a pair is compared by the groups that both heads were
    trained with, where both files say the same. Raises TrainingError where two heads have no such samples in common.
    """
    pairs = []
    for (a, one), (b, other) in combinations(enumerate(heads), 2):
        pattern, column = groups, None
        if groups is None and groups_file is None:
            pattern, column = _recorded(one, other)
        result = compared(one.side, other.side, pattern, groups_file, seed, groups_column=column)
        found: Any = result.result
        values = found.accuracies if result.task == CLASSES else found.values
        pairs.append(
            {
                "a": a,
                "b": b,
                "words": readable(_by_base_names(result.words, one, other)),
                "metric": "accuracy" if result.task == CLASSES else found.metric.replace("_", " ").replace("r2", "R2"),
                "values": list(values),
                "difference": found.difference,
                "interval": list(found.interval),
                "p": found.p_value,
                "test": "McNemar" if result.task == CLASSES else "bootstrap",
                "n": found.n,
                "groups": result.groups,
                "split": result.split,
                "left_out": {
                    readable(_by_base_names(why, one, other)): count for why, count in result.left_out.items()
                },
                "notes": [readable(_by_base_names(line, one, other)) for line in result.notes],
            }
        )
    split = str(pairs[0]["split"])
    count, listed = _disagree(heads, split, places)
    return {
        "task": heads[0].task,
        "heads": [readable(head.name) for head in heads],
        "split": split,
        "pairs": pairs,
        "n_disagree": count,
        "disagree": listed,
    }


def _recorded(one: ScoredHead, other: ScoredHead) -> tuple[str | None, str | None]:
    """Pattern or column of the groups that both were trained with; (None, None) where they differ."""
    found = recorded_grouping(one.training)
    return found if found == recorded_grouping(other.training) else (None, None)


def _by_base_names(words: str, *heads: ScoredHead) -> str:
    """A line of a comparison with base names of the heads and their caches instead of the paths."""
    paths = {path for head in heads for path in (head.side.name, head.side.cache.path)}
    for path in sorted(paths, key=len, reverse=True):
        words = words.replace(path, os.path.basename(path))
    return words


def _disagree(heads: Sequence[ScoredHead], split: str, places: Places) -> tuple[int, list[dict[str, Any]]]:
    """How many samples of a split that all heads were scored on they say different things of, and MOST of these: of
    numbers those furthest apart, else spread over the file."""
    if any(split not in head.answers for head in heads):
        return 0, []
    rows: Rows = heads[0].parts[split]
    for head in heads[1:]:
        rows = np.intersect1d(rows, head.parts[split])
    said = []
    for head in heads:
        answers = head.answers[split][np.searchsorted(head.parts[split], rows)]
        if head.task == CLASSES:
            said.append(answers.argmax(axis=1))
        else:
            said.append(answers if head.task == NUMBER else answers > head.side.saved.head.thresholds_)
    values = np.stack(said, axis=1)  # (n, heads) or (n, heads, L)
    target = heads[0].side.target
    if heads[0].task == NUMBER:
        apart = np.ptp(values, axis=1)
        order = np.argsort(-apart, kind="stable")
        differing = order[apart[order] > 0]
        chosen = differing[:MOST]
    else:
        differ = (values != values[:, :1]).reshape(len(values), -1).any(axis=1)
        differing = np.flatnonzero(differ)
        chosen = differing[np.linspace(0, len(differing) - 1, min(MOST, len(differing))).round().astype(np.int64)]
    true: Any = target.of(rows[chosen])
    if heads[0].task == CLASSES:
        true = np.searchsorted(heads[0].side.saved.head.classes_, true)
    is_labels = heads[0].task == LABELS
    return len(differing), [
        {
            "place": place,
            "true": np.flatnonzero(own).tolist() if is_labels else own.item(),
            "predicted": [np.flatnonzero(one).tolist() if is_labels else one.item() for one in values[i]],
        }
        for place, own, i in zip(places.of(rows[chosen]).tolist(), true, chosen, strict=True)
    ]
