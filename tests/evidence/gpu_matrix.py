"""Which configurations are measured on a GPU, chosen for its memory: some small, many near out of memory on both sides.

A recipe fixes model and strategies; its micro-batch and sequence length follow from where the plan's prediction is to
lie. Predictions are those of `trainplan.estimate` for one GPU; nothing here needs torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trainplan
from trainplan.api import Estimate
from trainplan.planner.architectures import build_model
from trainplan.planner.computation import AttentionImplementation
from trainplan.planner.emit.launch import ALLOCATOR
from trainplan.planner.ledger import Device
from trainplan.planner.model import Model
from trainplan.planner.models import catalog, catalog_model
from trainplan.planner.transform import Stack
from trainplan.strategies.qlora import Qlora

ACCUMULATION = 2  # micro-steps of a step: the second meets the gradients of the first
STEPS = 4  # optimizer steps: states appear in the first, stage 3 prefetches from the third
LORA_RANK = 16
SEQUENCE_STEP = 128  # tokens; sequence lengths are multiples
LONGEST_SEQUENCE = 16384
MICRO_BATCHES = (1, 4, 16, 64)
SMALL_SEQUENCE = 1024
PRICE_USD_PER_GPU_HOUR = 1.0  # an estimate asks for one; no figure here depends on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """Where the predicted device memory lies, as a share of the card's."""

    name: str
    least: float
    most: float

    def aim(self, index: int) -> float:
        """A share within the zone; recipes take different ones, so that measurements spread over it."""
        return self.least + (self.most - self.least) * (0.2, 0.5, 0.8)[index % 3]


