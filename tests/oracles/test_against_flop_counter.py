"""FLOPs of `compute_work` against torch's FlopCounterMode on transformers' models without weights: every family.

The models are those that `trainplan.planner.trace` builds, on meta tensors and with CUDA's choice of attention kernel.
The counter misses and overcounts, each accounted for here:

    attention kernels      counted as a full square: ours, which is what a causal kernel computes, is scaled to it
    grouped matmul         unknown to it: its shapes are counted by `grouped`, below
    convolutions           of state-space mixers: the stand-ins of `planner/trace/kernels.py` hide them; not in ours
    selective scans        no multiplications of matrices: ours has them as bytes

Not compared: adapters on OPT-350M's two projections around its layers, where peft's "all-linear" puts them and
trainplan does not; here modules are named. Not traced: QLoRA of Mamba, whose fused function reads weights that would be
packed; trainplan refuses it. Mixtures take adapters on their attention alone, as `default_targets` says.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from trainplan.planner.architectures import RECIPES, build_model
from trainplan.planner.computation import Adapters, AttentionImplementation, Computation, default_targets, module_name
from trainplan.planner.compute import attended_keys, compute_work
from trainplan.planner.model import Model
from trainplan.planner.work import Resource, When, Work

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.oracle

SEQ_LEN, MICRO_BATCH, CHUNK = 64, 2, 48
WIDTHS: dict[str, object] = {"vocab_size": 1024, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = WIDTHS | {"intermediate_size": 160, "num_key_value_heads": 2}
GPT = {"vocab_size": 1024, "n_positions": SEQ_LEN, "n_embd": 64, "n_layer": 3, "n_head": 4}
MIXTURE = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
WINDOW = {"sliding_window": 16}
LATENT = WIDTHS | MIXTURE | {
    "intermediate_size": 160, "num_key_value_heads": 4, "n_routed_experts": 8, "n_shared_experts": 2,
    "first_k_dense_replace": 1, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
CONFIGS: dict[str, dict[str, object]] = {
    "llama": LLAMA,
    "mistral": LLAMA | WINDOW,
    "mixtral": LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": LLAMA | {"tie_word_embeddings": True},
    "qwen3": LLAMA | {"head_dim": 24},
    "qwen2_moe": LLAMA | MIXTURE | {"num_experts": 4, "shared_expert_intermediate_size": 48, "mlp_only_layers": [1]},
    "qwen3_moe": LLAMA | MIXTURE | {"num_experts": 4, "head_dim": 24},
    "gemma": LLAMA | {"head_dim": 24},
    "gemma2": LLAMA | WINDOW | {"head_dim": 24},
    "gemma3_text": LLAMA | WINDOW | {"head_dim": 24, "sliding_window_pattern": 3},
    "phi": LLAMA,
    "phi3": LLAMA | {"pad_token_id": 0},
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 8},
    "gpt_neox": WIDTHS | {"intermediate_size": 160},
    "opt": WIDTHS | {"ffn_dim": 160, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    "bloom": {"vocab_size": 1024, "hidden_size": 64, "n_layer": 3, "n_head": 4},
    "falcon": WIDTHS | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "mpt": {"vocab_size": 1024, "d_model": 64, "n_heads": 4, "n_layers": 3},
    "starcoder2": LLAMA | WINDOW,
    "olmo2": LLAMA,
    "deepseek_v2": LATENT | {"q_lora_rank": None},
    "deepseek_v3": LATENT | {"q_lora_rank": 24},
    "gpt_oss": LLAMA
    | WINDOW
    | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
    | {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    "mamba": {"vocab_size": 1024, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 8, "time_step_rank": 8},
    "jamba": LLAMA
    | {"attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2}
    | {"expert_layer_period": 3, "expert_layer_offset": 2, "mamba_dt_rank": 8, "mamba_d_state": 8},
}
FAMILIES = tuple(CONFIGS)
SDPA = Computation()
EAGER = Computation(attention=AttentionImplementation.EAGER)
FULL = {
    "eager": EAGER,
    "sdpa": SDPA,
    "chunked": replace(SDPA, loss_chunk=CHUNK),
    "one layer checkpointed": replace(EAGER, checkpointed_layers=1),
    "all layers checkpointed": replace(SDPA, checkpointed_layers=3),
}
ADAPTED = {
    "eager": EAGER,
    "sdpa, chunked": replace(SDPA, loss_chunk=CHUNK),
    "one layer checkpointed": replace(SDPA, checkpointed_layers=1),
    "all layers checkpointed": replace(EAGER, checkpointed_layers=3),
    "quantised": replace(SDPA, quantized=True),
    "quantised, checkpointed": replace(EAGER, quantized=True, checkpointed_layers=3),
}
RANK = 8


@cache
def model_of(family: str, tied: bool | None = None) -> Model:
    """trainplan's model of a family's config."""
    head = {} if tied is None else {"tie_word_embeddings": tied}
    return build_model({"model_type": family, **CONFIGS[family], **head}, name="tiny", source="test")


def grouped(rows: Any, weights: Any, *_: object, out_shape: object = None, **__: object) -> int:
    """FLOPs of a grouped multiplication: each row meets one expert's matrix; for its gradient each pair of rows."""
    return 2 * int(rows[0]) * int(rows[1]) * int(weights[-1])


