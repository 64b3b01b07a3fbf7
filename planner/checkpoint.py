"""What one checkpoint writes: the weights, and what DeepSpeed needs to go on.

transformers' Trainer writes the 16-bit weights in one file, then the engine its own: at stages 0 to 2 the weights
again, from stage 1 on each rank its slice of the fp32 master and moments. Under LoRA only adapters are written (the
frozen base is left out); the base is read from where it came.

Source:
    DeepSpeed 0.19.8 runtime/engine.py, ``_save_checkpoint`` (at stage 3 parameters are placeholders there) and
    ``_save_zero_checkpoint``; transformers 5.23.0 trainer.py, ``_save_optimizer_and_scheduler`` with
    ``exclude_frozen_parameters``. Compared with the files of real engines: tests/integration/test_checkpoint_files.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from .ledger import Item, Ledger
from .parallel import WHOLE
from .states import trained_tensors
from .transform import Setting

STATES = (Item.MASTER, Item.MOMENTS)
FILE_BYTES = 2  # of a weight in the model's own files, from which a run starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Bytes of one checkpoint in the whole cluster, by who writes them."""

    weights_bytes: int  # by rank 0: the 16-bit weights that were trained
    module_bytes: int  # by rank 0: the engine's own copy of them
    states_bytes: int  # fp32 master and moments
    sharded: bool  # each rank writes its slice of the states; else rank 0 writes them all

    @property
    def total_bytes(self) -> int:
        """All files."""
        return self.weights_bytes + self.module_bytes + self.states_bytes

    @property
    def alone_bytes(self) -> int:
        """What rank 0 writes while the others wait."""
        return self.weights_bytes + self.module_bytes + (0 if self.sharded else self.states_bytes)

    @property
    def parallel_bytes(self) -> int:
        """What all ranks write at once."""
        return self.states_bytes if self.sharded else 0


def checkpoint(ledger: Ledger, setting: Setting) -> Checkpoint:
    """One checkpoint of a finished ledger.

    Formula: e N + (e N at stages 0 to 2) + ranks x (master + moments of one rank); at stage 0 the states once. N
    trained elements, e bytes of one in training precision. Where the model is cut, N is that of all of it, and its
    states are to N as those of the part looked at are to the elements that its ranks hold together.
    """
    sharded = bool(ledger.stage)
    states = sum(e.bytes for e in ledger.entries if e.item in STATES) * (setting.world_size if sharded else 1)
    elements = ledger.trainable.total
    if setting.split is not WHOLE:
        elements = trained_tensors(setting.workload.model, ledger.computation.adapters).total
        shared, experts = ledger.trainable.parts
        held = shared.total + experts.total * (setting.split.expert if sharded else 1)
        states = round(states * elements / held) if held else 0
    weights = ledger.computation.precision.bytes * elements
    return Checkpoint(
        weights_bytes=weights,
        module_bytes=0 if ledger.stage == 3 else weights,
        states_bytes=states,
        sharded=sharded,
    )
