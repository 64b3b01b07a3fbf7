"""From measured runs to rows of the measurements table, one per kind of memory; finished runs are not repeated."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainplan.planner.units import GIB

from .gpu_matrix import Configuration, launch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("gpu_run.py")
COLUMNS = (
    *("id", "source", "source_ref", "model", "layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab"),
    *("tied_emb", "params", "moe", "task", "lora_rank", "lora_targets", "quant_base", "seq_len", "micro_batch"),
    *("grad_accum", "global_batch", "n_gpus", "gpu", "gpu_mem_gb", "n_nodes", "interconnect", "precision"),
    *("master_weights", "optimizer", "optim_state_dtype", "sharding", "zero_stage", "dp", "tp", "pp", "vpp", "cp"),
    *("ep", "sp", "offload", "act_ckpt", "attn_impl", "chunked_ce", "compile", "framework", "peak_mem", "mem_unit"),
    *("mem_kind", "tokens_per_s_per_gpu", "tflops_per_gpu", "tflops_kind", "mfu_pct", "hfu_pct", "mfu_peak_tflops"),
    *("step_time_s", "other_metric", "outcome", "evidence", "inferred_fields", "notes", "peak_mem_gib"),
    *("mem_gib_tolerance_pct", "flops_convention_detected", "quality", "qa_flags"),
)
KINDS: Mapping[str, str] = {
    "allocated": "max allocated (torch.cuda.max_memory_allocated)",
    "reserved": "max reserved (torch.cuda.max_memory_reserved)",
    "device": "device (torch.cuda.mem_get_info, less what was in use before this process)",
    "process": "nvidia-smi, this process",
}
TASKS = {"full": "full-ft", "lora": "lora", "qlora": "qlora"}
TORCH_NAMES = {
    "adamw": "AdamW", "adamw-8bit": "bnb AdamW8bit", "paged-adamw-8bit": "bnb PagedAdamW8bit", "lion": "Lion",
    "adafactor": "Adafactor", "sgd": "SGD",
}  # fmt: skip
TIMEOUT_S = 900.0
SOURCE = "trainplan make evidence-gpu"
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
KILLED_WORDS = f"exits with return code = {-signal.SIGKILL}"  # DeepSpeed's launcher of its worker
OUTPUT_TAIL = 2000  # characters of a failed run's output that are shown


class RunFailed(Exception):
    """A run ended without a result; the message is the end of its output."""


def finished(path: Path) -> frozenset[str]:
    """Configurations that the table has rows of."""
    if not path.exists():
        return frozenset()
    with path.open(encoding="utf-8", newline="") as file:
        return frozenset(row["id"].partition(":")[0] for row in csv.DictReader(file))


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the rows of one run in one write, under the header; a run that is cut off leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def measure(configuration: Configuration, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Start the run as its plan says and bring back what it wrote.

    Raises:
        RunFailed: it ended without a result.
    """
    with tempfile.TemporaryDirectory(prefix="trainplan-gpu-") as name:
        folder = Path(name)
        (folder / "run.json").write_text(json.dumps(asdict(configuration)))
        (folder / "ds_config.json").write_text(json.dumps(configuration.ds_config))
        output, code = _run(launch(str(folder / "ds_config.json"), str(SCRIPT)), folder, timeout_s)
        written = folder / "result.json"
        if written.exists():
            return dict(json.loads(written.read_text()))
        if code is None:
            return {"outcome": "timeout", "message": f"no result within {timeout_s:.0f} s"}
        if code in KILLED or KILLED_WORDS in output:
            return {"outcome": "killed", "message": "signal 9: host RAM ran out, or someone ended it"}
        raise RunFailed(output[-OUTPUT_TAIL:])


def command_of(line: str) -> tuple[dict[str, str], list[str]]:
    """A shell line's leading variables, and its words, with this environment's own DeepSpeed launcher.

    >>> command_of("A=b deepspeed --num_gpus 1 'x y.py'")[0]
    {'A': 'b'}
    """
    words = shlex.split(line)
    variables = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    return variables, [sys.executable, str(Path(sys.executable).with_name(words[0])), *words[1:]]


def _run(line: str, folder: Path, timeout_s: float) -> tuple[str, int | None]:
    """Output and exit status; None past the timeout, when the whole session of processes is ended."""
    variables, command = command_of(line)
    command[2:2] = ["--master_port", str(_free_port())]  # the launcher's own is one for every run of a machine
    log = folder / "output.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=_environment() | variables, cwd=folder, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
    return log.read_text(errors="replace"), code


def _free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    modules = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return dict(os.environ) | {"PATH": path, "PYTHONPATH": modules, "HF_HUB_OFFLINE": "1"}


