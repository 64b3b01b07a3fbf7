"""The public face: plan, estimate, explain a refusal. Joins strategies and planner; the command line only calls this.

>>> import trainplan
>>> found = trainplan.estimate("llama-3-8b", gpus="8xa100-80", zero=3, checkpointing="full")
>>> found.candidate.gpu.fits
True
"""

from __future__ import annotations

from ..planner.models import load_model
from .asking import request
from .calibrating import Calibrated, calibrate
from .checking import Checked, check
from .estimating import Estimate, estimate
from .planning import no_plan, plan
from .refusing import Refused, why_not
from .tracing import trace
from .validating import validate
from .verifying import verify
from .what_if import afford, breakeven, sensitivity

__all__ = [
    "Calibrated",
    "Checked",
    "Estimate",
    "Refused",
    "afford",
    "breakeven",
    "calibrate",
    "check",
    "estimate",
    "load_model",
    "no_plan",
    "plan",
    "request",
    "sensitivity",
    "trace",
    "validate",
    "verify",
    "why_not",
]
