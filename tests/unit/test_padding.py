"""strategies/padding.py: masks in every attention."""

from __future__ import annotations

import pytest
import trainplan
from trainplan.planner.ledger import Device, Item, Ledger

KINDS = {"seq_len": 4096, "gpus": "8xa100-80", "zero": 3}


def ledger(**options: object) -> Ledger:
    """Llama-3.1-8B on 8 GPUs."""
    return trainplan.estimate("llama-3.1-8b", **KINDS, **options).candidate.ledger  # type: ignore[arg-type]  # reason: a dict of options


def test_padding_makes_every_layer_keep_its_bias_and_all_heads_keys() -> None:
    """Per layer and token: k and v of 32 heads instead of 8 (2 x 2 B x 24 x 128), and a bias of 2 B per pair."""
    packed, padded = ledger(), ledger(require=("padded-batches",))
    tokens, layers = 4096, 32
    heads = 2 * 2 * 24 * 128 * tokens
    bias = 2 * tokens * tokens
    more = padded.bytes_of(Item.SAVED) - packed.bytes_of(Item.SAVED)
    assert abs(more / (layers * (heads + bias)) - 1) < 0.01


def test_the_plan_says_for_which_batch_it_is() -> None:
    """The assumption names the longest batch."""
    wanted = trainplan.estimate("llama-3.1-8b", **KINDS, require=("padded-batches",)).request  # type: ignore[arg-type]  # reason: as above
    assert "padded to the longest" in wanted._batches


@pytest.mark.parametrize(("model", "precision"), [("llama-3.1-8b", "fp32"), ("pythia-6.9b", "bf16")])
def test_a_batch_without_padding_needs_no_more_than_is_planned(model: str, precision: str) -> None:
    """A full batch has no mask: in fp32 grouped heads are composed from all scores; flash may keep a fused q, k, v."""
    required = ((precision,), (precision, "padded-batches"))
    kinds = {"seq_len": 2048, "gpus": "8xa100-80", "zero": 3, "method": "lora"}
    packed, padded = (trainplan.estimate(model, **kinds, require=names).candidate.ledger for names in required)  # type: ignore[arg-type]  # reason: as above
    for phase, size in packed.by_phase(Device.GPU).items():
        assert size <= padded.by_phase(Device.GPU)[phase]
