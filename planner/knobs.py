"""The sizes DeepSpeed works with: trainplan's own choice, or what a configuration says.

Counts of elements are DeepSpeed's own, as they stand in ds_config.json. None is "choose": planner/gathering.py and the
strategies then take the sizes they write themselves.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """Sizes of ZeRO's buffers.

    >>> Knobs(reduce_bucket=500_000_000).overlaps, Knobs(overlap_comm=False).overlaps
    (True, False)
    """

    reduce_bucket: int | None = None  # reduce_bucket_size
    overlap_comm: bool | None = None
    reduce_scatter: bool = True
    prefetch: int | None = None  # stage3_prefetch_bucket_size
    persistence: int | None = None  # stage3_param_persistence_threshold
    persisted: int | None = None  # stage3_model_persistence_threshold
    live: int | None = None  # stage3_max_live_parameters
    reuse: int | None = None  # stage3_max_reuse_distance
    sub_group: int | None = None  # sub_group_size
    secondary_ranks: int = 1  # zero_hpz_partition_size

    @property
    def overlaps(self) -> bool:
        """Whether gradients are reduced beside the backward pass, from a second bucket at stages 1 and 2."""
        return self.overlap_comm is not False


CHOSEN = Knobs()
