"""What each key that is modelled costs: the configuration judged with it and with what it is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..candidate import Candidate
from .editing import REMOVE
from .facts import Facts
from .findings import Cost
from .keys import Key, keys
from .resolving import Resolved
from .rules import CHOSEN, Judge, cost


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPrice:
    """One key: its value, who said so, what it is compared with, the difference."""

    path: str
    value: Any
    origin: str
    against: Any
    cost: Cost

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        compared = {"key": self.path, "value": self.value, "from": self.origin, "against": self.against}
        return {**compared, "costs": self.cost.to_dict()}


def key_prices(facts: Facts, resolved: Resolved, base: Candidate, judge: Judge) -> tuple[KeyPrice, ...]:
    """Every key that makes a difference, in the order of DeepSpeed's sections."""
    return tuple(_prices(facts, resolved, base, judge))


def _prices(facts: Facts, resolved: Resolved, base: Candidate, judge: Judge) -> Iterator[KeyPrice]:
    stage = int(resolved.zero("stage"))
    for path, key in keys().items():
        if key.against is None or stage not in key.stages:
            continue
        value, against = resolved[path], _against(key, facts.chosen)
        if value == against or (against == REMOVE and value is None):
            continue
        other = judge(_changes(key, facts.chosen))
        price = None if other is None else cost(base, other)
        if price is not None and any(price.to_dict().values()):
            yield KeyPrice(path=path, value=value, origin=resolved.values[path].origin, against=against, cost=price)


def _against(key: Key, chosen: Mapping[str, Any]) -> Any:
    return chosen[key.path] if key.against == CHOSEN else key.against


def _changes(key: Key, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The key as it is compared, with those that go with it; without a device its whole section goes."""
    against, parent = _against(key, chosen), key.path.rpartition(".")[0]
    if against == "none":
        return {parent: REMOVE}
    beside = {f"{parent}.{name}": chosen.get(f"{parent}.{name}", against) for name in key.together}
    return {key.path: against, **beside}
