"""Every strategy by name, and the families of stacks a search looks at: the one place that knows all strategies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType

from ..planner.compatibility import refused
from ..planner.computation import Adapters, AttentionImplementation, effective_attention
from ..planner.errors import InputError, did_you_mean
from ..planner.family import Family
from ..planner.model import Model
from ..planner.transform import Stack, Strategy
from ..planner.workload import Method
from ..planner.workload import Precision as PrecisionKind
from .accumulation import GradientAccumulation
from .attention import Attention
from .checkpointing import Checkpointing
from .kernels import LigerKernels, TorchCompile
from .lora import Lora
from .loss import ChunkedLoss
from .offload_optimizer import GROUPS, OffloadOptimizer
from .offload_parameters import OffloadParameters
from .optimizer import OPTIMIZERS, Optimizer
from .padding import PaddedBatches
from .pipelined_swap import PipelinedSwap
from .precision import Precision
from .qlora import Qlora
from .start_up import WithoutZeroInit
from .zero import Zero

# What --require and --forbid may name, and the fact of a stack each stands for.
NAMES: Mapping[str, tuple[str, object]] = MappingProxyType(
    {f"zero-{stage}": ("zero_stage", stage) for stage in range(4)}
    | {f"offload-optimizer-{device}": ("offload_optimizer", device) for device in ("cpu", "nvme")}
    | {f"offload-parameters-{device}": ("offload_parameters", device) for device in ("cpu", "nvme")}
    | {"checkpointing": ("checkpointing", "gpu"), "checkpointing-offload": ("checkpointing", "host")}
    | {"chunked-loss": ("loss", "chunked"), "eager-attention": ("attention", "eager")}
    | {name: ("optimizer", name) for name in OPTIMIZERS}
    | {kind.value: ("precision", kind.value) for kind in PrecisionKind}
    | {f"grad-accum-{kind.value}": ("gradient_accumulation", kind.value) for kind in PrecisionKind}
    | {"pipelined-swap": ("swap", "pipelined")}
    | {"liger": ("kernels", "liger"), "torch-compile": ("compile", True)}
    | {"no-zero-init": ("zero_init", False), "padded-batches": ("batches", "padded")}
)
LONGEST_SHOWN = 40  # characters of what was typed that a message repeats


def known_name(name: str, *, where: str) -> str:
    """Check a strategy's name.

    Raises:
        InputError: there is no such strategy.
    """
    cleaned = name.strip().lower().replace("_", "-")
    if cleaned not in NAMES:
        known = f"{', '.join(NAMES)}{did_you_mean(cleaned[:LONGEST_SHOWN], NAMES)}"
        raise InputError(f"{where}: no strategy {name[:LONGEST_SHOWN]!r}; known are {known}")
    return cleaned


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user fixed, by strategy name, and how adapters look."""

    methods: tuple[Method, ...] = tuple(Method)
    require: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    adapters: Adapters = field(default_factory=Adapters)
    precision: PrecisionKind = PrecisionKind.BF16
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        """Names may come from a plan file, which is untrusted."""
        for where, names in (("--require", self.require), ("--forbid", self.forbid)):
            for name in names:
                known_name(name, where=where)

    def required(self, fact: str) -> object | None:
        """The value required of a fact, if any."""
        return next((NAMES[name][1] for name in self.require if NAMES[name][0] == fact), None)

    def check(self) -> None:
        """Contradictions between what is required and forbidden.

        Raises:
            InputError: one name in both lists, or two values required of one fact.
        """
        both = sorted(set(self.require) & set(self.forbid))
        if both:
            raise InputError(f"--require {both[0]}: also forbidden; give --require or --forbid, not both")
        for fact in {NAMES[name][0] for name in self.require}:
            names = sorted(name for name in set(self.require) if NAMES[name][0] == fact)
            if len(names) > 1:
                raise InputError(f"--require {names[0]}: contradicts --require {names[1]}; give one of them")


