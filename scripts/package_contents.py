"""List what an sdist and a wheel hold, and compare it with the source tree: each file once, and none missing.

python scripts/package_contents.py dist/precompute-0.1.0.tar.gz dist/precompute-0.1.0-py3-none-any.whl
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"precompute": "precompute", "cache": "precompute/cache", "heads": "precompute/heads"}
"""Folder in the source tree -> folder in the wheel."""
NEEDED = ("precompute/py.typed", "precompute/backbones/tiny.safetensors", "precompute/cache/FORMAT.md")


def source_files() -> dict[str, str]:
    """Path in the source tree -> path in the wheel, of everything that is installed."""
    found = {}
    for folder, installed in PACKAGES.items():
        links = [path for path in (ROOT / folder).iterdir() if path.is_symlink()]
        for path in sorted((ROOT / folder).rglob("*")):
            inside_link = any(link in (path, *path.parents) for link in links)
            if path.is_file() and not inside_link and "__pycache__" not in path.parts:
                inside = path.relative_to(ROOT / folder).as_posix()
                found[f"{folder}/{inside}"] = f"{installed}/{inside}"
    return found


def complaints(sdist: list[str], wheel: list[str]) -> list[str]:
    """What is wrong with the names in them; `sdist` without the folder that holds them all."""
    files = source_files()
    found = [f"{name} is in the sdist {count} times" for name, count in Counter(sdist).items() if count > 1]
    found += [f"{name} is in the wheel {count} times" for name, count in Counter(wheel).items() if count > 1]
    installed = {name for name in wheel if ".dist-info/" not in name}
    found += [f"the wheel lacks {name}" for name in sorted({*files.values(), *NEEDED} - installed)]
    found += [f"the wheel holds {name}, which no source has" for name in sorted(installed - {*files.values()})]
    found += [f"the sdist lacks {name}" for name in sorted(files.keys() - {*sdist})]
    packed = {name for name in sdist if name.split("/")[0] in PACKAGES}
    found += [f"the sdist holds {name}, which no source has" for name in sorted(packed - files.keys())]
    return found


def main() -> int:
    sdist_path, wheel_path = map(Path, sys.argv[1:])
    with tarfile.open(sdist_path) as archive:
        sdist = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    with zipfile.ZipFile(wheel_path) as zipped:
        wheel = [name for name in zipped.namelist() if not name.endswith("/")]
    for path, names in ((sdist_path, sdist), (wheel_path, wheel)):
        tops = Counter(name.rpartition("/")[0] or "." for name in names)
        print(f"{path.name}: {len(names)} files, {path.stat().st_size:,} bytes")
        print("  " + ", ".join(f"{folder} {count}" for folder, count in sorted(tops.items())))
    found = complaints(sdist, wheel)
    print("\n".join(found) or "each file of the source is in it once", file=sys.stderr if found else sys.stdout)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
