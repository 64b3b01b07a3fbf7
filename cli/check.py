"""`trainplan check ds_config.json`: an existing configuration."""

from __future__ import annotations

from typing import Any

import click

from .plan_options import (
    JOB,
    JSON,
    MACHINES,
    PRICES,
    RUN,
    SCRIPT,
    STRATEGIES,
    WHAT,
    WRITE,
    Sectioned,
    applied,
    model_from,
    request_from,
)

SAID = ("micro_batch", "checkpointing")


@click.command(name="check", cls=Sectioned)
@click.argument("config", type=click.Path())
@applied(WHAT, JOB, MACHINES, PRICES, SCRIPT, RUN, STRATEGIES, WRITE, JSON)
@click.pass_context
def command(ctx: click.Context, /, *, config: str, write: str | None, as_json: bool, **options: Any) -> None:
    """Judge an existing ds_config.json: does it fit, what does each key cost, what is wrong, what would be better.

    CONFIG is read as DeepSpeed 0.19.8 reads it; "auto" becomes what transformers makes of it. What the training script
    decides (method, checkpointing, sequence length) stands in options; --require bf16 is its --bf16.

    Exit 0: it fits, and nothing in it is harmful. 3: it does not fit. 5: it will not run, does harm, or cannot be
    judged.
    """
    import json
    from pathlib import Path

    from ..api import check
    from ..planner.documents import model_row
    from ..planner.emit.files import write_new
    from ..planner.report.check_text import check_text

    named = model_from(options)
    said = {name: options.pop(name) for name in SAID}
    found = check(config, named.model, wanted=request_from(options), **said)
    document = {**found.to_dict(), "model": {**model_row(found.candidate), "note": named.note}}
    click.echo(json.dumps(document, indent=2) if as_json else check_text(document))
    if write is not None and found.better is not None:
        write_new(Path(write), found.better.text, option="--write")
        click.echo(f"{write}: written", err=True)
    elif write is not None:
        click.echo(f"{write}: not written, nothing better was found", err=True)
    ctx.exit(found.exit_code)
