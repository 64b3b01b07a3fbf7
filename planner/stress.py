"""What may turn out other than assumed: rates, prices, tokens, failures; factors on the inputs of a search."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .hardware import Gpu, Node, Offer
from .terms import Terms
from .workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Stress:
    """Factors on what a plan assumes; 1 is as assumed.

    They change inputs (offers, tokens) before anything is searched or priced, so that every answer under stress comes
    from the same program as the plan.
    """

    kernel_rate: float = 1.0  # FLOP/s and GPU memory bandwidth that kernels reach; copies and networks keep theirs
    internode: float = 1.0  # bandwidth between nodes
    price: float = 1.0
    tokens: float = 1.0
    failures: float = 1.0  # failures and spot interruptions per hour

    @property
    def keeps_order(self) -> bool:
        """Whether a space explored without stress holds every best plan under it.

        Prices multiply every bill alike, so what was dropped for a plan that is no dearer and no slower is still beaten
        by it. Tokens and failures do not: start-up, checkpoints and billed steps weigh otherwise on other machines.
        """
        return self == Stress(price=self.price)

    def offer(self, offer: Offer) -> Offer:
        """The offer as it turns out."""
        if self == AS_ASSUMED:
            return offer
        return replace(
            offer,
            node=self._node(offer.node),
            usd_per_hour=offer.usd_per_hour * self.price,
            terms=self._terms(offer.terms),
        )

    def workload(self, workload: Workload) -> Workload:
        """The job with the failures that it turns out to meet; tokens are the request's."""
        if self.failures == 1.0:
            return workload
        return replace(workload, run=replace(workload.run, failures=workload.run.failures * self.failures))

    def _terms(self, terms: Terms) -> Terms:
        """Storage and egress cost what they cost, times the factor; what is unknown stays unknown."""
        if self.price == 1.0:
            return terms
        return replace(
            terms,
            storage_usd_per_gib_month=self._dearer(terms.storage_usd_per_gib_month),
            egress_usd_per_gib=self._dearer(terms.egress_usd_per_gib),
        )

    def _dearer(self, price: float | None) -> float | None:
        return None if price is None else price * self.price

    def _node(self, node: Node) -> Node:
        """Nodes are told apart by identity: one that stays as it is stays the same object."""
        if self.kernel_rate == self.internode == 1.0:
            return node
        network = node.internode_bytes_per_s
        return replace(
            node, gpu=self._gpu(node.gpu), internode_bytes_per_s=None if network is None else network * self.internode
        )

    def _gpu(self, gpu: Gpu) -> Gpu:
        if self.kernel_rate == 1.0:
            return gpu
        return replace(
            gpu,
            memory_bandwidth_bytes_per_s=gpu.memory_bandwidth_bytes_per_s * self.kernel_rate,
            bf16_flop_per_s=self._slower(gpu.bf16_flop_per_s),
            fp16_flop_per_s=self._slower(gpu.fp16_flop_per_s),
            fp32_flop_per_s=self._slower(gpu.fp32_flop_per_s),
        )

    def _slower(self, flop_per_s: float | None) -> float | None:
        return None if flop_per_s is None else flop_per_s * self.kernel_rate


AS_ASSUMED = Stress()
