"""Which lines of a ledger stand for which tensors of a DeepSpeed engine, and at which moments of a step.

A moment is named after the last step and micro-step, as `worker` does: "2/0/forward". Categories are those of `walk`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..candidate import Candidate
from ..ledger import Device, Entry, Item, Phase
from ..states import accumulates_in_fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Lines of a ledger and the tensors of an engine that they are."""

    items: tuple[Item, ...]
    categories: tuple[str, ...]
    devices: tuple[Device, ...] = (Device.GPU, Device.HOST)

    def planned(self, entries: Sequence[Entry]) -> int:
        """Bytes of the ledger's lines."""
        return sum(e.bytes for e in entries if e.item in self.items and e.device in self.devices)

    def held(self, totals: Mapping[str, int]) -> int:
        """Bytes of the engine's tensors."""
        return sum(totals.get(category, 0) for category in self.categories)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When an engine is looked at: the lines that are alive then, and the items that are not looked at."""

    name: str
    entries: tuple[Entry, ...]
    ignored: tuple[Item, ...] = ()


GPU, HOST = (Device.GPU,), (Device.HOST,)
WHEREVER = (
    Line(items=(Item.WEIGHTS,), categories=("weights", "weights_host")),
    Line(items=(Item.FROZEN, Item.QUANTIZED), categories=("frozen",)),
    Line(items=(Item.SCALES,), categories=("scales",)),
    Line(items=(Item.WEIGHTS_HOST_COPY,), categories=("weights_host_copy",)),
    Line(items=(Item.OFFLOAD_STAGING,), categories=("staging",), devices=GPU),
    Line(items=(Item.OFFLOAD_STAGING,), categories=("staging_host",), devices=HOST),
    Line(items=(Item.PERSISTENT,), categories=("persistent",)),
    Line(items=(Item.REDUCE_BUCKET,), categories=("reduce_bucket",)),
    Line(
        items=(Item.GRADIENTS, Item.ACCUMULATED),
        categories=("gradients", "gradients_fp32", "gradients_accumulated_host"),
    ),
)
ON_ONE_DEVICE = (
    Line(items=(Item.MASTER,), categories=("master", "master_stage_0")),
    Line(items=(Item.MOMENTS,), categories=("moments",)),
    Line(items=(Item.GRADIENTS_HOST,), categories=("master_gradients",)),
)
ON_BOTH = tuple(
    Line(items=line.items, categories=categories, devices=devices)
    for line in ON_ONE_DEVICE
    for categories, devices in ((line.categories, HOST), ((f"{line.categories[0]}_staying",), GPU))
)
SUMS = (Item.GRADIENTS, Item.ACCUMULATED)
LASTING = (Item.MOMENTS, Item.PERSISTENT)  # not there at start-up, there after every step


def lines_of(c: Candidate) -> tuple[Line, ...]:
    """Where states lie on both devices, each is compared on its own."""
    return (*WHEREVER, *(ON_BOTH if shares(c) else ON_ONE_DEVICE))


def shares(c: Candidate) -> bool:
    """Whether a part of the optimizer stays on the GPU and the rest lies on the host."""
    offload = c.ledger.deepspeed.get("zero_optimization", {}).get("offload_optimizer", {})
    return 0 < float(offload.get("ratio", 1)) < 1


def offloads_parameters(c: Candidate) -> bool:
    """Whether weights lie outside the GPU."""
    return "offload_param" in c.ledger.deepspeed.get("zero_optimization", {})


def states(c: Candidate) -> tuple[Entry, ...]:
    """The ledger's state lines."""
    return tuple(e for e in c.ledger.entries if e.item.section[0] in "WOG")


def alive(c: Candidate, phase: Phase) -> tuple[Entry, ...]:
    """State lines of a phase."""
    return tuple(e for e in states(c) if phase in e.phases)


def after_a_step(c: Candidate) -> tuple[Entry, ...]:
    """What stays from step to step: what start-up made, the states, the host's sums of earlier micro-steps."""
    kept = [e for e in states(c) if Phase.START in e.phases or (e.item in LASTING and Phase.FORWARD in e.phases)]
    return (*kept, *(e for e in states(c) if e.item is Item.ACCUMULATED and e.device is Device.HOST))


def reduced(c: Candidate) -> tuple[Entry, ...]:
    """Lines when stages 1 and 2 give their buckets back: stage 1 has let go of the whole gradient by then."""
    entries = alive(c, Phase.BACKWARD)
    return entries if c.zero_stage == 2 else (*(e for e in entries if e.item not in SUMS), *left_of_gradients(c))


def left_of_gradients(c: Candidate) -> tuple[Entry, ...]:
    """Lines of gradients once the backward pass has reduced them: what the step needs, and what never goes away."""
    return tuple(e for e in alive(c, Phase.STEP) if e.item in SUMS)


def last_micro_step(c: Candidate, steps: int) -> str:
    """How moments of the last micro-step of so many steps begin."""
    return f"{steps - 1}/{c.setting.gradient_accumulation_steps - 1}"


def moments(c: Candidate, steps: int) -> Iterator[Moment]:
    """Moments of the last step, the lines alive in them, and the items that are not looked at then.

    The whole gradient of stage 1 is seen as it waits for the last micro-step, in ``forward``.
    """
    last, flat = last_micro_step(c, steps), c.zero_stage in (1, 2)
    yield Moment(name="start", entries=alive(c, Phase.START))
    yield Moment(name=f"{last}/forward", entries=alive(c, Phase.FORWARD))
    if flat and not (c.zero_stage == 1 and accumulates_in_fp32(c.ledger)):
        yield Moment(name=f"{last}/backward/reduced", entries=reduced(c))
    ended = (*(e for e in alive(c, Phase.BACKWARD_END) if e.item not in SUMS), *left_of_gradients(c))
    yield Moment(name=f"{last}/backward", entries=ended, ignored=(Item.REDUCE_BUCKET,) if flat else ())
    yield Moment(name=f"{last}/step", entries=after_a_step(c))


def ignored_items(c: Candidate) -> tuple[Item, ...]:
    """What a CPU cannot show.

    Parameters that come back from the host to one rank are copied from device to device; here there is one device.
    Stage 0 hands whole tensors to Adafactor, which factors them: the line is an upper bound.
    """
    if c.setting.world_size == 1 and offloads_parameters(c):
        return (Item.PERSISTENT,)
    return (Item.MOMENTS,) if c.ledger.optimizer.name == "adafactor" and c.zero_stage == 0 else ()