def method_strategy(method: Method, adapters: Adapters) -> tuple[Strategy, ...]:
    """LoRA and QLoRA are strategies; full fine-tuning is the absence of both."""
    strategies: Mapping[Method, tuple[Strategy, ...]] = {
        Method.FULL: (),
        Method.LORA: (Lora(adapters),),
        Method.QLORA: (Qlora(adapters),),
    }
    return strategies[method]


def fixed_strategies(choices: Choices, model: Model) -> tuple[Strategy, ...]:
    """Precision, sums of gradients, optimizer, attention, loss, start-up: as required, else the defaults."""
    wanted = AttentionImplementation(choices.required("attention") or "flash")
    precision = PrecisionKind(choices.required("precision") or choices.precision)
    optimizer = str(choices.required("optimizer") or choices.optimizer)
    attention = Attention(effective_attention(model, wanted))
    named = (
        ("loss", ChunkedLoss()),
        ("kernels", LigerKernels()),
        ("compile", TorchCompile()),
        ("swap", PipelinedSwap()),
        ("zero_init", WithoutZeroInit()),
        ("batches", PaddedBatches()),
    )
    asked: tuple[Strategy, ...] = tuple(strategy for fact, strategy in named if choices.required(fact) is not None)
    return (Precision(precision), *_accumulation(choices, precision), Optimizer(optimizer), attention, *asked)


def _accumulation(choices: Choices, precision: PrecisionKind) -> tuple[Strategy, ...]:
    """The type gradients are summed in: as required, or the training precision where fp32 sums are forbidden."""
    wanted = choices.required("gradient_accumulation")
    if wanted is None and "grad-accum-fp32" in choices.forbid:
        wanted = precision.value
    return (GradientAccumulation(PrecisionKind(wanted)),) if wanted else ()


# Offload combinations a search looks at: (stage, optimizer on, parameters on).
SHAPES: tuple[tuple[int, str | None, str | None], ...] = (
    (0, None, None),
    (1, None, None),
    (2, None, None),
    (3, None, None),
    (1, "cpu", None),
    (2, "cpu", None),
    (3, "cpu", None),
    (3, None, "cpu"),
    (3, "cpu", "cpu"),
    (3, "nvme", None),
    (3, "nvme", "cpu"),
    (3, "nvme", "nvme"),
    (3, "cpu", "nvme"),
)


def _shapes(method: Method, choices: Choices) -> Iterable[tuple[int, str | None, str | None]]:
    """Adapters have states of a few megabytes: moving them is looked at only where required, or where NVMe needs it."""
    if method is Method.FULL or choices.required("offload_optimizer"):
        return SHAPES
    return [shape for shape in SHAPES if shape[1] is None or shape == (3, "cpu", "nvme")]


def families(choices: Choices, model: Model) -> tuple[Family, ...]:
    """Every legal family of stacks that honours what is required and forbidden.

    Raises:
        InputError: the requirements exclude each other.
    """
    choices.check()
    alike = replace(choices, methods=())
    found = tuple(f for method in choices.methods for f in _method_families(method, alike, model))
    if not found:
        raise InputError(f"strategies: nothing is left of {_wishes(choices)}; {_reason(choices, model)}")
    return found


def _wishes(choices: Choices) -> str:
    return " ".join(
        [
            *(f"--method {m.value}" for m in choices.methods),
            *(f"--require {n}" for n in choices.require),
            *(f"--forbid {n}" for n in choices.forbid),
        ]
    )


def _reason(choices: Choices, model: Model) -> str:
    facts = dict(NAMES[name] for name in choices.require)
    defaults = {"zero_stage": 3, "method": choices.methods[0].value, "precision": choices.precision.value}
    hit = refused({**defaults, **facts})
    return hit.message() if hit else "drop one --require or --forbid"


@lru_cache(maxsize=64)  # families are told apart by identity: a second search finds the first one's folds
def _method_families(method: Method, choices: Choices, model: Model) -> tuple[Family, ...]:
    return tuple(_each_family(method, choices, model))


