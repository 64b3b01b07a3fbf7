"""What the shell may complete: names of models, accelerators, strategies and clouds, read when Tab is pressed."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem


def model_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Models of the catalog and their aliases; files where a path was begun."""
    from ..planner.models import catalog

    if incomplete.startswith((".", "/", "~")):
        return [CompletionItem(incomplete, type="file")]
    names = (name.lower() for row in catalog().values() for name in (row.name, *row.aliases))
    return _matching(names, incomplete.lower()) or [CompletionItem(incomplete, type="file")]


def gpu_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The last name of a comma-separated list, or the one after a count."""
    from ..planner.catalog import gpus

    before, comma, last = incomplete.rpartition(",")
    count, times, name = last.partition("x")
    prefix = before + comma + (count + times if count.isdigit() and times else "")
    begun = name if prefix.endswith("x") and count.isdigit() else last
    names = [gpu.name for gpu in gpus()] + ([] if prefix else ["any"])
    return _matching((prefix + gpu for gpu in names), prefix + begun.lower())


def strategy_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What --require and --forbid may name."""
    from ..strategies.space import NAMES

    return _matching(NAMES, incomplete)


def target_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What --for may name."""
    from ..planner.emit.targets import TARGETS

    return _matching(TARGETS, incomplete)


def support_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a combination may name."""
    from ..api.supporting import support_names as names

    return _matching(names(), incomplete)


def clouds(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Clouds of the price catalog."""
    from ..planner.catalog import offers

    return _matching((offer.cloud for offer in offers()), incomplete.lower())


def _matching(names: Iterable[str], begun: str) -> list[CompletionItem]:
    """Those that go on from what was typed, each once, in order."""
    return [CompletionItem(name) for name in sorted(set(names)) if name.startswith(begun)]
