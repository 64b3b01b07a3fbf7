"""The catalog of prices: which rows are offered, which are not and why, and the two commands."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result
from trainplan.cli.gpus import command as gpus_command
from trainplan.cli.offers import command as offers_command
from trainplan.planner.catalog import (
    find_gpu,
    find_offers,
    gpus,
    offers,
    rejected_offers,
    select_offers,
    usd_per_gpu_hour,
)
from trainplan.planner.catalog_files import read_offers
from trainplan.planner.errors import InputError
from trainplan.planner.hardware import Offer, Tier

GIB = 2**30

PRICES = """
cloud = "x"
[sources.s]
citation = "a list"
date = "undated snapshot"
[[offers]]
instance = "VM.$8"
gpu = "h100"
gpus = 8
on_demand_usd_per_hour = 20
on_demand_region = "Hafnarfjarðarkaupstaður, IS, EU"
source = "s"
"""


def at(name: str, tier: Tier = Tier.ON_DEMAND) -> Offer:
    """The one offer of this name and tier."""
    (offer,) = (o for o in find_offers(name) if o.tier is tier)
    return offer


def read(text: str) -> tuple[Offer, ...]:
    """Offers of a text."""
    return read_offers(text, where="mine.toml", find=find_gpu)[0]


def run(command: Any, *arguments: str) -> Result:
    """A command that must succeed."""
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


# ------------------------------------------------------------------------------------------------- shipped rows


def test_units_and_unknowns() -> None:
    """GiB, TB and Gbit/s become bytes; a blank is None."""
    node = at("aws/p5.48xlarge").node
    assert node.gpus == 8
    assert node.host_memory_bytes == 2048 * GIB
    assert node.nvme_bytes == int(30.72 * 10**12)
    assert node.internode_bytes_per_s == 3200e9 / 8
    oci = at("oci/BM.GPU.H100.8").node
    assert oci.nvme_bytes is oci.internode_bytes_per_s is None


def test_a_row_with_two_prices_is_two_offers() -> None:
    """On-demand and spot are separate offers, each with its own region."""
    found = find_offers("aws/p4de.24xlarge")
    assert [(o.tier, o.usd_per_hour, o.region) for o in found] == [
        (Tier.ON_DEMAND, 27.44705, "us-east-1"),
        (Tier.SPOT, 8.0274, "eu-central-1"),
    ]


def test_every_price_has_a_date_and_a_source() -> None:
    """No offer without the date that its source states, nor without the source."""
    assert all(o.date and o.source for o in offers())
    assert at("aws/p5.48xlarge").date.startswith("undated snapshot")


def test_offers_share_the_catalog_s_accelerators() -> None:
    """Memory and rates come from the catalog of accelerators, never from a price list's own columns (trap 6)."""
    known = {id(g) for g in gpus()}
    assert all(id(o.node.gpu) in known for o in offers())


def test_accelerator_prices_without_a_host_are_rejected() -> None:
    """GCP lists accelerators apart from machines (trap 1): only a sum of both is offered."""
    alone = {r.instance for r in rejected_offers() if r.cloud == "gcp" and r.part == "offer"}
    assert alone == {"a3-megagpu-8g", "a3-ultragpu-8g", "g2 with 1 x L4", "n1 with 1 x T4"}
    assert not alone & {o.instance for o in offers()}
    assert at("gcp/a3-highgpu-8g").usd_per_hour > 78.37241  # the accelerators alone


def test_flex_prices_are_not_on_demand() -> None:
    """GCP's queued price filed as on-demand (trap 2) is rejected; no spot price reaches its on-demand price."""
    assert 33.606 in {r.usd_per_hour for r in rejected_offers() if r.part == "on-demand"}
    on_demand = {o.name: o.usd_per_hour for o in offers() if o.tier is Tier.ON_DEMAND}
    spot = [o for o in offers() if o.tier is Tier.SPOT]
    assert all(o.usd_per_hour < on_demand.get(o.name, float("inf")) for o in spot)


def test_azure_h100_node_has_eight_gpus_and_no_spot() -> None:
    """Azure's list counts 12 accelerators and repeats on-demand as spot (trap 3)."""
    (offer,) = find_offers("azure/Standard_ND96isr_H100_v5")
    assert (offer.node.gpus, offer.tier) == (8, Tier.ON_DEMAND)
    assert "12 accelerators" in offer.notes


