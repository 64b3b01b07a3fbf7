"""planner/compute.py: amounts of work of one micro-step, by hand arithmetic on a small model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trainplan.planner.computation import Adapters, AttentionImplementation, Computation
from trainplan.planner.compute import (
    ADAPTER,
    CROSS_ENTROPY,
    DEQUANTISATION,
    ELEMENTWISE,
    INPUT_GRADIENTS,
    LOSS,
    MATMULS,
    RECOMPUTE,
    WEIGHT_GRADIENTS,
    attended_keys,
    compute_work,
    model_flops_per_token,
)
from trainplan.planner.elementwise import CHUNKED, COMPILED, LIGER
from trainplan.planner.model import (
    Attention,
    Block,
    Mlp,
    MlpKind,
    Model,
    NormStyle,
    Parameter,
    ParameterKind,
    StateSpace,
    linear,
)
from trainplan.planner.work import Resource, When, Work

HIDDEN, FFN, VOCAB, LAYERS = 256, 512, 1000, 4
SEQ_LEN, MICRO_BATCH = 128, 2
TOKENS = 128 * 2
BLOCK = Block(
    parameters=(
        *linear("self_attn.q_proj", 256, 256),
        *linear("self_attn.k_proj", 256, 128),
        *linear("self_attn.v_proj", 256, 128),
        *linear("self_attn.o_proj", 256, 256),
        *linear("mlp.gate_proj", 256, 512),
        *linear("mlp.up_proj", 256, 512),
        *linear("mlp.down_proj", 512, 256),
    ),
    norm=NormStyle.RMS,
    attention=Attention(heads=4, kv_heads=2, head_dim=64, rope_dim=64),
    mlp=Mlp(kind=MlpKind.GATED, activation="silu", intermediate=512),
)
LAYER_WEIGHTS = 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512
HEAD_WEIGHTS = 256 * 1000


def model(block: Block = BLOCK, layers: int = LAYERS) -> Model:
    """A Llama-like model with a head of its own."""
    return Model(
        name="small",
        family="llama",
        hidden=HIDDEN,
        vocab=VOCAB,
        tied=False,
        embedding=(Parameter(name="embed.weight", shape=(VOCAB, HIDDEN), kind=ParameterKind.EMBEDDING),),
        blocks=(block,) * layers,
        head=linear("lm_head", HIDDEN, VOCAB),
    )


def total(work: tuple[Work, ...], resource: Resource, when: When, name: str = "") -> float:
    """Sum of all amounts of a resource in a part, or of those of one name."""
    return sum(w.amount for w in work if w.resource is resource and w.when is when and name in ("", w.name))


def work_of(computation: Computation, block: Block = BLOCK) -> tuple[Work, ...]:
    """Work of the small model."""
    return compute_work(model(block), computation, SEQ_LEN, MICRO_BATCH)


def test_forward_multiplies_by_each_weight_once() -> None:
    """Forward: two FLOPs per token and weight of the layers and of the head."""
    assert total(work_of(Computation()), Resource.MATMUL, When.FORWARD) == 2 * TOKENS * (
        LAYERS * LAYER_WEIGHTS + HEAD_WEIGHTS
    )


def test_backward_is_twice_forward() -> None:
    """Full training: as much for input gradients and for weight gradients as for the forward pass."""
    work = work_of(Computation())
    assert total(work, Resource.MATMUL, When.BACKWARD) == 2 * total(work, Resource.MATMUL, When.FORWARD)


def test_shapes_say_what_is_multiplied() -> None:
    """q_proj forward is (tokens x in) by (in x out); its weight gradient is summed over the tokens."""
    work = work_of(Computation())
    shapes = {(w.name, w.shape) for w in work}
    assert (MATMULS, (TOKENS, 512, 256)) in shapes
    assert (WEIGHT_GRADIENTS, (512, 256, TOKENS)) in shapes


def test_flash_attention_is_causal() -> None:
    """Flash forward: QK^T and PV, 2 FLOPs each, over the lower triangle; backward is 2.5 times that."""
    work = work_of(Computation())
    forward = 2 * 2 * TOKENS * ((128 + 1) / 2) * 256 * LAYERS
    assert total(work, Resource.ATTENTION, When.FORWARD) == forward
    assert total(work, Resource.ATTENTION, When.BACKWARD) == 2.5 * forward


def test_eager_attention_fills_the_square_and_reads_scores() -> None:
    """Eager: the whole square is multiplied, and the scores pass through memory."""
    eager = work_of(Computation(attention=AttentionImplementation.EAGER))
    flash = work_of(Computation())
    extra = total(eager, Resource.MATMUL, When.FORWARD) - total(flash, Resource.MATMUL, When.FORWARD)
    assert extra == 2 * 2 * TOKENS * 128 * 256 * LAYERS
    assert total(eager, Resource.ATTENTION, When.FORWARD) == 0
    scores = TOKENS * 128 * 4 * LAYERS
    assert total(eager, Resource.MEMORY, When.FORWARD, "attention") == 28 * scores


def test_soft_capped_scores_are_eager_whatever_was_chosen() -> None:
    """A model that leaves no choice of kernel is counted with eager attention."""
    assert BLOCK.attention is not None
    capped = replace(BLOCK, attention=replace(BLOCK.attention, soft_cap=True))
    assert total(work_of(Computation(), capped), Resource.ATTENTION, When.FORWARD) == 0


@pytest.mark.parametrize(("window", "keys"), [(0, 64.5), (128, 64.5), (1000, 64.5), (1, 1.0), (64, 64 - 64 * 63 / 256)])
def test_windows_shorten_the_keys(window: int, keys: float) -> None:
    """Keys per query: the mean of 1..s, or of 1..w and then w."""
    assert attended_keys(128, window) == keys


def test_recomputation_is_proportional_to_the_layers() -> None:
    """All work is linear in k between 0 and L: the integer program relies on it."""
    none, one, three = (work_of(Computation(checkpointed_layers=k)) for k in (0, 1, 3))
    for resource in (Resource.MATMUL, Resource.ATTENTION, Resource.MEMORY, Resource.LAUNCH):
        base = total(none, resource, When.BACKWARD)
        once = total(one, resource, When.BACKWARD) - base
        assert once > 0
        assert total(three, resource, When.BACKWARD) - base == pytest.approx(3 * once)


def test_recomputation_skips_the_last_projection() -> None:
    """One checkpointed layer repeats its forward but for down_proj, after which nothing is saved."""
    work = work_of(Computation(checkpointed_layers=1))
    assert total(work, Resource.MATMUL, When.BACKWARD, RECOMPUTE) == 2 * TOKENS * (LAYER_WEIGHTS - 256 * 512)


@pytest.mark.parametrize("saving", [{"hidden_dropout": 0.1}, {"post_norm": True}, {"norms": 4}])
def test_what_follows_the_last_projection_makes_it_run(saving: dict[str, object]) -> None:
    """A dropout or a norm behind the MLP saves tensors, so the whole layer is recomputed."""
    block = replace(BLOCK, **saving)  # type: ignore[arg-type]  # the fields' types differ
    work = work_of(Computation(checkpointed_layers=1), block)
    assert total(work, Resource.MATMUL, When.BACKWARD, RECOMPUTE) == 2 * TOKENS * LAYER_WEIGHTS


def test_lora_trains_the_adapters_only() -> None:
    """LoRA: weight gradients of A and B only, and their multiplications beside the base's."""
    adapters = Adapters(rank=8, targets=("q_proj",))
    work = work_of(Computation(adapters=adapters))
    added = 8 * (256 + 256) * LAYERS
    assert total(work, Resource.MATMUL, When.BACKWARD, WEIGHT_GRADIENTS) == 2 * TOKENS * added
    forward = 2 * TOKENS * (LAYERS * LAYER_WEIGHTS + HEAD_WEIGHTS + added)
    assert total(work, Resource.MATMUL, When.FORWARD) == forward
    plain = work_of(Computation())
    more = total(work, Resource.MEMORY, When.FORWARD) - total(plain, Resource.MEMORY, When.FORWARD)
    assert more == ADAPTER.forward_bytes * TOKENS * 256 * LAYERS


