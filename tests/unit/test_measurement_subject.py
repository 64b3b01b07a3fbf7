"""planner/measurements/subject.py, shape.py, machine.py and strategies/measured.py: a row's words in our own terms."""

from __future__ import annotations

import pytest
from trainplan.planner.computation import AttentionImplementation, Kernels
from trainplan.planner.frameworks import framework_of
from trainplan.planner.ledger import Item
from trainplan.planner.measurements import machine, shape, subject
from trainplan.planner.measurements.table import Measurement, Unsupported
from trainplan.planner.memory import Allocator
from trainplan.planner.model import ParameterKind
from trainplan.planner.models import load_model
from trainplan.planner.parallel import Split
from trainplan.planner.units import GIB
from trainplan.planner.workload import Method, Precision
from trainplan.strategies.measured import optimizer_of, predict

from ..measured_rows import attempt, row_of
from ..tiny import llama

MADE_UP = {
    "model": "made-up",
    "layers": "4",
    "hidden": "256",
    "heads": "8",
    "kv_heads": "4",
    "ffn": "688",
    "vocab": "2048",
}


@pytest.mark.parametrize(
    ("task", "quant_base", "method"),
    [
        ("", "", Method.FULL),
        ("pretrain", "", Method.FULL),
        ("Full-FT", "", Method.FULL),
        ("sft", "", Method.FULL),
        ("lora", "", Method.LORA),
        ("qlora", "", Method.QLORA),
        ("lora", "nf4 + double quant", Method.QLORA),
    ],
)
def test_method(task: str, quant_base: str, method: Method) -> None:
    """LoRA on a base in 4 bit is QLoRA."""
    assert subject.method_of(row_of(task=task, quant_base=quant_base)) is method


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"task": "galore"}, "training method galore"),
        ({"task": "lora", "quant_base": "int8 (gptq)"}, "base quantised as int8 (gptq)"),
        ({"act_ckpt": "every other"}, "activation checkpointing: every other"),
        ({"act_ckpt": "²"}, "activation checkpointing: ²"),
        ({"tp": "3", "n_gpus": "3"}, "3 tensor-parallel ranks do not divide 32 heads"),
        ({"pp": "64", "n_gpus": "64"}, "64 pipeline stages for 32 layers"),
        ({"gpu": "abacus"}, "GPU abacus"),
        ({"model": "made-up"}, "its hidden size or vocabulary is not stated"),
        ({"model": "made-up", "moe": "8 experts"}, "a mixture of experts that is not in the catalog"),
        (MADE_UP | {"layers": "10001"}, "more than 10,000 layers"),
        (MADE_UP | {"heads": "7"}, "cannot be solved"),
        ({"micro_batch": ""}, "sequence length or micro-batch is not stated"),
    ],
)
def test_what_cannot_be_expressed(cells: dict[str, str], reason: str) -> None:
    """A row of which nothing can be said says why."""
    with pytest.raises(Unsupported) as raised:
        predict(row_of(**cells))
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("", Precision.BF16),
        ("bf16 (compute & adapters)", Precision.BF16),
        ("amp_bf16", Precision.BF16),
        ("fp16", Precision.FP16),
        ("fp32", Precision.FP32),
        ("bf16 (fp32 grad accumulation)", Precision.BF16),
    ],
)
def test_precision(text: str, precision: Precision) -> None:
    """Of weights and activations in the layers."""
    assert subject.precision_of(row_of(precision=text)) is precision


@pytest.mark.parametrize(
    ("text", "layers"),
    [("none", 0), ("no", 0), ("full", 8), ("yes", 8), ("full (per Block)", 8), ("3", 3), ("99", 8)],
)
def test_checkpointing(text: str, layers: int) -> None:
    """None, all, or so many of a rank's layers."""
    assert subject.checkpointed_layers(subject.checkpointing_of(row_of(act_ckpt=text)), 8) == layers


def test_checkpointing_that_is_not_stated() -> None:
    """None where that fits; where only checkpointing would fit, the peak is that one's and the decision is open."""
    small = {"model": "llama-2-7b", "zero_stage": "3", "n_gpus": "8", "framework": "torchtitan"}
    plain = predict(row_of(**small, act_ckpt=""))
    assert plain.fits is True
    assert plain.memory == predict(row_of(**small, act_ckpt="none")).memory
    either = predict(row_of(**small, act_ckpt="", micro_batch="8"))
    assert either.fits is None
    assert either.memory == predict(row_of(**small, act_ckpt="full", micro_batch="8")).memory
    neither = predict(row_of(**small, act_ckpt="", micro_batch="1024"))
    assert neither.fits is False


