"""Every tensor of every model, against what transformers builds on the meta device: names, shapes, order, kinds."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from trainplan.planner.architectures import RECIPES, build_model
from trainplan.planner.computation import Adapters
from trainplan.planner.model import Model, ParameterKind
from trainplan.planner.models import PEFT_REMAPS, adapter_parameters, catalog, catalog_model

pytestmark = pytest.mark.oracle

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# the modules around the decoder, which our names leave out
PREFIXES = ("model.decoder.", "model.language_model.", "model.", "transformer.", "gpt_neox.", "backbone.")
LAYER = re.compile(r"(?:layers|h|blocks)\.([0-9]+)\.(.*)")

SMALL: dict[str, object] = {"vocab_size": 1000, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3}
LLAMA: dict[str, object] = SMALL | {"num_attention_heads": 6, "num_key_value_heads": 2}
GPT: dict[str, object] = {"vocab_size": 999, "n_positions": 77, "n_embd": 60, "n_layer": 2, "n_head": 5}
ODD: dict[str, list[dict[str, object]]] = {
    "llama": [
        LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        LLAMA | {"head_dim": 24, "num_key_value_heads": None},
        {"num_hidden_layers": 1},  # everything else as transformers assumes
        LLAMA | {"head_dim": None, "num_attention_heads": 8, "num_key_value_heads": 1, "hidden_act": "gelu"},
    ],
    "mistral": [
        LLAMA | {"head_dim": 10, "sliding_window": None, "tie_word_embeddings": True},
        {"num_hidden_layers": 1},
    ],
    "mixtral": [
        LLAMA | {"num_local_experts": 5, "sliding_window": 9},
        {"num_hidden_layers": 1},
        LLAMA | {"num_experts": 3},
    ],
    "qwen2": [
        LLAMA | {"use_sliding_window": True, "max_window_layers": 1, "tie_word_embeddings": True},
        LLAMA | {"head_dim": 40, "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
        {"num_hidden_layers": 1},
    ],
    "qwen3": [
        LLAMA | {"attention_bias": True, "head_dim": 20},
        LLAMA | {"use_sliding_window": True, "max_window_layers": 2, "tie_word_embeddings": True},
        {"num_hidden_layers": 1},
    ],
    "qwen2_moe": [
        LLAMA
        | {"num_experts": 6, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "qkv_bias": False},
        LLAMA | {"num_experts": 6, "mlp_only_layers": [1], "use_sliding_window": True, "max_window_layers": 2},
        LLAMA | {"num_experts": 6, "decoder_sparse_step": 2, "num_experts_per_tok": 3},
        {"num_hidden_layers": 1},
    ],
    "qwen3_moe": [
        LLAMA | {"num_experts": 8, "attention_bias": True, "mlp_only_layers": [0, 2], "head_dim": 12},
        LLAMA | {"num_local_experts": 9, "decoder_sparse_step": 3, "use_sliding_window": True},
        {"num_hidden_layers": 1},
    ],
    "gemma": [
        LLAMA | {"attention_bias": True, "head_dim": 30, "tie_word_embeddings": False, "hidden_act": "gelu"},
        {"num_hidden_layers": 1},
    ],
    "gemma2": [
        LLAMA | {"attention_bias": True, "head_dim": 18, "attn_logit_softcapping": None},
        LLAMA | {"layer_types": ["full_attention"] * 3, "tie_word_embeddings": False},
        {"num_hidden_layers": 1},
    ],
    "gemma3_text": [
        LLAMA | {"attention_bias": True, "head_dim": 18, "num_hidden_layers": 7, "sliding_window_pattern": 3},
        LLAMA | {"use_bidirectional_attention": True, "tie_word_embeddings": False, "final_logit_softcapping": 5.0},
        {"num_hidden_layers": 1},
    ],
    "phi": [
        LLAMA | {"qk_layernorm": True, "partial_rotary_factor": 0.5},
        LLAMA | {"num_key_value_heads": None, "tie_word_embeddings": True},
        {"num_hidden_layers": 1},
    ],
    "phi3": [
        LLAMA | {"sliding_window": 12, "tie_word_embeddings": True, "pad_token_id": 0},
        LLAMA | {"num_key_value_heads": None, "partial_rotary_factor": 0.5, "pad_token_id": 0},
        {"num_hidden_layers": 1},
    ],
    "gpt2": [
        GPT | {"n_inner": 100, "tie_word_embeddings": False},
        {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 30},
        {},
    ],
    "gptj": [
        GPT | {"n_inner": 100, "rotary_dim": 4, "tie_word_embeddings": True},
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "rotary_dim": 8},
        {"n_layer": 1},
    ],
    "gpt_neox": [
        SMALL | {"num_attention_heads": 6, "attention_bias": False, "use_parallel_residual": False, "rotary_pct": 1.0},
        SMALL | {"num_attention_heads": 3, "tie_word_embeddings": True},
        {"num_hidden_layers": 1},
    ],
    "opt": [
        {"word_embed_proj_dim": 32, "hidden_size": 64, "num_attention_heads": 4, "do_layer_norm_before": False},
        {"word_embed_proj_dim": 32, "hidden_size": 64, "num_attention_heads": 4, "tie_word_embeddings": False},
        {"enable_bias": False, "layer_norm_elementwise_affine": False, "ffn_dim": 50},
        {"_remove_final_layer_norm": True, "max_position_embeddings": 100},
        {},
    ],
    "bloom": [
        {"hidden_size": 72, "num_hidden_layers": 3, "num_attention_heads": 6, "tie_word_embeddings": False},
        {"n_embed": 48, "n_layer": 1, "n_head": 4},
        {},
    ],
    "falcon": [
        {
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
            "hidden_size": 64,
            "num_attention_heads": 4,
        },
        {"new_decoder_architecture": True, "num_kv_heads": 2, "hidden_size": 64, "num_attention_heads": 8},
        {
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "hidden_size": 64,
            "num_attention_heads": 8,
            "num_ln_in_parallel_attn": 1,
            "ffn_hidden_size": 100,
            "tie_word_embeddings": False,
        },
        {"n_embed": 64, "num_attention_heads": 4, "num_hidden_layers": 2},
        {"num_hidden_layers": 1},
    ],
    "mpt": [
        {"d_model": 64, "n_heads": 4, "n_layers": 2, "no_bias": False, "attn_config": {"attn_pdrop": 0, "qk_ln": True}},
        {"hidden_size": 80, "num_attention_heads": 5, "num_hidden_layers": 2, "expansion_ratio": 3},
        {"n_layers": 1, "tie_word_embeddings": False},
    ],
    "starcoder2": [
        LLAMA | {"use_bias": False, "tie_word_embeddings": False, "sliding_window": 9},
        LLAMA | {"head_dim": 22},
        {"num_hidden_layers": 1},
    ],
    "olmo2": [
        LLAMA | {"attention_bias": True, "num_key_value_heads": 3, "tie_word_embeddings": True},
        LLAMA | {"num_key_value_heads": None, "pad_token_id": 0},
        {"num_hidden_layers": 1},
    ],
    "deepseek_v2": [
        SMALL | {"num_attention_heads": 6, "q_lora_rank": None, "first_k_dense_replace": 2, "num_experts_per_tok": 2},
        SMALL
        | {
            "num_attention_heads": 4,
            "attention_bias": True,
            "mlp_bias": True,
            "num_experts_per_tok": 3,
            "num_experts": 7,
        }
        | {"q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 14},
        {"num_hidden_layers": 2, "num_experts_per_tok": 2, "n_shared_experts": 3, "first_k_dense_replace": 1},
    ],
    "deepseek_v3": [
        SMALL | {"num_attention_heads": 6, "num_key_value_heads": 6, "q_lora_rank": None, "num_local_experts": 16},
        SMALL
        | {"num_attention_heads": 4, "num_key_value_heads": None, "attention_bias": True, "n_routed_experts": 16}
        | {"q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 14}
        | {"first_k_dense_replace": 0, "n_shared_experts": 2, "moe_intermediate_size": 30},
        {"num_hidden_layers": 4},
    ],
    "gpt_oss": [
        LLAMA | {"head_dim": 14, "num_local_experts": 5, "attention_bias": False, "tie_word_embeddings": True},
        LLAMA | {"num_experts": 6, "layer_types": ["full_attention"] * 3, "sliding_window": None},
        {"num_hidden_layers": 1},
    ],
    "mamba": [
        {"hidden_size": 70, "num_hidden_layers": 2, "use_bias": True, "use_conv_bias": False, "state_size": 5},
        {
            "hidden_size": 48,
            "intermediate_size": 100,
            "time_step_rank": 7,
            "conv_kernel": 3,
            "tie_word_embeddings": False,
        },
        {},
    ],
    "jamba": [
        LLAMA
        | {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 1, "mamba_proj_bias": True}
        | {"num_experts": 4, "expert_layer_period": 3, "expert_layer_offset": 2, "mamba_dt_rank": 9},
        LLAMA | {"num_experts": 1, "num_experts_per_tok": 1, "mamba_conv_bias": False, "mamba_expand": 3},
        LLAMA | {"num_local_experts": 3, "tie_word_embeddings": True, "mamba_d_state": 8, "mamba_d_conv": 2},
        {"num_hidden_layers": 8},
    ],
}
CASES = [(kind, index) for kind, configs in ODD.items() for index in range(len(configs))]


def reference(config: Mapping[str, object]) -> Any:
    """What transformers builds, on the meta device."""
    keys = copy.deepcopy(dict(config))
    cls = transformers.models.auto.configuration_auto.CONFIG_MAPPING[keys.pop("model_type")]
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter(
            "ignore"
        )  # transformers warns of its own defaults, e.g. of token ids beyond the vocabulary
        return transformers.AutoModelForCausalLM.from_config(cls.from_dict(keys))


def stripped(name: str) -> str:
    """A parameter's name without the modules around the decoder."""
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def ours(model: Model) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Our tensors, layers numbered."""
    yield from ((p.name, p.shape) for p in model.embedding)
    for number, block in enumerate(model.blocks):
        yield from ((f"{number}.{p.name}", p.shape) for p in block.parameters)
    yield from ((p.name, p.shape) for p in model.head)


def theirs(module: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """transformers' tensors, named as ours."""
    for full, parameter in module.named_parameters():
        name = stripped(full)
        layer = LAYER.fullmatch(name)
        yield (f"{layer[1]}.{layer[2]}" if layer else name), tuple(parameter.shape)


