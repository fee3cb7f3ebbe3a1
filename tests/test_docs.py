"""The docs stay true: their commands parse, their links lead somewhere, their Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from conftest import ROOT

from precompute.cli import cli

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "cache/FORMAT.md"]


def command_lines() -> list[str]:
    found = []
    for page in PAGES:
        for line in page.read_text().splitlines():
            match = re.match(r"^\s*\$? ?(precompute [a-z-]+ [^`|#]*\S)", line)
            if match and page.name != "cli.md":
                found.append(match[1])
    for command in cli.commands.values():
        found += re.findall(r"^ +(precompute [a-z-]+.*)$", command.help or "", re.MULTILINE)
    return [line.partition(" > ")[0] for line in found]


@pytest.mark.parametrize("line", command_lines())
def test_commands_in_the_docs_parse(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = cli.commands[name]
    command.make_context(name, arguments, parent=click.Context(cli))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} -> {target}"


@pytest.mark.rotates(3)
def test_the_notebook_lines_of_the_readme_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"## In a notebook\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(photos.parent)
    names: dict[str, object] = {}
    exec(code[1], names)
    assert (photos.parent / "ants.safetensors").exists()


def test_the_readme_shows_no_placeholder() -> None:
    assert not re.search(r"[A-Z]+_OUTPUT", (ROOT / "README.md").read_text())
