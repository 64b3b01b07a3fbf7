"""From a row of measurements to what we would have predicted of it: the strategies that were in force, folded."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..planner.candidate import all_work
from ..planner.efficiency import value
from ..planner.evaluate import evaluate
from ..planner.fabrics import named_fabric
from ..planner.frameworks import Framework, framework_of
from ..planner.hardware import Gpu, Node
from ..planner.ledger import BACKWARDS, Certainty, Device, Entry, Item, Ledger, Phase
from ..planner.measurements import machine, shape, subject
from ..planner.measurements.layout import layout_of
from ..planner.measurements.score import Prediction
from ..planner.measurements.table import Measurement, Unsupported
from ..planner.memory import GpuMemory, memory_of
from ..planner.model import Model
from ..planner.parallel import WHOLE, Split, micro_batches_in_flight, stage
from ..planner.time import price
from ..planner.transform import Setting, Stack, Strategy
from ..planner.units import GBIT_BYTES
from ..planner.work import Resource, Work
from ..planner.workload import Method, Workload
from .attention import Attention
from .checkpointing import Checkpointing
from .framework import FrameworkStates
from .kernels import FrameworkKernels
from .lora import Lora
from .loss import ChunkedLoss
from .offload_optimizer import OffloadOptimizer
from .offload_parameters import OffloadParameters
from .optimizer import OPTIMIZERS, Optimizer
from .precision import Precision
from .qlora import Qlora
from .zero import Zero

# Words of optimizers' names, and ours; bitsandbytes' "PagedAdamW" without a number keeps 32-bit states.
OPTIMIZER_WORDS = (("8bit", "adamw-8bit"), ("lion", "lion"), ("adafactor", "adafactor"), ("sgd", "sgd"))
GPUS_PER_NODE = 8
USUAL_FABRIC = "infiniband"  # of the clusters that have one NIC a GPU, where a row says nothing
NIC_GBPS = {"ampere": 200.0, "hopper": 400.0}  # per GPU, as most machines of configs/offers have them; where not stated


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
    return replace(likelier, fits=None)


def _predict(row: Measurement, checkpointing: str) -> Prediction:
    whole = shape.as_run(shape.model_of(row), framework_of(row.text("framework")))
    split = subject.split_of(row, whole)
    ends = dict.fromkeys((0, split.pipeline - 1))
    parts = [_part(row, whole, split, index, checkpointing) for index in ends]
    fullest = max(parts, key=lambda part: part.memory.allocated_bytes)
    seconds = _step_s(row, fullest) if split == WHOLE else None
    tokens = row.whole("micro_batch") * row.micro_steps * row.whole("seq_len")
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
    ranks = min(row.replicas, GPUS_PER_NODE)
    return Setting(
        workload=Workload(model=model, tokens=sequences * seq_len, seq_len=seq_len, global_batch=sequences),
        nodes=-(-row.replicas // ranks),
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


def _step_s(row: Measurement, part: Part) -> float | None:
    """Seconds of one optimizer step; None for a GPU that is not in the catalog, and for mixtures of experts."""
    gpu, setting = machine.gpu_of(row), part.setting
    if (
        gpu is None
        or subject.computes_in_8_bit(row)
        or any(block.mlp and block.mlp.experts for block, _ in setting.model.distinct_blocks)
    ):
        return None
    work = [
        _of_its_time(w, framework_of(row.text("framework")).attention_generation)
        for w in all_work(part.ledger, setting)
    ]
    step = price(
        work,
        _node(row, gpu, setting),
        nodes=setting.nodes,
        ranks_per_node=setting.ranks_per_node,
        gradient_accumulation_steps=setting.gradient_accumulation_steps,
        precision=part.ledger.computation.precision,
    )
    return step.step_s


def _of_its_time(work: Work, generation: str) -> Work:
    """Attention kernels before FlashAttention-2 are slower by one factor."""
    if work.resource is not Resource.ATTENTION or not generation:
        return work
    return replace(work, amount=work.amount / value("attention_generation", generation))


def _node(row: Measurement, gpu: Gpu, setting: Setting) -> Node:
    """The row's machine: 8 GPUs, the network as stated, else one NIC a GPU as its generation has them."""
    stated = machine.network_gbps(row)
    usual = NIC_GBPS.get(gpu.architecture.lower().split()[0], NIC_GBPS["hopper"]) * GPUS_PER_NODE
    return Node(
        gpu=gpu,
        gpus=max(GPUS_PER_NODE, setting.ranks_per_node),
        host_memory_bytes=None,
        vcpus=None,
        nvme_bytes=None,
        internode_bytes_per_s=(stated or usual) * GBIT_BYTES,
        fabric=named_fabric(row.text("interconnect")) or (None if stated else USUAL_FABRIC),
    )
