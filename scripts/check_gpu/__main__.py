"""One command: run every section, print each row as soon as it is there, write check_gpu.json and check_gpu.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from check_gpu import cuda_tests, decoding, device, end_to_end, features, forward, head, memory, photos, table
from check_gpu.running import GRACE_SECONDS, Measure, Outcome, Row, run, start_server
from check_gpu.settings import Settings
from check_gpu.verdict import verdict

BACKBONES = ("resnet50", "vit_b_16", "mobilenet_v2")
QUICK_BACKBONES = ("mobilenet_v2", "resnet50", "vit_b_16")
"""The lightest first, since time runs out on a CPU."""
PHOTOS_VARIABLE = "CHECK_GPU_PHOTOS"
SECONDS, QUICK_SECONDS = 450.0, 150.0
"""For everything; the limit that was asked for is 8 minutes."""


@dataclass(frozen=True)
class Section:
    """share: of all seconds, at most; the last section takes all that is left."""

    name: str
    title: str
    measure: Measure
    share: float


SECTIONS = (
    Section("device", "Device", device.measure, 0.10),  # the first use of torch can be slow; the rest is quick
    Section("photos", "Photos", photos.measure, 0.05),
    Section("tests", "CUDA tests", cuda_tests.measure, 0.25),
    Section("features", "Features against fp32 on the CPU", features.measure, 0.12),
    Section("forward", "Forward pass", forward.measure, 0.30),
    Section("decode", "Decoding", decoding.measure, 0.09),
    Section("head", "Heads", head.measure, 0.07),
    Section("memory", "Device memory", memory.measure, 0.04),
    Section("end_to_end", "JPEG to cache", end_to_end.measure, 1.0),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where everything ran, 1 where something went wrong, which the files then say."""
    began = time.monotonic()
    options = _options(arguments)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="check_gpu-") as place:
        _environment(options, Path(place))
        settings = Settings(
            device=options.device,
            quick=options.quick,
            backbones=tuple(options.backbones.split(",")),
            photos=options.photos,
            weights_dir=options.weights_dir,
            place=place,
            images=options.images,
            programs=tuple(options.programs.split(",")) if options.programs else (),
        )
        start_server()
        wanted = options.sections.split(",") if options.sections else [section.name for section in SECTIONS]
        for section in SECTIONS:
            left = options.seconds - (time.monotonic() - began)
            if section.name not in (*wanted, "device", "photos"):
                found[section.name] = Outcome(section.title, "skipped", skipped=[_not("not among --sections")])
            elif left < 2 * GRACE_SECONDS:
                found[section.name] = Outcome(
                    section.title, "skipped", skipped=[_not(f"out of time: {left:.0f} s left")]
                )
                print(f"{section.title}: SKIPPED, out of time", flush=True)
            else:
                seconds = min(section.share * options.seconds, left - GRACE_SECONDS)
                found[section.name] = _run(section, settings, seconds)
            if section.name == "device":
                value = found["device"].first("device").get("value")
                if value is None:
                    print("No device is known, so nothing can be measured.", file=sys.stderr)
                    _write(out, settings, found, time.monotonic() - began)
                    return 1
                settings = replace(settings, device=value)
            _write(out, settings, found, time.monotonic() - began)
    found["verdict"] = verdict(found, settings.backbones)
    for row in found["verdict"].rows:
        print(table.line("verdict", "rows", row), flush=True)
    _write(out, settings, found, time.monotonic() - began)
    errors = sum(len(outcome.errors) for outcome in found.values())
    print(f"{time.monotonic() - began:.0f} s, {errors} errors; see {out / 'check_gpu.md'}", flush=True)
    return 1 if errors else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="check_gpu.sh", description=(__doc__ or "").strip())
    parser.add_argument("-o", "--out", default="check_gpu", help="folder for check_gpu.json and check_gpu.md")
    parser.add_argument("--photos", default=os.environ.get(PHOTOS_VARIABLE), help="folder of JPEGs [else made]")
    parser.add_argument("--weights-dir", help="folder with weights, such as mobilenet_v2_imagenet.pth")
    parser.add_argument("--wheels", help="folder of wheels for packages that this Python lacks")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--backbones", help=f"[default: {','.join(BACKBONES)}]")
    parser.add_argument("--sections", help=f"only these of {','.join(section.name for section in SECTIONS)}")
    parser.add_argument("--images", type=int, help="distinct JPEGs to make, and to run end to end [else by the cores]")
    parser.add_argument("--programs", help=f"only these of {','.join(end_to_end.PROGRAMS)}, end to end")
    parser.add_argument("--quick", action="store_true", help="a minute or two on two cores")
    parser.add_argument("--seconds", type=float, help=f"[default: {SECONDS:.0f}, with --quick {QUICK_SECONDS:.0f}]")
    options = parser.parse_args(arguments)
    options.backbones = options.backbones or ",".join(QUICK_BACKBONES if options.quick else BACKBONES)
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    options.photos = options.photos and os.path.abspath(options.photos)
    options.weights_dir = options.weights_dir and os.path.abspath(options.weights_dir)
    return options


def _environment(options: argparse.Namespace, place: Path) -> None:
    """What the processes of the sections inherit: wheels, and caches of their own, so that first times are first."""
    if options.wheels:
        folder = place / "wheels"
        for wheel in sorted(Path(options.wheels).glob("*.whl")):
            zipfile.ZipFile(wheel).extractall(folder)
        sys.path.append(str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join((os.environ.get("PYTHONPATH", ""), str(folder))).strip(os.pathsep)
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place / "inductor")
    os.environ["TRITON_CACHE_DIR"] = str(place / "triton")


def _run(section: Section, settings: Settings, seconds: float) -> Outcome:
    print(f"--- {section.title}, up to {seconds:.0f} s", flush=True)

    def listen(kind: str, row: Row) -> None:
        print(table.line(section.name, kind, row), flush=True)
        if kind == "errors" and row["traceback"]:
            print(row["traceback"], file=sys.stderr, flush=True)

    return run(section.measure, section.title, settings, seconds, listen)


def _not(why: str) -> Row:
    return {"name": "all", "why": why}


def _write(out: Path, settings: Settings, found: dict[str, Outcome], seconds: float) -> None:
    """After each section, so that a run that is cut off leaves what it has."""
    sections = {name: asdict(outcome) for name, outcome in found.items()}
    told = {"seconds": round(seconds, 1), "settings": asdict(settings), "sections": sections}
    (out / "check_gpu.json").write_text(json.dumps(told, indent=1, default=str) + "\n", encoding="utf-8")
    heading = f"check_gpu on {settings.device}, {seconds:.0f} s"
    (out / "check_gpu.md").write_text(table.markdown(heading, found), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
