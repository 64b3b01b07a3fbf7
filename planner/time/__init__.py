"""From amounts of work to seconds: rates, collectives by fabric, what hides behind what, one step and its band."""

from .matmul import alignment_share, attention_s_per_flop, matmul_s_per_flop, matmul_share
from .parts import Buckets, PartTime, exposed_s
from .pipeline import pipelined
from .rates import Rates, rates, refusal
from .spread import Seconds, rests_on, step_seconds
from .step import StepTime, TimeTerm, compute_sums, price, price_parts

__all__ = [
    "Buckets", "PartTime", "Rates", "Seconds", "StepTime", "TimeTerm", "alignment_share", "attention_s_per_flop",
    "compute_sums", "exposed_s", "matmul_s_per_flop", "matmul_share", "pipelined", "price", "price_parts", "rates",
    "refusal", "rests_on", "step_seconds",
]  # fmt: skip
