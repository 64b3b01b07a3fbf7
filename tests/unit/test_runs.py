"""planner/measurements/runs.py: what a table of whole runs leaves open, GPU-hours, and rows that are no runs."""

from __future__ import annotations

import pytest
from trainplan.planner.errors import InputError
from trainplan.planner.measurements.document import document
from trainplan.planner.measurements.runs import RunRow, as_run, as_stated
from trainplan.planner.measurements.score import UNCONVERTED, validate
from trainplan.planner.measurements.subject import flops_per_token_of
from trainplan.planner.measurements.table import Measurement, Table, Unsupported, parse_table
from trainplan.planner.models import load_model
from trainplan.planner.report.validation_text import validation_text
from trainplan.strategies.measured import predict

RUN = {
    "id": "7b", "model": "llama-2-7b", "seq_len": "4096", "n_gpus": "128", "gpu": "A100-80GB", "tokens": "1e12",
    "gpu_hours": "80000", "global_batch_tokens": "", "wall_days": "", "parallelism": "", "precision": "bf16",
    "act_ckpt": "", "framework": "", "notes": "", "inferred_fields": "", "tokens_per_s_per_gpu": "",
    "tflops_per_gpu": "", "tflops_kind": "", "layers": "", "heads": "",
}  # fmt: skip


def table_of(*rows: dict[str, str]) -> Table:
    """A table of runs that differ from RUN as given."""
    lines = [",".join(f'"{cell}"' for cell in (RUN | row).values()) for row in rows]
    return parse_table("\n".join([",".join(RUN), *lines]).encode(), where="runs.csv")


def alike(_: Measurement) -> float:
    """All layouts are as quick as each other."""
    return 1.0


def run_of(room: int = 10**6, /, **cells: str) -> RunRow:
    """One run, on GPUs that have room for so many sequences per micro-step."""
    (row,) = table_of(cells).rows
    return as_run(row, lambda found: found.whole("micro_batch") <= room, alike)


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("ZeRO-1 DP8", 1),
        ("ZeRO-3 hybrid engine", 3),
        ("FSDP (HSDP)", 3),
        ("TP8 CP1 PP16 DP64 FSDP", 2),
        ("DDP", 0),
        ("TP4 PP4 DP32", 1),
        ("2D (DP+TP) + ZeRO-1", 1),
        ("data parallel", 3),
    ],
)
def test_sharding_is_read_from_the_words(text: str, stage: int) -> None:
    """As stated; in a pipeline FSDP does not gather again; otherwise ZeRO-1 under a cut and ZeRO-3 without."""
    assert run_of(parallelism=text).row.whole("zero_stage") == stage


def test_the_quickest_layout_with_room_where_nothing_is_stated() -> None:
    """ZeRO-1 and ZeRO-3 on 1 to 8 tensor-parallel ranks, of those that divide heads and GPUs and have room."""
    row, odd = table_of({"heads": "32"}, {"heads": "32", "n_gpus": "6"}).rows

    def speed(found: Measurement) -> float:
        return found.whole("tp") + found.whole("zero_stage") / 10

    def chosen(row: Measurement, most_ranks: int) -> tuple[int, int, str]:
        found = as_run(row, lambda row: row.whole("tp") <= most_ranks, speed).row
        return found.whole("tp"), found.whole("zero_stage"), found.text("framework")

    assert chosen(row, 8) == (8, 3, "Megatron-LM")
    assert chosen(row, 3) == (2, 3, "Megatron-LM")
    assert chosen(row, 1) == (1, 3, "")
    assert chosen(odd, 8) == (2, 3, "Megatron-LM")


def test_a_layout_without_room_is_not_chosen_however_quick() -> None:
    """And where none has room, the one that cuts most stands."""
    (row,) = table_of({"heads": "32"}).rows
    found = as_run(row, lambda found: found.whole("zero_stage") == 1, lambda found: found.whole("zero_stage"))
    assert found.row.whole("zero_stage") == 1
    nowhere = as_run(row, lambda _: False, alike).row
    assert (nowhere.whole("tp"), nowhere.whole("zero_stage")) == (8, 3)


