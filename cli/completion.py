"""`trainplan completion SHELL`."""

from __future__ import annotations

import click


@click.command(name="completion")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def command(shell: str) -> None:
    """Print a shell completion script: eval "$(trainplan completion bash)"."""
    from click.shell_completion import get_completion_class

    from .main import root

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(root, {}, "trainplan", "_TRAINPLAN_COMPLETE").source())
