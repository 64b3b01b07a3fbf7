"""Activation memory by hand, and the laws it obeys."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainplan.planner.activations import (
    backward_transient_bytes,
    block_saved_bytes,
    certainty,
    checkpoint_bytes,
    constant_bytes,
    head_saved_bytes,
    layer_sums,
    loss_bytes,
)
from trainplan.planner.activations.inputs import Role, readers
from trainplan.planner.architectures import build_model
from trainplan.planner.computation import Adapters, AttentionImplementation, Computation
from trainplan.planner.ledger import Certainty
from trainplan.planner.model import Model
from trainplan.planner.workload import Precision

FLASH_STATE = 24  # bytes a flash call keeps of its random numbers
EFFICIENT_STATE = 16


def model(kind: str, **keys: object) -> Model:
    """A model from config.json keys."""
    return build_model({"model_type": kind, **keys}, name=kind, source="test")


LLAMA = model(
    "llama", hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    intermediate_size=14336, vocab_size=128256,
)  # fmt: skip
GPT2 = model("gpt2", n_embd=768, n_layer=12, n_head=12, vocab_size=50257)
NEOX = model(
    "gpt_neox", hidden_size=1024, num_hidden_layers=4, num_attention_heads=16, intermediate_size=4096, vocab_size=50304
)
GEMMA2 = model(
    "gemma2", hidden_size=2304, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
    intermediate_size=9216, vocab_size=256000,
)  # fmt: skip
MISTRAL = model(
    "mistral", hidden_size=4096, num_hidden_layers=4, num_attention_heads=32, num_key_value_heads=8,
    intermediate_size=14336, vocab_size=32000, sliding_window=1024,
)  # fmt: skip
MIXTRAL = model(
    "mixtral", hidden_size=4096, num_hidden_layers=4, num_attention_heads=32, num_key_value_heads=8,
    intermediate_size=14336, vocab_size=32000, num_local_experts=8, num_experts_per_tok=2,
)  # fmt: skip
MAMBA = model("mamba", hidden_size=256, num_hidden_layers=2, vocab_size=1000)
EVERY = (LLAMA, GPT2, NEOX, GEMMA2, MISTRAL, MIXTRAL, MAMBA)

FULL = Computation()
EAGER = Computation(attention=AttentionImplementation.EAGER)


def lora(*targets: str, rank: int = 16, dropout: float = 0.0) -> Computation:
    """LoRA on some projections, or on all."""
    return Computation(adapters=Adapters(rank=rank, targets=targets, dropout=dropout))


def saved(which: Model, computation: Computation, seq_len: int, micro_batch: int = 1) -> int:
    """Saved bytes of the last layer."""
    return block_saved_bytes(which, which.blocks[-1], computation, seq_len, micro_batch)


def test_llama_layer() -> None:
    """16 h + 8 + 4 qd + 4 kvd + 4 a + 8 f bytes per token with flash attention."""
    per_token = 16 * 4096 + 8 + 4 * 4096 + 4 * 1024 + 4 * 32 + 8 * 14336
    assert saved(LLAMA, FULL, 2048, 2) == per_token * 4096 + FLASH_STATE


def test_llama_layer_eager() -> None:
    """Eager attention keeps keys and values of all heads, a copied output, and 6 a s for the softmax and its copy."""
    per_token = 16 * 4096 + 8 + 8 * 4096 + 8 * 14336 + 6 * 32 * 512
    assert saved(LLAMA, EAGER, 512, 2) == per_token * 1024


def test_lora_keeps_each_input_once() -> None:
    """8 h + 8 + attention + 6 f frozen; the input of q and v once, and 2 r for each of the two adapters."""
    frozen = 8 * 4096 + 8 + 4 * 4096 + 4 * 1024 + 4 * 32 + 6 * 14336
    assert saved(LLAMA, lora("q_proj", "v_proj", rank=8), 512) == (frozen + 2 * 4096 + 2 * 2 * 8) * 512 + FLASH_STATE


def test_lora_on_output_costs_only_its_rank() -> None:
    """The output projection reads what flash attention keeps anyway."""
    without, with_output = saved(LLAMA, lora("q_proj"), 512), saved(LLAMA, lora("q_proj", "o_proj"), 512)
    assert with_output - without == 2 * 16 * 512


def test_lora_dropout_copies_for_each_adapter() -> None:
    """With dropout every adapter keeps its own copy (2 bytes) and mask (1 byte) of its input."""
    frozen = 8 * 4096 + 8 + 4 * 4096 + 4 * 1024 + 4 * 32 + 6 * 14336
    computation = lora("q_proj", "v_proj", rank=8, dropout=0.1)
    assert saved(LLAMA, computation, 512) == (frozen + 2 * 3 * 4096 + 2 * 2 * 8) * 512 + FLASH_STATE


def test_gpt2_layer() -> None:
    """18 h + 16 + 4 a + 10 f: two layer norms, fused qkv, two dropout masks, GELU as six operations."""
    per_token = 18 * 768 + 16 + 4 * 12 + 10 * 3072
    assert saved(GPT2, FULL, 1024) == per_token * 1024 + FLASH_STATE


def test_neox_layer() -> None:
    """20 h + 16 + 4 a + 4 f: one residual for both norms, values that hold the fused projection, a copied output."""
    per_token = 20 * 1024 + 16 + 4 * 16 + 4 * 4096
    assert saved(NEOX, FULL, 512) == per_token * 512 + FLASH_STATE


def test_gemma2_layer() -> None:
    """36 h + 16 + 8 qd + 8 f + 8 a s, and 1 + weight in fp32 for each of four norms; soft-capping forces eager."""
    per_token = 36 * 2304 + 16 + 8 * 2048 + 8 * 9216 + 8 * 8 * 1024
    assert saved(GEMMA2, FULL, 1024, 2) == per_token * 2048 + 4 * 4 * 2304


def test_window_costs_a_mask_and_expanded_heads() -> None:
    """From the window's length on each layer keeps a bias of 2 s^2 bytes, and keys and values of all heads."""
    flash = 16 * 4096 + 8 + 4 * 4096 + 4 * 1024 + 4 * 32 + 8 * 14336
    assert saved(MISTRAL, FULL, 1023) == flash * 1023 + FLASH_STATE
    masked = flash - 4 * 1024 + 4 * 4096
    assert saved(MISTRAL, FULL, 1024, 2) == masked * 2048 + 2 * 2 * 1024**2 + EFFICIENT_STATE


