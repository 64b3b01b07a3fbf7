"""`trainplan offers`: the catalog of prices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .complete import clouds, gpu_names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..planner.catalog_files import Rejected
    from ..planner.hardware import Offer

PRICED_TIERS = ("on-demand", "spot")


@click.group("offers")
def command() -> None:
    """Prices of machines, each with its source and date."""


@command.command("list")
@click.option(
    "--gpu",
    "gpu_names",
    multiple=True,
    metavar="NAME",
    shell_complete=gpu_names,
    help="Only this accelerator; may be repeated.",
)
@click.option("--cloud", metavar="NAME", shell_complete=clouds, help="Only this cloud.")
@click.option("--region", metavar="NAME", help="Only this region, as the price list writes it.")
@click.option("--tier", type=click.Choice(PRICED_TIERS), help="Only this tier.")
@click.option("--rejected", is_flag=True, help="Print what the sources list and the catalog leaves out, and why.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(
    gpu_names: tuple[str, ...], cloud: str | None, region: str | None, tier: str | None, rejected: bool, as_json: bool
) -> None:
    """Print offers, the cheapest GPU-hour first."""
    from ..planner.catalog import rejected_offers
    from ..planner.errors import InputError

    if rejected:
        if gpu_names or region or tier:
            raise click.UsageError("--rejected goes with --cloud and --json only; leave the other options out")
        rows = rejected_offers()
        _print_rejected([r for r in rows if cloud is None or r.cloud == cloud.lower()], as_json)
        return
    found = _selected(gpu_names or ("any",), cloud, region, tier)
    if not found:
        raise InputError(
            "offers list: nothing matches all of these options; leave one out, or see trainplan offers list"
        )
    _print(found, as_json)


@command.command("search")
@click.argument("text")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def search(text: str, as_json: bool) -> None:
    """Print the offers whose name, accelerator, region, source or notes contain TEXT."""
    from ..planner.errors import InputError

    found = [o for o in _selected(("any",), None, None, None) if text.lower() in _searched(o)]
    if not found:
        raise InputError(f"offers search: nothing found, got {text[:40]!r}; see all with trainplan offers list")
    _print(found, as_json)


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """Print every figure of the offers of one machine, such as aws/p5.48xlarge."""
    import json

    from ..planner.catalog import find_offers
    from ..planner.report.catalog_page import offer_details, offer_record

    found = find_offers(name)
    if as_json:
        click.echo(json.dumps([offer_record(o) for o in found], indent=2))
    else:
        click.echo("\n\n".join(map(offer_details, found)))


def _selected(names: tuple[str, ...], cloud: str | None, region: str | None, tier: str | None) -> list[Offer]:
    """Offers of one tier, or of all; the cheapest GPU-hour first."""
    from ..planner.catalog import select_offers, usd_per_gpu_hour
    from ..planner.hardware import Tier

    tiers = (tier,) if tier else PRICED_TIERS
    found = [o for name in tiers for o in select_offers(names, tier=Tier(name), cloud=cloud, region=region)]
    return sorted(found, key=lambda o: (usd_per_gpu_hour(o), o.name))


def _searched(offer: Offer) -> str:
    gpu = offer.node.gpu
    return " ".join((offer.name, gpu.name, gpu.full_name, offer.region, offer.source, offer.notes)).lower()


def _print(offers: Iterable[Offer], as_json: bool) -> None:
    import json

    from ..planner.report.catalog_page import OFFER_HEADER, offer_record, offer_row
    from ..planner.report.table import table

    if as_json:
        click.echo(json.dumps([offer_record(o) for o in offers], indent=2))
    else:
        click.echo(table(map(offer_row, offers), header=OFFER_HEADER))


def _print_rejected(rows: Iterable[Rejected], as_json: bool) -> None:
    import json

    from ..planner.report.catalog_page import REJECTED_HEADER, rejected_record, rejected_row
    from ..planner.report.table import table

    if as_json:
        click.echo(json.dumps([rejected_record(r) for r in rows], indent=2))
    else:
        click.echo(table(map(rejected_row, rows), header=REJECTED_HEADER))
