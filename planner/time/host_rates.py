"""What one rank gets of its node's host: the link to it, its memory for the CPU optimizer, its drives.

Symbols: r ranks in use on the node, g GPUs below one uplink to the host, c vCPUs.

    link          PCIe of one GPU x share / min(g, r)
    CPU optimizer c / r x bytes/s of memory per vCPU x share: threads and memory are shared alike
    drives        of the node / r
"""

from __future__ import annotations

from ..efficiency import architecture_key, value
from ..hardware import Gpu, Node


def gpus_per_uplink(gpu: Gpu) -> int:
    """GPUs that share one uplink to the host: by the kind of box, PCIe cards or boards of an architecture."""
    kind = "pcie" if gpu.link == "PCIe" else architecture_key(gpu.architecture)
    return int(value("host_link_gpus_per_uplink", kind))


def host_link_bytes_per_s(node: Node, ranks: int) -> float:
    """One direction of the link between a rank's GPU and pinned host memory, all ranks copying at once.

    Args:
        node: the machine.
        ranks: r, GPUs in use.

    Source:
        configs/efficiency.toml, host_link and host_link_gpus_per_uplink.
    """
    sharing = min(gpus_per_uplink(node.gpu), ranks)
    return node.gpu.calibration.host_link * node.gpu.host_link_bytes_per_s * value("host_link", "share") / sharing


def pageable_bytes_per_s(node: Node, ranks: int) -> float:
    """Likewise for memory that is not pinned: the driver's thread copies it to pinned memory first."""
    pageable = node.gpu.calibration.host_link * value("host_link", "pageable_bytes_per_s")
    return min(host_link_bytes_per_s(node, ranks), pageable)


def vcpus(node: Node) -> float:
    """c, assumed where the offer does not say."""
    return node.vcpus or node.gpus * value("host_memory", "vcpus_per_gpu")


def cpu_optimizer_bytes_per_s(node: Node, ranks: int) -> float:
    """Bytes per second that the CPU optimizer of one rank moves, all ranks updating at once.

    Args:
        node: the machine; unknown vCPUs are assumed.
        ranks: r, GPUs in use, each with its own optimizer and its part of the cores.

    Source:
        configs/efficiency.toml, host_memory; compared in tests/oracles/test_against_cpu_adam.py.
    """
    threads = vcpus(node) / ranks
    return (
        node.gpu.calibration.host_memory
        * threads
        * value("host_memory", "bytes_per_s_per_vcpu")
        * value("host_memory", "share")
    )


def nvme_bytes_per_s(node: Node, ranks: int, direction: str) -> float:
    """Assumed drives of a node, by the generation of its PCIe; ``direction`` is read or write."""
    modern = node.gpu.host_link_bytes_per_s > value("nvme", "gen5_above_host_link")
    return (
        node.gpu.calibration.nvme
        * node.gpus
        * value("nvme", f"{'gen5' if modern else 'gen4'}_{direction}_per_gpu")
        / ranks
    )
