"""Docstrings of this project are plain text: this makes them reStructuredText for autodoc, so that they read well.

They have three forms of their own. `name: text`, at the start of a line or of a sentence, and `name : text` say what a
parameter or an attribute is; ` · ` stands between such entries; a heading underlined with `---` stands over them.
Everything else is prose, or, where it is indented, code.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from typing import Any

from sphinx.application import Sphinx

NAMES = r"\*{0,2}[A-Za-z_]\w*(?:, \*{0,2}[A-Za-z_]\w*)*"
ENTRY = re.compile(rf"^({NAMES}) ?: (.*)$", re.DOTALL)
PAGE = re.compile(r"\b(docs/[a-z/0-9-]+|cache/FORMAT)\.md\b")


def known_names(documented: Any) -> set[str]:
    """The parameters and attributes of what is documented: a colon after any other word is just a colon."""
    names: set[str] = set()
    for one in (documented, *(getattr(documented, "__mro__", ()))):
        names |= {*getattr(one, "__annotations__", {})}
    with contextlib.suppress(TypeError, ValueError):
        names |= {*inspect.signature(documented).parameters}
    return names


def inline(text: str) -> str:
    """`text` with its `code` as literals, its pages as links and nothing else that reStructuredText would read."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    out = ""
    for part in parts:
        if part.startswith("`") and len(part) > 2:
            out += f"\\ ``{part[1:-1].strip()}``\\ "
            continue
        pieces = PAGE.split(part)
        for number, piece in enumerate(pieces):
            if number % 2:
                out += f"\\ :doc:`{piece}.md </{piece}>`\\ "
            else:
                out += re.sub(r"([\\*_|<>`])", r"\\\1", piece)
    return out.strip()


def entries_of(paragraph: list[str], names: set[str]) -> list[tuple[str, str]]:
    """(names, text) of each entry in a paragraph; "" for its prose."""
    text = "\n".join(paragraph)
    pieces: list[str] = []
    for line in re.split(r"\n(?! )", text):  # an indented line goes on with the entry before it
        flat = " ".join(line.split())
        starts = ENTRY.match(flat)
        if pieces and not (starts and plausible(starts[1], names)):
            pieces[-1] += " " + flat
        else:
            pieces.append(flat)
    found: list[tuple[str, str]] = []
    for piece in pieces:
        for part in re.split(rf" · (?={NAMES} ?: )|(?<=[.;]) (?={NAMES}: )", piece):
            starts = ENTRY.match(part)
            if starts and plausible(starts[1], names):
                found.append((starts[1], starts[2].removesuffix(";")))
            elif found:
                found[-1] = (found[-1][0], f"{found[-1][1]} {part}")
            else:
                found.append(("", part))
    return found


def plausible(text: str, names: set[str]) -> bool:
    words = {word.strip(" *") for word in text.split(",")}
    return bool(words & names) or all(word.endswith("_") for word in words)


def rest_of(lines: list[str], names: set[str]) -> list[str]:
    """The docstring `lines`, dedented, as lines of reStructuredText."""
    out: list[str] = []
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        if at + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[at + 1].strip()):
            out += [f".. rubric:: {inline(lines[at])}", ""]
            at += 2
            continue
        block = []
        while at < len(lines) and lines[at].strip():
            if block and at + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[at + 1].strip()):
                break
            block.append(lines[at])
            at += 1
        out += block_of(block, names)
    return out


def block_of(block: list[str], names: set[str]) -> list[str]:
    if all(line.startswith("    ") for line in block):
        return ["::", "", *block, ""]
    if any(line.startswith(("- ", "* ")) for line in block):
        items: list[str] = []
        for line in block:
            if line.startswith(("- ", "* ")) or not items:
                items.append(line)
            else:
                items[-1] += " " + line.strip()
        shown = [f"- {inline(item[2:])}" if item.startswith(("- ", "* ")) else inline(item) for item in items]
        return [line for one in shown for line in (one, "")]
    # Entries with an indented text of their own ("name : text", numpydoc's form) are recognised by the indentation.
    wide = names | ({m[1].strip() for line in block if (m := re.match(rf"^({NAMES}) : ", line))})
    wide |= {word.strip() for name in wide for word in name.split(",")}
    out: list[str] = []
    for name, text in entries_of(block, wide):
        out += [f"- **{inline(name)}**: {inline(text)}"] if name else [inline(text), ""]
    return [*out, ""]


def process(_app: Sphinx, _what: str, _name: str, documented: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = rest_of([line.rstrip() for line in lines], known_names(documented))


ARRAY = re.compile(r"~?(?:numpy\.)?ndarray\[tuple\[~?(?:typing\.)?Any, \.\.\.\], ~?(?:numpy\.)?dtype\[([^\[\]]+)\]\]")


def shorten(
    _app: Sphinx, _what: str, _name: str, _documented: Any, _options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """A signature as its source has it: NDArray[int64] and Mapping, and `...` for a default that is made each time."""

    def short(text: str) -> str:
        text = ARRAY.sub(r"NDArray[\1]", text).replace("<factory>", "...")
        return re.sub(r"~(?:\w+\.)*(\w+)", r"\1", text)

    return signature and short(signature), returned and short(returned)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", shorten)
    return {"version": "1", "parallel_read_safe": True}
