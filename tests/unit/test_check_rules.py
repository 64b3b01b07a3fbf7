"""configs/deepspeed_rules.toml: each rule is found where it should be, and not where it should not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from trainplan.api.asking import request
from trainplan.api.checking import bench_of, findings_of
from trainplan.api.judging import Bench
from trainplan.planner.dsconfig.changing import changed
from trainplan.planner.dsconfig.editing import REMOVE
from trainplan.planner.dsconfig.findings import Finding, Severity
from trainplan.planner.dsconfig.reading import from_mapping
from trainplan.planner.dsconfig.rules import rules
from trainplan.planner.models import load_model
from trainplan.planner.units import GIB

MACHINES: dict[str, Any] = {"gpus": "8xa100-80", "price": 2.0, "host_memory_gib": 4096, "seq_len": 2048}
ADAMW: dict[str, Any] = {"type": "AdamW", "params": {"lr": 1e-5}}
# What a plan of Llama-3.2-1B writes at stage 2: nothing is wrong with it.
GOOD: dict[str, Any] = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 8,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-5, "torch_adam": True, "fused": True}},
    "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 4_194_304},
}
STAGE3: dict[str, Any] = {
    "zero_optimization": {
        "stage": 3, "reduce_bucket_size": 4_194_304, "stage3_prefetch_bucket_size": 3_774_873,
        "stage3_param_persistence_threshold": 20_480, "sub_group_size": 100_000_000,
        "stage3_max_live_parameters": 121_643_008, "stage3_max_reuse_distance": 121_643_008,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}  # fmt: skip
NVME: dict[str, Any] = {"device": "nvme", "nvme_path": "/local_nvme"}
Z, OO, OP = "zero_optimization", "zero_optimization.offload_optimizer", "zero_optimization.offload_param"
ON_CPU: dict[str, Any] = {OO: {"device": "cpu"}, "optimizer": ADAMW, f"{Z}.overlap_comm": False}
BOTH_NVME: dict[str, Any] = {**STAGE3, "optimizer": ADAMW, OO: NVME, OP: {**NVME, "buffer_size": 33_000_000}}
BOTH_NVME[Z] = {**STAGE3[Z], "stage3_prefetch_bucket_size": 0}
# rule: (changes of GOOD that meet it, changes of GOOD that come near it and do not)
CASES: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "two-precisions": ({"fp16.enabled": True}, {"fp16.enabled": False}),
    "batch-triangle": ({"train_batch_size": 72}, {"train_batch_size": 64}),
    "no-batch": (
        {"train_batch_size": REMOVE, "train_micro_batch_size_per_gpu": REMOVE},
        {"train_batch_size": REMOVE},
    ),
    "offload-without-zero": ({**ON_CPU, f"{Z}.stage": 0}, ON_CPU),
    "share-below-stage-3": ({**ON_CPU, f"{OO}.ratio": 0.5}, {**STAGE3, **ON_CPU, f"{OO}.ratio": 0.5}),
    "secondary-partition-uneven": (
        {**STAGE3, f"{Z}.zero_hpz_partition_size": 3}, {**STAGE3, f"{Z}.zero_hpz_partition_size": 4},
    ),
    "nvme-without-path": (
        {**STAGE3, "optimizer": ADAMW, OO: {"device": "nvme"}}, {**STAGE3, "optimizer": ADAMW, OO: NVME},
    ),
    "parameters-nvme-without-path": ({**BOTH_NVME, f"{OP}.nvme_path": REMOVE}, BOTH_NVME),
    "nvme-parameters-prefetched": ({**BOTH_NVME, f"{Z}.stage3_prefetch_bucket_size": 1_000_000}, BOTH_NVME),
    "nvme-buffer-too-small": ({**BOTH_NVME, f"{OP}.buffer_size": 32_000_000}, BOTH_NVME),
    "pipelined-swap-without-buffers": (
        {**BOTH_NVME, f"{OO}.pipeline_read": True}, {**BOTH_NVME, f"{OO}.pipeline_read": True, f"{OO}.buffer_count": 8},
    ),
    "script-optimizer-offloaded": (
        {**ON_CPU, "optimizer": REMOVE}, {**ON_CPU, "optimizer": REMOVE, "zero_force_ds_cpu_optimizer": False},
    ),
    "fused-without-torch-adam": ({"optimizer.params.torch_adam": REMOVE}, {"optimizer.params.fused": REMOVE}),
    "max-grad-norm": ({"optimizer.params.max_grad_norm": 1.0}, {"gradient_clipping": 0.5}),
    "unknown-optimizer": ({"optimizer": {"type": "OneBitAdam"}}, {"optimizer": {"type": "Lion"}}),
    "untested-optimizer": (
        {"optimizer": {"type": "SGD"}}, {"optimizer": {"type": "SGD"}, "zero_allow_untested_optimizer": True},
    ),
    "sums-at-stage-0": (
        {f"{Z}.stage": 0, "data_types.grad_accum_dtype": "fp32"},
        {f"{Z}.stage": 0, "data_types.grad_accum_dtype": "bf16"},
    ),
    "summed-over-ranks-at-stage-3": ({**STAGE3, "gradient_allreduce_op": "sum"}, {"gradient_allreduce_op": "sum"}),
    "no-norm": (
        {f"{Z}.compute_grad_norm": False}, {f"{Z}.compute_grad_norm": False, "gradient_clipping": 0.0},
    ),
    "16-bit-master-without-zero": (
        {f"{Z}.stage": 0, "bf16.bf16_master_weights_and_grads": True}, {"bf16.bf16_master_weights_and_grads": True},
    ),
    "16-bit-states-alone": (
        {"bf16.bf16_optimizer_states": True},
        {"bf16.bf16_optimizer_states": True, "bf16.bf16_master_weights_and_grads": True},
    ),
    "legacy-stage-1": ({f"{Z}.legacy_stage1": True}, {f"{Z}.legacy_stage1": False}),
    "old-and-new-offload": ({**ON_CPU, f"{Z}.cpu_offload": True}, {"optimizer": ADAMW, f"{Z}.cpu_offload": True}),
    "zenflow-at-stage-3": ({**STAGE3, f"{Z}.zenflow": {"topk_ratio": 0.1}}, STAGE3),
    "zenflow": ({**ON_CPU, f"{Z}.zenflow": {"topk_ratio": 0.1}}, ON_CPU),
    "fast-init-with-nvme-parameters": (
        {**BOTH_NVME, f"{OO}.fast_init": True}, {**BOTH_NVME, OP: REMOVE, f"{OO}.fast_init": True},
    ),
    "torch-adam-on-the-host": ({**ON_CPU, "optimizer": GOOD["optimizer"]}, {"optimizer": GOOD["optimizer"]}),
    "large-bucket": ({f"{Z}.reduce_bucket_size": 500_000_000}, {f"{Z}.reduce_bucket_size": 8_000_000}),
    "doubled-bucket": (
        {f"{Z}.reduce_bucket_size": 200_000_000}, {f"{Z}.reduce_bucket_size": 200_000_000, f"{Z}.overlap_comm": False},
    ),
    "waiting-for-reductions": ({f"{Z}.overlap_comm": REMOVE}, {f"{Z}.overlap_comm": True}),
    "large-window": ({**STAGE3, f"{Z}.stage3_max_live_parameters": 1_000_000_000}, STAGE3),
    "large-sub-group": ({**STAGE3, f"{Z}.sub_group_size": 1_000_000_000}, STAGE3),
    "one-sub-group": (
        {**STAGE3, **ON_CPU, f"{OO}.ratio": 0.5, f"{Z}.sub_group_size": 1_000_000_000},
        {**STAGE3, **ON_CPU, f"{OO}.ratio": 0.5, f"{Z}.sub_group_size": 10_000_000},
    ),
    "higher-stage-than-needed": (STAGE3, {f"{Z}.stage": 1}),
    "optimizer-offload-not-needed": (ON_CPU, {}),
    "parameter-offload-not-needed": ({**STAGE3, OP: {"device": "cpu"}}, STAGE3),
    "whole-fp32-gradients": (
        {f"{Z}.stage": 1, "data_types.grad_accum_dtype": "fp32"}, {"data_types.grad_accum_dtype": "fp32"},
    ),
    "torch-adam-not-fused": (
        {**STAGE3, f"{Z}.sub_group_size": 1_000_000_000, "optimizer.params.fused": REMOVE},
        {f"{Z}.stage": 1, "optimizer.params.fused": REMOVE},  # where freed gradients make room for the temporaries
    ),
    "not-pinned": ({**ON_CPU, f"{OO}.pin_memory": False}, ON_CPU),
    "nvme-is-cpu": ({**ON_CPU, OO: NVME}, ON_CPU),
    "parameter-offload-ignored": ({OP: {"device": "cpu"}}, {**STAGE3, OP: {"device": "cpu"}}),
    "zeropp-below-stage-3": ({f"{Z}.zero_quantized_weights": True}, {**STAGE3, f"{Z}.zero_quantized_weights": True}),
    "super-offload-clipped": (
        {**STAGE3, **ON_CPU, f"{OO}.super_offload": True},
        {**STAGE3, **ON_CPU, f"{OO}.super_offload": True, "gradient_clipping": 0.0},
    ),
    "super-offload-ignored": (
        {**ON_CPU, f"{OO}.super_offload": True}, {**STAGE3, **ON_CPU, f"{OO}.super_offload": True},
    ),
    "activation-checkpointing": ({"activation_checkpointing": {"cpu_checkpointing": True}}, {}),
    "allgather-bucket": ({f"{Z}.allgather_bucket_size": 200_000_000}, {}),
    "auto-outside-transformers": ({"gradient_clipping": "auto"}, {}),
    "precision-not-said": ({"bf16": REMOVE}, {}),
    "script-optimizer": ({"optimizer": REMOVE}, {}),
    "clips-by-default": ({"gradient_clipping": REMOVE}, {"gradient_clipping": 0.0}),
    "weights-not-gathered": ({**STAGE3, f"{Z}.stage3_gather_16bit_weights_on_model_save": False}, STAGE3),
    "synchronising-timers": ({"wall_clock_breakdown": True}, {"wall_clock_breakdown": False}),
}  # fmt: skip


@cache
def bench() -> Bench:
    """Llama-3.2-1B on eight GPUs of one's own."""
    return bench_of(load_model("llama-3.2-1b"), request(**MACHINES), None, "full")


