"""What can be combined, in which versions: the names of strategies and the table of compatibility, joined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType

from ..planner.compatibility import STAGES, Answer, Line, Versions, answer, matrix, table
from ..planner.errors import InputError, did_you_mean
from ..planner.workload import Method
from ..strategies.space import LONGEST_SHOWN, NAMES


@cache
def support_names() -> Mapping[str, tuple[str, object]]:
    """What a combination may name: methods, what --require knows, and features that no strategy states.

    >>> support_names()["qlora"], support_names()["moe"]
    (('method', 'qlora'), ('moe', True))
    """
    methods = {method.value: ("method", method.value) for method in Method}
    features = {feature.name: (feature.fact, feature.value) for feature in table().features}
    return MappingProxyType(methods | dict(NAMES) | features)


def support(names: Iterable[str], *, versions: Versions | None = None) -> tuple[Answer, ...]:
    """What is known of one combination: one answer, or one for each ZeRO stage where none is named.

    Args:
        names: of `support_names`.
        versions: by package; left out, the pinned ones.

    Raises:
        InputError: an unknown name, or two names that exclude each other.

    >>> [answer.status.value for answer in support(["zero-1", "offload-parameters-cpu"])]
    ['refused']
    >>> len(support(["qlora"]))
    4
    """
    facts: dict[str, object] = {}
    for name in names:
        fact, value = support_names()[_known(name)]
        if facts.setdefault(fact, value) != value:
            raise InputError(f"{name}: contradicts another name, both set {fact.replace('_', ' ')}; give one of them")
    stages = (facts["zero_stage"],) if "zero_stage" in facts else STAGES
    return tuple(answer({**facts, "zero_stage": stage}, versions=versions) for stage in stages)


def _known(name: str) -> str:
    cleaned = name.strip().lower().replace("_", "-")
    if cleaned not in support_names():
        known = ", ".join(support_names())
        hint = did_you_mean(cleaned[:LONGEST_SHOWN], support_names())
        raise InputError(f"support: no strategy or feature {name[:LONGEST_SHOWN]!r}; known are {known}{hint}")
    return cleaned


def support_matrix(*, versions: Versions | None = None) -> tuple[Line, ...]:
    """What is known of every feature at every ZeRO stage.

    Args:
        versions: by package; left out, the pinned ones.

    >>> next(line for line in support_matrix() if line.name == "lora").answers[3].status.value
    'runs'
    """
    return matrix(support_names(), versions=versions)
