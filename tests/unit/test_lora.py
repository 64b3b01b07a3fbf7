"""strategies/lora.py: adapters are trained, the model is frozen."""

from __future__ import annotations

from trainplan.planner.computation import Adapters, default_targets
from trainplan.planner.ledger import Item
from trainplan.planner.models import adapter_parameters, catalog_model
from trainplan.strategies.lora import Lora
from trainplan.strategies.zero import Zero

from ..tiny import folded, llama, setting

# rank 16 on q, o (256 x 256), k, v (256 x 128), gate, up, down (256 x 688) of 4 layers
ADAPTED = 4 * 16 * (2 * (256 + 256) + 2 * (256 + 128) + 3 * (256 + 688))
P = llama().parameter_count


def test_trained_elements() -> None:
    """r (fan_in + fan_out) for every linear layer of the blocks."""
    ledger = folded(Lora())
    assert ledger.trainable.total == ADAPTED == adapter_parameters(llama(), Adapters())
    assert ledger.frozen.total == P


def test_the_frozen_model_has_no_states() -> None:
    """Stage 0: 2 bytes a frozen element, 16 a trained one."""
    ledger = folded(Lora(), Zero(0))
    assert ledger.bytes_of(Item.FROZEN) == 2 * P
    assert ledger.bytes_of(Item.WEIGHTS, Item.MASTER, Item.MOMENTS, Item.GRADIENTS) == 16 * ADAPTED


def test_stage_3_cuts_the_frozen_model() -> None:
    """Frozen tensors are padded one by one like trained ones."""
    ledger = folded(Lora(), Zero(3), at=setting(ranks=3))
    assert ledger.bytes_of(Item.FROZEN) == 2 * sum(-(-p.numel // 3) for p in llama().parameters)


def test_targets_choose_weights() -> None:
    """Rank 8 on v alone."""
    assert folded(Lora(Adapters(rank=8, targets=("v_proj",)))).trainable.total == 4 * 8 * (256 + 128)


def test_targets_must_exist() -> None:
    """A name that no weight has is refused with that name."""
    assert "c_attn" in str(Lora(Adapters(targets=("c_attn",))).accepts(setting()))
    assert Lora().accepts(setting()) is None


def test_mamba_adapts_its_input_projection_alone() -> None:
    """peft refuses out_proj there, and the fused mixer reads the weights of the other projections past any adapter."""
    assert default_targets(catalog_model("Mamba-2.8B")) == ("in_proj",)
