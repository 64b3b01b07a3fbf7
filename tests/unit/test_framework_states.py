"""strategies/framework.py, planner/measurements/layout.py: states of DDP, FSDP, Megatron and old DeepSpeed, by hand."""

from __future__ import annotations

import pytest
from trainplan.planner.frameworks import Layout, framework_of
from trainplan.planner.ledger import ALWAYS, Device, Entry, Item, Ledger, Phase
from trainplan.planner.measurements.layout import LIVE_ELEMENTS, layout_of
from trainplan.planner.parallel import Split
from trainplan.strategies.framework import FrameworkStates
from trainplan.strategies.lora import Lora

from ..measured_rows import row_of
from ..tiny import folded, llama, setting

N = llama().parameter_count
LAYER = llama().blocks[0].numel
AROUND = N - 4 * LAYER  # embedding, final norm, head
ADAM = 8.0


def layout(**cells: str) -> Layout:
    """The layout of a row with AdamW."""
    row = row_of(**cells)
    return layout_of(row, framework_of(row.text("framework")), Split(), ADAM)


def states(ledger: Ledger, device: Device = Device.GPU) -> dict[Item, int]:
    """Bytes of each item."""
    return {item: size for item in Item if (size := ledger.bytes_of(item, device=device))}


def entry(ledger: Ledger, item: Item) -> Entry:
    """The one line of an item."""
    (line,) = (e for e in ledger.entries if e.item is item)
    return line


def held(found: Layout) -> tuple[float, ...]:
    """Bytes per element: weights, gradients, master, states, and the step's."""
    return (found.weights, found.gradients, found.master, found.states, found.step)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"sharding": "DDP", "framework": "torchtitan"}, (4, 4, 0, 8, 0)),  # mixed precision: fp32 weights are master
        ({"sharding": "FSDP", "framework": "LLM Foundry"}, (4, 4, 0, 8, 0)),
        ({"sharding": "DDP", "framework": "swift"}, (4, 4, 0, 8, 2)),  # AdamW foreach: one more 16-bit tensor
        ({"sharding": "DDP", "framework": "litgpt", "precision": "bf16-true"}, (2, 2, 0, 4, 0)),
        ({"sharding": "DDP", "framework": "litgpt", "master_weights": "none"}, (2, 2, 0, 4, 0)),
        ({"framework": "litgpt", "master_weights": "none", "optim_state_dtype": "fp32"}, (2, 2, 0, 8, 0)),
        ({"sharding": "", "framework": "Megatron-LM"}, (2, 4, 4, 8, 0)),
        ({"sharding": "", "framework": "NeMo"}, (2, 2, 4, 8, 0)),  # its recipes reduce gradients in bf16
        ({"sharding": "distributed optimizer", "framework": ""}, (2, 4, 4, 8, 0)),
        ({"sharding": "ZeRO-1", "framework": "Megatron-DeepSpeed"}, (2, 2, 4, 8, 6)),  # flattened 2, cast 4
        ({"sharding": "ZeRO-1", "framework": "accelerate"}, (2, 2, 4, 8, 6)),
        ({"sharding": "", "framework": "Megatron-LM", "precision": "bf16 (fp32 grad accumulation)"}, (2, 4, 4, 8, 0)),
        ({"sharding": "ZeRO-1", "framework": "x", "precision": "bf16 (fp32 grad accumulation)"}, (2, 4, 4, 8, 6)),
        ({"sharding": "FSDP", "framework": "", "task": "lora"}, (2, 2, 0, 8, 0)),  # adapters in the base's type
    ],
)
def test_bytes_per_element(cells: dict[str, str], expected: tuple[float, ...]) -> None:
    """Weights, gradients, master, states, and what the step needs for a moment."""
    assert held(layout(**cells)) == expected


@pytest.mark.parametrize(("stage", "shards"), [("0", (1, 1, 1)), ("1", (1, 1, 8)), ("2", (1, 8, 8)), ("3", (8, 8, 8))])
def test_stages_cut_states_then_gradients_then_weights(stage: str, shards: tuple[int, ...]) -> None:
    """As ZeRO does, over data-parallel ranks; context-parallel ranks share too."""
    found = layout(zero_stage=stage)
    assert (found.weight_shards, found.gradient_shards, found.state_shards) == shards
    row = row_of(zero_stage=stage, dp="4", cp="2")
    both = layout_of(row, framework_of(""), Split(context=2), ADAM)
    assert (both.weight_shards, both.gradient_shards, both.state_shards) == shards


def test_held_by_megatron_alone() -> None:
    """Its gradients are one buffer that is never given back."""
    assert layout(framework="Megatron-LM", sharding="").held
    assert not layout(framework="torchtitan").held


def test_data_parallel_in_mixed_precision() -> None:
    """16 bytes an element on every rank: 4 N weights, 4 N gradients, 8 N states; gradients in the backward pass."""
    ledger = folded(FrameworkStates(layout(zero_stage="0"), 0))
    found = states(ledger)
    assert (found[Item.WEIGHTS], found[Item.GRADIENTS], found[Item.MOMENTS]) == (4 * N, 4 * N, 8 * N)
    assert Item.MASTER not in found
    assert Item.GATHERED not in found
    assert entry(ledger, Item.GRADIENTS).phases == (Phase.BACKWARD_END, Phase.STEP)
    assert Phase.START not in entry(ledger, Item.MOMENTS).phases
    again = folded(FrameworkStates(layout(zero_stage="0"), 0), at=setting(micro_steps=2))
    assert Phase.FORWARD in entry(again, Item.GRADIENTS).phases


