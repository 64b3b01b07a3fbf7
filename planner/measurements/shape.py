"""A row's model: of the catalog where name and shape agree, else built from the shape columns; and its adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from ..architectures import build_model
from ..computation import Adapters, module_name
from ..errors import InputError
from ..frameworks import Framework, framework_of
from ..model import Attention, Block, Mlp, MlpKind, Model, NormStyle, Parameter, ParameterKind, linear
from ..models import ROTARY_POSITIONS, catalog_model, spelling, spellings
from ..parallel import with_padded_vocabulary
from .table import Measurement, Unsupported

# Families whose MLP is two matrices, by the word their models' names begin with; all others are gated.
PLAIN = ("gpt", "mpt", "opt", "falcon", "phi", "stablelm", "nemotron", "bloom", "pythia", "megatron")
ROTARY = ("falcon", "phi", "stablelm", "nemotron", "pythia")  # of these, those that rotate queries and keys
MANNER = re.compile(r"\((dropless|w/o MTP)\)", re.IGNORECASE)  # beside a mixture's name: as we take it to be anyway
DROPS = re.compile(r"\(tokendrop\)", re.IGNORECASE)
USUAL_HEAD_DIM = 128
MOST_LAYERS = 10_000


def model_of(row: Measurement) -> Model:
    """The row's model: of the catalog where name and shape agree, else built from the shape columns.

    Raises:
        Unsupported: neither is possible.
    """
    if DROPS.search(row.text("model")):
        raise Unsupported("experts that drop tokens beyond their capacity")
    name = spellings().get(spelling(MANNER.sub("", row.text("model"))))
    if name is not None:
        known = catalog_model(name)
        if row.whole("layers", known.layers) == known.layers and row.whole("hidden", known.hidden) == known.hidden:
            return known
    if row.text("moe"):
        raise Unsupported("a mixture of experts that is not in the catalog")
    shape = tuple(row.whole(name) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab"))
    if not shape[1] or not shape[6]:
        raise Unsupported("the model is not in the catalog and its hidden size or vocabulary is not stated")
    if not shape[2]:
        shape = (*shape[:2], _usual_heads(shape[1], row.whole("tp", 1)), *shape[3:])
    tied = row.text("tied_emb").lower() == "yes"
    return _built(row.text("model"), shape, tied, row.number("params"), row.whole("seq_len", 1))


@lru_cache(maxsize=4096)
def _built(name: str, shape: tuple[int, ...], tied: bool, params: float, seq_len: int) -> Model:
    layers, hidden, heads, kv_heads, head_dim, ffn, vocab = shape
    plain = name.lower().startswith(PLAIN)
    ffn = ffn or (4 * hidden if plain else 0)
    layers = layers or _solved_layers(hidden, ffn, vocab, params)
    if layers > MOST_LAYERS:
        raise Unsupported(f"more than {MOST_LAYERS:,} layers")
    if not (layers and ffn) or hidden % heads:
        raise Unsupported("layers, MLP width or heads are not stated and cannot be solved")
    if plain:
        groups = (heads, kv_heads or heads, head_dim or hidden // heads)
        return _gpt(name, layers, hidden, groups, ffn, vocab, seq_len, tied=tied)
    config: dict[str, object] = {
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads, "intermediate_size": ffn, "vocab_size": vocab,
        "tie_word_embeddings": tied, "max_position_embeddings": ROTARY_POSITIONS,
    }  # fmt: skip
    if head_dim:
        config["head_dim"] = head_dim
    try:
        return build_model(config, name=name, source="measurement")
    except InputError as error:
        raise Unsupported(f"its shape makes no model: {error}") from None


def _usual_heads(hidden: int, tensor: int) -> int:
    """Heads of the largest size up to 128 that divides h into a number that the tensor-parallel ranks divide."""
    sizes = range(min(USUAL_HEAD_DIM, hidden), 0, -1)
    return next((hidden // d for d in sizes if hidden % d == 0 and hidden // d % tensor == 0), 1)


def _solved_layers(hidden: int, ffn: int, vocab: int, params: float) -> int:
    """Layers that make up the stated parameters: 4 h^2 + 2 h f a layer beside the embedding."""
    per_layer = 4 * hidden**2 + 2 * hidden * ffn
    return max(0, round((params - vocab * hidden) / per_layer)) if params and ffn else 0


def _gpt(
    name: str, layers: int, hidden: int, groups: tuple[int, int, int], ffn: int, vocab: int, seq_len: int, *, tied: bool
) -> Model:
    """A GPT of the given shape: layer norms, one projection for q, k and v, two MLP matrices, learned positions."""

    def norm(what: str) -> Parameter:
        return Parameter(name=f"{what}.weight", shape=(hidden,), kind=ParameterKind.NORM)

    def table(what: str, rows: int) -> Parameter:
        return Parameter(name=f"{what}.weight", shape=(rows, hidden), kind=ParameterKind.EMBEDDING)

    heads, kv_heads, head_dim = groups
    rope = head_dim if name.lower().startswith(ROTARY) else 0
    block = Block(
        parameters=(
            norm("norm_1"),
            *linear("attn.query_key_value", hidden, (heads + 2 * kv_heads) * head_dim),
            *linear("attn.out_proj", heads * head_dim, hidden),
            norm("norm_2"),
            *linear("mlp.dense_h_to_4h", hidden, ffn),
            *linear("mlp.dense_4h_to_h", ffn, hidden),
        ),
        norm=NormStyle.LAYER,
        attention=Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim, fused_qkv=True, rope_dim=rope),
        mlp=Mlp(kind=MlpKind.PLAIN, activation="gelu", intermediate=ffn),
    )
    return Model(
        name=name,
        family="gpt",
        hidden=hidden,
        vocab=vocab,
        tied=tied,
        embedding=(table("wte", vocab), table("wpe", seq_len)),
        blocks=(block,) * layers,
        head=(norm("norm_f"),) if tied else (norm("norm_f"), *linear("lm_head", hidden, vocab)),
        final_norm=NormStyle.LAYER,
    )


@lru_cache(maxsize=512)
def as_run(model: Model, framework: Framework) -> Model:
    """The model as a framework writes it: padded vocabulary, one projection for queries, keys and values."""
    if framework.padded_vocabulary:
        model = with_padded_vocabulary(model)
    if not framework.fused_qkv:
        return model
    fused = {
        id(b): replace(b, attention=b.attention and replace(b.attention, fused_qkv=True))
        for b, _ in model.distinct_blocks
    }
    return replace(model, blocks=tuple(fused[id(b)] for b in model.blocks))


DEFAULT_LORA_RANK = 8
PAPER_TARGETS = ("q", "v")  # Hu et al. 2021 §4.2: query and value projections, where a source names none
EVERY_LINEAR = frozenset({"all", "all linear", "all-linear"})
# Names of our modules by what sources call them.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "q": ("q_proj",),
    "k": ("k_proj",),
    "v": ("v_proj",),
    "o": ("o_proj", "out_proj", "dense"),
    "gate": ("gate_proj",),
    "up": ("up_proj", "fc1", "dense_h_to_4h"),
    "down": ("down_proj", "fc2", "dense_4h_to_h"),
}
FUSED_QKV = ("query_key_value", "Wqkv", "qkv_proj", "c_attn")


def adapters_of(row: Measurement, model: Model) -> Adapters:
    """The row's LoRA."""
    targets = _targets(row.text("lora_targets"), model)
    dropout = framework_of(row.text("framework")).lora_dropout
    return Adapters(rank=row.whole("lora_rank", DEFAULT_LORA_RANK), targets=targets, dropout=dropout)


def _targets(text: str, model: Model) -> tuple[str, ...]:
    lowered = text.lower()
    if lowered in EVERY_LINEAR:
        return ()
    linears = {module_name(p) for b, _ in model.distinct_blocks for p in b.parameters if p.kind is ParameterKind.LINEAR}
    if any(word in lowered for word in ("c_attn", "qkv", "w_pack", "attention")):
        wanted: tuple[str, ...] = ("q", "k", "v") + (("o",) if "attention" in lowered else ())
    else:
        wanted = tuple(part.strip() for part in lowered.split(",") if part.strip()) or PAPER_TARGETS
    names = {ours for word in wanted for ours in TARGETS.get(word.removesuffix("_proj"), (word,))}
    if set(wanted) & {"q", "k", "v"}:
        names |= set(FUSED_QKV)
    return tuple(sorted(names & linears))