def assert_same(model: Model, module: Any) -> None:
    """Names, shapes and order; and a weight is LINEAR exactly where its module is an nn.Linear or a Conv1D."""
    assert list(ours(model)) == list(theirs(module))
    assert model.parameter_count == sum(p.numel() for p in module.parameters())
    linear = {
        stripped(f"{name}.weight")
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Linear | transformers.pytorch_utils.Conv1D)
    }
    for full, parameter in module.named_parameters():
        name = stripped(full)
        layer = LAYER.fullmatch(name)
        mine = {p.name: p for p in (model.blocks[int(layer[1])].parameters if layer else model.embedding + model.head)}
        part = mine[layer[2] if layer else name]
        assert (part.kind is ParameterKind.LINEAR) == (name in linear), full
        assert (part.kind is ParameterKind.EXPERTS) == (parameter.dim() == 3 and "conv1d" not in full), full


@pytest.mark.parametrize("name", sorted(catalog()))
def test_catalog_model_is_the_one_transformers_builds(name: str) -> None:
    """Every tensor of a catalog model has transformers' name, shape and place."""
    assert_same(catalog_model(name), reference(catalog()[name].config))


@pytest.mark.parametrize(("kind", "index"), CASES)
def test_odd_configuration_is_the_one_transformers_builds(kind: str, index: int) -> None:
    """So has every tensor of models with odd sizes, flipped biases and ties, and keys left out."""
    config = {"model_type": kind} | ODD[kind][index]
    assert_same(build_model(config, name=kind, source="test"), reference(config))


