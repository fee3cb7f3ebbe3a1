"""Extraction end to end, from JPEG files to the finished cache, beside what people run today.

    python scripts/bench_extract.py SOURCE [-b resnet50] [--weights random] [--images 1000]
        [--baseline-images 400] [--rounds 3] [--thingsvision PYTHON]

In each round, in turn and on the same files: precompute at `--precision auto`; on the first `--baseline-images` of them
precompute at fp32, the loop of the PyTorch tutorials (torchvision ImageFolder, DataLoader with a worker a core, eager
fp32), whose rate does not depend on how many there are, and thingsvision, run by another Python where it is installed
(it pins an old torch); the engine alone on pixels that are already decoded; decoding alone.
Prints medians, ratios, the cosine of each cache to fp32 eager torch over the loop's images, how soon the engine of a
second process is ready and has done its first batch, and which share of the bound cores / (decode + forward CPU seconds
an image) is reached; beside it the roof, a large bf16 matrix product.

Each program runs in a process of its own. Times are from the first image read to the finished file, without the start
of Python and of torch, which all of them need alike; for precompute they include proving the engine, and `run` tells
it without. Files are made distinct by a comment, so that none is recognised as a copy of another.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from bench_rerun import cpu_model

from precompute import open_cache
from precompute.engines.guard import cosine

PRECOMPUTE = """
import json, sys, time
import torch, torchvision, h5py, sklearn
from precompute import extract
import precompute.extraction.run
source, out, backbone, weights, precision, engine = sys.argv[1:]
began = time.perf_counter()
result = extract(source, out, backbone=backbone, weights=weights, precision=precision, engine=engine, overwrite=True)
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "images": result.computed, "run": result.forward_seconds,
                  "chosen": f"{result.engine} {result.precision}", "why": result.why,
                  "stages": result.stages.to_dict()}))
"""
LOOP = """
import json, os, sys, time
import numpy as np, torch, torchvision
from precompute import load_backbone
source, out, backbone, weights = sys.argv[1:]
model = load_backbone(backbone, weights=weights)  # so that all run the same weights and layer; then plain torch
t = model.preprocess.transform
from torchvision.transforms import Compose, Resize, CenterCrop, ToTensor, Normalize, InterpolationMode
steps = Compose([Resize(t.resize, InterpolationMode(t.interpolation)), CenterCrop(t.crop), ToTensor(),
                 Normalize(t.mean, t.std)])
network = model.module.eval()
began = time.perf_counter()
data = torchvision.datasets.ImageFolder(source, steps)
loader = torch.utils.data.DataLoader(data, batch_size=32, num_workers=len(os.sched_getaffinity(0)))
parts = []
with torch.no_grad():
    for images, _ in loader:
        parts.append(network(images)[0].flatten(1).numpy())
features = np.concatenate(parts)
np.save(out, features)
print(json.dumps({"seconds": time.perf_counter() - began, "images": len(features)}))
"""
THINGSVISION = """
import json, sys, time
import numpy as np, torch
from thingsvision import get_extractor
from thingsvision.utils.data import ImageDataset, DataLoader
source, out, backbone, layer, workers = sys.argv[1:]
extractor = get_extractor(model_name=backbone, source="torchvision", device="cpu", pretrained=False)
began = time.perf_counter()
transforms = extractor.get_transformations()
data = ImageDataset(root=source, out_path=out, backend=extractor.get_backend(), transforms=transforms)
batches = DataLoader(dataset=data, batch_size=32, backend=extractor.get_backend())
features = extractor.extract_features(batches=batches, module_name=layer, flatten_acts=True, output_type="ndarray")
np.save(out + "/features.npy", features)
print(json.dumps({"seconds": time.perf_counter() - began, "images": len(features)}))
"""
ENGINE = """
import json, os, sys, time
import numpy as np, torch
from precompute import load_backbone
from precompute.engines.choice import Asked, candidates
from precompute.engines.devices import make_engine
from precompute.engines.machine import Machine
from precompute.extraction.sampling import first_samples
from precompute.inputs.images.formats import IMAGES
from precompute.sources.folder import list_folder
source, backbone, weights, engine, precision = sys.argv[1:]
model = load_backbone(backbone, weights=weights)
photos = list_folder(source, IMAGES)
images = first_samples(photos, np.arange(len(photos)), model.preprocess, workers=2, count=128)
choice = candidates(Asked(engine=engine, precision=precision), Machine.here(), module=model.module).choices[0]
began = time.perf_counter()
run = make_engine(model.module, model.preprocess, choice, identity=model.identity)
ready = time.perf_counter() - began
batches = [images[start:start + run.batch_size] for start in range(0, len(images), run.batch_size)]
run(batches[0])
first = time.perf_counter() - began
list(run.map(batches))
wall, cpu = time.perf_counter(), time.process_time()
list(run.map(4 * batches))
count = 4 * len(images)
print(json.dumps({"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "images": count,
                  "ready": ready, "first": first, "batch": run.batch_size}))