def test_degrees_make_the_gpus() -> None:
    """Stated degrees become columns, and their product the GPUs where these are not stated."""
    row = run_of(parallelism="TP8 CP2 PP16 DP8", n_gpus="", layers="126").row
    assert [row.whole(name) for name in ("tp", "cp", "pp", "dp", "n_gpus")] == [8, 2, 16, 8, 8 * 2 * 16 * 8]
    assert row.text("framework") == "Megatron-LM"
    assert row.whole("vpp") == 8  # ceil(126 / 16), one layer a chunk
    assert row.whole("micro_batch") == 1


def test_the_largest_micro_batch_with_room() -> None:
    """A power of two, no more than a rank's share: 4,194,304 / 4096 / 128 = 8 sequences."""
    assert run_of(global_batch_tokens="4194304").row.whole("micro_batch") == 8
    assert run_of(5, global_batch_tokens="4194304").row.whole("micro_batch") == 4
    assert run_of(33).row.whole("micro_batch") == 32
    stated = run_of(parallelism="DP128, MBS2 GBS512")
    assert stated.row.whole("micro_batch") == 2
    assert stated.row.micro_steps == 512 // (2 * 128)


def test_checkpointing_only_where_needed() -> None:
    """None where one sequence has room without; the sparest layout where nothing has."""
    (row,) = table_of({}).rows
    assert as_run(row, lambda _: True, alike).row.text("act_ckpt") == "none"
    assert as_run(row, lambda found: found.text("act_ckpt") == "full", alike).row.text("act_ckpt") == "full"
    nowhere = as_run(row, lambda _: False, alike).row
    assert (nowhere.text("act_ckpt"), nowhere.whole("micro_batch")) == ("full", 1)


def test_gpus_are_doubled_until_it_fits() -> None:
    """Where nobody says how many: nodes of 8."""
    (row,) = table_of({"n_gpus": ""}).rows
    found = as_run(row, lambda found: found.whole("n_gpus") >= 30, alike)
    assert found.row.whole("n_gpus") == 32
    assert found.assumed.startswith("32 GPUs, ZeRO-1, micro-batch ")


def test_words_for_method_batch_and_offload() -> None:
    """QLoRA in the precision, batch and offload in the notes, compilation in the framework."""
    row = run_of(precision="QLoRA nf4 + bf16", notes="QLoRA 70B; batch 2; offload params+activations cpu").row
    assert (row.text("task"), row.whole("micro_batch"), row.text("offload")) == ("qlora", 2, "params+activations cpu")
    assert run_of(framework="nanoGPT + torch.compile").row.text("compile") == "yes"


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"notes": "RLHF stage 3"}, "reinforcement learning: tokens are generated as well"),
        ({"notes": "pruned/distilled"}, "distilled: another model's passes belong to it"),
        ({"gpu": "TPUv4"}, "a TPU"),
        ({"tokens": ""}, "tokens are not stated"),
    ],
)
def test_what_is_no_run_of_its_tokens(cells: dict[str, str], reason: str) -> None:
    """It is named with its reason."""
    with pytest.raises(Unsupported, match=reason):
        run_of(**cells)


def test_throughput_is_no_tpu() -> None:
    """Words are matched from their beginning."""
    assert run_of(notes="printed throughput and output").row.identity == "7b"


def test_gpu_hours() -> None:
    """Tokens over the rate, over the goodput of a run of that length."""
    (row,) = table_of({}).rows
    found = predict(row)
    assert found.hours is not None
    assert found.rate is not None
    assert found.hours.point == pytest.approx(1e12 / found.rate.point / 3600 / found.hours.goodput, rel=1e-4)
    assert found.hours.low < found.hours.point < found.hours.upper
    assert 0.8 < found.hours.goodput < 1


