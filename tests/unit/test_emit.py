"""planner/emit/deepspeed.py: the keys of every family, against the ledger that was planned with them."""

from __future__ import annotations

import json

import pytest
from trainplan.planner.emit.deepspeed import NEVER, TOP_LEVEL, ds_config, to_json
from trainplan.planner.family import Family
from trainplan.planner.ledger import Device, Item, Ledger, tensor_partition
from trainplan.planner.states import baseline
from trainplan.planner.transform import fold
from trainplan.strategies.offload_optimizer import GROUPS
from trainplan.strategies.space import Choices, families

from ..tiny import llama, setting

AT = setting(ranks=4, micro_batch=2, micro_steps=3)
FAMILIES = families(Choices(), llama())


def ledger_of(family: Family) -> Ledger:
    """At one layer and half the sub-groups."""
    return fold(baseline(AT), family.at(1, max(1, family.groups // 2)), AT)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f.method.value}-{f.name}-{f.groups}")
def test_the_file_says_what_the_ledger_assumes(family: Family) -> None:
    """Stage, devices, bucket, share, NVMe buffers and batch are the very numbers behind the lines."""
    ledger = ledger_of(family)
    config = ds_config(ledger, AT)
    section = config["zero_optimization"]
    assert set(config) <= set(TOP_LEVEL)
    assert section["stage"] == family.zero_stage == ledger.stage
    assert config["train_batch_size"] == 2 * 3 * 4
    optimizer, parameters = (section.get(key, {}) for key in ("offload_optimizer", "offload_param"))
    facts = family.at(1, max(1, family.groups // 2)).facts
    assert optimizer.get("device") == facts.get("offload_optimizer")
    assert parameters.get("device") == facts.get("offload_parameters")
    if family.zero_stage:
        buckets = 2 if section["overlap_comm"] and family.zero_stage < 3 else 1
        assert ledger.bytes_of(Item.REDUCE_BUCKET) == 2 * buckets * section["reduce_bucket_size"]
    if family.groups:
        assert optimizer["ratio"] == (family.groups // 2) / GROUPS
        assert section["sub_group_size"] == max(1, tensor_partition(ledger.trainable, 4) // GROUPS)
    if parameters.get("device") == "nvme":
        pinned = parameters["buffer_count"] * parameters["buffer_size"] * 2
        assert pinned in [e.bytes for e in ledger.entries if e.item is Item.SWAP_BUFFERS and e.device is Device.HOST]
    for device in (optimizer, parameters):
        assert ("nvme_path" in device) is (device.get("device") == "nvme")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f.method.value}-{f.name}-{f.groups}")
def test_what_destroys_weights_is_never_on(family: Family) -> None:
    """DeepSpeed 0.19.8 scrambles or zeroes weights with these: at any depth they are absent or false."""

    def values(document: object) -> list[tuple[str, object]]:
        if not isinstance(document, dict):
            return []
        return [*document.items(), *(pair for inner in document.values() for pair in values(inner))]

    assert not [pair for pair in values(ds_config(ledger_of(family), AT)) if pair[0] in NEVER and pair[1]]


def test_an_unknown_key_is_a_bug_of_ours() -> None:
    """DeepSpeed would ignore it in silence."""
    with pytest.raises(AssertionError, match="reduce_bucket"):
        ds_config(baseline(AT).keys(reduce_bucket=1), AT)


def test_json_is_strict() -> None:
    """Two spaces, a final newline, no NaN."""
    assert to_json({"a": 1}) == '{\n  "a": 1\n}\n'
    assert json.loads(to_json(ds_config(ledger_of(FAMILIES[0]), AT)))
    with pytest.raises(ValueError, match="JSON"):
        to_json({"a": float("nan")})
