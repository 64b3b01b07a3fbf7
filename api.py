"""The public face: plan, estimate, explain a refusal. Joins strategies and planner; the command line only calls this.

>>> import trainplan
>>> found = trainplan.estimate("llama-3-8b", gpus="8xa100-80", zero=3, checkpointing="full")
>>> found.candidate.gpu.fits
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .planner import catalog
from .planner.candidate import Candidate, Constraint, assess, constraints, let, step_time
from .planner.computation import Adapters, default_targets
from .planner.day_sooner import day_sooner
from .planner.decide import Search, alternatives, decide, frontier
from .planner.emit.deepspeed import ds_config
from .planner.errors import InputError, NoPlan, listed
from .planner.hardware import Offer, Tier
from .planner.machines import machines_for, offers_for, parse_gpus
from .planner.model import Model
from .planner.models import load_model
from .planner.parallel import WHOLE, Split
from .planner.plan import (
    Plan,
    StackRow,
    cost_document,
    decision,
    memory_document,
    stack_rows,
    summary,
    time_document,
    warnings_for,
)
from .planner.program import Limits
from .planner.request import CHEAPEST, LARGEST_AMOUNT, Request, flag
from .planner.run import LEAST_PROGRESS
from .planner.search import Demand, explore
from .planner.stress import AS_ASSUMED, Stress
from .planner.transform import Setting
from .planner.units import HOUR_S, duration, parse_count, parse_duration_s
from .planner.workload import Method, Precision
from .strategies.model_parallel import check_split, cut
from .strategies.offload_optimizer import GROUPS
from .strategies.space import NAMES, Choices, families, known_name, one_family

__all__ = [
    "Estimate",
    "Refused",
    "afford",
    "breakeven",
    "estimate",
    "load_model",
    "no_plan",
    "plan",
    "request",
    "sensitivity",
    "trace",
    "validate",
    "why_not",
]

if TYPE_CHECKING:
    from .planner.afford import Afford
    from .planner.breakeven import BreakEvens
    from .planner.sensitivity import Sensitivity
    from .strategies.traced import Traced

Progress = Callable[[str], None]
AMOUNTS = {flag(name).replace("-", "_"): name for name in LARGEST_AMOUNT}  # options by the request's names


def _silent(_: str) -> None:
    """No progress."""


def request(**options: Any) -> Request:
    """A request from what a user gives: numbers or text such as "2B" and "14d"; None is "not given".

    Raises:
        InputError: a value that cannot be read.
    """
    kernels, compiled = options.pop("kernels", None), options.pop("compile", None)
    options["require"] = _with_kernels(kernels, compiled, options.get("require"))
    given = {key: value for key, value in options.items() if value is not None and value != ()}
    values: dict[str, Any] = {}
    for key, value in given.items():
        values |= _option(key, value)
    return Request(**values, given=frozenset(values))


KERNELS: Mapping[str, tuple[str, ...]] = {"none": (), "liger": ("liger",)}


def _with_kernels(kernels: str | None, compiled: bool | None, require: Any) -> tuple[str, ...]:
    """What is required, kernels=... and compile=... being other words for strategies."""
    if (kernels or "none") not in KERNELS:
        raise InputError(f"--kernels: got {str(kernels)[:40]!r}; allowed are {' and '.join(KERNELS)}; write liger")
    names = (require,) if isinstance(require, str) else tuple(require or ())
    return tuple(dict.fromkeys((*names, *KERNELS[kernels or "none"], *(("torch-compile",) if compiled else ()))))


def _option(key: str, value: Any) -> dict[str, Any]:
    """One option under its name in Request."""
    if key == "gpus":
        names, number = parse_gpus(str(value))
        return {"gpus": names} | ({"gpu_count": number} if number else {})
    if key in ("tokens", "seq_len", "global_batch", "eval_tokens") and isinstance(value, str):
        return {key: parse_count(value, where=f"--{key.replace('_', '-')}")}
    if key == "deadline":
        return {"deadline_s": parse_duration_s(value, where="--deadline") if isinstance(value, str) else float(value)}
    if key == "checkpoint_every":
        seconds = parse_duration_s(value, where="--checkpoint-every") if isinstance(value, str) else float(value)
        return {"checkpoint_every_s": seconds}
    if key == "budget":
        return {"budget": _budget(value)}
    if key in AMOUNTS:
        return {AMOUNTS[key]: float(value)}
    if key == "prices":
        return {"prices": str(value)}
    if key == "tier":
        return {"tier": Tier(value)}
    if key == "method":
        methods = (value,) if isinstance(value, str | Method) else value
        return {"methods": tuple(Method(name) for name in methods)}
    if key in ("require", "forbid"):
        return {key: (value,) if isinstance(value, str) else tuple(value)}
    return {key: value}


def _budget(value: Any) -> float | str:
    """Dollars as a number, or "cheapest"."""
    if value == CHEAPEST:
        return CHEAPEST
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(
            f'budget: not an amount, got {str(value)[:40]!r}; allowed are a number of dollars and "cheapest"'
        )
    return float(value)


def _choices(wanted: Request, model: Model) -> Choices:
    """The strategies' part of a request, all methods: those not allowed are shown as alternatives."""
    return Choices(
        methods=tuple(Method),
        require=tuple(known_name(name, where="--require") for name in wanted.require),
        forbid=tuple(known_name(name, where="--forbid") for name in wanted.forbid),
        adapters=Adapters(rank=wanted.lora_rank, targets=wanted.lora_targets or default_targets(model)),
    )


