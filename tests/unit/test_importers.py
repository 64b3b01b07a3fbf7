"""Price catalogs of SkyPilot and gpuhunt: ten traps of the real files, each with its guard, and files of any kind."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trainplan.cli.main import run_root
from trainplan.cli.offers import command
from trainplan.planner.catalog import find_gpu, select_offers
from trainplan.planner.errors import InputError
from trainplan.planner.hardware import Offer, Tier
from trainplan.planner.importers import (
    Imported,
    Reason,
    find_gpuhunt,
    find_skypilot,
    price_list,
    read_gpuhunt,
    read_skypilot,
)
from trainplan.planner.prices import read_prices
from trainplan.planner.units import GIB

DATA = Path(__file__).parents[1] / "data"
GPUHUNT = DATA / "gpuhunt" / "20260818-42"
DAY_S = 1_792_368_000  # 2026-10-19
HEADER = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone"


@pytest.fixture
def sky(tmp_path: Path) -> Path:
    """A copy of SkyPilot's folder, last tried on 19 October 2026."""
    shutil.copytree(DATA / "skypilot", tmp_path / "catalogs")
    for path in tmp_path.rglob("*.csv"):
        os.utime(path, (DAY_S, DAY_S))
    return tmp_path / "catalogs"


@pytest.fixture
def found(sky: Path) -> Imported:
    """All clouds of the newest schema."""
    return read_skypilot(find_skypilot(str(sky)))


@pytest.fixture
def offers(found: Imported, tmp_path: Path) -> tuple[Offer, ...]:
    """What --prices reads of what was written."""
    path = tmp_path / "mine.toml"
    path.write_text(price_list(found), encoding="utf-8")
    return read_prices(str(path))


def prices(offers: tuple[Offer, ...], name: str, tier: Tier = Tier.ON_DEMAND) -> dict[str, float]:
    """A machine's price by region."""
    return {o.region: o.usd_per_hour for o in offers if o.name == name and o.tier is tier}


def notes(found: Imported, reason: Reason) -> list[str]:
    """What was noted for a reason."""
    return [f"{note.where}, {note.what}" for note in found.noted if note.reason is reason]


# ---------------------------------------------------------------------------------------------------------- the traps


def test_trap_1_gcp_accelerators_are_billed_with_their_machine(found: Imported, offers: tuple[Offer, ...]) -> None:
    """Host 9.46009 + accelerators 78.37241 in one zone; without a host's row, or on n1, no price; TPUs are none."""
    assert prices(offers, "gcp/a3-highgpu-8g") == {"us-east4": pytest.approx(9.46009 + 78.37241)}
    assert prices(offers, "gcp/a3-highgpu-8g", Tier.SPOT)["us-east4"] == pytest.approx(2.4 + 17.8848)
    assert notes(found, Reason.NO_HOST) == [
        "v8/gcp/vms.csv line 8, H100-MEGA in us-east4-b",
        "v8/gcp/vms.csv line 10, T4 in us-central1-a",
    ]
    assert notes(found, Reason.TPU) == ["v8/gcp/vms.csv line 11, tpu-v5p-1024 in us-east5-a"]
    assert {o.name for o in offers if o.cloud == "gcp"} == {"gcp/a3-highgpu-8g"}


def test_trap_2_flex_prices_are_not_on_demand(found: Imported, offers: tuple[Offer, ...]) -> None:
    """33.606 where us-east4 asks 78.372; on-demand 36.603 below spot 38.7 is impossible."""
    (flex,) = notes(found, Reason.FLEX)
    assert "line 7, a3-highgpu-8g in us-central1-a: on-demand 43.0661, elsewhere 87.8325" in flex
    (impossible,) = notes(found, Reason.IMPOSSIBLE)
    assert "line 9, H200 in us-central1-b: on-demand 36.603, spot 38.7" in impossible
    assert prices(offers, "gcp/a3-ultragpu-8g") == {}


