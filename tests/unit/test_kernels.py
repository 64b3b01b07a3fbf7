"""strategies/kernels.py: fused kernels change time on request, never memory, and say what the script must do."""

from __future__ import annotations

import pytest
import trainplan
from trainplan.api import request
from trainplan.planner.errors import InputError
from trainplan.planner.ledger import Device
from trainplan.strategies.kernels import LigerKernels, TorchCompile
from trainplan.strategies.zero import Zero

from ..tiny import folded

OPTIONS = {"gpus": "8xh100", "zero": 3, "checkpointing": "full", "global_batch": 256}


@pytest.mark.parametrize("chosen", [{"kernels": "liger"}, {"compile": True}, {"kernels": "liger", "compile": True}])
def test_they_save_time_and_keep_the_bound_on_memory(chosen: dict[str, object]) -> None:
    """A shorter step, the same bytes, the names in the decision and a word to the reader."""
    plain, fused = (trainplan.estimate("llama-3.1-8b", **OPTIONS, **more) for more in ({}, chosen))  # type: ignore[arg-type]  # reason: options of different types
    assert fused.candidate.time.step_s < plain.candidate.time.step_s
    assert fused.candidate.gpu == plain.candidate.gpu
    added = set(fused.candidate.stack.names) - set(plain.candidate.stack.names)
    assert added == {"liger" if "kernels" in key else "torch-compile" for key in chosen}
    assert all(any(text.startswith(name) for text in fused.to_dict()["warnings"]) for name in added)


def test_the_fold_leaves_memory_alone() -> None:
    """Nothing but the computation's choice of kernels changes."""
    plain = folded(Zero(3))
    for strategy in (LigerKernels(), TorchCompile()):
        assert folded(Zero(3), strategy).peak(Device.GPU) == plain.peak(Device.GPU)


def test_liger_is_refused_where_it_patches_nothing() -> None:
    """GPT-2 has no Liger patch."""
    with pytest.raises(InputError, match=r"Liger Kernel patches .*; GPT-2 is gpt2"):
        trainplan.estimate("gpt2", gpus="8xh100", seq_len=1024, kernels="liger")


def test_options_are_words_for_strategies() -> None:
    """They join what is required; "none" adds nothing."""
    assert request(kernels="liger", compile=True, require="zero-3").require == ("zero-3", "liger", "torch-compile")
    assert request(kernels="none", compile=False).require == ()
    with pytest.raises(InputError, match="--kernels: got 'magic'"):
        request(kernels="magic")
