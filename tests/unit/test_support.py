"""Answers about one combination in given versions, and the matrix of them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st
from trainplan.api.supporting import support, support_matrix, support_names
from trainplan.planner.compatibility import Status, answer, given, installed, pinned, refusals, refused, table
from trainplan.planner.compatibility.versions import hold
from trainplan.planner.errors import InputError

FACTS = sorted({fact for fact, _ in support_names().values()})


def with_versions(**versions: str) -> dict[str, str]:
    """The pinned versions but for these."""
    return {**pinned(), **versions}


def values_of(fact: str) -> list[object]:
    """Values that a fact may have, and its absence."""
    return [None, *(value for name, value in support_names().values() if name == fact)]


combinations = st.fixed_dictionaries({fact: st.sampled_from(values_of(fact)) for fact in FACTS}).map(
    lambda facts: {key: value for key, value in facts.items() if value is not None}
)
versions = st.sampled_from([None, dict(pinned()), with_versions(deepspeed="0.19.6"), with_versions(deepspeed="0.18.0")])


@examples(combinations, versions)
def test_the_index_finds_the_first_row(facts: dict[str, object], chosen: dict[str, str] | None) -> None:
    """Looking rows up by one fact finds what going through all of them finds."""
    hits = (row for row in refusals() if row.hits(facts))
    first = next((r for r in hits if not r.versions or (chosen is not None and hold(r.versions, chosen))), None)
    assert refused(facts, versions=chosen) is first


@examples(combinations, versions)
def test_an_answer_is_one_of_five(facts: dict[str, object], chosen: dict[str, str] | None) -> None:
    """Refused where a row is met, and else as certain as the trials; parts are shown only where nothing is known."""
    found = answer({"zero_stage": 3, **facts}, versions=chosen)
    assert found.legal == (found.status not in (Status.REFUSED, Status.BROKEN)) == (not found.refusals)
    assert not found.refusals or not found.trials
    assert bool(found.trials) == (found.status in (Status.RUNS, Status.DOCUMENTED))
    assert not found.parts or found.status is Status.UNTRIED


@pytest.mark.parametrize(
    ("facts", "changed", "status"),
    [
        ({"zero_stage": 3, "method": "qlora"}, {}, Status.RUNS),
        ({"zero_stage": 3, "method": "qlora"}, {"deepspeed": "0.19.7"}, Status.DOCUMENTED),
        ({"zero_stage": 3, "method": "qlora"}, {"bitsandbytes": "0.42"}, Status.BROKEN),
        ({"zero_stage": 2, "method": "qlora"}, {"bitsandbytes": "0.42"}, Status.BROKEN),
        ({"zero_stage": 2, "method": "qlora"}, {"bitsandbytes": "0.42", "transformers": "4.50"}, Status.UNTRIED),
        ({"zero_stage": 2}, {"deepspeed": "0.18.0"}, Status.BROKEN),
        ({"zero_stage": 2}, {"deepspeed": "0.18.3"}, Status.UNTRIED),
        ({"zero_stage": 2, "zenflow": True}, {}, Status.BROKEN),
        ({"zero_stage": 2, "zenflow": True}, {"deepspeed": "0.19.6"}, Status.UNTRIED),
        ({"zero_stage": 2, "offload_parameters": "cpu"}, {"deepspeed": "0.15"}, Status.REFUSED),
        ({"zero_stage": 2, "mics": True}, {"deepspeed": "0.19.6"}, Status.UNTRIED),
    ],
)
def test_versions_decide(facts: dict[str, object], changed: dict[str, str], status: Status) -> None:
    """What runs runs in the pinned versions alone; what is known for some versions holds in them alone."""
    assert answer(facts, versions=with_versions(**changed)).status is status


def test_the_usual_need_not_be_said() -> None:
    """A combination that names the defaults is the one that does not."""
    plain = answer({"zero_stage": 3})
    named = answer({"zero_stage": 3, "method": "full", "optimizer": "adamw", "precision": "bf16"})
    assert named.trials == plain.trials
    assert named.status is plain.status is Status.RUNS


def test_an_untried_whole_shows_its_largest_parts() -> None:
    """QLoRA with checkpointing and liger: two of the three were run together."""
    found = answer({"zero_stage": 3, "method": "qlora", "checkpointing": "gpu", "kernels": "liger"})
    assert found.status is Status.UNTRIED
    assert found.parts == ({"method": "qlora", "checkpointing": "gpu", "zero_stage": 3},)


def test_a_package_that_is_missing_shows_nothing() -> None:
    """Without a version nothing was tried, and no row of versions holds."""
    found = answer({"zero_stage": 3, "method": "qlora"}, versions={"deepspeed": "0.19.8"})
    assert found.status is Status.UNTRIED
    assert [trial.status for trial in found.elsewhere] == ["runs", "documented"]


def test_only_packages_that_matter_decide() -> None:
    """Full fine-tuning runs without peft, LoRA does not; no combination runs code of datasets."""
    torch_alone = {package: pinned()[package] for package in ("torch", "deepspeed", "transformers")}
    assert answer({"zero_stage": 3}, versions=torch_alone).status is Status.RUNS
    assert answer({"zero_stage": 3, "method": "lora"}, versions=torch_alone).status is Status.UNTRIED
    lora = {**torch_alone, "peft": pinned()["peft"]}
    assert answer({"zero_stage": 3, "method": "lora"}, versions=lora).status is Status.RUNS


def test_installed_versions_are_the_metadata() -> None:
    """Each package that is installed here, as pip knows it."""
    for package in pinned():
        try:
            assert installed()[package] == version(package)
        except PackageNotFoundError:
            assert package not in installed()


def test_a_stage_more_is_an_answer_more() -> None:
    """Without a stage all four are answered; names are taken as --require takes them."""
    assert [a.facts["zero_stage"] for a in support(["Torch_Compile"])] == [0, 1, 2, 3]
    (found,) = support(["zero-3", "qlora", "qlora"])
    assert found.facts == {"zero_stage": 3, "method": "qlora"}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["zero-3", "qlra"], "did you mean qlora"),
        (["zero-3", "zero-2"], "zero-2: contradicts"),
        (["lora", "full"], "full: contradicts"),
        (["x" * 10_000], "no strategy or feature"),
    ],
)
def test_wrong_names(names: list[str], words: str) -> None:
    """Unknown names get a hint; two values of one fact are refused; what is repeated of the input is short."""
    with pytest.raises(InputError, match=words) as raised:
        support(names)
    assert len(str(raised.value)) < 2000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("deepsped=1", "did you mean deepspeed"),
        ("deepspeed", "not a version"),
        ("peft=new", "not a version"),
        ("", "no package"),
    ],
)
def test_wrong_versions(text: str, words: str) -> None:
    """A package of the table, and a version of PEP 440."""
    with pytest.raises(InputError, match=words):
        given([text])


def test_the_matrix_has_every_name_and_every_trial() -> None:
    """Each feature is a line, each combination that was tried is one too, and each line has four answers."""
    lines = {line.name: line for line in support_matrix()}
    assert all(len(line.answers) == 4 for line in lines.values())
    usual = next(iter(lines)).split(", ")
    stages = {name for name in support_names() if name.startswith("zero-")}
    assert {*usual, *lines} >= set(support_names()) - stages
    tried = [facts for trial in table().trials for facts in trial.combinations]
    answers = [a for line in lines.values() for a in line.answers]
    for facts in tried:
        assert any(a.trials and any(t.shows(facts) for t in a.trials) for a in answers), facts
