"""ZeRO stages 0 to 3: what is cut over the data-parallel ranks, with the buffers DeepSpeed really allocates.

Symbols: N trained elements, F frozen elements, e bytes of the training precision, d ranks, B reduce bucket (elements),
P_touch elements of all tensors that overlap one rank's slice, s largest sub-group, L gathered elements.

Every size written here is also written to ds_config.json, never left to a default: the defaults cost gigabytes.

Source:
    Rajbhandari et al. 2020 (arXiv:1910.02054); DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py, stage3.py and
    partition_parameters.py, tensors of real engines walked. Memory model §W1-§G7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..planner.gathering import (
    cut_tensors,
    gathered_entries,
    kept_elements,
    live_elements,
    persistence_elements,
    persistent_elements,
    prefetch_elements,
    reduce_bucket_elements,
    reuse_elements,
)
from ..planner.knobs import CHOSEN, Knobs
from ..planner.ledger import (
    ALWAYS,
    BACKWARDS,
    Device,
    Entry,
    Item,
    Ledger,
    Phase,
    Tensors,
    flat_elements,
    flat_partition,
    moved_elements,
    tensor_partition,
    touched,
)
from ..planner.model import Model
from ..planner.retaining import retained_entries
from ..planner.states import (
    FP32,
    GRADIENT_ALL_REDUCE,
    NORM_BYTES,
    OPTIMIZER_UPDATE,
    SUB_GROUP_ELEMENTS,
    accumulates_in_fp32,
    accumulating,
    accumulation_bytes,
    bypassing_entry,
    gradient_phases,
    hooking_bytes,
    in_flight_bytes,
    in_flight_entry,
    in_flight_phases,
    layer_elements,
    master_entry,
    moments_entry,
    replicated,
    sub_groups,
    update_traffic_bytes,
)
from ..planner.transform import Setting
from ..planner.whole_model import with_whole_model
from ..planner.work import Resource, When, Work


def sub_group_elements(tensors: Tensors, ranks: int, size: int = SUB_GROUP_ELEMENTS) -> int:
    """s: elements of the largest sub-group."""
    return max(sub_groups(tensors, ranks, size))


@dataclass(frozen=True, slots=True)
class Zero:
    """Stage 0 replicates; 1 cuts the optimizer; 2 the gradients too; 3 the parameters too.

    ``knobs`` are the sizes of a configuration that is judged; without them the sizes are chosen here.

    >>> Zero(3).name
    'zero-3'
    """

    stage: int
    knobs: Knobs = CHOSEN
    rank = 50

    @property
    def name(self) -> str:
        """As typed after --require."""
        return f"zero-{self.stage}"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"zero_stage": self.stage}

    def accepts(self, setting: Setting) -> str | None:
        """Any setting; with one rank nothing is cut, but the engine's buffers are still there."""
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Cut the states over the ranks."""
        staged = replace(ledger, stage=self.stage, knobs=self.knobs).keys(
            train_micro_batch_size_per_gpu=setting.micro_batch,
            gradient_accumulation_steps=setting.gradient_accumulation_steps,
            gradient_clipping=1.0,
            zero_optimization={"stage": self.stage},
        )
        return (replicated, _stage1, _stage2, _stage3)[self.stage](staged, setting)


def _stage1(ledger: Ledger, setting: Setting) -> Ledger:
    """Whole gradients wait in .grad for the last micro-step, whose first reduction allocates the slice's tensors.

    Gradients that are not the rank's own point into the bucket once reduced: with one micro-step they are never whole.
    Measured: with two micro-steps on one rank the backward pass peaks at N + P_touch beside all activations.
    """
    if accumulates_in_fp32(ledger):
        return _stage1_fp32(ledger, setting)
    n, e = ledger.trainable.total, ledger.computation.precision.bytes
    bucket = reduce_bucket_elements(setting.model, ledger.knobs)
    touch = touched(ledger.trainable, setting.world_size, padded=True)
    waiting: tuple[Phase, ...] = (Phase.FORWARD, Phase.LOSS, *BACKWARDS) if accumulating(setting) else ()
    # at the end the whole gradient covers it
    reduced: tuple[Phase, ...] = (Phase.BACKWARD, Phase.RECOMPUTE) if waiting else BACKWARDS
    bucket_phases = _union(waiting, BACKWARDS)
    if not ledger.knobs.overlaps:  # nothing is reduced before the backward pass is over
        waiting, reduced = waiting or (Phase.BACKWARD_END,), (Phase.BACKWARD_END,)
    return _flat_states(ledger, setting, bucket_phases=bucket_phases).plus(
        Entry(Item.ACCUMULATED, Device.GPU, e * n if waiting else 0, waiting, f"{e} B x {n:,}, whole"),
        Entry(Item.GRADIENTS, Device.GPU, e * touch, (*reduced, Phase.STEP), f"{e} B x P_touch {touch:,}"),
        *(() if waiting else (bypassing_entry(ledger, bucket, setting.world_size),)),
    ).doing(_reduction(ledger, setting, once=True))  # fmt: skip


def _stage1_fp32(ledger: Ledger, setting: Setting) -> Ledger:
    """Stage 1 with fp32 sums: another optimizer, whose fp32 gradient is whole on every rank, from start-up on.

    It has no reduce bucket: after the backward pass the whole gradient is cast to the training precision and reduced.

    Source:
        DeepSpeed 0.19.8 runtime/engine.py, _do_optimizer_sanity_check; runtime/bf16_optimizer.py; walked.
    """
    e, d, n = ledger.computation.precision.bytes, setting.world_size, ledger.trainable.total
    flat, part = flat_elements(ledger.trainable, d), flat_partition(ledger.trainable, d)
    updating = round(ledger.optimizer.step_bytes * part)
    states = _flat_states(ledger, setting, bucket_phases=())
    return (
        states.without(Item.STEP_TEMPORARIES, Item.FLATTENING, Item.REDUCE_BUCKET)
        .plus(
            Entry(Item.GRADIENTS, Device.GPU, FP32 * flat, ALWAYS, f"4 B x {flat:,}, whole; allocated at start-up"),
            Entry(Item.GRADIENTS, Device.GPU, e * n, gradient_phases(setting), f"{e} B x {n:,}, in .grad"),
            Entry(Item.STEP_TEMPORARIES, Device.GPU, updating, (Phase.STEP,), "the optimizer's own, of the slice"),
            Entry(Item.GRADIENT_FLATTENING, Device.GPU, e * flat if d > 1 else 0, (Phase.STEP,), f"{e} B x {flat:,}"),
        )
        .doing(replace(_reduction(ledger, setting, once=True), when=When.STEP, side=False))
    )


def _stage2(ledger: Ledger, setting: Setting) -> Ledger:
    """Tensors that overlap the slice, or an exact fp32 buffer of the slice where that is smaller.

    Either is allocated whole at the first reduction of a backward pass, while nearly all activations are alive.
    """
    e, d = ledger.computation.precision.bytes, setting.world_size
    touch, part = touched(ledger.trainable, d), flat_partition(ledger.trainable, d)
    flat = _flat_states(ledger, setting, bucket_phases=BACKWARDS).doing(_reduction(ledger, setting, once=False))
    earlier = (Phase.FORWARD, Phase.LOSS, *BACKWARDS) if accumulating(setting) else ()
    if accumulates_fp32(ledger, setting):
        phases = (*_union(earlier, BACKWARDS), Phase.STEP)
        buffer = Entry(Item.GRADIENTS, Device.GPU, FP32 * part, phases, f"4 B x slice {part:,}")
        norm = NORM_BYTES * min(ledger.trainable.largest, part)
        most = max(norm, round(ledger.optimizer.step_bytes * part))
        step = Entry(Item.STEP_TEMPORARIES, Device.GPU, most, (Phase.STEP,), "fp64 norm of one piece; no fp32 copy")
        return flat.without(Item.STEP_TEMPORARIES).plus(buffer, step).keys(data_types={"grad_accum_dtype": "fp32"})
    kept, why = touched(ledger.trainable, d, padded=True), f"{e} B x P_touch {touch:,}"
    return flat.plus(
        Entry(Item.ACCUMULATED, Device.GPU, e * touch if earlier else 0, earlier, why),
        Entry(Item.GRADIENTS, Device.GPU, e * kept, (*BACKWARDS, Phase.STEP), f"{e} B x P_touch {kept:,}, padded"),
    )


def accumulates_fp32(ledger: Ledger, setting: Setting) -> bool:
    """Whether stage 2 sums in fp32: as required, or where the compact buffer is no larger than whole 16-bit tensors.

    4 N / d <= e P_touch (1 + [gas > 1])
    """
    e, d = ledger.computation.precision.bytes, setting.world_size
    if e == FP32 or ledger.accumulation is not None:
        return accumulates_in_fp32(ledger)
    generations = 2 if accumulating(setting) else 1
    return FP32 * flat_partition(ledger.trainable, d) <= e * touched(ledger.trainable, d) * generations


def _union(left: tuple[Phase, ...], right: tuple[Phase, ...]) -> tuple[Phase, ...]:
    return tuple(dict.fromkeys((*left, *right)))


def _flat_states(ledger: Ledger, setting: Setting, *, bucket_phases: tuple[Phase, ...]) -> Ledger:
    """What stages 1 and 2 share: flat weights, one slice of master and states, the double bucket, the step's copies."""
    e, d = ledger.computation.precision.bytes, setting.world_size
    part, flat = flat_partition(ledger.trainable, d), flat_elements(ledger.trainable, d)
    bucket, largest = reduce_bucket_elements(setting.model, ledger.knobs), ledger.trainable.largest
    buffers, doubled = (2, "overlap_comm doubles it") if ledger.knobs.overlaps else (1, "overlap_comm is off")
    copies = FP32 if e == FP32 else e + FP32  # flattened, then cast to fp32: no second copy where it is fp32 already
    freed = e * touched(ledger.trainable, d, padded=True)  # 16-bit gradients are gone once they are flattened
    updating = round((FP32 + ledger.optimizer.step_bytes) * part) - freed
    step = max(copies * part, updating, NORM_BYTES * min(largest, part))
    why = f"{part:,} elements: {ledger.trainable.total:,} / {d} ranks, padded"
    return (
        ledger.plus(
            Entry(Item.WEIGHTS, Device.GPU, e * flat, ALWAYS, f"{e} B x {flat:,} elements, flat"),
            Entry(
                Item.FROZEN,
                Device.GPU,
                e * ledger.frozen.total,
                ALWAYS,
                f"{e} B x {ledger.frozen.total:,} frozen elements",
            ),
            Entry(
                Item.FLATTENING,
                Device.GPU,
                max(e * flat - FP32 * part, FP32 * part),
                (Phase.START,),
                "the module beside its flat copy, before the master; or fp32 zeros of the slice, after it",
            ),
            master_entry(part, Device.GPU, f"4 B x {why}"),  # fp32 training too: a separate copy of the slice
            moments_entry(ledger, part, Device.GPU, f"{ledger.optimizer.state_bytes:g} B x {why}"),
            Entry(
                Item.REDUCE_BUCKET,
                Device.GPU,
                buffers * e * bucket,
                _union(bucket_phases, ()),
                f"{buffers} x {e} B x {bucket:,} ({doubled})",
            ),
            in_flight_entry(ledger, setting),
            Entry(
                Item.STEP_TEMPORARIES,
                Device.GPU,
                step,
                (Phase.STEP,),
                f"{copies} B x slice, or the fp64 norm of one piece",
            ),
        )
        .doing(_update(ledger, part), _weights_gather(ledger, setting))
        .keys(
            zero_optimization={
                "overlap_comm": ledger.knobs.overlaps,
                "contiguous_gradients": True,
                "reduce_bucket_size": bucket,
            }
        )
    )


