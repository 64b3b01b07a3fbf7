"""The training script's chunked loss beside transformers' own: value and every gradient, in every kind of head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from trainplan.planner.job import train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.oracle

SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "vocab_size": 101,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2: Mapping[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 101, "n_positions": 64}
HEADS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "free": ("llama", SIZES),
    "tied": ("llama", {**SIZES, "tie_word_embeddings": True}),
    "capped": ("gemma2", {**SIZES, "head_dim": 8, "final_logit_softcapping": 0.5}),
    "biased": ("gptj", {**GPT2, "rotary_dim": 4}),
    "conv1d": ("gpt2", GPT2),
    "recurrent": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 101, "state_size": 8}),
}
# fp32: sums in another order; bf16 keeps 8 bits, and gradients of the head are rounded once a chunk
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03}


def model_of(head: str, dtype: str) -> Any:
    """A seeded model of two layers."""
    family, sizes = HEADS[head]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    for parameter in model.parameters():
        parameter.data.mul_(3)  # logits that are far from equal
    model.config.use_cache = False
    return model.eval()


def gradients(model: Any, labels: Any, ids: Any) -> tuple[float, Mapping[str, Any]]:
    """Loss, scaled as accumulation scales it, and every gradient."""
    loss = model(input_ids=ids, labels=labels).loss * 0.25
    loss.backward()
    return float(loss.detach()), {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("head", HEADS)
def test_the_chunked_loss_is_transformers_loss(head: str, dtype: str) -> None:
    """Chunks that do not divide the tokens, ignored labels, tied, biased and soft-capped heads."""
    ids = torch.randint(0, 101, (3, 17), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, 5:] = labels[2, :3] = train.IGNORED
    expected, expected_gradients = gradients(model_of(head, dtype), labels, ids)
    chunked = model_of(head, dtype)
    train.chunk_loss(chunked, 7)
    loss, found = gradients(chunked, labels, ids)
    assert loss == pytest.approx(expected, rel=TOLERANCE[dtype] / 10)
    assert found.keys() == expected_gradients.keys()
    for name, gradient in found.items():
        size = float(expected_gradients[name].norm())
        assert float((gradient - expected_gradients[name]).norm()) <= TOLERANCE[dtype] * size, name


def test_softmax_is_taken_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are held in fp32 at once, loss and gradient are the same."""
    scores = torch.randn(10, 101, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(10)
    results = []
    for rows in (128, 3):
        monkeypatch.setattr(train, "SOFTMAX_ROWS", rows)
        gradient = scores.clone()
        loss = train.loss_and_gradient(gradient, labels, torch.tensor(0.5), None)
        results.append((float(loss), gradient))
    assert results[0][0] == pytest.approx(results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_frozen_head_gets_no_gradient() -> None:
    """Under adapters the head is not trained, and nothing is made for it."""
    ids = torch.randint(0, 101, (2, 9), generator=torch.Generator().manual_seed(1))
    model = model_of("free", "float32")
    model.requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    train.chunk_loss(model, 4)
    _, found = gradients(model, ids, ids)
    assert found.keys() == {"model.norm.weight"}
