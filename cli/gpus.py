"""`trainplan gpus`: the catalog of accelerators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .complete import gpu_names

if TYPE_CHECKING:
    from ..planner.hardware import Gpu


@click.group("gpus")
def command() -> None:
    """Accelerators the planner knows, with the source of every figure."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Print every accelerator of the catalog."""
    from ..planner.catalog import gpus

    _print(gpus(), as_json)


@command.command("search")
@click.argument("text")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def search(text: str, as_json: bool) -> None:
    """Print the accelerators whose name, maker, architecture or notes contain TEXT."""
    from ..planner.catalog import gpus
    from ..planner.errors import InputError

    found = tuple(g for g in gpus() if text.lower() in _searched(g))
    if not found:
        raise InputError(f"gpus search: nothing found, got {text[:40]!r}; see all with trainplan gpus list")
    _print(found, as_json)


@command.command("show")
@click.argument("name", shell_complete=gpu_names)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """Print every figure of one accelerator with its source and date."""
    import json

    from ..planner.catalog import find_gpu
    from ..planner.report.catalog_page import gpu_details, gpu_record

    gpu = find_gpu(name)
    click.echo(json.dumps(gpu_record(gpu), indent=2) if as_json else gpu_details(gpu))


def _searched(gpu: Gpu) -> str:
    return " ".join((gpu.name, gpu.full_name, *gpu.aliases, gpu.vendor, gpu.architecture, gpu.notes)).lower()


def _print(gpus: tuple[Gpu, ...], as_json: bool) -> None:
    import json

    from ..planner.report.catalog_page import GPU_HEADER, gpu_record, gpu_row
    from ..planner.report.table import table

    if as_json:
        click.echo(json.dumps([gpu_record(g) for g in gpus], indent=2))
    else:
        click.echo(table(map(gpu_row, gpus), header=GPU_HEADER))
