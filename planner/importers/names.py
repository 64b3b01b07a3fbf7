"""Which accelerator of configs/gpus.toml a catalog means; its own figures of memory are never used.

SkyPilot's GpuInfo has no schema and wrong units (GB written as MiB, totals for one GPU), its metadata.csv and gpuhunt's
table are wrong for several cards: memory is what configs/gpus.toml says of the name.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any

from ..catalog import find_gpu
from ..catalog_files import gpu_key
from ..errors import InputError
from ..hardware import Gpu
from .listed import Reason, facts

TPU = re.compile(r"tpu", re.IGNORECASE)


@lru_cache(maxsize=65536)  # a machine stands in the file once for each zone
def named_gpu(cloud: str, accelerator: str, instance: str) -> Gpu | Reason:
    """The accelerator, or why it is unknown.

    >>> named_gpu("azure", "H100", "Standard_NC40ads_H100_v5").name, named_gpu("vast", "H100", "1x-H100_NVL-32").name
    ('h100-nvl', 'h100-nvl')
    >>> named_gpu("shadeform", "H100", "paperspace/H100").name
    'AMBIGUOUS_GPU'
    """
    for rule in facts()["names"]:
        if _matches(rule, cloud, accelerator, instance):
            return find_gpu(rule["gpu"]) if rule["gpu"] else Reason.UNKNOWN_GPU
    if gpu_key(accelerator) in _keys(tuple(facts()["ambiguous"])):
        return Reason.AMBIGUOUS_GPU
    try:
        return find_gpu(accelerator)
    except InputError:
        return Reason.UNKNOWN_GPU


def _matches(rule: dict[str, Any], cloud: str, accelerator: str, instance: str) -> bool:
    """Whether every key of a rule holds."""
    if "clouds" in rule and cloud not in rule["clouds"]:
        return False
    if "accelerators" in rule and gpu_key(accelerator) not in _keys(tuple(rule["accelerators"])):
        return False
    return "instance" not in rule or bool(_pattern(rule["instance"]).search(f"{instance} {accelerator}"))


@cache
def _keys(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(gpu_key, names))


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)
