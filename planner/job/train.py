"""Train as plan.json says: the model it names, the strategies it chose, the steps it priced.

    torchrun --nproc-per-node 8 train.py --data corpus.jsonl

plan.json lies beside this file. The job goes on from its newest checkpoint by itself; start it again with the same
command after a failure, a spot notice or a kill. Needs Python 3.11, torch, transformers, deepspeed, datasets; peft and
bitsandbytes where planned. Exit codes: 0 done, 2 wrong input (one line), 75 stopped by SIGTERM and saved.

    read_plan, check_plan, check_world    plan.json is checked before anything heavy is loaded
    build_model, checkpoint_layers        precision, quantisation, adapters, recomputation, chunked loss
    Stream                                documents to batches; its position is part of every checkpoint
    start_engine, optimizer_step          DeepSpeed
    Checkpoints                           written beside, made valid by one rename
    Log, promise                          what was measured, and beside it what was planned
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import chdir
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from statistics import mean
from typing import Any, NoReturn

Plan = Mapping[str, Any]
Batch = dict[str, Any]  # input_ids, labels and, where sequences are padded, attention_mask: (sequences, tokens)

SCHEMA_VERSION = 1
LARGEST_PLAN_BYTES = 8 * 2**20
REFUSED, STOPPED = 2, 75  # exit codes; 75 is sysexits.h EX_TEMPFAIL: start again
IGNORED = -100  # label of a token that is not predicted: transformers, torch cross_entropy
WARM_UP_STEPS, PROMISE_STEPS = 3, 5  # ZeRO-3 prefetches from its third step on
VOTE_S = 10.0  # seconds between two looks at whether a rank was told to stop
PRINT_EVERY = 10  # steps
SHORTEST_SECRET = 6  # characters; a shorter value would blot out words
SOFTMAX_ROWS = 128  # tokens whose probabilities are held in fp32 at once
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
MEMORIES = ("allocated", "reserved", "device")  # by tensors, by the allocator, by the driver
GIB = 2**30


class Refused(Exception):
    """The user's file or flag is wrong: where, what, what was given, what to do. One line, exit 2."""


class RefusedHere(Refused):
    """Wrong on this rank alone, which says so itself."""


# --- plan.json: untrusted, checked before anything heavy is loaded ----------------------------------------------------

NUMBER = (int, float)
FIELDS: Sequence[tuple[Any, str]] = (  # what is read below, by type; "?": may be null
    (int, "decision.gpus decision.zero_stage decision.micro_batch decision.gradient_accumulation_steps"),
    (int, "decision.data_parallel_world_size?"),
    (int, "training.seq_len training.global_batch training.steps training.save_every_steps"),
    (int, "training.loss_chunk_tokens training.checkpointing.layers adapters?.rank adapters?.alpha"),
    (str, "decision.gpu training.model? training.precision training.attn_implementation"),
    (str, "training.optimizer.name training.optimizer.from training.quantization?.quant_type"),
    (str, "training.quantization?.compute_dtype training.quantization?.storage_dtype"),
    (bool, "training.packed training.zero_init training.checkpointing.on_host training.liger training.compile"),
    (bool, "training.quantization?.double_quant"),
    ((str, list), "adapters?.target_modules"),
    (dict, "model.config ds_config training.versions"),
    (NUMBER, "adapters?.dropout time.step_s time.step_s_low? time.step_s_upper?"),
    *((NUMBER, f"memory.gpu.{name}_bytes memory.gpu.ranges?.{name}?.low_bytes?") for name in MEMORIES),
    *((NUMBER, f"memory.gpu.ranges?.{name}?.upper_bytes?") for name in MEMORIES),
)
# keys of config.json that set what a model costs; vocabularies are padded differently, so they may differ
SIZES = re.compile(r"(?!vocab).*(size|layers?|heads?|experts|dim|rank|n_embd|n_inner|d_model|d_ff)")
ALLOWED: Mapping[str, Sequence[str]] = {"precision": tuple(DTYPES), "attn_implementation": ("sdpa", "eager")}


def read_plan(path: Path) -> Plan:
    """plan.json, its fields of the types they should have and in agreement with each other."""
    try:
        if path.stat().st_size > LARGEST_PLAN_BYTES:
            raise Refused(f"{path}: larger than {LARGEST_PLAN_BYTES >> 20} MiB, so no plan.json of trainplan")
        plan = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"{path}: cannot be read, {error.strerror}; give a plan.json with --plan") from error
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path}: not JSON, {error}; plan again") from error
    try:
        check_plan(plan)
    except Refused as error:
        raise Refused(f"{path}: {error}") from error
    return plan  # type: ignore[no-any-return]  # reason: check_plan has looked


def check_plan(plan: Any) -> None:
    """Version, status, types, and whether the parts of the plan agree."""
    if not isinstance(plan, dict) or plan.get("schema_version") != SCHEMA_VERSION:
        version = plan.get("schema_version") if isinstance(plan, dict) else None
        raise Refused(f"schema_version is {version!r}; this train.py reads {SCHEMA_VERSION}; emit the job again")
    if plan.get("status") != "planned":
        raise Refused(f"status is {plan.get('status')!r}, not 'planned': there is nothing to train")
    for kind, names in FIELDS:
        for name in names.split():
            _check_field(plan, name, kind)
    for where, keys in ((plan, ("adapters",)), (plan["training"], ("model", "quantization"))):
        for key in keys:
            if key not in where:
                raise Refused(f"{key}: is missing, null where there is none; plan again")
    _check_values(plan)
    _check_agreement(plan)


def _check_field(plan: Plan, name: str, kind: Any) -> None:
    value: Any = plan
    for key in name.split("."):
        value = value.get(key.rstrip("?")) if isinstance(value, dict) else None
        if value is None and key.endswith("?"):
            return
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise Refused(f"{name.replace('?', '')}: must be {words}, got {str(value)[:80]!r}; plan again")


def _check_values(plan: Plan) -> None:
    decision, training = plan["decision"], plan["training"]
    for key, values in ALLOWED.items():
        if training[key] not in values:
            raise Refused(f"training.{key}: must be one of {', '.join(values)}, got {training[key]!r}; plan again")
    for key in ("seq_len", "global_batch", "steps", "save_every_steps"):
        if training[key] < 1:
            raise Refused(f"training.{key}: must be 1 or more, got {training[key]}; plan again")
    for key in ("gpus", "micro_batch", "gradient_accumulation_steps"):
        if decision[key] < 1:
            raise Refused(f"decision.{key}: must be 1 or more, got {decision[key]}; plan again")
    least = min(training["loss_chunk_tokens"], training["checkpointing"]["layers"])
    if least < 0:
        raise Refused(
            f"training: chunks of the loss and checkpointed layers must be 0 or more, got {least}; plan again"
        )