def test_no_spot_price_of_a_single_zone() -> None:
    """AWS spot prices of one zone at a tenth of on-demand, and of local zones, are rejected (trap 4)."""
    rejected = {r.instance for r in rejected_offers() if r.cloud == "aws" and r.part == "spot"}
    assert rejected >= {"p4d.24xlarge", "p5en.48xlarge", "p6-b200.48xlarge", "p5.48xlarge", "p3.8xlarge"}
    on_demand = {o.name: o.usd_per_hour for o in offers() if o.tier is Tier.ON_DEMAND}
    spot = [o for o in offers() if o.tier is Tier.SPOT and o.cloud == "aws"]
    assert all(o.usd_per_hour > 0.15 * on_demand.get(o.name, 0.0) for o in spot)
    assert not any("atl" in o.region or "local" in o.region for o in offers() if o.cloud == "aws")


def test_reserved_only_machines_have_no_on_demand_price() -> None:
    """AWS sells p5e on demand to nobody: only its spot price is an offer."""
    assert [o.tier for o in find_offers("aws/p5e.48xlarge")] == [Tier.SPOT]


@pytest.mark.parametrize("cloud", ["vast", "runpod"])
def test_a_query_s_minimum_is_not_the_host(cloud: str) -> None:
    """Vast and RunPod list the least that was asked for (trap 5): the host is unknown."""
    nodes = [o.node for o in offers() if o.cloud == cloud]
    assert nodes
    assert all(n.host_memory_bytes is n.vcpus is None for n in nodes)


def test_nothing_is_free() -> None:
    """A spot column of 0.00 is empty, not free (trap 5): such rows keep their on-demand price only."""
    assert all(o.usd_per_hour > 0.05 for o in offers())
    assert not [o for o in offers() if o.cloud in ("vast", "runpod") and o.tier is Tier.SPOT]


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("vast/4x-A100_SXM4-32-65536", "a100-40"),
        ("vast/1x-A100_PCIE-32-65536", "a100-80-pcie"),
        ("vast/2x-H100_NVL-32-65536", "h100-nvl"),
        ("azure/Standard_NC80adis_H100_v5", "h100-nvl"),
        ("aws/p4d.24xlarge", "a100-40"),
        ("hyperstack/n3-A100x8-NVLink", "a100-80-pcie"),
    ],
)
def test_one_name_in_a_list_may_be_several_cards(name: str, gpu: str) -> None:
    """A list's A100 or H100 is told apart by its machine (trap 7)."""
    assert at(name).node.gpu.name == gpu


def test_bridges_are_noted() -> None:
    """An NVLink bridge between pairs is a remark, not another card."""
    assert "bridges" in at("hyperstack/n3-A100x8-NVLink").notes


def test_gpus_are_whole_and_lists_promise_nothing() -> None:
    """No fractional GPUs; a list price of every region says that it promises no capacity (trap 8)."""
    assert all(isinstance(o.node.gpus, int) and 1 <= o.node.gpus <= 16 for o in offers())
    assert all("no promise of capacity" in o.notes for o in offers() if o.cloud == "oci")


def test_products_of_aggregates_and_fixtures_are_rejected() -> None:
    """Lowest price per GPU times a count, rates without a machine and test data are no offers."""
    reasons = {r.cloud: r.reason for r in rejected_offers() if r.part == "offer"}
    assert "no quoted price of a machine" in reasons["primeintellect"]
    assert "without the machine's shape" in reasons["crusoe"]
    assert "test data" in reasons["vultr"]
    assert not {"primeintellect", "crusoe", "vultr"} & {o.cloud for o in offers()}


def test_every_rejection_says_why() -> None:
    """Reason, date and source are given for each row left out."""
    assert len(rejected_offers()) > 50
    assert all(r.reason and r.date and r.source for r in rejected_offers())


def test_doubts_are_carried() -> None:
    """Figures that nobody looked up are used and said to be recalled."""
    assert "recalled, not verified" in at("aws/p5.48xlarge").notes
    assert "recalled, not verified" in at("azure/Standard_ND96amsr_A100_v4").notes


# ----------------------------------------------------------------------------------------------------- selecting