def test_attention() -> None:
    """Eager where the row says so, else flash."""
    model = load_model("llama-2-7b")
    for text, kind in (
        ("eager", "EAGER"),
        ("sdpa", "FLASH"),
        ("", "FLASH"),
        ("fused softmax, eager attention", "EAGER"),
    ):
        assert subject.attention_of(row_of(attn_impl=text), model) is AttentionImplementation[kind]


def test_kernels() -> None:
    """Of the framework, fused where torch.compile ran; sequence parallelism cuts norms over the tensor ranks."""
    megatron, own = framework_of("Megatron-LM"), framework_of("")
    split = Split(tensor=4, sequence=True)
    assert subject.kernels_of(row_of(), megatron, split) == Kernels(
        fused=True, sequence_shards=4, logit_bytes=megatron.logit_bytes
    )
    assert subject.kernels_of(row_of(), own, Split(tensor=4)) == Kernels()
    assert subject.kernels_of(row_of(compile="yes"), own, Split()).fused
    assert not subject.kernels_of(row_of(compile="no"), own, Split()).fused


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({}, Split()),
        ({"tp": "2", "pp": "4", "vpp": "2", "cp": "2", "ep": "1"}, Split(tensor=2, pipeline=4, virtual=2, context=2)),
        ({"tp": "2", "sp": "yes"}, Split(tensor=2, sequence=True)),
        ({"tp": "2", "sharding": "ZeRO-1 + TP+SP"}, Split(tensor=2, sequence=True)),
        ({"sp": "yes"}, Split()),
        ({"sp": "4"}, Split(context=4)),  # Ulysses: ranks that share a sequence
        ({"sp": "0"}, Split()),
        ({"n_gpus": "2", "sharding": "HF device_map"}, Split(pipeline=2)),
    ],
)
def test_split(cells: dict[str, str], expected: Split) -> None:
    """tp, pp, vpp, cp, ep; sp is yes, no, or a number of ranks."""
    assert subject.split_of(row_of(**cells), load_model("llama-2-7b")) == expected


def test_chunked_loss() -> None:
    """In chunks where the row says so, unless the framework's own loss is described already."""
    for text, chunked in (("yes", True), ("liger", True), ("fused CE", True), ("no", False), ("", False)):
        assert subject.loss_chunk_of(row_of(chunked_ce=text), framework_of("")) is chunked
    assert not subject.loss_chunk_of(row_of(chunked_ce="yes"), framework_of("litgpt"))


@pytest.mark.parametrize(
    ("text", "name"),
    [("", "adamw"), ("Adam (fused)", "adamw"), ("bnb PagedAdamW", "adamw"), ("AdamW-8bit", "adamw-8bit"),
     ("PagedAdamW 8-bit", "adamw-8bit"), ("Lion", "lion"), ("SGD", "sgd"), ("adafactor", "adafactor")],
)  # fmt: skip
def test_optimizer(text: str, name: str) -> None:
    """By a word of it; bitsandbytes' optimizers without a number keep 32-bit states."""
    assert optimizer_of(row_of(optimizer=text)) == name


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("all", ()),
        ("all linear", ()),
        ("", ("q_proj", "v_proj")),
        ("q,v", ("q_proj", "v_proj")),
        ("q_proj, k_proj", ("k_proj", "q_proj")),
        ("DEFAULT (c_attn / qkv / W_pack)", ("k_proj", "q_proj", "v_proj")),
        ("q,k,v,up,down,gate", ("down_proj", "gate_proj", "k_proj", "q_proj", "up_proj", "v_proj")),
    ],
)
def test_lora_targets(text: str, targets: tuple[str, ...]) -> None:
    """Sources call projections by many names; where none is given, the paper's q and v."""
    assert shape.adapters_of(row_of(lora_targets=text), llama()).targets == targets


def test_lora_rank_and_dropout() -> None:
    """As stated, else 8; dropout is the framework's default."""
    assert shape.adapters_of(row_of(lora_rank="64"), llama()).rank == 64
    plain = shape.adapters_of(row_of(framework="litgpt"), llama())
    assert (plain.rank, plain.dropout) == (8, 0.05)


