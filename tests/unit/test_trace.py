"""The tracer on a tiny Llama: sums by hand, laws, and what it refuses."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from trainplan.planner.allocator import LARGE_SEGMENT_BYTES
from trainplan.planner.architectures import build_model
from trainplan.planner.computation import Adapters, AttentionImplementation, Computation
from trainplan.planner.errors import InputError
from trainplan.planner.trace import MOST_LAYERS, Category, Subject, Trace, trace
from trainplan.planner.trace.compare import Row
from trainplan.planner.workload import Precision
from trainplan.strategies.traced import Traced

from .. import tiny

BF16, FP32 = 2, 4
TENSORS = 4 * 9 + 3  # weights of the tiny Llama: nine a layer, embedding, norm, head


def subject(computation: Computation | None = None, **changes: Any) -> Subject:
    """64 tokens of a tiny Llama."""
    chosen = {"model": tiny.llama(), "seq_len": 64, "micro_batch": 1, **changes}
    return Subject(computation=computation or Computation(), **chosen)


def traced(computation: Computation | None = None, **changes: Any) -> Trace:
    """Its trace."""
    return trace(subject(computation, **changes))


def test_importing_loads_no_torch() -> None:
    """The package can be imported where torch cannot."""
    code = "import sys, trainplan.planner.trace; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_states_by_hand() -> None:
    """Weights and gradients are e P; a fused AdamW adds two moments and a step count for each tensor."""
    found, parameters = traced(), tiny.llama().parameter_count
    assert found.parameter_bytes == found.gradient_bytes == BF16 * parameters
    assert found.optimizer_bytes == 2 * BF16 * parameters + FP32 * TENSORS


def test_alive_adds_up_to_the_peak() -> None:
    """What is alive at the peak is all of the peak."""
    found = traced()
    assert sum(group.bytes for group in found.alive) == max(found.peak_bytes.values())
    assert found.peak_bytes[found.peak_phase] == max(found.peak_bytes.values())


def test_the_loss_by_hand() -> None:
    """The backward pass of the loss holds three fp32 copies of the logits; forward the logits and two."""
    found = traced()
    kept = found.saved_after_forward_bytes
    logits = 64 * tiny.llama().vocab
    assert found.activation_peak_bytes["backward"] - kept == pytest.approx((3 - 1) * FP32 * logits, rel=0.01)
    assert found.activation_peak_bytes["forward"] - kept == pytest.approx((BF16 + FP32) * logits, rel=0.01)


def test_second_micro_step_finds_gradients() -> None:
    """The first micro-step's gradients are alive in the second's forward pass, and nothing else is more."""
    once, twice = traced(), traced(micro_steps=2)
    assert twice.peak_bytes["forward"] == once.peak_bytes["forward"] + once.gradient_bytes
    assert twice.activation_peak_bytes == once.activation_peak_bytes


@pytest.mark.parametrize(
    "less",
    [
        lambda c: replace(c, checkpointed_layers=4),
        lambda c: replace(c, loss_chunk=16),
        lambda c: replace(c, adapters=Adapters(rank=2)),
    ],
    ids=["checkpointing", "chunked loss", "adapters"],
)
def test_what_saves_memory(less: Callable[[Computation], Computation]) -> None:
    """Checkpoints, chunked loss and frozen weights keep less for the backward pass."""
    assert traced(less(Computation())).saved_after_forward_bytes < traced().saved_after_forward_bytes


def test_eager_scores_by_hand() -> None:
    """Eager attention keeps an fp32 softmax and its copy: 6 a s bytes a token and layer more, less flash's own."""
    flash = traced(seq_len=512)
    eager = traced(Computation(attention=AttentionImplementation.EAGER), seq_len=512)
    scores = 4 * 6 * 8 * 512 * 512
    assert eager.saved_after_forward_bytes - flash.saved_after_forward_bytes == pytest.approx(scores, rel=0.1)


def test_quantised_weights_take_half_a_byte() -> None:
    """Packed weights are n / 2 bytes, and their scales are buffers."""
    found = traced(Computation(adapters=Adapters(rank=2), quantized=True))
    packed = [group for group in found.alive if group.dtype == "uint8" and group.category is Category.PARAMETERS]
    linear = 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 688)
    assert sum(group.bytes for group in packed) == linear // 2


def test_precision_doubles_states() -> None:
    """fp32 weights are twice as large."""
    assert traced(Computation(precision=Precision.FP32)).parameter_bytes == 2 * traced().parameter_bytes


def test_same_trace_twice() -> None:
    """A trace depends on nothing but its subject."""
    first, second = (replace(traced(), seconds=0.0) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("tied", [False, True])
def test_the_ledger_says_the_same(tied: bool) -> None:
    """States are equal to the byte but for rotary tables; activations to 2 %."""
    made = subject(model=tiny.llama(tied=tied), seq_len=256)
    rows = {row.name: row for row in Traced(subject=made, trace=trace(made)).rows}
    assert rows["gradients"].difference == 0
    assert rows["optimizer states"].difference == 0
    for name in ("activations, forward", "activations, backward"):
        assert abs(rows[name].difference or 0.0) < 0.02


def test_no_difference_to_nothing() -> None:
    """Where nothing was traced there is no share to state."""
    assert Row("optimizer states", 0, 0).difference is None


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch the message says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(InputError, match=r"peft not installed.*pip install 'trainplan\[train\]'.*trainplan estimate"):
        traced()


def test_what_cannot_be_traced_is_named() -> None:
    """A model that transformers refuses: where, why, and that the estimate does without."""
    config = {**tiny.llama().config, "pad_token_id": 10**6}
    model = build_model(config, name="odd", source="tests")
    with pytest.raises(InputError, match=r"odd cannot be traced: modeling_llama.*[Pp]adding_idx.*trainplan estimate"):
        traced(model=model)


def test_keys_that_no_model_needs_are_not_read() -> None:
    """A config that asks for a billion labels or for code does not get them."""
    config = {**tiny.llama().config, "num_labels": 10**12, "auto_map": {"AutoConfig": "evil.Config"}}
    assert traced(model=build_model(config, name="odd", source="tests")).operations == traced().operations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_steps": 3}, "3 micro-steps"),
        ({"seq_len": 0}, "1 x 0 tokens"),
        ({"micro_batch": 2**40}, "tokens"),
        ({"model": tiny.llama(layers=MOST_LAYERS + 1)}, "layers; allowed are up to"),
    ],
)
def test_sizes_are_bounded(changes: dict[str, Any], message: str) -> None:
    """Absurd sizes are refused before anything is built."""
    with pytest.raises(InputError, match=message):
        traced(**changes)


def test_the_allocator_holds_at_least_what_is_alive() -> None:
    """Segments are whole, so that reserved memory is the peak or more; expandable ones are no worse but for a page."""
    found = traced()
    held, peak = found.reserved_peak_bytes, max(found.peak_bytes.values())
    assert peak <= held["expandable"] <= held["native"] + 2 * LARGE_SEGMENT_BYTES
    assert held["native"] >= peak
