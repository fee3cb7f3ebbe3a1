"""Write docs/cli.md from the commands themselves; with --check only say whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from precompute.cli import cli

TARGET = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = "# The commands\n\nMade by `python scripts/make_cli_docs.py` from the commands' own help; do not edit by hand.\n"


def reference() -> str:
    """The whole page."""
    parts = [HEAD, section("precompute", cli)]
    parts += [section(f"precompute {name}", command) for name, command in sorted(cli.commands.items())]
    return "\n".join(parts)


def section(title: str, command: click.Command) -> str:
    context = click.Context(command, info_name=title, max_content_width=100, terminal_width=100)
    return f"## {title}\n\n```text\n{command.get_help(context)}\n```\n"


def main() -> int:
    if "--check" not in sys.argv:
        TARGET.write_text(reference())
        print(f"Wrote {TARGET}")
        return 0
    if TARGET.exists() and TARGET.read_text() == reference():
        return 0
    print(f"{TARGET} is not what the commands say. Run: python scripts/make_cli_docs.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
