"""The page of a report as text: what it holds, that strangers' names stay text, and that nothing else may run."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_python
from report_documents import HOSTILE, make_document

from precompute.reports.render import SCRIPTS, render, to_json, visible

PAGE = ROOT / "precompute" / "reports" / "page"
EMPTY: dict[str, Any] = {"version": 1, "title": "nothing.h5"}


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("document", [EMPTY, make_document(samples=40)], ids=["empty", "whole"])
def test_only_the_script_of_the_page_may_run(document: dict[str, Any]) -> None:
    page = Elements(render(document))
    (policy,) = [
        dict(attributes)["content"]
        for tag, attributes in page.found
        if ("http-equiv", "Content-Security-Policy") in attributes
    ]
    data, script = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        "media-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert json.loads(data) == without_nan(document)


def test_hostile_names_make_no_element() -> None:
    plain, hostile = make_document(samples=40), make_document(samples=40, hostile=True)
    hostile["heads"][0]["name"] = hostile["made"] = hostile["precompute"] = HOSTILE[0]
    hostile["heads"][0]["scored"][0]["verdict"]["words"] = HOSTILE[2]
    tags = [[tag for tag, _ in Elements(render(document)).found] for document in (plain, hostile)]
    assert tags[0] == tags[1]
    text = render(hostile)
    text.encode()  # also a title that holds half a surrogate pair can be written
    assert "owned'</script>" not in text
    assert json.loads(Elements(text).scripts[0])["classes"][:5] == list(HOSTILE[:5])


def test_a_report_is_known_by_its_first_kilobyte() -> None:
    assert (
        '<meta name="generator" content="precompute report">' in render(make_document(samples=40, hostile=True))[:1024]
    )


def test_without_scripts_the_verdicts_stand_there() -> None:
    document = make_document(samples=40)
    text = re.sub(r"<script.*?</script>", "", render(document), flags=re.DOTALL)
    for head in document["heads"]:
        assert head["name"] in text
        assert head["scored"][0]["verdict"]["words"] in text
    assert "2026-11-28 15:40 UTC" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_missing(value: float) -> None:
    assert json.loads(to_json({"a": [value, {"b": (value, 1.5)}]})) == {"a": [None, {"b": [None, 1.5]}]}


def test_json_stays_within_its_element() -> None:
    text = to_json({"</script>": "<!-- <script> & \u2028 \u202e \ud800"})
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"</script>": "<!-- <script> & \u2028 \u202e \ud800"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("photo\u202egpj.exe", "photo\\u202egpj.exe"),
        ("a\nb\x00", "a\\u000ab\\u0000"),
        ("\udcff", "\\udcff"),
        ("שלום é 😀", "שלום é 😀"),
    ],
)
def test_controls_are_shown_as_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_all_files_of_the_page_are_in_it_and_none_asks_for_more() -> None:
    assert {path.name for path in PAGE.iterdir()} == {*SCRIPTS, "style.css", "report.html"}
    script = "\n".join((PAGE / name).read_text() for name in SCRIPTS)
    words = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "fetch(",
        "XMLHttpRequest",
        "import(",
        "WebSocket",
    )
    assert [word for word in words if word in script] == []
    assert "</script" not in script.lower()
    assert set(re.findall(r"https?://[^\s\"']+", script)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    style = (PAGE / "style.css").read_text()
    assert "url(" not in style
    assert "@import" not in style


def test_no_file_of_the_page_is_long() -> None:
    assert [path.name for path in PAGE.iterdir() if len(path.read_text().splitlines()) > 300] == []


def test_jinja2_is_loaded_when_a_page_is_made() -> None:
    code = "import sys, precompute.reports.render; print('jinja2' in sys.modules, 'torch' in sys.modules)"
    assert run_python(code).stdout.split() == ["False", "False"]


def test_the_page_needs_no_file_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert render(EMPTY).startswith("<!DOCTYPE html>")
