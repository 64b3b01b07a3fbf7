"""strategies/space.py: names, requirements, and the families a search looks at."""

from __future__ import annotations

import pytest
from trainplan.planner.errors import InputError
from trainplan.planner.workload import Method
from trainplan.strategies.offload_optimizer import GROUPS, OffloadOptimizer
from trainplan.strategies.space import NAMES, Choices, families, known_name, one_family, stack_of
from trainplan.strategies.zero import Zero

from ..tiny import llama


def names(**choices: object) -> set[str]:
    """Storage of all families of full fine-tuning."""
    return {f.name for f in families(Choices(methods=(Method.FULL,), **choices), llama())}  # type: ignore[arg-type]  # reason: keywords of one dataclass


def test_names_are_forgiving() -> None:
    """Case and underscores do not matter; a typo gets a suggestion on one line."""
    assert known_name(" ZeRO_3 ", where="--require") == "zero-3"
    with pytest.raises(InputError, match=r"did you mean.*zero-3") as caught:
        known_name("zero-33", where="--require")
    assert "\n" not in str(caught.value)


def test_forbidden_fp32_sums_are_not_chosen() -> None:
    """Where stage 2 would take its fp32 buffer by itself, sums then stay in the training precision."""
    found = families(Choices(methods=(Method.FULL,), forbid=("grad-accum-fp32",)), llama())
    assert {f.at(1, max(1, f.groups)).facts["gradient_accumulation"] for f in found} == {"bf16"}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("fp32", "fp16", "grad-accum-fp16")])
def test_what_is_required_is_in_every_family(name: str) -> None:
    """Each required name is a fact of every family."""
    key, value = NAMES[name]
    found = families(Choices(methods=(Method.FULL,), require=(name,)), llama())
    assert found
    assert all(f.at(1, max(1, f.groups)).facts[key] == value for f in found)


@pytest.mark.parametrize(
    "name", ["zero-0", "zero-3", "offload-optimizer-cpu", "offload-parameters-nvme", "checkpointing"]
)
def test_what_is_forbidden_is_in_none(name: str) -> None:
    """Nor at any share."""
    key, value = NAMES[name]
    found = families(Choices(forbid=(name,)), llama())
    assert found
    assert all(f.at(1, max(1, f.groups)).facts.get(key) != value for f in found)


@pytest.mark.parametrize(
    ("require", "forbid", "words"),
    [
        (("zero-3",), ("zero-3",), "also forbidden"),
        (("zero-2", "zero-3"), (), "contradicts"),
        (("zero-2", "offload-parameters-cpu"), (), "offload_param is silently ignored"),
        ((), tuple(f"zero-{s}" for s in range(4)), "nothing is left"),
        (("grad-accum-bf16", "fp32"), (), "fp32 gradients summed in 16 bit"),
        (("grad-accum-fp32", "zero-0"), (), "stage 0 sums gradients in the training precision"),
        (("no-zero-init", "zero-2"), (), "there is no zero.Init to leave out"),
    ],
)
def test_contradictions_are_named(require: tuple[str, ...], forbid: tuple[str, ...], words: str) -> None:
    """One line that says what excludes what."""
    with pytest.raises(InputError, match=words) as caught:
        families(Choices(methods=(Method.FULL,), require=require, forbid=forbid), llama())
    assert "\n" not in str(caught.value)


def test_adapters_keep_their_states_on_the_gpu() -> None:
    """Moving a few megabytes is not searched unless it is required."""
    found = families(Choices(methods=(Method.LORA,)), llama())
    facts = [f.at(1, max(1, f.groups)).facts for f in found]
    moved = [f for f in facts if f.get("offload_optimizer")]
    assert all((f["offload_optimizer"], f["offload_parameters"]) == ("cpu", "nvme") for f in moved)  # where it must
    required = families(Choices(methods=(Method.LORA,), require=("offload-optimizer-cpu",)), llama())
    assert all(f.at(1, max(1, f.groups)).facts["offload_optimizer"] == "cpu" for f in required)


def test_a_share_is_chosen_at_stage_3_only() -> None:
    """One family has g from 1 to 19, another moves everything."""
    shared = [f for f in families(Choices(methods=(Method.FULL,)), llama()) if f.groups]
    assert {f.zero_stage for f in shared} == {3}
    assert {f.groups for f in shared} == {GROUPS - 1}


def test_an_illegal_stack_is_refused_with_its_reason() -> None:
    """stack_of and one_family read the same table."""
    with pytest.raises(InputError, match="use zero-2 or zero-3"):
        stack_of(Zero(0), OffloadOptimizer())
    with pytest.raises(InputError, match="use zero-2 or zero-3"):
        one_family({"zero_stage": 0, "offload_optimizer": "cpu"}, Choices(methods=(Method.FULL,)), llama())


def test_family_names_tell_families_apart() -> None:
    """Within a method, storage, checkpointing and share together are unique."""
    found = families(Choices(methods=(Method.FULL,)), llama())
    assert len({(f.name, bool(f.groups)) for f in found}) == len(found)
    assert "zero-3" in names()
