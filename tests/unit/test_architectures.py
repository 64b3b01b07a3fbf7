"""config.json to tensors: hand counts, traits, sharing, and files written to break it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainplan.planner.architectures import RECIPES, build_model
from trainplan.planner.errors import InputError
from trainplan.planner.model import AttentionKind, MlpKind, Model, NormStyle, ParameterKind

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
FILES = Path(__file__).parents[1] / "data" / "model_configs"


def built(kind: str, **keys: Any) -> Model:
    """A model of these keys; transformers has no default for DeepSeek V2's experts per token."""
    given_ = {"num_experts_per_tok": 6} if kind == "deepseek_v2" else {}
    return build_model({"model_type": kind, **given_, **keys}, name=kind, source="config.json")


def tiny(kind: str, **keys: Any) -> Model:
    """A small model."""
    return built(kind, **(TINY | keys))


def refusal(config: dict[str, Any]) -> str:
    """The message that refuses these keys."""
    with pytest.raises(InputError) as caught:
        build_model(config, name="x", source="config.json")
    return str(caught.value)


def test_llama_by_hand() -> None:
    """P = 2 V h + h + L (h a d + 2 h kv d + a d h + 3 h f + 2 h)."""
    head, layer = 100 * 64, 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert tiny("llama").parameter_count == 2 * head + 64 + 4 * layer


def test_tied_head_is_counted_once() -> None:
    """A tied lm_head is the input embedding: V h fewer parameters, and no tensor of its own."""
    tied, untied = tiny("llama", tie_word_embeddings=True), tiny("llama")
    assert untied.parameter_count - tied.parameter_count == 100 * 64
    assert [p.name for p in tied.head] == ["norm.weight"]
    assert [p.name for p in untied.head] == ["norm.weight", "lm_head.weight"]


def test_gpt2_by_hand() -> None:
    """P = (V + s_max) h + L (12 h^2 + 13 h) + 2 h, with the head tied."""
    model = built("gpt2", n_embd=64, n_layer=2, n_head=4, vocab_size=100, n_positions=32)
    assert model.parameter_count == (100 + 32) * 64 + 2 * (12 * 64**2 + 13 * 64) + 2 * 64
    c_attn = next(p for p in model.blocks[0].parameters if p.name == "attn.c_attn.weight")
    assert (c_attn.shape, c_attn.kind, c_attn.fan_in, c_attn.fan_out) == ((64, 192), ParameterKind.LINEAR, 64, 192)


def test_mixtral_experts_are_two_stacked_tensors() -> None:
    """E experts of 3 h f parameters each in two tensors of three dimensions, and a router of E h."""
    block = tiny("mixtral", num_local_experts=5).blocks[0]
    stacked = {p.name: p.shape for p in block.parameters if p.kind is ParameterKind.EXPERTS}
    assert stacked == {"mlp.experts.gate_up_proj": (5, 2 * 96, 64), "mlp.experts.down_proj": (5, 64, 96)}
    router = next(p for p in block.parameters if p.name == "mlp.gate.weight")
    assert (router.shape, router.kind) == ((5, 64), ParameterKind.OTHER)


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_equal_layers_share_one_object(kind: str) -> None:
    """However deep the model, only different layers are different objects."""
    model = built(kind)
    assert len(model.distinct_blocks) <= 4
    assert sum(count for _, count in model.distinct_blocks) == model.layers
    different = {(b.parameters, b.attention, b.mlp, b.ssm) for b, _ in model.distinct_blocks}
    assert len(different) == len(model.distinct_blocks)


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_names_are_unique(kind: str) -> None:
    """Inside a layer and outside the layers each tensor has its own name."""
    model = built(kind)
    for block, _ in model.distinct_blocks:
        names = [p.name for p in block.parameters]
        assert len(set(names)) == len(names)
    outside = [p.name for p in model.embedding + model.head]
    assert len(set(outside)) == len(outside)


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_linear_weights_have_fans(kind: str) -> None:
    """fan_in x fan_out is the size of every LINEAR weight, and nothing else has fans."""
    for parameter in built(kind).parameters:
        expected = parameter.numel if parameter.kind is ParameterKind.LINEAR else 0
        assert parameter.fan_in * parameter.fan_out == expected


def test_traits_of_the_norms() -> None:
    """Which norm each family uses, how many, and whether they follow the sub-layers."""
    families = {
        "llama": (NormStyle.RMS, 2, False),
        "gemma": (NormStyle.RMS_FP32, 2, False),
        "gemma2": (NormStyle.RMS_FP32, 4, False),
        "gemma3_text": (NormStyle.RMS_FP32, 4, False),
        "gpt_oss": (NormStyle.RMS_FP32, 2, False),
        "olmo2": (NormStyle.RMS_FP32, 2, True),
        "starcoder2": (NormStyle.LAYER, 2, False),
        "phi": (NormStyle.LAYER, 1, False),
        "gptj": (NormStyle.LAYER, 1, False),
        "gpt_neox": (NormStyle.LAYER, 2, False),
        "mamba": (NormStyle.RMS, 1, False),
    }
    for kind, expected in families.items():
        block = built(kind).blocks[0]
        assert (block.norm, block.norms, block.post_norm) == expected, kind