def test_a_model_of_the_catalog() -> None:
    """By its name, unless its shape says that it is another."""
    known = load_model("llama-2-7b")
    assert shape.model_of(row_of(model="Llama-2-7B")) is known
    other = shape.model_of(row_of(**MADE_UP | {"model": "llama-2-7b"}))
    assert other.parameter_count == llama().parameter_count


def test_a_model_by_its_shape() -> None:
    """A gated decoder; a name that begins with GPT, MPT, ... has two MLP matrices and learned positions."""
    assert shape.model_of(row_of(**MADE_UP)).parameter_count == llama().parameter_count
    gpt = shape.model_of(row_of(**MADE_UP | {"model": "gpt-tiny", "kv_heads": "", "tied_emb": "yes", "ffn": ""}))
    layer = 4 * 256 * 256 + 2 * 256 * (4 * 256) + 2 * 256
    assert gpt.parameter_count == 4 * layer + 2048 * 256 + 2048 * 256 + 256  # the last table: 2,048 positions
    rotary = shape.model_of(row_of(**MADE_UP | {"model": "falcon-tiny"})).blocks[0].attention
    assert rotary is not None
    assert rotary.rope_dim == 256 // 8


def test_layers_that_are_not_stated() -> None:
    """Solved from the parameters: (params - V h) / (4 h^2 + 2 h f)."""
    params = str(2048 * 256 + 6 * (4 * 256**2 + 2 * 256 * 688))
    assert shape.model_of(row_of(**MADE_UP | {"layers": "", "params": params})).layers == 6


def test_one_projection_for_queries_keys_and_values() -> None:
    """Where a framework writes it so, the same parameters are read as one."""
    model = llama()
    fused = shape.as_run(model, framework_of("Megatron-LM"))
    assert all(b.attention and b.attention.fused_qkv for b in fused.blocks)
    assert fused.parameter_count == model.parameter_count
    assert len({id(b) for b in fused.blocks}) == len({id(b) for b in model.blocks})
    assert shape.as_run(model, framework_of("")) is model


@pytest.mark.parametrize(
    ("cells", "size"),
    [
        ({"gpu": "A100-SXM4-80GB"}, 79.14),
        ({"gpu": "A100-80GB"}, 79.14),
        ({"gpu": "RTX4090-24GB"}, None),
        ({"gpu": "Custom", "gpu_mem_gb": "100"}, 100 * machine.DRIVER_SHARE),
    ],
)
def test_capacity(cells: dict[str, str], size: float | None) -> None:
    """Of the catalog, by any spelling; else what drivers usually report of the stated size."""
    found = machine.capacity_of(row_of(**cells)) / GIB
    known = machine.gpu_of(row_of(**cells))
    assert (known is None) == (cells["gpu"] == "Custom")
    assert found == pytest.approx(size if size else 23.6, abs=0.1)


@pytest.mark.parametrize(
    ("notes", "allocator"),
    [
        ("", Allocator.NATIVE),
        ("expandable segments", Allocator.EXPANDABLE),
        ("sequences truncated at 4096", Allocator.VARYING),
        ("unpacked, expandable_segments:True", Allocator.EXPANDABLE),
    ],
)
def test_allocator(notes: str, allocator: Allocator) -> None:
    """What the notes say of the allocator and of lengths."""
    assert machine.allocator_of(row_of(notes=notes)) is allocator


def test_communicators() -> None:
    """One group for each kind of parallelism with more than one rank."""
    assert machine.communicators_of(row_of(n_gpus="1"), Split()) == 0
    assert machine.communicators_of(row_of(n_gpus="8"), Split()) == 1
    both = {"n_gpus": "64", "tp": "4", "pp": "2"}
    assert machine.communicators_of(row_of(**both), Split(tensor=4, pipeline=2)) == 3
    assert machine.communicators_of(row_of(n_gpus="2", sharding="device_map"), Split(pipeline=2)) == 0


@pytest.mark.parametrize(
    ("text", "gbps"),
    [
        ("", 0),
        ("1600 Gbps RoCE node-node", 1600),
        ("8x200Gb/s HDR IB", 1600),
        ("NVLink4 intra; 4 OmniPath 100Gb/s links per node", 400),
        ("9" * 1000, 0),
    ],
)
def test_network(text: str, gbps: float) -> None:
    """Gbit/s of a node: links times their rate, or one figure."""
    assert machine.network_gbps(row_of(interconnect=text)) == gbps


