"""The catalog of accelerators: names, figures, and what its reader refuses."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from trainplan.planner.catalog import find_gpu, gpus, owned_offer
from trainplan.planner.catalog_files import EFFICIENCY, MOST_PROBLEMS, read_gpus
from trainplan.planner.errors import InputError
from trainplan.planner.hardware import Tier
from trainplan.planner.report.catalog_page import gpu_details, page

GIB = 2**30
MIB = 2**20

FULL_NAMES = {
    "a100-40": "A100-SXM-40GB",
    "a100-80": "A100-SXM-80GB",
    "a100-80-pcie": "A100-PCIe-80GB",
    "h100": "H100-SXM-80GB",
    "h100-pcie": "H100-PCIe-80GB",
    "h100-nvl": "H100-NVL-94GB",
    "h200": "H200-SXM-141GB",
    "h200-nvl": "H200-NVL-141GB",
    "gh200": "GH200-96GB",
    "b200": "B200-SXM-180GB",
    "b300": "B300-SXM-288GB",
    "gb200": "GB200 (per GPU)",
    "gb300": "GB300 (per GPU)",
    "l4": "L4-24GB",
    "l40s": "L40S-48GB",
    "l40": "L40-48GB",
    "a10g": "A10G-24GB",
    "a10": "A10-24GB",
    "t4": "T4-16GB",
    "v100-16": "V100-SXM-16GB",
    "v100-32": "V100-SXM-32GB",
    "3090": "RTX-3090-24GB",
    "4090": "RTX-4090-24GB",
    "5090": "RTX-5090-32GB",
    "rtx6000-ada": "RTX-6000-Ada-48GB",
    "a6000": "RTX-A6000-48GB",
    "a40": "A40-48GB",
    "rtxpro6000": "RTX-PRO-6000-96GB",
    "mi300x": "MI300X-192GB",
    "mi325x": "MI325X-256GB",
    "mi350x": "MI350X-288GB",
    "mi355x": "MI355X-288GB",
    "mi250x": "MI250X-128GB",
    "gaudi2": "Gaudi2-96GB",
    "gaudi3": "Gaudi3-128GB",
    "m3-ultra": "Apple M3 Ultra",
}
DRIVER_MIB = {
    "4090": 24564,
    "l40s": 46068,
    "h100": 81559,
    "h200": 143771,
    "b200": 183359,
    "b300": 275040,
    "5090": 32607,
}
NVSWITCH = {"a100-40", "a100-80", "h100", "h200", "b200", "b300", "gb200", "gb300"}

SOURCE = '[sources.s]\ncitation = "a sheet"\ndate = "2026-01-01"\n'
CARD = """
[[gpus]]
name = "x1"
full_name = "X-1"
vendor = "x"
architecture = "x"
label_gb = 10
memory_gb_per_s = 100
link = "PCIe"
link_gb_per_s = 31
nvswitch = false
host_link_gb_per_s = 31
sources = ["s"]
"""


def test_every_accelerator_is_there() -> None:
    """The catalog holds these accelerators, under these short names, and no others."""
    assert {g.name: g.full_name for g in gpus()} == FULL_NAMES


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("a100-80", "a100-80"),
        ("A100_80", "a100-80"),
        ("a100 80gb", "a100-80"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("rtx4090", "4090"),
        ("RTX 6000 Ada Generation", "rtx6000-ada"),
        ("H100-80GB (PCIe)", "h100-pcie"),
        ("AMD Instinct MI300X", "mi300x"),
        ("p5", "h100"),
    ],
)
def test_names_are_read_leniently(typed: str, name: str) -> None:
    """Case, spaces, underscores, dashes and the vendor's name do not matter; torch's device names are understood."""
    assert find_gpu(typed).name == name


def test_a100_alone_is_the_40_gb_card() -> None:
    """Price lists write A100 for the 40 GB card; so does the catalog."""
    assert find_gpu("A100").name == "a100-40"


def test_unknown_name_suggests() -> None:
    """An unknown accelerator is an input error of one line with the nearest names."""
    with pytest.raises(
        InputError, match=r"^gpu: not in the catalog, got 'h10'; known are a100-40, .*did you mean h100"
    ):
        find_gpu("h10")


@pytest.mark.parametrize("name", ["", " ", "x" * 100_000, "h100\x00", "\x1b[31m"])
def test_strange_names_give_one_short_line(name: str) -> None:
    """Whatever is typed, the message stays one short, printable line."""
    with pytest.raises(InputError) as caught:
        find_gpu(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(("name", "driver_mib"), DRIVER_MIB.items())
def test_memory_is_at_most_what_the_driver_reports(name: str, driver_mib: int) -> None:
    """Capacity is never above the driver's total, which is below the label read as GiB."""
    gpu = find_gpu(name)
    label_gib = float(gpu.full_name.split("-")[-1].removesuffix("GB"))
    assert gpu.memory_bytes <= driver_mib * MIB < label_gib * GIB
    assert f"driver {driver_mib} MiB" in gpu.memory_source