def test_adapter_dropout_costs_memory_traffic() -> None:
    """LoRA dropout reads the input, writes it and a mask of one byte: 5 bytes per element."""
    wet, dry = (work_of(Computation(adapters=Adapters(targets=("q_proj",), dropout=p))) for p in (0.1, 0.0))
    more = total(wet, Resource.MEMORY, When.FORWARD) - total(dry, Resource.MEMORY, When.FORWARD)
    assert more == 5 * TOKENS * 256 * LAYERS


def test_quantised_weights_are_expanded_forward_and_backward() -> None:
    """NF4: 0.5 byte and 4/64 bytes of constants are read and 2 bytes written per weight, in both passes."""
    work = work_of(Computation(adapters=Adapters(), quantized=True))
    expected = (0.5 + 4 / 64 + 2) * LAYERS * LAYER_WEIGHTS
    assert total(work, Resource.MEMORY, When.FORWARD, DEQUANTISATION) == expected
    assert total(work, Resource.MEMORY, When.BACKWARD, DEQUANTISATION) == expected


def test_loss_passes_over_the_logits() -> None:
    """Cross-entropy moves a constant number of bytes per logit; in chunks the gradient takes the logits' place."""
    whole, chunked = work_of(Computation()), work_of(Computation(loss_chunk=64))
    assert total(whole, Resource.MEMORY, When.FORWARD, LOSS) == CROSS_ENTROPY.forward_bytes * TOKENS * VOCAB
    assert total(chunked, Resource.MEMORY, When.FORWARD, LOSS) == (2 + 2 + 2) * TOKENS * VOCAB
    assert total(chunked, Resource.MEMORY, When.BACKWARD, LOSS) == 0