def test_pure_16_bit() -> None:
    """8 bytes an element: weights, gradients and both moments in 16 bit."""
    pure = layout(zero_stage="0", framework="litgpt", precision="bf16-true")
    found = states(folded(FrameworkStates(pure, 0)))
    assert (found[Item.WEIGHTS], found[Item.GRADIENTS], found[Item.MOMENTS]) == (2 * N, 2 * N, 4 * N)


def test_fully_sharded() -> None:
    """1/8 of 16 bytes, and whole in 16 bit: two layers, and the root unit (embedding, norm, head)."""
    found = states(folded(FrameworkStates(layout(zero_stage="3"), 3), at=setting(ranks=8)))
    assert (found[Item.WEIGHTS], found[Item.GRADIENTS], found[Item.MOMENTS]) == (-(-4 * N // 8), -(-4 * N // 8), N)
    assert found[Item.GATHERED] == 2 * (2 * LAYER) + 2 * AROUND


def test_megatron() -> None:
    """18 bytes: 2 weights, 4 of the fp32 buffer that is always there, 4 master and 8 states cut over the ranks."""
    megatron = layout(zero_stage="1", framework="Megatron-LM", sharding="distributed optimizer")
    ledger = folded(FrameworkStates(megatron, 1), at=setting(ranks=8))
    found = states(ledger)
    assert (found[Item.WEIGHTS], found[Item.GRADIENTS]) == (2 * N, 4 * N)
    assert (found[Item.MASTER], found[Item.MOMENTS]) == (-(-4 * N // 8), -(-8 * N // 8))
    assert entry(ledger, Item.GRADIENTS).phases == ALWAYS
    assert Item.IN_FLIGHT not in found


def test_old_deepspeed() -> None:
    """2 + 2, and 4 + 8 cut over the ranks; a bucket of 1e9 bytes; 6 bytes of each updated element in the step."""
    old = layout(zero_stage="1", framework="Megatron-DeepSpeed", sharding="ZeRO-1")
    ledger = folded(FrameworkStates(old, 1), at=setting(ranks=8))
    found = states(ledger)
    assert (found[Item.WEIGHTS], found[Item.GRADIENTS], found[Item.REDUCE_BUCKET]) == (2 * N, 2 * N, 1_000_000_000)
    assert found[Item.STEP_TEMPORARIES] == -(-6 * N // 8)
    assert entry(ledger, Item.STEP_TEMPORARIES).phases == (Phase.STEP,)


def test_deepspeed_keeps_a_window_gathered() -> None:
    """Stage 3 at its defaults: up to 1e9 elements stay whole, here the whole model."""
    window = layout(zero_stage="3", framework="accelerate", sharding="ZeRO-3")
    assert window.window_elements == LIVE_ELEMENTS
    found = states(folded(FrameworkStates(window, 3), at=setting(ranks=8)))
    assert found[Item.GATHERED] == 2 * N
    assert layout(zero_stage="3", sharding="FSDP").window_elements == 0


@pytest.mark.parametrize(
    ("words", "moved", "stays"),
    [
        ("none", set(), {Item.WEIGHTS, Item.GRADIENTS, Item.MASTER, Item.MOMENTS}),
        ("optimizer cpu", {Item.MASTER, Item.MOMENTS, Item.STEP_TEMPORARIES}, {Item.WEIGHTS, Item.GRADIENTS}),
        ("params cpu", {Item.WEIGHTS, Item.GRADIENTS, Item.MASTER, Item.MOMENTS}, {Item.GATHERED}),
    ],
)
def test_offload(words: str, moved: set[Item], stays: set[Item]) -> None:
    """Master weights and states alone, or all that is cut; units come to the GPU as they compute."""
    away = layout(zero_stage="3", framework="accelerate", sharding="ZeRO-3", offload=words)
    ledger = folded(FrameworkStates(away, 3), at=setting(ranks=8))
    assert moved <= states(ledger, Device.HOST).keys()
    assert not moved & states(ledger).keys()
    assert stays <= states(ledger).keys()


def test_the_whole_model_beside_its_shard() -> None:
    """A framework that builds the model on every GPU before it is cut, and keeps it."""
    found = states(folded(FrameworkStates(layout(framework="litgpt"), 3), at=setting(ranks=8)))
    assert found[Item.FLATTENING] == 2 * N
    alone = states(folded(FrameworkStates(layout(framework="litgpt", zero_stage="0"), 0)))
    assert Item.FLATTENING not in alone


def test_adapters() -> None:
    """The base in 16 bit is cut as weights are; only adapters have gradients and states."""
    ledger = folded(Lora(), FrameworkStates(layout(task="lora"), 3), at=setting(ranks=8))
    trained, found = ledger.trainable.total, states(ledger)
    assert found[Item.FROZEN] == 2 * N // 8
    assert found[Item.MOMENTS] == 8 * trained // 8


def test_gradients_on_the_wire() -> None:
    """Reduced as they are held, or in the precision of training where the row says so."""

    def traffic(sharding: str) -> float:
        ledger = folded(FrameworkStates(layout(zero_stage="0", sharding=sharding), 0))
        return next(w.amount for w in ledger.work if w.name == "reduce gradients")

    assert traffic("DDP") == 4 * N
    assert traffic("DDP; MP mode PURE") == 2 * N