def counted(model: Model, computation: Computation) -> tuple[int, int]:
    """FLOPs of one forward and of one backward of transformers' model."""
    from torch.utils.flop_counter import FlopCounterMode
    from trainplan.planner.trace.build import built, quiet
    from trainplan.planner.trace.gpu import dispatched
    from trainplan.planner.trace.run import loss_of

    mapping = {torch.ops.aten._grouped_mm: grouped}
    inputs = torch.zeros((MICRO_BATCH, SEQ_LEN), dtype=torch.long, device="meta")
    with quiet(), dispatched(model):
        whole = built(model, computation)
        with FlopCounterMode(display=False, custom_mapping=mapping) as forward:
            loss = loss_of(whole, inputs, computation.loss_chunk)
        with FlopCounterMode(display=False, custom_mapping=mapping) as backward:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def flops(work: Work) -> float:
    """FLOPs of one amount of work, attention kernels as if they computed the whole square."""
    if work.resource is Resource.ATTENTION and work.shape is not None:
        return work.amount * SEQ_LEN / attended_keys(SEQ_LEN, work.shape[1])
    return work.amount if work.resource is Resource.MATMUL else 0.0


def ours(model: Model, computation: Computation) -> tuple[float, float]:
    """FLOPs of forward and backward as planned."""
    totals = dict.fromkeys(When, 0.0)
    for work in compute_work(model, computation, SEQ_LEN, MICRO_BATCH):
        totals[work.when] += flops(work)
    return totals[When.FORWARD], totals[When.BACKWARD]


def equal(model: Model, computation: Computation) -> None:
    """To the FLOP, but for the rounding of the square."""
    assert ours(model, computation) == pytest.approx(counted(model, computation), rel=1e-12)


def targets_of(family: str) -> tuple[str, ...]:
    """Modules that take adapters, one by one."""
    model = model_of(family)
    adapters = Adapters(targets=default_targets(model))
    names = (module_name(p) for block, _ in model.distinct_blocks for p in adapters.adapted(block))
    return tuple(dict.fromkeys(names))


def test_every_family_is_here() -> None:
    """A new architecture needs a config above; gemma3 is gemma3_text with a picture's encoder beside it."""
    assert set(RECIPES) - set(FAMILIES) <= {"gemma3"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", FULL)
def test_full_training(family: str, case: str) -> None:
    """Full training, with both kinds of attention and loss, and with recomputation."""
    equal(model_of(family), FULL[case])


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "jamba"])
@pytest.mark.parametrize("tied", [True, False])
def test_heads(family: str, tied: bool) -> None:
    """A tied lm_head multiplies like one of its own."""
    equal(model_of(family, tied), SDPA)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", ADAPTED)
def test_adapters_everywhere(family: str, case: str) -> None:
    """No gradient of a frozen weight, none in front of the first adapter, all of them with recomputation."""
    if family == "mamba" and "quantised" in case:
        pytest.skip("trainplan refuses it, and it cannot be traced")
    adapters = Adapters(rank=RANK, targets=targets_of(family))
    equal(model_of(family), replace(ADAPTED[case], adapters=adapters))


@pytest.mark.parametrize(("family", "target"), [(family, name) for family in FAMILIES for name in targets_of(family)])
def test_adapters_on_one_module(family: str, target: str) -> None:
    """Wherever the first adapter is, what autograd skips in front of it is left out, and nothing else."""
    adapters = Adapters(rank=RANK, targets=(target,))
    for computation in (EAGER, SDPA):
        equal(model_of(family), replace(computation, adapters=adapters))
