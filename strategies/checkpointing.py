"""Activation checkpointing of the first k of L layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..planner.ledger import Ledger
from ..planner.transform import Setting
from ..planner.work import Resource, When, Work


@dataclass(frozen=True, slots=True)
class Checkpointing:
    """The first k layers keep only their input and run forward once more in the backward pass.

    The first layers are chosen because the others are already released when these are recomputed. DeepSpeed's own
    ``activation_checkpointing`` block does nothing for Hugging Face models, so it is not written: the training script
    enables it per layer.

    Source:
        Chen et al. 2016 (arXiv:1604.06174); transformers 5.23.0 GradientCheckpointingLayer; DeepSpeed 0.19.8: engine
        never calls deepspeed.checkpointing.configure (checked on a real engine). Memory model §A2, §A3.
    """

    layers: int
    on_host: bool = False
    rank = 42

    @property
    def name(self) -> str:
        """As typed after --require."""
        return "checkpointing-offload" if self.on_host else "checkpointing"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"checkpointing": "host" if self.on_host else "gpu"}

    def accepts(self, setting: Setting) -> str | None:
        """k is one of 1..L."""
        layers = setting.workload.model.layers
        if not 1 <= self.layers <= layers:
            return f"{self.layers} checkpointed layers; {setting.model.name} has {layers}"
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Keep inputs instead of activations; offloaded inputs cross the host link twice per micro-step."""
        layers = min(self.layers, setting.model.layers)  # a pipeline's stage has fewer
        changed = replace(
            ledger,
            computation=replace(ledger.computation, checkpointed_layers=layers, checkpoints_on_host=self.on_host),
        )
        if not self.on_host:
            return changed
        size = ledger.computation.precision.bytes * setting.model.hidden * setting.seq_len * setting.micro_batch
        moved = float(layers * size)
        return changed.doing(
            Work(name="checkpoints to host", resource=Resource.GPU_TO_HOST, amount=moved, when=When.FORWARD, side=True),
            Work(
                name="checkpoints from host", resource=Resource.HOST_TO_GPU, amount=moved, when=When.BACKWARD, side=True
            ),
        )
