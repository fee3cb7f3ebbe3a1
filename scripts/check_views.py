"""Do several views of each photo help a head that has few labels? Measured, whichever way it comes out.

    python scripts/check_views.py SOURCE -b mobilenet_v2 --weights FILE [--views 8] [--augment flip,crop,color]
                                  [--shots 10] [--draws 20] [--heads logistic,mlp]

Extracts SOURCE (folders train and val) with views twice by the real command: once left alone, once killed (SIGKILL)
at a moment drawn at random and run again; both files must hold the same rows, from as many forward passes as there are
views of distinct pictures. Then heads are fitted on so many labels a class, the same photos with views and without, and
scored on val: by the plain view, and by the mean over all views. Prints accuracies over the draws, and their paired
difference with Student's 95% interval; it stands for draws of training photos, not for other photos to score on. Exits
with 1 where the files differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from check_repeat import run_and_kill
from scipy.stats import t as student

from precompute import Cache, few_shot, open_cache
from precompute.evaluation.learning_curve import FewShotPoint

VARIANTS = {
    "plain view": (True, False),
    "views": (False, False),
    "plain view, averaged": (True, True),
    "views, averaged": (False, True),
}
"""What a head is trained on, whether that is the plain view alone, and whether it predicts by the mean over views."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("-b", "--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--augment", default="flip,crop,color")
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--heads", default="logistic,mlp")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        whole, resumed = Path(place) / "whole.h5", Path(place) / "resumed.h5"
        same = extract_twice(options, whole, resumed)
        for head in options.heads.split(","):
            compare_variants(options, whole, head)
    return 0 if same else 1


def extract_twice(options: argparse.Namespace, whole: Path, resumed: Path) -> bool:
    """Make both files, and say whether they hold the same."""
    command = [sys.executable, "-m", "precompute", "extract", options.source, "-b", options.backbone]
    command += ["--weights", options.weights, "--views", options.views, "--augment", options.augment]
    command += ["--allow-skipped", "--json", "-o"]
    began = time.monotonic()
    first = run(command, whole)
    lasted = time.monotonic() - began
    chance, environment = random.Random(options.seed), dict(os.environ)
    while not run_and_kill([*command, resumed], environment, chance.uniform(0.3, 0.9) * lasted):
        os.unlink(resumed)  # it was done before
    second = run(command, resumed)
    one, other = open_cache(whole), open_cache(resumed)
    distinct = len(np.unique(one.column("samples/digest")[one.ok], axis=0))
    same = rows_of(one) == rows_of(other)
    print(f"{one.features().shape} {one.features().dtype}, {first['engine']} in {first['precision']}, {lasted:.0f} s")
    print(f"forward passes: {first['passes']:,} = {options.views} x {distinct:,} distinct pictures")
    print(f"killed with {second['reused']:,} of {len(other):,} rows done, then {second['passes']:,} passes more")
    print(f"resumed = fresh: {'yes, byte for byte' if same else 'NO'}")
    return same and first["passes"] == options.views * distinct


def run(command: Sequence[object], out: Path) -> dict[str, object]:
    done = subprocess.run([*map(str, command), str(out)], check=True, capture_output=True, text=True)
    result: dict[str, object] = json.loads(done.stdout)
    return result


def rows_of(cache: Cache) -> list[bytes]:
    """All that a file holds of its samples; `provenance` tells of runs."""
    return [cache.column(name).tobytes() for name in sorted(cache.layout.columns) if name != "provenance"]


def compare_variants(options: argparse.Namespace, cache: Path, head: str) -> None:
    found = {}
    for name, (plain_view, average) in VARIANTS.items():
        (found[name],) = few_shot(
            [cache],
            shots=[options.shots],
            draws=options.draws,
            head=head,
            plain_view=plain_view,
            average_views=average,
            seed=options.seed,
        )
    plain = np.array(found["plain view"].points[0].accuracies)
    curve = found["views"]
    print(f"\n{head}, {options.shots} labels a class, {options.draws} draws, {curve.tested} photos of {curve.split}")
    print(f"{'trained on':<22} {'accuracy':>26} {'less plain view':>28} {'better, equal, worse':>22}")
    for name, one in found.items():
        more = np.array(one.points[0].accuracies) - plain
        won = f"{int((more > 0).sum())}, {int((more == 0).sum())}, {int((more < 0).sum())}"
        print(f"{name:<22} {words(one.points[0]):>26} {difference(more):>28} {won:>22}")


def words(point: FewShotPoint) -> str:
    low, high = point.interval or (point.accuracy, point.accuracy)
    return f"{point.accuracy:.2%} ({low:.2%} to {high:.2%})"


def difference(more: np.ndarray) -> str:
    """Mean and Student's 95% interval of paired differences, in points."""
    if not more.any():
        return "-"
    half = student.ppf(0.975, len(more) - 1) * more.std(ddof=1) / np.sqrt(len(more))
    return f"{100 * more.mean():+.2f} ({100 * (more.mean() - half):+.2f} to {100 * (more.mean() + half):+.2f})"


if __name__ == "__main__":
    sys.exit(main())
