"""How a seller bills hours: steps, minimums, commitments; values that offers carry."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

ROUNDING = 1e-9  # relative; the same hours summed in another order


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a node is billed beside its rate; by default whole nodes, pro rata, as long and as many as one likes."""

    minimum_hours: float = 0.0  # billed at least
    billing_step_hours: float | None = None  # billed in whole steps; None: pro rata
    long_after_hours: float | None = None  # a stay above this is billed in steps of long_step_hours
    long_step_hours: float | None = None
    commitment_hours: float | None = None  # billed whether used or not, in whole commitments
    maximum_hours: float | None = None  # None: no limit
    minimum_nodes: int = 1
    maximum_nodes: int | None = None
    upfront: bool = False  # paid before it starts
    storage_usd_per_gib_month: float | None = None  # None: unknown
    egress_usd_per_gib: float | None = None  # None: unknown
    source: str = ""  # of the terms, with its date
    storage_gib: float | None = None  # what the user keeps while the run lasts
    egress_gib: float | None = None  # what the user moves out of the cloud

    @property
    def is_plain(self) -> bool:
        """Whether dollars are proportional to hours: no step, minimum, commitment or fixed charge.

        >>> Terms(egress_gib=5).is_plain, Terms(egress_gib=5, egress_usd_per_gib=0.09).is_plain
        (True, False)
        """
        pro_rata = not self.minimum_hours and self.billing_step_hours is None and self.commitment_hours is None
        stored = self.storage_gib is not None and self.storage_usd_per_gib_month is not None
        moved = self.egress_gib is not None and self.egress_usd_per_gib is not None
        return pro_rata and not stored and not moved

    @property
    def states_nothing(self) -> bool:
        """Whether the source says nothing of how hours are billed."""
        return replace(self, storage_gib=None, egress_gib=None) == Terms()

    def billed_hours(self, hours: float) -> float:
        """Hours that are paid for; never fewer than those used, and never fewer for a longer run.

        >>> days = Terms(billing_step_hours=24, long_after_hours=14 * 24, long_step_hours=7 * 24)
        >>> [days.billed_hours(h) / 24 for h in (1, 24, 25, 14 * 24, 14 * 24 + 1)]
        [1.0, 1.0, 2.0, 14.0, 21.0]
        >>> Terms(commitment_hours=720).billed_hours(1)
        720
        """
        billed = max(hours, self.minimum_hours)
        step = self.billing_step_hours
        if self.long_after_hours is not None and billed > self.long_after_hours:
            step = self.long_step_hours
        return _up(_up(billed, step), self.commitment_hours)

    def text(self) -> str:
        """The terms in a few words.

        >>> Terms(billing_step_hours=24, maximum_hours=168, upfront=True, minimum_nodes=2).text()
        'whole nodes, in steps of 24 h; at most 168 h; at least 2 nodes; paid upfront'
        >>> Terms().text()
        'whole nodes, pro rata'
        """
        return "; ".join(filter(None, (f"whole nodes, {self.granularity()}", *self._limits())))

    def granularity(self) -> str:
        """How hours become billed hours: "in steps of 24 h"."""
        parts = [f"at least {self.minimum_hours:g} h"] if self.minimum_hours else []
        parts += ["pro rata"] if self.billing_step_hours is None and self.commitment_hours is None else []
        if self.billing_step_hours is not None:
            parts.append(f"in steps of {self.billing_step_hours:g} h")
        if self.long_step_hours is not None and self.long_after_hours is not None:
            parts.append(f"of {self.long_step_hours:g} h above {self.long_after_hours:g} h")
        if self.commitment_hours is not None:
            parts.append(f"in commitments of {self.commitment_hours:g} h, used or not")
        return ", ".join(parts)

    def _limits(self) -> tuple[str, ...]:
        return (
            f"at most {self.maximum_hours:g} h" if self.maximum_hours is not None else "",
            f"at least {self.minimum_nodes} nodes" if self.minimum_nodes > 1 else "",
            f"at most {self.maximum_nodes} nodes" if self.maximum_nodes is not None else "",
            "paid upfront" if self.upfront else "",
        )


PLAIN = Terms()


def _up(hours: float, step: float | None) -> float:
    """Hours rounded up to whole steps; a step exceeded in a float's last digits only is not exceeded."""
    if step is None:
        return hours
    return max(math.ceil(hours / step * (1 - ROUNDING)) * step, hours)
