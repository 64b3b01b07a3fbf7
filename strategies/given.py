"""From a ds_config.json's meaning to the stack it stands for: the strategies of a search, with the file's own sizes."""

from __future__ import annotations

from dataclasses import replace

from ..planner.compatibility import Refusal, refused
from ..planner.dsconfig.meaning import ADAMS, PIPELINED_BUFFERS, Meaning
from ..planner.ledger import ADAMW
from ..planner.ledger import Optimizer as Kind
from ..planner.model import Model
from ..planner.transform import Stack, Strategy
from ..planner.workload import Method
from .accumulation import GradientAccumulation
from .checkpointing import Checkpointing
from .offload_optimizer import OffloadOptimizer
from .offload_parameters import OffloadParameters
from .optimizer import OPTIMIZERS, Optimizer
from .pipelined_swap import PipelinedSwap
from .precision import Precision
from .space import Choices, fixed_strategies, method_strategy
from .zero import Zero

ENGINE = "DeepSpeed 0.19.8 runtime/engine.py, _configure_basic_optimizer"
# torch's AdamW that is told neither fused nor foreach takes foreach on a GPU: one temporary of what is updated at once
FOREACH_BYTES = 4
FUSED_ADAM = replace(ADAMW, flat_bytes=4, source="DeepSpeed 0.19.8 runtime/fp16/fused_optimizer.py; walked: 24 N")
FOREACH = replace(ADAMW, step_bytes=FOREACH_BYTES, source="torch 2.13.0 optim/adamw.py, _multi_tensor_adamw")
OTHERS = {  # names as DeepSpeed 0.19.8 reads them, by states per trained element
    "lion": OPTIMIZERS["lion"],
    "Adafactor": OPTIMIZERS["adafactor"],
    "adagrad": Kind(name="adagrad", state_bytes=4, deepspeed="Adagrad", source=ENGINE),
    "lamb": Kind(name="lamb", state_bytes=8, deepspeed="Lamb", source=ENGINE),
}
OWN = ("precision", "gradient_accumulation", "optimizer", "swap")  # facts that the file says, not the command


def optimizer_of(meaning: Meaning, script: str) -> Kind | None:
    """The optimizer's sizes; None where they are not known.

    Args:
        meaning: the file's.
        script: the optimizer of the training script, where the file has none.
    """
    name = meaning.optimizer
    if not name:  # transformers 5.23.0: optim is adamw_torch_fused
        return OPTIMIZERS[script]
    if name in ADAMS:
        if meaning.optimizer_on or (meaning.torch_adam and meaning.fused):
            return ADAMW
        return FOREACH if meaning.torch_adam else FUSED_ADAM
    if name == "SGD":
        return replace(OPTIMIZERS["sgd"], state_bytes=4 if meaning.momentum else 0)
    return OTHERS.get(name)


def given_stack(
    meaning: Meaning, choices: Choices, model: Model, method: Method, *, layers: int, on_host: bool
) -> tuple[Stack, Refusal | None]:
    """The stack, and the rule of the compatibility table that it breaks: what was not tried, or does not run.

    Args:
        meaning: of the configuration.
        choices: what the training script does: attention, loss, kernels, adapters, its own optimizer.
        model: what is trained.
        method: full, LoRA or QLoRA.
        layers: that are checkpointed.
        on_host: whether their inputs wait on the host.
    """
    script = str(choices.required("optimizer") or choices.optimizer)
    kind = optimizer_of(meaning, script) or ADAMW
    said = [s for s in fixed_strategies(choices, model) if not set(s.facts) & set(OWN)]
    strategies: tuple[Strategy, ...] = (
        *said,
        *method_strategy(method, choices.adapters),
        Precision(meaning.precision),
        *((GradientAccumulation(meaning.accumulation or meaning.precision),) if _sums(meaning) else ()),
        Optimizer(kind.name, told=kind),
        *((Checkpointing(layers, on_host=on_host),) if layers else ()),
        Zero(meaning.stage, meaning.knobs),
        *_offloads(meaning),
    )
    stack = Stack.of(*strategies)
    return stack, refused(stack.facts)


def _sums(meaning: Meaning) -> bool:
    """Whether the type of sums must be said: it is another than the model's, or a search would choose it (stage 2)."""
    return meaning.accumulation not in (None, meaning.precision) or meaning.stage == 2


def _offloads(meaning: Meaning) -> tuple[Strategy, ...]:
    found: list[Strategy] = []
    if meaning.optimizer_on:
        ratio = meaning.ratio if meaning.ratio < 1 else None
        buffers = meaning.swap_buffers
        if meaning.pipelined:
            buffers = -(-buffers // PIPELINED_BUFFERS)
        pinned = meaning.pin_memory
        found.append(OffloadOptimizer(meaning.optimizer_on, given_ratio=ratio, pin_memory=pinned, buffer_count=buffers))
    if meaning.parameters_on:
        found.append(
            OffloadParameters(
                meaning.parameters_on,
                buffer_count=meaning.parameter_buffers,
                buffer_size=meaning.parameter_buffer_size,
                max_in_cpu=meaning.max_in_cpu,
            )
        )
    return (*found, *((PipelinedSwap(),) if meaning.pipelined else ()))
