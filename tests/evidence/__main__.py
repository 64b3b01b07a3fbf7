"""`make evidence-gpu`: measure the matrix on the GPU of this machine, or list it without one."""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from trainplan.planner.catalog import find_gpu
from trainplan.planner.errors import InputError
from trainplan.planner.report.table import table
from trainplan.planner.units import GIB

from .gpu_collect import ROOT, TIMEOUT_S, RunFailed, append, finished, measure, rows
from .gpu_matrix import Configuration, configurations

LISTED_GPU = "h100"
LISTED_HOST_GIB = 512.0
NO_GPU = (
    "make evidence-gpu: no GPU that torch can use is here; run it on a machine with one, or see its matrix with --list"
)
ASK_TORCH = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 without a GPU or where a run failed, or 2 where the GPU is not in the catalog."""
    chosen = _parser().parse_args(arguments)
    name = chosen.gpu or (LISTED_GPU if chosen.list else here())
    if not name:
        print(NO_GPU, file=sys.stderr)
        return 1
    try:
        gpu = find_gpu(name).name
    except InputError as error:
        print(f"make evidence-gpu: {error}; say which it is with --gpu NAME", file=sys.stderr)
        return 2
    host_gib = chosen.host_gib or (LISTED_HOST_GIB if chosen.list else host_memory_gib())
    everything = configurations(gpu, host_gib=host_gib)
    wanted = [c for c in everything if fnmatch.fnmatch(c.id, chosen.only)][: chosen.limit]
    if chosen.list:
        print(listing(wanted))
        return 0
    if not here():
        print(NO_GPU, file=sys.stderr)
        return 1
    date = datetime.date.today().isoformat()
    return measure_all(wanted, chosen.out or ROOT / "configs" / "measured" / f"{gpu}-{date}.csv", date, chosen.timeout)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make evidence-gpu", description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the matrix with predicted memory; needs no GPU")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="configurations whose id matches, as in a shell")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N of them")
    parser.add_argument("--gpu", help="the card's name in the catalog, where torch's name is not found there")
    parser.add_argument("--host-gib", type=float, help="RAM of the machine; by default what the system says")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="seconds for one configuration")
    parser.add_argument("--out", type=Path, help="table to add to; configurations that it holds are skipped")
    return parser


def here() -> str:
    """Torch's name of the first GPU, asked in a process of its own, which holds no memory afterwards; "": none."""
    done = subprocess.run([sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def host_memory_gib() -> float:
    """RAM of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def listing(wanted: Sequence[Configuration]) -> str:
    """The matrix as a table, predicted memory in GiB."""
    head = ("configuration", "tokens", "micro-batch", "allocated", "reserved", "device", "upper", "of the card")
    lines = [(c.id, f"{c.seq_len:,}", str(c.micro_batch), *_gib(c), f"{c.predicted.share:.1%}") for c in wanted]
    card = wanted[0].gpu if wanted else "GPU"
    return f"{table(lines, header=head)}\n{len(wanted)} configurations; predicted memory of one {card} in GiB"


def _gib(c: Configuration) -> tuple[str, ...]:
    p = c.predicted
    return tuple(f"{size / GIB:.2f}" for size in (p.allocated, p.reserved, p.device, p.upper))


def measure_all(wanted: Sequence[Configuration], out: Path, date: str, timeout_s: float) -> int:
    """Measure what the table does not hold yet; a run that fails is named, and the others still run."""
    done = finished(out)
    failed = []
    for number, configuration in enumerate(wanted, 1):
        if configuration.id in done:
            continue
        print(f"{number}/{len(wanted)} {configuration.id}: ", end="", flush=True)
        try:
            result = measure(configuration, timeout_s=timeout_s)
        except RunFailed as error:
            failed.append(configuration.id)
            print(f"failed\n{error}", flush=True)
            continue
        append(out, list(rows(configuration, result, date=date)))
        print(result["outcome"], flush=True)
    print(f"{out}: {len(finished(out))} configurations" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
