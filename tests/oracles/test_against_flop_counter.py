"""FLOPs of `compute_work` against torch's FlopCounterMode on transformers' models without weights (meta tensors).

Known differences, each accounted for below: the counter sees attention as a full square, where `compute_work` counts
what a causal kernel computes; and it does not know grouped multiplications (experts).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from trainplan.planner.architectures import build_model
from trainplan.planner.computation import Adapters, AttentionImplementation, Computation
from trainplan.planner.compute import attended_keys, compute_work
from trainplan.planner.model import (
    Attention,
    Block,
    Mlp,
    MlpKind,
    Model,
    NormStyle,
    Parameter,
    ParameterKind,
    linear,
)
from trainplan.planner.work import Resource, When

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.oracle

SEQ_LEN = 64
MICRO_BATCH = 2
TOKENS = SEQ_LEN * MICRO_BATCH
LLAMA: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "num_hidden_layers": 3,
}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 96, "n_positions": SEQ_LEN}
# transformers 5.23 renames gradient to activation checkpointing; peft 0.21.2 still asks by the old name.
RENAMED = "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
EAGER = Computation(attention=AttentionImplementation.EAGER)


def gpt2() -> Model:
    """GPT-2 of the sizes above, by hand: one qkv projection, dropout behind each sub-layer, tied head."""
    hidden, vocab = 64, 96
    block = Block(
        parameters=(
            *linear("attn.c_attn", hidden, 3 * hidden, bias=True),
            *linear("attn.c_proj", hidden, hidden, bias=True),
            *linear("mlp.c_fc", hidden, 4 * hidden, bias=True),
            *linear("mlp.c_proj", 4 * hidden, hidden, bias=True),
        ),
        norm=NormStyle.LAYER,
        hidden_dropout=0.1,
        attention=Attention(heads=4, kv_heads=4, head_dim=16, fused_qkv=True, dropout=0.1),
        mlp=Mlp(kind=MlpKind.PLAIN, activation="gelu_new", intermediate=4 * hidden),
    )
    table = Parameter(name="wte.weight", shape=(vocab, hidden), kind=ParameterKind.EMBEDDING)
    return Model(
        name="gpt2",
        family="gpt2",
        hidden=hidden,
        vocab=vocab,
        tied=True,
        embedding=(table,),
        blocks=(block,) * 3,
        head=(),
        final_norm=NormStyle.LAYER,
    )


def planned(config: dict[str, object]) -> Model:
    """trainplan's model of a config."""
    if config["model_type"] == "gpt2":
        return gpt2()
    return build_model(config, name="tiny", source="test")


@pytest.fixture(autouse=True)
def _meta_masks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """transformers reads the positions' values to find packed sequences, which meta tensors do not have."""
    import transformers.masking_utils as masking

    monkeypatch.setattr(masking, "find_packed_sequence_indices", lambda position_ids: None)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    yield
    logging.disable(before)


def real(config: dict[str, object], attention: str = "eager") -> Any:
    """transformers' model of a config, without weights."""
    keys = dict(config)
    settings = transformers.AutoConfig.for_model(keys.pop("model_type"), use_cache=False, **keys)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            settings, dtype=torch.bfloat16, attn_implementation=attention
        )
    model.train()
    return model


def counted(model: Any) -> tuple[int, int]:
    """FLOPs of one forward and of one backward."""
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.zeros((MICRO_BATCH, SEQ_LEN), dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=ids, labels=ids).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def ours(model: Model, computation: Computation) -> tuple[float, float]:
    """FLOPs of forward and backward as planned."""
    work = compute_work(model, computation, SEQ_LEN, MICRO_BATCH)
    flops = [w for w in work if w.resource in (Resource.MATMUL, Resource.ATTENTION)]
    forward = sum(w.amount for w in flops if w.when is When.FORWARD)
    return forward, sum(w.amount for w in flops) - forward


@pytest.mark.parametrize("config", [LLAMA, {**LLAMA, "model_type": "qwen2"}, GPT2], ids=lambda c: c["model_type"])
def test_full_training(config: dict[str, object]) -> None:
    """Forward and backward FLOPs of full training are the counter's, to the FLOP."""
    assert ours(planned(config), EAGER) == counted(real(config))


def test_tied_head() -> None:
    """A tied lm_head multiplies like one of its own."""
    config = {**LLAMA, "tie_word_embeddings": True}
    assert ours(planned(config), EAGER) == counted(real(config))


@pytest.mark.filterwarnings(RENAMED)
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda c: c["model_type"])
def test_checkpointing(config: dict[str, object]) -> None:
    """Recomputing all layers repeats their forward; Llama's down_proj is left out, GPT-2's dropout forces its own."""
    model = real(config)
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    assert ours(planned(config), replace(EAGER, checkpointed_layers=3)) == counted(model)


@pytest.mark.filterwarnings(RENAMED)
def test_lora() -> None:
    """LoRA multiplies by the adapters and takes no gradient of base weights."""
    peft = pytest.importorskip("peft")
    model = real(LLAMA)
    model.enable_input_require_grads()  # else autograd skips the input gradients in front of the first adapter
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(r=8, target_modules=["q_proj", "down_proj"], lora_dropout=0.0, task_type="CAUSAL_LM"),
        autocast_adapter_dtype=False,
    ).to(torch.bfloat16)
    computation = replace(EAGER, adapters=Adapters(rank=8, targets=("q_proj", "down_proj")))
    assert ours(planned(LLAMA), computation) == counted(adapted)


def test_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flash kernel's backward is 2.5 times its forward; `compute_work` counts the causal half of the square."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention

    def attend(query: Any, key: Any, value: Any, **options: Any) -> Any:
        return flash(query, key, value, 0.0, True)[0]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    model = planned(LLAMA)
    work = compute_work(model, Computation(), SEQ_LEN, MICRO_BATCH)
    square = SEQ_LEN / attended_keys(SEQ_LEN)
    totals = dict.fromkeys(When, 0.0)
    for item in work:
        if item.resource in (Resource.MATMUL, Resource.ATTENTION):
            totals[item.when] += item.amount * (square if item.resource is Resource.ATTENTION else 1.0)
    assert (totals[When.FORWARD], totals[When.BACKWARD]) == pytest.approx(counted(real(LLAMA, "sdpa")), rel=1e-12)


def test_mixture_of_experts() -> None:
    """A mixture costs what the counter sees plus the grouped multiplications that it does not."""
    config = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    weights_of_two_experts = 2 * 3 * 64 * 160
    grouped = 3 * 2 * TOKENS * weights_of_two_experts  # 3 layers x 2 FLOPs per weight and token
    forward, backward = counted(real(config))
    assert ours(planned(config), EAGER) == (forward + grouped, backward + 2 * grouped)