def test_the_smaller_of_driver_and_torch_counts() -> None:
    """RTX 4090: torch sees 23.52 GiB of the driver's 24564 MiB (23.99 GiB)."""
    assert find_gpu("4090").memory_bytes == int(23.52 * GIB) < 24564 * MIB


def test_a_label_is_read_as_decimal_and_said_to_be_a_label() -> None:
    """H200 NVL: nobody reported its total, so 141 GB count as 141 x 10^9 bytes, and the source says so."""
    gpu = find_gpu("h200-nvl")
    assert gpu.memory_bytes == 141 * 10**9
    assert gpu.memory_source.startswith("label, not measured")


def test_memory_is_not_taken_from_price_lists() -> None:
    """One price list's side file gives 80 GB for H200, B200 and GH200; the catalog does not follow."""
    assert all(find_gpu(name).memory_bytes > 89 * GIB for name in ("h200", "b200", "gh200"))


def test_units() -> None:
    """Catalog units become bytes, bytes/s and FLOP/s."""
    h100 = find_gpu("h100")
    assert h100.memory_bandwidth_bytes_per_s == 3350 * 1e9
    assert h100.bf16_flop_per_s == 989 * 1e12
    assert h100.link_bytes_per_s == 450 * 1e9
    assert h100.host_link_bytes_per_s == 63 * 1e9
    assert h100.tdp_w == 700


def test_rates_are_dense_and_accumulate_in_fp32() -> None:
    """No sparse peak (H100 1979), no fp16-accumulation peak (RTX 4090 330), no shader rate (RTX 4090 82.6)."""
    assert find_gpu("h100").bf16_flop_per_s == 989e12
    assert find_gpu("4090").bf16_flop_per_s == 165.2e12
    assert find_gpu("a10g").bf16_flop_per_s == 70e12  # 125 is the A10


@pytest.mark.parametrize("name", ["t4", "v100-16", "v100-32"])
def test_cards_without_bf16_say_so(name: str) -> None:
    """Before Ampere there are no bf16 units: the peak is None, fp16 is known, and the page prints none."""
    gpu = find_gpu(name)
    assert gpu.bf16_flop_per_s is None
    assert gpu.fp16_flop_per_s is not None
    assert "bf16 peak, dense        none" in gpu_details(gpu)


def test_matmul_efficiency_is_measured_or_unknown() -> None:
    """Efficiencies are shares below 1 with a source of their own; a card nobody measured has None."""
    assert find_gpu("h100").matmul_efficiency == pytest.approx(794.5 / 989, abs=0.0005)
    assert find_gpu("h200").matmul_efficiency == find_gpu("h100").matmul_efficiency
    assert find_gpu("mi355x").matmul_efficiency == 1565 / 2500  # the source divides by 2300
    assert find_gpu("5090").matmul_efficiency is None
    for gpu in gpus():
        cited = [text for text in gpu.sources if text.startswith(EFFICIENCY)]
        assert len(cited) == (gpu.matmul_efficiency is not None)
        assert gpu.matmul_efficiency is None or 0.5 < gpu.matmul_efficiency < 1


