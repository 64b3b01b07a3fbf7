"""Options of a request, shared by `trainplan`, `trainplan plan` and `trainplan estimate`. No heavy imports here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
CHEAPEST = "cheapest"
METHODS = ("full", "lora", "qlora")
TIERS = ("on-demand", "spot", "reserved")


class Dollars(click.ParamType):
    """An amount of dollars; without a value: the cheapest plan."""

    name = "USD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """Read 250000, 250,000, $250k or 1.2M."""
        if value == CHEAPEST or isinstance(value, float):
            return str(value) if value == CHEAPEST else float(value)
        text = str(value).strip().lower().removeprefix("$").replace(",", "").replace("_", "")
        scale = {"k": 1e3, "m": 1e6}.get(text[-1:], 1.0)
        try:
            amount = float(text[:-1] if scale > 1 else text) * scale
        except ValueError:
            amount = math.nan
        if not 0 < amount <= 1e12:
            self.fail(
                f"--budget: not an amount of dollars, got {value!r}; allowed is above 0 up to 1e12; for example 250000 or 250k",
                param,
                ctx,
            )
        return amount


WHAT = (
    click.option("--model", "-m", help="Catalog name (70b, llama-3-8b), config.json, folder, or hub id."),
    click.option(
        "--params", help="Describe a model by hand: parameters, for example 13e9 (with --layers and --hidden)."
    ),
    click.option("--layers", type=click.IntRange(1, 10_000), help="By hand: number of layers."),
    click.option("--hidden", type=click.IntRange(1, 10_000_000), help="By hand: hidden size."),
    click.option("--heads", type=click.IntRange(1, 100_000), help="By hand: attention heads."),
    click.option("--kv-heads", type=click.IntRange(1, 100_000), help="By hand: key-value heads."),
    click.option(
        "--intermediate",
        type=click.IntRange(1, 10_000_000),
        help="By hand: MLP width; solved from --params if left out.",
    ),
    click.option("--vocab", type=click.IntRange(1, 10_000_000), help="By hand: vocabulary.  [default: 32000]"),
)
JOB = (
    click.option("--tokens", help="Tokens to train on: 2B, 500M.  [default: 1B]"),
    click.option("--seq-len", help="Tokens per sequence.  [default: 4096]"),
    click.option("--global-batch", help="Sequences per optimizer step.  [default: about 1M tokens]"),
)
MACHINES = (
    click.option("--gpus", "-g", help="Types (a100-80,h100), any, or a fixed count (8xa100-80).  [default: any]"),
    click.option("--max-gpus", type=int, help="GPUs at most.  [default: 1024]"),
    click.option("--nodes", type=int, help="Exactly so many nodes."),
    click.option("--cloud", help="Only this cloud."),
    click.option("--region", help="Only this region."),
    click.option("--tier", type=click.Choice(TIERS), help="How nodes are paid for.  [default: on-demand]"),
    click.option("--price", type=float, help="USD per GPU-hour of your own machines."),
    click.option(
        "--gpus-per-node", type=click.IntRange(1, 1024), help="GPUs in one of your own machines.  [default: 8]"
    ),
    click.option(
        "--host-memory-gib", type=float, help="Host RAM of a node in GiB, where the catalog does not know it."
    ),
    click.option(
        "--internode-gbps", type=float, help="Network of a node in Gbit/s, where the catalog does not know it."
    ),
)
STRATEGIES = (
    click.option("--lora-rank", type=int, help="Rank of LoRA and QLoRA adapters.  [default: 16]"),
    click.option("--lora-targets", help="Modules to adapt: q_proj,v_proj.  [default: every linear layer]"),
    click.option(
        "--require",
        multiple=True,
        metavar="STRATEGY",
        help="Only plans with it (zero-3, offload-optimizer-cpu, ...); repeatable.",
    ),
    click.option("--forbid", multiple=True, metavar="STRATEGY", help="No plans with it; repeatable."),
    click.option("--nvme-path", help="Where NVMe is mounted on a node.  [default: /local_nvme]"),
)
CHOICE = (
    click.option(
        "--budget",
        type=Dollars(),
        is_flag=False,
        flag_value=CHEAPEST,
        help="Bare: the cheapest plan of any method. USD: the most faithful method this pays for.",
    ),
    click.option("--deadline", help="14d, 36h.  [default: 30d]"),
    click.option(
        "--method",
        type=click.Choice(METHODS),
        multiple=True,
        help="Allowed methods; repeatable.  [default: full; any with --budget]",
    ),
)
OUTPUT = (
    click.option("--out", help="Folder for ds_config.json and plan.json.  [default: plans/MODEL; none with --json]"),
    click.option("--json", "as_json", is_flag=True, help="Print plan.json alone."),
)


def applied(options: Iterable[Callable[[Any], Any]]) -> Callable[[F], F]:
    """Decorate with several options, in their order."""

    def decorate(function: F) -> F:
        for option in reversed(tuple(options)):
            function = option(function)
        return function

    return decorate


def plan_options(*, required: bool = False) -> Callable[[F], F]:
    """All options of a plan."""
    del required
    return applied((*WHAT, *JOB, *MACHINES, *CHOICE, *STRATEGIES, *OUTPUT))


BY_HAND = ("params", "layers", "hidden", "heads", "kv_heads", "intermediate", "vocab")


def model_from(options: dict[str, Any]) -> Any:
    """The model of --model, or the one described by hand; takes its options out.

    Raises:
        InputError: neither or both.
    """
    from ..planner.errors import InputError
    from ..planner.models import describe_by_hand, find_model

    reference = options.pop("model", None)
    hand = {name: value for name in BY_HAND if (value := options.pop(name, None)) is not None}
    if reference is not None and hand:
        raise InputError(
            f"--model {reference}: and --{next(iter(hand)).replace('_', '-')} contradict each other; give one of them"
        )
    if reference is not None:
        found = find_model(reference)
        if found.note:
            click.echo(f"note: {found.note}", err=True)
        return found.model
    missing = [name for name in ("params", "layers", "hidden") if name not in hand]
    if missing:
        raise InputError(
            f"--{missing[0]}: missing; a model by hand needs --params, --layers and --hidden; or give --model"
        )
    try:
        hand["params"] = float(hand["params"])
    except ValueError:
        raise InputError(f"--params: not a number, got {hand['params']!r}; write for example 13e9") from None
    return describe_by_hand(**hand)


def request_from(options: dict[str, Any]) -> Any:
    """A request from the remaining options."""
    from ..api import request

    targets = options.pop("lora_targets", None)
    if targets:
        options["lora_targets"] = tuple(part.strip() for part in targets.split(",") if part.strip())
    return request(**options)