"""
DECODE = """
import json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
from precompute import load_backbone
from precompute.extraction.pipeline import read
from precompute.inputs.images.formats import IMAGES
from precompute.sources.folder import list_folder
source, backbone = sys.argv[1:]
preprocess = load_backbone(backbone, weights="random").preprocess
photos = list_folder(source, IMAGES)
def one(row):
    return read(photos, row, preprocess, None).tensors is not None
with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
    wall, cpu = time.perf_counter(), time.process_time()
    count = sum(pool.map(one, range(len(photos))))
    print(json.dumps({"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "images": count}))
"""
ROOF = """
import json, time, torch
n, count = 4096, 6
a, b = torch.randn(n, n, dtype=torch.bfloat16), torch.randn(n, n, dtype=torch.bfloat16)
a @ b
began = time.perf_counter()
for _ in range(count):
    a @ b
print(json.dumps({"seconds": time.perf_counter() - began, "images": count * 2 * n**3 / 1e9}))
"""


def copy_distinct(source: Path, folder: Path, count: int) -> Path:
    """`count` JPEGs with the pixels of those below `source`, no two with the same bytes, in two classes."""
    originals = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for number in range(count):
        data = originals[number % len(originals)].read_bytes()
        comment = f"copy {number}".encode()
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        marker = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        (place / f"{number:06}.jpg").write_bytes(data[:2] + marker + data[2:])
    return folder


def measure(python: str, code: str, *arguments: object) -> dict[str, object]:
    """Run `code` in a Python of its own and return the JSON it prints last."""
    done = subprocess.run(
        [python, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, env=os.environ
    )
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stderr[-2000:]}")
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def rate(result: dict[str, object], seconds: str = "seconds") -> float:
    return float(str(result["images"])) / float(str(result[seconds]))


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def gigaflops(backbone: str) -> float:
    """Floating point operations of one image (a multiplication and an addition are two), by torch's own counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from precompute import load_backbone

    model = load_backbone(backbone, weights="random")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.body()(*(one[None] for one in model.preprocess.example()))
    return float(counter.get_total_flops()) / 1e9


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("-b", "--backbone", default="resnet50")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--baseline-images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layer", default="avgpool", help="thingsvision's name of the layer")
    parser.add_argument("--thingsvision", metavar="PYTHON", help="a Python that has thingsvision")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        report(options, Path(temporary))


def report(options: argparse.Namespace, place: Path) -> None:
    source = copy_distinct(options.source, place / "photos", options.images)
    few = copy_distinct(options.source, place / "few", min(options.images, options.baseline_images))
    backbone, weights, python = options.backbone, options.weights, sys.executable
    caches = {name: place / f"{name}.h5" for name in ("auto", "fp32")}

    def ours(precision: str, source: Path = source) -> dict[str, object]:
        caches[precision].unlink(missing_ok=True)
        return measure(python, PRECOMPUTE, source, caches[precision], backbone, weights, precision, "auto")

    ours("auto")  # compiles once, which later processes find
    chosen = str(ours("auto")["chosen"]).split()
    programs: dict[str, Callable[[], dict[str, object]]] = {
        "precompute, auto": lambda: ours("auto"),
        "precompute, fp32": lambda: ours("fp32", few),
        "plain loop": lambda: measure(python, LOOP, few, place / "loop.npy", backbone, weights),
        "engine alone": lambda: measure(python, ENGINE, source, backbone, weights, *chosen),
        "decode alone": lambda: measure(python, DECODE, source, backbone),
        "roof (bf16 matrix product)": lambda: measure(python, ROOF),
    }
    if options.thingsvision:
        (place / "tv").mkdir()
        programs["thingsvision"] = lambda: measure(
            options.thingsvision, THINGSVISION, few, place / "tv", backbone, options.layer, 0
        )
    seen: dict[str, list[dict[str, object]]] = {name: [] for name in programs}
    for _ in range(options.rounds):
        for name, run in programs.items():
            seen[name].append(run())
    print_report(options, seen, caches, place, " ".join(chosen))


def print_report(
    options: argparse.Namespace,
    seen: dict[str, list[dict[str, object]]],
    caches: dict[str, Path],
    place: Path,
    chosen: str,
) -> None:
    def middle(name: str, seconds: str = "seconds") -> float:
        return statistics.median(rate(result, seconds) for result in seen[name])

    def compare(one: str, other: str, seconds: str = "seconds") -> str:
        """Ratio within each round, since the machine's speed drifts: median (from least to most)."""
        pairs = zip(seen[one], seen[other], strict=True)
        return spread([rate(first, seconds) / rate(second) for first, second in pairs])

    print(f"{options.backbone}, weights {options.weights}, {options.images:,} JPEGs, {options.rounds} rounds")
    print(f"of them for fp32, plain loop and thingsvision: {options.baseline_images:,}")
    print(f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores")
    print(f"auto chose {chosen}: {seen['precompute, auto'][0]['why']}")
    for name in seen:
        if not name.startswith("roof"):
            print(f"{name:28} {middle(name):8.1f} images/s, times the plain loop: {compare(name, 'plain loop')}")
    if "thingsvision" in seen:
        print(f"{'auto / thingsvision':28} {compare('precompute, auto', 'thingsvision')}")
    run = middle("precompute, auto", "run")
    print(
        f"{'auto, once proved':28} {run:8.1f} images/s, times the plain loop: "
        f"{compare('precompute, auto', 'plain loop', 'run')}"
    )
    if "thingsvision" in seen:
        print(f"{'the same / thingsvision':28} {compare('precompute, auto', 'thingsvision', 'run')}")
    forward, decode = (1 / middle(name, "cpu") for name in ("engine alone", "decode alone"))
    print(f"CPU an image: decode {decode * 1e3:.2f} ms, forward {forward * 1e3:.2f} ms")
    cores = len(os.sched_getaffinity(0))
    rounds = zip(seen["precompute, auto"], seen["engine alone"], seen["decode alone"], strict=True)
    reached = [
        rate(ours, "run") * (1 / rate(engine, "cpu") + 1 / rate(decoded, "cpu")) / cores
        for ours, engine, decoded in rounds
    ]
    print(f"{'auto, once proved / bound':28} {spread(reached)}")
    ready, first = (
        statistics.median(float(str(one[name])) for one in seen["engine alone"]) for name in ("ready", "first")
    )
    batch = seen["engine alone"][0]["batch"]
    print(f"a second process: engine ready after {ready:.2f} s, its first batch of {batch} done after {first:.2f} s")
    flops, roof = gigaflops(options.backbone), middle("roof (bf16 matrix product)")
    print(f"{'engine alone / roof':28} {middle('engine alone') * flops / roof:.2f} of {roof:.0f} GFLOP/s")
    expected = np.load(place / "loop.npy").astype(float)
    for name, path in caches.items():
        cache = open_cache(path)
        same = [row for row, name in enumerate(cache.ids) if (place / "few" / name).exists()]
        cosines = cosine(cache.features()[same].astype(float).reshape(len(expected), -1), expected)
        print(f"cosine of {name} to the loop's: worst {cosines.min():.5f}, median {np.median(cosines):.5f}")


if __name__ == "__main__":
    main()
