"""Keys that do nothing at the configuration's ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator

from .findings import Finding, Severity
from .keys import ZERO, keys
from .resolving import Resolved

TOLD = ("offload_optimizer", "offload_param", "zero_quantized", "zero_hpz")  # of which rules of their own speak


def ignored(resolved: Resolved) -> Iterator[Finding]:
    """One note for all keys that are written, and that act at other stages alone."""
    stage = int(resolved.zero("stage"))
    idle = [
        key.name
        for path, key in keys().items()
        if path.startswith(f"{ZERO}.") and path in resolved.written and stage not in key.stages
        if not key.path.removeprefix(f"{ZERO}.").startswith(TOLD)
    ]
    if idle:
        yield Finding(
            severity=Severity.NOTE, rule="no-effect-at-stage", path=ZERO, given=", ".join(idle),
            why=f"without effect at stage {stage}", instead="take them out, or leave them for another stage",
            source="configs/deepspeed.toml",
        )  # fmt: skip
