"""The site: every page is in the navigation once, every public name is documented, and it builds without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest
from conftest import ROOT

import precompute

DOCS = ROOT / "docs"
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ORDER = [
    *(
        "start",
        "howto/photos",
        "howto/offline",
        "concepts/key",
        "concepts/depth",
        "heads",
        "cli",
        "python",
        "../cache/FORMAT",
    ),
    *("performance", "trust", "coming-from", "../CHANGELOG", "decisions/index"),
]


def entries(page: Path) -> list[str]:
    """What the navigation of `page` names, as paths relative to docs, in order."""
    found = []
    for block in TOCTREE.findall(page.read_text()):
        for line in block.splitlines():
            if not line or line.startswith(":"):
                continue
            folder = PurePosixPath(page.parent.relative_to(DOCS).as_posix())
            if "*" in line:
                found += sorted(
                    path.relative_to(DOCS).with_suffix("").as_posix() for path in page.parent.glob(f"{line}.md")
                )
            else:
                found.append((folder / line).as_posix())
    return found


def test_every_page_is_in_the_navigation_once() -> None:
    named = Counter(entry for page in DOCS.rglob("*.md") for entry in entries(page))
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - {"index"}
    outside = {"../cache/FORMAT", "../CHANGELOG", "../CONTRIBUTING"}
    assert {*named} == pages | outside
    assert [name for name, count in named.items() if count > 1] == []


def test_the_navigation_has_its_order() -> None:
    found = entries(DOCS / "index.md")
    assert [entry for entry in found if entry in ORDER] == ORDER


def test_every_public_name_is_documented_once() -> None:
    named = Counter(
        name
        for page in (DOCS / "python").glob("*.md")
        for name in re.findall(r"^\.\. auto\w+:: precompute\.(\w+)$", page.read_text(), re.MULTILINE)
    )
    assert {*named} == {*precompute.__all__} - {"__version__", "PrecomputeError"} | {"errors"}
    assert {*named.values()} == {1}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="needs the extra docs")
    pytest.importorskip("furo", reason="needs the extra docs")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-c",
        "docs",
        "-d",
        out / "trees",
        ".",
        out / "html",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.mark.slow
def test_it_builds_without_a_warning_and_holds_the_public_names(site: Path) -> None:
    shown = "".join(page.read_text() for page in (site / "docs/python").glob("*.html"))
    for name in {*precompute.__all__} - {"__version__", "PrecomputeError"}:
        assert f'id="precompute.{name}"' in shown, name
    for name in ("sources.base.Source", "inputs.base.Preprocess", "errors.PrecomputeError"):
        assert f'id="precompute.{name}"' in shown, name
    assert "url=docs/index.html" in (site / "index.html").read_text()


@pytest.mark.slow
def test_its_links_lead_somewhere_and_leave_nothing_unrendered(site: Path) -> None:
    ids = {page: {*re.findall(r'\bid="([^"]+)"', page.read_text())} for page in site.rglob("*.html")}
    for page in ids:
        text = page.read_text()
        for target in re.findall(r'<a [^>]*href="([^"]+)"', text):
            if "://" in target or target.startswith(("mailto:", "data:")):
                continue
            path, _, anchor = target.partition("#")
            aimed = (page.parent / path).resolve() if path else page
            assert aimed.exists(), f"{page.relative_to(site)} -> {target}"
            if anchor and aimed in ids:
                assert anchor in ids[aimed], f"{page.relative_to(site)} -> {target}"
        assert "problematic" not in text, page.relative_to(site)
    for page in (site / "docs/python").glob("*.html"):
        body = re.sub(r"<(script|style).*?</\1>|<[^>]+>", "", page.read_text(), flags=re.DOTALL)
        assert "``" not in body, page.name


@pytest.mark.slow
def test_pages_ask_no_other_server(site: Path) -> None:
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text()):
            assert not re.search(r'(?:src|href)="(?:https?:)?//', tag), f"{page.relative_to(site)}: {tag}"
