"""`trainplan calibrate plans/x rows.csv`."""

from __future__ import annotations

import click

from .complete import gpu_names


@click.command(name="calibrate")
@click.argument("sources", nargs=-1, required=True, type=click.Path())
@click.option("--snapshot", metavar="FILE", help="PyTorch memory snapshot of the one plan given; it is not run.")
@click.option("--nvidia-smi", metavar="FILE", help="CSV that nvidia-smi printed while the one plan given ran.")
@click.option("--gpu", shell_complete=gpu_names, help="Rows of this type alone.")
@click.option("--good-rows", is_flag=True, help="Fit the good rows of a table that has problems.")
@click.option("--out", metavar="FILE", help="The profile.  [default: profiles/GPU.toml; none with --json]")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON document alone.")
def command(
    sources: tuple[str, ...],
    snapshot: str | None,
    nvidia_smi: str | None,
    gpu: str | None,
    good_rows: bool,
    out: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Fit what depends on the platform to measured runs, and write a profile that plan --profile uses.

    SOURCES are plan folders (or plan.json files), beside which train.py wrote measured.jsonl, and CSV tables in the
    columns of trainplan validate. Rates of kernels, links and drives, the allocator's overhead, the context and live
    excess move as far as rows are surer than what is shipped; what is arithmetic stays.
    """
    import json
    from pathlib import Path

    from ..api import calibrate
    from ..planner.emit.files import write_new
    from ..planner.errors import InputError
    from ..planner.report.calibration_text import calibration_text

    if out is not None and not (out.strip() and out.isprintable()):
        raise InputError(f"--out: not a file's name, got {out[:40]!r}; write for example --out profiles/mine.toml")
    found = calibrate(*sources, snapshot=snapshot, nvidia_smi=nvidia_smi, gpu=gpu, good_rows=good_rows)
    document = found.to_dict()
    file = out if out is not None or as_json else f"profiles/{found.profile.gpu}.toml"
    if file is not None:
        write_new(Path(file), found.text, force=force)
    document["profile"] = file
    click.echo(json.dumps(document, indent=2) if as_json else calibration_text(document, str(file)))
