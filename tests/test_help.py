"""`--help`: every option under a heading, every command in a section, and nothing heavy is loaded for it."""

from __future__ import annotations

import re

import click
import pytest
from conftest import run_python

from precompute.cli import cli
from precompute.cli._command import Command, Commands
from precompute.cli._config import key_of
from precompute.cli._groups import COMMANDS, OPTIONS, OTHER, OTHER_COMMANDS, heading_of, section_of

HELP = "precompute/cli/_groups.py"


def help_of(name: str) -> str:
    command = cli.commands[name] if name else cli
    context = click.Context(command, info_name=name or "precompute", max_content_width=100, terminal_width=100)
    return command.get_help(context)


@pytest.mark.parametrize("name", ["", *sorted(cli.commands)])
def test_every_option_has_a_heading(name: str) -> None:
    command = cli.commands[name] if name else cli
    lost = [
        key_of(one)
        for one in command.params
        if isinstance(one, click.Option) and heading_of(name, key_of(one)) == OTHER
    ]
    assert not lost, f"name a heading in {HELP} for {', '.join(lost)} of {name}"
    text = help_of(name)
    headings = [line[:-1] for line in text.splitlines() if line.endswith(":") and line[:-1] in OPTIONS]
    assert headings == [heading for heading in OPTIONS if heading in headings]
    shown = re.findall(r"^  (?:-\w, )?--([\w-]+)", text[text.index(f"\n{headings[0]}:\n") :], re.MULTILINE)
    assert sorted(shown) == sorted({*(key_of(one) for one in command.params if isinstance(one, click.Option)), "help"})


def test_every_command_has_a_section() -> None:
    lost = [name for name, one in cli.commands.items() if not one.hidden and section_of(name) == OTHER_COMMANDS]
    assert not lost, f"name a section and a few words in {HELP} for {', '.join(lost)}"
    text = help_of("")
    assert [name for name in re.findall(r"^  ([\w-]+)  ", text, re.MULTILINE) if name in cli.commands] == [
        name for names in COMMANDS.values() for name in names if name in cli.commands and not cli.commands[name].hidden
    ]
    assert OTHER_COMMANDS not in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_an_option_or_a_command_without_a_heading_is_shown_all_the_same() -> None:
    @click.command(short_help="One more.")
    @click.option("--no-such-heading", help="A new option.")
    @click.option("--seed", type=int, help="A known one.")
    def another() -> None:
        """One more."""

    group = Commands("precompute")
    group.add_command(another)
    made = group.commands["another"]
    assert isinstance(made, Command)
    text = made.get_help(click.Context(made, info_name="another"))
    assert re.search(r"Training:\n  --seed.*\n\nOther options:\n  --no-such-heading TEXT +A new", text)
    assert "Other commands:\n  another  One more." in group.get_help(click.Context(group))


def test_each_command_says_which_goes_before_which() -> None:
    for name in cli.commands:
        text = " ".join(help_of(name).split())
        assert "Precedence: flag, variable (PRECOMPUTE_" in text, name
        assert f"under [{name}]" in text
    assert "Precedence: flag, variable, file, default." in " ".join(help_of("").split())


def test_headings_name_each_option_once() -> None:
    names = [name for names in OPTIONS.values() for name in names]
    assert len(names) == len(set(names))
    known = {key_of(one) for command in (cli, *cli.commands.values()) for one in command.params}
    assert {*names} - known - {"help"} <= set(), "no command has these options any more"


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["compare", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    done = run_python(
        f"import sys; sys.argv = ['precompute', *{arguments}]\n"
        "from precompute.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "heavy = {'torch', 'h5py', 'numpy', 'rich', 'jinja2', 'sklearn', 'tomllib', 'difflib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert done.returncode == 0, done.stderr
