"""Links that lead somewhere on a forge and not in a site: to README.md, and to folders."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from sphinx.application import Sphinx

LINK = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def mended(root: Path, page: str, text: str) -> str:
    """The source of `page` with such links changed: README.md is the front page, a folder its index or its name."""
    folder = PurePosixPath(page).parent

    def replace(match: re.Match[str]) -> str:
        shown, target, anchor = match.groups()
        path = root / folder / target
        if path.resolve() == root / "README.md":
            return f"[{shown}]({os.path.relpath('docs/index.md', folder)}{anchor or ''})"
        if path.is_dir():
            index = PurePosixPath(target) / "index.md"
            return f"[{shown}]({index})" if (path / "index.md").exists() else shown
        return match[0]

    return LINK.sub(replace, text)


def setup(app: Sphinx) -> dict[str, Any]:
    root = Path(app.srcdir).resolve()

    def read(_app: Sphinx, page: str, source: list[str]) -> None:
        source[0] = mended(root, page, source[0])

    app.connect("source-read", read)
    return {"version": "1", "parallel_read_safe": True}