def test_multimodal_gemma3_gives_its_text_part() -> None:
    """The text part of gemma3 has the tensors of the multimodal model's language model and head."""
    config = {"model_type": "gemma3", "text_config": LLAMA | {"head_dim": 18}}
    built = build_model(config, name="gemma3", source="test")
    text = reference({"model_type": "gemma3_text"} | LLAMA | {"head_dim": 18})
    assert list(ours(built)) == list(theirs(text))
    whole = [name for name, _ in theirs(reference(config)) if "vision" not in name and "projector" not in name]
    assert [name for name, _ in ours(built)] == whole


def test_every_family_has_odd_configurations() -> None:
    """No family goes unchecked; gemma3 has its own test."""
    assert set(ODD) == set(RECIPES) - {"gemma3"}
    assert all(len(configs) >= 2 for configs in ODD.values())


@pytest.mark.parametrize("kind", sorted(set(RECIPES) - {"gemma3"}))
def test_defaults_are_transformers_own(kind: str) -> None:
    """What a family assumes of a key that is left out is what the configuration class assumes."""
    config = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fields = {name: field.default for name, field in config.__dataclass_fields__.items()}
    known = {key: value for key, value in RECIPES[kind].defaults.items() if key in fields}
    assert known == {key: fields[key] for key in known}
    derived = set(RECIPES[kind].defaults) - set(known)  # keys the class takes without declaring them
    assert derived <= {"sliding_window_pattern", "intermediate_size"}


