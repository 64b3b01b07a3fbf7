"""configs/compatibility.toml: every refusal can be met, says why, and is obeyed."""

from __future__ import annotations

from itertools import product

import pytest
from packaging.specifiers import SpecifierSet
from trainplan.api.supporting import support_names
from trainplan.planner.compatibility import Refusal, Trial, pinned, refusals, refused, stated_facts, table
from trainplan.planner.compatibility.versions import hold
from trainplan.planner.family import Family
from trainplan.planner.workload import Method, Precision
from trainplan.strategies.optimizer import OPTIMIZERS
from trainplan.strategies.space import NAMES, Choices, families

from ..tiny import llama

VALUES: dict[str, set[object]] = {}
for fact, value in (*support_names().values(), ("pipeline", False), ("partial_share", False)):
    VALUES.setdefault(fact, set()).add(value)
PLANNED = {"partial_share", "pipeline", "method"} | {fact for fact, _ in NAMES.values()}  # what strategies state


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
def test_a_row_asks_what_somebody_states(row: Refusal) -> None:
    """A misspelt fact or value would never be met."""
    for key, values in row.when:
        assert set(values) <= VALUES[key]
    assert set(row.absent) <= set(VALUES)


@pytest.mark.parametrize("row", [row for row in refusals() if row.versions], ids=lambda row: row.what())
def test_a_row_of_some_versions_changes_no_plan(row: Refusal) -> None:
    """A search asks without versions: such a row leaves out the pinned ones, or needs what no strategy states."""
    assert not hold(row.versions, pinned()) or not {key for key, _ in row.when} <= PLANNED


@pytest.mark.parametrize("row", refusals(), ids=lambda row: row.what())
def test_a_row_says_how_it_is_shown(row: Refusal) -> None:
    """By the parser or an engine with the words of the error, by a test, or by nothing here."""
    assert row.shown_by in ("", "parser", "engine") or row.shown_by.startswith("tests/")
    assert bool(row.error) == (row.shown_by in ("parser", "engine"))


def test_versions_are_specifiers_of_known_packages() -> None:
    """Every limit parses; refusals and trials speak of packages whose version is pinned."""
    limits = [*(row.versions for row in refusals()), *(trial.versions for trial in table().trials)]
    for package, specifier in ((package, text) for limit in limits for package, text in limit.items()):
        assert package in pinned()
        SpecifierSet(specifier)
    for change in table().changes:
        SpecifierSet(change.versions)
        assert change.source


@pytest.mark.parametrize("trial", table().trials, ids=lambda trial: f"{trial.status} {trial.when}")
def test_a_trial_has_a_source(trial: Trial) -> None:
    """What runs has a proof and runs in the pinned versions; what is documented says in which."""
    assert trial.source
    assert trial.date.startswith("20")
    assert trial.status in ("runs", "documented")
    assert bool(trial.proof) == (trial.status == "runs") == (not trial.versions)
    assert len(trial.proof) in (0, 1, len(trial.combinations))


@pytest.mark.parametrize("trial", table().trials, ids=lambda trial: f"{trial.status} {trial.when}")
def test_what_runs_is_not_refused(trial: Trial) -> None:
    """The table does not contradict itself, and a trial's facts are known and name their stage."""
    for facts in trial.combinations:
        assert "zero_stage" in facts
        assert all(value in VALUES[key] for key, value in facts.items())
        assert refused({**table().usual, **facts}, versions=pinned()) is None


def test_a_combination_is_tried_once() -> None:
    """Two rows with one status about one combination would be two truths."""
    seen = [(t.status, frozenset(stated_facts(facts).items())) for t in table().trials for facts in t.combinations]
    assert len(set(seen)) == len(seen)


def test_features_are_no_strategies() -> None:
    """A feature's name is not another's, and no fact is a plan's but for the two that `estimate` sets by options."""
    names = [feature.name for feature in table().features]
    assert len(set(names)) == len(names)
    assert not set(names) & {*NAMES, *(method.value for method in Method)}
    assert {feature.fact for feature in table().features} & PLANNED == {"partial_share", "pipeline"}


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
