"""A folder of sentence-transformers against its own `encode`: the same features, how good they are, and how fast.

    python scripts/check_text.py FOLDER TREC [--count 500] [--repeats 5] [--only-speed]

FOLDER: such as all-MiniLM-L6-v2. TREC: a .csv with text, label and split. For the first `--count` texts the cosine of
the features at fp32 to what `encode` gives, at worst, for batches of 1 and of 64 on either side; then the whole table
by `extract` and a logistic head, its accuracy on test with an interval. Last, texts a second on all cores: `encode`
with its own settings (fp32, batches of 32, sorted by length) and `extract` in fp32 and in what `auto` chooses, in turn,
medians. Both are loaded before; `extract` reads the table, decodes and writes its file meanwhile.

Expected before measuring (two cores with AMX): cosine 0.9999999; accuracy 88 to 92%; fp32 1.0 to 1.5 times as fast as
`encode`, bf16 2.5 to 4 times.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from precompute import extract, open_cache, train_head


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("table", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only-speed", action="store_true")
    options = parser.parse_args(arguments)
    theirs: Any = SentenceTransformer(options.folder, device="cpu")
    with options.table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts = [row["text"] for row in rows]
    with tempfile.TemporaryDirectory() as place:
        if not options.only_speed:
            tested = [row["text"] for row in rows if row["split"] == "test"][: options.count] or texts[: options.count]
            likeness(options.folder, tested, theirs, Path(place))
            accuracy(options.folder, options.table, Path(place))
        speed(options.folder, options.table, texts, theirs, Path(place), options.repeats)
    return 0


def likeness(folder: str, texts: Sequence[str], theirs: Any, place: Path) -> None:
    """Of our features, in fp32, to theirs."""
    for engine in ("torch", "openvino"):
        found, expected = {}, {}
        for size in (1, 64):
            out = place / f"{engine}-{size}.h5"
            chosen: dict[str, Any] = {"engine": engine, "precision": "fp32", "batch_size": size}
            extract(list(texts), out, backbone=f"hf:{folder}", **chosen)
            found[size] = in_order(out)
            expected[size] = theirs.encode(list(texts), batch_size=size).astype(np.float64)
        for size in (1, 64):
            print(
                f"{len(texts)} texts, {engine} in fp32, {size} at a time: cosine to encode at worst "
                + ", ".join(f"{cosine(found[size], expected[other]).min():.9f} ({other})" for other in (1, 64))
            )
        print(f"  largest difference between 1 and 64 at a time: {np.abs(found[1] - found[64]).max():.1e}")


def accuracy(folder: str, table: Path, place: Path) -> None:
    out = place / "all.h5"
    made = extract(table, out, backbone=f"hf:{folder}")
    scores = train_head(out).scores["test"]
    low, high = scores.intervals["accuracy"]
    print(
        f"test accuracy of a logistic head ({made.engine} in {made.precision}): {scores.accuracy:.1%} "
        f"({low:.1%} to {high:.1%})"
    )


def speed(folder: str, table: Path, texts: Sequence[str], theirs: Any, place: Path, repeats: int) -> None:
    theirs.encode(list(texts[:256]))
    rates: dict[str, list[float]] = {"encode": [], "fp32": [], "auto": []}
    starts, words = list[float](), {}
    for number in range(repeats):
        began = time.perf_counter()
        theirs.encode(list(texts))
        rates["encode"].append(len(texts) / (time.perf_counter() - began))
        for precision in ("fp32", "auto"):
            made = extract(table, place / f"{precision}-{number}.h5", backbone=f"hf:{folder}", precision=precision)
            rates[precision].append(made.computed / made.forward_seconds)
            words[precision] = f"{made.engine} in {made.precision}, {made.batch_size} at a time"
            starts.append(made.start_seconds)
    base = median(rates["encode"])
    print(f"{len(texts):,} texts on {torch.get_num_threads()} threads, median of {repeats} in turn:")
    print(f"  encode (fp32 torch, 32 at a time, sorted by length): {base:,.0f} texts/s")
    for precision in ("fp32", "auto"):
        ratios = [ours / one for ours, one in zip(rates[precision], rates["encode"], strict=True)]
        print(
            f"  extract --precision {precision} ({words[precision]}): {median(rates[precision]):,.0f} texts/s, "
            f"{median(ratios):.2f} times encode (each turn {min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(f"  extract takes {median(starts):.1f} s to start in this process")


def in_order(path: Path) -> NDArray[np.float64]:
    """The features of a file, in the order of the list that it was made of."""
    cache = open_cache(path)
    numbers = [int(bytes(one).rpartition(b"/")[2]) for one in cache.column("samples/id")]
    return np.asarray(cache.features(), dtype=np.float64)[np.argsort(numbers)]


def cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    products: NDArray[np.float64] = (one * other).sum(1)
    found: NDArray[np.float64] = products / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return found


if __name__ == "__main__":
    sys.exit(main())