def _check_agreement(plan: Plan) -> None:
    """The ds_config is the decision's: a plan edited in one place only would train something else."""
    decision, training, config = plan["decision"], plan["training"], plan["ds_config"]
    micro, accumulation = decision["micro_batch"], decision["gradient_accumulation_steps"]
    enabled = [kind for kind in ("bf16", "fp16") if _section(config, kind).get("enabled")] or ["fp32"]
    stage = _section(config, "zero_optimization").get("stage")
    maker = "ds_config" if "optimizer" in config else "script"
    for name, written, decided in (
        ("ds_config.zero_optimization.stage", stage, decision["zero_stage"]),
        ("ds_config.train_micro_batch_size_per_gpu", config.get("train_micro_batch_size_per_gpu"), micro),
        ("ds_config.gradient_accumulation_steps", config.get("gradient_accumulation_steps"), accumulation),
        ("ds_config.train_batch_size", config.get("train_batch_size"), training["global_batch"]),
        ("micro-batch x accumulation x ranks", micro * accumulation * ranks_of(plan), training["global_batch"]),
        ("precision of ds_config", " and ".join(enabled), training["precision"]),
        ("optimizer of ds_config", maker, training["optimizer"]["from"]),
    ):
        if written != decided:
            raise Refused(f"{name} is {written}, the rest of the plan says {decided}; plan again")


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def ranks_of(plan: Plan) -> int:
    """Data-parallel processes that the plan was made for."""
    return int(plan["decision"].get("data_parallel_world_size") or plan["decision"]["gpus"])


def check_world(plan: Plan, world_size: int) -> None:
    """Refuse another number of processes: the batch, the memory and the time of the plan would be others."""
    decision, ranks = plan["decision"], ranks_of(plan)
    if world_size != ranks:
        raise Refused(
            f"global batch {plan['training']['global_batch']} = micro-batch {decision['micro_batch']} x accumulation "
            f"{decision['gradient_accumulation_steps']} x {ranks} ranks; this job has {world_size} ranks; start {ranks}"
            f", or plan again with --gpus {world_size}x{decision['gpu']}"
        )


def check_config_file(plan: Plan, folder: Path) -> None:
    """ds_config.json beside the plan is not read, so an edited one must not look as if it were."""
    path = folder / "ds_config.json"
    try:
        same = not path.exists() or json.loads(path.read_text(encoding="utf-8")) == plan["ds_config"]
    except (OSError, ValueError, RecursionError):
        same = False
    if not same:
        raise Refused(f"{path}: differs from ds_config in plan.json, which is what trains; plan again, or remove it")


def version_warnings(plan: Plan) -> list[str]:
    """Packages of another version than the plan was made for; one that lacks is missed where it is imported."""
    both = {package: (version(package), planned) for package, planned in plan["training"]["versions"].items()}
    return [
        f"warning: {package} {installed} is installed, the plan was made for {planned}: its figures may be off"
        for package, (installed, planned) in both.items()
        if installed not in (None, planned)
    ]


def version(package: str) -> str | None:
    """Of an installed package, less the build's name: 2.13.0+cu130 is 2.13.0."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


# --- the model --------------------------------------------------------------------------------------------------------


def build_model(plan: Plan, path: str, *, seed: int = 0) -> Any:
    """The model at ``path`` in the planned precision, with adapters, recomputation, loss and kernels as planned.

    Raises:
        Refused: there is no such model, or it is not the planned one.
    """
    training = plan["training"]
    check_model(plan, path)
    if training["liger"]:
        use_liger(plan)
    model = load_model(plan, path)
    model.config.use_cache = False
    if training["loss_chunk_tokens"]:
        chunk_loss(model, training["loss_chunk_tokens"])
    if plan["adapters"]:
        model = adapt(model, plan["adapters"], seed)
    checkpoint_layers(model, plan)
    if training["compile"]:
        for layer in decoder_layers(model):
            layer.compile()
    return model.train()  # from_pretrained leaves it in eval mode, in which nothing is recomputed


def load_model(plan: Plan, path: str) -> Any:
    """Weights from a folder or the hub, for ZeRO-3 straight into partitions where the plan says so."""
    import torch
    import transformers  # before zero.Init: an import inside it breaks torch.dynamo
    from transformers.integrations import HfDeepSpeedConfig

    training = plan["training"]
    in_partitions = plan["decision"]["zero_stage"] == 3 and training["zero_init"]
    partitioning = HfDeepSpeedConfig(dict(plan["ds_config"])) if in_partitions else None
    model = loaded(
        transformers.AutoModelForCausalLM.from_pretrained,
        f"--model {path}",
        path,
        dtype=getattr(torch, DTYPES[training["precision"]]),
        attn_implementation=training["attn_implementation"],
        **(quantization(plan) if training["quantization"] else {}),
    )
    del partitioning  # transformers knows it through a weak reference: it had to live until here
    return model


def loaded(load: Callable[..., Any], flag: str, path: str, **options: Any) -> Any:
    """What ``from_pretrained`` makes of a folder or a hub id; code that came with it is never run."""
    try:
        return load(path, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise Refused(f"{flag}: cannot be loaded, {first_line(error)}; give a folder or a hub id") from error


def check_model(plan: Plan, path: str) -> None:
    """The model must have the planned sizes, or the plan's memory and time are another model's."""
    import transformers

    config = loaded(transformers.AutoConfig.from_pretrained, f"--model {path}", path).get_text_config()
    for key, planned in text_config(plan).items():
        found = getattr(config, key, planned)
        if isinstance(planned, int) and SIZES.fullmatch(key) and found != planned:
            raise Refused(f"--model {path}: {key} is {found}, the plan's is {planned}; plan again with --model {path}")


def text_config(plan: Plan) -> Mapping[str, Any]:
    """The planned model's keys of config.json; of a multimodal one its text part's."""
    config = plan["model"]["config"]
    inner = config.get("text_config")
    return {"model_type": f"{config.get('model_type')}_text", **inner} if isinstance(inner, dict) else config


def new_model(plan: Plan, folder: Path, *, seed: int, vocabulary: int) -> str:
    """A randomly initialised model in ``folder``: the same weights however the job is laid out.

    Rank 0 draws them on its CPU and saves them; all ranks then load them as they would load any model.
    """
    import torch
    import transformers

    known = {k: v for k, v in text_config(plan).items() if k not in ("auto_map", "dtype", "torch_dtype")}
    config = transformers.AutoConfig.for_model(**known)
    if vocabulary > config.vocab_size:
        raise Refused(f"--tokenizer: has {vocabulary} tokens, the planned model {config.vocab_size}; plan a larger one")
    if rank() == 0 and not (folder / "config.json").exists():
        torch.manual_seed(seed)
        dtype = getattr(torch, DTYPES[plan["training"]["precision"]])
        write_folder(folder, transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained)
    barrier()
    return str(folder)


def quantization(plan: Plan) -> dict[str, Any]:
    """bitsandbytes' 4-bit weights, made on this rank's device; stored in a float type, so that ZeRO-3 can cut them."""
    import torch
    from transformers import BitsAndBytesConfig

    planned = plan["training"]["quantization"]
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=planned["quant_type"],
        bnb_4bit_use_double_quant=planned["double_quant"],
        bnb_4bit_compute_dtype=getattr(torch, DTYPES[planned["compute_dtype"]]),
        bnb_4bit_quant_storage=getattr(torch, DTYPES[planned["storage_dtype"]]),
    )
    return {"quantization_config": bits, "device_map": {"": local_device()}}


def adapt(model: Any, adapters: Mapping[str, Any], seed: int) -> Any:
    """The model with LoRA adapters in its own precision, its base frozen."""
    import peft
    import torch

    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=adapters["rank"],
        lora_alpha=adapters["alpha"],
        lora_dropout=adapters["dropout"],
        target_modules=adapters["target_modules"],
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def decoder_layers(model: Any) -> list[Any]:
    """The model's layers, first to last."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_layers(model: Any, plan: Plan) -> int:
    """Let the first k layers keep their input only and run once more in the backward pass; how many do.

    DeepSpeed's own activation_checkpointing block does nothing for transformers' models.
    """
    planned = plan["training"]["checkpointing"]
    chosen = decoder_layers(model)[: planned["layers"]]
    if len(chosen) < planned["layers"]:
        raise Refused(f"training.checkpointing: {planned['layers']} layers, the model has {len(chosen)}; plan again")
    for layer in chosen:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = recompute_from_host if planned["on_host"] else recompute
    return len(chosen)


