"""Compare exported graphs with `precompute predict` on real photos: classes equal, probabilities within 1e-4 at fp32.

For each backbone: features are extracted, a logistic head, an MLP and a tail are trained, each is exported to .onnx and
.pt2, and each file is opened by a program that does not import precompute, which decodes the photos with simplejpeg or
Pillow. Its classes and probabilities are compared with those of `precompute predict --json`, in fp32 with torch.

    python scripts/check_graphs.py PHOTOS --folder WORK [--backbones NAME[=WEIGHTS] ...] [--photos N] [--formats ...]

PHOTOS has train/ and val/ with a folder for each class. WEIGHTS are what --weights takes, such as the path of a file or
random:0. Exit status 1 where a class differs, or a probability by more than 1e-4.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4
HEADS: dict[str, tuple[str, ...]] = {
    "logistic": ("train-head", "CACHE", "--C", "1"),
    "mlp": ("train-head", "CACHE", "--head", "mlp", "--max-epochs", "30"),
    "tail": ("fine-tune", "DEEP", "--epochs", "1"),
}
LAYERS = {"mobilenet_v2": "features.16", "resnet18": "layer3", "vit_b_16": "encoder.layers.encoder_layer_10"}
"""Behind which layer a tail begins; of others behind OTHER_LAYER."""
OTHER_LAYER = "blocks.5"
OPENER = '''
import csv, io, json, sys
import numpy as np, simplejpeg
from PIL import Image, ImageOps

def decoded(path):
    """(H, W, 3) uint8, upright, RGB, and whether the file is no plain JPEG."""
    raw = open(path, "rb").read()
    with Image.open(io.BytesIO(raw)) as image:
        plain = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
        turned = image.getexif().get(0x0112, 1) != 1
        if plain and not turned:
            return simplejpeg.decode_jpeg(raw, "RGB"), False
        return np.array(ImageOps.exif_transpose(image).convert("RGB")), not plain

graph, listed, out = sys.argv[1:]
if graph.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["classes_json"])
    run = lambda image, pillow: session.run(None, {"image": image, "pillow": np.array([pillow])})[0]
else:
    import torch
    extra = {"precompute.json": ""}
    module = torch.export.load(graph, extra_files=extra).module()
    names = json.loads(json.loads(extra["precompute.json"])["classes_json"])
    run = lambda image, pillow: module(torch.from_numpy(image), torch.tensor([pillow])).detach().numpy()
assert "precompute" not in sys.modules
with open(out, "w", newline="") as file:
    writer = csv.writer(file)
    for line in open(listed).read().splitlines():
        found = run(*decoded(line))
        writer.writerow((line, names[int(found.argmax())], repr(float(found.max()))))
'''


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="where files are made, and kept")
    parser.add_argument("--backbones", nargs="+", default=["mobilenet_v2", "resnet18=random:0", "vit_b_16=random:0"])
    parser.add_argument("--number", type=int, help="compare this many photos, evenly spaced, in place of all")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--formats", nargs="+", choices=("onnx", "pt2"), default=["onnx", "pt2"])
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    photos = chosen(given.photos, given.folder, given.number)
    rows = [
        row
        for backbone in given.backbones
        for head in given.heads
        for row in check(backbone, head, photos, given.folder, given.formats)
    ]
    print(f"\n{'backbone':32} {'head':9} {'file':5} {'photos':>6} {'other class':>11} {'largest':>9}  {'MB':>6}")
    for row in rows:
        print("{:32} {:9} {:5} {:6d} {:11d} {:9.1e}  {:6.1f}".format(*row))
    return int(any(row[4] or not row[5] <= TOLERANCE for row in rows))


def chosen(photos: Path, folder: Path, number: int | None) -> Path:
    """`photos`, or a folder with so many of them."""
    if number is None:
        return photos
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    part = folder / f"photos-{number}"
    if not part.exists():
        for k in range(number):
            path = files[k * len(files) // number]
            target = part / path.relative_to(photos)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return part


def check(
    named: str, head: str, photos: Path, folder: Path, formats: list[str]
) -> list[tuple[str, str, str, int, int, float, float]]:
    """One row for each format."""
    backbone, _, weights = named.partition("=")
    short = "".join(c if c.isalnum() else "-" for c in Path(backbone).name)
    words = {"PHOTOS": str(photos), "BACKBONE": backbone, "WEIGHTS": weights or "DEFAULT"}
    words["DEEP"] = str(folder / f"{short}-{photos.name}-deep.h5")
    words["CACHE"] = str(folder / f"{short}-{photos.name}.h5")
    made = folder / f"{short}-{photos.name}-{head}.safetensors"
    if head != "tail" and not Path(words["CACHE"]).exists():
        command("extract", photos, "-b", backbone, "--weights", words["WEIGHTS"], "-o", words["CACHE"])
    if head == "tail" and not Path(words["DEEP"]).exists():
        layer = ("--layer", LAYERS.get(backbone, OTHER_LAYER), "--pooling", "none")
        command("extract", photos, "-b", backbone, "--weights", words["WEIGHTS"], *layer, "-o", words["DEEP"])
    if not made.exists():
        command(*(words.get(word, word) for word in HEADS[head]), "-o", made)
    expected = {one["id"]: one for one in json.loads(command("predict", made, photos, "--json"))["predictions"]}
    listed = folder / "listed.txt"
    listed.write_text("".join(f"{photos / name}\n" for name in expected))
    rows = []
    for kind in formats:
        graph, answers = made.with_suffix(f".{kind}"), made.with_suffix(f".{kind}.csv")
        began = time.monotonic()
        command("export", made, "-o", graph, "--check", photos, "--overwrite")
        exported = time.monotonic() - began
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(
            [sys.executable, "-c", OPENER, graph, listed, answers], check=True, env=environment, cwd=graph.parent
        )
        with answers.open(newline="") as file:
            found = {str(Path(row[0]).relative_to(photos)): (row[1], float(row[2])) for row in csv.reader(file)}
        others = sum(found[name][0] != one["label"] for name, one in expected.items())
        largest = max(abs(found[name][1] - one["probability"]) for name, one in expected.items())
        rows.append((named[:32], head, kind, len(found), others, largest, graph.stat().st_size / 1e6))
        print(f"{named} {head} {kind}: {len(found)} photos, largest {largest:.1e}, export {exported:.0f} s", flush=True)
    return rows


def command(*words: Any) -> str:
    """Run `precompute` in fp32 with torch; what it prints."""
    environment = {**os.environ, "PRECOMPUTE_ENGINE": "torch", "PRECOMPUTE_PRECISION": "fp32"}
    done = subprocess.run(
        [sys.executable, "-m", "precompute", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode not in (0, 3):
        sys.exit(f"precompute {' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
