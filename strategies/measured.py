"""From a row of measurements to what we would have predicted of it: the strategies that were in force, folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..planner.candidate import all_work
from ..planner.efficiency import architecture_key, is_young, value
from ..planner.evaluate import evaluate
from ..planner.frameworks import Framework, framework_of
from ..planner.hardware import Gpu
from ..planner.ledger import BACKWARDS, Certainty, Device, Entry, Item, Ledger, Phase
from ..planner.measurements import machine, shape, subject
from ..planner.measurements.layout import layout_of
from ..planner.measurements.score import Prediction
from ..planner.measurements.table import Measurement, Unsupported
from ..planner.memory import GpuMemory, memory_of
from ..planner.model import Model
from ..planner.parallel import Split, longest_stage, micro_batches_in_flight, places, stage
from ..planner.pipeline import pipeline_step_s
from ..planner.time import StepTime, price
from ..planner.transform import Setting, Stack, Strategy
from ..planner.work import Resource, Work
from ..planner.workload import Method, Workload
from .attention import Attention
from .checkpointing import Checkpointing
from .framework import FrameworkStates
from .kernels import FrameworkKernels
from .lora import Lora
from .model_parallel import ModelParallel
from .loss import ChunkedLoss
from .offload_optimizer import OffloadOptimizer
from .offload_parameters import OffloadParameters
from .optimizer import OPTIMIZERS, Optimizer
from .precision import Precision
from .qlora import Qlora
from .zero import Zero

# Words of optimizers' names, and ours; bitsandbytes' "PagedAdamW" without a number keeps 32-bit states.
OPTIMIZER_WORDS = (("8bit", "adamw-8bit"), ("lion", "lion"), ("adafactor", "adafactor"), ("sgd", "sgd"))


def predict(row: Measurement) -> Prediction:
    """Memory of the fullest pipeline stage, and tokens per second where time is modelled.

    Raises:
        Unsupported: the row cannot be expressed.
    """
    if not row.text("act_ckpt"):
        return _undecided(row)
    chosen = subject.checkpointing_of(row)
    if chosen == "selective" and framework_of(row.text("framework")).sharding != "torch":
        chosen = "none"  # Megatron recomputes the attention's inside alone, of which flash kernels keep nothing
    return _predict(row, chosen)


def _undecided(row: Measurement) -> Prediction:
    """Checkpointing is not stated: none where its tensors have room; where only all of it surely fits, that is open."""
    plain = _predict(row, "none")
    if plain.fits:
        return plain
    sparing = _predict(row, "full")
    if not sparing.fits:
        return plain
    likelier = plain if plain.memory.allocated_bytes <= plain.memory.capacity_bytes else sparing
    quicker = plain if framework_of(row.text("framework")).fused else likelier  # such recipes are tuned not to recompute
    return replace(likelier, fits=None, tokens_per_s_per_gpu=quicker.tokens_per_s_per_gpu)


def _predict(row: Measurement, checkpointing: str) -> Prediction:
    whole = shape.as_run(shape.model_of(row), framework_of(row.text("framework")))
    split = subject.split_of(row, whole)
    stages = dict.fromkeys((0, longest_stage(whole.layers, split), split.pipeline - 1))
    parts = [_part(row, whole, split, index, checkpointing) for index in stages]
    fullest = max(parts, key=lambda part: part.memory.allocated_bytes)
    seconds = _step_s(row, parts, split)
    tokens = row.whole("micro_batch") * row.micro_steps * row.whole("seq_len") / split.ranks
    return Prediction(
        memory=fullest.memory,
        ledger=fullest.ledger,
        fits=fullest.memory.fits,
        tokens_per_s_per_gpu=tokens / seconds if seconds else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One rank of one pipeline stage."""

    ledger: Ledger
    setting: Setting
    memory: GpuMemory


def _part(row: Measurement, whole: Model, split: Split, index: int, checkpointing: str) -> Part:
    model = stage(whole, split, index)
    setting = _setting(row, model, split)
    stack = _stack(row, model, split, checkpointing)
    ledger = evaluate(stack, setting)
    if checkpointing == "selective":
        ledger = _selective(ledger, setting)
    ledger = _pipelined(ledger, row, setting, split, index)
    memory = memory_of(
        ledger,
        machine.capacity_of(row),
        communicators=machine.communicators_of(row, split),
        allocator=machine.allocator_of(row),
    )
    return Part(ledger=ledger, setting=setting, memory=memory)