def test_trap_3_azure(found: Imported, offers: tuple[Offer, ...]) -> None:
    """Twelve GPUs are eight where that is known, else no machine; GPUs without a name; spot as dear as on-demand."""
    (machine,) = (o for o in offers if o.name == "azure/Standard_ND96isr_H100_v5")
    assert (machine.node.gpus, machine.node.gpu.name, machine.tier) == (8, "h100", Tier.ON_DEMAND)
    assert notes(found, Reason.COUNT_REPAIRED) == [
        "v8/azure/vms.csv line 3, Standard_ND96isr_H100_v5 in eastus: 12.0 are 8"
    ]
    assert notes(found, Reason.COUNT) == ["v8/azure/vms.csv line 7, Standard_ND96amsr_A100_v4 in eastus: 12 GPUs"]
    assert notes(found, Reason.UNNAMED) == ["v8/azure/vms.csv line 5, Standard_NC8ads_A10_v4 in eastus"]
    assert [n for n in notes(found, Reason.SPOT_EQUALS) if "azure" in n] == [
        "v8/azure/vms.csv line 3, Standard_ND96isr_H100_v5 in eastus: spot 98.32",
        "v8/azure/vms.csv line 4, Standard_NC40ads_H100_v5 in eastus: spot 6.98",
    ]


def test_trap_4_aws(found: Imported, offers: tuple[Offer, ...]) -> None:
    """Equal spot is no capacity; p5e has no on-demand price; a lone zone at 11 % is an outlier; local zones are out."""
    assert prices(offers, "aws/p5.48xlarge", Tier.SPOT) == {"us-east-2": 11.2543}
    assert prices(offers, "aws/p5e.48xlarge") == {}
    assert prices(offers, "aws/p5e.48xlarge", Tier.SPOT) == {"us-east-2": 18.7359}
    assert prices(offers, "aws/p5en.48xlarge", Tier.SPOT) == {"eu-north-1": 10.4392}
    assert prices(offers, "aws/p4d.24xlarge", Tier.SPOT) == {"us-east-1": 6.4113, "ca-central-1": 4.5461}
    assert [n.rpartition(", ")[2] for n in notes(found, Reason.OUTLIER)] == [
        "p4d.24xlarge in use1-az1: spot 2.4655",
        "p5en.48xlarge in eus2-az1: spot 6.836",
    ]
    assert notes(found, Reason.LOCAL_ZONE) == ["v8/aws/vms.csv line 8, p5.48xlarge in use1-atl2-az1"]
    assert any("p5e.48xlarge" in n for n in notes(found, Reason.NO_PRICE))
    assert any("p5.48xlarge in use1-az6" in n for n in notes(found, Reason.SPOT_EQUALS))


def test_trap_5_a_spot_price_of_nothing_is_unknown(found: Imported, offers: tuple[Offer, ...]) -> None:
    """0.00 is an empty column, a bid no price, and the query's minimum not the machine: host RAM stays unknown."""
    assert len(notes(found, Reason.ZERO)) == 4
    assert not [o for o in offers if o.cloud in ("vast", "runpod") and o.tier is Tier.SPOT]
    assert {o.node.host_memory_bytes for o in offers if o.cloud in ("vast", "runpod")} == {None}
    assert {o.node.vcpus for o in offers if o.cloud in ("vast", "runpod")} == {None}
    assert notes(found, Reason.BID) == ["v8/runpod/vms.csv line 2, 1x_RTX4090_SECURE in CZ: spot 0.39"]


def test_trap_6_memory_is_never_what_the_file_says(offers: tuple[Offer, ...]) -> None:
    """GpuInfo with GB written as MiB (48), totals, nulls and bare words changes nothing: the name decides."""
    memory = {o.name: o.node.gpu.memory_bytes for o in offers}
    assert memory["shadeform/massedcompute_L40Sx8"] == find_gpu("l40s").memory_bytes > 40 * GIB
    assert memory["shadeform/lambda_A10"] == find_gpu("a10").memory_bytes
    assert memory["vast/8x-H100_SXM-32-65536"] == find_gpu("h100").memory_bytes


