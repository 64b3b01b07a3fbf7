"""planner/request.py: defaults, ranges, contradictions, and reading one back."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from trainplan.planner.errors import InputError
from trainplan.planner.request import DEFAULT_BATCH_TOKENS, Request, request_from
from trainplan.planner.workload import Method

from ..tiny import llama


def problems(**values: Any) -> str:
    """The message of a bad request."""
    with pytest.raises(InputError) as caught:
        Request(**values).check(llama())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("seq_len", "batch"), [(4096, 256), (2048, 512), (3000, 256), (2**20, 1), (2**24, 1)])
def test_the_default_batch_is_about_a_million_tokens(seq_len: int, batch: int) -> None:
    """The power of two nearest to 2^20 tokens, at least one sequence."""
    assert Request(seq_len=seq_len).sequences == batch
    assert batch == 1 or abs(math.log2(batch * seq_len / DEFAULT_BATCH_TOKENS)) <= 0.5


def test_methods_allowed() -> None:
    """Full fine-tuning alone unless a budget or the user says otherwise; always the most faithful first."""
    assert Request().allowed == (Method.FULL,)
    assert Request(budget="cheapest").allowed == tuple(Method)
    assert Request(methods=(Method.QLORA, Method.LORA)).allowed == (Method.LORA, Method.QLORA)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tokens": 0}, "--tokens: out of range"),
        ({"max_gpus": 10**9}, "--max-gpus: out of range"),
        ({"lora_rank": -1}, "--lora-rank"),
        ({"budget": -5.0}, "--budget: out of range"),
        ({"price_usd_per_gpu_hour": 0.0, "gpus": ("h100",)}, "--price: out of range"),
        ({"seq_len": 8192}, "positions for 4,096"),
        ({"gpus": ("h100",), "gpu_count": 3, "global_batch": 256}, "--global-batch"),
        ({"gpus": ("h100",), "gpu_count": 64, "max_gpus": 8}, "--max-gpus"),
        ({"price_usd_per_gpu_hour": 2.0}, "name one type"),
        ({"price_usd_per_gpu_hour": 2.0, "gpus": ("h100", "h200")}, "2 GPU types"),
        ({"price_usd_per_gpu_hour": 2.0, "gpus": ("h100",), "cloud": "aws"}, "--cloud"),
        ({"eval_every": 100}, "--eval-every: needs --eval-tokens"),
        ({"eval_tokens": 100}, "--eval-tokens: needs --eval-every"),
        ({"eval_every": 0, "eval_tokens": 1}, "--eval-every: out of range"),
        ({"checkpoint_every_s": 0.5}, "--checkpoint-every: out of range"),
        ({"storage_gbps": 0.0}, "--storage-gbps: out of range"),
        ({"mtbf_gpu_hours": -1.0}, "--mtbf-gpu-hours: out of range"),
        ({"pue": 0.9}, "--pue: out of range, got 0.9; allowed is 1 to 3"),
        ({"pue": math.nan}, "--pue: out of range"),
        ({"grid_kgco2_per_kwh": -0.1}, "--grid-kgco2-per-kwh: out of range"),
        ({"tokens": 10, "given": frozenset({"tokens"})}, "less than one global batch"),
    ],
)
def test_what_is_wrong_is_said(values: dict[str, Any], words: str) -> None:
    """One line that names the flag."""
    assert words in problems(**values)


def test_all_problems_at_once() -> None:
    """Nobody wants to correct one flag at a time."""
    text = problems(tokens=0, max_gpus=0, budget=-1.0)
    assert all(flag in text for flag in ("--tokens", "--max-gpus", "--budget"))


FULL = Request(
    gpus=("h100",),
    gpu_count=8,
    nodes=1,
    cloud="aws",
    tokens=10**6,
    budget=1000.0,
    methods=(Method.LORA,),
    require=("zero-3",),
    lora_targets=("q_proj",),
    given=frozenset({"tokens", "gpus"}),
)


@pytest.mark.parametrize("request_", [Request(), FULL, Request(budget="cheapest")])
def test_round_trip(request_: Request) -> None:
    """Through JSON text and back, nothing is lost."""
    assert request_from(json.loads(json.dumps(request_.to_dict())), where="plan") == request_


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": "many"},
        {"tokens": True},
        {"tokens": 1.5},
        {"tokens": None},
        {"tier": "free"},
        {"methods": ["magic"]},
        {"methods": 3},
        {"given": None},
        {"deadline_s": "soon"},
        {"deadline_s": math.inf},
        {"host_memory_gib": []},
        {"storage_gbps": "fast"},
        {"eval_every": 1.5},
        {"checkpoint_every_s": True},
        {"grid_kgco2_per_kwh": -1},
        {"pue": None, "mtbf_gpu_hours": 0},
        {"budget": []},
        {"cloud": 7},
        {"nvme_path": None},
        {"extra": 1},
        {"gpu_count": -8},
        {"require": None},
    ],
)
def test_an_untrusted_request_is_refused_in_one_line(change: dict[str, Any]) -> None:
    """Wrong types, unknown keys, numbers that are none."""
    with pytest.raises(InputError, match="plan: its request cannot be read") as caught:
        request_from({**FULL.to_dict(), **change}, where="plan")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("key", [k for k in FULL.to_dict() if k in ("tier", "methods", "given", "require", "gpus")])
def test_a_missing_key_is_refused(key: str) -> None:
    """The keys that are converted must be there."""
    document = FULL.to_dict()
    del document[key]
    with pytest.raises(InputError, match=key):
        request_from(document, where="plan")
