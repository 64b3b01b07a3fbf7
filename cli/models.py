"""``trainplan models``: what models are known, and what one is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from .complete import model_names

if TYPE_CHECKING:
    from ..planner.model import Model
    from ..planner.models import CatalogModel

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
DEFAULT_RANK = 16


@click.group(name="models")
def command() -> None:
    """List models, search them, show what one is made of."""


@command.command(name="list")
@json_option
def list_models(as_json: bool) -> None:
    """All models of the catalog."""
    from ..planner.models import catalog

    _print_rows(tuple(catalog().values()), as_json=as_json)


@command.command()
@click.argument("text")
@json_option
def search(text: str, as_json: bool) -> None:
    """Models whose name, alias, hub id or architecture contains TEXT."""
    from ..planner.architectures.reader import shown
    from ..planner.errors import InputError, did_you_mean
    from ..planner.models import catalog, spelling

    wanted = spelling(text)
    found = tuple(row for row in catalog().values() if any(wanted in spelling(name) for name in _searched(row)))
    if not found:
        known = {name.lower() for row in catalog().values() for name in (row.name, *row.aliases)}
        raise InputError(
            f"models search: nothing found, got {shown(text)}{did_you_mean(text[:100], sorted(known))}; "
            f"allowed are parts of names; see all with trainplan models list"
        )
    _print_rows(found, as_json=as_json)


@command.command()
@click.argument("name", shell_complete=model_names)
@click.option("--method", type=click.Choice(["full", "lora", "qlora"]), default="full", help="What is trained.")
@click.option("--lora-rank", type=click.IntRange(1, 65536), default=DEFAULT_RANK, show_default=True, help="Rank r.")
@json_option
def show(name: str, method: str, lora_rank: int, as_json: bool) -> None:
    """What NAME is made of: a catalog name, a config.json, a folder that holds one, or a hub id org/name."""
    from ..planner.models import find_model

    found = find_model(name)
    facts = {"note": found.note} | describe(found.model, method=method, rank=lora_rank)
    click.echo(json.dumps(facts, indent=2) if as_json else _sheet(facts))


def describe(model: Model, *, method: str = "full", rank: int = DEFAULT_RANK) -> dict[str, object]:
    """What ``models show`` prints: stable names, plain values.

    Args:
        model: the model.
        method: "full", or "lora" and "qlora", which train adapters on every nn.Linear of the layers.
        rank: r of the adapters.
    """
    from ..planner.computation import Adapters
    from ..planner.models import PEFT_REMAPS, adapter_parameters

    adapters = None if method == "full" else Adapters(rank=rank)
    trained = model.parameter_count if adapters is None else adapter_parameters(model, adapters)
    warning = (
        f"peft 0.21.2's all-linear adapts the experts of {model.family} too; counted here are its nn.Linear layers"
        if adapters is not None and model.family in PEFT_REMAPS
        else ""
    )
    return {
        "name": model.name,
        "architecture": model.family,
        "part": "text part only" if model.family == "gemma3" else "",
        "parameters": model.parameter_count,
        "trainable_parameters": trained,
        "method": method,
        "lora_rank": adapters.rank if adapters else None,
        "warning": warning,
        "parts": {
            "embedding": sum(p.numel for p in model.embedding),
            "layers": sum(block.numel * count for block, count in model.distinct_blocks),
            "head": sum(p.numel for p in model.head),
        },
        "tied": model.tied,
        "layers": model.layers,
        "hidden": model.hidden,
        "vocab": model.vocab,
        "max_positions": model.max_positions or None,
        "kinds_of_layers": [_layer(model, number) for number in range(len(model.distinct_blocks))],
        "source": model.source,
    }


def _layer(model: Model, number: int) -> dict[str, object]:
    """One of the different kinds of layers."""
    block, count = model.distinct_blocks[number]
    facts: dict[str, object] = {"count": count, "parameters": block.numel}
    if block.attention:
        attention = block.attention
        facts |= {
            "heads": attention.heads,
            "kv_heads": attention.kv_heads,
            "head_dim": attention.head_dim,
            "window": attention.window or None,
        }
    if block.mlp:
        mlp = block.mlp
        facts |= {"intermediate": mlp.intermediate, "experts": mlp.experts, "experts_per_token": mlp.experts_per_token}
    if block.ssm:
        facts |= {"state_space": block.ssm.inner}
    return facts


def _searched(row: CatalogModel) -> Sequence[str]:
    return (*row.names, str(row.config["model_type"]))


def _print_rows(rows: Sequence[CatalogModel], *, as_json: bool) -> None:
    """A table of models, or the same as JSON."""
    from ..planner.models import catalog_model
    from ..planner.report.table import table

    models = [catalog_model(row.name) for row in rows]
    if as_json:
        click.echo(json.dumps([_row_facts(r, m) for r, m in zip(rows, models, strict=True)], indent=2))
        return
    cells = [
        (m.name, m.family, f"{m.parameter_count:,}", str(m.layers), str(m.hidden), ", ".join(r.aliases))
        for r, m in zip(rows, models, strict=True)
    ]
    click.echo(
        table(cells, header=("model", "architecture", "parameters", "layers", "hidden", "also called"), align="llrrrl")
    )


def _row_facts(row: CatalogModel, model: Model) -> dict[str, object]:
    return {
        "name": row.name,
        "architecture": model.family,
        "parameters": model.parameter_count,
        "layers": model.layers,
        "hidden": model.hidden,
        "aliases": list(row.aliases),
        "hub": list(row.hub),
        "source": row.source,
    }


def _sheet(facts: Mapping[str, object]) -> str:
    """One fact a line; what does not apply is left out."""
    parts = facts["parts"]
    kinds = facts["kinds_of_layers"]
    assert isinstance(parts, dict)
    assert isinstance(kinds, list)
    lines = [str(facts["note"])] if facts["note"] else []
    shown = {
        "model": facts["name"],
        "architecture": f"{facts['architecture']}{', ' + str(facts['part']) if facts['part'] else ''}",
        "parameters": f"{facts['parameters']:,}",
        "  embedding": f"{parts['embedding']:,}",
        "  layers": f"{parts['layers']:,}",
        "  head": f"{parts['head']:,}{' (lm_head is the embedding)' if facts['tied'] else ''}",
        "trainable": f"{facts['trainable_parameters']:,} ({_method(facts)})",
        "layers": facts["layers"],
        "hidden size": facts["hidden"],
        "vocabulary": f"{facts['vocab']:,}",
        "positions": f"{facts['max_positions']:,}" if facts["max_positions"] else "no limit in its config",
        "source": facts["source"],
    }
    lines += [f"{label:<13} {value}" for label, value in shown.items()]
    lines += [f"{'layer kind':<13} {_kind(kind)}" for kind in kinds]
    return "\n".join(lines + ([f"{'warning':<13} {facts['warning']}"] if facts["warning"] else []))


def _method(facts: Mapping[str, object]) -> str:
    if facts["method"] == "full":
        return "full"
    return f"{facts['method']}, rank {facts['lora_rank']} on all linear layers"


def _kind(kind: Mapping[str, object]) -> str:
    """One kind of layer: how many, then its sizes."""
    sizes = ", ".join(
        f"{name.replace('_', ' ')} {value:,}"
        for name, value in kind.items()
        if name != "count" and isinstance(value, int) and value
    )
    return f"{kind['count']} x {sizes}"