def recompute(layer: Callable[..., Any], *inputs: Any) -> Any:
    """Run a layer of which only the inputs are kept."""
    from torch.utils.checkpoint import checkpoint

    return checkpoint(layer, *inputs, use_reentrant=False)


def recompute_from_host(layer: Callable[..., Any], *inputs: Any) -> Any:
    """Likewise, with the inputs kept in the host's memory: the outer hooks see nothing but them."""
    import torch

    with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
        return recompute(layer, *inputs)


def use_liger(plan: Plan) -> None:
    """Liger's kernels in place of transformers' modules, before the model is made; the loss stays the plan's."""
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel

    family = text_config(plan)["model_type"]
    _apply_liger_kernel(family, cross_entropy=False, fused_linear_cross_entropy=False)


def chunk_loss(model: Any, chunk: int) -> None:
    """Let the model's forward return a loss for which logits exist for ``chunk`` tokens at a time.

    The head is called as a module, so that ZeRO-3 gathers its weight before and frees it after.
    """
    from transformers.modeling_outputs import CausalLMOutput

    head, cap = model.get_output_embeddings(), getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    def loss(hidden: Any, labels: Any) -> Any:
        return fused_loss().apply(hidden, head.weight, head.bias, labels, chunk, cap)

    def forward(input_ids: Any, labels: Any, **inputs: Any) -> Any:
        hidden = model.get_decoder()(input_ids=input_ids, **inputs)[0]
        following = labels.roll(-1, dims=-1)  # position t predicts token t + 1
        following[..., -1] = IGNORED
        return CausalLMOutput(loss=head(hidden.to(head.weight.dtype), following))

    head.forward, model.forward = loss, forward


@cache
def fused_loss() -> Any:
    """Linear layer and cross-entropy in one: gradients are made chunk by chunk in the forward pass.

    Kept for the backward pass are the gradients of the input and of the weight; the mean's factor 1 / n is applied
    half before and half after, as n^(-1/2), so that fp16 neither under- nor overflows.

    Source:
        Hsu et al. 2024, Liger Kernel, section 3.2 (arXiv:2410.10989).
    """
    import torch

    class FusedLoss(torch.autograd.Function):  # type: ignore[misc]  # reason: torch is untyped here
        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, labels: Any, chunk: int, cap: float | None) -> Any:
            flat, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
            n = (labels != IGNORED).sum().clamp(min=1)
            grads = [torch.empty_like(flat), *(torch.zeros_like(p) if _trains(p) else None for p in (weight, bias))]
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            for part, following, out in zip(*(t.split(chunk) for t in (flat, labels, grads[0])), strict=True):
                scores = torch.nn.functional.linear(part, weight, bias)
                total += loss_and_gradient(scores, following, n.rsqrt(), cap)
                torch.mm(scores, weight, out=out)
                if grads[1] is not None:
                    grads[1].addmm_(scores.t(), part)
                if grads[2] is not None:
                    grads[2].add_(scores.sum(0))
                del scores
            ctx.save_for_backward(n, *grads)
            ctx.shape = hidden.shape
            return total / n

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
            n, *grads = ctx.saved_tensors
            scaled: list[Any] = [None if g is None else g.mul_(gradients[0] * n.rsqrt()) for g in grads]
            scaled[0] = scaled[0].view(ctx.shape)
            return *scaled, None, None, None

    return FusedLoss


def _trains(parameter: Any) -> bool:
    return parameter is not None and parameter.requires_grad


def loss_and_gradient(scores: Any, labels: Any, factor: Any, cap: float | None) -> Any:
    """Sum of the cross-entropies; ``factor`` times their gradient takes the place of the scores (logits)."""
    total = 0.0
    for rows, following in zip(scores.split(SOFTMAX_ROWS), labels.split(SOFTMAX_ROWS), strict=True):
        wide = rows.float() if cap is None else (rows.float() / cap).tanh() * cap
        log_p = wide.log_softmax(-1)
        counted, target = (following != IGNORED).unsqueeze(1), following.clamp(min=0).unsqueeze(1)
        total = total - (log_p.gather(1, target) * counted).sum()
        gradient = log_p.exp_().scatter_add_(1, target, -log_p.new_ones(target.shape)) * (counted * factor)
        rows.copy_(gradient if cap is None else gradient * (1 - (wide / cap) ** 2))
    return total


