"""A ds_config.json that exists already: does it fit, what does each key cost, what is wrong, what would be better."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..planner.calibrate.used import profile_warnings
from ..planner.candidate import Candidate
from ..planner.documents import cost_document, decision, memory_document, time_document
from ..planner.dsconfig.facts import Facts, facts
from ..planner.dsconfig.findings import Finding, Severity
from ..planner.dsconfig.keys import document as key_document
from ..planner.dsconfig.prices import KeyPrice, key_prices
from ..planner.dsconfig.problems import problems
from ..planner.dsconfig.reading import ConfigText, from_mapping, read
from ..planner.dsconfig.rules import found
from ..planner.dsconfig.stages import ignored
from ..planner.errors import InputError
from ..planner.machines import machines_for
from ..planner.model import Model
from ..planner.plan import warnings_for
from ..planner.request import Request
from ..planner.workload import Method
from .asking import as_model, request
from .bettering import Better, better
from .configuring import checkpointed
from .judging import Bench, Judged

FITS, DOES_NOT_FIT, NOT_GOOD = 0, 3, 5  # exit codes


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The answer to `trainplan check`."""

    request: Request
    config: ConfigText
    judged: Judged
    findings: tuple[Finding, ...]
    prices: tuple[KeyPrice, ...]
    better: Better | None

    @property
    def candidate(self) -> Candidate:
        """The configuration on the machine."""
        return self.judged.candidate

    @property
    def unknown(self) -> tuple[str, ...]:
        """Why it cannot be said that it fits: what is not modelled and may need more."""
        told = self.judged
        named = [f"{each.path}: {each.effect}" for each in told.meaning.unmodelled if each.may_add]
        return (*named, *((told.refusal.message(),) if told.refusal else ()))

    @property
    def verdict(self) -> str:
        """One of four: unknown is never "fits"."""
        if not self.candidate.fits:
            return "does not fit"
        if self._any(Severity.ERROR):
            return "will not run"
        return "cannot be judged" if self.unknown else "fits"

    @property
    def exit_code(self) -> int:
        """0: it fits, and nothing harms; 3: it does not fit; 5: it harms, will not run or cannot be judged."""
        if not self.candidate.fits:
            return DOES_NOT_FIT
        bad = self._any(Severity.ERROR) or self._any(Severity.HARMFUL) or self.unknown
        return NOT_GOOD if bad else FITS

    def _any(self, severity: Severity) -> bool:
        return any(finding.severity is severity for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        c, told = self.candidate, self.judged
        return {
            "schema_version": 1,
            "status": "checked",
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "file": self.config.name,
            "deepspeed": key_document()["version"],
            "configuration": decision(c),
            "memory": memory_document(c),
            "time": time_document(c),
            "cost": cost_document(c),
            "warnings": [*warnings_for(c), *profile_warnings(self.request, c.offer.node.gpu)],
            "resolved": [{"key": path, "value": value, "as": how} for path, value, how in told.resolved.autos],
            "precision": told.meaning.precision.value,
            "findings": [finding.to_dict() for finding in self.findings],
            "key_costs": [price.to_dict() for price in self.prices],
            "not_modelled": [each.to_dict() for each in told.meaning.unmodelled],
            "unknown": list(self.unknown),
            "better": self.better.to_dict() if self.better else None,
        }


def check(
    config: str | os.PathLike[str] | Mapping[str, Any],
    model: str | Model,
    *,
    gpus: str = "",
    micro_batch: int | None = None,
    method: str | Method = "full",
    checkpointing: str | int = "none",
    wanted: Request | None = None,
    **options: Any,
) -> Checked:
    """What an existing DeepSpeed configuration means, needs and costs, what is wrong with it, and a better one.

    Args:
        config: a file, or the configuration itself.
        model: as in `plan`.
        gpus: a fixed count, "8xa100-80".
        micro_batch: sequences per GPU and micro-step, where the file says "auto" or nothing.
        method: full, lora or qlora: what the training script does.
        checkpointing: "none", "full", or how many layers: likewise.
        wanted: a finished request, instead of gpus and options.
        options: as in `plan`; require=("bf16",) says what the script passes where the file says "auto".

    Raises:
        InputError: the file is no JSON, or contradicts the options.

    >>> import trainplan
    >>> zero2 = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    >>> found = trainplan.check(zero2, "llama-3-8b", gpus="8xa100-80", checkpointing="full")
    >>> found.verdict, found.exit_code, sorted(found.better.changes)[:2]
    ('fits', 0, ['zero_optimization.overlap_comm', 'zero_optimization.stage'])
    """
    loaded = as_model(model)
    text = from_mapping(config) if isinstance(config, Mapping) else read(str(Path(config)))
    chosen = (wanted or request(gpus=gpus, method=method, **options)).suited(loaded)
    chosen = replace(chosen, max_gpus=max(chosen.max_gpus, chosen.gpu_count or 0))
    bench = bench_of(loaded, chosen, micro_batch, checkpointing)
    judged = bench.judge(text.values)
    bench = replace(bench, machines=(judged.candidate.offer,))  # variants are compared on one machine
    findings = findings_of(text, judged, bench)
    return Checked(
        request=chosen,
        config=text,
        judged=judged,
        findings=findings,
        prices=key_prices(_facts(judged), judged.resolved, judged.candidate, bench.again(text.values)),
        better=better(text, judged, bench, findings),
    )


def findings_of(config: ConfigText, judged: Judged, bench: Bench) -> tuple[Finding, ...]:
    """Everything that is wrong, harmful, wasteful or worth knowing, the worst first."""
    again = bench.again(config.values)
    findings = (
        *problems(config),
        *found(_facts(judged), judged.resolved, judged.candidate, again),
        *ignored(judged.resolved),
    )
    return tuple(sorted(findings, key=lambda finding: finding.severity))


def _facts(judged: Judged) -> Facts:
    return facts(judged.resolved, judged.meaning, judged.candidate.ledger, judged.candidate.setting)


def bench_of(model: Model, wanted: Request, micro_batch: int | None, checkpointing: str | int) -> Bench:
    """Everything of a check but the configuration.

    Raises:
        InputError: no fixed count of GPUs, or no machine.
    """
    if wanted.gpu_count is None:
        raise InputError(
            f"--gpus: no count, got {','.join(wanted.gpus)}; a check needs a type and a count; write --gpus 8xh100"
        )
    layers, on_host = checkpointed(checkpointing, model)
    return Bench(
        model=model,
        wanted=wanted,
        machines=tuple(machines_for(wanted, wanted.gpu_count, known_host=True)),
        method=wanted.methods[0] if wanted.methods else Method.FULL,
        layers=layers,
        on_host=on_host,
        micro_batch=micro_batch,
    )
