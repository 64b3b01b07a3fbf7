"""One rank that saves checkpoints: `-m integration.engine_checkpoint FOLDER` reads FOLDER/specs.json.

For each spec an engine is built, takes its steps and saves as transformers' Trainer does: the 16-bit weights, then the
engine. FOLDER/rankN.json lists, per spec, the bytes of every file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import engine_run  # isort: skip -- transformers before deepspeed

import deepspeed
from deepspeed import comm

from . import engine_memory


def main(folder: Path) -> None:
    """Save what FOLDER/specs.json says."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo alone
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    specs = json.loads((folder / "specs.json").read_text())
    report = []
    for index, spec in enumerate(specs):
        case = folder / f"case{index}"
        case.mkdir(exist_ok=True)
        report.append(saved(spec, case))
    (folder / f"rank{comm.get_rank()}.json").write_text(json.dumps(report))
    comm.barrier()
    comm.destroy_process_group()


def saved(spec: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Train a little, save, and measure the files."""
    model, partitioning = engine_run.build_model(spec, folder)
    trainable = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trainable, config=spec["ds_config"])
    engine.train()
    list(engine_run.steps(engine, spec, engine_memory.Recorder(measure=False)))
    frozen = bool(spec["lora"])
    engine.save_checkpoint(str(folder / "engine"), exclude_frozen_parameters=frozen)
    engine.save_16bit_model(str(folder / "weights"), exclude_frozen_parameters=frozen)
    comm.barrier()
    engine.destroy()
    del partitioning
    files = [f for name in ("engine", "weights") for f in (folder / name).rglob("*") if f.is_file()]
    return {str(f.relative_to(folder)): f.stat().st_size for f in files}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