def findings(changes: Mapping[str, Any]) -> tuple[Finding, ...]:
    """What is found in GOOD after changes."""
    document = changed(GOOD, changes)
    return findings_of(from_mapping(document), bench().judge(document), bench())


def test_every_rule_has_its_cases() -> None:
    """No rule is left without a configuration that meets it, and one that does not."""
    assert set(CASES) == {rule.name for rule in rules()}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_finds_what_it_is_about(name: str) -> None:
    """Where it should, with the severity of the table (a size that is not at the peak is a note), once."""
    (found,) = [finding for finding in findings(CASES[name][0]) if finding.rule == name]
    rule = next(rule for rule in rules() if rule.name == name)
    assert found.severity in {rule.severity, *([Severity.NOTE] if rule.better == "memory" else [])}
    assert "{" not in found.why + found.instead.replace("{...}", "")


@pytest.mark.parametrize("name", CASES)
def test_a_rule_is_silent_elsewhere(name: str) -> None:
    """A configuration that comes near."""
    assert name not in [finding.rule for finding in findings(CASES[name][1])]


@pytest.mark.parametrize("name", [rule.name for rule in rules() if rule.changes])
def test_what_to_write_mends_it(name: str) -> None:
    """After the changes of a finding the rule is silent, unless it is there to choose among several."""
    changes = CASES[name][0]
    (found,) = [finding for finding in findings(changes) if finding.rule == name]
    mended = findings({**changes, **dict(found.changes)})
    assert name not in [finding.rule for finding in mended]


