"""The commands as a page: every --help, for docs/reference/cli.md."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import click

from .main import root

WIDTH = 100  # of the help texts, whatever the terminal's
NAME = "trainplan"


def commands(command: click.Command = root, parent: click.Context | None = None) -> Iterator[click.Context]:
    """A context for every command, groups before their members, in the order of the help."""
    name = NAME if parent is None else str(command.name)
    command = copy(command)
    command._help_option = None  # click keeps the one of the first context, which may have had other names
    ctx = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
    ctx.help_option_names = ["-h", "--help"]
    yield ctx
    if isinstance(command, click.Group):
        for member in command.list_commands(ctx):
            found = command.get_command(ctx, member)
            assert found is not None
            yield from commands(found, ctx)


def page() -> str:
    """Every command's help under its own heading."""
    return "\n\n".join(f"## `{ctx.command_path}`\n\n```text\n{ctx.get_help()}\n```" for ctx in commands())
