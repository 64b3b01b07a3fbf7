"""Electricity of a run: GPUs, their hosts, and what the data centre adds."""

from __future__ import annotations

from .efficiency import value
from .hardware import Gpu

WATTS_PER_KW = 1000.0


def run_kwh(
    gpu: Gpu, gpus: int, hours: float, pue: float | None = None, machines_kw: float | None = None
) -> float | None:
    """Electricity of so many GPUs over so many hours; None where the GPU's power is unknown.

    Formula: GPUs x TDP x share under load x (1 + host's share) x PUE x hours. Waiting is counted as training.

    Args:
        gpu: gives the TDP.
        gpus: in the whole cluster, idle ones included.
        hours: from start to end.
        pue: power usage effectiveness; None: that of configs/run.toml.
        machines_kw: what all machines draw, where the user says so; None: from the TDP.

    Returns:
        kWh.

    Source:
        configs/run.toml, [power].

    >>> from .catalog import find_gpu
    >>> round(run_kwh(find_gpu("h100"), 8, 1.0, pue=1.0), 2)  # 7.75 kW, as measured on a node
    7.76
    >>> run_kwh(find_gpu("h100"), 8, 2.0, pue=1.5, machines_kw=10.0)
    30.0
    """
    if machines_kw is None:
        if gpu.tdp_w is None:
            return None
        machines_w = gpus * gpu.tdp_w * value("power", "gpu_share") * (1 + value("power", "host_share"))
        machines_kw = machines_w / WATTS_PER_KW
    return machines_kw * hours * (value("power", "pue") if pue is None else pue)


def run_kgco2(kwh: float | None, grid_kgco2_per_kwh: float | None) -> float | None:
    """Emissions with the user's grid factor; None where the electricity or the factor is unknown.

    >>> run_kgco2(1000.0, 0.4), run_kgco2(1000.0, None)
    (400.0, None)
    """
    return None if kwh is None or grid_kgco2_per_kwh is None else kwh * grid_kgco2_per_kwh