# --- data -------------------------------------------------------------------------------------------------------------


def open_data(path: str, split: str, text_field: str) -> Any:
    """A stream of rows from a file, a folder or the hub; nothing of it is executed.

    Raises:
        Refused: it is not there, or its rows have no such text.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(**_source(path), split=split, streaming=True)
        first = next(iter(rows))
    except StopIteration as error:
        raise Refused(f"--data {path}: has no rows") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise Refused(f"--data {path}: cannot be read, {first_line(error)}") from error
    if not isinstance(first.get(text_field), str):
        texts = ", ".join(name for name, value in first.items() if isinstance(value, str)) or "none"
        raise Refused(f"--data {path}: no text in field {text_field!r}; fields with text: {texts}; give --text-field")
    return rows


def _source(path: str) -> dict[str, Any]:
    """Arguments of load_dataset: a local file by its suffix, a local folder, else a hub id."""
    local, suffix = Path(path), Path(path).suffix
    if local.is_dir():
        return {"path": str(local.resolve())}
    if local.is_file():
        if suffix not in FORMATS:
            known = ", ".join(FORMATS)
            raise Refused(f"--data {path}: unknown format {suffix!r}; allowed are {known}, folders, hub ids")
        return {"path": FORMATS[suffix], "data_files": glob.escape(str(local.resolve()))}
    if suffix in FORMATS or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise Refused(f"--data {path}: no such file or folder")
    return {"path": path}


@dataclass
class Stream:
    """One rank's documents as batches of token ids, and where it stands.

    Packed: documents follow each other with an end-of-sequence token between, cut every ``seq_len`` tokens. Padded:
    each document is a sequence of its own (cut where longer). When the data end they start again: another epoch.
    """

    rows: Any  # a streaming dataset
    tokenizer: Any
    text_field: str
    seq_len: int
    packed: bool
    rank: int
    ranks: int
    epoch: int = 0
    documents: int = 0
    left: list[int] = field(default_factory=list)  # tokens read and not yet handed out
    position: dict[str, Any] | None = None  # of the dataset, after the last document; none: at the start of an epoch
    _tokens: Iterator[list[int]] | None = None

    def state(self) -> str:
        """Where the stream stands, as JSON."""
        names = ("epoch", "documents", "left", "position")
        return json.dumps({name: getattr(self, name) for name in names})

    def load(self, state: str) -> None:
        """Go on where ``state`` was taken: no token is repeated or skipped."""
        for name, value in json.loads(state).items():
            setattr(self, name, value)
        self._tokens = None

    def take(self, batches: int, sequences: int) -> tuple[list[Batch], str]:
        """The batches of one optimizer step, and the state after them."""
        return [self._batch([self._sequence() for _ in range(sequences)]) for _ in range(batches)], self.state()

    def _sequence(self) -> list[int]:
        self._tokens = self._tokens or self._documents()
        while len(self.left) < (self.seq_len if self.packed else 2):  # a lone token predicts nothing
            self.left = (self.left if self.packed else []) + next(self._tokens)
        sequence, self.left = self.left[: self.seq_len], self.left[self.seq_len :]
        return sequence

    def _documents(self) -> Iterator[list[int]]:
        """This rank's documents as tokens, epoch after epoch."""
        from datasets.distributed import split_dataset_by_node

        while True:
            share, found = split_dataset_by_node(self.rows, self.rank, self.ranks), self.position is not None
            if self.position is not None:
                share.load_state_dict(self.position)
            for row in share:
                self.position, self.documents = share.state_dict(), self.documents + 1
                if tokens := self._tokens_of(row[self.text_field] or ""):
                    found = True
                    yield tokens
            if not found:
                raise RefusedHere(f"--data: rank {self.rank} of {self.ranks} finds no text; give more documents")
            self.epoch, self.position = self.epoch + 1, None

    def _tokens_of(self, text: str) -> list[int]:
        """Ids with one end-of-sequence token behind; of blank text none."""
        ids, end = list(self.tokenizer(text)["input_ids"]) if text.strip() else [], self.tokenizer.eos_token_id
        return ids if not ids or ids[-1] == end else [*ids, end]

    def _batch(self, rows: list[list[int]]) -> Batch:
        import torch

        if self.packed:
            ids = torch.tensor(rows)
            return {"input_ids": ids, "labels": ids}
        pads = [self.seq_len - len(row) for row in rows]
        filler = self.tokenizer.eos_token_id
        return {
            "input_ids": torch.tensor([row + [filler] * n for row, n in zip(rows, pads, strict=True)]),
            "labels": torch.tensor([row + [IGNORED] * n for row, n in zip(rows, pads, strict=True)]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * n for row, n in zip(rows, pads, strict=True)]),
        }


def open_stream(plan: Plan, options: argparse.Namespace, tokenizer: Any) -> Stream:
    """This rank's share of the data."""
    rows, training = open_data(options.data, options.split, options.text_field), plan["training"]
    shape = {"seq_len": training["seq_len"], "packed": training["packed"]}
    return Stream(rows, tokenizer, options.text_field, **shape, rank=rank(), ranks=ranks_of(plan))


def open_tokenizer(path: str) -> Any:
    """The tokenizer of a folder or a hub id."""
    import transformers

    tokenizer = loaded(transformers.AutoTokenizer.from_pretrained, f"--tokenizer {path}", path)
    if tokenizer.eos_token_id is None:
        raise Refused(f"--tokenizer {path}: has no end-of-sequence token, which stands between documents")
    tokenizer.model_max_length = sys.maxsize  # documents are cut here, so there is nothing to warn of
    return tokenizer


# --- processes --------------------------------------------------------------------------------------------------------


def rank() -> int:
    """This process among all."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_device() -> Any:
    """This process's GPU, or the CPU."""
    import torch

    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def start_processes() -> None:
    """Join the other ranks, with the libraries' own remarks off."""
    import torch
    import transformers

    import deepspeed  # isort: skip -- after transformers, whose integrations look for it

    warnings.simplefilter("ignore", FutureWarning)  # of torch about DeepSpeed's calls, on every rank
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    deepspeed.utils.logger.setLevel("ERROR")
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        deepspeed.init_distributed(verbose=False)
    else:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo alone: nothing is compiled for it
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)