def test_trap_7_names_that_stand_for_several_cards(found: Imported, offers: tuple[Offer, ...]) -> None:
    """The machine's name tells SXM, PCIe and NVL apart; where it does not, the row is refused."""
    named = {o.name: o.node.gpu.name for o in offers if o.tier is Tier.ON_DEMAND}
    expected = {
        "vast/1x-H100_NVL-32-65536": "h100-nvl",
        "vast/8x-H100_SXM-32-65536": "h100",
        "vast/4x-A100_SXM4-32-65536": "a100-40",
        "azure/Standard_NC40ads_H100_v5": "h100-nvl",
        "azure/Standard_NC24ads_A100_v4": "a100-80-pcie",
        "runpod/8x_H100-80GB-HBM3_COMMUNITY": "h100",
    }
    assert {name: named[name] for name in expected} == expected
    assert notes(found, Reason.AMBIGUOUS_GPU) == ["v8/shadeform/vms.csv line 4, paperspace_H100 in newyork-usa-1"]
    assert notes(found, Reason.UNKNOWN_GPU) == ["v8/vast/vms.csv line 5, 1x-A100_PCIE-32-65536 in Oregon, US, NA"]


def test_trap_8_shares_of_a_gpu_and_lists_of_regions(found: Imported, offers: tuple[Offer, ...]) -> None:
    """Half an L4 is no GPU; OCI's list price in every region is one row of all regions."""
    assert notes(found, Reason.SHARE) == ["v8/aws/vms.csv line 12, gr6f.4xlarge in use1-az1: 0.5 GPUs"]
    assert prices(offers, "oci/BM.GPU.H100.8") == {"all": 80.0}


def test_trap_9_side_files_are_not_read(offers: tuple[Offer, ...], found: Imported) -> None:
    """metadata.csv says that an H200 and an H100-NVL have 80 GB; gpuhunt that an MI325X has 288."""
    assert not any("common" in source.citation for source in found.sources)
    (h200,) = {o.node.gpu.memory_bytes for o in offers if o.node.gpu.name == "h200"}
    assert h200 > 139 * GIB
    (mi325x,) = (p.machine.gpu for p in read_gpuhunt(find_gpuhunt(str(GPUHUNT))).priced if p.machine.gpus == 8
                 and p.machine.listed.cloud == "oci")  # fmt: skip
    assert mi325x.memory_bytes == find_gpu("mi325x").memory_bytes < 257e9


def test_trap_10_texts_of_any_kind(offers: tuple[Offer, ...]) -> None:
    """Regions with commas, quotes and letters of any language are read back as they stand."""
    assert {"Hafnarfjarðarkaupstaður, IS, EU", 'Hanoi "North", VN, AS'} <= {o.region for o in offers}


# ------------------------------------------------------------------------------------------------- files and folders


def test_the_newest_schema_and_the_day_it_was_last_tried(found: Imported, offers: tuple[Offer, ...]) -> None:
    """v8 before v7, whose prices are others; the date is that of the file, and says what it is worth."""
    assert all("v8/" in source.citation for source in found.sources)
    assert {o.date for o in offers} == {"2026-10-19 (last tried; the prices may be older)"}
    assert 9.99 not in {o.usd_per_hour for o in offers}
    assert {o.source for o in offers if o.cloud == "aws"} == {"SkyPilot v8/aws/vms.csv"}


def test_a_file_that_was_edited_says_so(sky: Path) -> None:
    """A digest that is not the file's: SkyPilot no longer refreshes it."""
    meta = sky / "v8" / ".meta" / "aws"
    meta.mkdir(parents=True)
    (meta / "vms.csv.md5").write_text("0" * 32)
    dates = {source.cloud: source.date for source in read_skypilot(find_skypilot(str(sky))).sources}
    assert dates["aws"] == "2026-10-19 (last changed by hand; SkyPilot no longer refreshes it)"
    assert dates["oci"] == "2026-10-19 (last tried; the prices may be older)"


