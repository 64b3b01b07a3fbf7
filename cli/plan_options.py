"""Options of a request, shared by `trainplan`, `trainplan plan` and `trainplan estimate`. No heavy imports here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import click

from .complete import clouds, gpu_names, model_names, strategy_names, target_names

F = TypeVar("F", bound=Callable[..., Any])
CHEAPEST = "cheapest"
METHODS = ("full", "lora", "qlora")
TIERS = ("on-demand", "spot", "reserved", "capacity-block", "owned")
SCALES = {"k": 1e3, "m": 1e6, "b": 1e9}
FOR = "deepspeed, torchrun, slurm, skypilot, kubernetes, accelerate, transformers, axolotl, llamafactory"
BY_HAND = ("params", "layers", "hidden", "heads", "kv_heads", "intermediate", "vocab")


class Dollars(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """An amount of dollars; without a value: the cheapest plan."""

    name = "USD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """Read 250000, 250,000, $250k or 1.2M."""
        if value == CHEAPEST or isinstance(value, float):
            return str(value) if value == CHEAPEST else float(value)
        text = str(value).strip().lower().removeprefix("$").replace(",", "").replace("_", "")
        scale = SCALES.get(text[-1:], 1.0)
        try:
            amount = float(text[:-1] if scale > 1 else text) * scale
        except ValueError:
            amount = math.nan
        if not 0 < amount <= 1e12:
            self.fail(
                f"not an amount, got {str(value)[:40]!r}; allowed is above 0 up to 1e12 dollars; write 250000 or 250k",
                param,
                ctx,
            )
        return amount


class SectionedOption(click.Option):
    """An option that stands under a heading of the help."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Sectioned(click.Command):
    """A command whose help lists its options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One list for each heading, in the order of first appearance."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "section", "Other"), []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)


_model = partial(click.option, cls=SectionedOption, section="What to train")
_hand = partial(
    click.option, cls=SectionedOption, section="A Llama-shaped model by hand, instead of --model", metavar="N"
)
_job = partial(click.option, cls=SectionedOption, section="How much")
_machine = partial(click.option, cls=SectionedOption, section="On what")
_run = partial(click.option, cls=SectionedOption, section="The run")
_price = partial(click.option, cls=SectionedOption, section="At which price")
_choice = partial(click.option, cls=SectionedOption, section="Within which limits")
_strategy = partial(click.option, cls=SectionedOption, section="With which strategies")
_fixed = partial(click.option, cls=SectionedOption, section="The configuration")
_cut = partial(_fixed, type=click.IntRange(1, 65_536), metavar="N", default=1, show_default=True)
_output = partial(click.option, cls=SectionedOption, section="Output")

WHAT = (
    _model(
        "--model",
        "-m",
        shell_complete=model_names,
        help="Catalog name (70b, llama-3-8b), config.json, folder, or hub id.",
    ),
    _hand("--params", help="Parameters: 13e9 or 13B; needs --layers and --hidden."),
    _hand("--layers", type=click.IntRange(1, 10_000), help="Layers."),
    _hand("--hidden", type=click.IntRange(1, 10_000_000), help="Hidden size."),
    _hand("--heads", type=click.IntRange(1, 100_000), help="Attention heads.  [default: of size 128]"),
    _hand("--kv-heads", type=click.IntRange(1, 100_000), help="Key-value heads.  [default: as --heads]"),
    _hand("--intermediate", type=click.IntRange(1, 10_000_000), help="MLP width.  [default: solved from --params]"),
    _hand("--vocab", type=click.IntRange(1, 10_000_000), help="Vocabulary.  [default: 32000]"),
)
JOB = (
    _job("--tokens", metavar="N", help="Tokens to train on: 2B, 500M.  [default: 1B]"),
    _job("--seq-len", metavar="N", help="Tokens per sequence.  [default: 4096]"),
    _job("--global-batch", metavar="N", help="Sequences per optimizer step.  [default: about 1M tokens]"),
)
MACHINES = (
    _machine(
        "--gpus",
        "-g",
        shell_complete=gpu_names,
        help="Types (a100-80,h100), any, or a fixed count (8xa100-80).  [default: any]",
    ),
    _machine("--cloud", shell_complete=clouds, help="Only this cloud."),
    _machine("--region", help="Only this region, as the price list writes it."),
    _machine("--tier", type=click.Choice(TIERS), help="How nodes are paid for.  [default: on-demand]"),
    _machine(
        "--gpus-per-node",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="Your own machines: GPUs in one.  [default: 8]",
    ),
    _machine(
        "--host-memory-gib", type=float, metavar="GIB", help="Host RAM of a node, where the catalog does not know it."
    ),
    _machine(
        "--internode-gbps", type=float, metavar="GBIT/S", help="Network of a node, where the catalog does not know it."
    ),
    _machine("--fabric", metavar="NAME", help="infiniband, roce, ethernet, ...: likewise.  [default: a slow one]"),
    _machine("--profile", metavar="FILE", help="Figures measured on your GPUs, written by trainplan calibrate."),
)
PRICE_LIST = (
    _price("--prices", metavar="FILE", help="Your own price list (TOML, CSV), in place of the built-in offers."),
)
OWN = (
    _price("--price", type=float, metavar="USD", help="Your own machines: USD per GPU-hour."),
    _price("--capital", type=float, metavar="USD", help="Or what they cost: USD per node; the next five too."),
    _price("--years", type=float, metavar="N", help="Years a node is used."),
    _price("--power-kw", type=float, metavar="KW", help="Power of a node while it trains."),
    _price("--usd-per-kwh", type=float, metavar="USD", help="Price of a kWh."),
    _price("--utilization", type=float, metavar="SHARE", help="Share of its years in which a node is used."),
    _price("--hosting-usd", type=float, metavar="USD", help="Space, staff, network: USD per node and year."),
)
EXTRAS = (
    _price("--storage-gib", type=float, metavar="GIB", help="Kept while it runs; billed where the price is known."),
    _price("--egress-gib", type=float, metavar="GIB", help="Moved out of the cloud; billed where the price is known."),
)
PRICES = (*PRICE_LIST, *OWN, *EXTRAS)
FLEET = (
    _machine("--max-gpus", type=int, metavar="N", help="GPUs at most.  [default: 1024]"),
    _machine("--nodes", type=int, metavar="N", help="Exactly so many nodes."),
)
STRATEGIES = (
    _strategy("--lora-rank", type=int, metavar="R", help="Rank of LoRA and QLoRA adapters.  [default: 16]"),
    _strategy("--lora-targets", help="Modules to adapt: q_proj,v_proj.  [default: every linear layer]"),
    _strategy(
        "--require",
        multiple=True,
        metavar="STRATEGY",
        shell_complete=strategy_names,
        help="Only plans with it (zero-3, offload-optimizer-cpu, ...); repeatable.",
    ),
    _strategy(
        "--forbid",
        multiple=True,
        metavar="STRATEGY",
        shell_complete=strategy_names,
        help="No plans with it; repeatable.",
    ),
    _strategy("--kernels", type=click.Choice(("none", "liger")), help="liger: fused norms, rotary embeddings, gates."),
    _strategy("--compile", is_flag=True, help="The training script compiles the model's layers with torch.compile."),
    _strategy("--nvme-path", help="Where NVMe is mounted on a node.  [default: /local_nvme]"),
)
RUN = (
    _run("--eval-every", type=click.IntRange(1, 10**9), metavar="N", help="Optimizer steps between evaluations."),
    _run("--eval-tokens", metavar="N", help="Tokens of one evaluation: 10M.  [default: 0.5% of the time, assumed]"),
    _run("--checkpoint-every", metavar="TIME", help="30m, 2h.  [default: what loses least, Young and Daly]"),
    _run(
        "--storage-gbps",
        type=float,
        metavar="GB/S",
        help="Gigabytes per second that the whole cluster writes to shared storage.  [default: 1 per node]",
    ),
    _run("--mtbf-gpu-hours", type=float, metavar="H", help="GPU-hours between failures.  [default: 50700]"),
    _run(
        "--pue",
        type=float,
        metavar="X",
        help="Power of the building over its machines'.  [default: 1.2; none for your own]",
    ),
    _run("--grid-kgco2-per-kwh", type=float, metavar="KG", help="Of your grid; without it no emissions are computed."),
)
CHOICE = (
    _choice(
        "--budget",
        type=Dollars(),
        is_flag=False,
        flag_value=CHEAPEST,
        help="Bare: the cheapest plan of any method. USD: the most faithful method this pays for.",
    ),
    _choice("--deadline", metavar="TIME", help="14d, 36h.  [default: 30d]"),
    _choice(
        "--method",
        type=click.Choice(METHODS),
        multiple=True,
        help="Allowed methods; repeatable.  [default: full; any with --budget]",
    ),
)
METHOD = _fixed("--method", type=click.Choice(METHODS), default="full", show_default=True, help="What is trained.")
CHECKPOINTING = _fixed(
    "--checkpointing",
    default="none",
    show_default=True,
    help="none, full, or how many layers; -offload appended keeps checkpoints on the host.",
)
CONFIGURATION = (
    METHOD,
    _fixed("--zero", type=click.IntRange(0, 3), metavar="STAGE", default=3, show_default=True, help="ZeRO stage."),
    _fixed(
        "--micro-batch",
        type=click.IntRange(1, 65536),
        metavar="N",
        default=1,
        show_default=True,
        help="Sequences per GPU and micro-step.",
    ),
    CHECKPOINTING,
    _fixed("--offload-optimizer", type=click.Choice(("cpu", "nvme")), help="Optimizer states on the host or on NVMe."),
    _fixed(
        "--offload-ratio",
        type=float,
        metavar="SHARE",
        default=1.0,
        show_default=True,
        help="Share of the optimizer on the host.",
    ),
    _fixed("--offload-parameters", type=click.Choice(("cpu", "nvme")), help="Parameters on the host or on NVMe."),
    _cut("--tensor-parallel", help="Ranks that cut every layer."),
    _cut("--pipeline-parallel", help="Stages that cut the model by layers."),
    _cut("--pipeline-chunks", help="Model chunks of one stage (interleaved schedule)."),
    _cut("--context-parallel", help="Ranks that cut every sequence."),
    _cut("--expert-parallel", help="Ranks over which experts are spread."),
    _fixed("--sequence-parallel", is_flag=True, help="Norms and residuals are cut over the tensor-parallel ranks too."),
)
SCRIPT = (  # what the training script does, where a ds_config.json says the rest
    METHOD,
    CHECKPOINTING,
    _fixed(
        "--micro-batch",
        type=click.IntRange(1, 65536),
        metavar="N",
        help='Sequences per GPU and micro-step, where the file says "auto" or nothing.  [default: 1]',
    ),
)
WRITE = (_output("--write", metavar="FILE", help="Write the better configuration; never over a file that is there."),)
OUT = (
    _output(
        "--out", metavar="FOLDER", help="For the plan and what starts it.  [default: plans/MODEL; none with --json]"
    ),
)
LAUNCH = (
    _output(
        "--for",
        "targets",
        multiple=True,
        default=("deepspeed",),
        metavar="TARGET",
        shell_complete=target_names,
        help=f"What starts it: {FOR}; repeatable.  [default: deepspeed]",
    ),
    _output("--data", metavar="DATA", help="What it trains on: a text file, a datasets path.  [default: $DATA]"),
    _output("--weights", metavar="PATH", help="Weights and tokenizer: a folder or hub id.  [default: the model's]"),
)
JSON = (_output("--json", "as_json", is_flag=True, help="Print the JSON document alone."),)


def applied(*groups: Iterable[Callable[[Any], Any]]) -> Callable[[F], F]:
    """Decorate with several groups of options, in their order."""

    def decorate(function: F) -> F:
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function

    return decorate


plan_options = applied(WHAT, JOB, MACHINES, FLEET, PRICES, CHOICE, RUN, STRATEGIES, LAUNCH, OUT, JSON)


def model_from(options: dict[str, Any]) -> Any:
    """What --model means (``Found``: the model and a note), or the one described by hand; takes its options out.

    Raises:
        InputError: neither or both.
    """
    from ..planner.errors import InputError
    from ..planner.models import Found, describe_by_hand, find_model

    reference = options.pop("model", None)
    hand = {name: value for name in BY_HAND if (value := options.pop(name, None)) is not None}
    if reference is not None and hand:
        raise InputError(f"--{_flag(next(iter(hand)))}: contradicts --model {reference[:40]}; give one of them")
    if reference is not None:
        return find_model(reference)
    missing = [name for name in ("params", "layers", "hidden") if name not in hand]
    if len(missing) == len(BY_HAND[:3]):
        raise InputError(
            "--model: missing; allowed are a catalog name, a config.json, a folder or a hub id; write --model 70b"
        )
    if missing:
        raise InputError(
            f"--{missing[0]}: missing; a model by hand needs --params, --layers and --hidden; give it, or --model"
        )
    return Found(model=describe_by_hand(**{**hand, "params": _number(hand["params"])}))


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _number(text: str) -> float:
    """Parameters as people write them: 13e9, 13B."""
    from ..planner.units import parse_count

    try:
        return float(text)
    except ValueError:
        return parse_count(text, where="--params")


def request_from(options: dict[str, Any]) -> Any:
    """A request from the remaining options.

    Raises:
        InputError: a value that cannot be read.
    """
    from ..api import request
    from ..planner.errors import InputError

    targets = options.pop("lora_targets", None)
    if targets is not None:
        options["lora_targets"] = tuple(part.strip() for part in targets.split(",") if part.strip())
        if not options["lora_targets"]:
            raise InputError(
                f"--lora-targets: no names, got {targets[:40]!r}; allowed are modules; write q_proj,v_proj"
            )
    return request(**options)