def test_traits_of_the_attention() -> None:
    """What makes each family's attention different."""
    attention = {kind: built(kind).blocks[0].attention for kind in RECIPES if kind not in ("mamba", "jamba")}
    true = {
        trait: {kind for kind, a in attention.items() if a and getattr(a, trait)}
        for trait in ("qk_norm", "soft_cap", "sinks", "fused_qkv", "alibi", "eager_only", "dense_mask", "rope_concat")
    }
    assert true == {
        "qk_norm": {"qwen3", "qwen3_moe", "gemma3_text", "gemma3", "olmo2"},
        "soft_cap": {"gemma2"},
        "sinks": {"gpt_oss"},
        "fused_qkv": {"phi3", "gpt2", "gpt_neox", "bloom", "falcon", "mpt"},
        "alibi": {"bloom", "mpt"},
        "eager_only": {"bloom", "mpt", "gptj"},
        "dense_mask": {"falcon"},
        "rope_concat": {"phi3"},
    }
    unrotated = {kind for kind, a in attention.items() if a and not a.rope_dim}
    assert unrotated == {"gpt2", "opt", "bloom", "mpt"}


@pytest.mark.parametrize(
    ("kind", "keys", "rotated"),
    [
        ("llama", {}, 16),
        ("phi", {}, 16 // 2),
        ("phi", {"partial_rotary_factor": 0.25}, 16 // 4),
        ("phi3", {"partial_rotary_factor": 0.75}, 12),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.5}}, 8),
        ("gpt_neox", {}, 16 // 4),
        ("gpt_neox", {"rotary_pct": 1.0}, 16),
    ],
)
def test_rotated_part_of_a_head(kind: str, keys: dict[str, Any], rotated: int) -> None:
    """int(d * factor), where the factor stands alone or among the rope parameters, else the family's own."""
    attention = tiny(kind, **keys).blocks[0].attention
    assert attention is not None
    assert attention.rope_dim == rotated


def windows(model: Model) -> list[int]:
    """Each layer's window."""
    return [b.attention.window if b.attention else -1 for b in model.blocks]


def test_window_patterns() -> None:
    """Which layers have a sliding window."""
    assert windows(tiny("mistral", sliding_window=8)) == [8, 8, 8, 8]
    assert windows(tiny("mistral", sliding_window=None)) == [0, 0, 0, 0]
    assert windows(tiny("gemma2", sliding_window=8)) == [8, 0, 8, 0]
    assert windows(tiny("gpt_oss", sliding_window=8)) == [8, 0, 8, 0]
    assert windows(tiny("gemma3_text", sliding_window=8, num_hidden_layers=7)) == [8, 8, 8, 8, 8, 0, 8]
    assert windows(tiny("gemma3_text", sliding_window=8, sliding_window_pattern=2)) == [8, 0, 8, 0]
    assert windows(tiny("qwen2", sliding_window=8)) == [0, 0, 0, 0]
    assert windows(tiny("qwen2", sliding_window=8, use_sliding_window=True, max_window_layers=3)) == [0, 0, 0, 8]
    assert windows(tiny("qwen2_moe", sliding_window=8, use_sliding_window=True, max_window_layers=2)) == [8, 0, 0, 0]
    types = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert windows(tiny("gemma2", sliding_window=8, layer_types=types)) == [0, 8, 8, 0]


def test_dense_layers_before_and_between_experts() -> None:
    """DeepSeek's first layers are dense; Qwen's mlp_only_layers and decoder_sparse_step leave others dense."""

    def sparse(model: Model) -> list[bool]:
        return [b.mlp is not None and b.mlp.experts > 0 for b in model.blocks]

    assert sparse(tiny("deepseek_v3", first_k_dense_replace=3, num_key_value_heads=4)) == [False, False, False, True]
    assert sparse(tiny("qwen3_moe", mlp_only_layers=[1])) == [True, False, True, True]
    assert sparse(tiny("qwen2_moe", decoder_sparse_step=2)) == [False, True, False, True]
    assert sparse(tiny("jamba", num_hidden_layers=4)) == [False, True, False, True]


