"""The ledger's prediction of what a trace measured: one rank without DeepSpeed, states in the training precision.

Symbols: W weights, G gradients, N trained elements, e bytes of the training precision, A activations.

    forward     W + A at the end of the layers or at the loss; + G of the micro-step before, and with a chunked loss the
                gradient in flight
    backward    the larger of W + A while everything kept is alive (+ G of the micro-step before) and
                W + G + A of the first layer + the gradient in flight
    step        W + G + 2 e N, a fused AdamW's moments, and a step count for each tensor
"""

from __future__ import annotations

from dataclasses import dataclass

from ..activations import loss_bytes
from ..evaluate import activation_entries
from ..ledger import BACKWARDS, Device, Item, Ledger, Phase
from ..states import in_flight_bytes, in_flight_phases
from ..transform import Setting
from . import Subject, Trace

FP32 = 4
MOMENTS = 2  # Adam


@dataclass(frozen=True, slots=True)
class Row:
    """One amount, traced and predicted."""

    name: str
    traced_bytes: int
    ledger_bytes: int

    @property
    def difference(self) -> float | None:
        """ledger / traced - 1; None where nothing was traced."""
        return self.ledger_bytes / self.traced_bytes - 1 if self.traced_bytes else None


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes of activations at their fullest, as the ledger counts them."""

    forward: int
    backward: int
    backward_end: int


def compared(trace: Trace, subject: Subject, ledger: Ledger, setting: Setting) -> tuple[Row, ...]:
    """States, activations and peaks by phase, beside what the ledger says.

    Args:
        trace: what was measured.
        subject: what of.
        ledger: trained, frozen and quantised tensors of the same method, no ZeRO.
        setting: one rank, the subject's batch.
    """
    element = subject.computation.precision.bytes
    weights = element * (ledger.trainable.total + ledger.frozen.total)
    weights += ledger.bytes_of(Item.QUANTIZED, Item.SCALES)
    gradients = element * ledger.trainable.total
    steps = FP32 * len(ledger.trainable.numels)
    moments = MOMENTS * gradients + steps if subject.optimizer_step else 0
    before = gradients if subject.micro_steps > 1 else 0
    held = activations(subject, ledger)
    in_flight = in_flight_bytes(ledger, setting)
    ends = gradients + held.backward_end + in_flight
    at_loss = in_flight if Phase.LOSS in in_flight_phases(ledger) else 0
    peaks = trace.peak_bytes
    return (
        Row("weights, with buffers", trace.parameter_bytes + trace.buffer_bytes, weights),
        Row("gradients", trace.gradient_bytes, gradients),
        Row("optimizer states", trace.optimizer_bytes, moments),
        Row("activations, forward", trace.activation_peak_bytes["forward"], held.forward),
        Row("activations, backward", trace.activation_peak_bytes["backward"], held.backward),
        Row("peak, forward", peaks["forward"], weights + before + held.forward + at_loss),
        Row("peak, backward", peaks["backward"], weights + max(before + held.backward, ends)),
        Row("peak, optimizer step", peaks["step"], weights + gradients + moments),
    )


def activations(subject: Subject, ledger: Ledger) -> Activations:
    """The ledger's lines by phase; the loss counts as forward, and its gradient as backward."""
    shape = (subject.model, subject.computation, subject.seq_len, subject.micro_batch)
    totals, logits = dict.fromkeys(Phase, 0), 0
    for entry in (*activation_entries(*shape), *ledger.entries):
        if entry.device is Device.GPU and entry.item.section.startswith(("A", "W4")):
            logits += entry.bytes if entry.item is Item.LOGITS else 0
            for phase in entry.phases:
                totals[phase] += entry.bytes
    loss, rest = loss_bytes(*shape), totals[Phase.LOSS] - logits
    return Activations(
        forward=max(totals[Phase.FORWARD], rest + loss.forward),
        backward=max(rest + loss.backward, *(totals[phase] for phase in BACKWARDS)),
        backward_end=totals[Phase.BACKWARD_END],
    )
