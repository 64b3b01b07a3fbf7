"""Input gradients that autograd skips: nothing in front of the first adapter is trained, so nothing there needs one.

    gradient of a weight's result    where its input has one, or the weight has an adapter
    attention's backward             where q, k or v has one; eager scores go backward operand by operand
    recomputation                    makes the embeddings' output require a gradient, and skips nothing

Source:
    torch 2.13.0 autograd, which computes the gradients of those inputs alone that require one; transformers 5.23.0
    modeling_utils.py ``enable_input_require_grads``, which checkpoints of a frozen model need. Counted for every family
    in tests/oracles/test_against_flop_counter.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .computation import Adapters, Computation
from .model import ATTENTION_OUT, MLP_OUT, Block, Model, Parameter, ParameterKind

LATENT = {"q_b_proj": "q_a_proj", "kv_b_proj": "kv_a_proj_with_mqa"}  # MLA: each reads the other's result
MIXER = ("in_proj", "x_proj", "dt_proj", "out_proj")  # a state-space mixer, in order


@dataclass(frozen=True, slots=True)
class Skipped:
    """What the backward pass of a layer leaves out when its input requires no gradient."""

    weights: frozenset[Parameter]  # whose input gradient is skipped, their adapter's too
    operands: tuple[bool, bool, bool]  # q, k, v: whether no gradient flows to them

    @property
    def attention(self) -> bool:
        """Whether attention has no backward pass at all."""
        return all(self.operands)


def first_adapted(model: Model, adapters: Adapters) -> int:
    """Index of the first layer with an adapter: as many layers have no backward pass."""
    return next((i for i, block in enumerate(model.blocks) if adapters.adapted(block)), model.layers)


def skips(computation: Computation) -> bool:
    """Whether the first layer's input requires no gradient."""
    return computation.adapters is not None and not computation.checkpointed_layers


@lru_cache(maxsize=1024)
def skipped(block: Block, adapters: Adapters) -> Skipped:
    """What the first layer with adapters skips.

    >>> from trainplan.planner.model import NormStyle, linear
    >>> weights = [w for name in ("q_proj", "k_proj", "v_proj", "o_proj") for w in linear(f"self_attn.{name}", 8, 8)]
    >>> block = Block(parameters=tuple(weights), norm=NormStyle.RMS)
    >>> found = skipped(block, Adapters(targets=("v_proj",)))
    >>> sorted(w.name for w in found.weights), found.operands
    (['self_attn.k_proj.weight', 'self_attn.q_proj.weight', 'self_attn.v_proj.weight'], (True, True, False))
    """
    adapted = frozenset(weight.name for weight in adapters.adapted(block))
    operands = _operands(adapted)
    behind_attention = any(operands) or any(_ends_attention(name) or _in_mixer(name) for name in adapted)
    mlp_input = behind_attention and not block.parallel_residual
    weights = (p for p in block.parameters if not _reached(p, adapted, mixed=any(operands), mlp_input=mlp_input))
    q, k, v = operands
    return Skipped(weights=frozenset(weights), operands=(not q, not k, not v))


def _operands(adapted: frozenset[str]) -> tuple[bool, bool, bool]:
    """Whether a gradient flows to q, k and v: their own projection has an adapter, or the fused one."""
    names = [_last(name) for name in adapted if _in_attention(name) and not _ends_attention(name)]
    made = [_made(name) for name in names]
    q, k, v = (any(operand in letters for letters in made) for operand in "qkv")
    return q, k, v


def _made(name: str) -> str:
    """Which operands a projection makes.

    >>> [_made(name) for name in ("q_proj", "kv_b_proj", "q_a_proj", "query_key_value", "Wqkv")]
    ['q', 'kv', 'q', 'qkv', 'qkv']
    """
    letters = name.partition("_")[0]
    return letters if letters in ("q", "k", "v", "kv") else "qkv"


def _reached(weight: Parameter, adapted: frozenset[str], *, mixed: bool, mlp_input: bool) -> bool:
    """Whether a gradient flows to what this weight reads."""
    name = weight.name
    if _in_attention(name):
        return mixed if _ends_attention(name) else _latent(name) in adapted
    if _in_mixer(name):
        place = MIXER.index(_last(name)) if _last(name) in MIXER else 0
        return any(_last(other) in MIXER[:place] for other in adapted if _in_mixer(other))
    if weight.kind is ParameterKind.LINEAR and _last(name) in MLP_OUT:
        return mlp_input or any(_path(other) == _path(name) and other != name for other in adapted)
    return mlp_input


def _latent(name: str) -> str:
    """The down-projection in front of one of MLA's up-projections."""
    last = _last(name)
    return name.replace(last, LATENT[last]) if last in LATENT else ""


def _last(name: str) -> str:
    return name.split(".")[-2] if name.count(".") else name


def _path(name: str) -> str:
    return ".".join(name.split(".")[:-2])


def _in_attention(name: str) -> bool:
    return "attn" in _path(name) or "attention" in _path(name)


def _ends_attention(name: str) -> bool:
    return _in_attention(name) and _last(name) in ATTENTION_OUT


def _in_mixer(name: str) -> bool:
    return _path(name) in ("mixer", "mamba")