def leave_processes() -> None:
    """Part from the other ranks; otherwise torchrun may see an error at exit."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    import torch

    torch.distributed.barrier()


def over_ranks(values: Sequence[float]) -> list[list[float]]:
    """Each rank's values, by rank."""
    import torch

    mine = torch.tensor(values, dtype=torch.float64, device=local_device())
    rows = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(rows, mine)
    return [row.tolist() for row in rows]


class Stop:
    """Whether any rank was told to stop: a spot notice, the end of a Slurm allocation."""

    def __init__(self) -> None:
        self.told = False
        signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, *_: object) -> None:
        self.told = True

    def agreed(self) -> bool:
        """The same answer on every rank."""
        return any(told for (told,) in over_ranks([self.told]))


# --- training ---------------------------------------------------------------------------------------------------------


def start_engine(model: Any, plan: Plan) -> Any:
    """DeepSpeed's engine with the plan's ds_config; an 8-bit optimizer is made here."""
    import deepspeed

    trained = [p for p in model.parameters() if p.requires_grad]
    own = own_optimizer(plan, trained) if plan["training"]["optimizer"]["from"] == "script" else None
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=trained, optimizer=own, config=dict(plan["ds_config"])
    )
    forget_initial_step(engine.basic_optimizer)
    return engine


def own_optimizer(plan: Plan, parameters: list[Any]) -> Any:
    """bitsandbytes' 8-bit AdamW, which DeepSpeed cannot make by itself."""
    import bitsandbytes

    planned = plan["training"]["optimizer"]
    kinds = {"adamw-8bit": "AdamW8bit", "paged-adamw-8bit": "PagedAdamW8bit"}
    if planned["name"] not in kinds:
        raise Refused(f"training.optimizer: {planned['name']!r} is not one of {', '.join(kinds)}; plan again")
    given = {name: planned[name] for name in ("lr", "betas", "eps", "weight_decay")}
    return getattr(bitsandbytes.optim, kinds[planned["name"]])(parameters, **given)


def learning_rate(plan: Plan) -> float:
    """The plan's, from wherever its optimizer is made."""
    optimizer = plan["training"]["optimizer"]
    made = optimizer if optimizer["from"] == "script" else _section(plan["ds_config"]["optimizer"], "params")
    if not isinstance(made.get("lr"), int | float):
        raise Refused(f"learning rate of the plan is {made.get('lr')!r}; give --learning-rate, or plan again")
    return float(made["lr"])


def forget_initial_step(optimizer: Any) -> None:
    """Set Adam's step counters back to 0.

    Stage 0 in 16 bits makes its states by a step on zero gradients, which the counter remembers: the bias correction
    would run one step ahead of the other stages' (DeepSpeed 0.19.8 runtime/fp16, ``initialize_optimizer_states``).
    """
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"] * 0


def optimizers(engine: Any) -> list[Any]:
    """All that hold a learning rate: with a share of the states offloaded, DeepSpeed has a second one for the rest."""
    backup = getattr(engine.optimizer, "backup_optimizer", None)
    return [engine.optimizer] if backup is None else [engine.optimizer, backup]


def reset_peaks() -> None:
    """Let the allocator forget what the step before needed."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def set_rate(engine: Any, rate: float) -> None:
    """The learning rate of the step to come."""
    for optimizer in optimizers(engine):
        for group in optimizer.param_groups:
            group["lr"] = rate


def rate_at(step: int, *, steps: int, peak: float, warmup: int, floor: float) -> float:
    """Linear from 0 to ``peak`` in ``warmup`` steps, then half a cosine down to ``floor`` x peak at the last step.

    >>> [rate_at(s, steps=5, peak=1.0, warmup=2, floor=0.0) for s in (1, 2, 5)]
    [0.5, 1.0, 0.0]
    """
    if step <= warmup:
        return peak * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)


def loss_of(model: Any, plan: Plan, batch: Batch) -> Any:
    """Mean cross-entropy of a micro-batch, by model or engine."""
    return model(**batch).loss


def optimizer_step(engine: Any, plan: Plan, batches: list[Batch], stop: Stop, vote_every: int) -> float | None:
    """All micro-steps and the update; this rank's part of the mean loss, or none if told to stop on the way.

    Each micro-batch counts by its labels, so that padded ones are meaned over tokens, not over batches.
    """
    device, total = local_device(), 0.0
    for index, (batch, weight) in enumerate(zip(batches, weights_of(batches), strict=True)):
        if index % vote_every == 0 and stop.agreed():
            return None
        loss = loss_of(engine, plan, {name: tensor.to(device) for name, tensor in batch.items()}) * weight
        engine.backward(loss)
        total = total + loss.detach().float() / len(batches)
        del loss
        engine.step()
    return float(total)


def weights_of(batches: list[Batch]) -> list[float]:
    """Labels of each micro-batch over the mean of all micro-batches of all ranks: 1 where all are full."""
    if "attention_mask" not in batches[0]:
        return [1.0] * len(batches)
    labels = [float((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches]
    means = [total / len(batches) for (total,) in over_ranks([sum(labels)])]
    return [count * len(means) / sum(means) for count in labels]


# --- checkpoints ------------------------------------------------------------------------------------------------------


@dataclass
class Checkpoints:
    """Folders step-NNNNNNNN, each whole: written as step-NNNNNNNN.partial and made valid by one rename."""

    folder: Path
    identity: Mapping[str, Any]  # of the job: only its own checkpoints are resumed
    keep: int

    def newest(self) -> int:
        """The step to go on from; 0: there is no checkpoint.

        Raises:
            Refused: the checkpoint is of another job.
        """
        steps = self._steps()
        if steps:
            self._check(self.folder / _name(steps[-1]) / "complete.json")
        return steps[-1] if steps else 0

    def _steps(self) -> list[int]:
        names = [path.parent.name for path in self.folder.glob("step-*/complete.json")]
        return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d+", name))

    def _check(self, path: Path) -> None:
        saved = json.loads(path.read_text())
        for key, mine in self.identity.items():
            if saved.get(key) != mine:
                raise Refused(
                    f"{path.parent}: a checkpoint of another job, {key} {saved.get(key)!r}; this one has {mine!r}; "
                    "give another --out, or start the job it belongs to"
                )

    def prepare(self, resumed: int) -> None:
        """Remove what was not finished, once all ranks have looked.

        Raises:
            Refused: the nodes do not see the same folder.
        """
        if len({step for (step,) in over_ranks([resumed])}) > 1:
            raise Refused(f"--out: {self.folder} differs from node to node; give a folder that all of them see")
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob("step-*.partial"):
                shutil.rmtree(path)
        barrier()

    def save(self, engine: Any, step: int, position: Mapping[str, Any], *, adapters: bool) -> None:
        """A checkpoint of all ranks, after ``step`` steps; killed at any point, the one before stays the newest."""
        import torch

        partial_name = f"{_name(step)}.partial"
        with chdir(self.folder):  # DeepSpeed looks for its files by patterns, which a folder's name must not join
            engine.save_checkpoint(".", tag=partial_name, save_latest=False, exclude_frozen_parameters=adapters)
        torch.save({**position, "backup": backup_state(engine)}, self.folder / partial_name / f"rank{rank()}.pt")
        barrier()  # every rank has written
        if local_rank() == 0:
            flush_files(self.folder / partial_name)  # each node what it wrote
        barrier()
        if rank() == 0:
            self._finish(self.folder / partial_name, step)
        barrier()

    def _finish(self, partial_folder: Path, step: int) -> None:
        (partial_folder / "complete.json").write_text(json.dumps({**self.identity, "step": step}))
        flush_files(partial_folder)
        os.replace(partial_folder, self.folder / _name(step))
        flush(self.folder)
        for old in self._steps()[: -self.keep]:
            doomed = self.folder / f"{_name(old)}.partial"
            os.replace(self.folder / _name(old), doomed)
            shutil.rmtree(doomed)

    def load(self, engine: Any, step: int, *, adapters: bool) -> dict[str, Any]:
        """Weights and optimizer into the engine; the rank's position."""
        import torch

        folder = self.folder / _name(step)
        with chdir(self.folder):
            found, _ = engine.load_checkpoint(".", tag=folder.name, load_module_strict=not adapters)
        if found is None:
            raise Refused(f"{folder}: DeepSpeed finds no checkpoint in it; remove it to go on from the one before")
        position = torch.load(folder / f"rank{rank()}.pt", map_location="cpu", weights_only=True)
        load_backup(engine, position["backup"])
        return dict(position)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def backup_state(engine: Any) -> dict[int, Any]:
    """States of the sub-groups that stay on the GPU when a share is offloaded: DeepSpeed 0.19.8 does not save them."""
    backup = getattr(engine.optimizer, "backup_optimizer", None)
    if backup is None:
        return {}
    groups = engine.optimizer.fp32_partitioned_groups_flat
    return {index: backup.state[group] for index, group in enumerate(groups) if group in backup.state}


