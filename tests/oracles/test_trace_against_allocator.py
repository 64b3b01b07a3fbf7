"""The tracer against real tensors: torch.profiler's record of every allocation and release on the CPU.

The model has the same code and shapes, random weights and tokens, no dispatch mode and no hooks. Dropout is 0: on the
CPU it is several operators, on CUDA and in the tracer one.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from trainplan.planner.architectures import build_model
from trainplan.planner.computation import AttentionImplementation, Computation
from trainplan.planner.model import Model
from trainplan.planner.trace import Subject, trace
from trainplan.planner.trace.build import checkpoint_first, configuration
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.oracle

SEQ_LEN, MICRO_BATCH = 128, 2
TOKEN_BYTES = 8
TOLERANCE = 0.0005  # loss scalars, positions, the seeds that CUDA's attention returns and the CPU's does not
DEEP: dict[str, object] = {
    "vocab_size": 4000, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, object]] = {
    "llama": DEEP,
    "qwen3": {**DEEP, "head_dim": 32},
    "gemma2": {**DEEP, "head_dim": 32, "query_pre_attn_scalar": 32},
    "qwen3_moe": {
        **DEEP, "head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 192,
        "norm_topk_prob": True,
    },
}  # fmt: skip


def allocated_peak(model: Model, attention: str, checkpointed: int) -> int:
    """The most that a forward and a backward pass hold at once on the CPU, weights and tokens not counted."""
    whole = AutoModelForCausalLM.from_config(configuration(model), dtype=torch.bfloat16, attn_implementation=attention)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.normal_(0, 0.02)
    checkpoint_first(whole.train(), checkpointed)
    tokens = torch.randint(0, model.vocab, (MICRO_BATCH, SEQ_LEN))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loss = whole(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
    return running_peak(recorded)


def running_peak(recorded: Any) -> int:
    """The largest sum of allocations less releases."""
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


@pytest.mark.parametrize("checkpointed", [0, 2], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("family", MODELS)
def test_peak_is_what_the_allocator_saw(family: str, checkpointed: int) -> None:
    """Gradients and activations of the trace peak at what real tensors take."""
    model = build_model({"model_type": family, **MODELS[family]}, name=family, source="tests")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.profiler")  # reason: says it has no GPU
        real = allocated_peak(model, "eager" if family == "gemma2" else "sdpa", checkpointed)
    computation = Computation(attention=AttentionImplementation.FLASH, checkpointed_layers=checkpointed)
    found = trace(
        Subject(model=model, seq_len=SEQ_LEN, micro_batch=MICRO_BATCH, computation=computation, optimizer_step=False)
    )
    states = found.parameter_bytes + found.buffer_bytes + TOKEN_BYTES * SEQ_LEN * MICRO_BATCH
    assert max(found.peak_bytes.values()) - states == pytest.approx(real, rel=TOLERANCE)
