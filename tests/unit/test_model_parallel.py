"""strategies/model_parallel.py, planner/parallel.py, planner/time/pipeline.py: what ranks of a cut model exchange."""

from __future__ import annotations

from collections import Counter

import pytest
import trainplan
from trainplan.planner.catalog import find_offers
from trainplan.planner.checkpoint import checkpoint
from trainplan.planner.errors import InputError
from trainplan.planner.evaluate import evaluate
from trainplan.planner.ledger import Certainty, Item, Ledger
from trainplan.planner.models import load_model
from trainplan.planner.parallel import WHOLE, Split, places
from trainplan.planner.report.words import batch
from trainplan.planner.time import StepTime, pipelined
from trainplan.planner.transform import Setting, Stack
from trainplan.planner.work import Group, Resource, When
from trainplan.planner.workload import Workload
from trainplan.strategies.checkpointing import Checkpointing
from trainplan.strategies.model_parallel import ModelParallel, check_split, crossing_share, cut
from trainplan.strategies.optimizer import Optimizer
from trainplan.strategies.zero import Zero

from ..tiny import llama

SEQ, MICRO, HIDDEN, LAYERS, E = 64, 2, 256, 4, 2  # tests/tiny.py; bf16
WHOLE_BYTES = SEQ * MICRO * HIDDEN * E  # of one activation of the hidden size


def setting(split: Split, *, nodes: int = 1, batch: int = 16, model: object = None, stage: int = 0) -> Setting:
    """Nodes of eight GPUs."""
    workload = Workload(model=model or llama(), tokens=10**6, seq_len=SEQ, global_batch=batch)  # type: ignore[arg-type]
    return Setting(workload=workload, nodes=nodes, ranks_per_node=8, micro_batch=MICRO, split=split, stage_index=stage)


def ledger(split: Split, *more: object, **options: object) -> Ledger:
    """AdamW at stage 1, cut."""
    here = setting(split, **options)  # type: ignore[arg-type]
    return evaluate(Stack.of(Optimizer("adamw"), Zero(1), ModelParallel(split), *more), here)  # type: ignore[arg-type]


def exchanged(found: Ledger, group: Group) -> dict[tuple[str, str], float]:
    """Bytes by resource and part, of one group."""
    total: Counter[tuple[str, str]] = Counter()
    for work in found.work:
        if work.group is group:
            total[work.resource.value, work.when.value] += work.amount  # type: ignore[assignment]
    return dict(total)


def test_groups_lie_side_by_side() -> None:
    """64 GPUs, tensor 4, pipeline 2, data 8: tensor ranks in a node, every fourth GPU a copy, stages 32 GPUs apart."""
    where = places(Split(tensor=4, pipeline=2), 8, 8)
    assert where[Group.TENSOR] == (1, 4)
    assert where[Group.DATA] == (4, 2)
    assert where[Group.PIPELINE] == (2, 1)
    assert places(WHOLE, 16, 8)[Group.DATA] == (2, 8)


def test_tensor_parallel_all_reduces() -> None:
    """Two all-reduces of T h e a layer forward, two backward; recomputation repeats the forward ones."""
    each = 2 * LAYERS * WHOLE_BYTES
    plain = exchanged(ledger(Split(tensor=2)), Group.TENSOR)
    assert plain == {("all-reduce", "forward"): each, ("all-reduce", "backward"): each}
    again = exchanged(ledger(Split(tensor=2), Checkpointing(LAYERS)), Group.TENSOR)
    assert again[("all-reduce", "backward")] == 2 * each


def test_sequence_parallelism_gathers_inputs_again() -> None:
    """All-gather and reduce-scatter forward; backward the same, and the inputs once more for the weights' gradients."""
    each = 2 * LAYERS * WHOLE_BYTES
    found = exchanged(ledger(Split(tensor=2, sequence=True)), Group.TENSOR)
    assert found == {
        ("all-gather", "forward"): each,
        ("reduce-scatter", "forward"): each,
        ("all-gather", "backward"): 2 * each,
        ("reduce-scatter", "backward"): each,
    }