@pytest.mark.parametrize("kind", sorted(set(RECIPES) - {"gemma3"}))
def test_synonyms_are_transformers_own(kind: str) -> None:
    """Other names of a key are those of the class's attribute_map, and n_embed, which its code takes."""
    theirs_map = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind].attribute_map
    names = RECIPES[kind].defaults
    wanted = {alias: key for alias, key in theirs_map.items() if key in names}
    given = {alias: key for alias, key in RECIPES[kind].synonyms.items() if alias != "n_embed"}
    if kind == "qwen3_moe":  # the class maps num_experts to num_local_experts: both names reach one value
        wanted = {"num_local_experts": "num_experts"}
    assert given == wanted


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")


def trained_by_peft(config: Mapping[str, object], targets: object) -> int:
    """Parameters that peft adds with rank 4."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(reference(config), peft.LoraConfig(r=4, target_modules=targets))
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", sorted(set(ODD) - PEFT_REMAPS - {"mamba", "opt"}))
def test_adapters_on_all_linear_layers_are_those_of_peft(kind: str) -> None:
    """LoRA on all linear layers trains as many parameters as peft adds."""
    config = {"model_type": kind} | ODD[kind][0]
    model = build_model(config, name=kind, source="test")
    assert adapter_parameters(model, Adapters(rank=4)) == trained_by_peft(config, "all-linear")


@pytest.mark.parametrize("kind", sorted(PEFT_REMAPS))
def test_adapters_on_the_attention_are_those_of_peft(kind: str) -> None:
    """Where peft takes the MLPs' names for the stacked experts', the attention's adapters still agree."""
    config = {"model_type": kind} | ODD[kind][0]
    model = build_model(config, name=kind, source="test")
    adapters = Adapters(rank=4, targets=ATTENTION)
    assert adapter_parameters(model, adapters) == trained_by_peft(config, list(ATTENTION))


@pytest.mark.parametrize("kind", sorted(PEFT_REMAPS))
def test_peft_does_adapt_experts_of_these_families(kind: str) -> None:
    """The exception is real: peft's all-linear adds more than the nn.Linear layers have, once there are experts."""
    config = {"model_type": kind} | ODD[kind][1]
    model = build_model(config, name=kind, source="test")
    assert trained_by_peft(config, "all-linear") > adapter_parameters(model, Adapters(rank=4))


def test_opt_has_the_same_adapters_where_nothing_is_projected() -> None:
    """OPT's projections around the layers (350M only) are adapted by peft and not counted here."""
    config = {"model_type": "opt"} | ODD["opt"][2]
    model = build_model(config, name="opt", source="test")
    assert adapter_parameters(model, Adapters(rank=4)) == trained_by_peft(config, "all-linear")
