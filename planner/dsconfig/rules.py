"""The rules of configs/deepspeed_rules.toml, and what they find: costs are differences of two judged configurations."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ..candidate import Candidate
from ..ledger import TRAINING, Device
from ..units import GIB
from .facts import Facts
from .findings import Cost, Finding, Severity, shown
from .resolving import Resolved

CHOSEN = "<chosen>"
Judge = Callable[[Mapping[str, Any]], Candidate | None]  # the configuration after changes; None: it cannot be judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule."""

    name: str
    severity: Severity
    key: str
    when: Mapping[str, tuple[Any, ...]]
    better: str  # time, memory, or nothing
    why: str
    instead: str
    changes: tuple[Mapping[str, Any], ...]
    source: str

    def hits(self, facts: Mapping[str, Any]) -> bool:
        """Whether the facts are those it is about."""
        return all(facts.get(name) in values for name, values in self.when.items())


@cache
def _document() -> Mapping[str, Any]:
    text = files("trainplan.configs").joinpath("deepspeed_rules.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def rules() -> tuple[Rule, ...]:
    """The whole table."""
    return tuple(
        Rule(
            name=row["name"],
            severity=Severity[row["severity"].upper()],
            key=row["key"],
            when={name: tuple(values) for name, values in row["when"].items()},
            better=row.get("better", ""),
            why=row["why"],
            instead=row["instead"],
            changes=tuple(row.get("changes", ())),
            source=row["source"],
        )
        for row in _document()["rule"]
    )


def threshold(name: str) -> float:
    """Below it a difference is not worth a line."""
    return float(_document()["thresholds"][name])


def found(facts: Facts, resolved: Resolved, base: Candidate, judge: Judge) -> tuple[Finding, ...]:
    """Every finding of every rule.

    Args:
        facts: of the configuration.
        resolved: its values.
        base: the configuration, judged.
        judge: judges it again after changes.
    """
    hit = [rule for rule in rules() if rule.hits(facts.values)]
    return tuple(finding for rule in hit for finding in _finding(rule, facts, resolved, base, judge))


def _finding(rule: Rule, facts: Facts, resolved: Resolved, base: Candidate, judge: Judge) -> Iterator[Finding]:
    options = [_filled(each, facts.chosen) for each in rule.changes]
    priced = [(each, cost(base, other)) for each in options if (other := judge(each)) and _allowed(rule, other)]
    if rule.better:
        priced = [(each, price) for each, price in priced if _worth(rule, price, base)]
        if not priced:
            return
    best = max(priced, key=lambda pair: pair[1].step_s, default=(options[0] if options else {}, None))
    changes, price = best
    words = {**facts.words, "change": str(next(iter(changes.values()), ""))}
    silent = price is None or rule.severity is Severity.ERROR or not _differs(price)
    yield Finding(
        severity=_severity(rule, price, base),
        rule=rule.name,
        path=rule.key,
        given=_given(rule.key, resolved),
        why=rule.why.format_map(words),
        instead=rule.instead.format_map(words),
        source=rule.source,
        changes=tuple(changes.items()),
        cost=None if silent else price,
    )


def _filled(changes: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {path: chosen[path] if value == CHOSEN else value for path, value in changes.items()}


def _allowed(rule: Rule, other: Candidate) -> bool:
    return rule.better != "time" or other.fits


def _worth(rule: Rule, price: Cost, base: Candidate) -> bool:
    """Whether what is saved reaches the threshold."""
    if rule.better == "time":
        return price.step_s >= threshold("step_share") * base.time.step_s
    least = threshold("gpu_gib") * GIB
    return max(price.gpu_bytes, price.gpu_phase_bytes) >= least or price.host_bytes >= _host_least()


def _host_least() -> float:
    return threshold("host_gib") * GIB


def _severity(rule: Rule, price: Cost | None, base: Candidate) -> Severity:
    """What is not there at the peak costs nothing today, and what saves time is a choice: notes."""
    if rule.severity is not Severity.WASTEFUL or rule.better != "memory" or price is None:
        return rule.severity
    felt = price.gpu_bytes >= threshold("gpu_gib") * GIB or price.host_bytes >= _host_least()
    quicker = price.step_s < -threshold("step_share") * base.time.step_s
    return Severity.WASTEFUL if felt and not quicker else Severity.NOTE


def _differs(price: Cost) -> bool:
    return any(price.to_dict().values())


def _given(path: str, resolved: Resolved) -> str:
    """The value in force, and who said it."""
    if path not in resolved.values:
        return "present" if path in resolved.written else ""
    value = resolved.values[path]
    said = {"file": "", "auto": " (auto)", "default": " (default)", "deprecated": f" ({value.how})"}[value.origin]
    return f"{shown(value.value)}{said}"


def cost(base: Candidate, other: Candidate) -> Cost:
    """What the first takes more than the other."""
    ours, theirs = (c.ledger.by_phase(Device.GPU) for c in (base, other))
    return Cost(
        gpu_bytes=base.gpu.allocated_bytes - other.gpu.allocated_bytes,
        gpu_phase_bytes=max(ours[phase] - theirs[phase] for phase in TRAINING),
        host_bytes=base.host.needed_bytes - other.host.needed_bytes,
        nvme_bytes=base.nvme.needed_bytes - other.nvme.needed_bytes,
        step_s=base.time.step_s - other.time.step_s,
        usd=base.cost.usd - other.cost.usd,
    )
