"""The docs stay true: their commands parse and their links lead somewhere. test_snippets.py runs the commands."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest
from conftest import ROOT

from precompute.cli import cli

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cache/FORMAT.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
CONFIGURATION = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/configuration.md").read_text(), re.DOTALL)[0]
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")


def command_lines() -> list[str]:
    found = []
    for page in PAGES:
        for line in page.read_text().splitlines():
            match = re.match(r"^\s*\$? ?(?:[A-Z_]+=\S+ )?(precompute [a-z-]+ [^`|#]*[^`|#\s])", line)
            if match and page.name != "cli.md":
                found.append(match[1])
    for command in cli.commands.values():
        found += re.findall(r"^ +(precompute [a-z-]+.*)$", command.help or "", re.MULTILINE)
    return [re.split(r" > | +#", line)[0] for line in found if not line.endswith("\\")]


@pytest.mark.parametrize("line", command_lines())
def test_commands_in_the_docs_parse(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(CONFIGURATION)
    _, name, *arguments = shlex.split(line)
    command = cli.commands[name]
    command.make_context(name, arguments, parent=click.Context(cli))


def prose(page: Path) -> str:
    """What stands outside of blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.*?)\s*$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
        if found[slug]:
            found[f"{slug}-{found[slug]}"] = 0
    return {*found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(prose(page)):
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} -> {target}"
        assert path.is_relative_to(ROOT), f"{page.name} -> {target} leads out of the repository"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page.name} -> {target}#{anchor}"


def test_no_page_shows_a_placeholder() -> None:
    for page in PAGES:
        assert not re.search(r"\b(?!PRECOMPUTE_)[A-Z]+_OUTPUT\b|TODO|FIXME|lorem ipsum", page.read_text()), page


def test_the_readme_fits_two_screens() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 100
    assert max(len(line) for line in lines if "![" not in line) <= 120
    assert any(line.startswith("![") for line in lines)
