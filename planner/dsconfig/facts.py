"""Facts of a configuration in one setting, which the rules of configs/deepspeed_rules.toml ask about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..gathering import (
    gathered_elements,
    live_elements,
    persistence_elements,
    prefetch_elements,
    reduce_bucket_elements,
)
from ..ledger import Ledger, tensor_partition
from ..states import SUB_GROUP_ELEMENTS, largest_module, sub_groups
from ..transform import Setting
from ..units import gib
from .keys import ZERO, keys
from .meaning import ADAMS, LOWERED, TORCH, Meaning
from .resolving import Resolved

# Accepted without zero_allow_untested_optimizer: DeepSpeed 0.19.8 runtime/zero/utils.py, ZERO_SUPPORTED_OPTIMIZERS
TESTED = ("adam", "adamw", "adagrad", "lion", "muon")
LARGE = 2  # times the chosen bucket from which one counts as large
SHARES = 20  # sub-groups that a share of the optimizer should be cut into: steps of 5 %
SMALLEST_SWAP_BUFFERS = {1: 8, 2: 12}  # with one and with both of pipeline_read and pipeline_write; tried on engines
PARTITION_ROUNDING = 1_000_000  # elements that a written buffer_size is rounded up to


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What rules ask about, the words they say, and the sizes that trainplan writes itself."""

    values: Mapping[str, Any]
    words: Mapping[str, str]
    chosen: Mapping[str, Any]


def facts(resolved: Resolved, meaning: Meaning, ledger: Ledger, setting: Setting) -> Facts:
    """All facts of a configuration.

    Args:
        resolved: its values in force.
        meaning: what they mean.
        ledger: the folded one.
        setting: where it was folded.
    """
    chosen = _chosen(resolved, ledger, setting)
    written = {f"written {path}": path in resolved.written for path in (*keys(), "activation_checkpointing")}
    params = {f"optimizer.params.{name}": bool(resolved.params.get(name)) for name in ("torch_adam", "fused")}
    values = {path: value.value for path, value in resolved.values.items()}
    sums = meaning.accumulation
    derived = {
        "precision": meaning.precision.value,
        "precision_said": resolved.precision_said,
        "auto": resolved.hf,
        "optimizer": optimizer_kind(meaning.optimizer),
        "torch_arguments": bool({"fused", "foreach"} & set(resolved.params)),
        "max_grad_norm": "max_grad_norm" in resolved.params,
        "batch_refused": bool(resolved.batch.refused),
        "batch_written": bool({"train_batch_size", "train_micro_batch_size_per_gpu"} & resolved.written),
        "other_sums": sums is not None and sums is not meaning.precision,
        "clips": float(resolved["gradient_clipping"] or 0) > 0,
        **_zero_facts(resolved, ledger, setting),
    }
    words = _words(resolved, meaning, ledger, setting, chosen)
    return Facts(values={**values, **written, **derived, **params}, words=words, chosen=chosen)


def optimizer_kind(name: str) -> str:
    """script, adam, untested, unknown, or the tested one's own name.

    >>> optimizer_kind("adamw"), optimizer_kind("SGD"), optimizer_kind("sgd"), optimizer_kind("")
    ('adam', 'untested', 'unknown', 'script')
    """
    if not name:
        return "script"
    if name in ADAMS:
        return "adam"
    if name in TESTED:
        return name
    return "untested" if name in LOWERED or name in TORCH else "unknown"


