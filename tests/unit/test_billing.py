"""planner/billing.py: bills by hand, terms in words, what owned machines cost; and what a plan says of its price."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trainplan
from trainplan.cli.main import run_root
from trainplan.planner.billing import HOURS_PER_MONTH, Ownership, bill, unpriced
from trainplan.planner.errors import InputError, NoPlan
from trainplan.planner.hardware import Tier
from trainplan.planner.staleness import flag, remark, today
from trainplan.planner.terms import Terms
from trainplan.planner.terms_files import known_terms

from ..tiny import machines

OFFER = machines(gpus=2, usd=10.0)  # $20 per node-hour
MINE = """
[sources.quote]
citation = "my quote"
date = "2026-11-10"
[terms.month]
commitment_hours = 720
source = "my quote"
date = "2026-11-10"
[terms.short]
maximum_hours = 2
minimum_nodes = 2
maximum_nodes = 4
source = "my quote"
date = "2026-11-10"
[[offers]]
cloud = "aws"
instance = "p5e.48xlarge"
gpu = "h200"
gpus = 8
host_memory_gib = 2048
internode_gbit_per_s = 3200
capacity_block_usd_per_hour = 39.8
capacity_block_region = "us-east-2"
capacity_block_terms = "aws-capacity-block"
reserved_usd_per_hour = 30
reserved_region = "us-east-2"
reserved_terms = "month"
on_demand_usd_per_hour = 50
on_demand_region = "us-east-2"
on_demand_terms = "short"
source = "quote"
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A user's price list."""
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return str(path)


def test_whole_days() -> None:
    """25 hours are two days: 48 x $20 x 3 nodes."""
    found = bill(replace(OFFER, terms=Terms(billing_step_hours=24, upfront=True)), 3, 25)
    assert found.usd == found.upfront_usd == 48 * 20 * 3
    assert [line.usd for line in found.lines] == [25 * 20 * 3, 23 * 20 * 3]


def test_a_commitment_is_billed_used_or_not() -> None:
    """Ten hours of a 720-hour commitment cost 720; 721 hours cost two commitments."""
    offer = replace(OFFER, terms=Terms(commitment_hours=720))
    assert bill(offer, 1, 10).usd == 720 * 20
    assert bill(offer, 1, 721).usd == 1440 * 20


def test_minimum_nodes_and_hours() -> None:
    """Two nodes for a quarter of an hour are billed as four nodes for one hour."""
    found = bill(replace(OFFER, terms=Terms(minimum_nodes=4, minimum_hours=1)), 2, 0.25)
    assert (found.usd, found.nodes, found.billed_hours, found.upfront_usd) == (4 * 20, 4, 1, 0)
    assert [line.usd for line in found.lines] == [0.25 * 2 * 20, 0.75 * 2 * 20, 2 * 20]


def test_storage_and_egress_where_their_prices_are_known() -> None:
    """1000 GiB for half a month at 2 cents, 100 GiB out at 9 cents; without a rate they are named, not counted."""
    terms = Terms(storage_gib=1000, storage_usd_per_gib_month=0.02, egress_gib=100, egress_usd_per_gib=0.09)
    hours = HOURS_PER_MONTH / 2
    assert bill(replace(OFFER, terms=terms), 1, hours).usd == pytest.approx(20 * hours + 10 + 9)
    unknown = Terms(storage_gib=1000, egress_gib=100)
    assert bill(replace(OFFER, terms=unknown), 1, 1).usd == 20
    assert unpriced(unknown) == ("storage of 1,000 GiB", "egress of 100 GiB")


def test_aws_blocks_are_sold_in_weeks_above_two() -> None:
    """15 days are billed as 21; at most 182, 64 machines a block."""
    block = known_terms()["aws-capacity-block"]
    assert block.billed_hours(15 * 24) == 21 * 24
    assert (block.maximum_hours, block.maximum_nodes, block.upfront) == (182 * 24, 64, True)