def _update(ledger: Ledger, elements: int) -> Work:
    return Work(
        name=OPTIMIZER_UPDATE,
        resource=Resource.MEMORY,
        amount=update_traffic_bytes(ledger, elements),
        when=When.STEP,
        once=True,
    )


def _reduction(ledger: Ledger, setting: Setting, *, once: bool) -> Work:
    """Stages 1 and 2 all-reduce whole buckets: stage 1 in the last micro-step, stage 2 in each.

    Without overlap_comm the backward pass waits for each.
    """
    e = ledger.computation.precision.bytes
    return Work(
        name=GRADIENT_ALL_REDUCE,
        resource=Resource.ALL_REDUCE,
        amount=e * moved_elements(ledger.trainable, setting.world_size),
        when=When.BACKWARD,
        once=once,
        side=ledger.knobs.overlaps,
        message_bytes=e * min(reduce_bucket_elements(setting.model, ledger.knobs), ledger.trainable.total),
        source="DeepSpeed 0.19.8 stage_1_and_2.py, collectives counted on real engines",
    )


def _weights_gather(ledger: Ledger, setting: Setting) -> Work:
    return Work(
        name="all-gather updated weights",
        resource=Resource.ALL_GATHER,
        amount=ledger.computation.precision.bytes * moved_elements(ledger.trainable, setting.world_size),
        when=When.STEP,
        once=True,
        source="DeepSpeed 0.19.8: one gather per group, allgather_bucket_size is not used",
    )


