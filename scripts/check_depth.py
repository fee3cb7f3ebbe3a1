"""How deep should be trained, measured on whole data sets: accuracy over labels a class for every method of `depth`.

    python scripts/check_depth.py SOURCE... -b mobilenet_v2 --weights FILE -o FOLDER [--shots 5,20,100,all] [--draws 5]
                                  [--methods pixels,random,head,...] [--epochs 30] [--plot] [--crop PIXELS]

Runs `precompute depth` on each source, into a folder of its own below FOLDER, and prints one table for each: accuracy
with its 95% interval (over draws; for `all` over the test images), what cannot be told from the best (*), seconds and
bytes; then the answer, whichever way it comes out. Run it again after an interruption, or with more methods: what is
finished is not done again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from precompute import Depth, depth


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("-b", "--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--shots", default="5,20,100,all")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--methods", default="")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--augment")
    parser.add_argument("--crop", type=int, help="side of the images in pixels, for a quick trial")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", action="store_true", help="draw FOLDER/NAME.png")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for source in options.sources:
        show(run(source, options))
    return 0


def run(source: Path, options: argparse.Namespace) -> Depth:
    began = time.monotonic()
    training = {"epochs": options.epochs, "learning_rate": options.learning_rate}

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:7.0f} s  {source.name}: {line}", file=sys.stderr, flush=True)

    found = depth(
        source,
        options.output / source.name,
        backbone=options.backbone,
        weights=options.weights,
        shots=[word if word == "all" else int(word) for word in options.shots.split(",")],
        draws=options.draws,
        methods=tuple(filter(None, options.methods.split(","))),
        training={name: value for name, value in training.items() if value is not None},
        augment=options.augment,
        transform={"resize": options.crop, "crop": options.crop} if options.crop else None,
        device=options.device,
        seed=options.seed,
        say=say,
    )
    if options.plot:
        from precompute.reports.plots import plot_depth

        title = f"{source.name}, {options.backbone}"
        plot_depth(found, options.output / f"{source.name}.png", title=title, overwrite=True)
    return found


def show(found: Depth) -> None:
    print(f"\n{found.source}, {found.backbone}: {found.tested:,} images of {found.split}, {found.n_classes} classes")
    for line in found.notes:
        print(f"note: {line}")
    numbers = [one.shots for one in found.standings]
    print("| method | " + " | ".join(map(str, numbers)) + " | s to prepare | s a fit | bytes |")
    print("|---" * (len(numbers) + 4) + "|")
    for method in found.methods:
        cells = []
        for one in found.standings:
            point = found.point(method.name, one.shots)
            assert point is not None
            low, high = (100 * value for value in point.interval)
            cells.append(f"{100 * point.score:.1f} ({low:.1f} to {high:.1f}){'*' if method.name in one.tied else ''}")
        last = found.point(method.name, numbers[-1])
        assert last is not None
        once = "-" if method.seconds is None else f"{method.seconds:.0f}"
        print(f"| {method.name} | " + " | ".join(cells) + f" | {once} | {last.seconds:.1f} | {method.bytes:,} |")
    print(found.words)


if __name__ == "__main__":
    sys.exit(main())