def test_padding_costs_a_bias_and_expanded_heads() -> None:
    """A batch of unequal lengths has a mask: flash gives way, and checkpointed layers hold each sequence's mask."""
    padded = replace(FULL, padded=True)
    flash = 16 * 4096 + 8 + 4 * 4096 + 4 * 1024 + 4 * 32 + 8 * 14336
    assert saved(LLAMA, padded, 512, 2) == (flash - 4 * 1024 + 4 * 4096) * 1024 + 2 * 2 * 512**2 + EFFICIENT_STATE
    held = constant_bytes(LLAMA, replace(padded, checkpointed_layers=32), 512, 2)
    assert held == 4 * 128 * 512 + 8 * 512 * 2 + 2 * 512**2


def test_falcons_single_key_is_composed() -> None:
    """CUDA's kernels refuse one key-value head for many queries: all scores in fp32, as torch composes them."""
    falcon = model("falcon", hidden_size=4544, num_hidden_layers=2, num_attention_heads=71, vocab_size=1000)
    short, long = (saved(falcon, FULL, s) / s for s in (512, 1024))
    assert (long - short) / 512 == 4 * 71  # softmax


def test_forward_holds_the_embedding() -> None:
    """Llama's layers keep fp32 copies; the embedding's own result lives through the forward pass."""
    assert layer_sums(LLAMA, FULL, 512, 1).passing == 2 * 4096 * 512
    assert layer_sums(LLAMA, replace(FULL, checkpointed_layers=1), 512, 1).passing == 0


def test_mixture_rows() -> None:
    """Each of k rows keeps its input, gate, up, activation, product, output, fp32 weight and three indices."""
    attention = 12 * 4096 + 8 + 4 * 4096 + 4 * 1024 + 4 * 32 + 4 * 4096  # the MLP's input included
    row = 4 * 4096 + 8 * 14336 + 4 + 3 * 8
    router = 4 * 8 + 8 * 2 + 4 + 4 * 2
    assert saved(MIXTRAL, FULL, 512) == (attention + 2 * row + router) * 512 + FLASH_STATE + 4 * 8


