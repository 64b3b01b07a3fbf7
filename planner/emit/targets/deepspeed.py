"""DeepSpeed's launcher: on one machine, or over a hostfile and ssh."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import InputError
from ..job import Job
from ..launch import ALLOCATOR
from ..shell import bash, beside, comments, environment, joined, model_of, script, train_words
from ..start import Emitted, Start

TITLE, NAME = "DeepSpeed's launcher", "deepspeed.sh"
# DeepSpeed 0.19.8 launcher/multinode_runner.py: ssh gets arguments unquoted, or in double quotes that expand $ and `.
PLAIN = "A-Za-z0-9_./:@%+=,-"


def emit(job: Job, start: Start) -> Emitted:
    """A script; for several nodes a template of the hostfile, and the variables that ssh must carry."""
    if not job.several_nodes:
        launched = f"exec deepspeed --num_gpus={job.gpus} --no_local_rank"
        words = [launched, *train_words(start.data, model_of(job, start))]
        lines = [*beside(job, start), *environment(job), joined(words)]
        return Emitted(
            files={NAME: script(comments(job, TITLE), lines)},
            command=bash(job, start, NAME),
        )
    _refuse_unplain(job, start)
    first = (
        f"copy hostfile.template to hostfile and write the names of your {job.machines.nodes} nodes into it; "
        "ssh must reach them without a password, and each must see this folder under the same path",
        "HF_TOKEN does not travel over ssh: where the weights are gated, log in on every node",
    )
    return Emitted(
        files={
            NAME: script(comments(job, TITLE, first=first), _over_ssh(job, start)),
            "hostfile.template": "".join(
                f"HOST-{i + 1} slots={job.machines.gpus_per_node}\n" for i in range(job.machines.nodes)
            ),
            ".deepspeed_env": f"{ALLOCATOR}\n",
        },
        command=bash(job, start, NAME),
        first=first,
    )


def _over_ssh(job: Job, start: Start) -> list[str]:
    m = job.machines
    words = [
        f"exec deepspeed --hostfile=hostfile --num_nodes={m.nodes} --num_gpus={m.gpus_per_node} --no_local_rank",
        *train_words(start.data, model_of(job, start)),
    ]
    return [
        *beside(job, start),
        "test -f hostfile || { echo 'hostfile: missing; copy hostfile.template and write the nodes into it' >&2; "
        "exit 2; }",
        "# The launcher hands words to ssh unquoted: nothing that a shell would read may stand in them.",
        'for value in "$PWD" "${DATA:-}" "${MODEL:-}" "${OUT:-}" "$@"; do',
        f'  case "$value" in *[!{PLAIN}]*)',
        "    echo \"deepspeed over ssh cannot carry '$value'; use other names, or another target\" >&2; exit 2 ;;",
        "  esac",
        "done",
        *environment(job),
        joined(words),
    ]


def _refuse_unplain(job: Job, start: Start) -> None:
    for name, value in (("--data", start.data), ("--model", model_of(job, start))):
        if value is not None and not set(value) <= set(_plain()):
            raise InputError(
                f"{name}: {value[:40]!r} with --for deepspeed on {job.machines.nodes} nodes: its launcher hands words "
                f"to ssh unquoted; allowed are letters, digits and _./:@%+=,-; rename it, or use --for torchrun"
            )


def _plain() -> Iterator[str]:
    return (chr(c) for c in range(128) if chr(c).isalnum() or chr(c) in "_./:@%+=,-")
