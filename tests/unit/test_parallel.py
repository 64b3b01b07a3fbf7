"""planner/parallel.py: one rank's share of a model, by hand."""

from __future__ import annotations

import pytest
from trainplan.planner.model import Model, ParameterKind
from trainplan.planner.models import load_model
from trainplan.planner.parallel import WHOLE, Split, micro_batches_in_flight, problems, stage

from ..tiny import llama

H, F, V, HEADS, L = 256, 688, 2048, 8, 4  # tests/tiny.py; 4 key-value heads of 32
KV = H // 2


def whole_layer() -> int:
    """q, o; k, v; gate, up, down; two norms."""
    return 2 * H * H + 2 * H * KV + 3 * H * F + 2 * H


def test_nothing_cut_is_the_model() -> None:
    """One rank holds the model itself; context parallelism cuts tokens, not weights."""
    model = llama()
    assert stage(model, WHOLE, 0) is model
    assert stage(model, Split(context=4), 0) is model
    assert model.parameter_count == L * whole_layer() + 2 * V * H + H


def test_tensor_parallel_share() -> None:
    """Heads, MLP width and vocabulary are cut by t; norms are whole on every rank."""
    share = stage(llama(), Split(tensor=2), 0)
    layer = (2 * H * H + 2 * H * KV + 3 * H * F) // 2 + 2 * H
    assert [block.numel for block in share.blocks] == [layer] * L
    assert share.parameter_count == L * layer + 2 * (V // 2) * H + H
    assert share.vocab == V // 2
    attention, mlp = share.blocks[0].attention, share.blocks[0].mlp
    assert attention is not None
    assert mlp is not None
    assert (attention.heads, attention.kv_heads, mlp.intermediate) == (HEADS // 2, 2, F // 2)


def test_shapes_by_columns_and_by_rows() -> None:
    """What leads into heads or MLP features is cut by columns (fan-out), what leads back by rows (fan-in)."""
    shapes = {p.name.split(".")[-2]: p.shape for p in stage(llama(), Split(tensor=2), 0).blocks[0].parameters}
    assert shapes["q_proj"] == (H // 2, H)
    assert shapes["k_proj"] == (KV // 2, H)
    assert shapes["o_proj"] == (H, H // 2)
    assert (shapes["gate_proj"], shapes["down_proj"]) == ((F // 2, H), (H, F // 2))


def test_key_value_heads_are_copied() -> None:
    """A rank has one key-value head where there are fewer than ranks."""
    attention = stage(llama(), Split(tensor=8), 0).blocks[0].attention
    assert attention is not None
    assert (attention.heads, attention.kv_heads) == (1, 1)


def test_sizes_that_do_not_divide_are_rounded_up() -> None:
    """Every rank is as large as the largest."""
    share = stage(llama(vocab=2049), Split(tensor=2), 0)
    assert share.vocab == 1152  # 1025 rows, to whole 128s
    assert share.embedding[0].shape == (1152, H)


def test_pipeline_shares() -> None:
    """The first stage has the embedding, the last one norm and head, each its layers."""
    first, last = (stage(llama(), Split(pipeline=2), i) for i in (0, 1))
    assert (first.layers, last.layers) == (2, 2)
    assert first.parameter_count == 2 * whole_layer() + V * H
    assert last.parameter_count == 2 * whole_layer() + V * H + H
    middle = stage(llama(), Split(pipeline=4), 1)
    assert middle.parameter_count == whole_layer()


def test_a_tied_embedding_is_on_both_ends() -> None:
    """The last stage needs the table as its head: two copies in all, neither of them shared within its stage."""
    tied = llama(tied=True)
    first, last = (stage(tied, Split(pipeline=2), i) for i in (0, 1))
    assert first.parameter_count == 2 * whole_layer() + V * H
    assert last.parameter_count == 2 * whole_layer() + V * H + H
    assert not first.tied
    assert not last.tied
    assert stage(tied, Split(tensor=2), 0).tied


def test_tensor_and_pipeline_together() -> None:
    """t = 2, p = 2: half of each matrix of half of the layers, and half of the table."""
    share = stage(llama(), Split(tensor=2, pipeline=2), 1)
    layer = (2 * H * H + 2 * H * KV + 3 * H * F) // 2 + 2 * H
    assert share.parameter_count == 2 * layer + (V // 2) * H + H


def test_layers_that_do_not_divide() -> None:
    """Embedding and head count as a layer each: the ends hold one less of L + 2 evenly spread."""
    split = Split(pipeline=3)
    assert [stage(llama(), split, i).layers for i in range(3)] == [1, 2, 1]
    assert [stage(llama(layers=5), split, i).layers for i in range(3)] == [1, 3, 1]
    assert [stage(llama(layers=6), split, i).layers for i in range(3)] == [2, 2, 2]


def experts(model: Model) -> int:
    """Elements of stacked experts."""
    return sum(p.numel for p in model.parameters if p.kind is ParameterKind.EXPERTS)


def test_expert_parallel_share() -> None:
    """Each of x ranks has 1/x of the experts; the router and attention are whole."""
    whole = load_model("Mixtral-8x7B")
    share = stage(whole, Split(expert=4), 0)
    assert experts(share) == experts(whole) // 4
    assert share.parameter_count - experts(share) == whole.parameter_count - experts(whole)


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (Split(tensor=3), ["3 tensor-parallel ranks do not divide 8 heads"]),
        (Split(pipeline=5), ["5 pipeline stages for 4 layers"]),
        (Split(tensor=3, pipeline=5), ["3 tensor", "5 pipeline"]),
        (Split(tensor=8, pipeline=4), []),
    ],
)
def test_what_cannot_be_cut(split: Split, words: list[str]) -> None:
    """Ranks that do not divide heads, and stages without layers."""
    found = problems(llama(), split)
    assert len(found) == len(words)
    assert all(text.startswith(word) for text, word in zip(found, words, strict=True))


def test_experts_that_cannot_be_cut() -> None:
    """Ranks that do not divide the experts."""
    assert problems(load_model("Mixtral-8x7B"), Split(expert=3)) == ["3 expert-parallel ranks do not divide 8 experts"]


def test_ranks_of_a_copy() -> None:
    """t p c; expert parallelism re-uses data-parallel ranks."""
    assert Split(tensor=2, pipeline=3, context=4, expert=8).ranks == 24


@pytest.mark.parametrize(
    ("split", "index", "micro_batches", "expected"),
    [
        (Split(pipeline=4), 0, 16, 4),  # 1F1B: the first stage waits for all others
        (Split(pipeline=4), 3, 16, 1),  # the last one for nobody
        (Split(pipeline=4), 0, 2, 2),  # no more than there are
        (Split(pipeline=4, virtual=3), 0, 16, 4 + 3 / 3),  # interleaved: p + (p - 1) / v
        (Split(pipeline=4, virtual=3), 0, 4, 4),
        (Split(), 0, 16, 1),
    ],
)
def test_micro_batches_in_flight(split: Split, index: int, micro_batches: int, expected: float) -> None:
    """Narayanan et al. 2021 §2.2; Korthikanti et al. 2022 §4.2.3."""
    assert micro_batches_in_flight(split, index, micro_batches) == expected
