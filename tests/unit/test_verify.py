"""What a verification decides without an engine: what is run, what is refused, what is compared, what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trainplan
from trainplan.api.narrowing import CPU_TOKENS, as_planned, narrowed, shrunk
from trainplan.api.verification import check_runnable, disagreements
from trainplan.cli.main import run_root
from trainplan.planner.candidate import Candidate
from trainplan.planner.documents import memory_document
from trainplan.planner.errors import EngineFailed, InputError, TooSmall
from trainplan.planner.ledger import Device, Phase
from trainplan.planner.model import Model
from trainplan.planner.models import catalog_model
from trainplan.planner.planfile import model_of, read_plan
from trainplan.planner.report.verification_text import verification_text
from trainplan.planner.retaining import retained_elements
from trainplan.planner.units import GIB
from trainplan.planner.verify import launch, machine
from trainplan.planner.verify.compare import Report, bounded, off_rows, retained_rows
from trainplan.planner.verify.machine import Card, Machine, this_machine
from trainplan.planner.verify.outcome import memory_rows, phase_rows
from trainplan.planner.verify.shrink import fewest_layers, fitted, narrower, with_layers, with_vocabulary

from ..tiny import llama

GOLDEN = Path(__file__).parents[1] / "golden"
CPU = Machine(device="cpu", cores=2, free_ram_bytes=16 * GIB)
H100 = Card(name="NVIDIA H100 80GB HBM3", total_bytes=80 * GIB, free_bytes=79 * GIB)
GPUS = Machine(device="cuda", cores=16, free_ram_bytes=128 * GIB, cards=(H100,))


@pytest.fixture
def plan() -> dict[str, Any]:
    """A golden plan: ZeRO-3, checkpointing of 5 of 32 layers, 8 GPUs."""
    return read_plan(str(GOLDEN / "own-config"))


@pytest.mark.parametrize(
    ("name", "fewest"),
    [("Llama-3.1-8B", 2), ("GPT-2", 2), ("Gemma-3-1B", 6), ("Phi-3-mini-4k", 2), ("OPT-125M", 2), ("Falcon-7B", 2)],
)
def test_fewer_layers_are_the_same_layers(name: str, fewest: int) -> None:
    """Whatever a family calls its depth: each kind of layer stays, and each layer is as large as before."""
    model = catalog_model(name)
    assert fewest_layers(model) == fewest
    cut = with_layers(model, fewest)
    assert cut is not None
    assert cut.layers == fewest
    assert [block.numel for block in cut.blocks] == [block.numel for block in model.blocks[:fewest]]
    assert cut.parameter_count == model.parameter_count - sum(block.numel for block in model.blocks[fewest:])


def test_a_smaller_vocabulary_and_width() -> None:
    """2,048 words of 8 times fewer heads of the same size: embedding and head shrink by both, a layer by the width."""
    model = catalog_model("Llama-3.1-8B")
    small = with_vocabulary(model, 2048)
    assert small is not None
    narrow = narrower(small, 8)
    assert narrow is not None
    assert (narrow.vocab, narrow.hidden, narrow.layers) == (2048, 4096 // 8, 32)
    old, new = (m.blocks[0].attention for m in (model, narrow))
    assert old is not None
    assert new is not None
    assert (new.heads, new.kv_heads, new.head_dim) == (old.heads // 8, old.kv_heads // 8, old.head_dim)
    assert narrower(model, 3) is None


def no_larger(most: int, model: Model) -> bool:
    """Whether a model has no more parameters."""
    return model.parameter_count <= most


def test_as_many_layers_as_fit_are_run() -> None:
    """Depth alone where it suffices; then the vocabulary; nothing where not even that fits."""
    model = catalog_model("Llama-3.1-8B")
    for limit in (2_000_000_000, 600_000_000):
        found = fitted(model, partial(no_larger, limit))
        assert found is not None
        deeper = with_layers(found.model, found.layers[0] + 1)
        assert deeper is not None
        assert found.model.parameter_count <= limit < deeper.parameter_count
        assert (found.vocabulary[0] < found.vocabulary[1]) == (limit < 1_500_000_000)
    assert fitted(model, lambda _: False) is None


def test_a_narrowed_plan_keeps_its_stack(plan: dict[str, Any]) -> None:
    """Fewer ranks, micro-steps and tokens; the strategies, the micro-batch and a share of checkpointed layers stay."""
    whole = as_planned(plan)
    part = shrunk(plan, model_of(plan), CPU, 2, None)
    c = narrowed(plan, part.model, CPU, 2)
    assert c.stack.names == whole.stack.names
    assert (c.zero_stage, c.setting.micro_batch) == (whole.zero_stage, whole.setting.micro_batch)
    assert (c.gpus, c.setting.gradient_accumulation_steps, c.setting.seq_len) == (2, 2, CPU_TOKENS)
    assert 1 <= c.layers < c.setting.model.layers


def test_states_do_not_depend_on_the_tokens(plan: dict[str, Any]) -> None:
    """Why short sequences prove something: every line of weights, gradients and optimizer is the same."""
    model = with_layers(model_of(plan), 2)
    assert model is not None
    short, whole = (narrowed(plan, model, where, 1) for where in (CPU, GPUS))
    assert short.setting.seq_len < whole.setting.seq_len
    lines = [
        [(e.item, e.device, e.bytes, e.phases) for e in c.ledger.entries if e.item.section[0] in "WOG"]
        for c in (short, whole)
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/plan.json")), ids=lambda path: path.parent.name)
def test_a_plan_file_agrees_with_itself(path: Path) -> None:
    """Nothing differs; a line, a phase or a key that was edited is named."""
    document = read_plan(str(path))
    planned = as_planned(document)
    assert list(disagreements(document, planned)) == []
    entry = document["memory"]["gpu"]["entries"][0]
    entry["bytes"] += 1
    document["ds_config"]["gradient_clipping"] = 3.0
    found = list(disagreements(document, planned))
    assert len(found) == 2
    assert "gradient_clipping: 3.0 in the file" in found[0]
    assert entry["item"] in found[1]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("memory.gpu", "upper_bound_bytes", 1),
        ("memory.gpu", "capacity_bytes", 10**15),
        ("training", "seq_len", 128),
        ("adapters", "rank", 1),
        ("ds_config", "train_batch_size", None),
    ],
)
def test_totals_and_what_trains_are_the_decisions_too(section: str, key: str, value: object) -> None:
    """Whatever train.py reads and people rely on is compared, not the lines alone."""
    path = next(p for p in sorted(GOLDEN.glob("*/plan.json")) if read_plan(str(p)).get("adapters"))
    document = read_plan(str(path))
    planned = as_planned(document)
    part = document
    for name in section.split("."):
        part = part[name]
    part[key] = value
    (found,) = disagreements(document, planned)
    assert f"{key}: {value!r} in the file" in found


def test_too_small_a_machine_says_what_is_needed(plan: dict[str, Any]) -> None:
    """What two layers need, what there is, and what to do."""
    tiny = replace(CPU, free_ram_bytes=GIB)
    with pytest.raises(TooSmall, match=r"2 of 32 layers on 2 ranks need .* GiB of RAM with 0.80 GiB to use .*--model"):
        shrunk(plan, model_of(plan), tiny, 2, None)
    full = replace(GPUS, cards=(replace(H100, free_bytes=GIB),))
    with pytest.raises(TooSmall, match="GPU memory"):
        shrunk(plan, model_of(plan), full, 1, None)
    with pytest.raises(InputError, match="--layers: got 33; the model has 32"):
        shrunk(plan, model_of(plan), CPU, 2, 33)


def edited(plan: dict[str, Any], **decision: Any) -> Candidate:
    """The plan's candidate with another decision."""
    request = {**plan["request"], **decision.pop("request", {})}
    return as_planned({**plan, "decision": {**plan["decision"], **decision}, "request": request})