def _search(
    model: Model,
    wanted: Request,
    progress: Progress,
    methods: tuple[Method, ...] = tuple(Method),
    stress: Stress = AS_ASSUMED,
    *,
    most_usd: float = math.inf,
    most_hours: float = math.inf,
) -> Search:
    """Explore a request; alternatives are drawn from all methods, the decision from those allowed.

    Args:
        model: what is trained.
        wanted: the request.
        progress: told of each group of machines.
        methods: that are explored.
        stress: what turns out other than assumed.
        most_usd: machines that must cost more are left out; quicker, where nothing dearer is of interest.
        most_hours: likewise.
    """
    wanted.check(model)
    choices = replace(_choices(wanted, model), methods=methods)
    families(replace(choices, methods=wanted.allowed), model)  # an impossible requirement is an error for these only
    precision = Precision(choices.required("precision") or choices.precision)
    demand = Demand(
        precision=precision,
        max_gpus=wanted.max_gpus,
        gpus=wanted.gpu_count,
        nodes=wanted.nodes,
        nvme_path=wanted.nvme_path,
        most_usd=most_usd,
        most_hours=most_hours,
    )
    offers = [stress.offer(offer) for offer in offers_for(wanted)]
    space = explore(stress.workload(wanted.workload(model)), offers, families(choices, model), demand, progress)
    limits = Limits(budget_usd=wanted.budget_usd, deadline_s=wanted.deadline_s, max_gpus=wanted.max_gpus)
    return Search(
        request=wanted,
        model=model,
        space=space,
        limits=limits,
        again=lambda other: _search(model, other, _silent, other.allowed),
    )


def plan(model: str | Model, *, progress: Progress = _silent, wanted: Request | None = None, **options: Any) -> Plan:
    """The cheapest way to train a model within the request.

    Args:
        model: catalog name, config.json, folder, hub id, or a loaded model.
        progress: called with a line of text now and then.
        wanted: a finished request, instead of options.
        options: as on the command line: gpus="a100-80", budget=250_000 or "cheapest", method="lora", tokens="2B",
            seq_len=8192, global_batch=512, deadline="14d", require=("zero-3",), kernels="liger", compile=True,
            checkpoint_every="2h", storage_gbps=50.0, grid_kgco2_per_kwh=0.06, ...

    Raises:
        InputError: the request contradicts itself.
        NoPlan: nothing fits; the message says what is short and the cheapest way out.

    >>> import trainplan
    >>> trainplan.plan("llama-3-8b", gpus="h100", method="lora").candidate.method.value
    'lora'
    """
    loaded = load_model(model) if isinstance(model, str) else model
    wanted = wanted or request(**options)
    search = _search(loaded, wanted, progress)
    progress(f"{len(search.space.columns)} columns left; solving")
    candidate, choice = decide(search)
    return Plan(
        request=wanted,
        candidate=candidate,
        certificate=choice.certificate,
        alternatives=alternatives(search, candidate),
        frontier=frontier(search, candidate),
        rows=_rows(candidate),
        dropped=dict(search.space.dropped),
        warnings=warnings_for(candidate),
        day_sooner=day_sooner(search, candidate),
    )


