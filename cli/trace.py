"""`trainplan trace`: run the model's own code on tensors without storage, and compare what is alive with the ledger."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from .plan_options import (
    JOB,
    JSON,
    METHODS,
    STRATEGIES,
    WHAT,
    Sectioned,
    SectionedOption,
    applied,
    model_from,
    request_from,
)

_fixed = partial(click.option, cls=SectionedOption, section="The configuration", show_default=True)

LENGTH = JOB[1:2]  # --seq-len
ADAPTERS = STRATEGIES[:2]  # --lora-rank, --lora-targets
TRACED = (
    _fixed("--method", type=click.Choice(METHODS), default="full", help="What is trained."),
    _fixed("--micro-batch", type=click.IntRange(1, 65536), metavar="N", default=1, help="Sequences per micro-step."),
    _fixed("--micro-steps", type=click.IntRange(1, 2), metavar="N", default=1, help="2: gradients are accumulated."),
    _fixed("--checkpointing", default="none", help="none, full, or how many layers."),
    _fixed("--attention", type=click.Choice(("flash", "eager")), default="flash", help="Which attention runs."),
    _fixed("--loss", type=click.Choice(("full", "chunked")), default="full", help="All logits at once, or by chunks."),
    _fixed("--precision", type=click.Choice(("bf16", "fp16", "fp32")), default="bf16", help="Of all states."),
)
FIXED = ("micro_batch", "micro_steps", "checkpointing", "attention", "loss", "precision")


@click.command(name="trace", cls=Sectioned)
@applied(WHAT, LENGTH, TRACED, ADAPTERS, JSON)
def command(*, as_json: bool, **options: Any) -> None:
    """Run the model's own code without weights and without a GPU, and print what is alive at the peak.

    Forward, loss, backward and optimizer step of one GPU, without DeepSpeed, beside the ledger's prediction.
    Needs torch, transformers and peft: pip install 'trainplan[train]'.
    """
    import json

    from ..api import trace
    from ..planner.trace.text import trace_text

    named = model_from(options)
    configuration = {name: options.pop(name) for name in FIXED}
    document = trace(named.model, wanted=request_from(options), **configuration).to_dict(named.note)
    click.echo(json.dumps(document, indent=2) if as_json else trace_text(document))