def test_what_this_device_cannot_run_is_refused(plan: dict[str, Any]) -> None:
    """NVMe paths are the plan's and never written to; 8-bit optimizers and Lion need a GPU."""
    names = [*plan["decision"]["strategies"], "offload-optimizer-nvme"]
    with pytest.raises(InputError, match="NVMe"):
        check_runnable(edited(plan, strategies=names), GPUS)
    for name in ("adamw-8bit", "lion"):
        candidate = edited(plan, request={"require": [name]})
        check_runnable(candidate, GPUS)
        with pytest.raises(InputError, match="GPU"):
            check_runnable(candidate, CPU)
    check_runnable(as_planned(plan), CPU)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 2, "nowhere: cannot be read"),
        (["PLAN", "--steps", "2"], 2, "--steps"),
        (["PLAN", "--processes", "0"], 2, "--processes"),
        (["PLAN", "--device", "tpu"], 2, "--device"),
        (["PLAN", "--device", "cuda"], 2, "the driver lists no GPU"),
        (["PLAN", "--device", "cpu", "--model", "no-such-model"], 2, "model: unknown"),
        (["PLAN", "--device", "cpu", "--layers", "99"], 2, "--layers: got 99"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where, what, what is allowed."""
    monkeypatch.setattr(machine, "cards", tuple)
    path = str(GOLDEN / "own-config")
    assert run_root(["verify", *(path if word == "PLAN" else word for word in arguments)]) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And how to install them."""
    monkeypatch.setattr(machine, "NEEDED", ("no_such_package",))
    with pytest.raises(InputError, match=r"no_such_package not installed; .*pip install 'trainplan\[train\]'"):
        this_machine()


def test_cards_are_those_that_processes_will_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory in bytes; CUDA_VISIBLE_DEVICES chooses; the catalog's name is found."""
    rows = [["NVIDIA H100 80GB HBM3", "81559", "559"], ["NVIDIA H100 80GB HBM3", "81559", "0"]]
    monkeypatch.setattr(machine, "nvidia_smi", lambda _: rows)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (card,) = machine.cards()
    assert card.free_bytes == 81_000 * 2**20
    assert this_machine("auto").gpu == "h100"
    assert this_machine("cpu").cards == ()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert this_machine("cuda").most_ranks == 2


def reported(c: Candidate, share: float) -> dict[str, Any]:
    """A rank whose phases and memories are a share of what is planned, others having used 3 bytes before."""
    phases = {"start": [Phase.START], "forward": [Phase.FORWARD, Phase.LOSS], "step": [Phase.STEP]}
    phases["backward"] = [Phase.LOSS, Phase.BACKWARD, Phase.RECOMPUTE, Phase.BACKWARD_END]
    points = c.ledger.by_phase(Device.GPU)
    seen = {name: {"allocated": round(share * max(points[p] for p in of))} for name, of in phases.items()}
    for kind in ("reserved", "device"):
        seen["step"][kind] = round(share * getattr(c.gpu, kind).point) + 3 * (kind == "device")
    return {"phases": seen, "moments": {"before_bytes": 3}}


def test_a_gpus_memories_are_judged_by_their_ranges(plan: dict[str, Any]) -> None:
    """At the points all hold and are exact; 15 % above, tensors, reserved and device memory are off."""
    model = with_layers(model_of(plan), 4)
    assert model is not None
    c = narrowed(plan, model, GPUS, 1)
    exact = [*phase_rows(c, [reported(c, 1.0)]), *memory_rows(c, [reported(c, 1.0)])]
    assert len(exact) == 4 + 3
    assert all(row.holds and row.exact for row in exact)
    above = [*phase_rows(c, [reported(c, 1.0), reported(c, 1.15)]), *memory_rows(c, [reported(c, 1.15)])]
    assert {"allocated, backward", "allocated memory"} <= {row.line for row in off_rows(above)}


SLEEPER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "


GONE_S = 10.0


def alive(group: int) -> bool:
    """Whether a process of the group is there, and no zombie that nobody has waited for."""
    states = [path.read_text().rpartition(")")[2].split() for path in readable(Path("/proc").glob("[0-9]*/stat"))]
    return any(int(fields[2]) == group and fields[0] != "Z" for fields in states)


def readable(paths: Iterator[Path]) -> Iterator[Path]:
    """Those that are still there."""
    return (path for path in paths if path.exists())


def test_no_process_outlives_its_run(tmp_path: Path) -> None:
    """A process and its child, in a session of their own, are ended together, even where the first ignores it."""
    code = SLEEPER + "import signal; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "ENDING_S", 0.2)
        launch._end(process)
    process.stdout.close()
    assert process.returncode == -9
    deadline = time.monotonic() + GONE_S
    while alive(process.pid):  # a killed child is gone once init has taken note of it
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_failed_run_is_one_line_and_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last exception that a rank printed, and its whole output kept; the working folder is gone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    output = "[rank0]: Traceback\n[rank0]: ValueError: no such key\nmore\n"
    monkeypatch.setattr(sys, "executable", write_program(tmp_path / "python", output))
    with pytest.raises(EngineFailed, match="exit status 3: ValueError: no such key; its output is in") as failed:
        launch.run_jobs([{}], processes=1, environment=dict(os.environ))
    log = Path(str(failed.value).rpartition(" ")[2])
    assert log.read_text() == output
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["python", log.name])