def test_latent_attention() -> None:
    """MLA: heads of nope + rope, narrower values, ranks; q_lora_rank null is one projection."""
    attention = tiny("deepseek_v3", num_key_value_heads=4).blocks[0].attention
    assert attention is not None
    assert (attention.kind, attention.head_dim, attention.value_dim) == (AttentionKind.MLA, 128 + 64, 128)
    assert (attention.q_lora_rank, attention.kv_lora_rank, attention.rope_dim) == (1536, 512, 64)
    names = {p.name for p in tiny("deepseek_v3", num_key_value_heads=4, q_lora_rank=None).blocks[0].parameters}
    assert "self_attn.q_proj.weight" in names
    assert "self_attn.q_a_proj.weight" not in names


def test_shared_experts_and_routers() -> None:
    """n shared experts are one MLP of n times the width; DeepSeek routes in fp32, Mixtral weighs in fp32."""
    deepseek = tiny("deepseek_v2", n_shared_experts=3, moe_intermediate_size=10, num_experts_per_tok=2).blocks[0].mlp
    assert deepseek is not None
    assert (deepseek.shared_intermediate, deepseek.intermediate) == (30, 10)
    flags = {
        kind: built(kind).blocks[-1].mlp for kind in ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss")
    }
    assert {k for k, m in flags.items() if m and m.router_fp32} == {"deepseek_v3"}
    assert {k for k, m in flags.items() if m and m.routing_fp32} == {"deepseek_v3", "mixtral"}


def test_activations() -> None:
    """The four activations whose memory is known, and the two with code of their own."""
    kinds = {kind: mlp.activation for kind in RECIPES if (mlp := built(kind).blocks[0].mlp) is not None}
    assert {kinds[k] for k in ("gemma", "gemma2", "starcoder2", "gpt_neox", "falcon", "mpt")} == {"gelu"}
    assert {kinds[k] for k in ("gpt2", "gptj", "phi")} == {"gelu_new"}
    assert (kinds["opt"], kinds["bloom"], kinds["gpt_oss"], kinds["llama"]) == (
        "relu",
        "gelu_bloom",
        "swiglu_clamped",
        "silu",
    )
    assert tiny("llama", hidden_act="swish").blocks[0].mlp == tiny("llama").blocks[0].mlp
    assert tiny("starcoder2").blocks[0].mlp.kind is MlpKind.PLAIN  # type: ignore[union-attr]


def test_three_falcons() -> None:
    """7B: one key-value head and one norm; 40B: grouped heads and two norms; RW: ALiBi, as many heads, in sequence."""
    keys = {"hidden_size": 64, "num_attention_heads": 8}
    seven = built("falcon", **keys).blocks[0]
    forty = built("falcon", **keys, new_decoder_architecture=True, num_kv_heads=2).blocks[0]
    rw = built("falcon", **keys, alibi=True, multi_query=False, parallel_attn=False, bias=True).blocks[0]
    traits = [
        (b.attention.kv_heads, b.norms, b.parallel_residual, b.attention.alibi)
        for b in (seven, forty, rw)
        if b.attention
    ]
    assert traits == [(1, 1, True, False), (2, 2, True, False), (8, 2, False, True)]


def test_jamba_mixes_attention_and_state_spaces() -> None:
    """One attention layer in eight, at offset 4; no rotary embedding."""
    model = tiny("jamba", num_hidden_layers=16)
    assert [i for i, b in enumerate(model.blocks) if b.attention] == [4, 12]
    assert all((b.ssm is None) == (b.attention is not None) for b in model.blocks)
    assert all(b.attention.rope_dim == 0 for b in model.blocks if b.attention)


def test_mamba_ranks() -> None:
    """dt_rank "auto" is ceil(h / 16); the inner width is expand * h unless given."""
    automatic = built("mamba", hidden_size=70).blocks[0].ssm
    given_ = built("mamba", hidden_size=70, intermediate_size=90, time_step_rank=3).blocks[0].ssm
    assert automatic is not None
    assert given_ is not None
    assert (automatic.inner, automatic.dt_rank) == (140, math.ceil(70 / 16))
    assert (given_.inner, given_.dt_rank) == (90, 3)


@pytest.mark.parametrize(
    ("kind", "keys", "layers", "hidden"),
    [
        ("gpt2", {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}, 3, 64),
        ("bloom", {"n_embed": 64, "num_hidden_layers": 3, "num_attention_heads": 4}, 3, 64),
        ("mpt", {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}, 3, 64),
        ("falcon", {"n_embed": 64, "num_hidden_layers": 3, "num_attention_heads": 4}, 3, 64),
    ],
)
def test_synonyms(kind: str, keys: dict[str, Any], layers: int, hidden: int) -> None:
    """Other names of a key are taken as transformers takes them."""
    model = built(kind, **keys)
    assert (model.layers, model.hidden) == (layers, hidden)


def test_keys_left_out_take_the_defaults_of_the_family() -> None:
    """An empty llama is the first 7B; an empty falcon is Falcon-7B."""
    assert built("llama").parameter_count == 6_738_415_616
    assert built("falcon").parameter_count == 6_921_720_704
    assert built("deepseek_v3").parameter_count == 671_026_404_352


