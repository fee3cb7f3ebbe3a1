"""Plain technical English: pages, help, messages and docstrings avoid the words of a list, which names better ones."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
from conftest import ROOT

import precompute
from precompute.cli import cli

# Each entry: a regular expression, bounded by words and in any case, and the words to write instead.
WORDS = {
    # what a program prints
    r"(is|are|was|were|be|been) (also )?told": "reported",
    r"(is|are|be) said|as said": "reported, described",
    r"says? so|said so|saying so": "the message itself; reported",
    r"says? nothing": "has no effect; does not depend on",
    r"speaks? of": "refers to",
    r"tells? (bytes|what|which|whether|how|no)": "reports",
    r"told apart|tell (\w+ )?\w+ apart|(cannot|can) be told|told from": "no significant difference; distinguished",
    r"flatter(s|ed|ing|y)?": "optimistic, too good",
    # comparing and placing
    r"held against|holds? (it|them|each \w+|\w+ rows?) against": "compared with",
    r"beside": "next to, with, in addition to, compared with",
    r"(?<!can )(?<!never )stands? (in|at|on|under|behind|before|above|below|where|beside|there|twice)": "is in, are in",
    r"(lies?|lain) (in|at|on|under|behind|before|above|below|where|beyond|outside|there)": "is in, are in",
    r"in (the )?place of|in their place": "instead of",
    # choosing and skipping
    r"not taken|never taken": "skipped, rejected",
    r"let go of|lets go|let it go": "released",
    r"such as (it is|they are)": "unchanged",
    r"thrown? away": "discarded",
    r"cut short": "truncated, ended early",
    # owning
    r"(an?|the|another|some|any|such|\w+s) (\w+ )?of (your|one's|its|their|our|his) own": "your own, its own",
    r"(can|may|to) be had": "available",
    r"anybody's|somebody else('s)?": "another user's",
    r"others made": "imported",
    # requests
    r"asked for|asks? for": "requested, requires",
    r"unasked": "by default",
    r"ways out": "options, remedies",
    # running and repairing
    r"mend(s|ed|ing)?": "repair, fix",
    r"(goes|went) on (from|where|with|by|there|as)|goes on": "resumes, continues",
    r"under way|in flight": "in progress, running, current",
    r"in mid-run": "during the run",
    r"(begins?|began|beginning) anew": "starts anew",
    r"brings? (it|them|\w+ file|a file|\w+) up to date": "updates",
    r"hand(s|ed)? (it |them )?(on|out|over)": "passes on, returns",
    r"c[ao]mes? along": "included",
    r"puts? together": "assembles",
    r"walk(s|ed|ing)? (over|through|a)": "iterates over, traverses",
    # words of other centuries and of other languages
    r"but for (the|a|an|its|one|their|rounding)": "except",
    r"be it": "whether",
    r"lest|thereby|henceforth|hence|thence|whence|thither|hither|naught|aught|whilst|amongst|heed(s|ed)?": (
        "so, therefore, while, among, respects"
    ),
    r"by hand of|for want of": "by; without",
    r"whoever|whosoever": "anyone who; the caller",
    r"at hand": "available",
    r"without end|for ever": "forever",
    r"knows? (nothing|no) (of|such)": "ignores, has no",
}
# Clauses instead of a noun: good English in an explanation, but not in a text for users. Decisions, and docstrings
# of what is not public, may use them.
NOUNS = {
    r"what is (\w+ )?(stored|computed|measured|trained|compared|drawn|done|left|kept|shown|there|missing|needed)": (
        "the noun: the stored values, the rest, ..."
    ),
    r"what is (\w+ )?(proposed|refused|tried|said|read|written|printed|predicted|learned|chosen)": "the noun",
    r"what it (takes|costs|is|does|gives|holds)": "the noun: the cost, the effect, the contents",
    r"what (lies|stands) \w+": "the noun: the layers behind it",
    r"what enters": "the input of",
    r"what (was|were) (trained|asked|given|made|seen|finished|found)": "the noun: the trained parameters, ...",
    r"what to (take|do)": "the noun: the recommendation",
}
_FOUND = {words: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for words in WORDS | NOUNS}
_ANY, _ANY_NOUN = (re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE) for words in (WORDS, WORDS | NOUNS))


def found(text: str, *, nouns: bool) -> list[str]:
    """Each use of a listed word in `text`, with its surroundings and the words to write instead."""
    hits = []
    for match in (_ANY_NOUN if nouns else _ANY).finditer(text):
        around = " ".join(text[max(0, match.start() - 40) : match.end() + 40].split())
        better = next(new for old, new in (WORDS | NOUNS).items() if _FOUND[old].fullmatch(match[0]))
        hits.append(f"{match[0]!r} in '...{around}...': {better}")
    return hits


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cache/FORMAT.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages(page: Path) -> None:
    prose = re.sub(r"^```.*?^```|`[^`\n]*`|\]\([^)]*\)", "...", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert not found(prose, nouns=page.parent.name != "decisions")


def _helps(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    yield name, " ".join(filter(None, (command.help, command.short_help, command.epilog)))
    for option in command.params:
        yield f"{name} {option.name}", getattr(option, "help", None) or ""
    if isinstance(command, click.Group):
        for inner, one in command.commands.items():
            yield from _helps(one, f"{name} {inner}")


@pytest.mark.parametrize("name", [None, *cli.commands])
def test_help(name: str | None) -> None:
    command = cli if name is None else cli.commands[name]
    helps = [(where, text) for where, text in _helps(command, name or "precompute") if name or where == "precompute"]
    hits = {where: found(text, nouns=True) for where, text in helps}
    assert not {where: hit for where, hit in hits.items() if hit}


def _public() -> Iterator[tuple[str, str]]:
    """The docstrings that the page of the Python interface shows: of public names, and their public methods."""
    for package in (precompute, import_module("precompute.heads")):
        for name in package.__all__:
            value = getattr(package, name)
            yield name, inspect.getdoc(value) or ""
            if inspect.isclass(value):
                for inner, member in vars(value).items():
                    method = getattr(member, "__func__", member)  # of a class method
                    if not inner.startswith("_") and isinstance(method, (property, type(_public))):
                        yield f"{name}.{inner}", inspect.getdoc(method) or ""


def test_public_docstrings() -> None:
    hits = {name: found(text, nouns=True) for name, text in _public()}
    assert not {name: hit for name, hit in hits.items() if hit}


FOLDERS = {
    "cache": ROOT / "cache",
    "heads": ROOT / "heads",
    **{path.name: path for path in (ROOT / "precompute").iterdir() if not path.is_symlink()},
}


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_strings_of_the_code(name: str) -> None:
    """Messages, hints, notes and help, parts of f-strings too; docstrings of all names without the clauses."""
    folder, hits = FOLDERS[name], {}
    for module in [folder] if folder.suffix == ".py" else sorted(folder.rglob("*.py")):
        tree = ast.parse(module.read_text())
        strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        explained = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in strings:
            if hit := found(str(node.value), nouns=id(node) not in explained):
                hits[f"{module.relative_to(ROOT)}:{node.lineno}"] = hit
    assert not hits


@pytest.mark.parametrize(
    ("text", "hits"),
    [
        ("This is told in a note, beside the scores.", 2),
        ("What is stored is held against the table that you asked for.", 3),
        ("The report says so, and the run goes on where it was.", 2),
        ("A backbone of your own lies in a folder.", 2),
        ("A note reports this next to the scores.", 0),
        ("Your own backbone is in a folder. The run resumes.", 0),
        ("A user must understand what a leak is.", 0),
    ],
)
def test_the_list_finds_the_words(text: str, hits: int) -> None:
    assert len(found(text, nouns=True)) == hits
