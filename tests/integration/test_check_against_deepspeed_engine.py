"""Configurations that people write, not plans: what `check` says they hold is what real engines of two ranks hold.

Sizes are DeepSpeed's own or odd ones, overlap_comm is on and off, tensors are larger than buckets: all that a
plan would choose otherwise. Lines and moments are those of test_against_deepspeed_engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from trainplan.api.asking import request
from trainplan.api.checking import bench_of
from trainplan.planner.ledger import BACKWARDS, Device, Item, Ledger, Phase

from . import test_against_deepspeed_engine as engines
from .engine import launch

pytestmark = pytest.mark.deepspeed

RANKS = 2
ADAM = {"type": "AdamW", "params": {"lr": 1e-3}}  # DeepSpeedCPUAdam where the optimizer is offloaded
TORCH = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
CPU: dict[str, Any] = {"offload_optimizer": {"device": "cpu"}}
SIZES: dict[str, Any] = {
    "reduce_bucket_size": 2000, "stage3_prefetch_bucket_size": 500, "stage3_param_persistence_threshold": 40,
    "sub_group_size": 3000, "stage3_max_live_parameters": 5000, "stage3_max_reuse_distance": 1000,
}  # fmt: skip


def configured(zero: Mapping[str, Any], *, micro_steps: int = 1, **more: Any) -> dict[str, Any]:
    """A file with one zero_optimization section."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_steps,
        "bf16": {"enabled": True},
        "optimizer": ADAM if "offload_optimizer" in zero else TORCH,
        "zero_optimization": dict(zero),
        **more,
    }


FLAT = {"reduce_bucket_size": 2000}
CONFIGS: Mapping[str, dict[str, Any]] = {
    "1-waiting": configured({"stage": 1, **FLAT}),
    "1-waiting-2": configured({"stage": 1, **FLAT}, micro_steps=2),
    "1-large-tensors": configured({"stage": 1, **FLAT, "overlap_comm": True}),
    "2-waiting": configured({"stage": 2, **FLAT}),
    "2-waiting-2": configured({"stage": 2, **FLAT}, micro_steps=2),
    "1-offload-overlap": configured({"stage": 1, **FLAT, "overlap_comm": True, **CPU}),
    "1-offload-overlap-2": configured({"stage": 1, **FLAT, "overlap_comm": True, **CPU}, micro_steps=2),
    "2-offload-overlap-2": configured({"stage": 2, **FLAT, "overlap_comm": True, **CPU}, micro_steps=2),
    "2-offload-not-pinned": configured(
        {"stage": 2, **FLAT, "offload_optimizer": {"device": "cpu", "pin_memory": False}}
    ),
    "3": configured({"stage": 3, **SIZES}, micro_steps=2),
    "3-all-reduce": configured({"stage": 3, **SIZES, "reduce_scatter": False, "overlap_comm": False}),
    "3-hpz": configured({"stage": 3, **SIZES, "zero_hpz_partition_size": 2}),
    "3-share": configured({"stage": 3, **SIZES, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}),
    "3-offload-fp32-sums": configured(
        {"stage": 3, **SIZES, **CPU}, micro_steps=2, data_types={"grad_accum_dtype": "fp32"}
    ),
}


def case_of(config: Mapping[str, Any]) -> engines.Case:
    """The case whose lines and moments are those of a configuration."""
    offload = config["zero_optimization"].get("offload_optimizer", {})
    kind = "none" if not offload else "share" if offload.get("ratio", 1) < 1 else "optimizer"
    return engines.Case(
        ranks=RANKS,
        stage=config["zero_optimization"]["stage"],
        offload=kind,
        micro_steps=config["gradient_accumulation_steps"],
        sums=config.get("data_types", {}).get("grad_accum_dtype"),
    )