def test_fp32_llama_keeps_no_casts() -> None:
    """In fp32 a multi-head layer keeps 24 h + 8 + 16 qd + 4 a + 16 f: the residual itself, no 16-bit copies."""
    tiny = model(
        "llama", hidden_size=512, num_hidden_layers=2, num_attention_heads=8, intermediate_size=1024, vocab_size=1000
    )
    per_token = 24 * 512 + 8 + 16 * 512 + 4 * 8 + 16 * 1024
    computation = Computation(precision=Precision.FP32)
    assert saved(tiny, computation, 256) == per_token * 256 + EFFICIENT_STATE


def test_backward_of_a_gated_mlp() -> None:
    """2 h + 4 f when the down projection is trained; 2 h + 6 f when it is frozen and its input was not kept."""
    block = LLAMA.blocks[0]
    assert backward_transient_bytes(LLAMA, block, FULL, 512, 1) == (2 * 4096 + 4 * 14336) * 512
    assert backward_transient_bytes(LLAMA, block, lora("q_proj"), 512, 1) == (2 * 4096 + 6 * 14336) * 512


def test_backward_of_mixtral_gathers_rows() -> None:
    """2 h + 14 k h: three fp32 copies of the rows and their cast back; without the cast when recomputed.

    By then the order of the rows (8 k) has been used.
    """
    block, order = MIXTRAL.blocks[0], 8 * 2
    assert backward_transient_bytes(MIXTRAL, block, FULL, 512, 1) == (2 * 4096 + 14 * 2 * 4096 - order) * 512
    sums = layer_sums(MIXTRAL, replace(FULL, checkpointed_layers=4), 512, 1)
    assert sums.segment == saved(MIXTRAL, FULL, 512) + (2 * 4096 + 12 * 2 * 4096 - order) * 512


def test_head_and_loss() -> None:
    """Final norm and head input 10 h + 4 less 2 h; logits 10 V forward, 4 V kept, 12 V backward."""
    tokens = 1024
    assert head_saved_bytes(LLAMA, FULL, 512, 2) == (8 * 4096 + 4) * tokens
    assert head_saved_bytes(LLAMA, lora(), 512, 2) == (4 * 4096 + 4) * tokens
    loss = loss_bytes(LLAMA, FULL, 512, 2)
    assert (loss.forward, loss.saved, loss.backward) == tuple(n * 128256 * tokens for n in (10, 4, 12))


def test_soft_capped_logits_are_kept_once_more() -> None:
    """Gemma-2 keeps tanh(logits) in 16 bit."""
    loss = loss_bytes(GEMMA2, FULL, 512, 1)
    assert (loss.forward, loss.saved, loss.backward) == tuple(n * 256000 * 512 for n in (12, 6, 14))


def test_fp32_loss_makes_no_copy() -> None:
    """In fp32 the logits are not cast: 8 V forward."""
    assert loss_bytes(LLAMA, Computation(precision=Precision.FP32), 512, 1).forward == 8 * 128256 * 512


def test_chunked_loss() -> None:
    """One chunk's logits at a time, the gradient of the head's input, a loss and a flag of each token.

    The gradient is kept in the place of the head's input; a chunk is never more than all tokens.
    """
    loss = loss_bytes(LLAMA, Computation(loss_chunk=1024), 4096, 1)
    assert loss.forward == 2 * 128256 * 1024 + (2 * 4096 + 4 + 1) * 4096
    assert loss.saved == 0
    whole = loss_bytes(LLAMA, Computation(loss_chunk=10**6), 512, 1)
    assert whole.forward == 2 * 128256 * 512 + (2 * 4096 + 4 + 1) * 512


def test_final_norm_takes_over_where_the_loss_is_small() -> None:
    """With a chunked loss the final norm's backward, 24 h of which 8 h + 4 are counted with the head, is the peak."""
    loss = loss_bytes(LLAMA, Computation(loss_chunk=1024), 4096, 1)
    assert loss.backward == (24 * 4096 - (8 * 4096 + 4)) * 4096


