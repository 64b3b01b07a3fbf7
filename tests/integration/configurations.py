"""Hand-written ds_config dictionaries, one for each class of strategy that a plan may choose."""

from __future__ import annotations

from typing import Any

HIDDEN = 128  # of the tiny model: bucket sizes follow it, as they would in a plan
CPU = {"device": "cpu", "pin_memory": True}

ZERO_12: dict[str, Any] = {
    "reduce_bucket_size": 100_000,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "round_robin_gradients": True,
}
ZERO_3: dict[str, Any] = {
    "overlap_comm": True,
    "contiguous_gradients": True,
    "reduce_bucket_size": HIDDEN * HIDDEN,
    "stage3_prefetch_bucket_size": 9 * HIDDEN * HIDDEN // 10,
    "stage3_param_persistence_threshold": 10 * HIDDEN,
    "sub_group_size": 100_000_000,
    "stage3_max_live_parameters": 500_000,
    "stage3_max_reuse_distance": 500_000,
    "stage3_gather_16bit_weights_on_model_save": True,
}


def config(*, stage: int, cpu_adam: bool = False, **zero: Any) -> dict[str, Any]:
    """One bf16 ds_config: AdamW, two micro-steps, and a zero_optimization block of a stage.

    ``cpu_adam`` leaves the optimizer to DeepSpeed, which takes DeepSpeedCPUAdam where the states are on the host;
    torch's own AdamW needs no compiler.
    """
    adam: dict[str, Any] = {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.01}
    block = {0: {}, 1: ZERO_12, 2: ZERO_12, 3: ZERO_3}[stage]
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "steps_per_print": 100,
        "wall_clock_breakdown": False,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": adam if cpu_adam else adam | {"torch_adam": True, "fused": True}},
        "zero_optimization": {"stage": stage, **block, **zero},
    }


# Twin-Flow moves whole sub-groups, so its share needs several of them: 857 216 / 2 elements a rank in pieces of 20 000.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "zero0": config(stage=0),
    "zero1": config(stage=1),
    "zero2": config(stage=2),
    "zero3": config(stage=3),
    "zero2-offload-optimizer": config(stage=2, cpu_adam=True, overlap_comm=False, offload_optimizer=CPU),
    "zero3-offload-optimizer": config(stage=3, cpu_adam=True, offload_optimizer=CPU),
    "zero3-offload-ratio": config(
        stage=3, cpu_adam=True, sub_group_size=20_000, offload_optimizer=CPU | {"ratio": 0.6}
    ),
    "zero3-offload-both": config(stage=3, cpu_adam=True, offload_optimizer=CPU, offload_param=CPU),
}
