"""The ledger's activations of mixtures, latent attention and state spaces against traces of the real models, made here.

Models of the catalog at full width and a few layers deep; half of the rows with a vocabulary of 1,024, so that layers
and not the loss are the peak. Kernels of state-space models are stand-ins read in source (planner/trace/kernels.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

import pytest
from trainplan.planner.activations import constant_bytes, head_saved_bytes, layer_sums, loss_bytes
from trainplan.planner.architectures import build_model
from trainplan.planner.computation import Adapters, AttentionImplementation, Computation
from trainplan.planner.model import Model
from trainplan.planner.models import catalog
from trainplan.planner.trace import Subject, Trace, trace
from trainplan.planner.workload import Precision

pytestmark = pytest.mark.oracle

TOLERANCE = 0.001  # every row is within 0.05 %
SMALL_VOCABULARY = 1024
EAGER = AttentionImplementation.EAGER
FP32 = Precision.FP32
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model of the catalog, cut to a few layers."""

    name: str
    layers: int
    targets: tuple[str, ...]  # of adapters
    overrides: Mapping[str, int] | None = None
    window: int = 0  # a sequence length at which a window applies


LATE = "jamba, attention alone"  # its first attention is in layer 4: nothing before it keeps anything
FAMILIES = {
    "mixtral": Family(
        name="Mixtral-8x7B", layers=2, targets=ATTENTION, overrides={"sliding_window": 1024}, window=1024
    ),
    "qwen2_moe": Family(name="Qwen1.5-MoE-A2.7B", layers=2, targets=ATTENTION),
    "qwen3_moe": Family(name="Qwen3-30B-A3B", layers=3, targets=ATTENTION),
    "deepseek_v2": Family(
        name="DeepSeek-V2-Lite", layers=3, targets=("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    ),
    "deepseek_v3": Family(
        name="DeepSeek-V3", layers=4, targets=("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    ),
    "gpt_oss": Family(name="gpt-oss-20b", layers=3, targets=ATTENTION, window=128),
    "mamba": Family(name="Mamba-2.8B", layers=3, targets=("in_proj",)),
    "jamba": Family(name="Jamba-v0.1", layers=6, targets=("in_proj", "x_proj", "out_proj", "q_proj", "v_proj")),
}
FAMILIES[LATE] = Family(name="Jamba-v0.1", layers=6, targets=ATTENTION)
LORA, DROPPED = Adapters(rank=16), Adapters(rank=16, dropout=0.05)
ALL = 1000  # layers checkpointed: every one
# seq_len, micro_batch, small vocabulary, computation: every pair of choices occurs
DESIGN: tuple[tuple[int, int, bool, Computation], ...] = (
    (512, 1, True, Computation()),
    (2048, 2, False, Computation()),
    (512, 3, True, Computation(checkpointed_layers=ALL)),
    (2048, 1, False, Computation(checkpointed_layers=1, attention=EAGER)),
    (512, 2, True, Computation(attention=EAGER)),
    (2048, 1, True, Computation(precision=FP32, checkpointed_layers=ALL)),
    (512, 2, False, Computation(precision=FP32)),
    (512, 2, True, Computation(adapters=LORA)),
    (2048, 3, True, Computation(adapters=LORA, checkpointed_layers=ALL)),
    (512, 3, False, Computation(adapters=DROPPED, attention=EAGER)),
    (2048, 2, True, Computation(adapters=DROPPED, checkpointed_layers=1)),
    (512, 1, True, Computation(adapters=LORA, precision=FP32)),
    (2048, 1, False, Computation(adapters=LORA, quantized=True)),
    (512, 3, True, Computation(adapters=DROPPED, quantized=True, checkpointed_layers=ALL, attention=EAGER)),
    (2048, 1, True, Computation(loss_chunk=512)),
    (512, 2, False, Computation(adapters=LORA, loss_chunk=256, checkpointed_layers=ALL)),
)
WINDOWED: tuple[tuple[int, bool, Computation], ...] = (
    (2, True, Computation()),
    (1, False, Computation(adapters=LORA, checkpointed_layers=ALL)),
)


def rows() -> Iterator[tuple[str, int, int, bool, Computation]]:
    """Every family with every row of the design that it can run."""
    for key, family in FAMILIES.items():
        for seq_len, micro_batch, small, computation in DESIGN:
            if key == "mamba" and computation.quantized:
                continue  # its fused kernel multiplies with the weights themselves, which 4 bits do not survive
            if key == LATE and computation.adapters is None:
                continue
            yield key, seq_len, micro_batch, small, computation
        if family.window:
            for micro_batch, small, computation in WINDOWED:
                yield key, family.window, micro_batch, small, computation


@cache
def model_of(key: str, small: bool) -> Model:
    """The cut model, with its own vocabulary or a small one."""
    family = FAMILIES[key]
    config = {**catalog()[family.name].config, **(family.overrides or {}), "num_hidden_layers": family.layers}
    if small:
        config["vocab_size"] = SMALL_VOCABULARY
    return build_model(config, name=family.name, source="catalog")


def at(family: Family, computation: Computation) -> Computation:
    """The family's own adapters and depth."""
    adapters = computation.adapters and replace(computation.adapters, targets=family.targets)
    layers = min(computation.checkpointed_layers, family.layers)
    return replace(computation, adapters=adapters, checkpointed_layers=layers)


def predicted(subject: Subject) -> dict[str, int]:
    """What the ledger's lines add up to: the fullest moment, and what is kept between forward and backward."""
    what = (subject.model, subject.computation, subject.seq_len, subject.micro_batch)
    sums, loss = layer_sums(*what), loss_bytes(*what)
    head, constant = head_saved_bytes(*what), constant_bytes(*what)
    base, k = sums.saved + sums.checkpoints + constant, subject.computation.checkpointed_layers
    moments = (
        constant + sums.forward,
        base + head + loss.forward,
        base + head + loss.backward,
        base + sums.transient if k < subject.model.layers else 0,
        constant + sums.checkpoints + sums.segment if k else 0,
    )
    return {"peak": max(moments), "saved": base + head + loss.saved}


def measured(subject: Subject) -> dict[str, int]:
    """The same of the trace; tables that checkpointed layers hold are no saved tensors to the tracer."""
    found: Trace = trace(subject)
    kept = {} if subject.computation.checkpointed_layers else {"saved": found.saved_after_forward_bytes}
    return {"peak": max(found.activation_peak_bytes.values()), **kept}


def name_of(value: object) -> str:
    """A row's name: what differs from the default."""
    if not isinstance(value, Computation):
        return str(value)
    adapters = value.adapters
    parts = (
        adapters and f"lora{adapters.dropout:g}",
        value.quantized and "4bit",
        value.checkpointed_layers and f"ckpt{value.checkpointed_layers}",
        value.attention is EAGER and "eager",
        value.precision is FP32 and "fp32",
        value.loss_chunk and f"chunk{value.loss_chunk}",
    )
    return "+".join(str(part) for part in parts if part) or "full"


@pytest.mark.parametrize(("key", "seq_len", "micro_batch", "small", "computation"), tuple(rows()), ids=name_of)
def test_activations(key: str, seq_len: int, micro_batch: int, small: bool, computation: Computation) -> None:
    """Peak and kept bytes agree with the trace."""
    family = FAMILIES[key]
    subject = Subject(
        model=model_of(key, small), seq_len=seq_len, micro_batch=micro_batch,
        computation=at(family, computation), optimizer_step=False,
    )  # fmt: skip
    forms, traced = predicted(subject), measured(subject)
    errors = {what: forms[what] / size - 1 for what, size in traced.items()}
    assert max(map(abs, errors.values())) <= TOLERANCE, errors
