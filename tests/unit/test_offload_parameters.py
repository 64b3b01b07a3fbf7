"""strategies/offload_parameters.py: partitions of ZeRO-3 on the host or on NVMe."""

from __future__ import annotations

from trainplan.planner.ledger import Device, Item, tensor_partition
from trainplan.planner.states import trained_tensors
from trainplan.planner.work import Resource, When
from trainplan.strategies.lora import Lora
from trainplan.strategies.offload_optimizer import OffloadOptimizer
from trainplan.strategies.offload_parameters import OffloadParameters
from trainplan.strategies.zero import Zero

from ..tiny import folded, llama, setting

PART = tensor_partition(trained_tensors(llama(), None), 2)


def test_partitions_move_to_the_host() -> None:
    """2 bytes an element, twice that while every tensor's own pinned copy exists; the gathered window stays."""
    before, ledger = folded(Zero(3)), folded(Zero(3), OffloadParameters())
    line = next(e for e in ledger.entries if e.device is Device.HOST)
    assert (line.bytes, line.upper_bytes) == (2 * PART, 4 * PART)
    assert ledger.bytes_of(Item.WEIGHTS) == 0
    assert ledger.bytes_of(Item.GATHERED) == before.bytes_of(Item.GATHERED)


def test_frozen_partitions_move_too() -> None:
    """Under LoRA the base model is what is large."""
    ledger = folded(Lora(), Zero(3), OffloadParameters())
    assert ledger.bytes_of(Item.WEIGHTS, Item.FROZEN) == 0
    assert ledger.bytes_of(Item.FROZEN, device=Device.HOST) == 2 * PART


def test_they_come_back_in_forward_and_backward() -> None:
    """Per micro-step, down the host link."""
    work = [w for w in folded(Zero(3), OffloadParameters()).work if w.resource is Resource.HOST_TO_GPU]
    assert [(w.when, w.amount, w.once) for w in work] == [
        (When.FORWARD, 2 * PART, False),
        (When.BACKWARD, 2 * PART, False),
    ]


def test_nvme_buffers_hold_the_largest_partition() -> None:
    """buffer_size is at least the largest tensor over the ranks, in elements; five buffers are pinned."""
    ledger = folded(Zero(3), OffloadOptimizer("nvme"), OffloadParameters("nvme"))
    section = ledger.deepspeed["zero_optimization"]["offload_param"]
    assert section["buffer_size"] >= 2048 * 256 // 2
    buffers = [e.bytes for e in ledger.entries if e.item is Item.SWAP_BUFFERS]
    assert 5 * 2 * section["buffer_size"] in buffers
    assert section["max_in_cpu"] == 0


def test_nothing_is_fetched_ahead_from_nvme() -> None:
    """DeepSpeed 0.19.8 crashes in the second step with a prefetch bucket."""
    keys = folded(Zero(3), OffloadOptimizer(), OffloadParameters("nvme")).deepspeed["zero_optimization"]
    assert keys["stage3_prefetch_bucket_size"] == 0


def test_nvme_traffic() -> None:
    """Read in forward and backward of every micro-step, written once a step."""
    work = folded(Zero(3), OffloadOptimizer(), OffloadParameters("nvme"), at=setting(micro_steps=3)).work
    assert sum(w.amount for w in work if w.resource is Resource.NVME_READ) == 2 * 2 * PART
    assert [(w.amount, w.once) for w in work if w.resource is Resource.NVME_WRITE] == [(2 * PART, True)]


def test_updated_weights_take_the_shortest_way() -> None:
    """The GPU's update sends them to the host; the CPU's leaves them there."""
    by_gpu, by_cpu = (folded(Zero(3), *more, OffloadParameters()) for more in ((), (OffloadOptimizer(),)))
    moved = [[(w.resource, w.amount) for w in x.work if w.name.startswith("updated")] for x in (by_gpu, by_cpu)]
    assert moved == [[(Resource.GPU_TO_HOST, 2 * PART)], []]
