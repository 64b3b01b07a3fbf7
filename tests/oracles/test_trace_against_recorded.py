"""The tracer against traces that were recorded before it was written, by other code: to the byte."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from trainplan.planner.architectures import build_model
from trainplan.planner.computation import Adapters, AttentionImplementation, Computation
from trainplan.planner.model import Model, ParameterKind
from trainplan.planner.trace import Subject, trace

pytestmark = pytest.mark.oracle

DATA = Path(__file__).parents[1] / "data"
Row = Mapping[str, str]
FAMILIES_STEP = 4  # of the many small rows every fourth; the whole file takes a minute more


def rows(name: str) -> list[Row]:
    """The rows of a data file, less its comment; what the tracer does not offer is left out."""
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return [row for row in found if row.get("ckpt") != "reentrant" and row.get("keep_logits") != "1"]


TOTALS = {row["id"]: row for row in rows("traced_totals.csv")}


def one_of_each(found: Iterable[Row]) -> list[Row]:
    """The first row of each architecture, attention, checkpointing, method and kind of mask."""
    kinds: dict[tuple[object, ...], Row] = {}
    for row in found:
        slides = bool(row["window"]) and int(row["window"]) <= int(row["seq"])
        kind = (row["arch"], row["attn"], row["ckpt"], row["tuning"], row["lora_targets"], row["lora_dropout"], slides)
        kinds.setdefault(kind, row)
    return list(kinds.values())


def config_of(row: Row) -> dict[str, object]:
    """transformers' keys for one row of traced.csv."""
    number = {key: int(row[key]) for key in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab")}
    if row["arch"] == "gpt2":
        return {
            "model_type": "gpt2", "n_embd": number["hidden"], "n_layer": number["layers"], "n_head": number["heads"],
            "vocab_size": number["vocab"],
        }  # fmt: skip
    config: dict[str, object] = {
        "model_type": row["arch"], "hidden_size": number["hidden"], "num_hidden_layers": number["layers"],
        "intermediate_size": number["ffn"], "num_attention_heads": number["heads"], "vocab_size": number["vocab"],
        "tie_word_embeddings": row["tied"] == "True", "pad_token_id": 0,
    }  # fmt: skip
    if row["arch"] != "gpt_neox":
        config["num_key_value_heads"] = number["kv_heads"]
    if row["arch"].startswith(("gemma", "qwen3")):
        config["head_dim"] = number["head_dim"]
    if row["arch"] == "mistral" or row["window"]:
        config["sliding_window"] = int(row["window"]) if row["window"] else None
    if row["experts"]:
        experts = "num_local_experts" if row["arch"] == "mixtral" else "num_experts"
        config |= {experts: int(row["experts"]), "num_experts_per_tok": int(row["topk"])}
    if row["arch"] == "qwen3_moe":
        config |= {"moe_intermediate_size": int(row["moe_ffn"]), "norm_topk_prob": True}
    return config


def adapters_of(model: Model, row: Row) -> Adapters | None:
    """The row's LoRA; traced.csv writes q for q_proj, and 1 for dropout of 0.05."""
    if not row["lora_r"]:
        return None
    linear = {p.name.split(".")[-2] for b in model.blocks for p in b.parameters if p.kind is ParameterKind.LINEAR}
    names = [name if "_" in name else f"{name}_proj" for name in row["lora_targets"].split("+")]
    targets = tuple(sorted(linear)) if row["lora_targets"] == "all-linear" else tuple(names)
    return Adapters(rank=int(row["lora_r"]), targets=targets, dropout=0.05 if row.get("lora_dropout") == "1" else 0.0)


def measured(row: Row, config: Mapping[str, object]) -> dict[str, int]:
    """The recorded columns, from a new trace."""
    model = build_model(config, name=row["model"], source="tests/data")
    computation = Computation(
        adapters=adapters_of(model, row),
        attention=AttentionImplementation.EAGER if row["attn"] == "eager" else AttentionImplementation.FLASH,
        checkpointed_layers=0 if row["ckpt"] == "none" else model.layers,
    )
    shape = {"seq_len": int(row["seq"]), "micro_batch": int(row["batch"])}
    found = trace(Subject(model=model, computation=computation, optimizer_step=False, **shape))
    return {
        "saved_after_fwd": found.saved_after_forward_bytes,
        "act_peak_fwd": found.activation_peak_bytes["forward"],
        "act_peak_bwd": found.activation_peak_bytes["backward"],
        "parameters": found.parameter_bytes,
        "gradients": found.gradient_bytes,
        "peak_forward": found.peak_bytes["forward"],
        "peak_backward": found.peak_bytes["backward"],
        "inside_kernels": found.workspace_peak_bytes,
    }


def differing(found: Mapping[str, int], *recorded: Row) -> dict[str, tuple[int, int]]:
    """Columns whose value is not the recorded one."""
    columns = {name: int(row[name]) for row in recorded for name in found if name in row}
    return {name: (found[name], value) for name, value in columns.items() if found[name] != value}


@pytest.mark.parametrize("row", one_of_each(rows("traced.csv")), ids=lambda row: f"{row['id']}-{row['model']}")
def test_whole_models(row: Row) -> None:
    """States, activations, peaks and workspaces of whole models are the recorded ones."""
    assert not differing(measured(row, config_of(row)), row, TOTALS[row["id"]])


@pytest.mark.parametrize(
    "row", rows("traced_families.csv")[::FAMILIES_STEP], ids=lambda row: f"{row['id']}-{row['model']}"
)
def test_families(row: Row) -> None:
    """Activations of every family are the recorded ones."""
    assert not differing(measured(row, json.loads(row["config"])), row)
