"""configs/compatibility.toml: every refusal can be met, says why, and is obeyed."""

from __future__ import annotations

from itertools import product

import pytest
from trainplan.planner.compatibility import Refusal, refusals, refused
from trainplan.planner.family import Family
from trainplan.planner.workload import Method, Precision
from trainplan.strategies.optimizer import OPTIMIZERS
from trainplan.strategies.space import NAMES, Choices, families

from ..tiny import llama

VALUES: dict[str, set[object]] = {
    "partial_share": {True, False},
    "pipeline": {True, False},
    "method": {m.value for m in Method},
}
for fact, value in NAMES.values():
    VALUES.setdefault(fact, set()).add(value)


def example(row: Refusal) -> dict[str, object]:
    """The first illegal combination of a row."""
    return {key: values[0] for key, values in row.when}


@pytest.mark.parametrize("row", refusals(), ids=lambda row: "-".join(key for key, _ in row.when))
def test_a_row_explains_itself(row: Refusal) -> None:
    """Reason, source and a way out, on one line."""
    assert row.reason
    assert row.source
    assert row.instead
    assert "\n" not in row.message()
    for part in (row.reason, row.source, row.instead):
        assert part in row.message()


@pytest.mark.parametrize("row", refusals(), ids=lambda row: "-".join(key for key, _ in row.when))
def test_a_row_is_met_by_its_own_facts_alone(row: Refusal) -> None:
    """Each combination of its values is refused by it; without one of the facts it is not."""
    for values in product(*(values for _, values in row.when)):
        facts = dict(zip((key for key, _ in row.when), values, strict=True))
        assert row.hits(facts)
    for key, _ in row.when:
        assert not row.hits({k: v for k, v in example(row).items() if k != key})
    for key in row.absent:
        assert not row.hits({**example(row), key: "anything"})


@pytest.mark.parametrize("row", refusals(), ids=lambda row: "-".join(key for key, _ in row.when))
def test_a_row_asks_what_strategies_state(row: Refusal) -> None:
    """A misspelt fact or value would never be met."""
    for key, values in row.when:
        assert set(values) <= VALUES[key]
    assert set(row.absent) <= set(VALUES)


def facts_of(family: Family) -> dict[str, object]:
    """Facts of one of the family's stacks."""
    return family.at(1, max(1, family.groups)).facts


def every_family() -> list[Family]:
    """All families of all methods, optimizers and precisions."""
    found: list[Family] = []
    for optimizer, precision in product(OPTIMIZERS, Precision):
        methods = [m for m in Method if not (m is Method.QLORA and precision is not Precision.BF16)]
        found += families(Choices(methods=tuple(methods), optimizer=optimizer, precision=precision), llama())
    return found


def test_no_family_is_refused() -> None:
    """What the table refuses is never searched, at any number of sub-groups."""
    for family in every_family():
        for groups in range(1, max(1, family.groups) + 1):
            assert refused(family.at(1, groups).facts) is None


def test_every_stage_and_offload_is_searched() -> None:
    """The table leaves something of everything: no strategy is unreachable."""
    seen = {(key, value) for family in every_family() for key, value in facts_of(family).items()}
    missing = {pair for pair in NAMES.values() if pair not in seen}
    required_only = {("checkpointing", "host"), ("loss", "chunked"), ("attention", "eager"), ("zero_init", False)}
    required_only |= {("batches", "padded"), ("kernels", "liger"), ("compile", True), ("swap", "pipelined")}
    assert missing == required_only | {("gradient_accumulation", kind.value) for kind in Precision}
