"""Customary starting points of a recipe: no memory, time or cost follows from them, and they are there to be tuned."""

from __future__ import annotations

from typing import Any

# Full: Touvron et al. 2023 (arXiv:2307.09288) §A; adapters: Dettmers et al. 2023 (arXiv:2305.14314) §B.2
LEARNING_RATE = {False: 1e-5, True: 2e-4}
WEIGHT_DECAY = {False: 0.1, True: 0.0}  # likewise
BETAS, EPS = (0.9, 0.95), 1e-8  # likewise; 1e-8 is torch's default
ALPHA_PER_RANK = 1  # adapters scaled by 1: huggingface/alignment-handbook recipes/zephyr-7b-beta/sft/config_qlora.yaml
WARMUP_SHARE, FINAL_RATE = 0.01, 0.1  # of the steps; of the highest rate, where half a cosine ends: train.py's own


def adamw_parameters(*, adapters: bool) -> dict[str, Any]:
    """Hyperparameters of AdamW, for whole models or for adapters.

    >>> adamw_parameters(adapters=True)["lr"]
    0.0002
    """
    return {
        "lr": LEARNING_RATE[adapters],
        "betas": list(BETAS),
        "eps": EPS,
        "weight_decay": WEIGHT_DECAY[adapters],
    }
