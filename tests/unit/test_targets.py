"""Launch targets: the plan's values stand in every one of them, and what one cannot express is said."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import yaml
from trainplan.planner.emit.job import Job, Whole, job_of
from trainplan.planner.emit.start import Emitted, Start, slug
from trainplan.planner.emit.targets import TARGETS, emit_for
from trainplan.planner.errors import InputError

from ..launch_cases import START, emitted, plans

Values = dict[str, Any]
TORCH = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
PLANS = plans()
SOME = [name for name in PLANS if name.startswith("plain")]


def loaded(found: Emitted, name: str) -> Values:
    """A YAML file of a target."""
    document: Values = yaml.safe_load(found.files[name])
    return document


def optimizer_of(document: Mapping[str, Any]) -> Values:
    """Hyperparameters as the plan states them: in ds_config, or for the script."""
    t, config = document["training"], document["ds_config"]
    row = t["optimizer"] if t["optimizer"]["from"] == "script" else config["optimizer"]["params"]
    names = {"learning_rate": "lr", "weight_decay": "weight_decay", "adam_epsilon": "eps"}
    found = {theirs: row[ours] for theirs, ours in names.items() if ours in row}
    betas = row.get("betas", ())
    return found | {f"adam_beta{i + 1}": beta for i, beta in enumerate(betas)}


def planned(document: Mapping[str, Any]) -> Values:
    """What every trainer is told, in Hugging Face's names, from plan.json alone."""
    d, t = document["decision"], document["training"]
    return {
        "per_device_train_batch_size": d["micro_batch"],
        "gradient_accumulation_steps": d["gradient_accumulation_steps"],
        "max_steps": t["steps"],
        "save_steps": t["save_every_steps"],
        "bf16": t["precision"] == "bf16",
        "fp16": t["precision"] == "fp16",
        "max_grad_norm": document["ds_config"]["gradient_clipping"],
        "deepspeed": "ds_config.json",
        "checkpointing": d["checkpointed_layers"] > 0,
        "torch_compile": t["compile"],
        "min_rate": 0.1,
        "warmup_steps": max(1, t["steps"] // 100),
        "seq_len": t["seq_len"],
        **optimizer_of(document),
        **adapted(document),
    }


def adapted(document: Mapping[str, Any]) -> Values:
    """Adapters and quantisation."""
    a, q = document["adapters"], document["training"]["quantization"]
    found = {} if a is None else {"rank": a["rank"], "alpha": a["alpha"], "dropout": a["dropout"]}
    return found if q is None else {**found, "quant": q["quant_type"], "double_quant": q["double_quant"]}


def said_by_transformers(found: Emitted) -> Values:
    """training_arguments.yaml in the same names."""
    said = loaded(found, "training_arguments.yaml")
    names = {"lora_rank": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "quant_type": "quant"}
    names |= {"activation_checkpointing": "checkpointing"}
    said["min_rate"] = said["lr_scheduler_kwargs"]["min_lr_rate"]
    return {names.get(key, key): value for key, value in said.items()}


def said_by_axolotl(found: Emitted) -> Values:
    """axolotl.yaml in the same names."""
    said = loaded(found, "axolotl.yaml")
    quant = said.get("bnb_config_kwargs", {})
    names = {
        "micro_batch_size": "per_device_train_batch_size",
        "sequence_len": "seq_len",
        "cosine_min_lr_ratio": "min_rate",
        "gradient_checkpointing": "checkpointing",
        "lora_r": "rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
    }
    said |= {"quant": quant.get("bnb_4bit_quant_type"), "double_quant": quant.get("bnb_4bit_use_double_quant")}
    return {names.get(key, key): value for key, value in said.items()}


def said_by_llamafactory(found: Emitted) -> Values:
    """llamafactory.yaml in the same names."""
    said = loaded(found, "llamafactory.yaml")
    names = {
        "cutoff_len": "seq_len",
        "lora_rank": "rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "quantization_type": "quant",
        "double_quantization": "double_quant",
    }
    said["checkpointing"] = not said["disable_gradient_checkpointing"]
    said["min_rate"] = said["lr_scheduler_kwargs"]["min_lr_rate"]
    return {names.get(key, key): value for key, value in said.items()}


TRAINERS: dict[str, Callable[[Emitted], Values]] = {
    "transformers": said_by_transformers,
    "axolotl": said_by_axolotl,
    "llamafactory": said_by_llamafactory,
}


def world(name: str, found: Emitted) -> tuple[int, int]:
    """Nodes and ranks on each, as a target's own files state them."""
    text = "\n".join(found.files.values())
    if name == "kubernetes":
        trainer = loaded(found, "trainjob.yaml")["spec"]["trainer"]
        assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == trainer["numProcPerNode"]
        return trainer["numNodes"], trainer["numProcPerNode"]
    if name == "accelerate":
        config = loaded(found, "accelerate.yaml")
        return config["num_machines"], config["num_processes"] // config["num_machines"]
    words = [word for line in text.splitlines() for word in line.replace("NPROC_PER_NODE", "--nproc-per-node").split()]
    options = dict(word.lstrip("-").split("=", 1) for word in words if "=" in word)
    ranks = options.get("nproc-per-node") or options["num_gpus"]
    nodes = options.get("nnodes") or options.get("num_nodes") or options.get("NNODES") or "1"
    return int(nodes), int(ranks)


@pytest.mark.parametrize("name", PLANS)
def test_every_target_says_what_the_plan_says(name: str) -> None:
    """Ranks, batch, steps, precision, optimizer, adapters; targets that start train.py hand it the plan itself."""
    document = PLANS[name]
    job, targets = emitted(document)
    for target, found in targets.items():
        d = document["decision"]
        assert world(target, found) == (d["nodes"], d["gpus_per_node"]), target
        text = "\n".join(found.files.values())
        assert "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in text
        if target in TRAINERS:
            wanted, said = planned(document), TRAINERS[target](found)
            assert {key: said.get(key) for key in wanted} == wanted, target
        else:
            assert "--plan=plan.json" in text
            assert "train.py" in text
        check_said(job, target, found)


def check_said(job: Job, target: str, found: Emitted) -> None:
    """Whatever the plan has and a trainer has not stands in the output and at the top of its files."""
    said = " ".join(found.cannot)
    if target == "transformers":
        settings = said_by_transformers(found)
        assert settings["checkpointed_layers"] == job.checkpointing.layers
        assert settings.get("activation_checkpointing_kwargs", {}).get("offload", False) is job.checkpointing.on_host
    elif target in TRAINERS:
        assert ("layers alone" in said) is job.checkpointing.partial
    if target in TRAINERS:
        assert ("loss in chunks" in said) is (job.loss_chunk_tokens > 0)
    for text in found.cannot:
        start = " ".join(text.split()[:3])
        assert any(start in content for content in found.files.values()), text


@pytest.mark.parametrize("name", SOME[:6])
def test_attention_and_packing(name: str) -> None:
    """SDPA's flash kernel or eager attention, full blocks or padding."""
    document = PLANS[name]
    targets = emitted(document)[1]
    assert loaded(targets["transformers"], "training_arguments.yaml")["attn_implementation"] == "sdpa"
    assert loaded(targets["axolotl"], "axolotl.yaml")["sample_packing"] is True
    assert loaded(targets["llamafactory"], "llamafactory.yaml")["flash_attn"] == "sdpa"
    eager = replace(job_of(document), attention="eager", packed=False)
    assert "packing" not in " ".join(emit_for("axolotl", eager, START).cannot)
    assert loaded(emit_for("llamafactory", eager, START), "llamafactory.yaml")["flash_attn"] == "disabled"
    assert loaded(emit_for("transformers", eager, START), "training_arguments.yaml")["packing"] is False


def offloaded() -> Job:
    """A plan whose checkpoints lie in host RAM."""
    return next(job for job in map(job_of, PLANS.values()) if job.checkpointing.on_host)


def test_checkpoints_in_host_ram() -> None:
    """LLaMA-Factory has none: they stay on the GPU where they fit, and else it is refused to call that the plan."""
    job = offloaded()
    assert loaded(emit_for("axolotl", job, START), "axolotl.yaml")["activation_offloading"] == "hidden_states"
    fits = replace(job, whole=Whole(device_bytes=70 * 2**30, capacity_bytes=80 * 2**30, step_s=2.0))
    too_large = replace(job, whole=Whole(device_bytes=81 * 2**30, capacity_bytes=80 * 2**30, step_s=2.0))
    said = " ".join(emit_for("llamafactory", fits, START).cannot)
    assert "they stay on the GPU; at most 70.00 GiB of a GPU" in said
    with pytest.raises(InputError, match=r"81\.00 GiB are needed"):
        emit_for("llamafactory", too_large, START)
    with pytest.raises(InputError, match="unknown"):
        emit_for("llamafactory", job, START)


def test_ds_config_is_named_and_never_rewritten() -> None:
    """The file that DeepSpeed reads is the plan's own: no target writes another."""
    for document in list(PLANS.values())[:20]:
        for found in emitted(document)[1].values():
            assert not {"ds_config.json", "plan.json", "train.py"} & set(found.files)


def test_offload_and_nvme_reach_the_node() -> None:
    """Locked memory is asked for where host RAM is pinned; a drive that is not there stops the job."""
    jobs = [job_of(document) for document in PLANS.values()]
    pinned = next(job for job in jobs if job.pins_memory and job.nvme_path is None)
    nvme = next(job for job in jobs if job.nvme_path is not None)
    plain = next(job for job in jobs if not job.pins_memory)
    assert "ulimit -l" in emit_for("torchrun", pinned, START).files["torchrun.sh"]
    assert "ulimit -l" not in emit_for("torchrun", plain, START).files["torchrun.sh"]
    assert f"test -w {nvme.nvme_path}" in emit_for("slurm", nvme, START).files["job.sbatch"]
    pod = loaded(emit_for("kubernetes", nvme, START), "trainjob.yaml")["spec"]["runtimePatches"][0]
    assert f"mountPath': '{nvme.nvme_path}'" in str(pod)


def test_skypilot_names_the_offer_that_was_priced() -> None:
    """Cloud, region, machine and tier; what SkyPilot has no name for is said."""
    machines: dict[str, Any] = {
        "cloud": "gcp", "instance": "a2-ultragpu-8g", "gpu": "a100-80", "region": "us-central1", "tier": "spot",
        "price_source": "skypilot-org/skypilot-catalog@x",
    }  # fmt: skip
    job = job_of(PLANS[SOME[0]])
    found = emit_for("skypilot", replace(job, machines=replace(job.machines, **machines)), START)
    assert loaded(found, "sky.yaml")["resources"] == {
        "infra": "gcp/us-central1",
        "instance_type": "a2-ultragpu-8g",
        "accelerators": f"A100-80GB:{job.machines.gpus_per_node}",
        "use_spot": True,
    }
    assert found.cannot == ()
    own = emit_for("skypilot", job, START)
    assert "no cloud of SkyPilot's" in own.cannot[0]
    assert "tier owned" in own.cannot[1]


def test_secrets_are_named_and_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of the environment stands in no file."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_environment")
    for found in emitted(PLANS[SOME[0]])[1].values():
        assert "hf_secret" not in "".join(found.files.values())


