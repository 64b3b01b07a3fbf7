"""strategies/qlora.py: 4-bit base weights, 16-bit rest, adapters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trainplan
from trainplan.planner.computation import Adapters
from trainplan.planner.errors import InputError
from trainplan.planner.knobs import Knobs
from trainplan.planner.ledger import Device, Item, Phase
from trainplan.planner.model import ParameterKind
from trainplan.planner.transform import Strategy
from trainplan.strategies.checkpointing import Checkpointing
from trainplan.strategies.lora import Lora
from trainplan.strategies.offload_optimizer import OffloadOptimizer
from trainplan.strategies.qlora import Qlora, largest_linear, scales_bytes
from trainplan.strategies.zero import Zero

from ..tiny import folded, llama, setting

ADAPTERS = 4 * 16 * (2 * (256 + 256) + 2 * (256 + 128) + 3 * (256 + 688))  # rank 16 on every linear weight
LINEAR = 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 688)
REST = llama().parameter_count - LINEAR


def test_half_a_byte_an_element_and_its_scales() -> None:
    """Linear weights of the blocks; each tensor's scales in blocks of 64, themselves quantised in blocks of 256."""
    ledger = folded(Qlora(), Zero(0))
    assert ledger.bytes_of(Item.QUANTIZED) == LINEAR // 2
    assert ledger.bytes_of(Item.FROZEN) == 2 * REST
    q = 256 * 256 // 64 + 4 * (256 * 256 // 64 // 256) + 64 + 1028
    k = 128 * 256 // 64 + 4 * (128 * 256 // 64 // 256) + 64 + 1028
    mlp = 688 * 256 // 64 + 4 * -(-(688 * 256 // 64) // 256) + 64 + 1028
    assert ledger.bytes_of(Item.SCALES) == 4 * (2 * q + 2 * k + 3 * mlp)


def test_without_double_quantisation_scales_are_fp32() -> None:
    """4 bytes per block of 64, and 16 code values."""
    assert scales_bytes(6400, double_quantization=False) == 4 * 100 + 64
    single, double = (folded(Qlora(double_quantization=x), Zero(0)).bytes_of(Item.SCALES) for x in (False, True))
    assert single > double


def test_one_weight_is_dequantised_at_a_time() -> None:
    """The largest linear weight, in forward and backward, never at the step."""
    ledger = folded(Qlora(), Zero(0))
    buffer = next(e for e in ledger.entries if e.item is Item.DEQUANTIZED)
    assert buffer.bytes == 2 * largest_linear(llama()) == 2 * 256 * 688
    assert Phase.STEP not in buffer.phases


def test_the_same_adapters_as_lora() -> None:
    """Quantisation changes what is frozen, not what is trained."""
    assert folded(Qlora()).trainable.numels == folded(Lora()).trainable.numels


@pytest.mark.parametrize("offload", [(), (OffloadOptimizer(),)])
def test_stage_3_cuts_the_nibbles_after_loading_them_whole(offload: tuple[Strategy, ...]) -> None:
    """Start-up holds the whole model, scales, adapters and the embedding's part, before it has anything else."""
    ledger = folded(Qlora(), Zero(3), *offload, at=setting(ranks=4))
    assert ledger.bytes_of(Item.QUANTIZED) == LINEAR // 2 // 4
    assert not ledger.zero_init
    whole = LINEAR // 2 + 2 * REST + 2 * ADAPTERS + ledger.bytes_of(Item.SCALES) + 2 * 2048 * 256 // 4
    assert ledger.by_phase(Device.GPU)[Phase.START] == whole


def test_start_up_is_what_comes_later_where_that_is_more() -> None:
    """On 64 ranks half of the model's layers leave it smaller than the bucket: then one adapter is gathered besides."""
    model = llama(vocab=256, layers=2)
    ledger = folded(Qlora(), Zero(3), at=setting(model, ranks=64))
    (temporary,) = (e for e in ledger.entries if e.item is Item.FLATTENING)
    assert temporary.bytes == 2 * 16 * 688
    assert ledger.bytes_of(Item.REDUCE_BUCKET) == 2 * 1_000_000


