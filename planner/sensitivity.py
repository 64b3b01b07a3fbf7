"""Does the decision hold if what it assumes turns out otherwise? Each scenario is solved again, none is scaled.

A scenario (configs/scenarios.toml) scales inputs: rates, prices, tokens, failures. The program then decides anew, and
the old decision is priced on the same inputs: what it costs to keep it is its regret.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from .candidate import Candidate, assess, constraints
from .decide import Found, Search, decide, decided, short_of
from .documents import answered, decision, mfu, summary
from .program import TIE
from .rebill import rebilled
from .request import Request
from .stress import Stress

DECISION = ("gpus", "gpu", "offer", "method", "strategies", "micro_batch", "checkpointed_layers", "offload_ratio")
SAID = {
    "gpus": "number of GPUs",
    "gpu": "GPU type",
    "offer": "machine",
    "method": "method",
    "strategies": "strategies",
    "micro_batch": "micro-batch",
    "checkpointed_layers": "layers checkpointed",
    "offload_ratio": "share offloaded",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One thing that may turn out otherwise, and why it is asked."""

    name: str
    label: str
    stress: Stress
    why: str
    kind: str
    source: str
    date: str


@cache
def scenarios() -> tuple[Scenario, ...]:
    """Every scenario of configs/scenarios.toml, in its order.

    >>> [s.stress.price for s in scenarios() if s.name.startswith("price")]
    [1.2, 0.8]
    """
    import tomllib
    from importlib.resources import files

    text = files("trainplan.configs").joinpath("scenarios.toml").read_text(encoding="utf-8")
    factors = {field.name for field in fields(Stress)}
    return tuple(
        Scenario(
            name=name,
            stress=Stress(**{key: value for key, value in row.items() if key in factors}),
            **{key: value for key, value in row.items() if key not in factors},
        )
        for name, row in tomllib.loads(text).items()
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a scenario does to the decision."""

    scenario: Scenario
    candidate: Candidate | None  # the new decision; None: nothing fits
    stops: str  # what is short where nothing fits
    changed: tuple[str, ...]  # what differs from the old decision
    kept: Candidate  # the old decision, priced under the scenario
    breaks: tuple[str, ...]  # limits that the old decision then breaks
    regret_usd: float | None  # what keeping it costs more; None: it breaks a limit, or the new one trains otherwise

    @property
    def holds(self) -> bool:
        """Whether the decision is the same."""
        return self.candidate is not None and not self.changed

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        s = self.scenario
        return {
            "name": s.name,
            "label": s.label,
            "why": s.why,
            "kind": s.kind,
            "source": s.source,
            "holds": self.holds,
            "changed": list(self.changed),
            "stops": self.stops,
            "decision": summary(self.candidate) if self.candidate else None,
            "mfu": _mfu(self.candidate, s.stress) if self.candidate else None,
            "kept": {**summary(self.kept), "breaks": list(self.breaks)},
            "regret_usd": self.regret_usd,
        }


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """A decision and what each scenario makes of it."""

    request: Request
    candidate: Candidate
    outcomes: tuple[Outcome, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        scenarios = [outcome.to_dict() for outcome in self.outcomes]
        return answered(self.request, self.candidate, mfu=mfu(self.candidate), scenarios=scenarios)


Searcher = Callable[[Request, Stress, float], Search]  # ..., and dollars above which nothing need be explored


def sensitivity(search: Search, searcher: Searcher, progress: Callable[[str], None] = lambda _: None) -> Sensitivity:
    """The decision of a search, and the decision of every scenario.

    Args:
        search: explored as assumed.
        searcher: explores a request under stress, where the explored space does not serve.
        progress: told of each scenario.

    Raises:
        NoPlan: nothing fits as assumed.
    """
    chosen = decide(search)
    outcomes = []
    for scenario in scenarios():
        progress(f"what if: {scenario.label}")
        outcomes.append(outcome(scenario, search, chosen, searcher))
    return Sensitivity(request=search.request, candidate=chosen[0], outcomes=tuple(outcomes))


def outcome(scenario: Scenario, search: Search, chosen: Found, searcher: Searcher) -> Outcome:
    """One scenario: decide again, and price the old decision on the same inputs."""
    stress = scenario.stress
    wanted = replace(search.request, tokens=round(search.request.tokens * stress.tokens))
    kept = _kept(search, wanted, chosen, stress)
    breaks = _broken(kept, wanted)
    after = stressed(search, wanted, stress, searcher, at_most_usd=math.inf if breaks else _enough_usd(kept, wanted))
    found = decided(after)
    candidate = found[0] if found else None
    same_method = candidate is not None and candidate.method is kept.method
    return Outcome(
        scenario=scenario,
        candidate=candidate,
        stops="" if found else short_of(after).brief,
        changed=_changed(chosen[0], candidate) if candidate else (),
        kept=kept,
        breaks=breaks,
        regret_usd=kept.cost.usd - candidate.cost.usd if candidate and same_method and not breaks else None,
    )


def stressed(
    search: Search, wanted: Request, stress: Stress, searcher: Searcher, *, at_most_usd: float = math.inf
) -> Search:
    """The search under stress: on the columns already explored where these serve, else explored anew.

    Args:
        search: as assumed.
        wanted: the request under stress.
        stress: what turns out otherwise.
        searcher: explores anew.
        at_most_usd: machines that must cost more need not be explored.
    """
    if not stress.keeps_order:
        return searcher(wanted, stress, at_most_usd)
    return replace(search, request=wanted, space=rebilled(search.space, wanted.workload(search.model), stress.offer))


def _enough_usd(kept: Candidate, wanted: Request) -> float:
    """Dollars that no new decision exceeds while the old one breaks no limit: its own, or those that buy fidelity."""
    return wanted.budget_usd if math.isfinite(wanted.budget_usd) else kept.cost.usd * (1 + TIE)


def _kept(search: Search, wanted: Request, chosen: Found, stress: Stress) -> Candidate:
    """The old decision under the scenario: memory is what it was, time and money are not."""
    point, choice = search.space.points[chosen[1].key], chosen[1]
    return assess(
        stress.offer(point.offer),
        point.family.at(choice.layers, choice.groups),
        replace(point.setting, workload=stress.workload(wanted.workload(search.model))),
        method=point.family.method,
        zero_stage=point.family.zero_stage,
    )


def _broken(kept: Candidate, wanted: Request) -> tuple[str, ...]:
    every = constraints(kept, budget_usd=wanted.budget_usd, deadline_s=wanted.deadline_s, max_gpus=wanted.max_gpus)
    return tuple(c.brief for c in every if not c.holds)


def _changed(before: Candidate, now: Candidate) -> tuple[str, ...]:
    """What the two decisions do not share, in words."""
    old, new = decision(before), decision(now)
    return tuple(SAID[key] for key in DECISION if old[key] != new[key])


def _mfu(candidate: Candidate, stress: Stress) -> float | None:
    """MFU against the datasheet's peak, not the stressed one."""
    found = mfu(candidate)
    return None if found is None else found * stress.kernel_rate
