"""Work, checkpoints and failures: how long work takes that fails at random and goes on from its last checkpoint.

Symbols: U hours of work, C hours to write a checkpoint, M hours between failures of the cluster, R hours to be back
after one, tau hours of work between checkpoints.

Source:
    J. W. Young 1974, "A first order approximation to the optimum checkpoint interval", CACM 17; J. T. Daly 2006, "A
    higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22.
"""

from __future__ import annotations

import math

NEWTON_STEPS = 6  # from Young's estimate; each doubles the digits
MOST = 60.0  # exponent: a run that would take e^60 times its work is never one, and its hours stay a number


def best_interval_h(write_h: float, between_failures_h: float) -> float:
    """tau: hours of work between checkpoints at which a run is expected to end first.

    Formula: x = tau/M solves 1 - x = e^(-x - C/M), by Newton's method from Young's sqrt(2 C/M).

    Args:
        write_h: C.
        between_failures_h: M.

    Returns:
        Hours; 0 where writing takes no time.

    Source:
        Daly 2006; his higher-order estimate is a series of the same root.

    >>> round(best_interval_h(0.01, 100.0), 3), round((2 * 0.01 * 100.0) ** 0.5 - 0.01, 3)
    (1.408, 1.404)
    """
    if write_h <= 0:
        return 0.0
    c = write_h / between_failures_h
    x = min(1.0, math.sqrt(2 * c))
    for _ in range(NEWTON_STEPS):
        x -= (x + math.expm1(-x - c)) / -math.expm1(-x - c)
    return x * between_failures_h


def stretched_h(work_h: float, interval_h: float, write_h: float, restart_h: float, between_failures_h: float) -> float:
    """Expected hours of so many hours of work, cut into intervals that each end with a checkpoint.

    Formula: M e^(R/M) (e^((tau + C)/M) - 1) U / tau.

    Args:
        work_h: U.
        interval_h: tau, above 0.
        write_h: C.
        restart_h: R.
        between_failures_h: M.

    >>> round(stretched_h(100.0, 2.0, 0.1, 0.2, 1e9), 3)  # no failures: one checkpoint of 0.1 h every 2 h
    105.0
    """
    m = between_failures_h
    once = math.exp(min(MOST, restart_h / m)) * math.expm1(min(MOST, (interval_h + write_h) / m)) * m
    return once * work_h / interval_h
