"""strategies/qlora.py: 4-bit base weights, 16-bit rest, adapters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trainplan
from trainplan.planner.errors import InputError
from trainplan.planner.ledger import Device, Item, Phase
from trainplan.planner.model import ParameterKind
from trainplan.strategies.lora import Lora
from trainplan.strategies.qlora import Qlora, largest_linear, scales_bytes
from trainplan.strategies.zero import Zero

from ..tiny import folded, llama, setting

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


def test_stage_3_cuts_the_nibbles_after_loading_them_whole() -> None:
    """Every rank loads the quantised model before it is cut, so start-up holds it whole, what is not quantised too."""
    ledger = folded(Qlora(), Zero(3), at=setting(ranks=4))
    assert ledger.bytes_of(Item.QUANTIZED) == -(-(LINEAR // 2) // 4)
    assert ledger.bytes_of(Item.QUANTIZED, Item.FROZEN, Item.FLATTENING) == LINEAR // 2 + 2 * ledger.frozen.total
    assert not ledger.zero_init
    assert ledger.by_phase(Device.GPU)[Phase.START] > ledger.bytes_of(Item.QUANTIZED)


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