def test_context_parallelism_passes_keys_and_values() -> None:
    """Of each other rank: 2 x 4 heads of 32 x the rank's tokens a layer forward, twice that backward."""
    pair = (SEQ // 2) * MICRO * 4 * 32 * 2 * E
    found = exchanged(ledger(Split(context=2)), Group.CONTEXT)
    assert found == {("send", "forward"): pair * LAYERS, ("send", "backward"): 2 * pair * LAYERS}


def test_experts_exchange_routed_tokens() -> None:
    """There and back, forward and backward, each token as often as it has experts."""
    model = load_model("mixtral-8x7b")
    layers = sum(1 for block in model.blocks if block.mlp is not None and block.mlp.experts)
    per_token = next(b.mlp.experts_per_token for b in model.blocks if b.mlp is not None)
    each = 2 * layers * SEQ * MICRO * model.hidden * E * per_token
    found = exchanged(ledger(Split(expert=2), model=model), Group.EXPERT)
    assert found == {("all-to-all", "forward"): each, ("all-to-all", "backward"): each}


def test_a_token_crosses_to_a_node_once() -> None:
    """Of 8 experts on 2 nodes one copy crosses where evenly spread ones would send four on average."""
    assert crossing_share(8, 1) == 1.0
    assert crossing_share(8, 2) * 8 == pytest.approx(2 * (1 - 0.5**8))
    assert crossing_share(1, 4) == pytest.approx(1.0)  # one expert, one copy


def test_pipelines_send_and_wait() -> None:
    """One send each way and micro-batch, v of them with v chunks; the first stage holds p micro-batches."""
    found = ledger(Split(pipeline=2))
    assert exchanged(found, Group.PIPELINE) == {("send", "forward"): WHOLE_BYTES, ("send", "backward"): WHOLE_BYTES}
    chunks = exchanged(ledger(Split(pipeline=2, virtual=2)), Group.PIPELINE)
    assert chunks[("send", "forward")] == 2 * WHOLE_BYTES
    assert found.bytes_of(Item.WAITING) == found.bytes_of(Item.SAVED)  # one beside the own
    last = ledger(Split(pipeline=2), stage=1)
    assert last.bytes_of(Item.WAITING) == 0


def test_a_setting_counts_its_ranks() -> None:
    """32 GPUs, tensor 2, pipeline 2, context 2: 4 copies, states cut over 8 ranks; 16 sequences make 2 micro-steps."""
    here = setting(Split(tensor=2, pipeline=2, context=2), nodes=4)
    assert (here.gpus, here.data_parallel, here.world_size) == (32, 4, 8)
    assert here.gradient_accumulation_steps == 2
    assert here.seq_len == SEQ // 2
    assert [each.stage_index for each in here.stages] == [0, 1]


def stage(forward: float, backward: float, micro_batches: int = 8) -> StepTime:
    """A stage alone."""
    return StepTime(
        forward_s=forward, backward_s=backward, gradient_accumulation_steps=micro_batches, boundary_s=0.5, terms=()
    )


def test_the_slowest_stage_sets_the_pace() -> None:
    """8 x 4 s of the last stage, then the three others once, half of that with two chunks, and what happens once."""
    stages = [stage(1, 2), stage(1, 2), stage(1, 3)]
    assert pipelined(stages, Split(pipeline=4)).step_s == pytest.approx(8 * 4 + 3 * 3 + 0.5)
    assert pipelined(stages, Split(pipeline=4, virtual=2)).step_s == pytest.approx(8 * 4 + 3 * 3 / 2 + 0.5)
    assert pipelined([stage(1, 2)], WHOLE).step_s == pytest.approx(8 * 3 + 0.5)


def test_an_estimate_of_a_cut_model() -> None:
    """Terms add up to the step, memory is a share, the batch is counted by copies; no configuration is emitted."""
    found = trainplan.estimate(
        "llama-3-70b", gpus="64xh100", zero=1, tensor_parallel=4, pipeline_parallel=4, pipeline_chunks=5,
        sequence_parallel=True, global_batch=128,
    )  # fmt: skip
    step = found.candidate.time
    assert sum(term.exposed_s for term in step.terms) == pytest.approx(step.step_s)
    assert found.candidate.gpus == 64
    assert found.candidate.setting.gradient_accumulation_steps == 32
    assert found.to_dict()["ds_config"] is None
    with pytest.raises(InputError, match="planned, not emitted"):
        _ = found.ds_config
    whole = trainplan.estimate("llama-3-70b", gpus="64xh100", zero=1, global_batch=128)
    assert found.candidate.gpu.allocated_bytes < whole.candidate.gpu.allocated_bytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor_parallel": 3}, "3 tensor-parallel ranks do not divide 64 heads"),
        ({"pipeline_parallel": 3}, "not a multiple of 3 ranks"),
        ({"pipeline_chunks": 2}, "chunks without a pipeline"),
        ({"sequence_parallel": True}, "sequence parallelism without tensor parallelism"),
        ({"expert_parallel": 2}, "for a model without experts"),
        ({"tensor_parallel": 0}, "--tensor-parallel: out of range, got 0"),
        ({"pipeline_parallel": 4, "zero": 2}, "PipelineEngine"),
    ],
)
def test_what_cannot_be_cut_is_one_line(options: dict[str, object], message: str) -> None:
    """Where, what is wrong, what is allowed."""
    with pytest.raises(InputError, match=message) as caught:
        trainplan.estimate("llama-3-70b", gpus="64xh100", **({"zero": 1} | options), global_batch=128)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_experts_are_spread_over_data_parallel_ranks() -> None:
    """Eight ranks of 128 experts need a multiple of eight copies."""
    model = load_model("qwen3-30b-a3b")
    check_split(model, Split(expert=8), 4096, 16)
    with pytest.raises(InputError, match="8 expert-parallel ranks do not divide 4 data-parallel ones"):
        check_split(model, Split(expert=8), 4096, 4)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("experts", [1, 2, 8])
