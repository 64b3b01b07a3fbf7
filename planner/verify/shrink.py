"""A plan's model made smaller, where a machine holds no more: fewer layers, then a smaller vocabulary, then narrower.

Every state line of a ledger is a sum over tensors of a function of their sizes, the same for each layer: what holds for
two layers of each kind, in the same stack, holds for eighty. What is not a layer (embedding, head) stays as it is where
it fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..architectures import build_model
from ..errors import InputError
from ..model import Model

# What transformers' configuration classes call a size; synonyms as in planner/architectures.
DEPTH = ("num_hidden_layers", "n_layer", "n_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads")
KV_HEADS = ("num_key_value_heads",)
WIDTH = (
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size"),
    *("shared_expert_intermediate_size", "word_embed_proj_dim"),
)
FEWEST_LAYERS = 2  # of equal ones: what is gathered, freed and prefetched passes from one to the next
VOCABULARIES = (32_768, 8_192, 2_048)
NARROWER = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """A model that is run in a plan's place, and what was made smaller."""

    model: Model
    layers: tuple[int, int]  # that are run, of how many
    vocabulary: tuple[int, int]
    hidden: tuple[int, int]

    @property
    def text(self) -> str:
        """What people read; empty where nothing was made smaller."""
        sizes = (("layers", self.layers), ("words of the vocabulary", self.vocabulary), ("hidden size", self.hidden))
        return ", ".join(f"{run:,} of {planned:,} {name}" for name, (run, planned) in sizes if run != planned)

    @property
    def whole(self) -> dict[str, int]:
        """The sizes of the model that stands behind it."""
        return {"layers": self.layers[1], "vocabulary": self.vocabulary[1], "hidden": self.hidden[1]}


def changed(model: Model, values: Mapping[str, object], drop: Callable[[str], bool] = lambda _: False) -> Model | None:
    """A model with other values of its configuration's keys; None where there is no such model."""
    inner = model.config.get("text_config")
    keys = dict(inner) if isinstance(inner, dict) else dict(model.config)
    keys = {key: value for key, value in keys.items() if not drop(key)} | dict(values)
    config = {**model.config, "text_config": keys} if isinstance(inner, dict) else keys
    try:
        return build_model(config, name=model.name, source=model.source)
    except InputError:
        return None


def with_layers(model: Model, layers: int) -> Model | None:
    """Only the first so many layers."""
    if layers == model.layers:
        return model
    inner = model.config.get("text_config")
    keys = inner if isinstance(inner, dict) else model.config
    lists = {k: v[:layers] for k, v in keys.items() if isinstance(v, list) and len(v) == model.layers}
    for name in sorted(DEPTH, key=lambda name: name not in keys):
        found = changed(model, {**lists, name: layers})
        if found is not None and found.layers == layers:
            return found
    return None


def with_vocabulary(model: Model, vocabulary: int) -> Model | None:
    """A smaller vocabulary; tokens of special meaning may not be in it, and are forgotten."""
    if vocabulary >= model.vocab:
        return model
    found = changed(model, {"vocab_size": vocabulary}, drop=lambda key: key.endswith("_token_id"))
    return found if found is not None and found.vocab == vocabulary else None


def narrower(model: Model, factor: int) -> Model | None:
    """Heads of the same size, fewer by a factor, and everything as wide as them."""
    if factor == 1:
        return model
    inner = model.config.get("text_config")
    keys = inner if isinstance(inner, dict) else model.config
    sizes = {k: v for k, v in keys.items() if k in (*WIDTH, *HEADS, *KV_HEADS) and isinstance(v, int)}
    if not set(sizes) & set(HEADS) or any(value % factor for key, value in sizes.items() if key not in KV_HEADS):
        return None
    values = {key: max(1, value // factor) for key, value in sizes.items()}
    found = changed(model, values)
    return found if found is not None and found.hidden * factor == model.hidden else None


def fewest_layers(model: Model) -> int:
    """Layers, from the first on, among which there is each kind, and at least two."""
    kinds: dict[int, int] = {}
    for index, block in enumerate(model.blocks):
        kinds.setdefault(id(block), index)
    return min(model.layers, max(FEWEST_LAYERS, 1 + max(kinds.values(), default=0)))


def smaller(model: Model, *, depth_only: bool, layers: int | None = None) -> Iterator[tuple[Model, int, int]]:
    """Models to try, the most faithful first, each with the fewest and the most layers that it may have."""
    for factor in NARROWER[: 1 if depth_only else None]:
        narrow = narrower(model, factor)
        for vocabulary in (model.vocab, *VOCABULARIES)[: 1 if depth_only else None]:
            found = with_vocabulary(narrow, vocabulary) if narrow and vocabulary <= model.vocab else None
            if found is not None:
                yield found, layers or fewest_layers(model), layers or model.layers


def fitted(
    model: Model, fits: Callable[[Model], bool], *, depth_only: bool = False, layers: int | None = None
) -> Shrunk | None:
    """The model as it is run: as much of it as fits; None where nothing does.

    Args:
        model: of the plan.
        fits: whether a model can be run; what has more layers needs more.
        depth_only: leave widths and vocabulary as they are.
        layers: exactly so many.
    """
    for base, fewest, most in smaller(model, depth_only=depth_only, layers=layers):
        if found := deepest(base, fits, fewest, most):
            return Shrunk(
                model=found,
                layers=(found.layers, model.layers),
                vocabulary=(found.vocab, model.vocab),
                hidden=(found.hidden, model.hidden),
            )
    return None


def deepest(model: Model, fits: Callable[[Model], bool], fewest: int, most: int) -> Model | None:
    """The model with as many layers as fit, between two bounds; None where the fewest do not."""
    best = with_layers(model, fewest)
    if best is None or not fits(best):
        return None
    low, high = fewest, most
    while low < high:
        middle = -(-(low + high) // 2)
        tried = with_layers(model, middle)
        if tried is not None and fits(tried):
            best, low = tried, middle
        else:
            high = middle - 1
    return best
