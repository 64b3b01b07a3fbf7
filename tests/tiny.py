"""A tiny Llama, settings for it, and machines of one's own: what tests of the core are made of."""

from __future__ import annotations

from functools import cache

from trainplan.planner import catalog
from trainplan.planner.architectures import build_model
from trainplan.planner.hardware import Offer
from trainplan.planner.ledger import Ledger
from trainplan.planner.model import Model
from trainplan.planner.states import baseline
from trainplan.planner.transform import Setting, Stack, Strategy, fold
from trainplan.planner.units import GIB
from trainplan.planner.workload import Workload


@cache
def llama(
    *,
    hidden: int = 256,
    layers: int = 4,
    vocab: int = 2048,
    intermediate: int = 688,
    heads: int = 8,
    tied: bool = False,
) -> Model:
    """A Llama with half as many key-value heads as heads; one object per set of sizes."""
    config = {
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "vocab_size": vocab,
        "intermediate_size": intermediate, "num_attention_heads": heads, "num_key_value_heads": heads // 2,
        "tie_word_embeddings": tied, "max_position_embeddings": 4096,
    }  # fmt: skip
    return build_model(config, name="tiny", source="tests")


def setting(
    model: Model | None = None,
    *,
    ranks: int = 2,
    nodes: int = 1,
    micro_batch: int = 1,
    micro_steps: int = 1,
    seq_len: int = 64,
) -> Setting:
    """Ranks are per node; the global batch is what the triangle makes it."""
    batch = nodes * ranks * micro_batch * micro_steps
    workload = Workload(model=model or llama(), tokens=100 * batch * seq_len, seq_len=seq_len, global_batch=batch)
    return Setting(workload=workload, nodes=nodes, ranks_per_node=ranks, micro_batch=micro_batch)


def folded(*strategies: Strategy, at: Setting | None = None) -> Ledger:
    """The fold alone: states and traffic, no activations, no process."""
    where = at or setting()
    return fold(baseline(where), Stack.of(*strategies), where)


def machines(
    gpu: str = "a100-40", *, gpus: int = 2, usd: float = 1.0, host_gib: int | None = 64, nvme_gib: int | None = None
) -> Offer:
    """Nodes of one's own, joined by 12.5 GB/s."""
    return catalog.owned_offer(
        catalog.find_gpu(gpu),
        gpus_per_node=gpus,
        usd_per_gpu_hour=usd,
        host_memory_bytes=None if host_gib is None else host_gib * GIB,
        vcpus=16 * gpus,
        nvme_bytes=None if nvme_gib is None else nvme_gib * GIB,
        internode_bytes_per_s=12.5e9,
    )
