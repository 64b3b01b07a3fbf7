"""States as a framework other than DeepSpeed 0.19.8 lays them out: DDP, FSDP, Megatron; for judging measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..planner.frameworks import Layout
from ..planner.ledger import (
    ALWAYS,
    BACKWARDS,
    Certainty,
    Device,
    Entry,
    Item,
    Ledger,
    Phase,
    Tensors,
    moved_elements,
    tensor_partition,
)
from ..planner.states import (
    OPTIMIZER_UPDATE,
    gradient_phases,
    in_flight_bytes,
    in_flight_phases,
    layer_elements,
    update_traffic_bytes,
)
from ..planner.transform import Setting
from ..planner.work import Resource, When, Work

GATHERED_UNITS = 2  # the layer that computes and the one fetched ahead; torch FSDP, forward and backward prefetch
SOURCE = "configs/frameworks.toml"
BITS_16 = 16
STATES = (Item.MASTER, Item.MOMENTS, Item.STEP_TEMPORARIES)


@dataclass(frozen=True, slots=True)
class FrameworkStates:
    """One layout: bytes per element, and how many ranks share them.

    Source:
        `trainplan.planner.frameworks`; torch.distributed.fsdp: the root unit (embedding, head) stays gathered.
    """

    layout: Layout
    stage: int
    rank = 50
    name = "framework"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"zero_stage": self.stage}

    def accepts(self, setting: Setting) -> str | None:
        """Any setting."""
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Write the state lines."""
        staged = replace(ledger, stage=self.stage).without(Item.QUANTIZED)
        lines = (*self._states(ledger, setting), *self._moving(ledger, setting))
        return staged.plus(*lines).doing(*self._traffic(ledger, setting))

    def _traffic(self, ledger: Ledger, setting: Setting) -> tuple[Work, ...]:
        """Gathers per micro-step where weights are cut, one reduction of gradients, the update."""
        layout, n, e = self.layout, ledger.trainable.total, ledger.computation.precision.bytes
        moved = [moved_elements(tensors, setting.world_size) for tensors in (ledger.trainable, ledger.frozen)]
        everything = float(e * sum(moved) + ledger.bytes_of(Item.QUANTIZED))
        unit = everything / (setting.model.layers + 1)
        gradients = (layout.reduced or layout.gradients) * moved[0]
        cut = layout.weight_shards > 1
        bits = ledger.computation.kernels.matmul_bits if layout.overlapped else 0
        everything *= bits / BITS_16 if bits else 1.0  # the framework gathers weights as they are multiplied
        gather = Work(
            name="gather parameters",
            resource=Resource.ALL_GATHER,
            amount=everything if cut else 0.0,
            when=When.FORWARD,
            side=True,
            message_bytes=unit,
        )
        return (
            gather,
            replace(gather, when=When.BACKWARD),
            Work(
                name="reduce gradients",
                resource=Resource.REDUCE_SCATTER if layout.state_shards > 1 else Resource.ALL_REDUCE,
                amount=gradients,
                when=When.BACKWARD,
                once=not cut,
                side=True,
                message_bytes=gradients / (setting.model.layers + 1),
            ),
            Work(
                name="gather updated weights",
                resource=Resource.ALL_GATHER,
                amount=e * moved[0] if layout.state_shards > 1 and not cut else 0.0,
                when=When.FORWARD if layout.overlapped else When.STEP,
                once=True,
                side=layout.overlapped,
                message_bytes=e * n / (setting.model.layers + 1),
            ),
            Work(
                name=OPTIMIZER_UPDATE,
                resource=Resource.MEMORY,
                amount=update_traffic_bytes(ledger, tensor_partition(ledger.trainable, layout.state_shards)),
                when=When.STEP,
                once=True,
            ),
        )

    def _states(self, ledger: Ledger, setting: Setting) -> tuple[Entry, ...]:
        lines = self._resident(ledger, setting)
        moved = [
            line for line in lines if self.layout.offloaded or (self.layout.states_offloaded and line.item in STATES)
        ]
        return tuple(replace(line, device=Device.HOST) if line in moved else line for line in lines)

    def _resident(self, ledger: Ledger, setting: Setting) -> tuple[Entry, ...]:
        layout, n, e = self.layout, ledger.trainable, ledger.computation.precision.bytes
        waiting = ALWAYS if layout.held else gradient_phases(setting)
        later = tuple(p for p in ALWAYS if p is not Phase.START)
        return (
            _cut(Item.WEIGHTS, layout.weights, n, layout.weight_shards),
            _cut(Item.FROZEN, e, ledger.frozen, layout.weight_shards),
            _line(Item.QUANTIZED, ledger.bytes_of(Item.QUANTIZED), layout.weight_shards),
            _cut(Item.MASTER, layout.master, n, layout.state_shards),
            _cut(Item.MOMENTS, layout.states, n, layout.state_shards, later),
            _cut(Item.GRADIENTS, layout.gradients, n, layout.gradient_shards, waiting),
            _cut(Item.STEP_TEMPORARIES, layout.step, n, layout.state_shards, (Phase.STEP,)),
            _line(Item.REDUCE_BUCKET, layout.bucket_bytes, 1),
        )

    def _moving(self, ledger: Ledger, setting: Setting) -> tuple[Entry, ...]:
        """What is whole for a moment: gathered units, gradients in flight, the model before it is cut."""
        layout, model, e = self.layout, setting.model, ledger.computation.precision.bytes
        everything = e * (ledger.trainable.total + ledger.frozen.total) + ledger.bytes_of(Item.QUANTIZED)
        layers = sum(block.numel * times for block, times in model.distinct_blocks)
        around = max(0, model.parameter_count - layers)
        unit = layout.gathered_bytes * layer_elements(model)
        if ledger.computation.quantized:
            unit = -(-ledger.bytes_of(Item.QUANTIZED) // model.layers)
        gathered = GATHERED_UNITS * unit + layout.gathered_bytes * around if layout.weight_shards > 1 else 0
        if layout.window_elements:
            gathered = max(gathered, min(everything, layout.gathered_bytes * layout.window_elements))
        beside = layout.whole_beside_shards and layout.weight_shards > 1
        return (
            _line(Item.GATHERED, gathered, 1, (Phase.FORWARD, Phase.LOSS, *BACKWARDS)),
            _line(Item.IN_FLIGHT, 0 if layout.held else in_flight_bytes(ledger, setting), 1, in_flight_phases(ledger)),
            _line(Item.FLATTENING, everything if beside else 0, 1),
        )


def _cut(item: Item, each: float, tensors: Tensors, shards: int, phases: tuple[Phase, ...] = ALWAYS) -> Entry:
    """So many bytes of each element, cut over the ranks that share it."""
    whole, own = (
        sum(-(-round(each * t.total) // over) for t, over in groups)
        for groups in (tensors.groups(1), tensors.groups(shards))
    )
    return replace(_line(item, whole, shards, phases), bytes=own)


def _line(item: Item, size: int, shards: int, phases: tuple[Phase, ...] = ALWAYS) -> Entry:
    return Entry(
        item, Device.GPU, -(-size // shards), phases, f"{size:,} B / {shards} ranks", Certainty.ASSUMED, SOURCE
    )
