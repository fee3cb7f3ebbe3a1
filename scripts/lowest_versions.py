"""Print what pyproject.toml asks for at least, a `name==version` a line: dependencies, sound, plots, S3, the tests.

    python scripts/lowest_versions.py > lowest.txt

OpenVINO is left out, so that the tests also show what happens without it.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

EXTRAS = ("audio", "plot", "s3", "test")


def lowest(project: dict[str, object]) -> list[str]:
    """`name==version` for each `name>=version`. Raises ValueError for a requirement of any other form."""
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    wanted = [*_names(project["dependencies"]), *(name for extra in EXTRAS for name in _names(extras[extra]))]
    found = []
    for requirement in wanted:
        match = re.fullmatch(r"([A-Za-z0-9_-]+(?:\[[a-z]+\])?)>=([0-9.]+(?:post[0-9]+)?)", requirement)
        if match is None:
            raise ValueError(f"pyproject.toml asks for {requirement!r}, which is not of the form name>=version")
        found.append(f"{match[1]}=={match[2]}")
    return found


def _names(value: object) -> list[str]:
    assert isinstance(value, list)
    return value


if __name__ == "__main__":
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
    print("\n".join(lowest(tomllib.loads(text)["project"])))