def test_the_last_weight_is_quantised_beside_its_16_bit_self() -> None:
    """Before adapters are there: an upper bound, and more only where they are smaller than that weight."""
    small = replace(Adapters(), rank=1, targets=("q_proj",))  # 4 x (256 + 256) elements; cut over 1024 ranks
    ledger = folded(Qlora(small), Zero(3), at=setting(ranks=1024))
    upper = LINEAR // 2 + 2 * REST + ledger.bytes_of(Item.SCALES) + 2 * 256 * 688
    assert ledger.by_phase(Device.GPU, upper=True)[Phase.START] == upper
    whole = LINEAR // 2 + 2 * REST + 2 * 4 * 512 + ledger.bytes_of(Item.SCALES) + 2 * 2048 * 256 // 1024
    assert ledger.by_phase(Device.GPU)[Phase.START] == whole


PACKED = {"q": 256 * 256 // 4, "k": 256 * 128 // 4, "mlp": 256 * 688 // 4}  # 16-bit elements that hold NF4


def packed_layer(ranks: int) -> int:
    """q and o, k and v, three of the MLP, each gathered in a multiple of the ranks."""
    q, k, mlp = (-(-n // ranks) * ranks for n in PACKED.values())
    return 2 * q + 2 * k + 3 * mlp


@pytest.mark.parametrize("ranks", [2, 3])
def test_autograd_keeps_what_stage_3_gathered(ranks: int) -> None:
    """All but q, k and v of the first layer, whose input requires no gradient; from forward to the end of backward."""
    ledger = folded(Qlora(), Zero(3), at=setting(ranks=ranks))
    (line,) = (e for e in ledger.entries if e.item is Item.RETAINED)
    q, k = (-(-PACKED[name] // ranks) * ranks for name in "qk")
    assert line.bytes == 2 * (4 * packed_layer(ranks) - q - 2 * k)
    assert set(line.phases) == {Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.RECOMPUTE, Phase.BACKWARD_END}


def test_in_front_of_the_first_adapter_nothing_is_kept() -> None:
    """An adapter on the down projection alone: the first layer keeps none of what it reads."""
    ledger = folded(Qlora(Adapters(targets=("down_proj",))), Zero(3))
    assert ledger.bytes_of(Item.RETAINED) == 2 * 3 * packed_layer(2)


def test_a_recomputed_layer_is_kept_twice() -> None:
    """Every weight once, and those of the layer that runs again meanwhile."""
    ledger = folded(Qlora(), Checkpointing(4), Zero(3))
    once, again = (e for e in ledger.entries if e.item is Item.RETAINED)
    assert once.bytes == 2 * 4 * packed_layer(2)
    assert (again.bytes, again.phases) == (2 * packed_layer(2), (Phase.RECOMPUTE,))


def test_nothing_is_kept_where_nothing_was_gathered() -> None:
    """One rank's partitions are the parameters; below stage 3 weights are whole; LoRA's are saved as variables."""
    stacks: list[tuple[tuple[Strategy, ...], int]] = [
        ((Qlora(), Zero(3)), 1),
        *(((Qlora(), Zero(stage)), 2) for stage in range(3)),
        ((Lora(), Zero(3)), 2),
    ]
    for strategies, ranks in stacks:
        assert folded(*strategies, at=setting(ranks=ranks)).bytes_of(Item.RETAINED) == 0


def test_small_packed_weights_stay_whole() -> None:
    """Of 16,384 elements at most: k and v are 8,192, q and o 16,384; norms and adapters too; nothing kept of them."""
    ledger = folded(Qlora(), Zero(3, Knobs(persistence=16_384)))
    small = 4 * (2 * PACKED["q"] + 2 * PACKED["k"]) + 9 * 256 + ADAPTERS
    kept = [e.bytes for e in ledger.entries if e.item is Item.PERSISTENT and Phase.FORWARD in e.phases]
    assert kept == [2 * small]
    assert ledger.bytes_of(Item.RETAINED) == 2 * 4 * 3 * PACKED["mlp"]


def test_a_model_without_linear_layers_is_refused() -> None:
    """There is nothing to quantise."""
    block = llama().blocks[0]
    norms = tuple(p for p in block.parameters if p.kind is ParameterKind.NORM)
    bare = replace(llama(), blocks=(replace(block, parameters=norms),))
    assert largest_linear(bare) == 0
    assert "nothing to quantise" in str(Qlora().accepts(setting(bare)))
    assert Qlora().accepts(setting()) is None


@pytest.mark.parametrize(("name", "word"), [("Mamba-2.8B", "fused kernel"), ("Falcon-7B", "FalconLinear")])
def test_models_that_cannot_be_quantised_are_refused(name: str, word: str) -> None:
    """A plan with 4-bit weights would not fit where transformers leaves them in 16 bit."""
    with pytest.raises(InputError, match=word):
        trainplan.estimate(name, gpus="8xh100", seq_len=1024, zero=0, method="qlora")