def test_hours_from_days() -> None:
    """14 days of 96 GPUs; without GPUs there are none."""
    rows = table_of({"gpu_hours": "", "wall_days": "14", "n_gpus": "96"}, {"gpu_hours": "", "wall_days": "9"})
    assert rows.rows[0].gpu_hours == 14 * 24 * 96
    assert table_of({"gpu_hours": "", "wall_days": "9.5", "n_gpus": ""}).rows[0].gpu_hours == 0


def test_a_run_is_judged_by_its_hours_once() -> None:
    """Not by the throughput that was derived from them; where there are none, by throughput."""
    with_hours = {"tokens_per_s_per_gpu": "3000"}
    alone = {"id": "rate", "gpu_hours": "", "tokens_per_s_per_gpu": "3000"}
    found = validate(table_of(with_hours, alone), predict)
    assert [s.row.identity for s in found.runs.scored] == ["7b"]
    assert [s.row.identity for s in found.time.scored] == ["rate"]
    (hours,), (rate,) = found.runs.scored, found.time.scored
    assert hours.predicted == pytest.approx(1e12 / rate.predicted / 3600 / hours.goodput, rel=1e-4)


def test_hours_that_contain_more_are_listed_apart() -> None:
    """Judged, and counted again without them."""
    found = validate(table_of({}, {"id": "all", "inferred_fields": "60 days (includes ramp/downtime)"}), predict)
    runs = document(found)["runs"]
    assert (runs["scored"], runs["training_alone"]["scored"]) == (2, 1)
    assert [each["caveat"] for each in runs["each"]] == ["", "its hours contain downtime"]
    text = validation_text(document(found))
    assert "Runs: predicted against measured GPU-hours" in text
    assert "its hours contain downtime" in text


def test_model_flops_are_tokens_where_conventions_agree() -> None:
    """At 4,096 tokens a 70B model's attention is small; at 131,072 it must be said how it is counted."""
    model = load_model("llama-2-70b")

    def flops(kind: str, seq_len: int) -> float:
        return flops_per_token_of(Measurement(line=2, texts={"tflops_kind": kind}, numbers={"seq_len": seq_len}), model)

    square = 6 * model.parameter_count + 12 * 80 * 8192 * 4096
    assert flops("BF16 model FLOPs", 4096) == square
    assert flops("BF16 model FLOPs", 131_072) == 0
    assert flops("model FLOPs, full (non-causal) attention", 131_072) > square
    assert flops("hardware FLOPs", 4096) == 0


def test_printed_tflops_are_judged() -> None:
    """150 TFLOP/s of a 70B model, over its FLOPs per token."""
    cells = {"model": "llama-2-70b", "gpu_hours": "", "tflops_per_gpu": "150", "tflops_kind": "model FLOPs"}
    found = validate(table_of(cells, cells | {"id": "other", "tflops_kind": ""}), predict)
    model = load_model("llama-2-70b")
    (scored,) = found.time.scored
    assert scored.measured == pytest.approx(150e12 / (6 * model.parameter_count + 12 * 80 * 8192 * 4096))
    assert [reason for _, reason in found.time.unsupported] == [UNCONVERTED]


@pytest.mark.parametrize("column", ["tokens", "gpu_hours"])
def test_other_tables_stay_strict(column: str) -> None:
    """Without both columns of whole runs, micro_batch must be there."""
    with pytest.raises(InputError, match="columns missing: micro_batch"):
        parse_table(f"id,model,seq_len,n_gpus,gpu,{column}\na,llama-2-7b,2048,8,a100-80,1e5".encode(), where="t.csv")


def test_a_row_of_another_table_is_not_filled_in() -> None:
    """What it leaves open stays open."""
    text = b"id,model,seq_len,micro_batch,n_gpus,gpu,tokens_per_s_per_gpu\na,llama-2-7b,2048,,8,a100-80,3000"
    found = validate(parse_table(text, where="t.csv"), predict)
    assert [reason for _, reason in found.time.unsupported] == ["sequence length or micro-batch is not stated"]


def test_stated_columns_win() -> None:
    """A column beats the words."""
    (row,) = table_of({"parallelism": "DP64"}).rows
    assert as_stated(row).whole("n_gpus") == 128
