"""Run the commands of README.md and docs/start.md and write what they print into these pages.

python scripts/update_outputs.py [README.md] [docs/start.md] [--shared ../shared]

README.md runs in a folder with `photos` and `mobilenet_v2_imagenet.pth`, from the folder `--shared`. A line `...` of a
block stays, with as many lines around it. Numbers are those of this machine. tests/test_readme.py compares the pages
with such runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from consoles import renewed

ROOT = Path(__file__).resolve().parent.parent


def environment(folder: Path) -> dict[str, str]:
    """Where `precompute` is that of this tree, run by this Python."""
    command = folder / "bin" / "precompute"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m precompute "$@"\n')
    command.chmod(0o755)
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{command.parent}:{os.environ['PATH']}"}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("pages", nargs="*", default=["README.md", "docs/start.md"])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    asked = parser.parse_args()
    for name in asked.pages:
        with tempfile.TemporaryDirectory() as place:
            surroundings = environment(Path(place))
            folder = Path(place) / "work"
            folder.mkdir()
            if name == "README.md":
                (folder / "photos").symlink_to(asked.shared / "data" / "hymenoptera")
                weights = "mobilenet_v2_imagenet.pth"
                (folder / weights).symlink_to(asked.shared / "weights" / weights)
            page = ROOT / name
            page.write_text("".join(renewed(page.read_text(), folder, surroundings)))
            print(f"Wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