def load_backup(engine: Any, saved: Mapping[int, Any]) -> None:
    """Put them back."""
    for index, state in saved.items():
        group = engine.optimizer.fp32_partitioned_groups_flat[index]
        moved = {name: value.to(group.device) if value.ndim else value for name, value in state.items()}
        engine.optimizer.backup_optimizer.state[group] = moved


def flush(path: Path) -> None:
    """A file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_files(folder: Path) -> None:
    """Every file of a folder, and the folder, to the disk."""
    for path in (*folder.rglob("*"), folder):
        flush(path)


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a folder that is there whole or not at all."""
    partial_folder = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    write(partial_folder)
    flush_files(partial_folder)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial_folder, folder)


def random_state() -> dict[str, Any]:
    """Of this rank's generators: dropout goes on as it would have."""
    import torch

    return {"cpu": torch.get_rng_state(), "gpu": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}


def load_random(state: Mapping[str, Any]) -> None:
    """Put it back."""
    import torch

    torch.set_rng_state(state["cpu"])
    if state["gpu"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["gpu"])


def export(engine: Any, tokenizer: Any, folder: Path, *, adapters: bool) -> None:
    """The trained weights as from_pretrained loads them: the whole model, or its adapters."""
    weights = whole_weights(engine.module, adapters=adapters)
    extra = {"save_embedding_layers": False} if adapters else {}

    def write(beside: Path) -> None:
        engine.module.save_pretrained(beside, state_dict=weights, **extra)
        tokenizer.save_pretrained(beside)

    if rank() == 0:
        write_folder(folder, write)


def whole_weights(model: Any, *, adapters: bool) -> dict[str, Any]:
    """Parameters (of adapters: the trained ones) and buffers on rank 0's CPU, gathered one at a time."""
    import deepspeed

    weights = {} if adapters else {n: b.cpu() for n, b in model.named_buffers() if n in model.state_dict()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not adapters:
            with deepspeed.zero.GatheredParameters([parameter]):
                if rank() == 0:
                    weights[name] = parameter.detach().cpu().clone()
    return weights


# --- what was measured ------------------------------------------------------------------------------------------------


@dataclass
class Log:
    """measured.jsonl: one JSON object a line, written by rank 0 beside plan.json."""

    path: Path

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # torn by a kill
            os.truncate(self.path, self.path.stat().st_size - len(lines[-1]))

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **without_secrets(values)}) + "\n")


def job_event(plan_path: Path, plan: Plan, log: Path, resumed: int) -> dict[str, Any]:
    """Which plan runs where, on what."""
    import torch

    gpu = torch.cuda.is_available()
    found = {name: version(name) for name in plan["training"]["versions"]}
    return {
        "schema_version": 1,
        "plan": os.path.relpath(plan_path, log.parent),
        "plan_sha256": hashlib.sha256(plan_path.read_bytes()).hexdigest(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "world_size": ranks_of(plan),
        "device": local_device().type,
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory if gpu else None,
        "versions": {name: found[name] for name in found if found[name]},
        "resumed_step": resumed,
    }


def memories() -> list[float]:
    """This rank's peaks since the last reset (0: no GPU), and its resident bytes."""
    import psutil
    import torch

    host = psutil.Process().memory_info().rss
    if not torch.cuda.is_available():
        return [0, 0, 0, host]
    free, total = torch.cuda.mem_get_info()
    return [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), total - free, host]


def step_event(engine: Any, plan: Plan, step: int, loss: float, rate: float, seconds: float) -> dict[str, Any]:
    """One optimizer step over all ranks: the mean loss, the largest of the rest; host bytes of the fullest node."""
    rows = over_ranks([loss, seconds, *memories()])
    columns = list(zip(*rows, strict=True))
    slowest, node = max(columns[1]), int(os.environ.get("LOCAL_WORLD_SIZE", len(rows)))
    norm = engine.get_global_grad_norm()
    return {
        "step": step,
        "loss": sum(columns[0]) / len(rows),
        "learning_rate": rate,
        "gradient_norm": None if norm is None else float(norm),
        "step_s": slowest,
        "tokens_per_s": plan["training"]["global_batch"] * plan["training"]["seq_len"] / slowest,
        **{f"{name}_bytes": int(max(column)) or None for name, column in zip(MEMORIES, columns[2:5], strict=True)},
        "host_bytes": int(max(sum(columns[5][i : i + node]) for i in range(0, len(rows), node))),
    }