def test_a_chunked_loss_multiplies_for_its_gradients_in_the_forward_pass() -> None:
    """Chunks of 64 tokens: the head's two backward multiplications are made forward, 4 times each."""
    whole, chunked = work_of(Computation()), work_of(Computation(loss_chunk=64))
    head = 2 * TOKENS * HEAD_WEIGHTS
    for when, more in ((When.FORWARD, 2 * head), (When.BACKWARD, -2 * head)):
        assert total(chunked, Resource.MATMUL, when) - total(whole, Resource.MATMUL, when) == more
    assert (WEIGHT_GRADIENTS, (VOCAB, HIDDEN, 64)) in {(w.name, w.shape) for w in chunked}


def test_liger_fuses_norms_rotary_embeddings_and_gates() -> None:
    """By hand, forward, per layer: two norms 36 to 4, rotary 20 to 4 on q and k, gate 4 + 6 to 6 bytes per element."""
    eager, liger = work_of(Computation()), work_of(Computation(liger=True))
    layer = 2 * 32 * HIDDEN + 16 * (256 + 128) + 4 * FFN
    saved = TOKENS * (LAYERS * layer + 32 * HIDDEN)  # and the final norm
    assert total(eager, Resource.MEMORY, When.FORWARD) - total(liger, Resource.MEMORY, When.FORWARD) == saved
    launches = LAYERS * (2 * 7 + 2 * 4.5 + 1) + 7
    assert total(eager, Resource.LAUNCH, When.FORWARD) - total(liger, Resource.LAUNCH, When.FORWARD) == launches


def test_compiled_modules_keep_what_lies_between_them() -> None:
    """Norms, rotary embeddings and the loss are fused; residuals and gates are not."""
    eager, compiled = work_of(Computation()), work_of(Computation(compiled=True))
    layer = 2 * 32 * HIDDEN + 16 * (256 + 128)
    saved = TOKENS * (LAYERS * layer + 32 * HIDDEN + 8 * VOCAB)
    assert total(eager, Resource.MEMORY, When.FORWARD) - total(compiled, Resource.MEMORY, When.FORWARD) == saved


@pytest.mark.parametrize("table", [LIGER, COMPILED, CHUNKED])
@pytest.mark.parametrize("attention", AttentionImplementation)
@pytest.mark.parametrize("norm", NormStyle)
@pytest.mark.parametrize("activation", ["silu", "gelu_new"])
def test_fused_kernels_are_never_slower(
    table: object, attention: AttentionImplementation, norm: NormStyle, activation: str
) -> None:
    """Fusing adds neither FLOPs nor bytes nor launches, in forward and backward together."""
    mlp = Mlp(kind=MlpKind.GATED, activation=activation, intermediate=512)
    block = replace(BLOCK, norm=norm, mlp=mlp)
    plain = Computation(attention=attention, checkpointed_layers=2, adapters=Adapters(rank=4))
    chosen = replace(
        plain, liger=table is LIGER, compiled=table is COMPILED, loss_chunk=TOKENS if table is CHUNKED else 0
    )
    before, after = work_of(plain, block), work_of(chosen, block)
    for resource in (Resource.MATMUL, Resource.ATTENTION, Resource.MEMORY, Resource.LAUNCH):
        sums = [sum(w.amount for w in work if w.resource is resource) for work in (after, before)]
        assert sums[0] <= sums[1]


