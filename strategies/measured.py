"""From a row of measurements to what we would have predicted of it: the strategies that were in force, folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..planner.calibrate.cases import Case, Measured
from ..planner.calibration import AS_SHIPPED, Calibration
from ..planner.candidate import all_work
from ..planner.checkpoint import checkpoint
from ..planner.efficiency import architecture_key, is_young, value
from ..planner.evaluate import evaluate, with_live_excess
from ..planner.frameworks import Framework, framework_of
from ..planner.hardware import Gpu, Node, Tier, calibrated
from ..planner.ledger import BACKWARDS, Certainty, Device, Entry, Item, Ledger, Phase
from ..planner.measurements import machine, runs, shape, subject
from ..planner.measurements.layout import ZERO_WEIGHTS, layout_of
from ..planner.measurements.score import GpuHours, Prediction, Rate
from ..planner.measurements.table import Measurement, MemoryKind, Unsupported
from ..planner.memory import GpuMemory, memory_of
from ..planner.model import Model
from ..planner.parallel import Split, micro_batches_in_flight
from ..planner.run import whole_run
from ..planner.time import Seconds, StepTime, pipelined, price, step_seconds
from ..planner.transform import Setting, Stack, Strategy
from ..planner.work import Resource
from ..planner.workload import Method, Workload
from .attention import Attention
from .checkpointing import Checkpointing
from .framework import FrameworkStates
from .kernels import FrameworkKernels
from .lora import Lora
from .loss import ChunkedLoss
from .model_parallel import ModelParallel, expert_domains
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
    if row.whole_run:
        return _whole_run(runs.as_run(row, has_room, speed))
    return _stated(row)


def _whole_run(run: runs.RunRow) -> Prediction:
    """As any other row, and its GPU-hours."""
    parts = parts_of(run.row, checkpointing_of(run.row))
    return replace(_predict(run.row, parts), run=run, hours=_gpu_hours(run.row, parts))


def has_room(row: Measurement) -> bool:
    """Whether the expected memory is within the GPU's."""
    memory = _fullest(parts_of(row, checkpointing_of(row))).memory
    return memory.device_bytes <= memory.capacity_bytes


def speed(row: Measurement) -> float:
    """Tokens per second and GPU; 0 where time is not modelled."""
    rate = _rate(row, parts_of(row, checkpointing_of(row)))
    return rate.point if rate else 0.0


def _stated(row: Measurement) -> Prediction:
    return _predict(row, parts_of(row, checkpointing_of(row))) if row.text("act_ckpt") else _undecided(row)


def checkpointing_of(row: Measurement) -> str:
    """What was recomputed: "none", "full", "selective" or a number of layers; see `subject.checkpointing_of`."""
    chosen = subject.checkpointing_of(row)
    if chosen == "selective" and framework_of(row.text("framework")).sharding != "torch":
        return "none"  # Megatron recomputes the attention's inside alone, of which flash kernels keep nothing
    return chosen


def _undecided(row: Measurement) -> Prediction:
    """Checkpointing is not stated: none where its tensors have room; where only all of it surely fits, that is open."""
    plain = parts_of(row, "none")
    memory = _fullest(plain).memory
    if memory.fits:
        return _predict(row, plain)
    sparing = parts_of(row, "full")
    if not _fullest(sparing).memory.fits:
        return _predict(row, plain)
    likelier = plain if memory.allocated_bytes <= memory.capacity_bytes else sparing
    is_tuned = framework_of(row.text("framework")).fused and row.whole("zero_stage") < ZERO_WEIGHTS
    quicker = plain if is_tuned else likelier  # such recipes are tuned not to recompute
    return replace(_predict(row, likelier, timed=quicker), fits=None)


def _predict(row: Measurement, parts: Sequence[Part], timed: Sequence[Part] = ()) -> Prediction:
    """Of such parts, or with the time of others."""
    fullest = _fullest(parts)
    return Prediction(
        memory=fullest.memory,
        ledger=fullest.ledger,
        fits=fullest.memory.fits,
        rate=_rate(row, timed or parts),
        flops_per_token=subject.flops_per_token_of(row, fullest.setting.workload.model),
    )