def test_selection_is_cheapest_first() -> None:
    """Offers come by USD per GPU-hour, whatever the size of the node."""
    found = select_offers(["a100-80", "h100"], tier=Tier.ON_DEMAND)
    assert {o.node.gpu.name for o in found} == {"a100-80", "h100"}
    assert [usd_per_gpu_hour(o) for o in found] == sorted(o.usd_per_hour / o.node.gpus for o in found)


def test_any_is_every_accelerator() -> None:
    """ "any" selects all offers of the tier."""
    spot = [o for o in offers() if o.tier is Tier.SPOT]
    assert sorted(o.name for o in select_offers("any", tier=Tier.SPOT)) == sorted(o.name for o in spot)


def test_cloud_and_region_ignore_case() -> None:
    """A cloud and one of its regions narrow the selection."""
    (offer,) = select_offers(["h100"], tier=Tier.ON_DEMAND, cloud="GCP", region="US-East4")
    assert offer.name == "gcp/a3-highgpu-8g"


def test_there_are_no_reserved_prices() -> None:
    """No source has reserved prices: none are invented."""
    assert select_offers("any", tier=Tier.RESERVED) == ()


@pytest.mark.parametrize(
    ("cloud", "region", "message"),
    [
        ("awss", None, r"cloud: no prices, got 'awss'; known are .*azure.*; did you mean aws\?"),
        ("crusoe", None, "cloud: no prices, got 'crusoe'"),  # every row of it is rejected
        ("aws", "mars-1", "region of aws: no prices, got 'mars-1'; known are .*us-east-1"),
        (None, "mars-1", "region: no prices, got 'mars-1'"),
    ],
)
def test_unknown_clouds_and_regions_list_what_exists(cloud: str | None, region: str | None, message: str) -> None:
    """A cloud or region without prices is an input error that names those with prices."""
    with pytest.raises(InputError, match=message):
        select_offers("any", tier=Tier.ON_DEMAND, cloud=cloud, region=region)


def test_unknown_accelerators_are_refused() -> None:
    """A misspelt accelerator is not an empty selection."""
    with pytest.raises(InputError, match="gpu: not in the catalog"):
        select_offers(["h1000"], tier=Tier.SPOT)


# ------------------------------------------------------------------------------------------------------- reading


def test_names_with_commas_dollars_and_letters_of_any_language() -> None:
    """Regions and machines are texts, not identifiers (trap 10)."""
    (offer,) = read(PRICES)
    assert (offer.name, offer.region) == ("x/VM.$8", "Hafnarfjarðarkaupstaður, IS, EU")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (PRICES.replace('cloud = "x"', ""), "cloud: got None"),
        (PRICES.replace('date = "undated snapshot"', ""), "sources.s: date is missing"),
        (PRICES.replace('source = "s"', ""), "source is missing"),
        (PRICES.replace('source = "s"', 'source = "t"'), "source 't' is not among the file's"),
        (PRICES.replace('gpu = "h100"', 'gpu = "h100?"'), "gpu 'h100?' is not in the catalog"),
        (PRICES.replace("gpus = 8", "gpus = 0.5"), "gpus: got 0.5; allowed is a whole number"),
        (PRICES.replace("gpus = 8", "gpus = 100000"), "at most 1024"),
        (PRICES.replace("per_hour = 20", "per_hour = 0.00"), "on_demand_usd_per_hour: got 0.0"),
        (PRICES.replace("on_demand_usd_per_hour = 20", ""), "on_demand_region needs on_demand_usd_per_hour"),
        (PRICES + 'spot_usd_per_hour = 20\nspot_region = "y"', "spot 20 is not below on-demand 20"),
        (PRICES + "spot_usd_per_hour = 5", "spot_usd_per_hour needs spot_region"),
        (PRICES + PRICES[PRICES.index("[[") :], "is given twice"),
        (
            PRICES + '[[rejected]]\ninstance = "a"\ngpu = "b"\npart = "all"\nreason = "c"\nsource = "s"',
            "part: got 'all'",
        ),
        (PRICES + "[[rejected]]\n", "reason is missing"),
    ],
)
def test_reader_refuses(text: str, problem: str) -> None:
    """A price list with a mistake is refused in one line that names it."""
    with pytest.raises(InputError) as caught:
        read(text)
    assert str(caught.value).startswith("mine.toml: ")
    assert problem in str(caught.value)
    assert str(caught.value).isprintable()


