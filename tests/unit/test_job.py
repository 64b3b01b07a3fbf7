"""planner/emit/job.py: a plan becomes a job only where its parts agree; every contradiction is named in one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainplan.planner.emit.job import job_of
from trainplan.planner.errors import InputError
from trainplan.planner.planfile import read_plan, unknown_keys

from ..launch_cases import plans

GOLDEN = Path(__file__).parents[1] / "golden"
Plan = dict[str, Any]


def plan(name: str = "70b-budget") -> Plan:
    """A golden plan, to be changed."""
    return copy.deepcopy(read_plan(str(GOLDEN / name)))


def change(*path: str, to: Any) -> Callable[[Plan], None]:
    """Set one value of a plan."""

    def changed(document: Plan) -> None:
        *parents, last = path
        for key in parents:
            document = document[key]
        document[last] = to

    return changed


# 70b-budget: micro-batch 1 x 32 micro-steps x 8 GPUs = 256 sequences; stage 3, optimizer on the host, 76 of 80 layers.
WRONG: dict[str, tuple[Callable[[Plan], None], str]] = {
    "batch": (
        change("training", "global_batch", to=255),
        "training.global_batch 255 is not micro_batch 1 x gradient_accumulation_steps 32 x gpus 8 = 256",
    ),
    "nodes": (change("decision", "nodes", to=2), "decision.gpus 8 is not nodes 2 x gpus_per_node 8"),
    "ranks": (change("decision", "data_parallel_world_size", to=4), "data_parallel_world_size 4 is not gpus 8"),
    "layers": (change("training", "checkpointing", "layers", to=80), "layers 80 of 80 is not"),
    "stage": (change("ds_config", "zero_optimization", "stage", to=2), "ds_config.zero_optimization.stage is 2, and"),
    "micro": (
        change("ds_config", "train_micro_batch_size_per_gpu", to="auto"),
        "ds_config.train_micro_batch_size_per_gpu is 'auto', and the plan says 1",
    ),
    "bf16": (change("ds_config", "bf16", "enabled", to=False), "ds_config.bf16.enabled is False"),
    "device": (
        change("ds_config", "zero_optimization", "offload_optimizer", "device", to="nvme"),
        "offload_optimizer.device is 'nvme', and the plan says 'cpu'",
    ),
    "unknown key": (change("ds_config", "zero_optimisation", to={}), "ds_config.zero_optimisation is no key that"),
    "no optimizer": (lambda d: d["ds_config"].pop("optimizer"), "ds_config.optimizer is False"),
    "rate": (change("ds_config", "optimizer", "params", "lr", to="fast"), "ds_config.optimizer.params.lr is 'fast'"),
    "clipping": (change("ds_config", "gradient_clipping", to="x"), "ds_config.gradient_clipping is 'x', not a number"),
    "strategy": (change("training", "liger", to=True), "decision.strategies and training differ in liger"),
    "method": (change("decision", "method", to="lora"), "decision.method is lora without adapters"),
    "hub id": (change("training", "model", to="x; rm -rf /"), "training.model is 'x; rm -rf /', no hub id"),
    "version": (change("training", "versions", "torch", to="2 --index-url x"), "training.versions names 'torch'"),
    "steps": (change("training", "steps", to=0), "training.steps is 0, not 1 or more"),
    "block": (change("ds_config", "zero_optimization", to=[]), "ds_config.zero_optimization is [], not an object"),
    "attention": (change("training", "attn_implementation", to="fast"), "attn_implementation is 'fast', not one of"),
}


@pytest.mark.parametrize("case", WRONG)
def test_contradictions_are_named(case: str) -> None:
    """One line, where and what; a relation is not asked of a value that is wrong by itself."""
    document = plan()
    edit, message = WRONG[case]
    edit(document)
    with pytest.raises(InputError) as caught:
        job_of(document, where="x/plan.json")
    text = str(caught.value)
    assert message in text
    assert text.startswith("x/plan.json: ")
    assert "\n" not in text


def test_a_plan_without_training_is_refused() -> None:
    """Plans of an earlier version can be explained, not started."""
    document = plan()
    del document["training"]
    with pytest.raises(InputError, match="no section training"):
        job_of(document)


def test_the_shape_is_checked_when_it_is_read(tmp_path: Path) -> None:
    """A training that is none is refused before anything of it is used."""
    text = (GOLDEN / "8b-qlora" / "plan.json").read_text().replace('"packed": true', '"packed": "yes"')
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError, match=r"training.packed is 'yes', not true or false"):
        read_plan(str(tmp_path))


def test_unknown_keys_are_seen_and_ignored() -> None:
    """None in a plan that trainplan wrote; what users add is named, without what would move their cursor."""
    assert unknown_keys(plan()) == ()
    assert unknown_keys({**plan(), "note\x1b[2J": 1}) == ("note?[2J",)
    assert job_of({**plan(), "note": 1}) == job_of(plan())


def test_values_are_the_plans() -> None:
    """Every family of stacks is a job, with the decision's numbers."""
    for document in plans().values():
        job, d = job_of(document), document["decision"]
        assert job.global_batch == job.micro_batch * job.accumulation * job.gpus
        assert job.gpus == d["gpus"]
        assert job.zero_stage == d["zero_stage"]
        assert job.checkpointing.layers == d["checkpointed_layers"]
        assert (job.adapters is None) is (d["method"] == "full")
        assert (job.quantization is None) is (d["method"] != "qlora")
        assert (job.nvme_path is None) is ("nvme" not in " ".join(d["strategies"]))
