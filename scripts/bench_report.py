"""How long a report takes to write, how large it is, and how smoothly its map moves in a browser.

    python scripts/bench_report.py [--points 100000] [--classes 20] [--pixels 1 2] [--repeats 3] [--width 1200]
    python scripts/bench_report.py --whole

The document is made up (tests/report_documents.py): a map of so many points in clouds, two heads that score two fifths
of them, 50 pictures. With --whole, `precompute.report` makes it, once: from a feature file of as many rows of 64
features in clouds, with a ridge head and the map of all rows by openTSNE.

Prints the median of the seconds that `render` takes, megabytes, the median of the milliseconds until the page has drawn
everything in headless Chromium, and the median of the frames a second while the map is dragged for three seconds, at
zoom 1 and zoomed in, on screens of one and of two pixels for each CSS pixel: each frame moves the map, so that all
points are drawn anew. The browser draws without a graphics processor and shows at most 60 frames a second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench_rerun import cpu_model

import precompute
from precompute.reports.render import render

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
browsers: Any = import_module("browsers")
report_documents: Any = import_module("report_documents")

SECONDS = 3
WIDTH = 64  # features of a row of --whole
DRAG = """
const [seconds, done] = arguments;
const stage = document.querySelector('.stage');
stage.scrollIntoView({block: 'center', behavior: 'instant'});
stage.setPointerCapture = () => {};  // events from a script have no pointer to capture
const box = stage.getBoundingClientRect();
const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
const send = (type, dx, dy) => stage.dispatchEvent(new PointerEvent(type, {
  bubbles: true, clientX: x + dx, clientY: y + dy, pointerId: 1, pointerType: 'mouse', button: 0, buttons: 1}));
let frames = -1, start = null;
const step = (now) => {
  start ??= now;
  frames += 1;
  if (now - start >= 1000 * seconds) {
    send('pointerup', 0, 0);
    done(1000 * frames / (now - start));
    return;
  }
  send('pointermove', 150 * Math.sin(frames / 10), 100 * Math.sin(frames / 13));
  requestAnimationFrame(step);
};
send('pointerdown', 0, 0);
requestAnimationFrame(step);
"""


def frames_a_second(driver: Any, page: Path, width: int, ratio: float) -> tuple[float, list[float]]:
    """Milliseconds until `page` is drawn, and frames a second while dragging at zoom 1 and twice zoomed in."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": ratio, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(page.as_uri())
    drawn = driver.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())))"
    )
    rates = []
    for _ in range(3):
        rates.append(driver.execute_async_script(DRAG, SECONDS))
        driver.execute_script("document.querySelector('.tools [aria-label=\"Zoom in\"]').click()")
    return drawn, rates


def made_up_report(points: int, classes: int, repeats: int, folder: Path) -> Path:
    """The page of a made-up document; prints the median of the seconds that `render` takes."""
    document = report_documents.make_document(
        samples=points, classes=[f"class {at}" for at in range(classes)], media=50
    )
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        text = render(document)
        seconds.append(time.perf_counter() - start)
    page = folder / "report.html"
    page.write_text(text, encoding="utf-8")
    print(f"{points:,} points: render {median(seconds):.2f} s, {page.stat().st_size / 1e6:.1f} MB")
    return page


def whole_report(points: int, classes: int, folder: Path) -> Path:
    """A report of a feature file with so many rows, made by the library; prints how long each part took."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, points)
    centres = rng.normal(0, 1, (classes, WIDTH))
    np.savez(
        folder / "made.npz",
        features=(centres[label] + rng.normal(0, 1, (points, WIDTH))).astype(np.float32),
        id=np.array([f"{row:06}" for row in range(points)]),
        label=np.array([f"class {at}" for at in label]),
        split=np.where(np.arange(points) % 5 == 0, "test", "train"),
    )
    precompute.import_features(folder / "made.npz", folder / "made.h5", name="made")
    start = time.perf_counter()
    precompute.train_head(folder / "made.h5", folder / "made.safetensors", head="ridge")
    trained = time.perf_counter()
    made = precompute.report(folder / "made.h5", folder / "made.safetensors", folder / "report.html", map="all")
    print(
        f"{points:,} rows of {WIDTH} features: train-head {trained - start:.0f} s; report {made.seconds:.0f} s, "
        f"{made.bytes / 1e6:.1f} MB; {made.map}"
    )
    return folder / "report.html"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--pixels", type=float, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    print(cpu_model())
    with tempfile.TemporaryDirectory() as folder, browsers.chromium() as driver:
        driver.set_script_timeout(60)
        if options.whole:
            page = whole_report(options.points, options.classes, Path(folder))
        else:
            page = made_up_report(options.points, options.classes, options.repeats, Path(folder))
        for ratio in options.pixels:
            runs = [frames_a_second(driver, page, options.width, ratio) for _ in range(options.repeats)]
            rates = [f"{median(run[1][zoom] for run in runs):.0f}" for zoom in range(3)]
            drawn = median(run[0] for run in runs)
            print(
                f"{ratio:g} pixels for each CSS pixel, {options.width} wide: drawn after {drawn:.0f} ms; "
                f"{', '.join(rates)} frames a second at zoom 1, 1.6, 2.56"
            )


if __name__ == "__main__":
    main()