def test_owned_machines() -> None:
    """$250,000 over 4 years, 70 % used, 10 kW at PUE 1.3 and 10 cents, $5,000 of hosting a year."""
    own = Ownership(
        capital_usd_per_node=250_000, years=4, power_kw_per_node=10, pue=1.3, usd_per_kwh=0.1, utilization=0.7
    )
    assert own.usd_per_node_hour == pytest.approx(62_500 / (8766 * 0.7) + 1.3)
    assert "space, staff and network are not counted" in own.text()
    hosted = replace(own, hosting_usd_per_node_year=5000.0)
    assert hosted.usd_per_node_hour == pytest.approx(67_500 / (8766 * 0.7) + 1.3)
    assert "not counted" not in hosted.text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tier": "owned"}, "--tier owned: nobody else knows what your machines cost; give --price"),
        ({"capital": 250_000, "years": 4}, "missing are --power-kw, --usd-per-kwh, --pue, --utilization"),
        ({"capital": 250_000, "price": 2.0}, "--price: contradicts --capital"),
        ({"price": 2.0, "prices": "x.toml"}, "your own machines have no cloud, region, tier or price list"),
        ({"tier": "reserved"}, "none for h200 reserved, whose sources state no reserved price; .* --prices FILE"),
        ({"tier": "capacity-block"}, "no capacity-block price; see trainplan offers list; state your own with --price"),
        ({"pue": 0.5}, "--pue: out of range"),
        ({"utilization": 1.5}, "--utilization: out of range, got 1.5; allowed is above 0 up to 1"),
    ],
)
def test_what_is_not_stated_is_asked_for(options: dict[str, Any], message: str) -> None:
    """One line: what is missing, and how to bring it; nothing is free by default."""
    with pytest.raises(InputError, match=message):
        trainplan.plan("llama-3-8b", gpus="h200", **options)


def test_owned_plan_shows_its_arithmetic() -> None:
    """The price is what the machine costs; the figures are the user's."""
    own: dict[str, Any] = {
        "capital": 250_000,
        "years": 4,
        "power_kw": 10,
        "usd_per_kwh": 0.1,
        "pue": 1.3,
        "utilization": 0.7,
    }
    plan = trainplan.plan("llama-3-8b", gpus="h100", **own)
    assert plan.candidate.offer.usd_per_hour == pytest.approx(62_500 / (8766 * 0.7) + 1.3)
    rows = {row["name"]: row for row in plan.to_dict()["assumptions"]}
    assert "$250,000 / 4 years" in rows["owned"]["value"]
    assert {rows[name]["from"] for name in ("price", "owned")} == {"you"}
    assert plan.to_dict()["decision"]["price_flag"] == ""


def test_a_price_list_stands_in_place_of_the_built_in_offers(mine: str) -> None:
    """Capacity blocks: whole days, upfront, and the day is filled before a second node is added."""
    plan = trainplan.plan("llama-3-70b", gpus="h200", prices=mine, tier="capacity-block", egress_gib=500)
    document = plan.to_dict()
    cost, c = document["cost"], plan.candidate
    assert cost["billed_hours"] == 24 * math.ceil(c.cost.hours / 24)
    assert cost["usd"] == cost["upfront_usd"] == pytest.approx(39.8 * c.setting.nodes * cost["billed_hours"])
    assert sum(line["usd"] for line in cost["bill"]) == pytest.approx(cost["usd"])
    assert "egress of 500 GiB: aws/p5e.48xlarge states no price, so it is not in the cost" in document["warnings"]
    rows = {row["name"]: row["value"] for row in document["assumptions"]}
    assert rows["price list"] == f"{mine}, in place of the built-in offers"
    assert "in steps of 24 h" in rows["billing"]


def test_limits_of_what_is_let_are_constraints(mine: str) -> None:
    """Two hours on two to four nodes: a job that takes longer is refused by the name of the limit, and by how much."""
    options: dict[str, Any] = {"gpus": "h200", "prices": mine, "tier": "on-demand"}
    small = trainplan.plan("llama-3-8b", tokens="200M", **options)
    assert 2 <= small.candidate.setting.nodes <= 4
    assert small.candidate.cost.hours <= 2
    assert {c.name for c in small.constraints} >= {"maximum_hours", "minimum_nodes", "maximum_nodes"}
    with pytest.raises(NoPlan, match=r"longest stay of 2\.0 h is short by .* \(another --tier"):
        trainplan.plan("llama-3-8b", tokens="100B", **options)
    with pytest.raises(NoPlan, match=r"fewer than the 2 nodes that aws/p5e\.48xlarge is let in at least"):
        trainplan.plan("llama-3-8b", nodes=1, **options)
    one = trainplan.estimate("llama-3-8b", gpus="8xh200", zero=1, prices=mine)
    assert [c.name for c in one.constraints if not c.holds] == ["maximum_hours", "minimum_nodes"]
    assert one.candidate.cost.usd == pytest.approx(2 * 50 * one.candidate.cost.hours)


