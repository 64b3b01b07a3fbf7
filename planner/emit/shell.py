"""Shell scripts that start a job. Whatever a user or a plan says is quoted, or a variable in double quotes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from textwrap import wrap

from ..units import GIB
from .job import Job
from .launch import ALLOCATOR
from .start import Start

WIDTH = 116  # of a comment
HELP = {
    "DATA": "set DATA to a text file or a datasets path",
    "MODEL": "set MODEL to a folder with weights or a hub id",
}
PORT = 29500  # torch's own default


def comments(job: Job, started_by: str, cannot: Iterable[str] = (), first: Iterable[str] = ()) -> list[str]:
    """The top of every file: which plan it starts, what must be done before, what it cannot express."""
    m = job.machines
    lines = [
        f"{job.name}, {job.method.value}: {job.gpus} x {m.gpu} on {m.nodes} node{'s' if m.nodes > 1 else ''}, "
        f"{job.steps:,} steps of {job.global_batch:,} sequences of {job.seq_len:,} tokens; started by {started_by}."
    ]
    lines += _listed("Before it is started:", first)
    lines += _listed("What of the plan is not expressed:", cannot)
    return [f"# {part}" for line in lines for part in wrap(line, WIDTH, subsequent_indent="    ")]


def _listed(heading: str, texts: Iterable[str]) -> list[str]:
    found = [f"  - {text}" for text in texts]
    return [heading, *found] if found else []


def script(comment: Sequence[str], lines: Iterable[str], *, directives: Sequence[str] = ()) -> str:
    """A bash script that stops at the first failure."""
    head = ["#!/usr/bin/env bash", *directives, *comment, "set -euo pipefail"]
    return "\n".join([*head, *lines]) + "\n"


def beside(job: Job, start: Start) -> list[str]:
    """Ask for what is missing, then go to the folder, whose files name each other; the user's own paths still hold."""
    names = missing(job, start)
    kept = [f'test ! -e "${name}" || {name}="$(realpath -- "${name}")"' for name in names]
    return [*given(job, start), *kept, HERE]


HERE = 'cd -- "$(dirname -- "${BASH_SOURCE[0]}")"'


def missing(job: Job, start: Start) -> list[str]:
    """Variables that the environment must set when the job is started."""
    needed = (("DATA", start.data), ("MODEL", model_of(job, start)))
    return [name for name, value in needed if value is None]


def given(job: Job, start: Start) -> list[str]:
    """Stop with one line where the environment must say what the user has not said yet."""
    return [f': "${{{name}:?{HELP[name]}}}"' for name in missing(job, start)]


def model_of(job: Job, start: Start) -> str | None:
    """The user's weights, else the hub id of the plan's."""
    return start.model if start.model is not None else job.model


def filled(names: Iterable[str], file: str) -> list[str]:
    """Stop where a file still has a place to fill in: SET-DATA, SET-MODEL."""
    return [
        f"! grep -q 'SET-{name}' {file} || {{ echo '{file}: write a path or name in place of SET-{name}, "
        f"or emit again with --{name.lower()}' >&2; exit 2; }}"
        for name in names
    ]


def option(name: str, value: str | None, variable: str) -> str:
    """``--name=value`` as one word of a shell, whatever the value begins with; None: of a variable.

    >>> print(option("data", "it's $HOME", "DATA"), option("data", None, "DATA"))
    '--data=it'"'"'s $HOME' "--data=$DATA"
    """
    return f'"--{name}=${variable}"' if value is None else shlex.quote(f"--{name}={value}")


def train_words(data: str | None, model: str | None) -> list[str]:
    """train.py and what it is told, as words of a shell; all else it reads from plan.json. None: of DATA and MODEL."""
    return [
        "train.py",
        "--plan=plan.json",
        option("data", data, "DATA"),
        option("model", model, "MODEL"),
        '"--out=${OUT:-run}"',
    ]


def install(job: Job) -> str:
    """Lines that install what the plan is for; torch first, or others fetch the newest; no operator is compiled yet."""
    others = [f"{name}=={version}" for name, version in job.versions.items() if name != "torch"]
    return (
        f"python -m pip install --quiet {shlex.quote('torch==' + job.versions['torch'])}\n"
        f"DS_BUILD_OPS=0 python -m pip install --quiet {shlex.join(others)}\n"
    )


def environment(job: Job, *, locks: bool = True) -> list[str]:
    """What the planned memory rests on outside of the program: the allocator, locked memory, the NVMe drive."""
    lines = [f"export {ALLOCATOR}"]
    if job.pins_memory and locks:
        need = f"the plan needs {job.machines.host_bytes / GIB:,.0f} GiB of host RAM on a node"
        lines += [
            "# Offload pins host RAM; a limit on locked memory stops it, or slows its transfers.",
            f'ulimit -l unlimited 2>/dev/null || echo "locked memory stops at $(ulimit -l) KiB; {need}" >&2',
        ]
    if job.nvme_path is not None:
        path = shlex.quote(job.nvme_path)
        lines.append(
            f"test -w {path} || {{ echo 'the plan offloads to NVMe:' {path} 'is no folder to write to' >&2; exit 2; }}"
        )
    return lines


def rendezvous(job: Job, *, rank: bool = True) -> list[str]:
    """Stop where several nodes are not told how to find each other."""
    if not job.several_nodes:
        return []
    lines = [': "${MASTER_ADDR:?set MASTER_ADDR to the first node, the same on every node}"']
    if rank:
        lines.append(f': "${{NODE_RANK:?set NODE_RANK to 0 on the first node, up to {job.machines.nodes - 1}}}"')
    return [*lines, f'export MASTER_PORT="${{MASTER_PORT:-{PORT}}}"']


def joined(words: Iterable[str]) -> str:
    """One command over several lines."""
    return " \\\n  ".join(words)


def bash(job: Job, start: Start, name: str, *, told_first: bool = True) -> str:
    """The command that runs a script of the folder; what it must be told stands in front, in capitals."""
    return f"{told(job, start) if told_first else ''}bash {shlex.quote(f'{_as_path(start.folder)}/{name}')}"


def told(job: Job, start: Start) -> str:
    """Variables that the user must set."""
    return "".join(f"{name}={PLACE[name]} " for name in missing(job, start))


PLACE = {"DATA": "PATH_OR_DATASET", "MODEL": "PATH_OR_HUB_ID"}


def _as_path(folder: str) -> str:
    """A folder that no program takes for an option."""
    return f"./{folder}" if folder.startswith("-") else folder.rstrip("/") or "/."


def in_folder(start: Start) -> str:
    """Go to the job's folder."""
    return f"cd -- {shlex.quote(_as_path(start.folder))}"
