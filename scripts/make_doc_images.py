"""Make the pictures of docs/start.md, README.md and docs/index.md: from scikit-learn's digits and our own commands.

python scripts/make_doc_images.py

That of the report is taken by Chromium, which must be installed, with its driver.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
SCALE, GAP = 6, 8
WIDTH = 1000
"""Of the picture of the report."""


def contact_sheet(digits: Path, out: Path) -> None:
    """Two pictures of each digit of the training split, enlarged without smoothing."""
    side = 8 * SCALE
    sheet = Image.new("L", (10 * (side + GAP) + GAP, 2 * (side + GAP) + GAP), 255)
    for label in range(10):
        for row, path in enumerate(sorted((digits / "train" / str(label)).iterdir())[:2]):
            with Image.open(path) as picture:
                large = picture.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(large, (GAP + label * (side + GAP), GAP + row * (side + GAP)))
    sheet.save(out, optimize=True)


def sections_of(report: Path, names: tuple[str, ...]) -> list[Image.Image]:
    """Those parts of a report, as a browser 1,100 pixels wide draws them in light colours."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,1000"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))  # asks no server for one
    try:
        browser.get(report.as_uri())
        height = browser.execute_script("return document.documentElement.scrollHeight")
        browser.set_window_size(1100, height + 200)
        browser.implicitly_wait(5)
        return [
            Image.open(io.BytesIO(browser.find_element(By.ID, name).screenshot_as_png)).convert("RGB") for name in names
        ]
    finally:
        browser.quit()


def report_picture(report: Path, out: Path) -> None:
    """Confusion matrix and map side by side, the first row of mistakes below."""
    confusion, points, mistakes = sections_of(report, ("confusion", "map", "mistakes"))
    left, right = confusion.crop((0, 118, 610, confusion.height - 10)), points.crop((0, 142, 778, 790))
    half = WIDTH // 2 - 10
    left = left.resize((half, left.height * half // left.width), Image.Resampling.LANCZOS)
    right = right.resize((half, right.height * half // right.width), Image.Resampling.LANCZOS)
    below = mistakes.crop((0, 30, mistakes.width, 315))
    below = below.resize((WIDTH, below.height * WIDTH // below.width), Image.Resampling.LANCZOS)
    top = max(left.height, right.height)
    picture = Image.new("RGB", (WIDTH, top + below.height + 10), "white")
    for part, place in ((left, (0, 0)), (right, (WIDTH - half, 0)), (below, (0, top + 10))):
        picture.paste(part, place)
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(out, optimize=True)


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)

        def command(*arguments: str) -> None:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, "-m", "precompute", *arguments], cwd=folder, env=environment, check=True)

        command("demo", "--folder", "demo")
        contact_sheet(folder / "demo" / "digits", IMAGES / "start-digits.png")
        few_shot = ("few-shot", "demo/tiny.h5", "demo/pixels.h5", "demo/random.h5")
        plot = ("--plot", str(IMAGES / "start-few-shot.png"), "--title", "Digits, 898 test pictures", "--overwrite")
        command(*few_shot, "--shots", "1,2,5,10,25", *plot)
        command("train-head", "demo/pixels.h5", "-o", "pixels.safetensors")  # which are wrong often enough to look at
        command("report", "demo/pixels.h5", "pixels.safetensors", "-o", "report.html")
        report_picture(folder / "report.html", IMAGES / "report-digits.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