def case_of(row: Measurement, source: str) -> Case:
    """A row to calibrate with: its figures, and what is planned for it under any calibration.

    Args:
        row: measured, with everything stated that decides memory and time.
        source: the table's name.

    Raises:
        Unsupported: it cannot be expressed, leaves checkpointing open, or its GPU is not in the catalog.
    """
    gpu = machine.gpu_of(row)
    if row.whole_run:
        raise Unsupported("a whole run: its hours contain more than steps")
    if not row.text("act_ckpt"):
        raise Unsupported("activation checkpointing is not stated")
    if gpu is None:
        raise Unsupported(f"GPU {row.text('gpu') or 'not stated'}: not in the catalog")
    parts = parts_of(row, checkpointing_of(row))
    timed = row.tokens_per_s_per_gpu and _step_time(row, parts)
    step_s = _tokens(row, parts) / row.tokens_per_s_per_gpu if timed else None
    measured = replace(Measured(step_s=step_s), **{BYTES_OF[row.memory_kind]: int(row.peak_bytes) or None})
    if not any((*measured.memory, measured.step_s)):
        raise Unsupported("nothing measured that is planned")
    return Case(
        label=row.identity,
        source=source,
        gpu=gpu.name,
        measured=measured,
        memory=lambda calibration: _fullest_memory(row, parts, calibration),
        step=lambda calibration: _step_time(row, parts, calibration),
        allocator=machine.allocator_of(row),
    )


BYTES_OF = {
    MemoryKind.ALLOCATED: "allocated_bytes",
    MemoryKind.RESERVED: "reserved_bytes",
    MemoryKind.DEVICE: "device_bytes",
}


