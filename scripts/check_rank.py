"""Does `precompute rank` find the order that full probes give, and in which share of their time?

    python scripts/check_rank.py SOURCE... [-b NAME[=WEIGHTS] ...] [-n 2000] [--seeds 3] [--device auto]

Each backbone is extracted over all of SOURCE, and a logistic head is trained on the training part, scored on what is
held back (by the real commands' library calls): that is the order to find. Then `rank` tries a sample, once for each
seed. Prints a table for each source: the full score with its interval, the place and score by rank, and below it
Kendall's tau between the two orders, whether the best of the full probes is among those that rank ties with its
best, and seconds of both.
For small sets the sample may be all training images; what is saved then is little, and the table says so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import kendalltau

from precompute import Ranking, extract, rank, train_head
from precompute.evaluation.candidates import Candidate


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("-b", "--backbone", action="append", dest="backbones")
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    for source in options.sources:
        check(source, options.backbones or defaults(), options)
    return 0


def defaults() -> list[str]:
    """Two networks with the weights beside the repository, one with random weights, and `tiny`."""
    weights = Path(__file__).resolve().parents[2] / "shared" / "weights"
    known = [f"{name}={weights / f'{name}_imagenet.pth'}" for name in ("mobilenet_v2", "squeezenet1_1")]
    return [*known, "resnet18=random", "tiny"]


def check(source: Path, backbones: list[str], options: argparse.Namespace) -> None:
    candidates = [Candidate.parse(text) for text in backbones]
    full: dict[str, tuple[float, tuple[float, float]]] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        for number, one in enumerate(candidates):
            path = Path(place) / f"{number}.h5"
            extract(source, path, backbone=one.backbone, weights=one.weights, device=options.device)
            scores = train_head(path).scores
            found = next(scores[split] for split in ("test", "val", "hold-out") if split in scores)
            full[one.name] = (found.accuracy, found.intervals["accuracy"])
    full_seconds = time.monotonic() - began
    order = sorted(full, key=lambda name: -full[name][0])
    print(f"\n{source}, full probes: {full_seconds:.1f} s")
    for seed in range(options.seeds):
        ranking = rank(source, backbones, n=options.n, seed=seed, device=options.device)
        show(ranking, full, order, full_seconds)


def show(
    ranking: Ranking, full: dict[str, tuple[float, tuple[float, float]]], order: list[str], full_seconds: float
) -> None:
    of = {one.backbone_name: one for one in ranking.candidates}
    print(f"\nseed {ranking.seed}, {ranking.tried:,} of {ranking.images:,} images")
    print(f"{'backbone':44} {'full (95%)':>24} {'rank (95%)':>24} {'k-NN':>6} {'group':>5}")
    for name in order:
        accuracy, (low, high) = full[name]
        one = of[name]
        print(
            f"{name:44} {f'{accuracy:6.1%} ({low:.1%} to {high:.1%})':>24} "
            f"{f'{one.score:6.1%} ({one.interval[0]:.1%} to {one.interval[1]:.1%})':>24} {one.knn:6.1%} {one.group:5}"
        )
    tau = kendalltau([full[name][0] for name in order], [of[name].score for name in order]).statistic
    best = {one.backbone_name for one in ranking.best}
    by_size = "-" if ranking.tau is None else f"{ranking.tau:+.2f}"
    print(f"Kendall's tau to the full order {tau:+.2f}; rank's order to that by size {by_size}")
    print(
        f"the best of the full probes is {'' if order[0] in best else 'NOT '}among those that rank ties with its best"
    )
    print(f"{ranking.seconds:.1f} s, {ranking.seconds / full_seconds:.0%} of the full time")


if __name__ == "__main__":
    sys.exit(main())
