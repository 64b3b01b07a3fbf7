"""Which weights of a block read which tensor: what full training, LoRA and LoRA's dropout keep of each.

A weight's gradient needs its input. Full training keeps every input once; LoRA keeps it once if any reader has an
adapter; with LoRA dropout each adapter keeps its own dropped copy and mask instead. A rank-r adapter also keeps its
own r inner values.

Source:
    peft 0.21.2 tuners/lora/layer.py, ``Linear.forward``: ``lora_B(lora_A(dropout(x)))`` beside the frozen layer.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from ..model import Block, Parameter, ParameterKind
from .kept import BOOL, Recipe


class Role(Enum):
    """A tensor that weights read."""

    ATTENTION_IN = "attention in"
    LATENT = "latent"  # MLA: between the down- and the up-projection
    ATTENTION_OUT = "attention out"
    MLP_IN = "mlp in"
    PRODUCT = "product"  # what the last projection of an MLP reads
    MIXER = "mixer"  # all of a state-space mixer's projections


@dataclass(frozen=True, slots=True)
class Reader:
    """One nn.Linear weight and the tensor it reads; two LATENTs or PRODUCTs differ by their place."""

    role: Role
    place: str
    weight: Parameter


def kept_inputs(block: Block, role: Role, recipe: Recipe, *, width: int, already: bool = False) -> int:
    """Bytes per token that the readers of one role keep.

    Args:
        block: the layer.
        role: which tensor, of ``width`` elements per token.
        recipe: what is trained.
        width: elements per token of that tensor, for full training (LoRA takes them from the adapted weights).
        already: it is kept for another reason as well.

    >>> from trainplan.planner.model import NormStyle
    >>> kept_inputs(Block(parameters=(), norm=NormStyle.RMS), Role.MLP_IN,
    ...             Recipe(hidden=4096, element=2, eager=False, adapters=None), width=4096)
    8192
    """
    if recipe.adapters is None:
        return 0 if already else recipe.element * width
    adapters = adapted(block, recipe)
    weights = [r for r in adapters if r.role is role]
    inner = recipe.element * recipe.adapters.rank * len(weights)
    read = recipe.element * width if recipe.keeps_inputs and not already else 0
    if recipe.adapters.dropout > 0:
        return inner + read + sum((BOOL + recipe.element) * r.weight.fan_in for r in weights)
    if read:
        return inner + read
    shared = {r.place: r.weight.fan_in for r in weights}
    return inner + (0 if already else recipe.element * sum(shared.values()))


@lru_cache(maxsize=4096)
def adapted(block: Block, recipe: Recipe) -> tuple[Reader, ...]:
    """The readers that have an adapter."""
    if recipe.adapters is None:
        return ()
    weights = set(recipe.adapters.adapted(block))
    return tuple(r for r in readers(block) if r.weight in weights)


@lru_cache(maxsize=1024)
def readers(block: Block) -> tuple[Reader, ...]:
    """Every nn.Linear weight of a block with the tensor it reads.

    A module's last projection back to the hidden size reads what the module computed, the others read its input.
    """
    modules: dict[str, list[Parameter]] = defaultdict(list)
    for parameter in block.parameters:
        if parameter.kind is ParameterKind.LINEAR:
            modules[_module(parameter.name)].append(parameter)
    return tuple(r for name, weights in modules.items() for r in _module_readers(block, name, weights))


def _module(name: str) -> str:
    """Path of the module whose forward uses this weight; OPT's fc1 and fc2 have none.

    >>> _module("self_attn.q_proj.weight"), _module("fc1.weight"), _module("mlp.shared_experts.up_proj.weight")
    ('self_attn', '', 'mlp.shared_experts')
    """
    return ".".join(name.split(".")[:-2])


def _module_readers(block: Block, module: str, weights: list[Parameter]) -> list[Reader]:
    if "attn" in module or "attention" in module:
        return [_attention_reader(w, last=w is weights[-1]) for w in weights]
    if block.ssm is not None and ("mixer" in module or "mamba" in module):
        called = ("in_proj", "x_proj", "out_proj") if block.mlp else ("in_proj",)
        return [Reader(Role.MIXER, w.name, w) for w in weights if w.name.split(".")[-2] in called]
    shared = block.parallel_residual and block.norms == 1
    inside = Role.ATTENTION_IN if shared else Role.MLP_IN
    return [Reader(Role.PRODUCT, w.name, w) if _closes(w, weights) else Reader(inside, "", w) for w in weights]


def _closes(weight: Parameter, weights: list[Parameter]) -> bool:
    """The module's last projection, back to the width it started from; a lone gate or router is none."""
    return weight is weights[-1] and len(weights) > 1 and weight.fan_out == weights[0].fan_in


def _attention_reader(weight: Parameter, *, last: bool) -> Reader:
    latent = next((part for part in ("q_b_proj", "kv_b_proj") if part in weight.name), "")
    if latent:
        return Reader(Role.LATENT, latent, weight)
    return Reader(Role.ATTENTION_OUT if last else Role.ATTENTION_IN, "", weight)