def test_nvswitch_only_on_boards_that_have_one() -> None:
    """HGX and NVL72 boards switch NVLink; V100 nodes are a mesh, PCIe and consumer cards have none."""
    assert {g.name for g in gpus() if g.nvswitch} == NVSWITCH


def test_bridges_are_not_counted_as_links() -> None:
    """Cards that a bridge may join in pairs are planned with PCIe."""
    for name in ("a100-80-pcie", "h100-pcie", "h100-nvl", "a6000", "a40", "3090"):
        gpu = find_gpu(name)
        assert (gpu.link, gpu.link_bytes_per_s) == ("PCIe", gpu.host_link_bytes_per_s)


def test_mi250x_is_one_of_its_two_devices() -> None:
    """Software sees an MI250X as two devices of 64 GB and 383 / 2 TFLOP/s."""
    gpu = find_gpu("mi250x")
    assert (gpu.memory_bytes, gpu.bf16_flop_per_s) == (64 * 10**9, 383e12 / 2)


def test_every_figure_has_a_source_with_a_date() -> None:
    """Each accelerator names its sources, each with a date in brackets, and where its memory is from."""
    for gpu in gpus():
        assert gpu.sources
        assert all(text.endswith(")") and "(" in text for text in gpu.sources)
        assert gpu.memory_source


def test_figures_are_plausible() -> None:
    """Every number is finite and positive; links inside a node are at least a PCIe 3 x8."""
    for gpu in gpus():
        assert 10 * GIB < gpu.memory_bytes < 300 * GIB
        assert 2e11 < gpu.memory_bandwidth_bytes_per_s < 1e13
        assert 7e9 < gpu.link_bytes_per_s < 1e12
        rates = (gpu.bf16_flop_per_s, gpu.fp16_flop_per_s, gpu.fp32_flop_per_s, gpu.tdp_w)
        assert all(rate is None or (math.isfinite(rate) and rate > 0) for rate in rates)


def test_owned_machines() -> None:
    """A node of 4 GPUs at 0.50 USD costs 4 x 0.50 USD an hour; what was not given is unknown."""
    offer = owned_offer(find_gpu("4090"), gpus_per_node=4, usd_per_gpu_hour=0.5)
    assert (offer.usd_per_hour, offer.tier, offer.cloud) == (4 * 0.5, Tier.OWNED, "own")
    assert offer.node.host_memory_bytes is offer.node.nvme_bytes is offer.node.internode_bytes_per_s is None


@pytest.mark.parametrize("price", [-1.0, math.nan, math.inf])
def test_owned_price_is_a_price(price: float) -> None:
    """Negative, infinite and undefined prices are refused."""
    with pytest.raises(InputError, match="price: not a price"):
        owned_offer(find_gpu("4090"), gpus_per_node=4, usd_per_gpu_hour=price)


@pytest.mark.parametrize("count", [0, -1, 5000])
def test_owned_node_has_gpus(count: int) -> None:
    """A machine has 1 to 1024 GPUs."""
    with pytest.raises(InputError, match="gpus per node"):
        owned_offer(find_gpu("4090"), gpus_per_node=count, usd_per_gpu_hour=1)


