"""The command line: `trainplan --model 70b --gpus a100-80 --budget`; further commands are modules, loaded when used."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from typing import Any

import click

from ..planner.errors import TrainplanError, did_you_mean
from .plan_options import Sectioned, plan_options

COMMANDS = {
    "plan": "plan",
    "estimate": "estimate",
    "emit": "emit",
    "check": "check",
    "explain": "explain",
    "why-not": "why_not",
    "sensitivity": "sensitivity",
    "breakeven": "breakeven",
    "afford": "afford",
    "trace": "trace",
    "verify": "verify",
    "validate": "validate",
    "support": "support",
    "calibrate": "calibrate",
    "models": "models",
    "gpus": "gpus",
    "offers": "offers",
    "completion": "completion",
}
SUMMARIES = {
    "plan": "Find the cheapest plan (the same as no command at all).",
    "estimate": "Judge one fixed configuration: memory, time, cost, does it fit.",
    "emit": "Write what starts a plan: on a cluster, in a cloud, for another trainer.",
    "check": "Judge an existing ds_config.json: does it fit, what is wrong, what would be better.",
    "explain": "Show a plan's stack, and the arithmetic and source of any line.",
    "why-not": "Say which constraint rejects a choice, and the cheapest change.",
    "sensitivity": "Plan again with other rates, prices, tokens and failures: does the decision hold?",
    "breakeven": "Say when spot, a commitment or buying costs less than the plan's machines.",
    "afford": "Say what a budget buys: the largest model, the most tokens, the longest context.",
    "trace": "Run the model's own code without a GPU, and show what fills the memory.",
    "verify": "Run a few real steps of a plan here, and compare memory line by line.",
    "validate": "Judge predictions against a table of measured runs.",
    "support": "Say what can be combined, in which versions: ZeRO, offload, methods, optimizers, and known bugs.",
    "calibrate": "Fit rates and overheads to runs on your GPUs, for plan --profile.",
    "models": "List, search and show models.",
    "gpus": "List, search and show accelerators.",
    "offers": "List, search and show priced machines.",
    "completion": "Print a shell completion script.",
}
FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130
NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())  # since click 8.2; its message is the help
NEGATIVE = re.compile(r"-[0-9.]")
WHOLE, KIND = re.compile(r"is not a valid integer( range)?"), re.compile(r"is not a valid float")
LONGEST_MESSAGE = 2000  # characters: one line of an error, whatever a file or an option brought into it


class Root(Sectioned, click.Group):
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

    def invoke(self, ctx: click.Context) -> Any:
        """Run; Ctrl-C goes on as an abort, before which click would print an empty line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and summaries of the commands, without importing them, then the options."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))
        Sectioned.format_options(self, ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Did-you-mean for commands."""
        if args and args[0] not in COMMANDS:
            name = args[0][:40]
            allowed = f"{', '.join(COMMANDS)}{did_you_mean(name, COMMANDS)}"
            raise click.UsageError(f"{name!r}: no such command; allowed are {allowed}")
        return super().resolve_command(ctx, args)


@click.command(
    cls=Root,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@plan_options
@click.version_option(package_name="trainplan")
@click.pass_context
def root(ctx: click.Context, /, **options: Any) -> None:
    """How many of which GPUs, with which strategy, for how long, for how much, and the DeepSpeed config that runs.

    \b
    the cheapest plan of any method:
      trainplan --model 70b --gpus a100-80 --budget
    the most faithful method that 250,000 dollars pay for:
      trainplan --model 70b --gpus a100-80 --budget 250000
    your own model, data and deadline:
      trainplan --model ./config.json --gpus h100,a100-80 --tokens 2B --deadline 14d --method full --out plans/x
    """
    given = [
        p
        for p in ctx.command.params
        if p.name and ctx.get_parameter_source(p.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if ctx.invoked_subcommand is not None:
        if given:
            raise click.UsageError(
                f"{given[0].opts[0]}: stands before {ctx.invoked_subcommand}; put options after the command"
            )
    elif not given:
        click.echo(ctx.get_help())
    else:
        from .plan import run

        run(**options)


def main() -> None:
    """Run, and turn every failure into one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? for a letter it has not
    code = run_root(sys.argv[1:])
    sys.exit(_flushed(code))


def run_root(arguments: list[str]) -> int:
    """The exit code of one invocation."""
    stdout = sys.stdout
    try:
        result = root.main(args=arguments, prog_name="trainplan", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        if isinstance(error, NO_ARGUMENTS):
            click.echo(error.format_message())
            return 0
        return _fail(_usage(error), WRONG_INPUT)
    except TrainplanError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; nothing was left half-written; start again", INTERRUPTED)
    except SystemExit:
        if sys.stdout is not stdout:  # click put another in its place: the reader left, and `| head -1` is no failure
            return 0
        raise
    except OSError as error:
        return _fail(_system(error), FAILED)
    except MemoryError:
        return _fail("system: out of memory; ask for fewer --gpus types or a lower --max-gpus", FAILED)
    except Exception as error:
        if os.environ.get("TRAINPLAN_TRACEBACK"):
            raise
        return _fail(
            f"internal error: {type(error).__name__}: {error}; a fault of trainplan; TRAINPLAN_TRACEBACK=1 shows where",
            FAILED,
        )


def _flushed(code: int) -> int:
    """Write out what is buffered; a reader that went away is no failure, a full disk is one."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python flushes once more at its end, and complains
        return code if isinstance(error, BrokenPipeError) else _fail(_system(error), FAILED)
    return code


def _system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"system: {where}{error.strerror or error}; see to it and start again"


def _usage(error: click.ClickException) -> str:
    """click's errors under our law of messages: where: what is wrong; what is allowed; what to do."""
    ctx = getattr(error, "ctx", None)
    see = f"see {ctx.command_path if ctx else 'trainplan'} --help"
    if isinstance(error, click.NoSuchOption):
        if NEGATIVE.match(error.option_name):
            return f"{error.option_name[:40]}: a negative number; allowed are positive ones; {see}"
        known = [name for p in (ctx.command.params if ctx else ()) for name in p.opts]
        return f"{error.option_name[:40]}: no such option{did_you_mean(error.option_name[:40], known)}; {see}"
    if isinstance(error, click.MissingParameter):
        return f"{error.param.human_readable_name if error.param else 'argument'}: missing; {see}"
    text = KIND.sub("is not a number", WHOLE.sub("is not a whole number", error.message.strip().rstrip(".")))
    if isinstance(error, click.BadParameter) and error.param is not None:
        name = error.param.opts[0] if isinstance(error.param, click.Option) else error.param.human_readable_name
        return f"{name}: {text}" + ("" if "allowed" in text else f"; {see}")
    return text if ";" in text else f"{text}; {see}"


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    shown = line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]}..."
    with contextlib.suppress(OSError):  # where nobody reads the errors, the exit code still says it
        click.echo(f"trainplan: {''.join(c if c.isprintable() else '?' for c in shown)}", err=True)
    return code
