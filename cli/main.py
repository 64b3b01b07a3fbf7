"""The command line: `trainplan --model 70b --gpus a100-80 --budget`, and one module per further command, loaded when used."""

from __future__ import annotations

import importlib
import os
import sys

import click

from ..planner.errors import TrainplanError
from .plan_options import plan_options

COMMANDS = {
    "plan": "plan",
    "estimate": "estimate",
    "explain": "explain",
    "why-not": "why_not",
    "models": "models",
    "gpus": "gpus",
    "offers": "offers",
    "completion": "completion",
}
SUMMARIES = {
    "plan": "Find the cheapest plan (the same as no command at all).",
    "estimate": "Judge one fixed configuration: memory, time, cost, does it fit.",
    "explain": "Show a plan's stack, and the arithmetic and source of any line.",
    "why-not": "Say which constraint rejects a choice, and the cheapest change.",
    "models": "List, search and show models.",
    "gpus": "List, search and show accelerators.",
    "offers": "List, search and show priced machines.",
    "completion": "Print a shell completion script.",
}
INTERRUPTED = 130


class Root(click.Group):
    """Commands are imported only when they are used, so that --help stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order people need them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[cmd_name]}", __package__)
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and summaries, without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Did-you-mean for commands."""
        from ..planner.errors import did_you_mean

        if args and args[0] not in COMMANDS:
            raise click.UsageError(
                f"no command {args[0]!r}; commands are {', '.join(COMMANDS)}{did_you_mean(args[0], COMMANDS)}"
            )
        return super().resolve_command(ctx, args)


@click.command(
    cls=Root,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@plan_options(required=False)
@click.version_option(package_name="trainplan")
@click.pass_context
def root(ctx: click.Context, **options: object) -> None:
    """How many of which GPUs, with which strategy, for how long, for how much, and the DeepSpeed config that runs.

    \b
    trainplan --model 70b --gpus a100-80 --budget            the cheapest plan of any method
    trainplan --model 70b --gpus a100-80 --budget 250000     the most faithful method that this pays for
    trainplan --model ./config.json --gpus h100,a100-80 --tokens 2B --deadline 14d --method full --out plans/x
    """
    if ctx.invoked_subcommand is not None:
        given = [
            name
            for name, value in options.items()
            if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        ]
        if given:
            raise click.UsageError(
                f"--{given[0].replace('_', '-')} stands before {ctx.invoked_subcommand}; put options after the command"
            )
        return
    if options.get("model") is None and options.get("params") is None:
        if len(sys.argv) > 1 and any(a.startswith("--") for a in sys.argv[1:]):
            raise click.UsageError(
                "--model is missing; give a name, a config.json, a folder or a hub id, for example --model 70b"
            )
        click.echo(ctx.get_help())
        return
    from .plan import run

    run(**options)


def main() -> None:
    """Run, and turn every failure into one line and an exit code."""
    sys.exit(run_root(sys.argv[1:]))


def run_root(arguments: list[str]) -> int:
    """The exit code of one invocation."""
    try:
        result = root.main(args=arguments, prog_name="trainplan", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        return _fail(_one_line(error.format_message()), 2)
    except TrainplanError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; nothing was left half-written", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"system: {error.strerror or error}{f', {error.filename}' if error.filename else ''}", 1)
    except Exception as error:
        if os.environ.get("TRAINPLAN_TRACEBACK"):
            raise
        return _fail(
            f"internal error: {type(error).__name__}: {_one_line(str(error))}; set TRAINPLAN_TRACEBACK=1 to see where",
            1,
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _fail(message: str, code: int) -> int:
    click.echo(f"trainplan: {_one_line(message)}", err=True)
    return code