def test_spread_experts_are_shared_by_fewer_ranks(stage: int, experts: int) -> None:
    """All ranks' master copies are one of the whole model: its 12 B a parameter neither shrink nor grow."""
    found = trainplan.estimate(
        "mixtral-8x7b", gpus="16xh100", zero=stage, expert_parallel=experts, checkpointing="full"
    )
    held = found.candidate.ledger.bytes_of(Item.MASTER) * 16
    assert held == pytest.approx(4 * load_model("mixtral-8x7b").parameter_count, rel=1e-4)
    assert found.candidate.ledger.bytes_of(Item.MOMENTS) * 16 == pytest.approx(2 * held, rel=1e-6)


def test_experts_of_one_replica_are_not_cut() -> None:
    """Eight experts over eight ranks: each keeps the optimizer states of its own whole."""
    model = load_model("mixtral-8x7b")
    cut_up = trainplan.estimate("mixtral-8x7b", gpus="8xh100", zero=1, expert_parallel=8).candidate.ledger.trainable
    experts = model.parameter_count - 8 * sum(cut_up.experts)  # attention, norms, router, embeddings
    assert sum(cut_up.numels) == experts
    assert [ranks for _, ranks in cut_up.groups(8)] == [8, 1]


@pytest.mark.parametrize(
    "split",
    [
        {}, {"tensor_parallel": 4}, {"pipeline_parallel": 4}, {"tensor_parallel": 4, "pipeline_parallel": 8},
        {"tensor_parallel": 8, "context_parallel": 2},
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_is_of_the_whole_model_however_it_is_cut(split: dict[str, int]) -> None:
    """16-bit weights twice, fp32 master and moments once: 16 B a parameter."""
    found = trainplan.estimate("llama-3-70b", gpus="64xh100", zero=1, checkpointing="full", **split)  # type: ignore[arg-type]
    saved = checkpoint(found.candidate.ledger, found.candidate.setting)
    assert saved.total_bytes == pytest.approx(16 * load_model("llama-3-70b").parameter_count, rel=1e-3)


def test_no_line_of_a_cut_model_is_called_exact() -> None:
    """No engine was walked that is cut: its states are assumed, and so is their margin."""
    for split in ({"tensor_parallel": 8}, {"pipeline_parallel": 4}):
        lines = trainplan.estimate("llama-3-70b", gpus="64xh100", zero=1, **split).candidate.ledger.entries  # type: ignore[arg-type]
        assert {e.certainty for e in lines if e.item in (Item.MASTER, Item.MOMENTS, Item.WEIGHTS)} == {
            Certainty.ASSUMED
        }
        assert Certainty.EXACT not in {e.certainty for e in lines}


def test_the_batch_counts_copies() -> None:
    """64 GPUs in copies of 32 are two data-parallel ranks; a global batch need not divide by all GPUs."""
    found = trainplan.estimate("llama-3-70b", gpus="64xh100", zero=1, tensor_parallel=8, pipeline_parallel=4)
    d = found.to_dict()["configuration"]
    assert batch(d) == "256 sequences per step = micro-batch 1 x accumulation 128 x 2 data-parallel ranks"
    assert trainplan.estimate("llama-3-70b", gpus="64xh100", zero=1, tensor_parallel=8, global_batch=8)


def test_a_cut_says_all_its_sizes() -> None:
    """Chunks and sequence parallelism change the step, so the name has them."""
    assert ModelParallel(Split(tensor=8, sequence=True, pipeline=4, virtual=5)).name == "tensor-8-sequence-pipeline-4x5"
    with pytest.raises(InputError, match="2 stages of 3 chunks do not divide 32 layers"):
        check_split(load_model("llama-3-8b"), Split(pipeline=2, virtual=3), 4096, 16)


def test_nothing_cut_changes_nothing() -> None:
    """The stack of a whole model is the very same."""
    stack, node = Stack.of(Zero(1)), find_offers("aws/p5.48xlarge")[0].node
    assert cut(stack, setting(WHOLE), node) is stack
    names = {work.resource for work in evaluate(Stack.of(Optimizer("adamw"), Zero(1)), setting(WHOLE)).work}
    assert Resource.SEND not in names
    assert When.STEP in set(When)