@cache
def reports() -> Sequence[engines.Report]:
    """All engines, one after another in one pair of processes."""
    specs = [
        {
            "ds_config": config,
            "model": {"family": "llama", "config": dict(engines.LLAMA)},
            "lora": None,
            "dtype": "bfloat16",
            "zero_init": config["zero_optimization"]["stage"] == 3,
            "steps": engines.STEPS,
            "save": False,
            "sequence_tokens": engines.SEQUENCE_TOKENS,
        }
        for config in CONFIGS.values()
    ]
    with TemporaryDirectory(prefix="trainplan-engines-") as name:
        folder = Path(name)
        (folder / "specs.json").write_text(json.dumps(specs))
        launch(folder, RANKS, worker="integration.engine_batch")
        found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    return [
        engines.Report(
            held=tuple(rank["held_bytes"] for rank in ranks),
            unexplained=tuple(rank["unexplained"] for rank in ranks),
            peaks=tuple(rank["peak_bytes"] for rank in ranks),
        )
        for ranks in zip(*found, strict=True)
    ]


def ledger_of(config: Mapping[str, Any]) -> Ledger:
    """What `check` makes of a file."""
    wanted = request(
        gpus=f"{RANKS}xa100-80", price=1.0, gpus_per_node=RANKS, host_memory_gib=64, seq_len=engines.SEQUENCE_TOKENS
    )
    model = engines.tiny_model(engines.Case(ranks=RANKS, stage=3))
    return bench_of(model, wanted, None, "none").judge(config).candidate.ledger


@pytest.mark.parametrize("name", CONFIGS)
def test_every_line_is_what_the_engine_holds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Item by item and moment by moment, to the byte; stage 1's gradients as the buckets go are looked at below."""
    config = CONFIGS[name]
    case, ledger, report = case_of(config), ledger_of(config), reports()[list(CONFIGS).index(name)]
    monkeypatch.setattr(engines, "ledger_and_config", lambda _: (ledger, config))
    differences = []
    for moment, entries, ignored in engines.moments(case):
        totals = report.most(moment)
        skipped = {*ignored, *engines.ignored_items(case)}
        if case.stage == 1 and moment.endswith("reduced"):
            skipped.add(Item.GRADIENTS)
        for line in engines.lines_of(case):
            planned, held = line.planned(entries), line.held(totals)
            if planned != held and not set(line.items) & skipped:
                differences.append(f"{moment}: {line.items[0].label}: planned {planned:,}, held {held:,}")
    assert not differences, "\n".join(differences)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("1")])
def test_stage_1_holds_gradients_of_large_tensors(name: str) -> None:
    """As the last bucket is given back, what is held is no more than the line says, and more than the rank's own."""
    config = CONFIGS[name]
    ledger, report = ledger_of(config), reports()[list(CONFIGS).index(name)]
    entries = [e for e in ledger.entries if e.item in (Item.GRADIENTS, Item.ACCUMULATED) and e.device is Device.GPU]
    at_the_end = sum(e.upper_bytes for e in entries if Phase.BACKWARD_END in e.phases)
    held = report.most(f"{engines.STEPS - 1}/{config['gradient_accumulation_steps'] - 1}/backward/reduced")
    own = sum(e.bytes for e in entries if Phase.STEP in e.phases)
    assert own < held["gradients"] <= max(at_the_end, own + at_the_end)
    assert held["gradients"] <= own + 2 * ledger.trainable.total


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("3")])
def test_gathered_parameters_are_bounded(name: str) -> None:
    """Given sizes bound what stage 3 holds whole; hpZ's second copy is a line of its own."""
    config = CONFIGS[name]
    ledger, report = ledger_of(config), reports()[list(CONFIGS).index(name)]
    last = f"{engines.STEPS - 1}/{config['gradient_accumulation_steps'] - 1}/forward"
    gathered = [e for e in ledger.entries if e.item is Item.GATHERED and {Phase.FORWARD, *BACKWARDS} & set(e.phases)]
    assert 0 < report.most(last)["gathered"] <= sum(e.upper_bytes for e in gathered)


def test_hpz_holds_a_second_copy() -> None:
    """At the step, against the same engine without it: 2 B x every tensor cut over two ranks, to the byte."""
    names = list(CONFIGS)
    with_it, without = reports()[names.index("3-hpz")], reports()[names.index("3-all-reduce")]
    moment = f"{engines.STEPS - 1}/0/step"
    more = max(p[moment] for p in with_it.peaks) - max(p[moment] for p in without.peaks)
    (line,) = [e for e in ledger_of(CONFIGS["3-hpz"]).entries if "zero_hpz_partition_size" in e.why]
    assert more == line.bytes