def test_constants() -> None:
    """Rotary tables 4 d s, shifted labels; checkpointed windowed layers hold their boolean mask."""
    assert constant_bytes(LLAMA, FULL, 512, 2) == 4 * 128 * 512 + 8 * 512 * 2
    held = constant_bytes(MISTRAL, replace(FULL, checkpointed_layers=4), 1024, 1)
    assert held == 4 * 128 * 1024 + 8 * 1025 + 1024**2


def test_gpt2_embedding_dropout() -> None:
    """GPT-2 keeps the embedding's dropout mask, and has no rotary tables."""
    assert constant_bytes(GPT2, FULL, 1024, 2) == 8 * 1024 * 2 + 768 * 2048


def test_all_checkpointed() -> None:
    """L inputs are kept; a Llama segment is a whole layer, for its checkpoint is no part of what the layer keeps."""
    sums = layer_sums(LLAMA, replace(FULL, checkpointed_layers=32), 512, 1)
    assert (sums.saved, sums.transient) == (0, 0)
    assert sums.checkpoints == 32 * checkpoint_bytes(LLAMA, FULL, 512, 1) == 32 * 2 * 4096 * 512
    assert sums.segment == saved(LLAMA, FULL, 512) + (2 * 4096 + 4 * 14336) * 512
    assert sums.first == sums.segment + 2 * 4096 * 512


def test_layer_norm_input_is_the_checkpoint() -> None:
    """A layer norm keeps its input as it came, so a recomputed segment does not count it again."""
    sums = layer_sums(NEOX, replace(FULL, checkpointed_layers=4), 512, 1)
    transient = backward_transient_bytes(NEOX, NEOX.blocks[0], FULL, 512, 1)
    assert sums.segment == saved(NEOX, FULL, 512) - 2 * 1024 * 512 + transient


def test_some_checkpointed() -> None:
    """The first k layers keep their input, the others everything."""
    sums = layer_sums(LLAMA, replace(FULL, checkpointed_layers=20), 512, 1)
    assert sums.saved == 12 * saved(LLAMA, FULL, 512)
    assert sums.checkpoints == 20 * 2 * 4096 * 512
    assert sums.transient == (2 * 4096 + 4 * 14336) * 512


def test_checkpoints_on_the_host_come_back() -> None:
    """An offloaded input is on the GPU while its layer is recomputed."""
    here = layer_sums(LLAMA, replace(FULL, checkpointed_layers=32), 512, 1)
    away = layer_sums(LLAMA, replace(FULL, checkpointed_layers=32, checkpoints_on_host=True), 512, 1)
    assert away.segment - here.segment == 2 * 4096 * 512


def test_first_layer_under_lora() -> None:
    """With frozen embeddings and no checkpoint layer 0 keeps nothing for its first norm: 4 h + 4 less."""
    sums = layer_sums(LLAMA, lora("q_proj"), 512, 1)
    assert sums.saved == 32 * saved(LLAMA, lora("q_proj"), 512) - (4 * 4096 + 4) * 512
    checkpointed = layer_sums(LLAMA, replace(lora("q_proj"), checkpointed_layers=1), 512, 1)
    assert checkpointed.saved == 31 * saved(LLAMA, lora("q_proj"), 512)


def test_readers() -> None:
    """Projections that share an input are known by their place in their module, whatever a family calls them."""
    by_name = {r.weight.name: r.role for r in readers(GPT2.blocks[0])}
    assert by_name == {
        "attn.c_attn.weight": Role.ATTENTION_IN,
        "attn.c_proj.weight": Role.ATTENTION_OUT,
        "mlp.c_fc.weight": Role.MLP_IN,
        "mlp.c_proj.weight": Role.PRODUCT,
    }


def test_certainty() -> None:
    """Every family was traced, state-space layers with stand-ins for their kernels."""
    assert certainty(LLAMA) is Certainty.TRACED
    assert certainty(MAMBA) is Certainty.TRACED


