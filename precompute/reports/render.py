"""A report's document as one HTML page that needs no network: style, script and data stand inside it.

Class and file names are strangers' input. They reach the page as autoescaped text or as JSON that cannot end its
element, and the script writes them with `textContent` alone. A Content-Security-Policy admits this one script by its
hash, pictures and clips from data: addresses, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from functools import cache
from importlib.resources import files
from typing import Any

SCRIPTS = (
    "base.js",
    "charts.js",
    "pictures.js",
    "verdict.js",
    "matrix.js",
    "classes.js",
    "leaks.js",
    "reliability.js",
    "points.js",
    "paint.js",
    "maptools.js",
    "map.js",
    "made.js",
    "main.js",
)
"""In the order in which they are joined: each uses the ones before it, and functions of any."""

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)[\d:.]*(?:Z|\+00:00)")
ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def render(document: dict[str, Any]) -> str:
    """The page that shows `document`, which precompute.reports.document builds, as the text of one HTML file.

    Keys that are absent or None leave out their part of the page. Numbers that are not finite are shown as missing.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, loader=FunctionLoader(_read), undefined=StrictUndefined)
    script = _script()
    return environment.get_template("report.html").render(
        policy=_policy(script),
        title=visible(str(document.get("title") or "Report")),
        subtitle=visible(_subtitle(document)),
        version=visible(str(document.get("precompute") or "")),
        made=visible(MOMENT.sub(r"\1 \2 UTC", str(document.get("made") or ""))),
        verdicts=_verdicts(document),
        style=Markup(_read("style.css")),
        script=Markup(script),
        data=Markup(to_json(document)),
    )


def visible(text: str) -> str:
    """One line of `text`: control characters, and those that turn the direction of writing, as \\uXXXX."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def to_json(document: dict[str, Any]) -> str:
    """The document as ASCII JSON that can neither end a `script` element nor open a comment; NaN becomes null."""
    try:
        text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(document), allow_nan=False, separators=(",", ":"))
    for character, escape in ESCAPED.items():
        text = text.replace(character, escape)
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@cache
def _read(name: str) -> str:
    """The text of a file next to this module, with line ends as a browser's parser leaves them."""
    return files("precompute.reports").joinpath("page", name).read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _script() -> str:
    joined = "\n".join(_read(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{joined}}})();'


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def _subtitle(document: dict[str, Any]) -> str:
    samples = (document.get("map") or {}).get("of")
    unit = document.get("unit") or {}
    parts = [
        f"{samples:,} {unit.get('plural', 'samples')}" if isinstance(samples, int) else "",
        _number_of(document.get("classes") or [], "label" if document.get("task") == "labels" else "class"),
        _number_of(document.get("heads") or [], "head"),
    ]
    return " \u00b7 ".join(part for part in parts if part)


def _number_of(items: list[Any], noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{len(items):,} {noun if len(items) == 1 else plural}" if items else ""


def _verdicts(document: dict[str, Any]) -> list[dict[str, str]]:
    """What is shown where scripts do not run: each head's verdict in words."""
    found = []
    for head in document.get("heads") or []:
        for scored in (head.get("scored") or [])[:1]:
            words = (scored.get("verdict") or {}).get("words")
            if words:
                found.append({"head": visible(str(head.get("name", ""))), "words": visible(str(words))})
    return found