def _setting(row: Measurement, model: Model, split: Split) -> Setting:
    if not row.whole("seq_len") or not row.whole("micro_batch"):
        raise Unsupported("sequence length or micro-batch is not stated")
    micro_batch, micro_steps = row.whole("micro_batch"), row.micro_steps
    sequences = micro_batch * micro_steps * row.replicas
    seq_len = -(-row.whole("seq_len") // split.context)
    ranks = max(d for d in range(1, machine.GPUS_PER_NODE + 1) if row.replicas % d == 0)
    return Setting(
        workload=Workload(model=model, tokens=sequences * seq_len, seq_len=seq_len, global_batch=sequences),
        nodes=row.replicas // ranks,
        ranks_per_node=ranks,
        micro_batch=micro_batch,
    )


def _stack(row: Measurement, model: Model, split: Split, checkpointing: str) -> Stack:
    framework, name = framework_of(row.text("framework")), optimizer_of(row)
    layers = subject.checkpointed_layers(checkpointing, model.layers)
    return Stack.of(
        Precision(subject.precision_of(row)),
        *_method(row, model),
        Optimizer(name),
        FrameworkKernels(subject.kernels_of(row, framework, split)),
        ModelParallel(split, overlapped=framework.overlapped),
        *((ChunkedLoss(),) if subject.loss_chunk_of(row, framework) else ()),
        Attention(subject.attention_of(row, model)),
        *((Checkpointing(layers),) if layers else ()),
        *_states(row, framework, split, name),
    )


def _states(row: Measurement, framework: Framework, split: Split, optimizer: str) -> tuple[Strategy, ...]:
    """ZeRO and offload as we emit them, or another framework's layout."""
    stage = row.whole("zero_stage")
    if framework.sharding != "engine":
        return (FrameworkStates(layout_of(row, framework, split, OPTIMIZERS[optimizer].state_bytes), stage),)
    moved = row.text("offload").lower()
    device = "nvme" if "nvme" in moved else "cpu"
    return (
        Zero(stage),
        *((OffloadOptimizer(device),) if "optim" in moved else ()),
        *((OffloadParameters(device),) if "param" in moved else ()),
    )


def optimizer_of(row: Measurement) -> str:
    """Our name of the row's optimizer; AdamW where none is stated."""
    text = row.text("optimizer").lower().replace("-", "")
    return next((name for word, name in OPTIMIZER_WORDS if word in text), "adamw")


def _method(row: Measurement, model: Model) -> tuple[Strategy, ...]:
    method = subject.method_of(row)
    if method is Method.FULL:
        return ()
    adapters = shape.adapters_of(row, model)
    if method is Method.LORA:
        return (Lora(adapters),)
    return (Qlora(adapters, double_quantization="double" in row.text("quant_base")),)


def _selective(ledger: Ledger, setting: Setting) -> Ledger:
    """Results of some operations stay beside the checkpoints."""
    tokens = setting.workload.seq_len * setting.micro_batch
    size = subject.selectively_kept_bytes(setting.model, ledger.computation.precision.bytes, tokens)
    phases = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.RECOMPUTE)
    return ledger.plus(
        Entry(Item.SAVED, Device.GPU, size, phases, "kept by selective checkpointing", Certainty.ASSUMED)
    )


def _pipelined(ledger: Ledger, row: Measurement, setting: Setting, split: Split, index: int) -> Ledger:
    """Other micro-batches wait for their backward pass on the stages of a pipeline; see `micro_batches_in_flight`."""
    if split.pipeline == 1 or subject.is_layer_split(row):
        return ledger
    in_flight = micro_batches_in_flight(split, index, setting.gradient_accumulation_steps)
    kept = ledger.bytes_of(Item.SAVED, Item.CHECKPOINTS)
    output = ledger.computation.precision.bytes * setting.model.hidden * setting.workload.seq_len * setting.micro_batch
    framework = framework_of(row.text("framework"))
    outputs = in_flight * output if framework.sharding == "deepspeed" else 0.0
    why = f"{in_flight:.1f} micro-batches in flight on stage {index}"
    size = round((in_flight - 1) * kept + outputs)
    phases = (Phase.FORWARD, Phase.LOSS, *BACKWARDS)
    return ledger.plus(Entry(Item.WAITING, Device.GPU, size, phases, why, Certainty.ASSUMED, framework.source))


def _step_s(row: Measurement, parts: Sequence[Part], split: Split) -> float | None:
    """Seconds of one optimizer step; None for a GPU that is not in the catalog."""
    gpu = machine.gpu_of(row)
    if gpu is None or subject.is_layer_split(row):
        return None
    times = [_stage_time(row, part, split, gpu) for part in parts]
    return pipeline_step_s(times, split)


def _stage_time(row: Measurement, part: Part, split: Split, gpu: Gpu) -> StepTime:
    """One stage's micro-steps, as if it were alone."""
    framework = framework_of(row.text("framework"))
    work = [_of_its_time(w, framework, gpu) for w in all_work(part.ledger, part.setting)]
    node = machine.node_of(row, gpu)
    data = part.setting.world_size
    return price(
        work,
        node,
        nodes=part.setting.nodes,
        ranks_per_node=part.setting.ranks_per_node,
        gradient_accumulation_steps=part.setting.gradient_accumulation_steps,
        precision=part.ledger.computation.precision,
        places=places(split, data, node.gpus),
    )


def _of_its_time(work: Work, framework: Framework, gpu: Gpu) -> Work:
    """Kernels of another generation than those the rates were measured on are slower or faster by one factor."""
    if work.resource is Resource.ATTENTION and framework.attention_generation:
        return replace(work, amount=work.amount / value("attention_generation", framework.attention_generation))
    if work.resource is Resource.MATMUL and is_young(gpu.architecture, framework.software):
        return replace(work, amount=work.amount / value("matmul_generation", architecture_key(gpu.architecture)))
    return work