def sensitivity(
    model: str | Model, *, progress: Progress = _silent, wanted: Request | None = None, **options: Any
) -> Sensitivity:
    """Whether the decision holds if rates, prices, tokens or failures turn out otherwise; each case is solved again.

    Args:
        model, progress, wanted, options: as in `plan`.

    Raises:
        InputError: the request contradicts itself.
        NoPlan: nothing fits as assumed.

    >>> import trainplan
    >>> found = trainplan.sensitivity("llama-3-8b", gpus="8xa100-80", method="lora")
    >>> [(o.scenario.label, o.holds) for o in found.outcomes if o.scenario.name == "price-up"]
    [('price +20 %', True)]
    """
    from .planner.sensitivity import sensitivity as run

    loaded = load_model(model) if isinstance(model, str) else model
    wanted = wanted or request(**options)
    search = _search(loaded, wanted, progress, wanted.allowed)

    def searcher(other: Request, stress: Stress, most_usd: float) -> Search:
        return _search(loaded, other, _silent, other.allowed, stress, most_usd=most_usd)

    return run(search, searcher, progress)


def breakeven(
    model: str | Model,
    *,
    spot_usd_per_gpu_hour: float | None = None,
    reserved_usd_per_gpu_hour: float | None = None,
    term: str | None = None,
    capital: float | None = None,
    years: float | None = None,
    power_kw: float | None = None,
    usd_per_kwh: float | None = None,
    hosting_usd: float | None = None,
    progress: Progress = _silent,
    wanted: Request | None = None,
    **options: Any,
) -> BreakEvens:
    """When spot machines, a commitment or machines of one's own cost less than the plan.

    Args:
        model, progress, wanted, options: as in `plan`.
        spot_usd_per_gpu_hour: the plan's machines on spot, where the catalog does not know it.
        reserved_usd_per_gpu_hour: the plan's machines under a commitment, likewise.
        term: of the commitment, such as "90d"; where left out the price list's, or a year.
        capital: USD for a node of one's own; ``pue`` and the next three are needed too.
        years: until it is worth nothing.
        power_kw: kW drawn by a node while it trains.
        usd_per_kwh: USD.
        hosting_usd: space, staff, network: USD per node and year.

    Raises:
        InputError: the request contradicts itself, or a price is out of range.
        NoPlan: nothing fits.

    >>> import trainplan
    >>> found = trainplan.breakeven("llama-3-8b", gpus="8xh100", cloud="aws", reserved_usd_per_gpu_hour=3)
    >>> [(row.name, row.pays) for row in found.rows]
    [('spot', True), ('reserved', False), ('buying', None)]
    """
    from .planner.breakeven import BreakEvens, break_evens
    from .planner.quotes import Quotes

    loaded = load_model(model) if isinstance(model, str) else model
    wanted = wanted or request(**options)
    quotes = Quotes(
        spot_usd_per_gpu_hour=spot_usd_per_gpu_hour,
        reserved_usd_per_gpu_hour=reserved_usd_per_gpu_hour,
        term_h=None if term is None else parse_duration_s(term, where="--term") / HOUR_S,
        capital=capital,
        years=years,
        power_kw=power_kw,
        pue=wanted.pue,
        usd_per_kwh=usd_per_kwh,
        hosting_usd=hosting_usd,
    )
    quotes.check()
    chosen = decide(_search(loaded, wanted, progress, wanted.allowed))[0]
    rows = break_evens(chosen, wanted, quotes, _on_spot(loaded, wanted, chosen))
    return BreakEvens(request=wanted, candidate=chosen, rows=rows)


def _on_spot(model: Model, wanted: Request, chosen: Candidate) -> Candidate | None:
    """The cheapest plan of the same method on spot machines; None where the catalog has none that fits."""
    if wanted.tier is Tier.SPOT or wanted.owns:
        return None
    asked = replace(wanted, tier=Tier.SPOT, methods=(chosen.method,), budget=None)
    try:
        found = _search(model, asked, _silent, asked.allowed).cheapest()
    except InputError:  # no spot offers of these machines
        return None
    return found[0] if found else None