def test_nothing_flows_in_front_of_the_first_adapter() -> None:
    """Adapters on o_proj alone: layer 0 takes no input gradient of q, k, v and o, and none through its attention."""
    adapters = Adapters(rank=8, targets=("o_proj",))
    free, checkpointed = (work_of(Computation(adapters=adapters, checkpointed_layers=k)) for k in (0, LAYERS))
    skipped = 2 * TOKENS * (256 * 256 + 2 * 256 * 128 + 256 * 256 + 256 * 8)
    names = (INPUT_GRADIENTS,)
    sums = [sum(total(work, Resource.MATMUL, When.BACKWARD, name) for name in names) for work in (free, checkpointed)]
    assert sums[1] - sums[0] == skipped
    whole = total(free, Resource.ATTENTION, When.FORWARD)
    assert total(free, Resource.ATTENTION, When.BACKWARD) == 2.5 * whole * (LAYERS - 1) / LAYERS


def test_composed_norms_move_more_than_fused_ones() -> None:
    """RMS norms are eight kernels in transformers, a layer norm is one."""
    composed = total(work_of(Computation()), Resource.MEMORY, When.FORWARD, ELEMENTWISE)
    fused = total(
        work_of(Computation(), replace(BLOCK, norm=NormStyle.LAYER)), Resource.MEMORY, When.FORWARD, ELEMENTWISE
    )
    assert composed - fused == (36 - 4) * 2 * TOKENS * HIDDEN * LAYERS


def test_experts_cost_what_a_token_meets() -> None:
    """Each token goes through 2 of 8 experts."""
    experts = Parameter(name="mlp.experts.gate_up_proj", shape=(8, 1024, 256), kind=ParameterKind.EXPERTS)
    mlp = Mlp(kind=MlpKind.GATED, activation="silu", intermediate=512, experts=8, experts_per_token=2)
    block = replace(BLOCK, parameters=(experts,), mlp=mlp)
    work = work_of(Computation(), block)
    assert total(work, Resource.MATMUL, When.FORWARD) == pytest.approx(
        2 * TOKENS * (LAYERS * 2 * 1024 * 256 + HEAD_WEIGHTS)
    )


def test_frozen_experts_take_no_weight_gradient() -> None:
    """LoRA leaves stacked experts frozen."""
    experts = Parameter(name="mlp.experts.gate_up_proj", shape=(8, 1024, 256), kind=ParameterKind.EXPERTS)
    mlp = Mlp(kind=MlpKind.GATED, activation="silu", intermediate=512, experts=8, experts_per_token=2)
    block = replace(BLOCK, parameters=(experts,), mlp=mlp)
    work = work_of(Computation(adapters=Adapters()), block)
    assert total(work, Resource.MATMUL, When.BACKWARD, WEIGHT_GRADIENTS) == 0


def test_state_space_layers_scan_memory() -> None:
    """A Mamba layer's scan moves bytes in proportion to inner x state."""
    small, large = (
        replace(BLOCK, attention=None, mlp=None, ssm=StateSpace(inner=512, state=n, conv_kernel=4, dt_rank=16))
        for n in (8, 16)
    )
    without = work_of(Computation(), replace(BLOCK, attention=None, mlp=None))
    scans = [
        total(work_of(Computation(), b), Resource.MEMORY, When.FORWARD) - total(without, Resource.MEMORY, When.FORWARD)
        for b in (small, large)
    ]
    assert scans[1] == 2 * scans[0] > 0


def test_model_flops_follow_the_palm_formula() -> None:
    """MFU counts 6 N + 12 L h s, embeddings included, whatever is recomputed or skipped."""
    small = model()
    assert model_flops_per_token(small, SEQ_LEN) == 6 * small.parameter_count + 12 * LAYERS * 256 * SEQ_LEN
