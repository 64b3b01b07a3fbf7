"""`trainplan completion SHELL`."""

from __future__ import annotations

import click


@click.command(name="completion")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def command(shell: str) -> None:
    """Print a shell completion script.

    \b
    bash, zsh:  eval "$(trainplan completion bash)"      in ~/.bashrc or ~/.zshrc
    fish:       trainplan completion fish | source       in ~/.config/fish/config.fish
    """
    from click.shell_completion import ShellComplete, get_completion_class

    from .main import root

    completion = get_completion_class(shell)
    assert completion is not None
    # the base class's source: bash's own would run bash to ask for its version, and prints where it is too old
    click.echo(ShellComplete.source(completion(root, {}, "trainplan", "_TRAINPLAN_COMPLETE")))