def afford(
    model: str | Model | None = None, *, progress: Progress = _silent, wanted: Request | None = None, **options: Any
) -> Afford:
    """What a budget buys: the largest model of the catalog; of a given model the most tokens, the longest context.

    Args:
        model: as in `plan`; None asks for the largest model.
        progress, wanted: as in `plan`.
        options: as in `plan`; ``budget`` is needed. Without ``tokens`` the largest model that is trained whole gets 20
            tokens per parameter (configs/rules.toml).

    Raises:
        InputError: no budget, or the request contradicts itself.

    >>> import trainplan
    >>> found = trainplan.afford("SmolLM2-135M", gpus="1xh100", budget=5, method="full", seq_len=2048)
    >>> [answer.question for answer in found.answers]
    ['most tokens', 'longest context']
    """
    from .planner.afford import afford_job, afford_model, check
    from .planner.models import catalog as known_models
    from .planner.models import catalog_model

    wanted = wanted or request(**options)
    check(wanted)

    def searcher(of: Model, asked: Request, within_limits: bool) -> Search:
        most_usd, most_hours = (asked.budget_usd, asked.deadline_s / HOUR_S) if within_limits else (math.inf, math.inf)
        return _search(of, asked, _silent, asked.allowed, most_usd=most_usd, most_hours=most_hours)

    if model is None:
        return afford_model([catalog_model(name) for name in known_models()], wanted, searcher, progress)
    return afford_job(load_model(model) if isinstance(model, str) else model, wanted, searcher, progress)


def _rows(candidate: Candidate) -> tuple[StackRow, ...]:
    node = candidate.offer.node
    return stack_rows(candidate, lambda ledger: step_time(ledger, candidate.setting, node).step_s)


