"""From a Hugging Face config.json to a model, tensor by tensor, as transformers 5.23 builds it. One file a family."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import InputError, did_you_mean
from ..model import Model
from . import (
    bloom,
    deepseek,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    gpt_oss,
    gptj,
    jamba,
    llama,
    mamba,
    mistral,
    mixtral,
    mpt,
    olmo2,
    opt,
    phi,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    starcoder2,
)
from .parts import Recipe
from .reader import LARGEST_SHOWN, Reader, shown

RECIPES: Mapping[str, Recipe] = {
    "llama": llama.RECIPE,
    "mistral": mistral.RECIPE,
    "qwen2": qwen2.RECIPE,
    "qwen3": qwen3.RECIPE,
    "gemma": gemma.RECIPE,
    "gemma2": gemma2.RECIPE,
    "gemma3_text": gemma3.RECIPE,
    "gemma3": gemma3.MULTIMODAL,
    "phi": phi.RECIPE,
    "phi3": phi3.RECIPE,
    "gpt2": gpt2.RECIPE,
    "gpt_neox": gpt_neox.RECIPE,
    "gptj": gptj.RECIPE,
    "opt": opt.RECIPE,
    "bloom": bloom.RECIPE,
    "falcon": falcon.RECIPE,
    "mpt": mpt.RECIPE,
    "starcoder2": starcoder2.RECIPE,
    "olmo2": olmo2.RECIPE,
    "mixtral": mixtral.RECIPE,
    "qwen2_moe": qwen2_moe.RECIPE,
    "qwen3_moe": qwen3_moe.RECIPE,
    "deepseek_v2": deepseek.V2,
    "deepseek_v3": deepseek.V3,
    "gpt_oss": gpt_oss.RECIPE,
    "mamba": mamba.RECIPE,
    "jamba": jamba.RECIPE,
}
LARGEST_LISTED = 8  # problems that one message spells out


def recipe_of(config: Mapping[str, object], *, source: str) -> tuple[str, Recipe]:
    """The ``model_type`` and how it is built.

    Raises:
        InputError: ``model_type`` is missing, no text, or not modelled; it is never guessed from other keys.
    """
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in RECIPES:
        return kind, RECIPES[kind]
    hint = did_you_mean(kind[:LARGEST_SHOWN], RECIPES) if isinstance(kind, str) else ""
    wrong = f"unknown, got {shown(kind)}" if "model_type" in config else "missing"
    raise InputError(
        f"{source}: model_type: {wrong}; known are {', '.join(sorted(RECIPES))}{hint}; "
        f"describe another model by hand with its parameters, layers and hidden size"
    )


def build_model(config: Mapping[str, object], *, name: str, source: str) -> Model:
    """The model that transformers would build from these keys.

    Args:
        config: the keys of config.json; what it leaves out takes transformers' own defaults. Code that the file
            points to (``auto_map``) is never run.
        name: what to call the model.
        source: where the keys were read, for messages and reports.

    Returns:
        The model, every tensor named and shaped as transformers 5.23.0 does.

    Raises:
        InputError: all problems of the file on one line.

    >>> tiny = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16,
    ...         "vocab_size": 32, "num_hidden_layers": 3}
    >>> build_model(tiny, name="tiny", source="doctest").parameter_count  # 2*32*8 + 3*(4*8*8 + 3*8*16 + 2*8) + 8
    2488
    """
    kind, recipe = recipe_of(config, source=source)
    reader = Reader(config, recipe.defaults, recipe.synonyms)
    if config.get("per_layer_config"):
        reader.problems.append("per_layer_config: layers of different widths are not modelled; remove it")
    anatomy = recipe.build(reader)
    if reader.problems:
        raise InputError(_refusal(source, reader.problems))
    return Model(
        name=name,
        family=kind,
        hidden=anatomy.hidden,
        vocab=anatomy.vocab,
        tied=anatomy.tied,
        embedding=anatomy.embedding,
        blocks=anatomy.blocks,
        head=anatomy.head,
        max_positions=anatomy.max_positions,
        final_norm=anatomy.final_norm,
        logits_soft_cap=anatomy.logits_soft_cap,
        source=source,
        config=dict(config),
    )


def _refusal(source: str, problems: list[str]) -> str:
    """One line for all problems, each once."""
    distinct = list(dict.fromkeys(problems))
    listed = "; ".join(distinct[:LARGEST_LISTED])
    more = f"; and {len(distinct) - LARGEST_LISTED} more" if len(distinct) > LARGEST_LISTED else ""
    return f"{source}: {len(distinct)} wrong: {listed}{more}; correct the file"
