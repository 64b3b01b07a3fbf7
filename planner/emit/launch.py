"""What every launch of a plan has in common."""

from __future__ import annotations

ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"  # the fragmentation bound assumes it
TRAIN = "train.py"  # the script that a plan comes with