def _each_family(method: Method, choices: Choices, model: Model) -> Iterator[Family]:
    fixed = (*fixed_strategies(choices, model), *method_strategy(method, choices.adapters))
    for stage, optimizer_on, parameters_on in _shapes(method, choices):
        rest: tuple[Strategy, ...] = (Zero(stage),)
        if parameters_on:
            rest += (OffloadParameters(parameters_on),)
        for checkpointed in _checkpointing(choices):
            for share in _shares(stage, optimizer_on):
                family = _family(method, fixed + rest, stage, optimizer_on, share, checkpointed)
                if _admitted(family, choices):
                    yield family


def _checkpointing(choices: Choices) -> Iterable[str | None]:
    wanted = choices.required("checkpointing")
    return (str(wanted),) if wanted else (None, "gpu")


def _shares(stage: int, optimizer_on: str | None) -> Iterable[int]:
    """Number of sub-groups to choose among; 0: no choice."""
    return (GROUPS - 1, 0) if optimizer_on == "cpu" and stage == 3 else (0,)


def _family(
    method: Method,
    fixed: tuple[Strategy, ...],
    stage: int,
    optimizer_on: str | None,
    share: int,
    checkpointed: str | None,
) -> Family:
    if optimizer_on and not share:
        fixed += (OffloadOptimizer(optimizer_on),)
    checkpointing = None
    if checkpointed:
        on_host = checkpointed == "host"

        def checkpointing(layers: int) -> Strategy:
            return Checkpointing(layers, on_host=on_host)

    return Family(
        name="+".join(s.name for s in fixed if s.rank >= 50) + ("+checkpointing" if checkpointed else ""),
        method=method,
        zero_stage=stage,
        fixed=fixed,
        checkpointing=checkpointing,
        offload=(lambda groups: OffloadOptimizer("cpu", groups)) if share else None,
        groups=share,
        simplicity=len(fixed) + bool(checkpointed) + bool(share) + (stage > 0),
    )


def _admitted(family: Family, choices: Choices) -> bool:
    facts = family.at(1, max(1, family.groups)).facts
    if refused(facts):
        return False
    wanted = all(facts.get(NAMES[name][0]) == NAMES[name][1] for name in choices.require)
    return wanted and not any(facts.get(NAMES[name][0]) == NAMES[name][1] for name in choices.forbid)


def one_family(stack_facts: Mapping[str, object], choices: Choices, model: Model) -> Family:
    """The family of one fixed configuration: stage, offload targets, checkpointing; for `estimate` and `why-not`.

    Raises:
        InputError: the combination is illegal; the message has the reason and its source.
    """
    method = choices.methods[0]
    fixed: tuple[Strategy, ...] = (
        *fixed_strategies(choices, model),
        *method_strategy(method, choices.adapters),
        Zero(int(str(stack_facts["zero_stage"]))),
    )
    if stack_facts.get("offload_parameters"):
        fixed += (OffloadParameters(str(stack_facts["offload_parameters"])),)
    optimizer_on = stack_facts.get("offload_optimizer")
    partial = bool(stack_facts.get("partial_share"))
    checkpointed = stack_facts.get("checkpointing")
    family = _family(
        method,
        fixed,
        int(str(stack_facts["zero_stage"])),
        str(optimizer_on) if optimizer_on else None,
        GROUPS - 1 if partial else 0,
        str(checkpointed) if checkpointed else None,
    )
    hit = refused(family.at(1, max(1, family.groups)).facts)
    if hit:
        raise InputError(f"strategies: {hit.message()}")
    return family


def stack_of(*strategies: Strategy) -> Stack:
    """A legal stack.

    Raises:
        InputError: the combination is illegal.
    """
    stack = Stack.of(*strategies)
    hit = refused(stack.facts)
    if hit:
        raise InputError(f"strategies: {hit.message()}")
    return stack
