"""Starts processes under torchrun and brings back what they wrote; none of them outlives its run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..emit.launch import ALLOCATOR
from ..errors import EngineFailed

WORKER = "trainplan.planner.verify.worker"
# cpu_adam is compiled by the first engine that offloads its optimizer: 99 s on 2 busy cores, measured 2026-11-24.
TIMEOUT_S = 1800.0
ENDING_S = 10.0  # between asking processes to end and killing them
MESSAGE_LINES = 4  # of an exception's message
RANK = "[rank"  # how torch begins the lines of a rank's traceback
LONGEST_ERROR = 300  # characters of an error that are repeated
RENDEZVOUS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def run_jobs(
    jobs: Sequence[Mapping[str, Any]],
    *,
    processes: int,
    environment: Mapping[str, str],
    timeout_s: float = TIMEOUT_S,
) -> list[list[dict[str, Any]]]:
    """Run jobs one after another in one set of processes.

    Args:
        jobs: what `worker` reads.
        processes: ranks of each.
        environment: of the processes: see `environment`.
        timeout_s: after which all of them are ended.

    Returns:
        For each job the reports of its ranks.

    Raises:
        EngineFailed: a process failed, or there was no end; the message has its error and where its output is kept.
    """
    with working_folder("trainplan-verify-") as folder:
        (folder / "jobs.json").write_text(json.dumps(jobs))
        launch(folder, processes, environment=environment, timeout_s=timeout_s)
        ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
    return [list(reports) for reports in zip(*ranks, strict=True)]


@contextmanager
def working_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder, removed whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def launch(
    folder: Path, processes: int, *, environment: Mapping[str, str], worker: str = WORKER, timeout_s: float = TIMEOUT_S
) -> None:
    """Run a worker under torchrun, in a session of its own: Ctrl-C, an error or a timeout end all of it.

    Raises:
        EngineFailed: exit status other than 0, or no end.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
        *("-m", worker, str(folder)),
    ]
    log, code = folder / "output.txt", None
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            with suppress(subprocess.TimeoutExpired), told_to_end():
                code = process.wait(timeout_s)
        finally:
            _end(process)
    # gloo aborts now and then while processes end (1 of about 90 runs here); a report is a rank's last act before that
    if code is None or (code != 0 and not _all_reported(folder, processes)):
        raise EngineFailed(_failure(code, log, timeout_s))


@contextmanager
def told_to_end() -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does, so that what was started is ended; only the main thread may listen."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a session: torchrun passes a first signal on to its workers; then none is asked."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _all_reported(folder: Path, processes: int) -> bool:
    """Whether every rank had finished its work and written it down whole."""
    try:
        return all(json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes))
    except (OSError, ValueError):
        return False


def _failure(code: int | None, log: Path, timeout_s: float) -> str:
    """Why a run failed: the last error that it printed, and where the whole output is kept."""
    output = log.read_text(errors="replace")
    kept = keep(output)
    if code is None:
        why = f"no end after {timeout_s:.0f} s; a killed compiler leaves a lock: remove {extensions_folder()} then"
    else:
        why = f"exit status {code}: {last_error(output)}"
    return f"verify: the engine failed, {why}; its output is in {kept}"


def keep(output: str) -> Path:
    """Write a failed run's output where the user can read it."""
    with tempfile.NamedTemporaryFile("w", prefix="trainplan-verify-", suffix=".log", delete=False) as file:
        file.write(output)
    return Path(file.name)


def last_error(output: str) -> str:
    """The last exception that a rank printed, its message's next lines included; else the last line of all.

    >>> last_error("[rank0]: ValueError: no such\\n[rank0]:   key\\n\\ntorch...ChildFailedError: ")
    'ValueError: no such key'
    """
    lines = output.splitlines()
    named = [index for index, line in enumerate(lines) if _names_error(_said(line))]
    if not named:
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")[:LONGEST_ERROR]
    first, more = lines[named[-1]], lines[named[-1] + 1 : named[-1] + MESSAGE_LINES]
    rest = [_said(line).strip() for line in more if line.startswith(RANK) and first.startswith(RANK)]
    return " ".join([_said(first).strip(), *rest])[:LONGEST_ERROR]


def _said(line: str) -> str:
    """A line without the number of its rank."""
    return line.partition("]: ")[2] if line.startswith(RANK) else line


def _names_error(line: str) -> bool:
    name, colon, rest = line.partition(":")
    known = name.replace(".", "").isidentifier() and name.endswith(("Error", "Exception", "Refused"))
    return known and bool(colon and rest.strip()) and "ChildFailedError" not in name


def extensions_folder() -> Path:
    """Where torch keeps compiled operators."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))


def environment(device: str, processes: int) -> dict[str, str]:
    """The caller's environment, less its rendezvous, plus what engines need on this device."""
    kept = {key: value for key, value in os.environ.items() if key not in RENDEZVOUS}
    scripts = str(Path(sys.executable).parent)  # ninja is installed there
    kept["PATH"] = os.pathsep.join([scripts, kept.get("PATH", os.defpath)])
    if paths := kept.get("PYTHONPATH"):
        kept["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths.split(os.pathsep) if path)
    if sys.platform == "linux":
        kept["GLOO_SOCKET_IFNAME"] = "lo"  # otherwise gloo resolves the host's name, which a container may not know
    kept |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # nothing is downloaded
    if device == "cpu":
        threads = kept.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
        return kept | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}
    name, _, value = ALLOCATOR.partition("=")
    return kept | {name: value}
