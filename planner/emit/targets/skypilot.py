"""SkyPilot: a task for the very machines that were priced."""

from __future__ import annotations

import re
import shlex
from typing import Any

from ..job import Job, Machines
from ..known_names import known_names
from ..shell import comments, environment, in_folder, install, joined, missing, model_of, train_words
from ..start import Emitted, Start, slug
from ..yaml_text import to_yaml
from .torchrun import GRACE, launch

TITLE, NAME = "SkyPilot", "sky.yaml"
REGION = re.compile(r"[A-Za-z0-9-]+")  # of a cloud's catalog: no blanks, no words of ours
PLACED = ("on-demand", "spot")  # tiers that a task can ask for


def emit(job: Job, start: Start) -> Emitted:
    """A task and how to launch it. Data and weights are read on the machines it starts."""
    resources, cannot = _resources(job.machines)
    document: dict[str, Any] = {
        "name": slug(job.name),
        "num_nodes": job.machines.nodes,
        "resources": resources,
        "workdir": ".",
        "envs": _environment(job, start),
        "setup": install(job),
        "run": _run(job, start),
    }
    if _from_hub(job, start):
        document["secrets"] = {"HF_TOKEN": None}
    first = _first(job, start)
    return Emitted(
        files={NAME: to_yaml(document, comments(job, TITLE, cannot, first))},
        command=f"{in_folder(start)} && {_command(job, start)}",
        cannot=cannot,
        first=first,
    )


def _first(job: Job, start: Start) -> tuple[str, ...]:
    read = "DATA is read" if _from_hub(job, start) else "DATA and MODEL are read"
    data = f"{read} on the machines: a name of the hub, a bucket, or a path that file_mounts brings there"
    kept = "OUT must be a path that all nodes share, such as a bucket that file_mounts mounts"
    alone = "OUT goes with the machine: a bucket that file_mounts mounts keeps checkpoints and the trained model"
    return (data, kept if job.several_nodes else alone)


def _environment(job: Job, start: Start) -> dict[str, str | None]:
    """None: SkyPilot asks for it with --env."""
    unknown = missing(job, start)
    values = {"DATA": start.data, "MODEL": model_of(job, start), "OUT": "run"}
    return {name: None if name in unknown else value for name, value in values.items()}


def _from_hub(job: Job, start: Start) -> bool:
    """Weights of the hub may be gated; a folder's are not."""
    model = model_of(job, start)
    return model is None or not model.startswith(("/", ".", "~"))


def _command(job: Job, start: Start) -> str:
    managed = ("jobs",) if job.machines.tier == "spot" else ()  # it starts again on another machine when one is taken
    words = ["sky", *managed, "launch", NAME, *(f"--env={name}=PATH" for name in missing(job, start))]
    return shlex.join([*words, "--secret=HF_TOKEN"] if _from_hub(job, start) else words)


def _run(job: Job, start: Start) -> str:
    """The same on every node; the first in SKYPILOT_NODE_IPS is where they meet."""
    words = [f"torchrun {GRACE} {launch(job, run='trainplan')}", *train_words(None, None)]
    meet = [
        'MASTER_ADDR="$(head -n 1 <<< "$SKYPILOT_NODE_IPS")"',
        "export MASTER_ADDR MASTER_PORT=29500",
    ]
    return "\n".join([*(meet if job.several_nodes else []), *environment(job), joined(words)]) + "\n"


def _resources(m: Machines) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The offer by its own names, where SkyPilot has them; what is left open is said."""
    known, found, cannot = known_names("skypilot"), {}, []
    accelerator = known["accelerators"].get(m.gpu)
    if m.cloud in known["clouds"]:
        placed = REGION.fullmatch(m.region) and "skypilot" in m.price_source
        found = {"infra": f"{m.cloud}/{m.region}" if placed else m.cloud, "instance_type": m.instance}
        if not placed:
            cannot.append(f"region {m.region}: not known to be SkyPilot's name; it takes the cheapest of {m.cloud}")
        if accelerator and m.cloud in known["plain_names"]:
            found["accelerators"] = f"{accelerator}:{m.gpus_per_node}"
    else:
        cannot.append(f"{m.cloud} is no cloud of SkyPilot's: another machine with these GPUs, at another price")
        if accelerator is None:
            cannot.append(f"{m.gpu} has no name in SkyPilot that is known: write one under resources.accelerators")
        else:
            found["accelerators"] = f"{accelerator}:{m.gpus_per_node}"
    if m.tier not in PLACED:
        cannot.append(f"tier {m.tier}: a task rents on demand or spot, at another price than the plan's")
    return {**found, "use_spot": m.tier == "spot"}, tuple(cannot)
