"""What every command is: options in groups, which may also come from variables and from a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import click

from precompute.cli._config import (
    FILE_VARIABLE,
    Value,
    excluding,
    is_common,
    is_flag,
    key_of,
    settings_of,
    values_for,
    variables_of,
)
from precompute.cli._groups import COMMANDS, OPTIONS, heading_of, section_of
from precompute.system.addresses import without_secrets

FILE, ORIGINS = "precompute.config", "precompute.origins"
"""Where in click's `meta` the file stands that is named before the command, and where values come from."""
EXAMPLES = ("batch-size", "seed", "weights", "layer", "name", "folder")
"""Options that show how a file and a variable name them, the first that a command has."""
WIDEST = 30  # columns for an option's name, as click has them


def _file_option(command: str, example: str) -> click.Option:
    if not command:
        words = (
            f"TOML file with options of all commands, the same as --config after a command.  [env var: {FILE_VARIABLE}]"
        )
    else:
        variable = variables_of(command, example)[0]
        words = (
            f"TOML file with options: {example} = ... under [{command}]. Precedence: flag, variable ({variable}), "
            f"this file, default. See docs/configuration.md.  [env var: {FILE_VARIABLE}]"
        )
    return click.Option(
        ["--config"], type=click.Path(), metavar="FILE", expose_value=False, is_eager=True, callback=_keep, help=words
    )


def _keep(ctx: click.Context, parameter: click.Parameter, path: str | None) -> None:  # noqa: ARG001
    if path is not None:
        ctx.meta[FILE] = path


class Command(click.Command):
    """A command whose help has headings, and whose parameters are looked for in variables and a file too."""

    @classmethod
    def of(cls, command: click.Command, name: str) -> Command:
        """The same command as one of this kind."""
        if isinstance(command, cls):
            return command
        keys = [key for key, one in settings_of(command).items() if not is_flag(one)]
        example = next((key for key in EXAMPLES if key in keys), keys[0] if keys else "json")
        made = cls(
            name,
            context_settings=command.context_settings,
            callback=command.callback,
            params=[*command.params, _file_option(name, example)],
            help=command.help,
            epilog=command.epilog,
            short_help=command.short_help,
            options_metavar=command.options_metavar,
            add_help_option=command.add_help_option,
            hidden=command.hidden,
            deprecated=command.deprecated,
        )
        made.bare_is_help = command.no_args_is_help
        return made

    bare_is_help = False
    """As click's `no_args_is_help`, except for a command that finds all it needs in variables or a file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and self.bare_is_help and not ctx.resilient_parsing and not self._finds_its_own(ctx):
            raise click.exceptions.NoArgsIsHelpError(ctx)
        try:
            return super().parse_args(ctx, args)
        except click.MissingParameter:
            raise
        except click.BadParameter as error:
            origin = ctx.meta.get(ORIGINS, {}).get(error.param.name) if error.param is not None else None
            if origin is None:
                raise
            message = f"{without_secrets(error.message)} It comes from {origin}."
            raise click.BadParameter(message, error.ctx, error.param, error.param_hint) from error

    def make_parser(self, ctx: click.Context) -> Any:
        """click's parser; what it finds on the command line is completed by what stands elsewhere."""
        parser = super().make_parser(ctx)
        parse = parser.parse_args

        def completed(args: list[str]) -> Any:
            found = parse(args)
            help_option = self.get_help_option(ctx)
            if not (ctx.resilient_parsing or (help_option and found[0].get(help_option.name))):
                self._complete(ctx, found[0])
            return found

        parser.parse_args = completed  # type: ignore[method-assign]
        return parser

    def _complete(self, ctx: click.Context, found: dict[str, Any]) -> None:
        given = {name for name, value in found.items() if _is_there(value)}
        settings = settings_of(self)
        values = self._values(ctx, found.get("config"))
        values = excluding(values, [key for key, parameter in settings.items() if parameter.name in given])
        origins = ctx.meta[ORIGINS] = {}
        for key, parameter in settings.items():
            value = values.get(key)
            if value is None or value.text is False or parameter.name is None or parameter.name in given:
                continue  # a flag that is switched off is one that is not there
            chooses = isinstance(parameter, click.Option) and parameter.is_flag and not parameter.is_bool_flag
            found[parameter.name] = parameter.flag_value if chooses else value.text  # type: ignore[attr-defined]
            origins[parameter.name] = value.origin

    def _finds_its_own(self, ctx: click.Context) -> bool:
        return any(not is_common(self.name or "", key) for key in self._values(ctx, None))

    def _values(self, ctx: click.Context, path: str | None) -> dict[str, Value]:
        root = ctx.find_root().command
        commands = root.commands if isinstance(root, click.Group) else {self.name or "": self}
        return values_for(self.name or "", self, path or file_named(ctx.meta), commands)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_options(self, ctx, formatter)


class Commands(click.Group):
    """The group of all commands: whatever is added becomes a `Command`, and is listed in its section."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.params.append(_file_option("", ""))

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        name = name or cmd.name or ""
        super().add_command(Command.of(cmd, name), name)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        write_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        width = max(map(len, self.commands))
        limit = formatter.width - 6 - width
        sections: dict[str, list[tuple[str, str]]] = {section: [] for section in COMMANDS}
        for section, names in COMMANDS.items():
            for name in dict.fromkeys([*(name for name in names if name in self.commands), *self.commands]):
                command = self.commands[name]
                if section_of(name) == section and not command.hidden:
                    words = names.get(name) or command.get_short_help_str(limit)
                    sections[section].append((name.ljust(width), words))
        _write(formatter, sections)


def write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """The options of a command under their headings, with one left column for all."""
    records = {
        key_of(parameter): record
        for parameter in command.get_params(ctx)
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None
    }
    width = min(max(len(term) for term, _ in records.values()), WIDEST)
    sections: dict[str, list[tuple[str, str]]] = {}
    for heading, names in OPTIONS.items():
        keys = [key for key in records if heading_of(command.name or "", key) == heading]
        keys.sort(key=lambda key: names.index(key) if key in names else len(names))
        sections[heading] = [(records[key][0].ljust(width), records[key][1]) for key in keys]
    _write(formatter, sections)


def _write(formatter: click.HelpFormatter, sections: Mapping[str, Iterable[tuple[str, str]]]) -> None:
    for heading, rows in sections.items():
        if rows := list(rows):
            with formatter.section(heading):
                formatter.write_dl(rows)


def file_named(meta: Mapping[str, Any]) -> str | None:
    """The file named before the command, or by its variable."""
    return meta.get(FILE) or os.environ.get(FILE_VARIABLE) or None


def _is_there(value: Any) -> bool:
    """Whether the parser found a value: click marks what is missing in several ways, by release."""
    return isinstance(value, str | bool | int | float) or (isinstance(value, list | tuple) and len(value) > 0)
