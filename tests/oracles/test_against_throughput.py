"""Predicted against measured tokens/s: llm-foundry's tables, FSDP on A100-40, A100-80 and H100, 8 to 512 GPUs.

Source: tests/data/throughput_dense.csv, from mosaicml/llm-foundry 8c8dd48f scripts/train/benchmarking/README.md. The
bf16 rows; each names its section. The shares of configs/efficiency.toml marked "fitted" were fitted to these rows, so
this is a check of the model's form, not of its predictions elsewhere.
"""

from __future__ import annotations

import csv
import statistics
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
from trainplan.planner.computation import Computation
from trainplan.planner.compute import compute_work, model_flops_per_token
from trainplan.planner.efficiency import value
from trainplan.planner.hardware import Gpu, Node
from trainplan.planner.model import (
    Attention,
    Block,
    Mlp,
    MlpKind,
    Model,
    NormStyle,
    Parameter,
    ParameterKind,
    linear,
)
from trainplan.planner.time import price
from trainplan.planner.work import Resource, When, Work

pytestmark = pytest.mark.oracle

DATA = Path(__file__).parents[1] / "data" / "throughput_dense.csv"
ROWS = tuple(csv.DictReader(DATA.read_text(encoding="utf-8").splitlines()))
GPUS_PER_NODE = 8
# What the model reaches on these rows, with a margin of about a tenth (2026-11-23: 3.6 %, 2.2 %, +0.6 %).
LARGEST_MAPE = 0.039
LARGEST_MEDIAN = 0.025
LARGEST_BIAS = 0.01
# Rows the model misses by more than 20 %, all too fast. In four the micro-batch fills the memory (30B at 8192 tokens on
# 8 GPUs, 70B on 64 A100-40, 760M at 512 tokens), where retries of the allocator are the likely cause; the fifth is 20 %
# below its own neighbours on 16 and on 64 GPUs (1B on 32 A100-40).
EXPECTED_MISSES = {"llmf-140", "llmf-080", "llmf-021", "llmf-179", "llmf-121"}
LARGEST_MISS = 0.20

A100 = {"bf16": 312e12, "link": 300e9, "host": 31e9, "ceiling": 0.869}
H100 = {"bf16": 989e12, "link": 450e9, "host": 63e9, "ceiling": 0.803}
# (figures, architecture, memory bytes/s, network of one node: 1600 Gb/s RoCE as the source says; of H100 it says
# nothing: 3200 Gb/s InfiniBand)
MACHINES = {
    "A100-40GB": (A100, "Ampere sm80", 1.555e12, 200e9, "roce"),
    "A100-80GB": (A100, "Ampere sm80", 2.039e12, 200e9, "roce"),
    "H100-80GB-SXM": (H100, "Hopper sm90", 3.35e12, 400e9, "infiniband"),
}
OPTIMIZER_BYTES = 40  # Adam on fp32 states: read p, m, v, g and write p, m, v, plus the norm's pass over g and the cast


@lru_cache
def node(gpu_name: str) -> Node:
    """The source's 8-GPU machine."""
    figures, architecture, memory, network, fabric = MACHINES[gpu_name]
    gpu = Gpu(
        name=gpu_name,
        full_name=f"{gpu_name}-SXM",
        aliases=(),
        vendor="nvidia",
        architecture=architecture,
        memory_bytes=0,
        memory_source="",
        memory_bandwidth_bytes_per_s=memory,
        bf16_flop_per_s=figures["bf16"],
        fp16_flop_per_s=figures["bf16"],
        fp32_flop_per_s=None,
        matmul_efficiency=figures["ceiling"],
        link="NVLink",
        link_bytes_per_s=figures["link"],
        nvswitch=True,
        host_link_bytes_per_s=figures["host"],
        tdp_w=None,
        sources=(),
    )
    return Node(
        gpu=gpu,
        gpus=GPUS_PER_NODE,
        host_memory_bytes=None,
        vcpus=None,
        nvme_bytes=None,
        internode_bytes_per_s=network,
        fabric=fabric,
    )