def write_program(path: Path, output: str) -> str:
    """A program that stands for torchrun: prints, and fails."""
    path.write_text(f"#!{sys.executable}\nprint({output!r}, end='')\nraise SystemExit(3)\n")
    path.chmod(0o755)
    return str(path)


def test_the_report_names_what_is_off() -> None:
    """First the verdict; of a line that is off every moment; of one that holds, one row."""
    rows = [
        bounded("fp32 master weights", "O1", "start", 100, 100),
        bounded("fp32 master weights", "O1", "2/0/step", 100, 108),
        bounded("optimizer states", "O2", "2/0/step", 200, 200),
        bounded("gathered parameters", "W5", "2/0/forward", 50, 20, least=0),
    ]
    document = text_document([vars_of(row) for row in rows], off=["fp32 master weights"])
    text = verification_text(document)
    assert text.startswith(
        "FAIL: 1 of 3 lines off: fp32 master weights; the largest is fp32 master weights +8 (+8.00%)"
    )
    assert sum(line.startswith("fp32 master") for line in text.splitlines()) == 1
    assert sum(line.startswith("fp32 master") for line in verification_text(document, every=True).splitlines()) == 2
    assert "explain PLAN --line 'fp32 master weights'" in text
    passed = text_document([vars_of(row) for row in rows[2:]], off=[])
    assert verification_text(passed).startswith("PASS: all 2 lines hold (2 comparisons): 1 equal to the byte, 1 within")