def test_strategy_in_words() -> None:
    """What rows are grouped by."""
    assert subject.strategy_of(row_of()) == "full-ft, zero 3, checkpointing"
    moved = row_of(task="qlora", tp="2", offload="params cpu", act_ckpt="none")
    assert subject.strategy_of(moved) == "qlora, zero 3, model-parallel, offloaded"


def line(row: Measurement, item: Item) -> int:
    """Bytes of one item in a row's prediction."""
    return predict(row).ledger.bytes_of(item)


def test_the_fullest_stage_of_a_pipeline() -> None:
    """4 stages of 8 layers: the first has 4 micro-batches in flight, 3 of them waiting."""
    cells = {
        "pp": "4",
        "n_gpus": "4",
        "grad_accum": "16",
        "zero_stage": "0",
        "framework": "Megatron-LM",
        "sharding": "",
    }
    row = row_of(**cells, act_ckpt="none")
    assert line(row, Item.WAITING) == 3 * line(row, Item.SAVED)
    assert line(row_of(**cells | {"grad_accum": "2"}, act_ckpt="none"), Item.WAITING) == line(row, Item.SAVED)


def test_context_parallel_cuts_the_sequence() -> None:
    """Half of the tokens on each rank: half of what is saved."""
    whole, half = row_of(act_ckpt="none"), row_of(act_ckpt="none", cp="2", n_gpus="16")
    assert line(half, Item.SAVED) == pytest.approx(
        line(whole, Item.SAVED) / 2, rel=1e-6
    )  # seeds of dropout kernels stay


def test_sequence_parallel_cuts_what_tensor_parallel_leaves_whole() -> None:
    """Norms and residuals: with it, checkpoints are an e h T / t each."""
    cells = {"tp": "2", "n_gpus": "16", "framework": "Megatron-LM"}
    without, with_it = row_of(**cells, sp="no"), row_of(**cells, sp="yes")
    assert line(without, Item.CHECKPOINTS) == 32 * 2 * 4096 * 2048
    assert line(with_it, Item.CHECKPOINTS) == 32 * 2 * 4096 * 2048 // 2


def test_logits_as_the_framework_holds_them() -> None:
    """Bytes of a logit at its fullest moment x V T."""
    fullest = max(framework_of("torchtitan").logit_bytes)
    assert line(row_of(framework="torchtitan"), Item.LOGITS) == fullest * 32000 * 2048


def test_fused_kernels_keep_less() -> None:
    """Of each layer: norms keep no fp32 copy, gate and up stand for three tensors."""
    plain, fused = (line(row_of(act_ckpt="none", compile=word), Item.SAVED) for word in ("no", "yes"))
    assert 0.6 * plain < fused < 0.85 * plain


def test_quantised_layers_may_keep_their_input() -> None:
    """bitsandbytes before 0.43: every distinct input of a frozen 4-bit layer is kept."""
    cells = {"task": "lora", "quant_base": "nf4", "act_ckpt": "none", "zero_stage": "0", "n_gpus": "1"}
    keeping = framework_of("litgpt")
    assert keeping.quantized_input
    rows = [row_of(**cells, framework=name) for name in ("litgpt", "fsdp_qlora")]
    kept, dropped = (line(row, Item.SAVED) for row in rows)
    assert kept > dropped


def test_4_bit_weights_are_the_linear_layers() -> None:
    """Half a byte and scales for each weight of the blocks' linear layers; the rest in 16 bit."""
    row = row_of(task="qlora", zero_stage="0", n_gpus="1", framework="fsdp_qlora")
    whole = load_model("llama-2-7b")
    linear = sum(p.numel for b in whole.blocks for p in b.parameters if p.kind is ParameterKind.LINEAR)
    assert line(row, Item.FROZEN) == 2 * (whole.parameter_count - linear)
    assert line(row, Item.QUANTIZED) + line(row, Item.SCALES) == pytest.approx(linear * (0.5 + 4 / 64), rel=0.001)


@pytest.mark.parametrize("cell", ["9" * 900, "1x" * 400, "(" * 900, "\x1b[31m", "٣", "²", "=1+1"])
def test_hostile_words(cell: str) -> None:
    """Any text in any column of words gives a prediction or a reason, quickly."""
    for column in ("act_ckpt", "sp", "gpu", "interconnect", "lora_targets", "framework", "model", "notes", "sharding"):
        found = attempt(row_of(**{"task": "lora", column: cell}))
        assert not isinstance(found, str) or found.isprintable()