def test_reader_refuses_a_row_without_a_price() -> None:
    """A row must have a price, or stand under rejected with a reason."""
    bare = PRICES.replace("on_demand_usd_per_hour = 20\n", "").replace(
        'on_demand_region = "Hafnarf', 'notes = "Hafnarf'
    )
    with pytest.raises(InputError, match="no price; give one, or list the row under rejected"):
        read(bare)


# ------------------------------------------------------------------------------------------------------ commands


def test_offers_list_sorts_and_filters() -> None:
    """`offers list` prints the chosen accelerator, cloud and tier, the cheapest GPU-hour first."""
    lines = run(offers_command, "list", "--gpu", "H100", "--tier", "on-demand").output.splitlines()
    names = [line.split()[0] for line in lines[1:]]
    assert names == [o.name for o in select_offers(["h100"], tier=Tier.ON_DEMAND)]
    one = run(offers_command, "list", "--cloud", "aws", "--gpu", "h100", "--tier", "spot").output.splitlines()
    assert len(one) == 2


def test_offers_list_json() -> None:
    """`--json` prints records with units in their keys, null for unknown, and the accelerator by name."""
    records = json.loads(run(offers_command, "list", "--gpu", "h100", "--json").output)
    assert len(records) == len([o for o in offers() if o.node.gpu.name == "h100"])
    vast = next(r for r in records if r["name"] == "vast/8x-H100_SXM-32-65536")
    assert (vast["gpu"], vast["gpus"], vast["host_memory_bytes"], vast["usd_per_gpu_hour"]) == ("h100", 8, None, 16 / 8)


def test_offers_list_rejected() -> None:
    """`--rejected` prints every row left out with its reason, or those of one cloud."""
    assert run(offers_command, "list", "--rejected").output.count("\n") == len(rejected_offers()) + 1
    output = run(offers_command, "list", "--rejected", "--cloud", "vultr").output
    assert output.count("test data of a library") == 2
    records = json.loads(run(offers_command, "list", "--rejected", "--json").output)
    assert {r["part"] for r in records} == {"offer", "on-demand", "spot"}
    assert run(offers_command, "list", "--rejected", "--tier", "spot").exit_code == 2


def test_offers_show() -> None:
    """`show` prints price, date, source and doubts; unknown is printed unknown."""
    output = run(offers_command, "show", "OCI/bm.gpu.h100.8").output
    assert "local NVMe   unknown" in output
    assert "skypilot-org/skypilot-catalog@05887511" in output
    assert json.loads(run(offers_command, "show", "oci/BM.GPU.H100.8", "--json").output)[0]["nvme_bytes"] is None


def test_offers_show_unknown() -> None:
    """An unknown machine is an input error with the nearest names."""
    error = CliRunner().invoke(offers_command, ["show", "aws/p5.48xlarg"]).exception
    assert isinstance(error, InputError)
    assert "did you mean aws/p5.48xlarge" in str(error)


def test_offers_search() -> None:
    """`search` looks into names, accelerators, regions and notes; nothing found is an error, as for models."""
    assert "aws/p5.48xlarge" in run(offers_command, "search", "P5.48").output
    with pytest.raises(InputError, match="nothing found, got 'no such thing'"):
        run(offers_command, "search", "no such thing")


def test_gpus_list_and_search() -> None:
    """`gpus list` prints one line for each accelerator, `search` those that match."""
    assert run(gpus_command, "list").output.count("\n") == len(gpus()) + 1
    found = json.loads(run(gpus_command, "search", "gaudi", "--json").output)
    assert [g["name"] for g in found] == ["gaudi2", "gaudi3"]
    with pytest.raises(InputError, match="nothing found, got 'no such thing'"):
        run(gpus_command, "search", "no such thing", "--json")


def test_gpus_show() -> None:
    """`show` prints every figure with its source, and unknown as unknown."""
    output = run(gpus_command, "show", "RTX 5090").output
    assert "share of peak achieved  unknown" in output
    assert "31.37 GiB" in output
    assert json.loads(run(gpus_command, "show", "5090", "--json").output)["matmul_efficiency"] is None
