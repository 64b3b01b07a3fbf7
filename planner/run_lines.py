"""A whole run as documents: each line's hours, arithmetic and source, and what the run assumes."""

from __future__ import annotations

from typing import Any

from .efficiency import figure, value
from .hardware import Tier
from .run import Run
from .units import GIGA, HOUR_S, count, duration
from .upkeep import run_figures
from .workload import RunOptions

RENEWAL = "J. T. Daly 2006, FGCS 22: M e^(R/M) (e^((tau + C)/M) - 1) U / tau"
YOU = "you"


def run_document(run: Run, options: RunOptions, tier: Tier) -> dict[str, Any]:
    """Where the hours of the whole run go."""
    return {
        "lines": [
            {"name": name, "hours": hours, "share": hours / run.hours, "why": why, "source": source}
            for name, hours, why, source in lines(run, options, tier)
        ],
        "goodput": run.goodput,
        "checkpoint_bytes": run.saved.total_bytes,
        "checkpoint_write_h": run.kept.write_h,
        "checkpoint_interval_h": run.interval_h,
        "hours_between_failures": run.kept.between_failures_h,
        "failures": run.failures,
    }


def lines(run: Run, options: RunOptions, tier: Tier) -> tuple[tuple[str, float, str, str], ...]:
    """Name, hours, arithmetic and source of each line; the hours add up to the run's."""
    kept, saved = run.kept, run.saved
    work_h = run.steps_h + run.stalls_h + run.evaluation_h
    written = work_h / run.interval_h
    m, c, r, tau, u = (
        duration(h * HOUR_S) for h in (kept.between_failures_h, kept.write_h, kept.restart_h, run.interval_h, work_h)
    )
    return (
        ("optimizer steps", run.steps_h, "steps x seconds of one", "the terms of the step"),
        ("data stalls", run.stalls_h, _share("stalls"), figure("stalls", "share").source),
        ("evaluation", run.evaluation_h, _evaluation(options), _evaluation_source(options)),
        (
            "start-up",
            run.start_up_h,
            f"{value('start', 'seconds'):.0f} s, and every node reads the model",
            figure("start", "seconds").source,
        ),
        (
            "writing checkpoints",
            run.checkpoints_h,
            f"{written:,.2f} of {c}: {_gb(saved.alone_bytes)} by rank 0, {_gb(saved.parallel_bytes)} by all ranks",
            _given(options.storage_bytes_per_s) or figure("storage", "bytes_per_s_per_node").source,
        ),
        (
            "work lost to failures",
            run.lost_h,
            f"hours at M {m}, C {c}, R {r}, tau {tau}, U {u}, less the other lines",
            f"{RENEWAL}; {_failures_source(options, tier)}",
        ),
        (
            "restarts",
            run.restarts_h,
            f"{run.failures:.3g} failures, {r} until the run goes on",
            figure("restart", "reschedule_s").source,
        ),
    )


def _given(option: object) -> str:
    return "" if option is None else YOU


def _share(table: str) -> str:
    return f"{value(table, 'share'):.1%} of the steps' time"


def _evaluation(options: RunOptions) -> str:
    if not options.eval_every:
        return _share("evaluation")
    return f"{count(options.eval_tokens or 0)} tokens forward every {options.eval_every:,} steps"


def _evaluation_source(options: RunOptions) -> str:
    return "the forward pass of the step" if options.eval_every else figure("evaluation", "share").source


def _failures_source(options: RunOptions, tier: Tier) -> str:
    spot = f"; {figure('spot', 'hours_between_interruptions').source}" if tier is Tier.SPOT else ""
    return (_given(options.mtbf_gpu_hours) or figure("failures", "gpu_hours_between").source) + spot


def _gb(amount: int) -> str:
    return f"{amount / GIGA:,.4g} GB"


def run_assumptions(options: RunOptions, tier: Tier) -> list[tuple[str, str, str]]:
    """What the run's lines rest on: name, value, who said so."""
    known, storage = run_figures(), options.storage_bytes_per_s
    spot = f", and on spot {known.spot_h:g} h of one node" if tier is Tier.SPOT else ""
    rate = f"{known.node_bytes_per_h / HOUR_S / GIGA:g} GB/s per node"
    every = options.checkpoint_every_s
    interval = "as often as loses least (Young, Daly)" if every is None else f"every {duration(every)}"
    pue = value("power", "pue") if options.pue is None else options.pue
    rows = (
        ("failures", f"every {options.mtbf_gpu_hours or known.gpu_hours:,.0f} GPU-hours{spot}", options.mtbf_gpu_hours),
        ("shared storage", rate if storage is None else f"{storage / GIGA:,.4g} GB/s for all nodes", storage),
        ("checkpoints", interval, every),
        ("evaluation", _evaluation(options), options.eval_every),
        ("data stalls", _share("stalls"), None),
        ("PUE", f"{pue:g}", options.pue),
    )
    return [(name, text, _given(option) or "assumed") for name, text, option in rows]