def no_plan(error: NoPlan) -> dict[str, Any]:
    """The JSON document of a NoPlan."""
    return getattr(error, "document", {"status": "no_plan", "message": str(error)})


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One fixed configuration: memory, time, cost."""

    request: Request
    candidate: Candidate

    @cached_property
    def rows(self) -> tuple[StackRow, ...]:
        """The ledger after each strategy."""
        return _rows(self.candidate)

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """All constraints, held or not."""
        r = self.request
        return constraints(self.candidate, budget_usd=r.budget_usd, deadline_s=r.deadline_s, max_gpus=r.max_gpus)

    @property
    def ds_config(self) -> dict[str, Any]:
        """DeepSpeed's configuration.

        Raises:
            InputError: the model is cut, which takes more than a configuration.
        """
        c = self.candidate
        if c.setting.split is not WHOLE:
            raise InputError(f"ds_config: {c.stack.names[-1]} is planned, not emitted; leave model parallelism out")
        return ds_config(c.ledger, c.setting)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        c = self.candidate
        return {
            "schema_version": 1,
            "status": "estimated",
            "configuration": decision(c),
            "memory": memory_document(c),
            "time": time_document(c),
            "cost": cost_document(c),
            "constraints": [x.text() for x in self.constraints],
            "warnings": list(warnings_for(c)),
            "ds_config": self.ds_config if c.setting.split is WHOLE else None,
        }


def estimate(
    model: str | Model,
    *,
    gpus: str = "",
    zero: int = 3,
    micro_batch: int = 1,
    method: str | Method = "full",
    checkpointing: str | int = "none",
    offload_optimizer: str | None = None,
    offload_ratio: float = 1.0,
    offload_parameters: str | None = None,
    tensor_parallel: int = 1,
    sequence_parallel: bool = False,
    pipeline_parallel: int = 1,
    pipeline_chunks: int = 1,
    context_parallel: int = 1,
    expert_parallel: int = 1,
    wanted: Request | None = None,
    **options: Any,
) -> Estimate:
    """How much, how long, what it costs, and whether it fits, for one configuration.

    Args:
        model: as in `plan`.
        gpus: a fixed count, "8xa100-80".
        zero: ZeRO stage.
        micro_batch: sequences per GPU and micro-step.
        method: full, lora or qlora.
        checkpointing: "none", "full", or how many layers; "-offload" appended keeps checkpoints on the host
            ("full-offload").
        offload_optimizer: "cpu" or "nvme".
        offload_ratio: share of the optimizer on the host.
        offload_parameters: "cpu" or "nvme".
        tensor_parallel: ranks that cut every layer.
        sequence_parallel: norms and residuals are cut over them too.
        pipeline_parallel: stages that cut the model by layers.
        pipeline_chunks: model chunks of one stage's rank (interleaved schedule).
        context_parallel: ranks that cut every sequence.
        expert_parallel: data-parallel ranks over which a mixture's experts are spread.
        wanted: a finished request, instead of gpus and options.
        options: as in `plan`.

    Raises:
        InputError: the configuration is illegal or contradicts itself.
    """
    loaded = load_model(model) if isinstance(model, str) else model
    chosen = wanted or request(gpus=gpus, method=method, **options)
    layers, on_host = _checkpointed(checkpointing, loaded)
    facts = {
        "zero_stage": zero,
        "offload_optimizer": offload_optimizer,
        "offload_parameters": offload_parameters,
        "partial_share": bool(offload_optimizer) and offload_ratio < 1,
        "checkpointing": ("host" if on_host else "gpu") if layers else None,
    }
    split = Split(
        tensor=tensor_parallel,
        sequence=sequence_parallel,
        pipeline=pipeline_parallel,
        virtual=pipeline_chunks,
        context=context_parallel,
        expert=expert_parallel,
    )
    groups = _groups(offload_ratio)
    return _fixed(loaded, chosen, facts, layers=layers, groups=groups, micro_batch=micro_batch, split=split)


def _groups(ratio: float) -> int:
    if not (isinstance(ratio, int | float) and 0 < ratio <= 1):
        raise InputError(f"--offload-ratio: out of range, got {ratio!r}; allowed is above 0 up to 1; for example 0.6")
    return max(1, round(ratio * GROUPS))


def _checkpointed(text: str | int, model: Model) -> tuple[int, bool]:
    """Layers, and whether checkpoints go to the host."""
    word = str(text).strip().lower()
    on_host = word.endswith("-offload")
    word = word.removesuffix("-offload")
    if word in ("none", "full"):
        return (model.layers if word == "full" else 0), on_host
    if not word.isdigit() or not 0 <= int(word) <= model.layers:
        raise InputError(
            f"--checkpointing: not a number of layers, got {text!r}; allowed are none, full, or 0 to {model.layers}; "
            f"-offload may follow"
        )
    return int(word), on_host


def _fixed(
    model: Model,
    wanted: Request,
    facts: dict[str, Any],
    *,
    layers: int,
    groups: int,
    micro_batch: int,
    offer: str = "",
    split: Split = WHOLE,
) -> Estimate:
    """Assess one configuration on the offer named, or on the cheapest, whose nodes make up the count.

    Raises:
        InputError: no machine, a batch that does not divide, or failures that never let the run end.
    """
    if wanted.gpu_count is None:
        raise InputError(
            f"--gpus: no count, got {','.join(wanted.gpus)}; an estimate needs a type and a count; write --gpus 8xh100"
        )
    wanted.check(model)
    method = wanted.methods[0] if wanted.methods else Method.FULL
    family = one_family(facts, replace(_choices(wanted, model), methods=(method,)), model)

    def on(machine: Offer) -> Candidate:
        setting = _setting(model, wanted, machine, micro_batch, split)
        stack = cut(family.at(layers, groups), setting, machine.node)
        refusals = [r for s in stack.strategies if (r := s.accepts(setting))]
        if refusals:
            raise InputError(f"strategies: {refusals[0]}; choose another")
        candidate = assess(machine, stack, setting, method=method, zero_stage=family.zero_stage)
        _check_end(candidate)
        return candidate

    def broken_then_dollars(c: Candidate) -> tuple[int, float]:
        return sum(1 for limit in let(c) if not limit.holds), c.cost.usd

    candidates = [on(machine) for machine in machines_for(wanted, wanted.gpu_count, preferred=offer)]
    return Estimate(request=wanted, candidate=min(candidates, key=broken_then_dollars))


def _check_end(candidate: Candidate) -> None:
    """Whether failures let the run end.

    Raises:
        InputError: they do not.
    """
    run = candidate.cost.run
    if run.ends:
        return
    often, back = (duration(h * HOUR_S) for h in (run.kept.between_failures_h, run.kept.restart_h))
    raise InputError(
        f"the run never ends: {candidate.gpus} GPUs fail every {often} and take {back} to be back; allowed is "
        f"{LEAST_PROGRESS:.0%} of the time for work, and more; use fewer GPUs, or other --mtbf-gpu-hours, "
        "--storage-gbps or --checkpoint-every"
    )


def _setting(model: Model, wanted: Request, offer: Offer, micro_batch: int, split: Split) -> Setting:
    gpus = wanted.gpu_count or 0
    check_split(model, split, wanted.seq_len, gpus)
    copies = gpus // split.ranks
    if not 1 <= micro_batch <= 2**16 or wanted.sequences % (micro_batch * copies):
        fits = max(1, round(wanted.sequences / (micro_batch * copies))) * max(1, micro_batch) * copies
        what = f"{copies} GPUs" if split == WHOLE else f"{copies} data-parallel ranks"
        raise InputError(
            f"global batch {wanted.sequences} is not micro-batch {micro_batch} x {what} x n; "
            f"use for example --global-batch {fits}"
        )
    return Setting(
        workload=wanted.workload(model),
        nodes=gpus // offer.node.gpus,
        ranks_per_node=offer.node.gpus,
        micro_batch=micro_batch,
        nvme_path=wanted.nvme_path,
        split=WHOLE if split == WHOLE else split,
    )


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why a choice is not the plan."""

    estimate: Estimate | None
    broken: tuple[Constraint, ...]
    illegal: str
    remedy: Candidate | None
    dearer_usd: float | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema_version": 1,
            "status": "refused" if self.broken or self.illegal else "admitted",
            "illegal": self.illegal,
            "broken": [{"constraint": c.name, "short": c.short, "unit": c.unit, "text": c.text()} for c in self.broken],
            "configuration": decision(self.estimate.candidate) if self.estimate else None,
            "dearer_usd": self.dearer_usd,
            "cheapest_change": summary(self.remedy) if self.remedy else None,
        }


