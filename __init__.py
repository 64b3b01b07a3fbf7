"""trainplan: how many of which GPUs, with which strategy, for how long, for how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        afford,
        breakeven,
        calibrate,
        check,
        estimate,
        load_model,
        plan,
        sensitivity,
        trace,
        validate,
        verify,
    )

__all__ = [
    "__version__",
    "afford",
    "breakeven",
    "calibrate",
    "check",
    "estimate",
    "load_model",
    "plan",
    "sensitivity",
    "trace",
    "validate",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Load the API on first use, so that `import trainplan` costs nothing."""
    if name == "__version__":
        from importlib.metadata import version

        return version("trainplan")
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module 'trainplan' has no attribute {name!r}")