SMALL = Zone(name="small", least=0.0, most=0.85)
BELOW = Zone(name="below", least=0.85, most=0.97)
ABOVE = Zone(name="above", least=1.03, most=1.15)
ZONES = (SMALL, BELOW, ABOVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A model and the options of `trainplan.estimate` that do not depend on the batch."""

    model: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    zones: tuple[Zone, ...] = (BELOW, ABOVE)


def _recipe(model: str, label: str, *zones: Zone, **options: Any) -> Recipe:
    return Recipe(model=model, label=label, options=options, zones=zones or (BELOW, ABOVE))


LORA: Mapping[str, Any] = {"method": "lora", "lora_rank": LORA_RANK}
QLORA: Mapping[str, Any] = {"method": "qlora", "lora_rank": LORA_RANK}
BOTH_OFFLOADED: Mapping[str, Any] = {"offload_optimizer": "cpu", "offload_parameters": "cpu"}

RECIPES: tuple[Recipe, ...] = (
    # every stage, alike but for the stage
    *(_recipe("Qwen2.5-0.5B", f"zero{stage}", *ZONES, zero=stage) for stage in range(4)),
    *(_recipe("Llama-3.2-1B", f"zero{stage}-ckpt", *ZONES, zero=stage, checkpointing="full") for stage in range(4)),
    # small models, other architectures
    _recipe("SmolLM2-135M", "zero1", zero=1),
    _recipe("GPT-2", "zero0", *ZONES, zero=0),
    _recipe("GPT-2-XL", "zero2", zero=2),
    _recipe("Pythia-410M", "zero2-ckpt", zero=2, checkpointing="full"),
    _recipe("Gemma-3-1B", "zero2", zero=2),
    _recipe("Qwen3-0.6B", "zero1-ckpt-some", zero=1, checkpointing=9),
    _recipe("Qwen2.5-1.5B", "zero2-ckpt-some", zero=2, checkpointing=10),
    # attention, loss, optimizers, precision
    _recipe("Qwen2.5-0.5B", "zero1-eager", zero=1, require=("eager-attention",)),
    _recipe("Llama-3.2-1B", "zero2-eager-ckpt", zero=2, checkpointing="full", require=("eager-attention",)),
    _recipe("Qwen2.5-0.5B", "zero2-chunked", zero=2, require=("chunked-loss",)),
    _recipe("Llama-3.2-1B", "zero3-chunked-ckpt", *ZONES, zero=3, checkpointing="full", require=("chunked-loss",)),
    _recipe("Qwen2.5-0.5B", "zero2-lion", zero=2, require=("lion",)),
    _recipe("Qwen2.5-0.5B", "zero1-sgd", zero=1, require=("sgd",)),
    _recipe("Qwen2.5-0.5B", "zero1-adamw8bit", zero=1, require=("adamw-8bit",)),
    _recipe("Qwen2.5-0.5B", "zero2-fp16", zero=2, require=("fp16",)),
    _recipe("SmolLM2-135M", "zero0-fp32", zero=0, require=("fp32",)),
    # states on the host
    _recipe("Qwen2.5-1.5B", "zero2-optimizer-cpu", zero=2, offload_optimizer="cpu"),
    _recipe("Qwen2.5-1.5B", "zero3-optimizer-cpu", *ZONES, zero=3, offload_optimizer="cpu", checkpointing="full"),
    _recipe("Llama-3.2-1B", "zero3-share-cpu", zero=3, offload_optimizer="cpu", offload_ratio=0.5),
    _recipe("Qwen2.5-3B", "zero3-parameters-cpu", zero=3, offload_parameters="cpu", checkpointing="full"),
    _recipe("Qwen2.5-3B", "zero3-both-cpu", *ZONES, zero=3, checkpointing="full", **BOTH_OFFLOADED),
    _recipe("Llama-3.1-8B", "zero3-both-cpu", *ZONES, zero=3, checkpointing="full", **BOTH_OFFLOADED),
    # adapters
    _recipe("Qwen2.5-1.5B", "lora-zero0", zero=0, **LORA),
    _recipe("Qwen2.5-3B", "lora-zero2", zero=2, **LORA),
    _recipe("Qwen2.5-3B", "lora-attention-zero2", zero=2, **LORA, lora_targets=("q_proj", "v_proj")),
    _recipe("Llama-2-7B", "lora-zero2-ckpt", *ZONES, zero=2, checkpointing="full", **LORA),
    _recipe("Llama-3.1-8B", "lora-zero3-ckpt-some", zero=3, checkpointing=20, **LORA),
    _recipe("Llama-3.1-8B", "lora-params-cpu", zero=3, offload_parameters="cpu", checkpointing="full", **LORA),
    _recipe("Llama-3.2-1B", "qlora-zero0", zero=0, **QLORA),
    _recipe("Llama-2-7B", "qlora-zero2-ckpt", *ZONES, zero=2, checkpointing="full", **QLORA),
    _recipe("Llama-3.1-8B", "qlora-zero2", *ZONES, zero=2, **QLORA),
    _recipe("Qwen3-8B", "qlora-zero2-chunked-ckpt", zero=2, checkpointing="full", require=("chunked-loss",), **QLORA),
    _recipe("Llama-3.1-8B", "qlora-zero3-ckpt", zero=3, checkpointing="full", **QLORA),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What the plan says of one GPU, in bytes, and its most by phase."""

    allocated: int
    reserved: int
    device: int
    upper: int
    capacity: int
    phases: Mapping[str, int]

    @property
    def share(self) -> float:
        """Predicted device memory as a share of the card's."""
        return self.device / self.capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One measured run: what the plan emits, and what it leaves to the training script."""

    id: str
    zone: str
    model: str
    model_config: Mapping[str, Any]  # of transformers, with model_type
    shape: Mapping[str, Any]  # columns of the measurements table that describe the model
    ds_config: Mapping[str, Any]
    method: str
    zero_stage: int
    offload_optimizer: str
    offload_parameters: str
    precision: str
    optimizer: str
    attention: str
    checkpointed_layers: int
    layers: int
    lora_rank: int  # 0: every weight is trained
    lora_targets: tuple[str, ...]  # (): every linear layer
    double_quantization: bool
    loss_chunk: int
    trainable: int  # elements that the plan's ledger trains
    seq_len: int
    micro_batch: int
    accumulation: int
    steps: int
    gpu: str
    predicted: Predicted


def launch(config: str, script: str) -> str:
    """DeepSpeed's launcher on one GPU, with the allocator of every plan."""
    return f"{ALLOCATOR} {shlex.join(['deepspeed', '--num_gpus', '1', script, '--deepspeed', config])}"


def configurations(gpu: str, *, host_gib: float) -> tuple[Configuration, ...]:
    """The matrix for one card; a recipe that cannot be brought into a zone (the model is too large) is left out of it.

    Args:
        gpu: name in the catalog.
        host_gib: the machine's RAM.
    """
    return tuple(_all(gpu, host_gib))


def _all(gpu: str, host_gib: float) -> Iterator[Configuration]:
    for index, recipe in enumerate(RECIPES):
        row = catalog()[recipe.model]
        model = catalog_model(recipe.model)
        for zone in recipe.zones:
            found = _placed(model, recipe, zone, index, gpu, host_gib)
            if found is not None:
                name = f"{recipe.model}-{recipe.label}-{zone.name}".lower()
                yield configuration(found, name, row.config, zone=zone.name, gpu=gpu)


def estimated(
    model: Model, options: Mapping[str, Any], seq_len: int, micro_batch: int, gpu: str, host_gib: float
) -> Estimate:
    """The plan of one batch on one GPU."""
    return trainplan.estimate(
        model,
        gpus=f"1x{gpu}",
        price=PRICE_USD_PER_GPU_HOUR,
        gpus_per_node=1,
        host_memory_gib=host_gib,
        seq_len=seq_len,
        micro_batch=micro_batch,
        global_batch=micro_batch * ACCUMULATION,
        **options,
    )


def _placed(model: Model, recipe: Recipe, zone: Zone, index: int, gpu: str, host_gib: float) -> Estimate | None:
    """A batch whose predicted share of the card lies in the zone, near the aim; None: there is none.

    Recipes begin with different micro-batches, so that short sequences and long ones are both measured.
    """
    longest = min(model.max_positions or LONGEST_SEQUENCE, LONGEST_SEQUENCE)
    lengths = range(SEQUENCE_STEP, longest + 1, SEQUENCE_STEP)
    first = index % len(MICRO_BATCHES)
    for micro_batch in (1,) if zone is SMALL else MICRO_BATCHES[first:] + MICRO_BATCHES[:first]:

        def at(seq_len: int, sequences: int = micro_batch) -> Estimate:
            return estimated(model, recipe.options, seq_len, sequences, gpu, host_gib)

        length = SMALL_SEQUENCE if zone is SMALL else _reaching(zone.aim(index), lengths, at)
        found = at(length)
        if zone.least <= _share(found) <= zone.most and found.candidate.host.fits:
            return found
    return None


def _reaching(aim: float, lengths: Sequence[int], at: Callable[[int], Estimate]) -> int:
    """The shortest length whose share is at least the aim, by halving; the longest where none is."""
    low, high = 0, len(lengths) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _share(at(lengths[middle])) >= aim else (middle + 1, high)
    return lengths[low]


def _share(found: Estimate) -> float:
    gpu = found.candidate.gpu
    return gpu.device_bytes / gpu.capacity_bytes


def configuration(found: Estimate, name: str, model_config: Mapping[str, Any], *, zone: str, gpu: str) -> Configuration:
    """An estimate as a run to measure."""
    candidate = found.candidate
    computation, setting = candidate.ledger.computation, candidate.setting
    facts = _facts(candidate.stack)
    adapters = computation.adapters
    return Configuration(
        id=name,
        zone=zone,
        model=setting.model.name,
        model_config=dict(model_config),
        shape=_shape(setting.model),
        ds_config=found.ds_config,
        method=candidate.method.value,
        zero_stage=candidate.zero_stage,
        offload_optimizer=str(facts.get("offload_optimizer") or ""),
        offload_parameters=str(facts.get("offload_parameters") or ""),
        precision=computation.precision.value,
        optimizer=candidate.ledger.optimizer.name,
        attention="eager" if computation.attention is AttentionImplementation.EAGER else "sdpa",
        checkpointed_layers=computation.checkpointed_layers,
        layers=setting.model.layers,
        lora_rank=adapters.rank if adapters else 0,
        lora_targets=adapters.targets if adapters else (),
        double_quantization=any(isinstance(s, Qlora) and s.double_quantization for s in candidate.stack.strategies),
        loss_chunk=computation.loss_chunk,
        trainable=candidate.ledger.trainable.total,
        seq_len=setting.workload.seq_len,
        micro_batch=setting.micro_batch,
        accumulation=setting.gradient_accumulation_steps,
        steps=STEPS,
        gpu=gpu,
        predicted=_predicted(found),
    )


def _facts(stack: Stack) -> Mapping[str, object]:
    return {key: value for strategy in stack.strategies for key, value in strategy.facts.items()}


def _predicted(found: Estimate) -> Predicted:
    gpu = found.candidate.gpu
    phases = found.candidate.ledger.by_phase(Device.GPU)
    return Predicted(
        allocated=gpu.allocated_bytes,
        reserved=gpu.reserved_bytes,
        device=gpu.device_bytes,
        upper=gpu.upper_bound_bytes,
        capacity=gpu.capacity_bytes,
        phases={phase.value: size for phase, size in phases.items()},
    )


def _shape(model: Model) -> dict[str, Any]:
    """The model's columns; a table of measurements that holds them needs no catalog."""
    block = model.blocks[0]
    attention, mlp = block.attention, block.mlp
    shape: dict[str, Any] = {"layers": model.layers, "hidden": model.hidden, "vocab": model.vocab}
    shape |= {"tied_emb": "yes" if model.tied else "no", "params": model.parameter_count}
    if attention is not None:
        shape |= {"heads": attention.heads, "kv_heads": attention.kv_heads, "head_dim": attention.head_dim}
    return shape | ({"ffn": mlp.intermediate} if mlp is not None else {})


def own_model(config: Mapping[str, Any], name: str) -> Model:
    """A model that is not in the catalog, from transformers' keys.

    Raises:
        InputError: the keys make no model.
    """
    return build_model(config, name=name, source="tests")
