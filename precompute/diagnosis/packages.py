"""Packages: those that precompute needs, and those that bring more; each with its version, and whether it loads."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from precompute.diagnosis.finding import NOTE, OK, PROBLEM, Finding
from precompute.diagnosis.probing import import_errors
from precompute.system import version_of

MODULES = {
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "open_clip_torch": "open_clip",
    "huggingface-hub": "huggingface_hub",
}
"""What packages are imported as, where that is another name."""
EXTRACT = ("torch", "torchvision", "numpy", "h5py", "pillow", "simplejpeg", "safetensors", "xxhash", "click", "rich")
HEADS = ("scikit-learn", "scipy", "joblib", "threadpoolctl", "jinja2")


@dataclass(frozen=True)
class Extra:
    """packages: that it installs · brings: what can be done with it."""

    packages: tuple[str, ...]
    brings: str


EXTRAS = {
    "openvino": Extra(("openvino",), "the faster engine on CPUs: MobileNetV2 5 times as fast as by torch"),
    "audio": Extra(("soundfile", "soxr"), "sounds: WAV, FLAC, OGG and MP3"),
    "hf": Extra(
        ("transformers", "tokenizers", "huggingface-hub", "datasets", "pyarrow"),
        "hf: backbones for texts, images and sounds, and data sets of Hugging Face",
    ),
    "timm": Extra(("timm", "huggingface-hub"), "timm: backbones"),
    "open_clip": Extra(("open_clip_torch", "timm", "huggingface-hub"), "open_clip: backbones"),
    "parquet": Extra(("pyarrow",), "tables and features in Parquet"),
    "pandas": Extra(("pandas",), "data frames as tables"),
    "s3": Extra(("s3fs",), "sources in object stores: s3://bucket/prefix"),
    "ray": Extra(("ray",), "several GPUs or machines: --executor ray"),
    "plot": Extra(("matplotlib",), "--plot"),
    "map": Extra(("openTSNE",), "a map of all rows in a report"),
    "onnx": Extra(("onnx", "onnxruntime", "onnxscript"), "export to ONNX, checked with onnxruntime"),
}
"""What users may install in addition to the core; pyproject.toml has the same names."""


@dataclass(frozen=True)
class Installed:
    """Packages of this environment. lowest: the lower bounds by extra ("": of the core) and package · errors: why a
    package cannot be imported."""

    versions: dict[str, str | None]
    lowest: dict[str, dict[str, str]]
    errors: dict[str, str | None]

    def loads(self, package: str) -> bool:
        return package in self.errors and self.errors[package] is None


def installed() -> Installed:
    """Look at all packages: each that is there is imported, in a separate process."""
    names = list(dict.fromkeys([*EXTRACT, *HEADS, *(name for extra in EXTRAS.values() for name in extra.packages)]))
    versions = {name: version_of(name) for name in names}
    there = [name for name in names if versions[name] is not None or _is_found(module_of(name))]
    errors = import_errors([module_of(name) for name in there])
    return Installed(versions, lower_bounds(), {name: errors[module_of(name)] for name in there})


def module_of(package: str) -> str:
    return MODULES.get(package, package)


def _is_found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def lower_bounds() -> dict[str, dict[str, str]]:
    """The lowest version of each package that precompute's metadata requires, by extra; that of the core under ""."""
    try:
        return bounds_in(importlib.metadata.requires("precompute") or [])
    except importlib.metadata.PackageNotFoundError:
        return {}


def bounds_in(requirements: Iterable[str]) -> dict[str, dict[str, str]]:
    """`lower_bounds` of requirements such as `timm>=1.0.15; extra == "timm"`."""
    found: dict[str, dict[str, str]] = {}
    for requirement in requirements:
        bound = re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement)
        extra = re.search(r"""\bextra == ["']([\w.-]+)["']""", requirement)
        if bound:
            found.setdefault(_as_in_metadata(extra[1]) if extra else "", {})[bound[1]] = bound[2]
    return found


