"""What the packaging scripts say of packages that are not right, and that every lower bound is one they can install."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable

import pytest
from conftest import ROOT


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str], list[str]], list[str]]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from package_contents import complaints

    return complaints


def good() -> tuple[list[str], list[str]]:
    from package_contents import source_files

    files = source_files()
    return [*files, "README.md"], [*files.values(), "precompute-0.1.0.dist-info/METADATA"]


def test_packages_that_hold_each_file_once_are_right(contents: Callable[[list[str], list[str]], list[str]]) -> None:
    sdist, wheel = good()
    assert {"heads/mlp/head.py", "cache/FORMAT.md"} < {*sdist}
    assert {"precompute/heads/mlp/head.py", "precompute/py.typed", "precompute/backbones/tiny.safetensors"} < {*wheel}
    assert contents(sdist, wheel) == []


def test_what_is_missing_or_there_twice_is_named(contents: Callable[[list[str], list[str]], list[str]]) -> None:
    sdist, wheel = good()
    assert contents([*sdist, "precompute/heads/mlp/head.py"], wheel) == [
        "the sdist holds precompute/heads/mlp/head.py, which no source has"
    ]
    assert contents(sdist, [*wheel, wheel[0]]) == [f"{wheel[0]} is in the wheel 2 times"]
    wheel.remove("precompute/py.typed")
    assert contents(sdist, wheel) == ["the wheel lacks precompute/py.typed"]


def test_every_lower_bound_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from lowest_versions import lowest

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = lowest(project)
    assert all(re.fullmatch(r"\S+==[0-9.]+(post[0-9]+)?", line) for line in found)
    assert {line.partition("==")[0] for line in found} >= {"torch", "numpy", "pytest", "matplotlib"}
    with pytest.raises(ValueError, match="numpy<3"):
        lowest({**project, "dependencies": ["numpy<3"]})
