"""Kubernetes: a TrainJob of Kubeflow Trainer; the job's files are a ConfigMap, checkpoints go to a volume claim."""

from __future__ import annotations

import math
import shlex
from typing import Any

from ...units import GIB
from ..job import Job
from ..known_names import known_names
from ..shell import HERE, bash, comments, environment, filled, install, joined, missing, model_of, script, train_words
from ..start import Emitted, Start, slug
from ..yaml_text import to_yaml
from .torchrun import AFTER_GRACE_S, GRACE, GRACE_S

TITLE, NAME, SCRIPT = "Kubeflow Trainer", "trainjob.yaml", "kubernetes.sh"
FILES = ("train.py", "plan.json", "ds_config.json")
JOB, OUT, SHM = "/job", "/checkpoints", "/dev/shm"
KEPT = 3  # checkpoints that lie there at once: train.py keeps 2, and removes the older when a third is whole
SECRET = "hf-token"


def emit(job: Job, start: Start) -> Emitted:
    """A TrainJob, and a script that makes the ConfigMap and submits it."""
    name, first = slug(job.name), _first(job, start)
    cannot = (
        "the priced machine: a cluster has what it has; node selectors and tolerations are yours to add",
        "limits on locked memory: they are the container runtime's",
    )
    document = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {
            "runtimeRef": {"name": known_names("kubernetes")["runtime"]},
            "trainer": _trainer(job, start),
            "runtimePatches": [{"manager": "trainplan", "trainingRuntimeSpec": _patch(job, name)}],
        },
    }
    from_files = joined(["kubectl create configmap " + shlex.quote(name), *(f"--from-file={f}" for f in FILES)])
    lines = [
        HERE,
        *filled(missing(job, start), NAME),
        f"{from_files} \\\n  --dry-run=client --output=yaml | kubectl apply --server-side --filename=-",
        f"kubectl create --filename={NAME}",
    ]
    return Emitted(
        files={
            NAME: to_yaml(document, comments(job, TITLE, cannot, first)),
            SCRIPT: script(comments(job, TITLE), lines),
        },
        command=bash(job, start, SCRIPT, told_first=False),
        cannot=cannot,
        first=first,
    )


def _first(job: Job, start: Start) -> tuple[str, ...]:
    room = math.ceil(KEPT * job.machines.checkpoint_bytes / GIB)
    model = model_of(job, start)
    read = "DATA and MODEL are read" if model is None or model.startswith(("/", ".", "~")) else "DATA is read"
    return (
        f"a volume claim {slug(job.name)} of {room:,} GiB or more must be there, which every node can write to",
        f"where weights are gated, a secret {SECRET} with the key HF_TOKEN must be there",
        f"{read} in the pods; packages are installed at each start: an image that has them starts faster",
    )


def _trainer(job: Job, start: Start) -> dict[str, Any]:
    m, resource = job.machines, known_names("kubernetes")["resource"]
    return {
        "numNodes": m.nodes,
        "numProcPerNode": m.gpus_per_node,
        "resourcesPerNode": {
            "requests": {resource: m.gpus_per_node, "memory": f"{math.ceil(m.host_bytes / GIB)}Gi"},
            "limits": {resource: m.gpus_per_node},
        },
        "command": ["bash", "-c", literal(_run(job))],
        "env": [
            {"name": "DATA", "value": literal(start.data or "SET-DATA")},
            {"name": "MODEL", "value": literal(model_of(job, start) or "SET-MODEL")},
            {"name": "OUT", "value": OUT},
            {
                "name": "HF_TOKEN",
                "valueFrom": {"secretKeyRef": {"name": SECRET, "key": "HF_TOKEN", "optional": True}},
            },
        ],
    }


def _run(job: Job) -> str:
    """What every pod runs; torchrun is told by Kubeflow's PET_ variables who is where."""
    lines = [
        "set -euo pipefail",
        install(job).rstrip(),
        f"cd {JOB}",
        *environment(job, locks=False),
        "# The log names its plan: both lie beside the checkpoints, since a ConfigMap is read only.",
        'test "${PET_NODE_RANK:-0}" != 0 || cp plan.json "$OUT"',
        joined([f"exec torchrun {GRACE}", *train_words(None, None, more=False), '"--log=$OUT/measured.jsonl"']),
    ]
    return "\n".join(lines) + "\n"


def literal(value: str) -> str:
    """A text that Kubernetes does not expand: $(NAME) in a value of the environment is a reference, $$ is a dollar.

    >>> literal("a$(HOME)"), literal("a$HOME")
    ('a$$(HOME)', 'a$HOME')
    """
    return value.replace("$", "$$") if "$(" in value or "$$" in value else value


def _patch(job: Job, name: str) -> dict[str, Any]:
    """The pods: time to save when told to stop; volumes of the job's files, checkpoints, shared memory, NVMe."""
    volumes: list[tuple[str, str, dict[str, Any]]] = [
        ("job", JOB, {"configMap": {"name": name}}),
        ("checkpoints", OUT, {"persistentVolumeClaim": {"claimName": name}}),
        ("shared-memory", SHM, {"emptyDir": {"medium": "Memory"}}),
    ]
    if job.nvme_path is not None:
        volumes.append(("nvme", job.nvme_path, {"hostPath": {"path": job.nvme_path, "type": "Directory"}}))
    known = known_names("kubernetes")
    pod = {
        "terminationGracePeriodSeconds": GRACE_S + AFTER_GRACE_S,
        "volumes": [{"name": short, **source} for short, _, source in volumes],
        "containers": [
            {
                "name": known["container"],
                "volumeMounts": [{"name": short, "mountPath": path} for short, path, _ in volumes],
            }
        ],
    }
    jobs = [{"name": known["job"], "template": {"spec": {"template": {"spec": pod}}}}]
    return {"template": {"spec": {"replicatedJobs": jobs}}}