def why_not(
    model: Model,
    wanted: Request,
    chosen: dict[str, Any],
    *,
    num_gpus: int | None = None,
    zero: int | None = None,
    micro_batch: int | None = None,
    method: str | None = None,
    gpu: str | None = None,
    offload_optimizer: str | None = None,
    offload_parameters: str | None = None,
    checkpointing: str | None = None,
) -> Refused:
    """Which constraint rejects a choice, by how much, and the cheapest change that would admit it.

    Args:
        model: the plan's model.
        wanted: the plan's request.
        chosen: the plan's decision, for everything the choice leaves open.
        num_gpus: GPUs instead; the rest likewise.

    Raises:
        InputError: the choice cannot be expressed at all.
    """
    gpus = num_gpus or int(chosen["gpus"])
    asked = replace(
        wanted,
        gpus=(catalog.find_gpu(gpu).name,) if gpu else (str(chosen["gpu"]),),
        gpu_count=gpus,
        nodes=None,
        methods=(Method(method or chosen["method"]),),
        max_gpus=max(wanted.max_gpus, gpus),
    )
    facts, layers, on_host = _facts_like(chosen, zero, offload_optimizer, offload_parameters, checkpointing, model)
    facts["checkpointing"] = ("host" if on_host else "gpu") if layers else None
    size = micro_batch or _fitting_micro_batch(asked, gpus, int(chosen["micro_batch"]))
    groups = _groups(chosen.get("offload_ratio") or 1.0)
    try:
        found = _fixed(
            model, asked, facts, layers=layers, groups=groups, micro_batch=size, offer=str(chosen.get("offer"))
        )
    except InputError as error:
        return Refused(
            estimate=None, broken=(), illegal=str(error), remedy=_remedy(model, asked, zero), dearer_usd=None
        )
    limits = constraints(
        found.candidate, budget_usd=wanted.budget_usd, deadline_s=wanted.deadline_s, max_gpus=wanted.max_gpus
    )
    broken = tuple(c for c in limits if not c.holds)
    dearer = found.candidate.cost.usd - float(chosen["cost_usd"])
    return Refused(
        estimate=found,
        broken=broken,
        illegal="",
        remedy=_remedy(model, asked, zero) if broken else None,
        dearer_usd=dearer,
    )


def _fitting_micro_batch(asked: Request, gpus: int, preferred: int) -> int:
    share = asked.sequences // gpus if asked.sequences % gpus == 0 else 1
    return preferred if share % preferred == 0 else 1