def _as_in_metadata(extra: str) -> str:
    """open-clip for open_clip, whichever of both a build has written."""
    return re.sub(r"[-_.]+", "-", extra).lower()


def numbers(version: str) -> tuple[int, ...]:
    """The release of a version, for comparing: (2, 14) of 2.14.0+cpu and 2.14rc1; zeros at the end are dropped."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    found = [int(number) for number in match[0].split(".")] if match else []
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def core(packages: Installed) -> Iterator[Finding]:
    """Python, precompute and what it needs."""
    yield Finding(
        "packages",
        "precompute",
        OK,
        f"{version_of('precompute') or 'not installed as a package'}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
        details={"version": version_of("precompute"), "python": platform.python_version(), "prefix": sys.prefix},
    )
    for name in (*EXTRACT, *HEADS):
        yield _core_package(name, packages)


def _core_package(name: str, packages: Installed) -> Finding:
    version, lowest, error = packages.versions[name], packages.lowest.get("", {}).get(name), packages.errors.get(name)
    details = {"version": version, "lowest": lowest, "error": error}
    serious = PROBLEM if name in EXTRACT else NOTE
    bound = f"{name}>={lowest}" if lowest else name
    repair = f"pip install --force-reinstall '{bound}'"
    if name not in packages.errors:
        return Finding("packages", name, serious, "not installed", f"pip install '{bound}'", details)
    if error is not None:
        return Finding(
            "packages", name, serious, f"{version or 'installed'}, but cannot be loaded: {error}", repair, details
        )
    if _is_old(version, lowest):
        text = f"{version}, which is older than {lowest}, the oldest that is tested"
        return Finding("packages", name, NOTE, text, f"pip install --upgrade '{bound}'", details)
    return Finding("packages", name, OK, version or "installed", details=details)


def extras(packages: Installed) -> Iterator[Finding]:
    """What may be installed in addition to the core, and what it brings."""
    for name, extra in EXTRAS.items():
        yield _extra(name, extra, packages)


def _extra(name: str, extra: Extra, packages: Installed) -> Finding:
    line = f"pip install 'precompute[{name}]'"
    missing = [one for one in extra.packages if one not in packages.errors]
    broken = {one: error for one in extra.packages if (error := packages.errors.get(one)) is not None}
    lowest = packages.lowest.get(_as_in_metadata(name), {})
    old = [one for one in extra.packages if _is_old(packages.versions[one], lowest.get(one))]
    details = {
        "installed": not missing and not broken,
        "versions": {one: packages.versions[one] for one in extra.packages},
        "errors": broken,
        "install": line,
        "brings": extra.brings,
    }
    there = ", ".join(f"{one} {packages.versions[one] or ''}".strip() for one in extra.packages if one not in missing)
    if broken:
        one, error = next(iter(broken.items()))
        # `auto` looks at OpenVINO wherever it is installed, so that one which cannot be loaded ends every run
        status = PROBLEM if name == "openvino" else NOTE
        again = f"pip install --force-reinstall {' '.join(broken)}, or without it: pip uninstall {' '.join(broken)}"
        return Finding("extras", name, status, f"{one} is installed, but cannot be loaded: {error}", again, details)
    if len(missing) == len(extra.packages):
        return Finding("extras", name, NOTE, f"not installed; brings {extra.brings}", line, details)
    if missing:
        text = f"not complete ({there}): {', '.join(missing)} is missing; brings {extra.brings}"
        return Finding("extras", name, NOTE, text, line, details)
    if old:
        bounds = ", ".join(f"{one}>={lowest[one]}" for one in old)
        text = f"{there}; older than what is tested: {bounds}"
        return Finding("extras", name, NOTE, text, f"pip install --upgrade 'precompute[{name}]'", details)
    return Finding("extras", name, OK, f"{there}: {extra.brings}", details=details)


def _is_old(version: str | None, lowest: str | None) -> bool:
    return version is not None and lowest is not None and numbers(version) < numbers(lowest)