def test_mamba_keeps_a_started_chunk_whole() -> None:
    """8 D N bytes for each 2,048 tokens that a sequence begins: h = 256, D = 512, N = 16; nothing else jumps."""
    step = saved(MAMBA, FULL, 2048) - saved(MAMBA, FULL, 2047)
    assert saved(MAMBA, FULL, 2049) - saved(MAMBA, FULL, 2048) == step + 8 * 512 * 16
    assert saved(MAMBA, FULL, 2049, 3) - saved(MAMBA, FULL, 2048, 3) == 3 * (step + 8 * 512 * 16)


def test_mamba_residual_is_fp32() -> None:
    """Checkpoints of Mamba hold 4 h bytes a token, the first one, the embedding's result, 2 h."""
    sums = layer_sums(MAMBA, replace(FULL, checkpointed_layers=2), 512, 1)
    assert checkpoint_bytes(MAMBA, FULL, 512, 1) == 4 * 256 * 512
    assert sums.checkpoints == (4 + 2) * 256 * 512


MODELS = st.sampled_from(EVERY)
LENGTHS = st.integers(1, 2048)
BATCHES = st.integers(1, 4)
COMPUTATIONS = st.sampled_from((FULL, EAGER, lora(), lora(dropout=0.1), Computation(precision=Precision.FP16)))


def everything(which: Model, computation: Computation, seq_len: int, micro_batch: int) -> list[int]:
    """Every amount of one micro-batch."""
    shape = (seq_len, micro_batch)
    sums, loss = layer_sums(which, computation, *shape), loss_bytes(which, computation, *shape)
    return [
        sums.saved, sums.checkpoints, sums.segment, sums.transient, sums.first, loss.forward, loss.saved, loss.backward,
        head_saved_bytes(which, computation, *shape),
    ]  # fmt: skip


@given(which=MODELS, computation=COMPUTATIONS, seq_len=LENGTHS, micro_batch=BATCHES, k=st.integers(0, 4))
def test_more_tokens_never_fewer_bytes(
    which: Model, computation: Computation, seq_len: int, micro_batch: int, k: int
) -> None:
    """A longer sequence or one more sequence never shrinks any amount."""
    chosen = replace(computation, checkpointed_layers=min(k, which.layers))
    before = everything(which, chosen, seq_len, micro_batch)
    for after in (
        everything(which, chosen, seq_len + 1, micro_batch),
        everything(which, chosen, seq_len, micro_batch + 1),
    ):
        assert all(small <= large for small, large in zip(before, after, strict=True))


@given(which=MODELS, computation=COMPUTATIONS, seq_len=LENGTHS, micro_batch=BATCHES, k=st.integers(0, 11))
def test_checkpointing_never_keeps_more(
    which: Model, computation: Computation, seq_len: int, micro_batch: int, k: int
) -> None:
    """One more checkpointed layer never makes the loss phase fuller."""
    k = min(k, which.layers - 1)
    fewer = layer_sums(which, replace(computation, checkpointed_layers=k), seq_len, micro_batch)
    more = layer_sums(which, replace(computation, checkpointed_layers=k + 1), seq_len, micro_batch)
    assert more.saved + more.checkpoints <= fewer.saved + fewer.checkpoints


@given(which=st.sampled_from(EVERY[:-1]), seq_len=LENGTHS, micro_batch=BATCHES, rank=st.integers(1, 64))
def test_lora_never_keeps_more_than_full(which: Model, seq_len: int, micro_batch: int, rank: int) -> None:
    """A frozen base keeps no more than a trained one; the adapters' own r inner values come on top.

    Not so Mamba: adapters inside its mixer take its one fused function apart.
    """
    computation = lora(rank=rank)
    assert computation.adapters is not None
    for block, _ in which.distinct_blocks:
        inner = 2 * rank * len(computation.adapters.adapted(block)) * seq_len * micro_batch
        frozen = block_saved_bytes(which, block, computation, seq_len, micro_batch)
        assert frozen - inner <= block_saved_bytes(which, block, FULL, seq_len, micro_batch)


@pytest.mark.parametrize("which", EVERY, ids=lambda m: m.name)
def test_half_precisions_are_alike(which: Model) -> None:
    """fp16 keeps what bf16 keeps."""
    half = Computation(precision=Precision.FP16)
    assert everything(which, half, 512, 2) == everything(which, FULL, 512, 2)