def test_reserved_is_billed_whole(mine: str) -> None:
    """A job of hours pays the month."""
    plan = trainplan.plan("llama-3-8b", gpus="h200", prices=mine, tier="reserved")
    assert plan.candidate.offer.tier is Tier.RESERVED
    assert plan.candidate.cost.usd == pytest.approx(720 * 30 * plan.candidate.setting.nodes)


# --------------------------------------------------------------------------------------------------- old and undated


def test_today_is_that_of_source_date_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests and pages are judged on a fixed day; nonsense in the variable is no day."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(366 * 86400))
    assert today().isoformat() == "1971-01-02"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert today().year >= 2026


@pytest.mark.parametrize(
    ("date", "said"),
    [
        ("2026-11-25", ""),
        ("2026-08-27", ""),  # 90 days
        ("2026-08-26 (version x)", "91 days old"),
        ("2026-08", "116 days old"),
        ("undated snapshot; lists p6-b300, so 2025-11 or later", "undated"),
        ("2026-13-45", "undated"),
        ("as given", ""),
    ],
)
def test_prices_older_than_ninety_days_and_undated_ones_are_flagged(date: str, said: str) -> None:
    """On 25 November 2026; one's own price of today is neither."""
    assert flag(date) == said
    assert bool(remark(date)) == bool(said)


def test_every_output_flags_an_old_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plan and estimate as text and JSON, explain, why-not, no plan, the lists as text, JSON and CSV."""
    monkeypatch.chdir(tmp_path)
    Path("old.toml").write_text(MINE.replace("2026-11-10", "2026-08-01").replace('on_demand_terms = "short"', ""))
    use = ["--prices", "old.toml"]
    job = ["--model", "llama-3-8b", "--gpus", "h200", *use]
    fixed = ["--model", "llama-3-8b", "--gpus", "8xh200", "--zero", "1", *use]

    def said(*arguments: str, code: int = 0) -> str:
        assert run_root(list(arguments)) == code
        return "".join(capsys.readouterr())

    text = said("plan", *job, "--out", "p")
    assert "2026-08-01, 116 days old" in text
    assert "note      this price is 116 days old, and prices older than 90 days are flagged" in text
    assert text.count("aws/p5e.48xlarge*") >= 4
    assert text.count("* this price is undated, or older than 90 days") == 2
    plan = json.loads(Path("p/plan.json").read_text())
    rows = [plan["decision"], plan["cost"], *plan["frontier"], *(a for a in plan["alternatives"] if "gpus" in a)]
    assert {row["price_flag"] for row in rows} == {"116 days old"}
    assert "116 days old" in said("explain", "p")
    assert "its price is 116 days old" in said("why-not", "p", "--num-gpus", "16")
    assert "116 days old" in said("estimate", *fixed)
    assert json.loads(said("estimate", *fixed, "--json"))["cost"]["price_flag"] == "116 days old"
    assert "price 116 days old" in said("plan", *job, "--deadline", "1m", "--tokens", "1T", code=3)
    assert "116 days, old" in said("offers", "list", *use)
    assert "116 days, old" in said("offers", "show", "aws/p5e.48xlarge", *use)
    assert json.loads(said("offers", "list", *use, "--json"))[0]["price_flag"] == "116 days old"
    assert said("offers", "list", *use, "--csv").splitlines()[1].endswith("116,116 days old")


def test_an_estimate_takes_the_offer_whose_bill_is_lowest(tmp_path: Path) -> None:
    """A lower rate in whole days loses against a higher one by the hour, for a run of hours."""
    row = "{cloud},big,h100,8,1800,on-demand,{rate},here,2026-11-01,a quote,{step}"
    header = "cloud,instance,gpu,gpus,host_memory_gib,tier,usd_per_hour,region,date,source,billing_step_hours"
    path = tmp_path / "mine.csv"
    lines = [header, row.format(cloud="days", rate=10, step=24), row.format(cloud="hours", rate=20, step="")]
    path.write_text("\n".join(lines))
    short, long = (
        trainplan.estimate("llama-3-8b", gpus="8xh100", zero=1, prices=str(path), tokens=t) for t in ("100M", "100B")
    )
    assert short.candidate.cost.hours < 12 < 48 < long.candidate.cost.hours
    assert (short.candidate.offer.cloud, long.candidate.offer.cloud) == ("hours", "days")