@lru_cache
def mpt(layers: int, hidden: int, heads: int, ffn: int, vocab: int, seq_len: int) -> Model:
    """MPT as the benchmark trained it: no biases, learned positions, one qkv projection, tied head."""

    def norm(name: str) -> Parameter:
        return Parameter(name=f"{name}.weight", shape=(hidden,), kind=ParameterKind.NORM)

    def table(name: str, rows: int) -> Parameter:
        return Parameter(name=f"{name}.weight", shape=(rows, hidden), kind=ParameterKind.EMBEDDING)

    block = Block(
        parameters=(
            norm("norm_1"),
            *linear("attn.Wqkv", hidden, 3 * hidden),
            *linear("attn.out_proj", hidden, hidden),
            norm("norm_2"),
            *linear("ffn.up_proj", hidden, ffn),
            *linear("ffn.down_proj", ffn, hidden),
        ),
        norm=NormStyle.LAYER,
        attention=Attention(heads=heads, kv_heads=heads, head_dim=hidden // heads, fused_qkv=True),
        mlp=Mlp(kind=MlpKind.PLAIN, activation="gelu", intermediate=ffn),
    )
    return Model(
        name="mpt",
        family="mpt",
        hidden=hidden,
        vocab=vocab,
        tied=True,
        embedding=(table("wte", vocab), table("wpe", seq_len)),
        blocks=(block,) * layers,
        head=(norm("norm_f"),),
        final_norm=NormStyle.LAYER,
    )


def model_of(row: dict[str, str]) -> Model:
    """The row's model."""
    return mpt(*(int(row[key]) for key in ("layers", "hidden", "heads", "ffn", "vocab", "seq_len")))


def fsdp(model: Model, row: dict[str, str]) -> list[Work]:
    """FSDP's traffic: one unit per layer; full shard gathers again for the backward pass.

    Composer's mixed precision PURE reduces gradients in bf16, DEFAULT in fp32; both gather bf16.
    """
    gathered = 2.0 * model.parameter_count
    unit = gathered / (model.layers + 1)
    gradient_bytes = 2 if "PURE" in row["sharding"] else 4
    parts = [(Resource.ALL_GATHER, gathered, unit, When.FORWARD)]
    if "FULL_SHARD" in row["sharding"]:
        parts.append((Resource.ALL_GATHER, gathered, unit, When.BACKWARD))
    scattered = float(gradient_bytes * model.parameter_count)
    parts.append((Resource.REDUCE_SCATTER, scattered, unit * gradient_bytes / 2, When.BACKWARD))
    update = OPTIMIZER_BYTES * model.parameter_count / int(row["n_gpus"])
    return [
        Work(name="FSDP", resource=kind, amount=amount, when=when, side=True, message_bytes=message)
        for kind, amount, message, when in parts
    ] + [Work(name="optimizer", resource=Resource.MEMORY, amount=update, when=When.STEP)]


def of_first_generation(work: Work) -> Work:
    """The benchmark's attention kernels are those of 2023, slower than FlashAttention-2 by one factor on both GPUs."""
    if work.resource is not Resource.ATTENTION:
        return work
    return replace(work, amount=work.amount / value("attention_generation", "first"))


def predicted(row: dict[str, str]) -> float:
    """Tokens per second and GPU."""
    model = model_of(row)
    seq_len, micro_batch, micro_steps = (int(row[key]) for key in ("seq_len", "micro_batch", "grad_accum"))
    computation = Computation(checkpointed_layers=model.layers if row["act_ckpt"] == "full" else 0)
    work = [of_first_generation(w) for w in compute_work(model, computation, seq_len, micro_batch)] + fsdp(model, row)
    step = price(
        work,
        node(row["gpu"]),
        nodes=max(1, int(row["n_gpus"]) // GPUS_PER_NODE),
        ranks_per_node=GPUS_PER_NODE,
        gradient_accumulation_steps=micro_steps,
    )
    return seq_len * micro_batch * micro_steps / step.step_s


@lru_cache
def errors() -> dict[str, float]:
    """Relative error of each row, positive where the prediction is too fast."""
    return {row["id"]: predicted(row) / float(row["tokens_per_s_per_gpu"]) - 1 for row in ROWS}


def test_mean_and_median_error() -> None:
    """Over all 209 rows the mean absolute error, its median and the bias stay within what was reached."""
    signed = list(errors().values())
    absolute = [abs(error) for error in signed]
    assert len(signed) == 209
    assert statistics.mean(absolute) <= LARGEST_MAPE
    assert statistics.median(absolute) <= LARGEST_MEDIAN
    assert abs(statistics.mean(signed)) <= LARGEST_BIAS


@pytest.mark.parametrize("column", ["gpu", "act_ckpt", "model", "seq_len", "n_gpus"])
def test_no_group_is_biased(column: str) -> None:
    """No GPU, model size, length, cluster size or checkpointing choice is off by more than 8 % as a group."""
    groups: dict[str, list[float]] = {}
    for row in ROWS:
        groups.setdefault(row[column], []).append(errors()[row["id"]])
    biased = {name: round(statistics.mean(e), 3) for name, e in groups.items() if abs(statistics.mean(e)) > 0.08}
    assert biased == {}


def test_only_the_known_rows_are_far_off() -> None:
    """Every row is within 20 % but the five that are listed with their reason."""
    assert {name for name, error in errors().items() if abs(error) > LARGEST_MISS} == EXPECTED_MISSES


def test_printed_mfu_is_ours() -> None:
    """The formula of `model_flops_per_token` turns printed tokens/s into the printed MFU, within its rounding."""
    for row in ROWS:
        peak = MACHINES[row["gpu"]][0]["bf16"]
        flops = model_flops_per_token(model_of(row), int(row["seq_len"])) * float(row["tokens_per_s_per_gpu"])
        assert flops / peak * 100 == pytest.approx(float(row["mfu_pct"]), rel=0.01), row["id"]