def test_nothing_is_wrong_with_a_good_one() -> None:
    """No error, no harm, no waste."""
    assert [f.rule for f in findings({}) if f.severity < Severity.WASTEFUL] == []


def test_costs_are_differences_of_ledgers() -> None:
    """The default bucket: 2 buffers x 2 B x (5e8 - 4,194,304) more than the chosen one, in the backward pass."""
    (found,) = [f for f in findings({f"{Z}.reduce_bucket_size": 500_000_000}) if f.rule == "large-bucket"]
    assert found.cost is not None
    assert found.cost.gpu_phase_bytes == 2 * 2 * (500_000_000 - 4_194_304)
    assert found.cost.gpu_bytes <= found.cost.gpu_phase_bytes
    assert found.cost.gpu_phase_bytes > 1.8 * GIB


def test_whole_fp32_gradients_cost_4_bytes_a_parameter() -> None:
    """Stage 1 with fp32 sums holds a whole fp32 gradient that stage 2 does not: 4 N less 4 N / 8."""
    (found,) = [f for f in findings(CASES["whole-fp32-gradients"][0]) if f.rule == "whole-fp32-gradients"]
    n = bench().model.parameter_count
    assert found.cost is not None
    assert found.cost.gpu_phase_bytes >= 4 * n - 4 * n // 8