def rows(configuration: Configuration, result: Mapping[str, Any], *, date: str) -> Iterator[dict[str, Any]]:
    """The table's rows of one run: one per kind of memory that was measured, at least one that states the outcome.

    Args:
        configuration: what ran.
        result: what the run wrote.
        date: day of the measurement.
    """
    common = _described(configuration) | _outcome(configuration, result, date)
    peaks = peaks_of(result) if result["outcome"] == "fits" else {}
    if not peaks:
        yield common | {"id": f"{configuration.id}:outcome"}
    for kind, size in peaks.items():
        yield common | {
            "id": f"{configuration.id}:{kind}",
            "peak_mem": size,
            "mem_unit": "bytes",
            "mem_kind": KINDS[kind],
            "peak_mem_gib": f"{size / GIB:.4f}",
            "mem_gib_tolerance_pct": 0,
        }


def peaks_of(result: Mapping[str, Any]) -> dict[str, int]:
    """The most over all phases, by kind of memory, in bytes; unknown kinds are left out."""
    phases: Iterable[Mapping[str, int]] = result.get("phases", {}).values()
    found: dict[str, int] = {}
    for phase in phases:
        for kind, size in phase.items():
            found[kind] = max(found.get(kind, 0), size)
    moments = result.get("moments", {})
    if "device" in found:
        found["device"] -= moments.get("before_bytes") or 0  # unknown: `_flags` says so
    process = moments.get("end_process_bytes")
    return found | ({"process": process} if process else {})


def _described(c: Configuration) -> dict[str, Any]:
    """What ran, in the table's words."""
    quantized = "nf4 + double quant" if c.double_quantization else "nf4"
    places = (("optimizer", c.offload_optimizer), ("params", c.offload_parameters))
    offload = " + ".join(f"{what} {where}" for what, where in places if where)
    trained = c.lora_rank > 0
    return {
        **c.shape,
        "source": SOURCE,
        "model": c.model,
        "task": TASKS[c.method],
        "lora_rank": c.lora_rank or "",
        "lora_targets": (",".join(c.lora_targets) or "all-linear") if trained else "",
        "quant_base": quantized if c.method == "qlora" else "",
        "seq_len": c.seq_len,
        "micro_batch": c.micro_batch,
        "grad_accum": c.accumulation,
        "global_batch": c.micro_batch * c.accumulation,
        "n_gpus": 1,
        "n_nodes": 1,
        "gpu": c.gpu,
        "gpu_mem_gb": round(c.predicted.capacity / 1e9, 1),
        "precision": c.precision,
        "master_weights": "" if c.precision == "fp32" else "fp32",
        "optimizer": TORCH_NAMES[c.optimizer],
        "sharding": f"ZeRO-{c.zero_stage}",
        "zero_stage": c.zero_stage,
        **dict.fromkeys(("dp", "tp", "pp"), 1),
        "offload": offload or "none",
        "act_ckpt": {0: "none", c.layers: "full"}.get(c.checkpointed_layers, str(c.checkpointed_layers)),
        "attn_impl": c.attention,
        "chunked_ce": f"yes ({c.loss_chunk} tokens)" if c.loss_chunk else "",
        "compile": "no",
    }


def _outcome(c: Configuration, result: Mapping[str, Any], date: str) -> dict[str, Any]:
    """How it ended, how fast it was, what it ran on, and what was predicted."""
    found = result.get("environment", {})
    ended = result["outcome"]
    decided = ended in ("fits", "oom")
    seconds = statistics.median(result["step_s"][1:]) if result.get("step_s") else 0.0  # the first step compiles
    tokens = c.micro_batch * c.accumulation * c.seq_len
    versions = "; ".join(f"{name} {found[name]}" for name in ("torch", "deepspeed", "transformers") if name in found)
    notes = {key: result[key] for key in ("phases", "moments", "oom_phase", "message", "trainable") if key in result}
    notes["predicted"] = asdict(c.predicted)
    return {
        "framework": versions or "DeepSpeed",
        "step_time_s": f"{seconds:.4f}" if seconds else "",
        "tokens_per_s_per_gpu": f"{tokens / seconds:.1f}" if seconds else "",
        "outcome": ended if decided else "",
        "evidence": "; ".join(["measured", date, *(f"{key} {value}" for key, value in found.items() if value)]),
        "notes": json.dumps(notes),
        "quality": "A" if decided else "D",
        "qa_flags": _flags(result) if decided else ended,
    }


def _flags(result: Mapping[str, Any]) -> str:
    """What a reader of the device's figure must know."""
    unknown = "device" in peaks_of(result) and result.get("moments", {}).get("before_bytes") is None
    return "device: use by other processes unknown" if unknown else ""
