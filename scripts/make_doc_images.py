"""Make the pictures of docs/start.md, README.md and docs/index.md: from scikit-learn's digits and our own commands.

python scripts/make_doc_images.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
SCALE, GAP = 6, 8


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


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)

        def command(*arguments: str) -> None:
            subprocess.run([sys.executable, "-m", "precompute", *arguments], cwd=folder, check=True)

        command("demo", "--folder", "demo")
        contact_sheet(folder / "demo" / "digits", IMAGES / "start-digits.png")
        few_shot = ("few-shot", "demo/tiny.h5", "demo/pixels.h5", "demo/random.h5")
        plot = ("--plot", str(IMAGES / "start-few-shot.png"), "--title", "Digits, 898 test pictures", "--overwrite")
        command(*few_shot, "--shots", "1,2,5,10,25", *plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
