"""From a stack in a setting to the whole ledger: state lines from the fold, activation lines from the computation."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from .activations import LayerSums, certainty, constant_bytes, forward_bytes, head_saved_bytes, layer_sums, loss_bytes
from .calibration import AS_COUNTED, Range
from .computation import Computation
from .ledger import ALWAYS, BACKWARDS, Certainty, Device, Entry, Item, Ledger, Phase
from .model import Model
from .overheads import overhead
from .parallel import WHOLE, micro_batches_in_flight
from .saving import saving_entries
from .states import baseline, replicated
from .transform import Setting, Stack, fold
from .units import GIB

COMPUTING = (Phase.FORWARD, Phase.LOSS, *BACKWARDS)
SAVED_PHASES = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD)


def evaluate(stack: Stack, setting: Setting) -> Ledger:
    """Fold the stack and add every line that follows from what is computed."""
    return complete(fold(baseline(setting), stack, setting), setting)


def complete(folded: Ledger, setting: Setting) -> Ledger:
    """Add to a folded ledger what no strategy writes: activations, the process, state lines where ZeRO did not."""
    if folded.stage is None:
        folded = replicated(folded, setting)
    lines = activation_entries(setting.model, folded.computation, setting.seq_len, setting.micro_batch)
    whole = folded.plus(*lines, *_host_entries(folded, setting), *saving_entries(folded, setting))
    return with_live_excess(_as_sure(whole.plus(*waiting_entries(whole, setting)), setting), setting.live)


def _as_sure(ledger: Ledger, setting: Setting) -> Ledger:
    """No engine was walked whose model is cut over ranks: its states are assumed to be laid out as others are."""
    if setting.split is WHOLE:
        return ledger
    exact = Certainty.EXACT
    lines = (replace(e, certainty=Certainty.ASSUMED) if e.certainty is exact else e for e in ledger.entries)
    return replace(ledger, entries=tuple(lines))


def with_live_excess(ledger: Ledger, live: Range) -> Ledger:
    """Lines on the GPU that are not exact, larger by the share that rows of the platform measured.

    bytes (1 + x) at the point; the upper bound keeps the line's own margin: upper + bytes x upper end of x.
    """
    if live is AS_COUNTED or live == AS_COUNTED:  # the first is quick: this is a hot path
        return ledger
    return replace(ledger, entries=tuple(_with_excess(e, live) for e in ledger.entries))


def _with_excess(entry: Entry, live: Range) -> Entry:
    if entry.device is not Device.GPU or entry.certainty is Certainty.EXACT:
        return entry
    return replace(
        entry,
        bytes=round(entry.bytes * (1 + live.point)),
        upper=math.ceil(entry.upper_bytes + entry.bytes * live.upper),
        why=f"{entry.why}, x {1 + live.point:.3f} (profile)",
    )


def waiting_entries(ledger: Ledger, setting: Setting) -> tuple[Entry, ...]:
    """Other micro-batches wait for their backward pass on the stages of a pipeline; see `micro_batches_in_flight`."""
    if setting.split.pipeline == 1:
        return ()
    index = setting.stage_index
    in_flight = micro_batches_in_flight(setting.split, index, setting.gradient_accumulation_steps)
    size = round((in_flight - 1) * ledger.bytes_of(Item.SAVED, Item.CHECKPOINTS))
    phases = (Phase.FORWARD, Phase.LOSS, *BACKWARDS)
    why = f"{in_flight:.1f} micro-batches in flight on stage {index}"
    return (Entry(Item.WAITING, Device.GPU, size, phases, why, Certainty.ASSUMED, PIPELINE_SOURCE),)


PIPELINE_SOURCE = "Narayanan et al. 2021 (arXiv:2104.04473) §2.2"


@lru_cache(maxsize=65536)
def activation_entries(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> tuple[Entry, ...]:
    """Lines §A1-§A7 for one micro-batch.

    The logits are charged at the larger of the loss's forward and backward. In the recompute phase only checkpoints and
    one segment are alive; at the end of the backward pass only the first layer. Of padded batches some are full, whose
    mask transformers drops: each line is the larger of both.
    """
    lines = _activation_entries(model, computation, seq_len, micro_batch)
    if not computation.padded:
        return lines
    full = _activation_entries(model, replace(computation, padded=False), seq_len, micro_batch)
    return tuple(max(pair, key=lambda entry: entry.bytes) for pair in zip(lines, full, strict=True))


def _activation_entries(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> tuple[Entry, ...]:
    sums = layer_sums(model, computation, seq_len, micro_batch)
    loss = loss_bytes(model, computation, seq_len, micro_batch)
    ends = bool(model.head) or model.tied  # a pipeline's earlier stages have neither
    head = head_saved_bytes(model, computation, seq_len, micro_batch) if ends else 0
    forward = forward_bytes(model, computation, seq_len, micro_batch)
    logits = max(loss.forward, loss.backward) if ends else 0
    constant = constant_bytes(model, computation, seq_len, micro_batch)
    known = certainty(model)
    where = Device.HOST if computation.checkpoints_on_host else Device.GPU
    k, kept = computation.checkpointed_layers, model.layers - computation.checkpointed_layers
    tokens = f"{micro_batch} x {seq_len:,} tokens"

    def line(item: Item, size: int, phases: tuple[Phase, ...], why: str, device: Device = Device.GPU) -> Entry:
        return Entry(item, device, size, phases, why, known, "traced models, torch 2.13.0, transformers 5.23.0")

    return (
        line(Item.SAVED, sums.saved, SAVED_PHASES, f"{kept} layers, {tokens}"),
        line(
            Item.CHECKPOINTS,
            sums.checkpoints,
            (*SAVED_PHASES, Phase.RECOMPUTE),
            f"inputs of {k} layers, {tokens}",
            where,
        ),
        line(Item.SEGMENT, sums.segment, (Phase.RECOMPUTE,), f"one recomputed layer and its temporaries, {tokens}"),
        line(Item.TRANSIENT, sums.transient, (Phase.BACKWARD,), f"backward of one layer, {tokens}"),
        line(Item.SEGMENT, sums.first, (Phase.BACKWARD_END,), f"first layer and its temporaries, {tokens}"),
        line(
            Item.FORWARD,
            max(0, forward - sums.saved - (0 if where is Device.HOST else sums.checkpoints) - head),
            (Phase.FORWARD,),
            f"forward pass of one layer, {tokens}",
        ),
        line(Item.HEAD, head, (Phase.FORWARD, Phase.LOSS), tokens),
        line(Item.LOGITS, logits, (Phase.LOSS,), f"vocabulary {model.vocab:,}, {tokens}"),
        line(Item.CONSTANTS, constant, COMPUTING, tokens),
    )


def _host_entries(ledger: Ledger, setting: Setting) -> tuple[Entry, ...]:
    """The process itself, and the model on its way to the GPU.

    Without zero.Init (and so below stage 3) every rank reads the whole 16-bit model into its own memory; with it rank 0
    of a node does; 4-bit models go to the GPU shard by shard.

    Source:
        DeepSpeed 0.19.8 engine.py _configure_distributed_model; transformers 5.23.0 integrations/deepspeed.py; issues
        huggingface/transformers#24964, deepspeedai/DeepSpeed#3125.
    """
    process = overhead("host_process")
    size = ledger.computation.precision.bytes * setting.model.parameter_count
    loading = -(-size // setting.ranks_per_node) if ledger.stage == 3 and ledger.zero_init else size
    if ledger.computation.quantized:
        loading = min(loading, LARGEST_SHARD_BYTES)
    return (
        Entry(
            Item.PROCESS,
            Device.HOST,
            round(process.point * GIB),
            ALWAYS,
            "one training process",
            Certainty.ASSUMED,
            process.source,
            round(process.upper * GIB),
        ),
        Entry(
            Item.LOADING,
            Device.HOST,
            loading,
            (Phase.START,),
            "16-bit weights read before they reach the GPU",
            Certainty.ASSUMED,
        ),
    )


LARGEST_SHARD_BYTES = (
    5 * 10**9
)  # transformers saves shards of 5 GB unless told otherwise (save_pretrained, max_shard_size)
__all__ = ["LayerSums", "activation_entries", "evaluate"]
