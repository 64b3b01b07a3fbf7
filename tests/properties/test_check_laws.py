"""What trainplan emits it finds nothing wrong with: the same lines, the same seconds, no error and no harm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainplan.api import estimate
from trainplan.api.asking import request
from trainplan.api.checking import bench_of, check, findings_of
from trainplan.planner.candidate import Candidate
from trainplan.planner.dsconfig.findings import Severity
from trainplan.planner.dsconfig.reading import from_mapping
from trainplan.planner.errors import InputError
from trainplan.strategies.space import SHAPES

from ..tiny import llama

MODEL = llama(hidden=512, layers=6, vocab=8192, intermediate=1376)
MACHINES: dict[str, Any] = {"price": 2.0, "host_memory_gib": 4096, "seq_len": 512}
IN_THE_FILE = ("pipelined-swap", "grad-accum-fp32", "grad-accum-bf16")  # the others the training script must know
REQUIRED = (
    (), ("fp16",), ("fp32",), ("lion",), ("sgd",), ("adafactor",), ("adamw-8bit",), ("grad-accum-fp32",),
    ("grad-accum-bf16",), ("pipelined-swap",), ("no-zero-init",),
)  # fmt: skip
SHAPED = [*SHAPES, (3, "share", None), (3, "share", "cpu")]


def lines(c: Candidate) -> list[tuple[Any, ...]]:
    """Every line of the ledger, whatever the order they were written in."""
    return sorted(
        (e.item.name, e.device.name, e.bytes, e.upper_bytes, tuple(p.value for p in e.phases)) for e in c.ledger.entries
    )


def planned(shape: tuple[int, str | None, str | None], ratio: float, **options: Any) -> Any:
    """An estimate of one shape; None where it is illegal."""
    stage, optimizer_on, parameters_on = shape
    shared = optimizer_on == "share"
    try:
        return estimate(
            MODEL,
            zero=stage,
            offload_optimizer="cpu" if shared else optimizer_on,
            offload_ratio=ratio if shared else 1.0,
            offload_parameters=parameters_on,
            **MACHINES,
            **options,
        )
    except InputError:
        return None


@settings(max_examples=120, deadline=None)
@given(
    shape=st.sampled_from(SHAPED),
    ratio=st.sampled_from((0.05, 0.35, 0.6, 0.95)),
    required=st.sampled_from(REQUIRED),
    method=st.sampled_from(("full", "lora", "qlora")),
    gpus=st.sampled_from((1, 2, 8)),
    micro=st.sampled_from((1, 2)),
    steps=st.sampled_from((1, 4)),
    checkpointing=st.sampled_from(("none", "full", "2")),
)
def test_what_is_emitted_is_read_as_it_was_meant(
    shape: tuple[int, str | None, str | None], ratio: float, required: tuple[str, ...], method: str, gpus: int,
    micro: int, steps: int, checkpointing: str,
) -> None:  # fmt: skip
    """Bytes, phases and seconds of the plan; no finding that is an error or harmful; nothing unknown."""
    common: Mapping[str, Any] = {"method": method, "gpus": f"{gpus}xa100-80"}
    found = planned(
        shape, ratio, require=required, micro_batch=micro, global_batch=gpus * micro * steps,
        checkpointing=checkpointing, **common,
    )  # fmt: skip
    if found is None:
        return
    script = tuple(name for name in required if name not in IN_THE_FILE)
    bench = bench_of(MODEL, request(**MACHINES, **common, require=script), None, checkpointing)
    config = from_mapping(found.ds_config)
    judged = bench.judge(config.values)
    assert lines(judged.candidate) == lines(found.candidate)
    assert judged.candidate.time.step_s == pytest.approx(found.candidate.time.step_s, rel=1e-12)
    assert judged.candidate.cost.usd == pytest.approx(found.candidate.cost.usd, rel=1e-12)
    assert judged.refusal is None
    assert judged.meaning.unmodelled == ()
    assert [f for f in findings_of(config, judged, bench) if f.severity < Severity.WASTEFUL] == []


@pytest.mark.parametrize("shape", [(0, None, None), (1, None, None), (2, "cpu", None), (3, None, None)])
def test_a_better_one_is_not_worse(shape: tuple[int, str | None, str | None]) -> None:
    """What is proposed fits, is read back as it was judged, costs no more, and has no error, harm or waste left."""
    found = planned(shape, 1.0, gpus="8xa100-80", global_batch=64)
    config = {**found.ds_config, "activation_checkpointing": {"profile": True}}
    checked = check(config, MODEL, gpus="8xa100-80", **MACHINES)
    assert checked.better is not None
    assert checked.better.saves.usd >= 0
    again = check(dict(checked.better.judged.document), MODEL, gpus="8xa100-80", **MACHINES)
    assert again.exit_code == 0
    assert again.candidate.cost.usd == pytest.approx(checked.better.judged.candidate.cost.usd, rel=1e-12)
    assert again.better is None