def test_skypilots_own_folder(sky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SKY_RUNTIME_DIR before the home folder."""
    (tmp_path / "run" / ".sky").mkdir(parents=True)
    sky.rename(tmp_path / "run" / ".sky" / "catalogs")
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(tmp_path / "run"))
    assert len(find_skypilot(None)) == 7
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"no catalog of SkyPilot; v8/CLOUD/vms\.csv is needed; run sky show-gpus"):
        find_skypilot(None)


def test_gpuhunt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to pay are one machine; memory tells A100 cards apart; the folder's version is the date."""
    monkeypatch.setenv("GPUHUNT_CATALOG_DIR", str(GPUHUNT))
    found = read_gpuhunt(find_gpuhunt(None))
    path = tmp_path / "g.toml"
    path.write_text(price_list(found), encoding="utf-8")
    offers = read_prices(str(path))
    names = {o.name: o.node.gpu.name for o in offers}
    assert names["aws/p4de.24xlarge"] == "a100-80"
    assert names["aws/p4d.24xlarge"] == "a100-40"
    assert names["lambda/gpu_8x_h100_sxm5"] == "h100"
    assert names["lambda/gpu_1x_h100_pcie"] == "h100-pcie"
    assert prices(offers, "aws/p4de.24xlarge", Tier.SPOT) == {"us-east-1": 8.9}
    assert {o.date for o in offers} == {"2026-08-18 (version 20260818-42)"}
    assert notes(found, Reason.SPOT_EQUALS) == ["aws.csv line 5, p5.48xlarge in us-east-1: spot 55.04"]
    assert notes(found, Reason.ZERO) == ["runpod.csv line 2, NVIDIA H100 NVL in US-KS-2: spot 0"]
    assert {n: o.node.gpus for n in names for o in offers if o.name == n and "NVL" in n} == {
        "runpod/NVIDIA H100 NVL (1 x h100-nvl)": 1, "runpod/NVIDIA H100 NVL (2 x h100-nvl)": 2,
    }  # fmt: skip


def test_on_demand_far_below_another_region_is_left_out(tmp_path: Path) -> None:
    """A hundredth of the dearest region's price is an error, of any cloud whose regions have list prices."""
    folder = tmp_path / "v8" / "aws"
    folder.mkdir(parents=True)
    row = "p5.48xlarge,H100,8,192,2048,,{price},,{region},{region}a"
    prices_of = {"us-east-1": 55.04, "us-west-1": 0.5, "eu-west-1": 50.0}
    lines = [row.format(price=usd, region=region) for region, usd in prices_of.items()]
    (folder / "vms.csv").write_text("\n".join([HEADER, *lines]), encoding="utf-8")
    found = read_skypilot(find_skypilot(str(tmp_path)))
    assert notes(found, Reason.FAR_BELOW) == [
        "v8/aws/vms.csv line 3, p5.48xlarge in us-west-1a: on-demand 0.5, elsewhere 55.04"
    ]
    assert {p.region: p.usd_per_hour for p in found.priced} == {"us-east-1": 55.04, "eu-west-1": 50.0}


def test_gpuhunt_says_how_a_machine_is_paid_or_is_not_read(tmp_path: Path) -> None:
    """Neither spot nor on-demand is no way to pay."""
    text = (GPUHUNT / "aws.csv").read_text(encoding="utf-8")
    (tmp_path / "aws.csv").write_text(re.sub(",(true|false|True|False)", ",maybe", text), encoding="utf-8")
    found = read_gpuhunt(find_gpuhunt(str(tmp_path)))
    assert found.priced == ()
    assert all("spot 'maybe'" in note for note in notes(found, Reason.UNREADABLE))


def test_gpuhunt_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line: what is missing and what to do."""
    monkeypatch.delenv("GPUHUNT_CATALOG_DIR", raising=False)
    with pytest.raises(InputError, match="--from: no folder, and GPUHUNT_CATALOG_DIR is not set"):
        find_gpuhunt(None)
    with pytest.raises(InputError, match=r"no catalog of gpuhunt; PROVIDER\.csv is needed"):
        find_gpuhunt(str(tmp_path))


def test_networks_are_those_of_the_built_in_machine(offers: tuple[Offer, ...]) -> None:
    """No catalog on disk states a network; without one no plan could use two nodes."""
    built_in = select_offers(["h100"], tier=Tier.ON_DEMAND, cloud="aws")
    known = {o.name: o.node.internode_bytes_per_s for o in built_in}
    (network,) = {o.node.internode_bytes_per_s for o in offers if o.name == "aws/p5.48xlarge"}
    assert network == known["aws/p5.48xlarge"] is not None
    assert {o.node.internode_bytes_per_s for o in offers if o.cloud == "vast"} == {None}


def write(folder: Path, text: bytes) -> Path:
    """One cloud's catalog."""
    path = folder / "v8" / "aws" / "vms.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return path


def test_another_table_is_refused(tmp_path: Path) -> None:
    """One line with the file and the columns that are missing."""
    path = write(tmp_path, b"a,b\n1,2\n")
    with pytest.raises(InputError, match=r"v8/aws/vms\.csv: no column InstanceType, AcceleratorName"):
        read_skypilot((path,))
    with pytest.raises(InputError, match="no column"):
        read_skypilot((write(tmp_path, b""),))


CELL = st.one_of(
    st.text(max_size=12), st.sampled_from(["H100", "A100-80GB", "", "nan", "inf", "-1", "1e999", "0.00", "8", "0.5"]),
    st.floats().map(str),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(rows=st.lists(st.lists(CELL, min_size=9, max_size=11), max_size=6), tail=st.binary(max_size=40))
def test_garbage_is_noted_and_never_raises(tmp_path: Path, rows: list[list[str]], tail: bytes) -> None:
    """Whatever stands in the rows, what is written can be read back; every price in it is an amount."""
    lines = "\n".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    path = write(tmp_path, f"{HEADER}\n{lines}\n".encode(errors="replace") + tail)
    found = read_skypilot((path,))
    if found.priced:
        mine = tmp_path / "mine.toml"
        mine.write_text(price_list(found), encoding="utf-8")
        assert all(0 < o.usd_per_hour <= 1e6 for o in read_prices(str(mine)))


# ------------------------------------------------------------------------------------------------------- the commands


def run(*arguments: str) -> Result:
    """A command that must succeed."""
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_import_writes_once_and_says_what_it_left_out(
    sky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counts by reason with an example; never over a file that is there; nothing is left beside it."""
    monkeypatch.chdir(tmp_path)
    text = run("import", "skypilot", "--from", str(sky)).output
    assert "Read 40 rows" in text
    assert "3  spot equals on-demand: no discount, no capacity" in text
    assert "use it: trainplan --model 70b --prices skypilot-prices.toml" in text
    before = Path("skypilot-prices.toml").read_text()
    assert run_root(["offers", "import", "skypilot", "--from", str(sky)]) == 2
    assert "is there already; choose another --out, or add --force" in capsys.readouterr().err
    assert Path("skypilot-prices.toml").read_text() == before
    document = json.loads(run("import", "skypilot", "--from", str(sky), "--force", "--json").output)
    assert document["prices"] == {"on-demand": 18, "spot": 8}
    assert {r["reason"]: r["count"] for r in document["left_out"]}["zero"] == 4
    assert sorted(os.listdir(tmp_path)) == ["catalogs", "skypilot-prices.toml"]


def test_import_as_csv_is_the_same_list(sky: Path, tmp_path: Path) -> None:
    """A name that ends in .csv."""
    for name in ("a.toml", "a.csv"):
        run("import", "skypilot", "--from", str(sky), "--out", str(tmp_path / name))
    one, other = (read_prices(str(tmp_path / name)) for name in ("a.toml", "a.csv"))
    assert [(o.name, o.tier, o.usd_per_hour, o.region) for o in one] == [
        (o.name, o.tier, o.usd_per_hour, o.region) for o in other
    ]


def test_nothing_left_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A catalog of which every row is refused."""
    write(tmp_path, f"{HEADER}\nm5.large,,,2,8,,0.1,0.03,us-east-1,use1-az1\n".encode())
    out = tmp_path / "mine.toml"
    assert run_root(["offers", "import", "skypilot", "--from", str(tmp_path), "--out", str(out)]) == 2
    assert "no price is left of 1 rows (1 x a machine without accelerators)" in capsys.readouterr().err
    assert not out.exists()
