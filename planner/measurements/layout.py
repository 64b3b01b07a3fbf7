"""How a row's framework laid out weights, gradients and optimizer states; see `trainplan.planner.frameworks`."""

from __future__ import annotations

from dataclasses import replace

from ..frameworks import Framework, Layout
from ..parallel import Split
from ..workload import Method
from .subject import method_of, precision_of
from .table import Measurement

ZERO_GRADIENTS, ZERO_WEIGHTS = 2, 3  # the ZeRO stages that cut gradients and weights
LIVE_ELEMENTS = 1_000_000_000  # DeepSpeed's default stage3_max_live_parameters: what a row's configuration leaves at it
FP32 = 4


def layout_of(row: Measurement, framework: Framework, split: Split, state_bytes: float) -> Layout:
    """Bytes per trained element and how they are cut; see `trainplan.planner.frameworks`."""
    stage, ranks, element = row.whole("zero_stage"), row.replicas * split.context, precision_of(row).bytes
    held = _held(row, framework, state_bytes, element)
    return replace(
        held,
        step=framework.step_copies or held.step,
        weight_shards=ranks if stage == ZERO_WEIGHTS else 1,
        gradient_shards=ranks if stage >= ZERO_GRADIENTS else 1,
        state_shards=ranks if stage >= 1 else 1,
        gathered_bytes=element if stage == ZERO_WEIGHTS else 0,
        bucket_bytes=framework.bucket_bytes,
        overlapped=framework.overlapped,
        whole_beside_shards=framework.whole_beside_shards,
        reduced=element if "PURE" in row.text("sharding") else 0,
        window_elements=LIVE_ELEMENTS if sharding_of(row, framework) == "deepspeed" and stage == ZERO_WEIGHTS else 0,
        offloaded="param" in row.text("offload").lower(),
        states_offloaded="optim" in row.text("offload").lower(),
    )


def sharding_of(row: Measurement, framework: Framework) -> str:
    """Who lays out the states: "deepspeed", "megatron" or "torch"."""
    text = row.text("sharding").lower()
    if "fsdp" in text:
        return "torch"
    if "distributed optimizer" in text:
        return "megatron"
    return "deepspeed" if "zero" in text or "deepspeed" in row.text("framework").lower() else framework.sharding


def is_pure(row: Measurement) -> bool:
    """Whether weights are updated in 16 bit, without an fp32 copy."""
    return "none" in row.text("master_weights").lower() or "true" in row.text("precision").lower()


def _held(row: Measurement, framework: Framework, state_bytes: float, element: int) -> Layout:
    """Bytes per element before anything is cut."""
    full, kind = method_of(row) is Method.FULL, sharding_of(row, framework)
    if is_pure(row) or not full:
        small = full and row.text("optim_state_dtype").lower() != "fp32"
        states = state_bytes * element / FP32 if small else state_bytes
        return Layout(weights=element, gradients=element, master=0, states=states, step=0)
    if kind == "torch":
        gradients = framework.gradient_bytes or FP32
        return Layout(weights=FP32, gradients=gradients, master=0, states=state_bytes, step=0)
    usual = framework.gradient_bytes or (FP32 if kind == "megatron" else element)
    gradients = FP32 if "fp32 grad" in row.text("precision") else usual
    step = element + FP32 if kind == "deepspeed" else 0  # gradients flattened, then cast: memory model §O3
    held = kind == "megatron"
    return Layout(weights=element, gradients=gradients, master=FP32, states=state_bytes, step=step, held=held)