def test_reader_accepts_a_minimal_row() -> None:
    """What a row leaves out is None; memory falls back to the label."""
    (gpu,) = read_gpus(SOURCE + CARD, where="mine.toml")
    assert gpu.memory_bytes == 10 * 10**9
    assert gpu.bf16_flop_per_s is gpu.matmul_efficiency is gpu.tdp_w is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("gpus = [", "not TOML"),
        ("x = " + "[" * 20_000, "not TOML"),
        ("x = " + "9" * 10_000, "not TOML"),
        ("#" * (MIB + 1), "too large"),
        ("gpus = 3", "gpus: not a list of tables"),
        ("gpus = [3]", "gpus 1: not a table, got 3"),
        ("sources = 3", "sources: not a table"),
        ("[gpu]", "unknown key 'gpu'"),
        (CARD, "source 's' is not among the file's"),
        ('[sources.s]\ncitation = "a sheet"\n' + CARD, "sources.s: date is missing"),
        (SOURCE + CARD.replace('sources = ["s"]', "sources = []"), "sources: got []"),
        (SOURCE + CARD.replace('sources = ["s"]', ""), "sources is missing"),
        (SOURCE + CARD + "tdp_w = -3", "tdp_w: got -3; allowed is a number above 0"),
        (SOURCE + CARD + "tdp_w = nan", "tdp_w: got nan"),
        (SOURCE + CARD + "tdp_w = inf", "tdp_w: got inf"),
        (SOURCE + CARD + "tdp_w = true", "tdp_w: got True"),
        (SOURCE + CARD + 'tdp_w = "300"', "tdp_w: got '300'"),
        (SOURCE + CARD + "tdp_w = 0x" + "f" * 5_000, "tdp_w: got a number too long to print"),
        (SOURCE + CARD + "tdp_w = 1979-05-27", "tdp_w: got datetime.date"),
        (SOURCE + CARD + "driver_memory_mib = 1.5", "driver_memory_mib: got 1.5; allowed is a whole number"),
        (SOURCE + CARD + "driver_memory_mib = 15", "driver_memory_mib needs driver_memory_source"),
        (
            SOURCE + CARD + "matmul_efficiency = 80.3",
            "matmul_efficiency: got 80.3; allowed is a number above 0, at most 1",
        ),
        (SOURCE + CARD + "tdp = 3", "unknown key 'tdp'; did you mean tdp_w?"),
        (SOURCE + CARD.replace("nvswitch = false", "nvswitch = 0"), "nvswitch: got 0; allowed is true or false"),
        (SOURCE + CARD.replace('link = "PCIe"', 'link = "\\u001b[31m"'), "link: got"),
        (SOURCE + CARD.replace('link = "PCIe"', f'link = "{"x" * 1_000}"'), "link: got"),
        (SOURCE + CARD + 'aliases = ["X 1"]\n' + CARD.replace("x1", "y1").replace("X-1", "x_1"), "'x1' is given twice"),
        (SOURCE + CARD.replace('name = "x1"', "name = 0x" + "f" * 5_000, 1), "name: got a number too long"),
    ],
)
def test_reader_refuses(text: str, problem: str) -> None:
    """A hostile or mistaken file is refused in one line that names the file, the place and the problem."""
    with pytest.raises(InputError) as caught:
        read_gpus(text, where="mine.toml")
    assert str(caught.value).startswith("mine.toml: ")
    assert problem in str(caught.value)
    assert str(caught.value).isprintable()


def test_reader_reports_all_problems_at_once() -> None:
    """Three mistakes in two rows are one message with three problems."""
    bad = CARD.replace("label_gb = 10", "label_gb = -10") + "wings = 2"
    with pytest.raises(InputError) as caught:
        read_gpus(SOURCE + bad + CARD.replace('link = "PCIe"', "link = 3"), where="mine.toml")
    assert [part in str(caught.value) for part in ("label_gb: got -10", "unknown key 'wings'", "link: got 3")] == [
        True
    ] * 3


def test_reader_bounds_its_message() -> None:
    """Ten thousand problems are not ten thousand lines."""
    with pytest.raises(InputError, match="and 9950 more problems") as caught:
        read_gpus("gpus = [" + "3," * 10_000 + "]", where="mine.toml")
    assert str(caught.value).count(";") == MOST_PROBLEMS


def test_page_is_current() -> None:
    """docs/reference/catalog.md holds what `cog -r docs/reference/catalog.md` would write."""
    written = (Path(__file__).parents[2] / "docs" / "reference" / "catalog.md").read_text(encoding="utf-8")
    assert page() in written


def test_commands_import_nothing_heavy() -> None:
    """The command line's groups load without the planner, numpy or TOML: help must be instant."""
    code = (
        "import sys, trainplan.cli.gpus, trainplan.cli.offers;"
        "print([m for m in ('numpy', 'tomllib', 'trainplan.planner.catalog', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
