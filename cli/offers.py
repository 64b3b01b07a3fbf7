"""`trainplan offers`: the catalog of prices, a user's own list, and lists read from other programs' catalogs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .complete import clouds, gpu_names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..planner.catalog_files import Rejected
    from ..planner.hardware import Offer
    from ..planner.importers import Imported

PRICED_TIERS = ("on-demand", "spot", "reserved", "capacity-block")
_prices = click.option("--prices", metavar="FILE", help="This price list (TOML, CSV) instead of the built-in offers.")


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
@_prices
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, as --prices reads it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(
    gpu_names: tuple[str, ...],
    cloud: str | None,
    region: str | None,
    tier: str | None,
    rejected: bool,
    prices: str | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Print offers, the cheapest GPU-hour first."""
    if as_csv and as_json:
        raise click.UsageError("--csv: contradicts --json; leave one of them out")
    from ..planner.catalog import rejected_offers
    from ..planner.errors import InputError

    if rejected:
        if gpu_names or region or tier or prices or as_csv:
            raise click.UsageError("--rejected goes with --cloud and --json only; leave the other options out")
        rows = rejected_offers()
        _print_rejected([r for r in rows if cloud is None or r.cloud == cloud.lower()], as_json)
        return
    found = _selected(gpu_names or ("any",), cloud, region, tier, prices)
    if not found:
        raise InputError(
            "offers list: nothing matches all of these options; leave one out, or bring your own with --prices FILE"
        )
    if as_csv:
        from ..planner.price_csv import write_csv

        click.echo(write_csv(found), nl=False)
    else:
        _print(found, as_json)


@command.command("search")
@click.argument("text")
@_prices
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def search(text: str, prices: str | None, as_json: bool) -> None:
    """Print the offers whose name, accelerator, region, source or notes contain TEXT."""
    from ..planner.errors import InputError

    found = [o for o in _selected(("any",), None, None, None, prices) if text.lower() in _searched(o)]
    if not found:
        raise InputError(f"offers search: nothing found, got {text[:40]!r}; see all with trainplan offers list")
    _print(found, as_json)


@command.command("show")
@click.argument("name")
@_prices
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, prices: str | None, as_json: bool) -> None:
    """Print every figure of the offers of one machine, such as aws/p5.48xlarge."""
    import json

    from ..planner.catalog import find_offers
    from ..planner.report.catalog_page import offer_details, offer_record

    found = find_offers(name, _listed(prices))
    if as_json:
        click.echo(json.dumps([offer_record(o) for o in found], indent=2))
    else:
        click.echo("\n\n".join(map(offer_details, found)))


def _listed(prices: str | None) -> tuple[Offer, ...] | None:
    """Offers of a user's list; None for the built-in ones."""
    from ..planner.prices import read_prices

    return None if prices is None else read_prices(prices)


def _selected(
    names: tuple[str, ...], cloud: str | None, region: str | None, tier: str | None, prices: str | None
) -> list[Offer]:
    """Offers of one tier, or of all; the cheapest GPU-hour first."""
    from ..planner.catalog import select_offers, usd_per_gpu_hour
    from ..planner.hardware import Tier

    tiers, among = (tier,) if tier else PRICED_TIERS, _listed(prices)
    found = [
        o for name in tiers for o in select_offers(names, tier=Tier(name), cloud=cloud, region=region, among=among)
    ]
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


@command.group("import")
def import_() -> None:
    """Read the price catalogs that other programs keep on this disk; write a list for --prices."""


_out = click.option("--out", metavar="FILE", help="Where to write: TOML, or CSV (.csv). Never over another file.")
_force = click.option("--force", is_flag=True, help="Write over a file that is there.")
_json = click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")


@import_.command("skypilot")
@click.option("--from", "folder", metavar="DIR", help="Its catalogs.  [default: ~/.sky/catalogs]")
@_out
@_force
@_json
def import_skypilot(folder: str | None, out: str | None, force: bool, as_json: bool) -> None:
    """Read SkyPilot's catalogs (v8/CLOUD/vms.csv), the newest schema; print what was left out and why."""
    from ..planner.importers import find_skypilot, read_skypilot

    _import(read_skypilot(find_skypilot(folder)), out or "skypilot-prices.toml", force, as_json)


@import_.command("gpuhunt")
@click.option("--from", "folder", metavar="DIR", help="Its CSV files.  [default: $GPUHUNT_CATALOG_DIR]")
@_out
@_force
@_json
def import_gpuhunt(folder: str | None, out: str | None, force: bool, as_json: bool) -> None:
    """Read gpuhunt's catalogs (PROVIDER.csv); print what was left out and why."""
    from ..planner.importers import find_gpuhunt, read_gpuhunt

    _import(read_gpuhunt(find_gpuhunt(folder)), out or "gpuhunt-prices.toml", force, as_json)


def _import(found: Imported, out: str, force: bool, as_json: bool) -> None:
    """Write the list and say what was left out; nothing is written where nothing is left.

    Raises:
        InputError: no price is left, or the file is there or cannot be written.
    """
    import json
    from pathlib import Path

    from ..planner.catalog import find_gpu
    from ..planner.catalog_files import read_offers
    from ..planner.emit.files import write_new
    from ..planner.errors import InputError
    from ..planner.importers import price_list
    from ..planner.price_csv import write_csv
    from ..planner.prices import LARGEST_PRICES_BYTES
    from ..planner.report.import_text import import_document, import_text

    document = import_document(found, out)
    if not found.priced:
        why = "; ".join(f"{r['count']:,} x {r['text']}" for r in document["left_out"][:5])
        raise InputError(f"offers import: no price is left of {found.rows:,} rows ({why or 'no rows'}); see --from")
    text = price_list(found)
    if out.lower().endswith(".csv"):
        text = write_csv(read_offers(text, where=out, find=find_gpu, most_bytes=LARGEST_PRICES_BYTES)[0])
    write_new(Path(out), text, force=force)
    click.echo(json.dumps(document, indent=2) if as_json else import_text(document))