def _fullest_memory(row: Measurement, parts: Sequence[Part], calibration: Calibration) -> GpuMemory:
    """Of the fullest stage."""
    each = (_memory(row, part.ledger, part.setting, calibration) for part in parts)
    return max(each, key=lambda memory: memory.allocated_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One rank of one pipeline stage."""

    ledger: Ledger
    setting: Setting
    memory: GpuMemory


def parts_of(row: Measurement, checkpointing: str) -> list[Part]:
    """One rank of every stage of the pipeline that differs.

    Raises:
        Unsupported: the row cannot be expressed.
    """
    whole = shape.as_run(shape.model_of(row), framework_of(row.text("framework")))
    return [_part(row, each, checkpointing) for each in _setting(row, whole).stages]


def _fullest(parts: Sequence[Part]) -> Part:
    return max(parts, key=lambda part: part.memory.allocated_bytes)


def _part(row: Measurement, setting: Setting, checkpointing: str) -> Part:
    ledger = evaluate(_stack(row, setting, checkpointing), setting)
    if checkpointing == "selective":
        ledger = _selective(ledger, setting)
    ledger = _outputs(ledger, row, setting)
    return Part(ledger=ledger, setting=setting, memory=_memory(row, ledger, setting))


def _memory(row: Measurement, ledger: Ledger, setting: Setting, calibration: Calibration = AS_SHIPPED) -> GpuMemory:
    return memory_of(
        with_live_excess(ledger, calibration.live),
        machine.capacity_of(row),
        communicators=machine.communicators_of(row, setting.split),
        allocator=machine.allocator_of(row),
        calibration=calibration,
    )


def _setting(row: Measurement, whole: Model) -> Setting:
    """Ranks as stated; nodes of 8, or a rack, or the largest equal parts below."""
    if not row.whole("seq_len") or not row.whole("micro_batch"):
        raise Unsupported("sequence length or micro-batch is not stated")
    split = subject.split_of(row, whole)
    gpus, most = row.replicas * split.ranks, machine.gpus_per_node(row)
    ranks = max(size for size in range(1, min(gpus, most) + 1) if gpus % size == 0)
    sequences = row.whole("micro_batch") * row.micro_steps * row.replicas
    seq_len = row.whole("seq_len")
    return Setting(
        workload=Workload(model=whole, tokens=sequences * seq_len, seq_len=seq_len, global_batch=sequences),
        nodes=gpus // ranks,
        ranks_per_node=ranks,
        micro_batch=row.whole("micro_batch"),
        split=split,
    )


def _stack(row: Measurement, setting: Setting, checkpointing: str) -> Stack:
    framework, name = framework_of(row.text("framework")), optimizer_of(row)
    model, split = setting.model, setting.split
    layers = subject.checkpointed_layers(checkpointing, model.layers)
    return Stack.of(
        Precision(subject.precision_of(row)),
        *_method(row, model),
        Optimizer(name),
        FrameworkKernels(subject.kernels_of(row, framework, split)),
        _model_parallel(row, setting, framework),
        *((ChunkedLoss(),) if subject.loss_chunk_of(row, framework) else ()),
        Attention(subject.attention_of(row, model)),
        *((Checkpointing(layers),) if layers else ()),
        *_states(row, framework, split, name),
    )


def _model_parallel(row: Measurement, setting: Setting, framework: Framework) -> ModelParallel:
    gpu = machine.gpu_of(row)
    spread = expert_domains(setting, machine.node_of(row, gpu)) if gpu and setting.split.expert > 1 else 1
    return ModelParallel(setting.split, overlapped=framework.overlapped, expert_domains=spread)


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
    tokens = setting.seq_len * setting.micro_batch
    size = subject.selectively_kept_bytes(setting.model, ledger.computation.precision.bytes, tokens)
    phases = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.RECOMPUTE)
    return ledger.plus(
        Entry(Item.SAVED, Device.GPU, size, phases, "kept by selective checkpointing", Certainty.ASSUMED)
    )


def _outputs(ledger: Ledger, row: Measurement, setting: Setting) -> Ledger:
    """What the layers' split changes: DeepSpeed's pipeline keeps each waiting micro-batch's output; device_map none."""
    if subject.is_layer_split(row):
        return ledger.without(Item.WAITING)
    framework, index = framework_of(row.text("framework")), setting.stage_index
    if setting.split.pipeline == 1 or framework.sharding != "deepspeed":
        return ledger
    in_flight = micro_batches_in_flight(setting.split, index, setting.gradient_accumulation_steps)
    output = ledger.computation.precision.bytes * setting.model.hidden * setting.seq_len * setting.micro_batch
    phases = (Phase.FORWARD, Phase.LOSS, *BACKWARDS)
    why = f"outputs of {in_flight:.1f} micro-batches"
    return ledger.plus(
        Entry(Item.WAITING, Device.GPU, round(in_flight * output), phases, why, Certainty.ASSUMED, framework.source)
    )


def _rate(row: Measurement, parts: Sequence[Part]) -> Rate | None:
    """Tokens per second and GPU; None for a GPU that is not in the catalog."""
    seconds = _step(row, parts)
    if seconds is None:
        return None
    tokens = _tokens(row, parts)
    return Rate(tokens / seconds.upper, tokens / seconds.point, tokens / seconds.low)


def _tokens(row: Measurement, parts: Sequence[Part]) -> float:
    """Of one step and GPU."""
    return row.whole("micro_batch") * row.micro_steps * row.whole("seq_len") / parts[0].setting.split.ranks


def _gpu_hours(row: Measurement, parts: Sequence[Part]) -> GpuHours | None:
    """Of the whole run on its tokens: start-up, checkpoints, failures and restarts as in every plan."""
    gpu, seconds, part = machine.gpu_of(row), _step(row, parts), _fullest(parts)
    if gpu is None or seconds is None or not row.number("tokens"):
        return None
    setting = part.setting
    node = replace(machine.node_of(row, gpu), gpus=setting.ranks_per_node)
    workload, saved = replace(setting.workload, tokens=int(row.number("tokens"))), checkpoint(part.ledger, setting)
    low, run, upper = (
        whole_run(workload, node, setting.nodes, Tier.ON_DEMAND, saved, step_s)
        for step_s in (seconds.low, seconds.point, seconds.upper)
    )
    hours = [setting.gpus * each.hours for each in (low, run, upper)]
    return GpuHours(low=hours[0], point=hours[1], upper=hours[2], goodput=run.goodput)


def _step(row: Measurement, parts: Sequence[Part]) -> Seconds | None:
    """Of one optimizer step, with its band."""
    step = _step_time(row, parts)
    return None if step is None else step_seconds(step)


def _step_time(row: Measurement, parts: Sequence[Part], calibration: Calibration = AS_SHIPPED) -> StepTime | None:
    """Of one optimizer step."""
    gpu = machine.gpu_of(row)
    if gpu is None or subject.is_layer_split(row):
        return None
    framework, node = framework_of(row.text("framework")), machine.node_of(row, gpu)
    if calibration is not AS_SHIPPED:
        node = replace(node, gpu=calibrated(gpu, calibration))
    return pipelined([_stage_time(part, framework, node) for part in parts], parts[0].setting.split)


def _stage_time(part: Part, framework: Framework, node: Node) -> StepTime:
    """One stage's micro-steps, as if it were alone."""
    setting, shares = part.setting, _shares(framework, node.gpu)
    work = all_work(part.ledger, setting)
    return price(
        [replace(w, amount=w.amount / shares[w.resource]) if w.resource in shares else w for w in work],
        node,
        nodes=setting.nodes,
        ranks_per_node=setting.ranks_per_node,
        gradient_accumulation_steps=setting.gradient_accumulation_steps,
        layers=setting.model.layers,
        precision=part.ledger.computation.precision,
        places=setting.places,
    )


def _shares(framework: Framework, gpu: Gpu) -> Mapping[Resource, float]:
    """What kernels of another generation reach of the rates, which were measured on today's; by resource."""
    found = {}
    if framework.attention_generation:
        found[Resource.ATTENTION] = value("attention_generation", framework.attention_generation)
    if is_young(gpu.architecture, framework.software):
        found[Resource.MATMUL] = value("matmul_generation", architecture_key(gpu.architecture))
    return found