def test_remote_code_is_ignored_where_the_architecture_is_known() -> None:
    """auto_map names Python files: nothing of them is looked at."""
    config = json.loads((FILES / "llama.json").read_text())
    assert "auto_map" in config
    model = build_model(config, name="x", source="x")
    assert model.parameter_count == 2 * 1000 * 64 + 64 + 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176 + 2 * 64)


def test_gemma3_is_its_text_part() -> None:
    """The multimodal gemma3 gives the tensors of gemma3_text with text_config's keys."""
    config = json.loads((FILES / "gemma3_multimodal.json").read_text())
    text = build_model(config["text_config"], name="x", source="x")
    whole = build_model(config, name="x", source="x")
    assert whole.parameters == text.parameters
    assert whole.family == "gemma3"
    assert "text_config.hidden_size" in refusal(config | {"text_config": {"hidden_size": 0}})
    assert "text_config" in refusal(config | {"text_config": [1]})


def test_unknown_architecture_is_refused_with_a_hint() -> None:
    """Never a guess, whatever else the file holds: the name, what is known, what is meant."""
    message = refusal(TINY | {"model_type": "lama"})
    assert "unknown, got 'lama'" in message
    assert "did you mean llama" in message
    assert "qwen3_moe" in message
    assert "missing" in refusal(TINY)
    assert "got 7" in refusal({"model_type": 7})
    assert "got ['llama']" in refusal({"model_type": ["llama"]})


def test_all_problems_are_named_at_once() -> None:
    """A file is corrected once, not once for each mistake; the message stays one line."""
    message = refusal(
        {"model_type": "llama", "hidden_size": -1, "vocab_size": "x\ny", "num_hidden_layers": True, "mlp_bias": 3}
        | {"hidden_act": "nonsense", "attention_dropout": 2}
    )
    for key in ("hidden_size", "vocab_size", "num_hidden_layers", "mlp_bias", "hidden_act", "attention_dropout"):
        assert key in message
    assert "\n" not in message
    assert message.startswith("config.json: 6 wrong: ")


@pytest.mark.parametrize(
    "value", [True, False, None, -1, 0, 1.5, 4096.0, math.nan, math.inf, 10**9, 10**400, "4096", [4096], {"a": 1}]
)
def test_a_size_is_a_whole_number_within_reason(value: object) -> None:
    """Nothing else is taken for one: no truth value, no text, no float, no null, nothing absurd."""
    assert "hidden_size: got" in refusal(TINY | {"model_type": "llama", "hidden_size": value})


@pytest.mark.parametrize(
    ("kind", "keys", "named"),
    [
        ("llama", {"num_hidden_layers": 10_001}, "num_hidden_layers"),
        ("llama", {"num_attention_heads": 7}, "divisor of the hidden size 64"),
        ("llama", {"num_key_value_heads": 3}, "divisor of the 4 attention heads"),
        ("llama", {"per_layer_config": {"0": {"hidden_size": 3}}}, "per_layer_config"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ("gemma2", {"layer_types": "full_attention"}, "layer_types"),
        ("gemma2", {"attn_logit_softcapping": -1}, "attn_logit_softcapping"),
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ("qwen3_moe", {"mlp_only_layers": [True]}, "mlp_only_layers"),
        ("jamba", {"attn_layer_offset": 8}, "attn_layer_offset"),
        ("deepseek_v2", {}, "num_experts_per_tok"),  # transformers has no default for it
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("phi", {"partial_rotary_factor": math.nan}, "partial_rotary_factor"),
        ("mpt", {"attn_config": {"attn_pdrop": "x"}}, "attn_config.attn_pdrop"),
        ("mpt", {"attn_config": "torch"}, "attn_config"),
        ("mamba", {"time_step_rank": "many"}, "time_step_rank"),
        ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings"),
    ],
)
def test_contradictions_are_refused(kind: str, keys: dict[str, Any], named: str) -> None:
    """What cannot be built is refused by the name of its key."""
    assert named in refusal({"model_type": kind} | TINY | keys)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
KEYS = sorted({key for recipe in RECIPES.values() for key in (*recipe.defaults, *recipe.synonyms)} | {"layer_types"})


@given(kind=st.sampled_from(sorted(RECIPES)), keys=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6))
def test_any_file_gives_a_model_or_one_line(kind: str, keys: dict[str, Any]) -> None:
    """Whatever a file holds, it is built or refused on one line: no other exception, no endless message."""
    assert outcome({**keys, "model_type": kind})


def outcome(config: dict[str, Any]) -> bool:
    """Built with parameters, or refused on one short line."""
    try:
        return build_model(config, name="x", source="config.json").parameter_count > 0
    except InputError as error:
        return "\n" not in str(error) and len(str(error)) < 3000
