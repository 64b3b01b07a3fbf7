"""What the processes are told to run: a candidate as its plan file would say it."""

from __future__ import annotations

from typing import Any

from ..candidate import Candidate
from ..documents import adapters_row, decision, model_row
from ..emit.deepspeed import ds_config
from ..emit.training import training_document


def job_of(c: Candidate, *, steps: int, save: bool = False) -> dict[str, Any]:
    """One job of `worker`.

    Args:
        c: what runs, in the words of plan.json, of which the job's functions read these parts.
        steps: optimizer steps; stage 3 prefetches from the third on.
        save: write the weights at the end.
    """
    plan = {
        "decision": decision(c),
        "model": model_row(c),
        "adapters": adapters_row(c),
        "training": training_document(c),
        "ds_config": ds_config(c.ledger, c.setting),
    }
    return {"plan": plan, "steps": steps, "save": save}