def _facts_like(
    chosen: dict[str, Any],
    zero: int | None,
    optimizer: str | None,
    parameters: str | None,
    checkpointing: str | None,
    model: Model,
) -> tuple[dict[str, Any], int, bool]:
    """The decision's stack with the asked changes; a changed stage drops offload that the stage cannot have."""
    names = [str(n) for n in chosen["strategies"]]
    stage = int(chosen["zero_stage"]) if zero is None else zero
    before = dict(NAMES[n] for n in names if n in NAMES)
    on_cpu = optimizer or before.get("offload_optimizer")
    layers, on_host = int(chosen["checkpointed_layers"]), before.get("checkpointing") == "host"
    if checkpointing is not None:
        layers, on_host = _checkpointed(checkpointing, model)
    if stage == 0 and not optimizer:
        on_cpu = None
    held = parameters or (before.get("offload_parameters") if stage == 3 else None)
    partial = stage == 3 and on_cpu == "cpu" and 0 < float(chosen.get("offload_ratio") or 1.0) < 1
    facts = {
        "zero_stage": stage,
        "offload_optimizer": None if on_cpu == "none" else on_cpu,
        "offload_parameters": None if held == "none" else held,
        "partial_share": partial,
    }
    return facts, layers, on_host


def _remedy(model: Model, asked: Request, zero: int | None) -> Candidate | None:
    """The cheapest plan that keeps what was asked: first GPUs and stage, then GPUs alone."""
    for require in ((f"zero-{zero}",) if zero is not None else (), ()):
        try:
            search = _search(model, replace(asked, require=tuple(dict.fromkeys((*asked.require, *require)))), _silent)
            found = search.cheapest()
        except InputError:
            continue
        if found:
            return found[0]
    return None


def validate(path: str, *, grades: Sequence[str] = ("A", "B", "M"), good_rows: bool = False) -> dict[str, Any]:
    """How far predictions are from the measured runs of a table: memory, time, GPU-hours, and whether they fit.

    Args:
        path: a CSV; docs/reference/measurements.md describes its columns.
        grades: values of the column ``quality`` that are judged; rows without a grade always are.
        good_rows: judge the good rows of a table that has problems.

    Returns:
        The JSON document: ``memory`` and ``time`` with rows, scored, unsupported, mape_percent, median_percent,
        bias_percent, within_band_percent, by_source, worst; ``runs`` with the same of GPU-hours, and each run; ``fit``
        with true_fit, false_fit, true_oom, false_oom.

    Raises:
        InputError: no such table; or it has problems, which are all listed, and ``good_rows`` is not given.
    """
    from pathlib import Path

    from .planner.measurements import score
    from .planner.measurements.document import document
    from .planner.measurements.table import read_table
    from .strategies.measured import predict

    table = read_table(Path(path))
    if table.problems and not good_rows:
        raise InputError(f"correct these, or judge the other rows with --good-rows: {listed(table.problems)}")
    return document(score.validate(table, predict, grades=grades))


def trace(
    model: str | Model,
    *,
    micro_batch: int = 1,
    micro_steps: int = 1,
    checkpointing: str | int = "none",
    attention: str = "flash",
    loss: str = "full",
    precision: str = "bf16",
    wanted: Request | None = None,
    **options: Any,
) -> Traced:
    """Run the model's own code on tensors without storage, and follow what is alive; needs torch and transformers.

    Args:
        model: as in `plan`.
        micro_batch: sequences per micro-step.
        micro_steps: 2 accumulates gradients over two micro-steps.
        checkpointing: "none", "full", or how many layers.
        attention: flash or eager.
        loss: full or chunked.
        precision: bf16, fp16 or fp32, of all states.
        wanted: a finished request, instead of options.
        options: seq_len, method, lora_rank and lora_targets, as in `plan`.

    Raises:
        InputError: a package is missing, or this model cannot be traced; the message says which operator and why.
    """
    from .planner.trace import trace as run
    from .strategies.traced import Traced, subject_of

    loaded = load_model(model) if isinstance(model, str) else model
    chosen = wanted or request(**options)
    chosen.check(loaded)
    layers, on_host = _checkpointed(checkpointing, loaded)
    if on_host:
        raise InputError(f"--checkpointing: got {checkpointing}; a trace has no host; leave -offload out")
    subject = subject_of(
        loaded,
        seq_len=chosen.seq_len,
        micro_batch=micro_batch,
        micro_steps=micro_steps,
        method=(chosen.methods[0] if chosen.methods else Method.FULL).value,
        rank=chosen.lora_rank,
        targets=chosen.lora_targets,
        checkpointed=layers,
        attention=attention,
        loss=loss,
        precision=precision,
    )
    return Traced(subject=subject, trace=run(subject))