def promise_event(plan: Plan, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was measured beside what was planned: seconds after warm-up, and the peaks of all steps."""
    seconds = [event["step_s"] for event in events[WARM_UP_STEPS:]]
    planned, gpu = plan["time"], plan["memory"]["gpu"]
    rows = {"step_s": (mean(seconds), planned["step_s"], planned.get("step_s_low"), planned.get("step_s_upper"))}
    for name in MEMORIES:
        peaks = [event[f"{name}_bytes"] for event in events if event[f"{name}_bytes"]]
        band = _section(_section(gpu, "ranges"), name)
        figures = (max(peaks, default=None), gpu[f"{name}_bytes"], band.get("low_bytes"), band.get("upper_bytes"))
        rows[f"{name}_bytes"] = figures
    keys = ("measured", "planned", "low", "upper")
    return {"step": events[-1]["step"], **{name: dict(zip(keys, row, strict=True)) for name, row in rows.items()}}


def promise_line(name: str, row: Mapping[str, float | None], *, device: str = "cuda") -> str:
    """One figure of the promise in words; a plan promises nothing of a CPU.

    >>> promise_line("step_s", {"measured": 2.0, "planned": 1.5, "low": 1.2, "upper": 1.8})
    'step time: 2.00 s measured, 1.50 s planned (1.20 to 1.80 s): above the range'
    >>> promise_line("step_s", {"measured": 2.0, "planned": 0.00288, "low": None, "upper": None}, device="cpu")
    'step time: 2.00 s on a CPU, not compared; 0.00288 s planned on the GPU'
    """
    unit, size = ("s", 1) if name == "step_s" else ("GiB", GIB)
    words = "step time" if name == "step_s" else f"{name.removesuffix('_bytes')} memory"
    measured, planned, low, upper = (None if value is None else value / size for value in row.values())
    promised = f"{_short(planned)} {unit} planned"
    if measured is None:
        return f"{words}: not measured on a CPU, {promised}"
    if device == "cpu":
        return f"{words}: {_short(measured)} {unit} on a CPU, not compared; {promised} on the GPU"
    if low is None or upper is None:
        return f"{words}: {_short(measured)} {unit} measured, {promised}, without a range"
    verdict = "below" if measured < low else "above" if measured > upper else "inside"
    band = f"({_short(low)} to {_short(upper)} {unit})"
    return f"{words}: {_short(measured)} {unit} measured, {promised} {band}: {verdict} the range"


def _short(value: float | None) -> str:
    """Two decimals, or three digits of what is below one.

    >>> _short(71.618), _short(0.0028814)
    ('71.62', '0.00288')
    """
    return "unknown" if value is None else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


# --- the job ----------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Says what is wrong as the rest does."""

    def error(self, message: str) -> NoReturn:
        """One line instead of the usage."""
        raise Refused(f"{message}; see --help")


def command_line() -> Parser:
    """Every option."""
    here = Path(__file__).resolve().parent
    parser = Parser(prog="train.py", description="Train as plan.json says.", allow_abbrev=False)
    add = parser.add_argument
    add("--data", required=True, help="a .jsonl, .json, .parquet, .csv or .txt file, a folder of such, or a hub id")
    add("--plan", type=Path, default=here / "plan.json", help="default: plan.json beside this file")
    add("--model", help="a folder or a hub id; default: the plan's")
    add("--tokenizer", help="a folder or a hub id; default: the model's")
    add("--from-scratch", action="store_true", help="initialise the plan's model at random")
    add("--out", type=Path, help="checkpoints and the trained model; seen by all nodes; default: run, beside the plan")
    add("--log", type=Path, help="default: measured.jsonl, beside the plan")
    add("--steps", type=int, help="optimizer steps; default: the plan's")
    add("--save-every", type=int, help="steps between checkpoints; default: the plan's")
    add("--keep", type=int, default=2, help="checkpoints that are kept (%(default)s)")
    add("--seed", type=int, default=0, help="of new weights, adapters and dropout (%(default)s)")
    add("--text-field", default="text", help="field of a row that holds the document (%(default)s)")
    add("--split", default="train", help="split of the data set (%(default)s)")
    add("--learning-rate", type=float, help="the highest; default: the plan's")
    add("--warmup-steps", type=int, help="default: a hundredth of the steps")
    add("--final-rate", type=float, default=0.1, help="learning rate at the end over the highest (%(default)s)")
    return parser


def complete(options: argparse.Namespace, plan: Plan) -> None:
    """Fill what was not given from the plan; refuse what cannot be."""
    training, folder = plan["training"], options.plan.resolve().parent
    options.out = (options.out or folder / "run").resolve()
    options.log = (options.log or folder / "measured.jsonl").resolve()
    options.steps = training["steps"] if options.steps is None else options.steps
    options.save_every = training["save_every_steps"] if options.save_every is None else options.save_every
    options.learning_rate = learning_rate(plan) if options.learning_rate is None else options.learning_rate
    options.warmup_steps = max(1, options.steps // 100) if options.warmup_steps is None else options.warmup_steps
    options.model = None if options.from_scratch else options.model or training["model"]
    options.tokenizer = options.tokenizer or options.model
    for flag in ("steps", "save_every", "keep"):
        if getattr(options, flag) < 1:
            raise Refused(f"--{flag.replace('_', '-')}: must be 1 or more, got {getattr(options, flag)}")
    if not 0 < options.learning_rate < math.inf:
        raise Refused(f"--learning-rate: must be a number above 0, got {options.learning_rate}")
    if not 0 <= options.final_rate <= 1:
        raise Refused(f"--final-rate: must be from 0 to 1, got {options.final_rate}")
    if options.warmup_steps < 0:
        raise Refused(f"--warmup-steps: must be 0 or more, got {options.warmup_steps}")
    if not options.tokenizer:
        need = "--tokenizer: a new model needs one" if options.from_scratch else "--model: the plan names no hub id"
        raise Refused(f"{need}; give a folder or a hub id")


def identity(plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    """What a checkpoint must share with the job that resumes it."""
    longer = ("steps", "save_every_steps", "versions")  # may change between two starts
    training = {key: value for key, value in plan["training"].items() if key not in longer}
    trained = [training, plan["adapters"], plan["ds_config"], plan["model"]["config"]]
    return {
        "plan": hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()[:16],
        "ranks": ranks_of(plan),
        "data": f"{Path(options.data).name} {options.split} {options.text_field}",
        "seed": options.seed,
    }


@dataclass
class Training:
    """The steps of a job, and what is kept of them."""

    engine: Any
    plan: Plan
    stream: Stream
    checkpoints: Checkpoints
    options: argparse.Namespace
    step: int = 0
    saved: int = 0
    vote_every: int = 1  # micro-steps
    log: Log | None = None
    first: list[dict[str, Any]] = field(default_factory=list)

    def resume(self, step: int) -> dict[str, Any]:
        """Go on after ``step``; the position that belongs to it."""
        if not step:
            import torch

            torch.manual_seed(self.options.seed + rank())
            return {"data": self.stream.state(), "random": random_state()}
        position = self.checkpoints.load(self.engine, step, adapters=self.adapters)
        self.stream.load(position["data"])
        load_random(position["random"])
        self.step = self.saved = step
        return position

    @property
    def adapters(self) -> bool:
        """Whether the base model is frozen, so that no checkpoint needs it."""
        return self.plan["adapters"] is not None

    def run(self, position: dict[str, Any]) -> int:
        """Every step that is left; the exit code."""
        stop, decision = Stop(), self.plan["decision"]
        wanted = (decision["gradient_accumulation_steps"], decision["micro_batch"])
        with ThreadPoolExecutor(1) as reader:  # makes the next step's batches while this one runs
            coming: Future[tuple[list[Batch], str]] = reader.submit(self.stream.take, *wanted)
            while self.step < self.options.steps:
                batches, state = coming.result()
                coming = reader.submit(self.stream.take, *wanted)
                if not self._take(batches, stop):
                    self._save(position)  # the step that was begun is forgotten
                    say(f"stopped by SIGTERM after step {self.step}; start again with the same command")
                    return STOPPED
                position = {"data": state, "random": random_state()}
                if self.step % self.options.save_every == 0 or self.step == self.options.steps:
                    self._save(position)
        return 0

    def _take(self, batches: list[Batch], stop: Stop) -> bool:
        """One optimizer step; false: told to stop."""
        o = self.options
        rate = rate_at(self.step + 1, steps=o.steps, peak=o.learning_rate, warmup=o.warmup_steps, floor=o.final_rate)
        set_rate(self.engine, rate)
        reset_peaks()
        started_s = time.monotonic()
        loss = optimizer_step(self.engine, self.plan, batches, stop, self.vote_every)
        if loss is None:
            return False
        self.step += 1
        event = step_event(self.engine, self.plan, self.step, loss, rate, time.monotonic() - started_s)
        self.vote_every = max(1, int(VOTE_S * len(batches) / event["step_s"]))
        self._report(event)
        return True

    def _report(self, event: dict[str, Any]) -> None:
        """Log the step; a short line now and then; after five steps the promise."""
        if self.log is None:
            return
        self.log.write("step", event)
        early = len(self.first) < PROMISE_STEPS
        if early or self.step % PRINT_EVERY == 0 or self.step == self.options.steps:
            say("step {step}  loss {loss:.4f}  {step_s:.2f} s  {tokens_per_s:,.0f} tokens/s".format(**event))
        self.first += [event] if early else []
        if early and len(self.first) == PROMISE_STEPS:
            promise = promise_event(self.plan, self.first)
            self.log.write("promise", promise)
            device, rows = local_device().type, [(name, row) for name, row in promise.items() if isinstance(row, dict)]
            say(*(promise_line(name, row, device=device) for name, row in rows))

    def _save(self, position: Mapping[str, Any]) -> None:
        if self.step > self.saved:
            self.checkpoints.save(self.engine, self.step, position, adapters=self.adapters)
            self.saved = self.step


def run(options: argparse.Namespace) -> int:
    """The job, from checks to the trained weights; the exit code."""
    plan = read_plan(options.plan)
    check_world(plan, int(os.environ.get("WORLD_SIZE", "1")))
    check_config_file(plan, options.plan.resolve().parent)
    complete(options, plan)
    checkpoints = Checkpoints(options.out / "checkpoints", identity(plan, options), options.keep)
    resumed = checkpoints.newest()
    say(*version_warnings(plan))
    start_processes()
    checkpoints.prepare(resumed)
    tokenizer = open_tokenizer(options.tokenizer)
    stream = open_stream(plan, options, tokenizer)
    fresh = options.out / f"initial-{options.seed}"
    path = options.model or new_model(plan, fresh, seed=options.seed, vocabulary=len(tokenizer))
    engine = start_engine(build_model(plan, path, seed=options.seed), plan)
    training = Training(engine, plan, stream, checkpoints, options)
    position = training.resume(resumed)
    if rank() == 0:
        training.log = Log(options.log)
        training.log.write("job", job_event(options.plan.resolve(), plan, options.log, resumed))
    say(f"step {resumed} of {options.steps} is done" if resumed else f"{options.steps} steps, from the start")
    code = training.run(position)
    if code == 0:
        export(engine, tokenizer, options.out / "model", adapters=training.adapters)
        say(f"done: {options.out / 'model'}")
    barrier()
    return code


def say(*lines: str) -> None:
    """Print from rank 0."""
    if rank() == 0:
        for line in lines:
            print(hide_secrets(line), flush=True)


def hide_secrets(text: str) -> str:
    """Without the values of environment variables that are named like secrets."""
    named = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY|CREDENTIAL")
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_SECRET and named.search(name):
            text = text.replace(value, "***")
    return text


def without_secrets(value: Any) -> Any:
    """The texts of a JSON value without them; MAX_TOKENS=131072 must not break a number that has these digits."""
    if isinstance(value, Mapping):
        return {key: without_secrets(inner) for key, inner in value.items()}
    return hide_secrets(value) if isinstance(value, str) else value


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; what is wrong with its input is said in one line, once per node."""
    try:
        code = run(command_line().parse_args(arguments))
    except Refused as error:
        if local_rank() == 0 or isinstance(error, RefusedHere):
            print(hide_secrets(f"train.py: {error}"), file=sys.stderr, flush=True)
        code = REFUSED
    leave_processes()
    return code


if __name__ == "__main__":
    sys.exit(main())
