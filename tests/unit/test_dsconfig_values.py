"""planner/dsconfig: values in force, the batch triangle, what each problem of a file says."""

from __future__ import annotations

from typing import Any

import pytest
from trainplan.planner.dsconfig.findings import Severity
from trainplan.planner.dsconfig.meaning import COUNTED, LOWERED, TORCH, meaning
from trainplan.planner.dsconfig.problems import problems
from trainplan.planner.dsconfig.reading import from_mapping
from trainplan.planner.dsconfig.resolving import Asked, Resolved, resolve
from trainplan.planner.errors import InputError
from trainplan.planner.workload import Precision
from trainplan.strategies.given import optimizer_of

ASKED: dict[str, Any] = {"gpus": 8, "hidden": 4096, "sequences": 256}


def values(config: dict[str, Any], **asked: Any) -> Resolved:
    """Values in force on eight GPUs."""
    return resolve(config, Asked(**{**ASKED, **asked}))


@pytest.mark.parametrize(
    ("sizes", "asked", "expected"),
    [
        # total, micro-batch, accumulation: DeepSpeed fills what is absent
        ((256, 4, 8), {}, (4, 8)),
        ((256, 4, None), {}, (4, 8)),
        ((256, None, 8), {}, (4, 8)),
        ((None, 4, 8), {}, (4, 8)),
        ((256, None, None), {}, (32, 1)),
        ((None, 4, None), {}, (4, 1)),
        # transformers fills "auto"
        (("auto", "auto", "auto"), {}, (1, 32)),
        (("auto", "auto", "auto"), {"micro_batch": 4}, (4, 8)),
        (("auto", "auto", "auto"), {"sequences": 512}, (1, 64)),
        (("auto", 2, "auto"), {}, (2, 16)),
        (("auto", "auto", 4), {"micro_batch": 2}, (2, 4)),
        (("auto", "auto", 4), {}, (8, 4)),
        (("auto", 2, None), {}, (2, 1)),
        ((256, "auto", "auto"), {"micro_batch": 8}, (8, 4)),
    ],
)
def test_the_batch_triangle_is_filled(
    sizes: tuple[Any, Any, Any], asked: dict[str, Any], expected: tuple[int, int]
) -> None:
    """global batch = micro-batch x accumulation x 8."""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    config = {name: size for name, size in zip(names, sizes, strict=True) if size is not None}
    batch = values(config, **asked).batch
    assert (batch.micro, batch.steps) == expected
    assert batch.total == expected[0] * expected[1] * 8
    assert batch.refused == ""


def test_a_triangle_that_does_not_close_is_said_with_its_numbers() -> None:
    """DeepSpeed's assertion."""
    config = {"train_batch_size": 250, "train_micro_batch_size_per_gpu": 4}
    assert values(config).batch.refused == "250 is not 4 per GPU x 7 micro-steps x 8 GPUs = 224"


