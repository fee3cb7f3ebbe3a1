"""README.md and docs/start.md, followed literally: what the commands print is what the pages show, up to numbers.

Which engine and which precision a machine takes is not compared, nor are widths of columns; `scripts/update_outputs.py`
renews the pages.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_image

sys.path.insert(0, str(ROOT / "scripts"))
from consoles import abridged, blocks, comparable, difference, run, shown, steps
from update_outputs import environment

NAMES = ("10308379_1b6c72e180.jpg", "1053149811_f62a3410d3.jpg", "1073564163_225a64f170.jpg")


def make_ants_and_bees(folder: Path) -> None:
    """In the place of the photos that the README is about: as many splits and classes, and the names that it shows."""
    seed = 0
    for split, each in (("train", 20), ("val", 12)):
        for label in ("ants", "bees"):
            place = folder / split / label
            place.mkdir(parents=True)
            for number in range(each):
                name = NAMES[number] if split == "val" and number < len(NAMES) else f"2{number}.jpg"
                make_image(seed := seed + 1, (80, 60)).save(place / name)
        (folder / split / ".DS_Store").write_bytes(b"")


def make_weights(path: Path) -> None:
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    return work


def without_notes(output: str) -> str:
    return "".join(f"{line}\n" for line in output.splitlines() if not line.startswith("Note: "))


def followed(page: str, folder: Path, *, notes: bool = True) -> None:
    """Run the page's commands inside `folder`. notes: also compare those, which depend on what the photos are."""
    chosen = {**environment(folder.parent), "OMP_NUM_THREADS": "1"}
    for name in ("PRECOMPUTE_ENGINE", "PRECOMPUTE_PRECISION"):  # as a user's machine has it
        chosen.pop(name, None)
    compared = 0
    for block in blocks((ROOT / page).read_text()):
        if block.language == "console":
            for step in steps(block.text):
                if step.command.startswith("precompute "):
                    texts = step.output, run(step.command, folder, chosen)
                    told = difference(*(texts if notes else map(without_notes, texts)))
                    assert not told, (
                        f"{page}: {step.command}\n{told}\nTo renew: python scripts/update_outputs.py {page}"
                    )
                    compared += 1
        elif block.language == "python":
            (folder / "snippet.py").write_text(block.text)
            run(f"{sys.executable} snippet.py", folder, {**chosen, "PYTHONWARNINGS": "error"})
    assert compared >= 3


@pytest.mark.slow
def test_the_readme_does_what_it_says(folder: Path, hymenoptera: Path, mobilenet_weights: Path) -> None:
    (folder / "photos").symlink_to(hymenoptera)
    (folder / mobilenet_weights.name).symlink_to(mobilenet_weights)
    followed("README.md", folder)


@pytest.mark.slow
@pytest.mark.daily(3)
def test_the_readme_does_so_with_made_pictures_too(folder: Path) -> None:
    make_ants_and_bees(folder / "photos")
    make_weights(folder / "mobilenet_v2_imagenet.pth")
    followed("README.md", folder, notes=False)


@pytest.mark.slow
def test_ten_minutes_do_what_they_say(folder: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    followed("docs/start.md", folder)


def test_outputs_are_compared_up_to_numbers_and_engines() -> None:
    page = "computed  398 images with openvino in bf16 on cpu\n\n ──────\n ants   0.939\nsaved  ants.h5\n"
    other = "computed   1,797 images with torch in fp32 on cuda\n ────\n ants 1.000  \nsaved  ants.h5\n"
    assert difference(page, other) == ""
    assert "the command says" in difference(page, other.replace("saved", "kept"))
    assert difference("a\n...\nb\n", "a\nx\ny\nb\n") == ""
    assert difference("a\n...\nb\n", "a\nx\ny\n") != ""
    assert comparable("0:06 (5.9 s, 67.0 images/s in all)") == comparable("1:12 (72.1 s, 1,167.0 images/s in all)")


def test_progress_is_not_shown_and_what_was_left_out_stays_out() -> None:
    assert shown("extract: 398 of 398 samples 138.2 images/s, 0:00 left\ncache  a.h5   \n") == "cache  a.h5\n"
    assert abridged("1\n2\n...\n9\n", "1\n2\n3\n4\n5\n") == "1\n2\n...\n5\n"
    assert abridged("", "1\n2\n") == "1\n2\n"
    table = " image           class\n ─────────────────────\n a.jpg           ants\n a-long-name.jpg bees\n"
    assert abridged("1\n2\n3\n...\n", table) == " image   class\n ─────────────\n a.jpg   ants\n...\n"


def test_commands_of_a_block_are_read_with_their_output() -> None:
    found = steps("$ precompute a \\\n    --b c\nout\n\nmore\n$ precompute d    # a remark\n")
    assert [(step.command, step.output) for step in found] == [
        ("precompute a --b c", "out\n\nmore\n"),
        ("precompute d", ""),
    ]
    assert os.environ.get("PRECOMPUTE_ENGINE") == "torch"  # which `followed` takes away