def vars_of(row: Any) -> dict[str, Any]:
    """A row's JSON."""
    return {name: getattr(row, name) for name in row.__slots__}


def text_document(rows: list[dict[str, Any]], off: list[str]) -> dict[str, Any]:
    """A document with these rows."""
    sizes = {"layers": 2, "vocabulary": 10, "hidden": 8}
    return {
        "status": "failed" if off else "passed", "model": "tiny", "rows": rows, "off": off, "disagreements": [],
        "planned": {"gpus": 8, "gpu": "h100", "method": "full", "strategies": ["zero-3"], "seq_len": 4096,
                    "gradient_accumulation_steps": 4},
        "ran": {**sizes, "model": {**sizes, "layers": 32}, "processes": 2, "gradient_accumulation_steps": 2,
                "seq_len": 16, "micro_batch": 1, "checkpointed_layers": 0, "precision": "bf16", "machine": "the CPU",
                "engine": "E", "optimizer": "O", "versions": {"deepspeed": "1", "torch": "2", "transformers": "3"}},
        "step_s": {"each": [1.0, 1.0], "measured": 1.0, "planned": {"low": 0.5, "point": 1.0, "upper": 1.5}},
        "not_compared": ["nothing"],
    }  # fmt: skip


def test_the_documents_of_a_verification_are_json(plan: dict[str, Any]) -> None:
    """Memory of a plan as it is compared with the file's is what the file holds."""
    fresh = json.loads(json.dumps(memory_document(as_planned(plan))))
    assert fresh["gpu"]["entries"] == plan["memory"]["gpu"]["entries"]


def test_planning_loads_no_verification(tmp_path: Path) -> None:
    """Neither the command line's planning nor the API's import of it knows of processes."""
    program = "import sys, trainplan.api, trainplan.cli.plan; print(*(m for m in sys.modules if 'planner.verify' in m))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split() == []


def test_what_autograd_keeps_is_seen_after_the_backward_pass() -> None:
    """To the byte without checkpointing; with it the first layer's q, k and v may or may not be among them."""
    retained = 2 * retained_elements(quantized().ledger, quantized().setting)
    for held, holds in ((retained, True), (retained - 8, False), (retained + 8, False)):
        (row,) = retained_rows(quantized(), report_of(held), 3)
        assert (row.planned_bytes, row.measured_bytes, row.holds) == (retained, held, holds)
    (row,) = retained_rows(quantized(checkpointing="full"), report_of(retained), 3)
    assert (row.least_bytes, row.holds) == (retained, True)
    assert row.planned_bytes > retained


def quantized(**options: Any) -> Candidate:
    """QLoRA with ZeRO-3 on two GPUs."""
    return trainplan.estimate(
        llama(), gpus="2xa100-80", price=1.0, gpus_per_node=2, host_memory_gib=64, seq_len=64, global_batch=2, zero=3,
        method="qlora", **options,
    ).candidate  # fmt: skip


def report_of(retained: int) -> Report:
    """An engine of two ranks that holds so many bytes after the last backward pass."""
    held = {"2/0/backward": {"retained": retained}}
    return Report(held=(held, held), unexplained=({}, {}), peaks=({}, {}))