@pytest.mark.parametrize(
    ("config", "asked", "words"),
    [
        ({"train_micro_batch_size_per_gpu": 4}, {"micro_batch": 2}, "--micro-batch 2: the file says"),
        ({"train_batch_size": 64}, {"global_batch": 128}, "--global-batch 128: the file says"),
        ({"train_micro_batch_size_per_gpu": 4}, {"global_batch": 128}, "--global-batch 128: the file says"),
        ({"train_batch_size": "auto"}, {"sequences": 100}, "global batch 100 is not micro-batch 1 x 8 GPUs x n"),
        ({"train_micro_batch_size_per_gpu": 10**9}, {}, "out of range"),
    ],
)
def test_contradictions_with_the_command_are_errors(config: dict[str, Any], asked: dict[str, Any], words: str) -> None:
    """One line that names both."""
    if "train_batch_size" in config and config["train_batch_size"] == "auto":
        config = {**config, "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    with pytest.raises(InputError) as raised:
        values(config, **asked)
    assert words in str(raised.value)


def test_overlap_comm_follows_the_stage() -> None:
    """True at stage 3 alone, unless it is written."""
    by_stage = [values({"zero_optimization": {"stage": s}}).zero("overlap_comm") for s in range(4)]
    assert by_stage == [False, False, False, True]
    assert values({"zero_optimization": {"stage": 2, "overlap_comm": True}}).zero("overlap_comm") is True


def test_old_names_are_new_ones() -> None:
    """cpu_offload, bfloat16, zero_optimization true, and the gathered weights."""
    old = values(
        {
            "bfloat16": {"enabled": True},
            "zero_optimization": {
                "stage": 3, "cpu_offload": True, "cpu_offload_param": True,
                "stage3_gather_fp16_weights_on_model_save": True,
            },
        }
    )  # fmt: skip
    assert old["bf16.enabled"] is True
    assert old.zero("offload_optimizer.device") == old.zero("offload_param.device") == "cpu"
    assert old.zero("stage3_gather_16bit_weights_on_model_save") is True
    assert values({"zero_optimization": True}).zero("stage") == 1


@pytest.mark.parametrize(
    ("config", "asked", "precision", "said"),
    [
        ({"bf16": {"enabled": True}}, None, Precision.BF16, True),
        ({"fp16": {"enabled": True}}, "bf16", Precision.FP16, True),
        ({"bf16": {"enabled": False}}, None, Precision.FP32, True),
        ({}, None, Precision.FP32, False),
        ({}, "bf16", Precision.BF16, True),
        ({"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}, "fp16", Precision.FP16, True),
        ({"bf16": {"enabled": "auto"}}, None, Precision.FP32, False),
    ],
)
def test_precision_is_the_files_or_the_scripts(
    config: dict[str, Any], asked: str | None, precision: Precision, said: bool
) -> None:
    """ "auto" and absent: as --require says, else fp32, as TrainingArguments' defaults are."""
    found = values(config, precision=asked)
    assert meaning(found).precision is precision
    assert found.precision_said is said


def test_below_their_stage_keys_mean_nothing() -> None:
    """Offload of parameters at stage 2, NVMe at stage 1, the optimizer's offload at stage 0."""
    offloads = {"offload_optimizer": {"device": "nvme"}, "offload_param": {"device": "cpu"}}
    found = [meaning(values({"zero_optimization": {"stage": stage, **offloads}})) for stage in range(4)]
    assert [m.optimizer_on for m in found] == [None, "cpu", "cpu", "nvme"]
    assert [m.parameters_on for m in found] == [None, None, None, "cpu"]


@pytest.mark.parametrize(
    ("config", "paths"),
    [
        ({"communication_data_type": "fp32", "bf16": {"enabled": True}}, {"communication_data_type"}),
        ({"communication_data_type": "bf16", "bf16": {"enabled": True}}, set()),
        ({"tensor_parallel": {"autotp_size": 4}}, {"tensor_parallel.autotp_size"}),
        ({"tensor_parallel": {"autotp_size": 1}}, set()),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}},
         {"zero_optimization.zero_quantized_weights"}),
        ({"zero_optimization": {"stage": 2, "zero_quantized_weights": True}}, set()),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, {"torch_autocast.enabled"}),
        ({"compile": {"deepcompile": True}}, {"compile.deepcompile"}),
        ({"hybrid_engine": {"enabled": False, "max_out_tokens": 64}}, set()),
        ({"pipeline": {"stages": 4}}, {"pipeline"}),
        ({"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.2}}},
         {"zero_optimization.zenflow", "zero_optimization.zenflow.topk_ratio"}),
        ({"tensorboard": {"enabled": True}, "steps_per_print": 5}, set()),
        ({"optimizer": {"type": "Muon"}}, {"optimizer.type"}),
        ({"optimizer": {"type": "MuAdamW"}}, {"optimizer.type"}),
        ({"optimizer": {"type": "RMSprop"}}, {"optimizer.type"}),
        ({"optimizer": {"type": "Lion"}}, set()),
        ({"optimizer": {"type": "AdamWW"}}, set()),  # there is none: it will not run, which a problem says
    ],
)  # fmt: skip
def test_what_is_not_modelled_is_named(config: dict[str, Any], paths: set[str]) -> None:
    """Keys that act and that no line counts; what costs nothing is not among them."""
    unmodelled = meaning(values(config)).unmodelled
    assert {each.path for each in unmodelled} == paths
    assert all(each.may_add for each in unmodelled)


@pytest.mark.parametrize("name", sorted({*LOWERED, *TORCH}))
def test_an_optimizer_of_unknown_size_is_not_modelled(name: str) -> None:
    """Whatever the ledger counts as AdamW because its own sizes are not known is named, in any case; nothing else."""
    for written in (name, name.upper()) if name in LOWERED else (name,):
        found = meaning(values({"optimizer": {"type": written}}))
        known = optimizer_of(found, "adamw") is not None
        assert known is (name in COUNTED)
        assert [each.value for each in found.unmodelled] == ([] if known else [written])
        assert all(written in each.effect and each.may_add for each in found.unmodelled)


def test_all_problems_come_at_once() -> None:
    """Each with its key, what was given, what is allowed, and what to do."""
    config = {
        "amp": {"enabled": True},
        "train_batch_sise": 4,
        "steps_per_print": "often",
        "gradient_clipping": -1,
        "zero_optimization": {
            "stage": 4, "reduce_bucket_size": 0, "overlap_com": True, "mics_shard_size": 2,
            "offload_optimizer": {"device": "gpu", "ratio": 1.5, "pin_memory": "perhaps"}, "offload_param": [1],
        },
        "bf16": {"enabled": "on"},
        "aio": {"thread_count": 1},
    }  # fmt: skip
    found = {p.path: p for p in problems(from_mapping(config))}
    assert set(found) == {
        "amp", "train_batch_sise", "steps_per_print", "gradient_clipping", "zero_optimization.stage",
        "zero_optimization.reduce_bucket_size", "zero_optimization.overlap_com", "zero_optimization.mics_shard_size",
        "zero_optimization.offload_optimizer.device", "zero_optimization.offload_optimizer.ratio",
        "zero_optimization.offload_optimizer.pin_memory", "zero_optimization.offload_param", "aio.thread_count",
    }  # fmt: skip
    assert found["zero_optimization.mics_shard_size"].rule == "removed-key"
    assert found["zero_optimization.stage"].instead == "allowed is 0, 1, 2, 3"
    assert found["zero_optimization.reduce_bucket_size"].instead == "allowed is a whole number above 0"
    assert "did you mean train_batch_size" in found["train_batch_sise"].instead
    assert "did you mean overlap_comm" in found["zero_optimization.overlap_com"].instead
    assert found["train_batch_sise"].severity is Severity.WASTEFUL
    assert {p.severity for path, p in found.items() if path.startswith("zero")} == {Severity.ERROR}
    assert all(p.given and p.why and p.instead and p.source for p in found.values())


def test_values_that_are_refused_count_as_defaults() -> None:
    """The rest is judged all the same."""
    found = values({"zero_optimization": {"stage": 9, "reduce_bucket_size": -5}, "train_batch_size": "many"})
    assert found.zero("stage") == 0
    assert found.zero("reduce_bucket_size") == 500_000_000
