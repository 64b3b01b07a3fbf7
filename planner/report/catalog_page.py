"""The catalogs as text: plain tables and records for the command line, Markdown for docs/reference/catalog.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from ..catalog import gpus, offers, rejected_offers, usd_per_gpu_hour
from ..catalog_files import EFFICIENCY, Rejected
from ..hardware import Gpu, Offer
from ..staleness import age_days, flag
from ..terms import PLAIN
from ..units import GIB, GIGA, TERA
from .table import markdown_table, table

UNKNOWN = "unknown"
NONE = "none"
GPU_HEADER = ("name", "full name", "memory GiB", "bf16 TFLOP/s", "achieved", "memory GB/s", "link", "link GB/s")
OFFER_HEADER = (
    "offer",
    "GPUs",
    "tier",
    "USD/GPU-h",
    "USD/h",
    "region",
    "host GiB",
    "NVMe TB",
    "net Gbit/s",
    "billing",
    "date",
    "age",
)
REJECTED_HEADER = ("offer", "GPU", "part", "USD/h", "reason", "date")
GBIT_PER_BYTE_S = 8 / GIGA


def number(value: float | None, unit: float = 1.0, *, digits: int = 4) -> str:
    """A figure in a unit, or "unknown".

    >>> number(3.35e12, 1e9), number(None), number(4), number(0.10625)
    ('3,350', 'unknown', '4', '0.1062')
    """
    if value is None:
        return UNKNOWN
    text = f"{value / unit:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def share(value: float | None) -> str:
    """A fraction as a percentage, or "unknown".

    >>> share(0.803)
    '80.3 %'
    """
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def gpu_row(gpu: Gpu) -> tuple[str, ...]:
    """One accelerator under GPU_HEADER."""
    return (
        gpu.name,
        gpu.full_name,
        f"{gpu.memory_bytes / GIB:.2f}",
        _bf16(gpu),
        share(gpu.matmul_efficiency),
        number(gpu.memory_bandwidth_bytes_per_s, GIGA),
        gpu.link + (" with switch" if gpu.nvswitch else ""),
        number(gpu.link_bytes_per_s, GIGA),
    )


def offer_row(offer: Offer) -> tuple[str, ...]:
    """One offer under OFFER_HEADER."""
    node = offer.node
    return (
        offer.name,
        f"{node.gpus} x {node.gpu.name}",
        offer.tier.value,
        f"{usd_per_gpu_hour(offer):.3f}",
        f"{offer.usd_per_hour:.3f}",
        offer.region,
        number(node.host_memory_bytes, GIB),
        number(node.nvme_bytes, TERA),
        number(node.internode_bytes_per_s, 1 / GBIT_PER_BYTE_S),
        "pro rata" if offer.terms == PLAIN else offer.terms.text(),
        offer.date,
        price_age(offer),
    )


def price_age(offer: Offer) -> str:
    """Days since the price's date, and whether that is too many; or that nobody knows.

    >>> [price_age(o) for o in offers() if o.name == "aws/p5.48xlarge"]
    ['undated', 'undated']
    """
    days, said = age_days(offer.date), flag(offer.date)
    if days is None:
        return said or "yours"
    return f"{days} days" + (", old" if said else "")


def rejected_row(row: Rejected) -> tuple[str, ...]:
    """One rejected row under REJECTED_HEADER."""
    price = UNKNOWN if row.usd_per_hour is None else f"{row.usd_per_hour:.3f}"
    return f"{row.cloud}/{row.instance}", row.gpu, row.part, price, row.reason, row.date


def gpu_record(gpu: Gpu) -> dict[str, object]:
    """One accelerator for JSON: base units in the names, null is unknown."""
    return asdict(gpu)


def offer_record(offer: Offer) -> dict[str, object]:
    """One offer for JSON: base units in the names, null is unknown; the accelerator by name."""
    node = {**{key: getattr(offer.node, key) for key in offer.node.__slots__}, "gpu": offer.node.gpu.name}
    own = {key: getattr(offer, key) for key in offer.__slots__ if key != "node"}
    age = {"age_days": age_days(offer.date), "price_flag": flag(offer.date)}
    price = {"tier": offer.tier.value, "usd_per_gpu_hour": usd_per_gpu_hour(offer), "terms": asdict(offer.terms)}
    return {**own, **price, **age, **node}


def rejected_record(row: Rejected) -> dict[str, object]:
    """One rejected row for JSON."""
    return asdict(row)


def gpu_details(gpu: Gpu) -> str:
    """Every figure of an accelerator with its source and date."""
    datasheet = [text for text in gpu.sources if not text.startswith(EFFICIENCY)]
    measured = "".join(text.removeprefix(EFFICIENCY) for text in gpu.sources if text.startswith(EFFICIENCY))
    sheet = " ".join(f"[{n}]" for n in range(1, len(datasheet) + 1))
    link = f"{number(gpu.link_bytes_per_s, GIGA)} GB/s one way, {gpu.link}" + (", NVSwitch" if gpu.nvswitch else "")
    figures = (
        ("memory", f"{gpu.memory_bytes / GIB:.2f} GiB", gpu.memory_source),
        ("memory bandwidth", f"{number(gpu.memory_bandwidth_bytes_per_s, GIGA)} GB/s", sheet),
        ("bf16 peak, dense", _with_unit(_bf16(gpu), "TFLOP/s"), sheet),
        ("fp16 peak, dense", _rate(gpu.fp16_flop_per_s), sheet),
        ("fp32 peak", _rate(gpu.fp32_flop_per_s), sheet),
        ("share of peak achieved", share(gpu.matmul_efficiency), measured),
        ("link in the node", link, sheet),
        ("link to the host", f"{number(gpu.host_link_bytes_per_s, GIGA)} GB/s one way", sheet),
        ("power limit", UNKNOWN if gpu.tdp_w is None else f"{gpu.tdp_w:g} W", sheet),
    )
    rows = [(name, value, "" if value == UNKNOWN else source) for name, value, source in figures]
    lines = [
        f"{gpu.name}: {gpu.full_name}, {gpu.vendor}, {gpu.architecture}",
        f"also: {', '.join(gpu.aliases) or 'no other names'}",
        "",
        table(rows, header=("figure", "value", "source"), align="lll"),
        "",
        *(f"[{n}] {text}" for n, text in enumerate(datasheet, start=1)),
    ]
    return "\n".join(lines + ([f"note: {gpu.notes}"] if gpu.notes else []))


def offer_details(offer: Offer) -> str:
    """Every figure of an offer with its source and date."""
    node = offer.node
    rows = (
        ("price", f"{offer.usd_per_hour:.4f} {offer.currency}/h for the node, {usd_per_gpu_hour(offer):.4f} per GPU"),
        ("tier", offer.tier.value),
        ("billing", offer.terms.text() + (f" [{offer.terms.source}]" if offer.terms.source else "")),
        ("storage", _rate_usd(offer.terms.storage_usd_per_gib_month, "per GiB-month")),
        ("egress", _rate_usd(offer.terms.egress_usd_per_gib, "per GiB")),
        ("region", offer.region),
        ("GPUs", f"{node.gpus} x {node.gpu.name} ({node.gpu.full_name})"),
        ("processors", number(node.vcpus)),
        ("host memory", _with_unit(number(node.host_memory_bytes, GIB), "GiB")),
        ("local NVMe", _with_unit(number(node.nvme_bytes, TERA), "TB")),
        (
            "network",
            _with_unit(number(node.internode_bytes_per_s, 1 / GBIT_PER_BYTE_S), "Gbit/s for the node, one way"),
        ),
        ("source", offer.source),
        ("date", offer.date),
        ("age", price_age(offer)),
        ("note", offer.notes or "none"),
    )
    return f"{offer.name}\n" + "\n".join(f"  {name:<12} {value}" for name, value in rows)


def _rate_usd(rate: float | None, per: str) -> str:
    return UNKNOWN if rate is None else f"{rate:g} USD {per}"


def page() -> str:
    """The body of docs/reference/catalog.md: accelerators, offers and rejected rows, each with source and date."""
    numbers: dict[str, int] = {}
    sections = [_gpu_section(numbers), _offer_section(numbers), _rejected_section(numbers)]
    listed = "\n".join(f"{n}. {text}" for text, n in numbers.items())
    return "\n\n".join([*sections, "## Sources\n\n" + listed]) + "\n"


def _gpu_section(numbers: dict[str, int]) -> str:
    rows = [(*gpu_row(g), g.memory_source, _numbered(g.sources, numbers)) for g in gpus()]
    notes = "\n".join(f"- `{g.name}`: {g.notes}" for g in gpus() if g.notes)
    table = markdown_table((*GPU_HEADER, "memory is", "sources"), rows)
    return f"## Accelerators\n\n{table}\n\n### Doubts and remarks\n\n{notes}"


def _offer_section(numbers: dict[str, int]) -> str:
    ordered = sorted(offers(), key=lambda o: (o.node.gpu.name, o.tier.value, usd_per_gpu_hour(o), o.name))
    # without the last column: a page is no older tomorrow
    rows = [(*offer_row(o)[:-1], o.notes, _numbered((o.source,), numbers)) for o in ordered]
    return f"## Offers\n\n{markdown_table((*OFFER_HEADER[:-1], 'remarks', 'source'), rows)}"


def _rejected_section(numbers: dict[str, int]) -> str:
    rows = [(*rejected_row(r), _numbered((r.source,), numbers)) for r in rejected_offers()]
    return f"## Rejected\n\n{markdown_table((*REJECTED_HEADER, 'source'), rows)}"


def _numbered(sources: Iterable[str], numbers: dict[str, int]) -> str:
    """References into the list of sources, which grows as they are met."""
    return " ".join(f"[{numbers.setdefault(text, len(numbers) + 1)}]" for text in sources)


def _bf16(gpu: Gpu) -> str:
    """The bf16 peak in TFLOP/s; "none" where fp16 is known and bf16 is not: the card has no such units."""
    if gpu.bf16_flop_per_s is None and gpu.fp16_flop_per_s is not None:
        return NONE
    return number(gpu.bf16_flop_per_s, TERA)


def _rate(flop_per_s: float | None) -> str:
    return _with_unit(number(flop_per_s, TERA), "TFLOP/s")


def _with_unit(text: str, unit: str) -> str:
    return text if text in (UNKNOWN, NONE) else f"{text} {unit}"
