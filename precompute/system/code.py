"""Code of the user's own, named `package.module:attribute`."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any


def is_code(name: str) -> bool:
    """Whether `name` has the form `package.module:attribute`."""
    return ":" in name


def load_attribute(name: str) -> Any:
    """Import `package.module:attribute`, also from the current folder. Raises whatever the import raises."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@contextlib.contextmanager
def current_folder_importable() -> Iterator[None]:
    """As with `python -m`: a console script does not have the current folder on its path."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")
