"""How the training script builds a model: what it keeps, where, and which models it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from trainplan.planner.job import train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.oracle

CONFIG: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "vocab_size": 101,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TRAINING: Mapping[str, Any] = {
    "precision": "fp32",
    "attn_implementation": "sdpa",
    "zero_init": False,
    "quantization": None,
    "checkpointing": {"layers": 0, "of": 3, "on_host": False},
    "loss_chunk_tokens": 0,
    "liger": False,
    "compile": False,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's folder."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**CONFIG)).save_pretrained(folder)
    return folder


def plan(config: Mapping[str, Any] = CONFIG, **training: Any) -> Mapping[str, Any]:
    """What `build_model` reads of a plan."""
    return {
        "decision": {"zero_stage": 0},
        "model": {"config": dict(config)},
        "adapters": None,
        "training": {**TRAINING, **training},
    }


def recomputed(layers: int, *, on_host: bool = False) -> dict[str, Any]:
    """The plan's section."""
    return {"layers": layers, "of": 3, "on_host": on_host}


def gradients(model: Any) -> list[Any]:
    """Of every parameter, for one batch."""
    ids = torch.randint(0, 101, (2, 16), generator=torch.Generator().manual_seed(1))
    train.loss_of(model, plan(), {"input_ids": ids, "labels": ids}).backward()
    return [parameter.grad for parameter in model.parameters()]


def counting(counts: list[int], index: int) -> Callable[..., None]:
    """A hook that counts forward passes of a layer's attention: one more where it is recomputed."""

    def hook(*_: Any) -> None:
        counts[index] += 1

    return hook


def test_the_first_layers_are_recomputed(saved: Path) -> None:
    """k of L layers run twice, the others once; gradients are those of a model that keeps everything."""
    model = train.build_model(plan(checkpointing=recomputed(2)), str(saved))
    passes = [0, 0, 0]
    for index, layer in enumerate(train.decoder_layers(model)):
        layer.self_attn.register_forward_hook(counting(passes, index))
    found = gradients(model)
    assert passes == [2, 2, 1]
    expected = gradients(train.build_model(plan(), str(saved)))
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))


def test_inputs_of_layers_go_to_the_host(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under save_on_cpu lie the hidden states that enter the first k layers, and nothing else."""
    moved: list[Any] = []

    def recorded(pin_memory: bool) -> Any:
        assert pin_memory == torch.cuda.is_available()
        return torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)

    def note(tensor: Any) -> Any:
        moved.append(tensor)
        return tensor

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", recorded)
    model = train.build_model(plan(checkpointing=recomputed(2, on_host=True)), str(saved))
    entered: list[Any] = []
    for layer in train.decoder_layers(model)[:2]:
        layer.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].detach().clone()))
    gradients(model)
    hidden = [tensor for tensor in moved if tensor.numel()]  # checkpoint keeps an empty one besides
    assert [tuple(tensor.shape) for tensor in hidden] == [(2, 16, 32)] * 2
    assert all(torch.equal(mine, other) for mine, other in zip(hidden, entered, strict=True))


def test_more_layers_than_there_are_is_refused(saved: Path) -> None:
    """A plan of another model."""
    with pytest.raises(train.Refused, match="5 layers, the model has 3"):
        train.build_model(plan(checkpointing={"layers": 5, "of": 5, "on_host": False}), str(saved))


@pytest.mark.parametrize(("key", "value"), [("hidden_size", 64), ("num_hidden_layers", 4), ("num_attention_heads", 8)])
def test_another_model_is_refused(saved: Path, key: str, value: int) -> None:
    """Sizes decide memory and time; vocabularies may be padded."""
    with pytest.raises(train.Refused, match=rf"{key} is {CONFIG[key]}, the plan's is {value}; plan again with --model"):
        train.build_model(plan({**CONFIG, key: value}), str(saved))
    train.check_model(plan({**CONFIG, "vocab_size": 128, "max_position_embeddings": 9}), str(saved))


def test_no_such_model_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a folder nor something the hub has."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(train.Refused, match="cannot be loaded") as refusal:
        train.build_model(plan(), str(tmp_path / "nowhere"))
    assert "\n" not in str(refusal.value)


def test_code_that_comes_with_a_model_is_not_run(saved: Path, tmp_path: Path) -> None:
    """A folder that asks for its own code is refused before that code is read."""
    for path in saved.glob("*.safetensors"):
        (tmp_path / path.name).symlink_to(path)
    asks = {**CONFIG, "model_type": "own", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.M"}}
    (tmp_path / "config.json").write_text(json.dumps(asks))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    with pytest.raises(train.Refused, match="cannot be loaded"):
        train.build_model(plan(), str(tmp_path))
    assert not (tmp_path / "run").exists()