def _zero_facts(resolved: Resolved, ledger: Ledger, setting: Setting) -> dict[str, Any]:
    """What follows from several keys of zero_optimization, and from sizes of the model."""
    offload, params = f"{ZERO}.offload_optimizer", f"{ZERO}.offload_param"
    ratio, stage = float(resolved[f"{offload}.ratio"]), int(resolved.zero("stage"))
    pipelines = sum(bool(resolved[f"{offload}.{name}"]) for name in ("pipeline_read", "pipeline_write"))
    bucket = int(resolved.zero("reduce_bucket_size"))
    groups = sub_groups(ledger.trainable, setting.world_size, max(1, int(resolved.zero("sub_group_size"))))
    zeropp = ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights")
    unwritten = (None, "", "none")
    hpz = min(int(resolved.zero("zero_hpz_partition_size")), setting.world_size)  # DeepSpeed's own limit
    return {
        "share": "all" if ratio == 1 else "nothing" if ratio == 0 else "part",
        "offload_written": offload in resolved.written,
        "nothing_stays": int((1 - ratio) * len(groups)) == 0,
        "optimizer_path": resolved[f"{offload}.nvme_path"] not in unwritten,
        "parameters_path": resolved[f"{params}.nvme_path"] not in unwritten,
        "prefetches": int(resolved.zero("stage3_prefetch_bucket_size")) > 0,
        "buffer_too_small": int(resolved[f"{params}.buffer_size"]) < _largest_partition(setting),
        "swap_starves": int(resolved[f"{offload}.buffer_count"]) < SMALLEST_SWAP_BUFFERS.get(pipelines, 0),
        "bucket_large": bucket > LARGE * reduce_bucket_elements(setting.model),
        "norm_needed": stage in (0, 3)
        or float(resolved["gradient_clipping"] or 0) > 0
        or resolved[f"{offload}.device"] != "none",
        "sixteen_bit_master": any(
            resolved[path] for path in ("bf16.bf16_master_weights_and_grads", "fp16.fp16_master_weights_and_grads")
        ),
        "old_and_new": any(
            f"{ZERO}.{old}" in resolved.written and new in resolved.written
            for old, new in (("cpu_offload", offload), ("cpu_offload_param", params))
        ),
        "zenflow": f"{ZERO}.zenflow" in resolved.written,
        "hpz_divides": hpz <= 1 or setting.world_size % hpz == 0,
        "zeropp": hpz > 1 or any(resolved.zero(name) for name in zeropp),
        "synchronises": any(
            resolved[path] for path in ("wall_clock_breakdown", "flops_profiler.enabled", "comms_logger.enabled")
        ),
    }


def _largest_partition(setting: Setting) -> int:
    return -(-largest_module(setting.model) // setting.world_size)


def _chosen(resolved: Resolved, ledger: Ledger, setting: Setting) -> dict[str, Any]:
    """What a plan would write for this model on these ranks."""
    model, batch = setting.model, resolved.batch
    ratio = float(resolved[f"{ZERO}.offload_optimizer.ratio"])
    part = max(1, tensor_partition(ledger.trainable, setting.world_size) // SHARES)
    rounded = -(-_largest_partition(setting) // PARTITION_ROUNDING) * PARTITION_ROUNDING
    return {
        "train_batch_size": batch.mended or batch.total,
        "train_micro_batch_size_per_gpu": batch.micro,
        "gradient_accumulation_steps": batch.steps,
        f"{ZERO}.reduce_bucket_size": reduce_bucket_elements(model),
        f"{ZERO}.stage3_prefetch_bucket_size": prefetch_elements(model),
        f"{ZERO}.stage3_param_persistence_threshold": persistence_elements(model),
        f"{ZERO}.stage3_max_live_parameters": live_elements(model),
        f"{ZERO}.stage3_max_reuse_distance": live_elements(model),
        f"{ZERO}.sub_group_size": SUB_GROUP_ELEMENTS if ratio == 1 else part,
        f"{ZERO}.offload_optimizer.nvme_path": setting.nvme_path,
        f"{ZERO}.offload_param.nvme_path": setting.nvme_path,
        f"{ZERO}.offload_param.buffer_size": rounded,
    }


def _words(
    resolved: Resolved, meaning: Meaning, ledger: Ledger, setting: Setting, chosen: Mapping[str, Any]
) -> dict[str, str]:
    """Figures that rules put into their sentences."""
    bucket, e = int(resolved.zero("reduce_bucket_size")), meaning.precision.bytes
    doubled = meaning.stage in (1, 2) and meaning.knobs.overlaps
    size = max(1, int(resolved.zero("sub_group_size")))
    groups = sub_groups(ledger.trainable, setting.world_size, size)
    sizes = {
        "largest_partition": _largest_partition(setting),
        "bucket": bucket,
        "bucket_chosen": chosen[f"{ZERO}.reduce_bucket_size"],
        "kept": gathered_elements(ledger, setting.model),
        "live_chosen": chosen[f"{ZERO}.stage3_max_live_parameters"],
        "sub_group": max(groups),
        "sub_group_chosen": chosen[f"{ZERO}.sub_group_size"],
        "part_chosen": chosen[f"{ZERO}.sub_group_size"],
        "sub_groups": len(groups),
    }
    return {name: f"{value:,}" for name, value in sizes.items()} | {
        "batch": resolved.batch.refused,
        "batch_mended": str(resolved.batch.mended),
        "bucket_gib": gib((2 if doubled else 1) * e * bucket),
        "doubled": ", doubled by overlap_comm" if doubled else "",
    }