def _stage3(ledger: Ledger, setting: Setting) -> Ledger:
    """Everything cut; layers gathered as they compute."""
    e, d, model = ledger.computation.precision.bytes, setting.world_size, setting.model
    part, frozen = tensor_partition(ledger.trainable, d), tensor_partition(ledger.frozen, d)
    quantized, packed = ledger.bytes_of(Item.QUANTIZED), e * tensor_partition(cut_tensors(ledger, model)[2], d)
    bucket = reduce_bucket_elements(model, ledger.knobs)
    group = sub_group_elements(ledger.trainable, d, ledger.knobs.sub_group or SUB_GROUP_ELEMENTS)
    a = accumulation_bytes(ledger)
    copies = FP32 if a == FP32 else a + FP32  # flattened, then cast to fp32: no second copy where it is fp32 already
    why = f"{part:,} elements: {ledger.trainable.total:,} / {d} ranks, padded tensor by tensor"
    norm = NORM_BYTES * -(-ledger.trainable.largest // d)
    step = max(copies * group, round((FP32 + ledger.optimizer.step_bytes) * group), norm)
    again = max(0, e * persistent_elements(ledger, setting) - step) if d > 1 else 0
    cut = (
        ledger.without(Item.QUANTIZED)
        .plus(
            Entry(Item.WEIGHTS, Device.GPU, e * part, ALWAYS, f"{e} B x {why}"),
            Entry(Item.FROZEN, Device.GPU, e * frozen, ALWAYS, f"{e} B x {frozen:,} frozen elements a rank"),
            Entry(Item.QUANTIZED, Device.GPU, packed, ALWAYS, f"{quantized:,} B / {d} ranks, padded tensor by tensor"),
            master_entry(part, Device.GPU, f"4 B x {why}"),
            moments_entry(ledger, part, Device.GPU, f"{ledger.optimizer.state_bytes:g} B x {why}"),
            Entry(Item.GRADIENTS, Device.GPU, a * part, ALWAYS, f"{a} B x {why}; allocated at start-up"),
            Entry(
                Item.REDUCE_BUCKET,
                Device.GPU,
                e * bucket,
                ALWAYS,
                f"{e} B x {bucket:,}; allocated at start-up, never freed",
            ),
            Entry(
                Item.IN_FLIGHT,
                Device.GPU,
                in_flight_bytes(ledger, setting) + e * min(bucket, ledger.trainable.total),
                in_flight_phases(ledger),
                "gradients of the module in flight, and the bucket's copy",
            ),
            Entry(
                Item.STEP_TEMPORARIES,
                Device.GPU,
                step,
                (Phase.STEP,),
                f"{copies} B x sub-group {group:,}, or the fp64 norm of one partition",
            ),
            Entry(
                Item.FLATTENING,
                Device.GPU,
                max(hooking_bytes(ledger, setting), FP32 * group - a * part - e * bucket),
                (Phase.START,),
                "one tensor gathered whole; or fp32 zeros of a sub-group, before gradients and bucket are there",
            ),
            Entry(Item.PERSISTENT, Device.GPU, again, (Phase.STEP,), "gathered again, less the step's temporaries"),
            *_secondary(ledger, setting),
            # one rank's partitions are the parameters
            *((*gathered_entries(ledger, setting), *retained_entries(ledger, setting)) if d > 1 else ()),
        )
        .doing(_update(ledger, part), *_stage3_traffic(ledger, setting))
        .keys(zero_optimization=stage3_keys(model, ledger.knobs))
    )
    return with_whole_model(cut, setting) if quantized else cut  # 4-bit models are never built in partitions


def _secondary(ledger: Ledger, setting: Setting) -> tuple[Entry, ...]:
    """hpZ: a second copy of the weights, cut over fewer ranks, from the first forward pass to the step.

    Source:
        DeepSpeed 0.19.8 runtime/zero/partition_parameters.py, ``_partition_param_sec``; walked with two ranks.
    """
    ranks, e = ledger.knobs.secondary_ranks, ledger.computation.precision.bytes
    if ranks < 2:
        return ()
    elements = sum(tensor_partition(tensors, ranks) for tensors in cut_tensors(ledger, setting.model))
    why = f"{e} B x {elements:,}: zero_hpz_partition_size {ranks}"
    return (Entry(Item.GATHERED, Device.GPU, e * elements, (Phase.FORWARD, Phase.LOSS, *BACKWARDS, Phase.STEP), why),)


def _stage3_traffic(ledger: Ledger, setting: Setting) -> tuple[Work, ...]:
    """Gather for forward, gather for backward, reduce-scatter: all per micro-step."""
    e, model = ledger.computation.precision.bytes, setting.model
    moved = [moved_elements(tensors, setting.world_size) for tensors in (ledger.trainable, ledger.frozen)]
    everything = e * sum(moved) + ledger.bytes_of(Item.QUANTIZED)
    knobs = ledger.knobs
    kept = e * min(kept_elements(model, knobs), ledger.trainable.total + ledger.frozen.total)
    message = float(e * layer_elements(model))
    gather = Work(
        name="gather parameters, forward",
        resource=Resource.ALL_GATHER,
        amount=everything,
        when=When.FORWARD,
        side=ledger.knobs.overlaps,
        message_bytes=message,
        source="DeepSpeed 0.19.8 partitioned_param_coordinator.py, collectives counted on real engines",
    )
    again = replace(gather, name="gather parameters, backward", amount=max(0, everything - kept), when=When.BACKWARD)
    scatter = replace(
        gather,
        name="reduce-scatter gradients",
        resource=Resource.REDUCE_SCATTER if knobs.reduce_scatter else Resource.ALL_REDUCE,
        amount=e * moved[0],
        when=When.BACKWARD,
        message_bytes=float(e * min(reduce_bucket_elements(model, knobs), ledger.trainable.total)),
    )
    return gather, again, scatter


def stage3_keys(model: Model, knobs: Knobs = CHOSEN) -> dict[str, Any]:
    """ds_config.json's stage-3 sizes: the very numbers of the lines above."""
    return {
        "overlap_comm": knobs.overlaps,
        "contiguous_gradients": True,
        "reduce_bucket_size": reduce_bucket_elements(model, knobs),
        "stage3_prefetch_bucket_size": prefetch_elements(model, knobs),
        "stage3_param_persistence_threshold": persistence_elements(model, knobs),
        "sub_group_size": knobs.sub_group or SUB_GROUP_ELEMENTS,
        "stage3_max_live_parameters": live_elements(model, knobs),
        "stage3_max_reuse_distance": reuse_elements(model, knobs),
        "stage3_gather_16bit_weights_on_model_save": True,
    }