def test_what_is_not_given_is_asked_for() -> None:
    """Without --data every target has a marked place, and its script stops with one line."""
    for found in emitted(PLANS[SOME[1]], Start(folder="plans/x"))[1].values():
        text = "\n".join(found.files.values())
        assert "SET-DATA" in text or "DATA:?" in text or "DATA: null" in text


def test_ssh_carries_plain_words_only() -> None:
    """DeepSpeed's launcher quotes nothing for several nodes, so names that a shell would read are refused."""
    job = next(job for job in map(job_of, PLANS.values()) if job.several_nodes)
    with pytest.raises(InputError, match="hands words to ssh unquoted"):
        emit_for("deepspeed", job, Start(folder="x", data="my data", model="m"))
    found = emit_for("deepspeed", job, Start(folder="my folder", data="data", model="m"))
    assert found.files["hostfile.template"].splitlines()[0] == f"HOST-1 slots={job.machines.gpus_per_node}"
    assert found.files[".deepspeed_env"] == "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True\n"
    assert shlex.split(found.command)[-1] == "my folder/deepspeed.sh"


def test_names_of_jobs() -> None:
    """Letters, digits and dashes, as Kubernetes, Slurm and SkyPilot all take them."""
    for name in ("Llama-3.1-70B", "a" * 200, "--x", "é", "my/model name"):
        made = slug(name)
        assert made.startswith("trainplan")
        assert made.replace("-", "").isalnum()
        assert made.isascii()
        assert len(made) <= 50
        assert not made.endswith("-")


def test_unknown_targets_are_refused() -> None:
    """With what is meant, perhaps."""
    with pytest.raises(InputError, match="did you mean slurm"):
        emit_for("slrum", job_of(PLANS[SOME[0]]), START)


def test_dataset_of_llamafactory() -> None:
    """A file by its name, else a dataset of the hub."""
    job = job_of(PLANS[SOME[0]])
    for data, key in (("/data/x.jsonl", "file_name"), ("org/data", "hf_hub_url")):
        found = emit_for("llamafactory", job, Start(folder="x", data=data, model="m")).files["dataset_info.json"]
        assert json.loads(found)["data"][key] == data


def test_the_table_is_whole() -> None:
    """Every target has a title and a module."""
    job = job_of(PLANS[SOME[0]])
    assert all(TARGETS[name].title in "".join(emit_for(name, job, START).files.values()) for name in TARGETS)
