"""The catalogs' TOML files: what a row may hold, what is wrong with it, what it becomes.

A file with problems is refused with all of them at once; nothing is guessed: an absent key is None. Catalog units
(MiB, GiB, GB/s, TFLOP/s, Gbit/s, TB) become base units here and nowhere else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InputError, did_you_mean
from .hardware import USD, Gpu, Node, Offer, Tier
from .terms import PLAIN, Terms
from .terms_files import known_terms, lacking, terms_of, terms_problems
from .time.fabrics import offered_fabric
from .units import GIB, GIGA, MIB, TERA

EFFICIENCY = "matmul efficiency: "  # begins the source, among a Gpu's sources, that its matmul_efficiency comes from
LARGEST_FILE_BYTES = MIB
LONGEST_TEXT = 600  # characters of one string
LONGEST_NAME = 40  # characters of something unknown that a message repeats
LARGEST_NUMBER = 1e9  # above every figure of a catalog, in its units
MOST_GPUS = 1024  # in one node
MOST_PROBLEMS = 50  # of one file in one message
GBIT_BYTES = GIGA / 8
NETWORK = "internode_gbit_per_s"
NOT_IN_A_NAME = re.compile(r"[\s_\-()/]+")
VENDOR_WORDS = ("nvidia", "amd")  # what torch.cuda.get_device_name() puts before the name


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A row, or one price of a row, that a source lists and this catalog does not offer."""

    cloud: str
    instance: str
    gpu: str  # as the source names it
    part: str  # "offer": the whole row; "spot" or "on-demand": that price alone
    usd_per_hour: float | None
    reason: str
    date: str
    source: str


@dataclass(frozen=True, slots=True)
class Field:
    """What a key of a catalog row may hold: a positive number of ``kind``, a text, a flag or a list of texts."""

    kind: type
    required: bool = True
    most: float = LARGEST_NUMBER
    among: tuple[str, ...] = ()


TEXT, FLAG, COUNT, NUMBER, TEXTS = Field(str), Field(bool), Field(int), Field(float), Field(tuple)
MAYBE_TEXT, MAYBE_COUNT, MAYBE_NUMBER = Field(str, False), Field(int, False), Field(float, False)
MAYBE_FLAG = Field(bool, False)
HOST_GIB = Field(float, False, most=65_536.0)  # of one node; MiB typed for GiB are refused

SOURCE_FIELDS = {"citation": TEXT, "date": TEXT}
GPU_FIELDS = {
    "name": TEXT,
    "full_name": TEXT,
    "aliases": Field(tuple, False),
    "vendor": TEXT,
    "architecture": TEXT,
    "label_gb": NUMBER,
    "driver_memory_mib": MAYBE_COUNT,
    "driver_memory_source": MAYBE_TEXT,
    "torch_memory_gib": MAYBE_NUMBER,
    "torch_memory_source": MAYBE_TEXT,
    "memory_gb_per_s": NUMBER,
    "bf16_tflop_per_s": MAYBE_NUMBER,
    "fp16_tflop_per_s": MAYBE_NUMBER,
    "fp32_tflop_per_s": MAYBE_NUMBER,
    "fp8_tflop_per_s": MAYBE_NUMBER,
    "fp4_tflop_per_s": MAYBE_NUMBER,
    "fp8_efficiency": Field(float, False, most=1.0),
    "matmul_efficiency": Field(float, False, most=1.0),
    "matmul_source": MAYBE_TEXT,
    "link": TEXT,
    "link_gb_per_s": NUMBER,
    "nvswitch": FLAG,
    "host_link_gb_per_s": NUMBER,
    "tdp_w": MAYBE_NUMBER,
    "sources": TEXTS,
    "notes": MAYBE_TEXT,
}
NODE_FIELDS = {
    "instance": TEXT,
    "gpu": TEXT,
    "gpus": Field(int, most=MOST_GPUS),
    "vcpus": MAYBE_COUNT,
    "host_memory_gib": HOST_GIB,
    "nvme_tb": MAYBE_NUMBER,
    NETWORK: MAYBE_NUMBER,
}
OFFER_FIELDS = {
    **NODE_FIELDS,
    "on_demand_usd_per_hour": MAYBE_NUMBER,
    "on_demand_region": MAYBE_TEXT,
    "on_demand_terms": MAYBE_TEXT,
    "spot_usd_per_hour": MAYBE_NUMBER,
    "spot_region": MAYBE_TEXT,
    "spot_terms": MAYBE_TEXT,
    "reserved_usd_per_hour": MAYBE_NUMBER,
    "reserved_region": MAYBE_TEXT,
    "reserved_terms": MAYBE_TEXT,
    "capacity_block_usd_per_hour": MAYBE_NUMBER,
    "capacity_block_region": MAYBE_TEXT,
    "capacity_block_terms": MAYBE_TEXT,
    "cloud": MAYBE_TEXT,
    "source": TEXT,
    "notes": MAYBE_TEXT,
}
TERMS_FIELDS = {
    "minimum_hours": MAYBE_NUMBER,
    "billing_step_hours": MAYBE_NUMBER,
    "long_after_hours": MAYBE_NUMBER,
    "long_step_hours": MAYBE_NUMBER,
    "commitment_hours": MAYBE_NUMBER,
    "maximum_hours": MAYBE_NUMBER,
    "minimum_nodes": MAYBE_COUNT,
    "maximum_nodes": MAYBE_COUNT,
    "upfront": MAYBE_FLAG,
    "storage_usd_per_gib_month": MAYBE_NUMBER,
    "egress_usd_per_gib": MAYBE_NUMBER,
    "source": TEXT,
    "date": TEXT,
}
REJECTED_FIELDS = {
    "instance": TEXT,
    "gpu": TEXT,
    "part": Field(str, among=("offer", "on-demand", "spot")),
    "usd_per_hour": MAYBE_NUMBER,
    "source": TEXT,
    "reason": TEXT,
}
GPU_PAIRS = (
    ("driver_memory_mib", "driver_memory_source"),
    ("torch_memory_gib", "torch_memory_source"),
    ("matmul_efficiency", "matmul_source"),
)
PRICED = (Tier.ON_DEMAND, Tier.SPOT, Tier.RESERVED, Tier.CAPACITY_BLOCK)
TIERS = tuple(  # (tier, key of its price, of its region, of its terms)
    (tier, f"{prefix}_usd_per_hour", f"{prefix}_region", f"{prefix}_terms")
    for tier, prefix in ((tier, tier.value.replace("-", "_")) for tier in PRICED)
)
PRICE_PAIRS = tuple((price, region) for _, price, region, _ in TIERS)
TABLES = {"cloud", "currency", "sources", "terms", "offers", "rejected"}

Row = dict[str, Any]


def gpu_key(name: str) -> str:
    """What is left of a name when case, separators and the vendor do not count."""
    key = NOT_IN_A_NAME.sub("", name.lower())
    for word in VENDOR_WORDS:
        key = key.removeprefix(word)
    return key


# ------------------------------------------------------------------------------------------------------ reading files


def read_gpus(text: str, *, where: str) -> tuple[Gpu, ...]:
    """Accelerators of one TOML text.

    Args:
        text: tables ``[sources.KEY]`` and ``[[gpus]]``.
        where: what the text is called in messages.

    Raises:
        InputError: the text is no TOML or has problems, all of them in one line.
    """
    table = _toml(text, where)
    sources, problems = _sources(table, {"sources", "gpus"})
    rows = _rows(table, "gpus", GPU_FIELDS, problems, text)
    for label, row in rows:
        keys = [*row.get("sources", ()), *(row[key] for _, key in GPU_PAIRS if key in row)]
        problems += _unpaired(label, row, GPU_PAIRS) + _unknown_sources(label, keys, sources)
    problems += _repeated(
        (key, label)
        for label, row in rows
        for key in {gpu_key(n) for n in (row["name"], row["full_name"], *row.get("aliases", ()))}
    )
    refuse(where, problems)
    return tuple(_gpu(row, sources) for _, row in rows)


def _all_name_clouds(rows: object) -> bool:
    """Whether every offer says whose it is, right or wrong otherwise."""
    return isinstance(rows, list) and all(isinstance(row, dict) and "cloud" in row for row in rows)


def read_offers(
    text: str, *, where: str, find: Callable[[str], Gpu], most_bytes: int = LARGEST_FILE_BYTES
) -> tuple[tuple[Offer, ...], tuple[Rejected, ...]]:
    """Offers and rejected rows of one TOML text.

    Args:
        text: ``cloud``, tables ``[sources.KEY]`` and ``[terms.KEY]``, ``[[offers]]`` and ``[[rejected]]``.
        where: what the text is called in messages.
        find: gives the accelerator of a name, or raises InputError.
        most_bytes: characters it may have.

    Raises:
        InputError: the text is no TOML or has problems, all of them in one line.
    """
    table = _toml(text, where, most_bytes)
    sources, problems = _sources(table, TABLES)
    rows = _rows(table, "offers", OFFER_FIELDS, problems, text)
    refused = _rows(table, "rejected", REJECTED_FIELDS, problems, text)
    listed = table.get("offers")
    clouded = "cloud" not in table and not refused and bool(listed) and _all_name_clouds(listed)
    problems += [] if clouded else _problem("cloud", table.get("cloud"), TEXT)
    problems += _problem("currency", table.get("currency", USD), Field(str, among=(USD,)))
    terms, found = _terms(table)
    problems += found
    for label, row in rows:
        problems += _unpaired(label, row, PRICE_PAIRS) + _unsound(label, row) + _no_gpu(label, row, find)
        problems += _unknown_terms(label, row, terms)
    for label, row in (*rows, *refused):
        problems += _unknown_sources(label, [row["source"]], sources)
    problems += _repeated(
        ((row.get("cloud", ""), row["instance"], tier, row.get(region), row.get(bound)), label)
        for label, row in rows
        for tier, price, region, bound in TIERS
        if price in row
    )
    refuse(where, problems)
    cloud, nodes = str(table.get("cloud", "")), dict[tuple[object, ...], Node]()
    sellers = [(row.get("cloud", cloud), row) for _, row in rows]
    priced = tuple(
        o
        for seller, row in sellers
        for o in _offers(row, seller, node_of(row, seller, find(row["gpu"]), nodes), sources, terms)
    )
    return priced, tuple(_rejected(row, cloud, sources) for _, row in refused)


def _toml(text: str, where: str, most_bytes: int = LARGEST_FILE_BYTES) -> Row:
    import tomllib

    if len(text) > most_bytes:
        raise InputError(f"{where}: too large, got {len(text)} characters; allowed are {most_bytes}; split it")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        problem = str(error).splitlines()[0][:200]
        raise InputError(f"{where}: not TOML: {problem}; see https://toml.io; correct that line") from None


# ----------------------------------------------------------------------------------------------------------- problems


def refuse(where: str, problems: list[str]) -> None:
    """Raise all problems of a file as one line, not without end.

    Raises:
        InputError: there are problems.
    """
    if problems:
        more = len(problems) - MOST_PROBLEMS
        raise InputError(
            f"{where}: " + "; ".join(problems[:MOST_PROBLEMS]) + (f"; and {more} more problems" if more > 0 else "")
        )


def _sources(table: Row, known: set[str]) -> tuple[dict[str, Row], list[str]]:
    """The file's sources, and the problems so far."""
    problems = [
        f"unknown key {key[:LONGEST_NAME]!r}; allowed are {', '.join(sorted(known))}"
        for key in sorted(table.keys() - known)
    ]
    sources = table.get("sources", {})
    if not isinstance(sources, dict):
        return {}, [*problems, "sources: not a table; write [sources.KEY]"]
    for key, row in sources.items():
        problems += row_problems(f"sources.{key[:LONGEST_NAME]}", row, SOURCE_FIELDS)
    return sources, problems


def _terms(table: Row) -> tuple[dict[str, Terms], list[str]]:
    """Terms that the file's rows may name: its own before those of configs/billing.toml."""
    given, problems = table.get("terms", {}), list[str]()
    if not isinstance(given, dict):
        return dict(known_terms()), ["terms: not a table; write [terms.KEY]"]
    sound = dict(known_terms())
    for key, row in given.items():
        label = f"terms.{key[:LONGEST_NAME]}"
        found = row_problems(label, row, TERMS_FIELDS) or terms_problems(label, row)
        problems += found
        if not found:
            sound[key] = terms_of(row)
    return sound, problems


def _unknown_terms(label: str, row: Row, terms: Mapping[str, Terms]) -> list[str]:
    """Terms that nobody states, stand beside no price, or leave out what the tier cannot be billed without."""
    problems = []
    for tier, price, _, bound in TIERS:
        key = row.get(bound)
        if key is not None and price not in row:
            problems.append(f"{label}: {bound} needs {price}")
        elif key is not None and key not in terms:
            known = ", ".join(sorted(terms))
            problems.append(f"{label}: {bound} {key[:LONGEST_NAME]!r} is not among the terms; known are {known}")
        elif price in row and (missing := lacking(tier.value, terms.get(key) if key else None)):
            problems.append(f"{label}: {missing}")
    return problems


def _numbered_lines(text: str, name: str) -> list[int]:
    """Lines on which the tables of a list begin."""
    header = re.compile(rf"\s*\[\[\s*{name}\s*\]\]")
    return [number for number, line in enumerate(text.splitlines(), start=1) if header.match(line)]


def _rows(table: Row, name: str, fields: Mapping[str, Field], problems: list[str], text: str) -> list[tuple[str, Row]]:
    """The sound rows of one list, labelled with their line; problems of the others are added."""
    rows = table.get(name, [])
    if not isinstance(rows, list):
        problems.append(f"{name}: not a list of tables; write [[{name}]]")
        return []
    sound, lines = [], _numbered_lines(text, name)
    for number, row in enumerate(rows, start=1):
        at = f"line {lines[number - 1]}, " if len(lines) == len(rows) else ""
        label = f"{at}{name} {number}"
        if isinstance(row, dict):
            label += f" ({_shown(row.get('name', row.get('instance', 'unnamed')))})"
        found = row_problems(label, row, fields)
        problems += found
        if not found:
            sound.append((label, row))
    return sound


def row_problems(label: str, row: object, fields: Mapping[str, Field]) -> list[str]:
    """What is wrong with a row's keys and values, each by its label."""
    if not isinstance(row, dict):
        return [f"{label}: not a table, got {_shown(row)}"]
    problems = [
        f"{label}: unknown key {key[:LONGEST_NAME]!r}{did_you_mean(key[:LONGEST_NAME], fields)}"
        for key in row.keys() - fields
    ]
    for key, field in fields.items():
        if key in row:
            problems += _problem(f"{label}: {key}", row[key], field)
        elif field.required:
            problems.append(f"{label}: {key} is missing")
    return sorted(problems)


def _problem(label: str, value: object, field: Field) -> list[str]:
    """What is wrong with one value: nothing, or one line."""
    if field.kind is bool:
        sound, allowed = isinstance(value, bool), "true or false"
    elif field.kind is str:
        sound, allowed = _is_text(value), f"one line of 1 to {LONGEST_TEXT} characters"
    elif field.kind is tuple:
        sound, allowed = isinstance(value, list) and bool(value) and all(map(_is_text, value)), "a list of texts"
    else:
        kinds = (int,) if field.kind is int else (int, float)
        # NaN fails the comparison; bool is an int, and no number here
        sound = isinstance(value, kinds) and not isinstance(value, bool) and 0 < value <= field.most
        allowed = f"a {'whole ' if field.kind is int else ''}number above 0, at most {field.most:g}"
    if sound and field.among and value not in field.among:
        sound, allowed = False, ", ".join(field.among)
    return [] if sound else [f"{label}: got {_shown(value)}; allowed is {allowed}"]


def _shown(value: object) -> str:
    """A value as a message may quote it: short, on one line."""
    try:
        return repr(value)[:LONGEST_NAME]
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        return "a number too long to print"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= LONGEST_TEXT and value.isprintable()


def _unpaired(label: str, row: Row, pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A figure without the key that explains it, or the other way round."""
    return [
        f"{label}: {left if left in row else right} needs {right if left in row else left}"
        for left, right in pairs
        if (left in row) != (right in row)
    ]


def _unknown_sources(label: str, keys: Iterable[str], sources: Mapping[str, Row]) -> list[str]:
    return [
        f"{label}: source {key[:LONGEST_NAME]!r} is not among the file's{did_you_mean(key[:LONGEST_NAME], sources)}"
        for key in keys
        if key not in sources
    ]


def _unsound(label: str, row: Row) -> list[str]:
    """A row without a price, or with a spot price that can be none: at or above on-demand."""
    on_demand, spot = row.get("on_demand_usd_per_hour"), row.get("spot_usd_per_hour")
    if not any(price in row for _, price, _, _ in TIERS):
        return [f"{label}: no price; give one, or list the row under rejected"]
    if on_demand is not None and spot is not None and spot >= on_demand:
        return [f"{label}: spot {spot} is not below on-demand {on_demand}; leave the spot price out"]
    return []


def _no_gpu(label: str, row: Row, find: Callable[[str], Gpu]) -> list[str]:
    try:
        find(row["gpu"])
    except InputError:
        return [f"{label}: gpu {row['gpu'][:LONGEST_NAME]!r} is not in the catalog of accelerators"]
    return []


def _repeated(named: Iterable[tuple[object, str]]) -> list[str]:
    """Names that two rows claim."""
    pairs = list(named)
    counts = Counter(name for name, _ in pairs)
    return [f"{label}: {name!r} is given twice" for name, label in pairs if counts[name] > 1]


# ----------------------------------------------------------------------------------------------------- rows to values


def _cited(source: Row) -> str:
    return f"{source['citation']} ({source['date']})"


def _scaled(row: Row, key: str, unit: float) -> float | None:
    """A figure in base units; None where the row has none."""
    return row[key] * unit if key in row else None


def _whole(row: Row, key: str, unit: float) -> int | None:
    """Bytes that are there, rounded down; None where the row has none."""
    return int(row[key] * unit) if key in row else None


def _memory(row: Row, sources: Mapping[str, Row]) -> tuple[int, str]:
    """Bytes that software can count on, and where that is from: the smallest of what driver and torch report."""
    known = []
    if (driver := _whole(row, "driver_memory_mib", MIB)) is not None:
        cited = _cited(sources[row["driver_memory_source"]])
        known.append((driver, f"driver {row['driver_memory_mib']} MiB: {cited}"))
    if (torch := _whole(row, "torch_memory_gib", GIB)) is not None:
        known.append((torch, f"torch {row['torch_memory_gib']:g} GiB: {_cited(sources[row['torch_memory_source']])}"))
    if not known:
        return int(row["label_gb"] * GIGA), f"label, not measured: {row['label_gb']:g} GB read as 10^9 bytes each"
    known.sort()
    return known[0][0], "; ".join(text for _, text in known)


def _gpu(row: Row, sources: Mapping[str, Row]) -> Gpu:
    memory_bytes, memory_source = _memory(row, sources)
    efficiency = [EFFICIENCY + _cited(sources[row["matmul_source"]])] if "matmul_source" in row else []
    return Gpu(
        name=row["name"],
        full_name=row["full_name"],
        aliases=tuple(row.get("aliases", ())),
        vendor=row["vendor"],
        architecture=row["architecture"],
        memory_bytes=memory_bytes,
        memory_source=memory_source,
        memory_bandwidth_bytes_per_s=row["memory_gb_per_s"] * GIGA,
        bf16_flop_per_s=_scaled(row, "bf16_tflop_per_s", TERA),
        fp16_flop_per_s=_scaled(row, "fp16_tflop_per_s", TERA),
        fp32_flop_per_s=_scaled(row, "fp32_tflop_per_s", TERA),
        fp8_flop_per_s=_scaled(row, "fp8_tflop_per_s", TERA),
        fp4_flop_per_s=_scaled(row, "fp4_tflop_per_s", TERA),
        fp8_efficiency=_scaled(row, "fp8_efficiency", 1.0),
        matmul_efficiency=_scaled(row, "matmul_efficiency", 1.0),
        link=row["link"],
        link_bytes_per_s=row["link_gb_per_s"] * GIGA,
        nvswitch=row["nvswitch"],
        host_link_bytes_per_s=row["host_link_gb_per_s"] * GIGA,
        tdp_w=_scaled(row, "tdp_w", 1.0),
        sources=(*(_cited(sources[key]) for key in row["sources"]), *efficiency),
        notes=row.get("notes", ""),
    )


def node_of(row: Row, cloud: str, gpu: Gpu, nodes: dict[tuple[object, ...], Node]) -> Node:
    """The machine of a row; rows of the same machine share one in ``nodes``, since caches are keyed by it."""
    fabric = offered_fabric(cloud, row["instance"])
    shape = (gpu.name, fabric, *(row.get(key) for key in ("gpus", "host_memory_gib", "vcpus", "nvme_tb", NETWORK)))
    return nodes.get(shape) or nodes.setdefault(
        shape,
        Node(
            gpu=gpu,
            gpus=row["gpus"],
            host_memory_bytes=_whole(row, "host_memory_gib", GIB),
            vcpus=row.get("vcpus"),
            nvme_bytes=_whole(row, "nvme_tb", TERA),
            internode_bytes_per_s=_scaled(row, NETWORK, GBIT_BYTES),
            fabric=fabric,
        ),
    )


def _offers(row: Row, cloud: str, node: Node, sources: Mapping[str, Row], terms: Mapping[str, Terms]) -> list[Offer]:
    """One offer for each price of a row."""
    source = sources[row["source"]]
    return [
        Offer(
            name=f"{cloud}/{row['instance']}",
            cloud=cloud,
            instance=row["instance"],
            node=node,
            usd_per_hour=float(row[price]),
            tier=tier,
            region=row[region],
            date=source["date"],
            source=source["citation"],
            notes=row.get("notes", ""),
            terms=terms[row[bound]] if bound in row else PLAIN,
        )
        for tier, price, region, bound in TIERS
        if price in row
    ]


def _rejected(row: Row, cloud: str, sources: Mapping[str, Row]) -> Rejected:
    source = sources[row["source"]]
    return Rejected(
        cloud=cloud,
        instance=row["instance"],
        gpu=row["gpu"],
        part=row["part"],
        usd_per_hour=_scaled(row, "usd_per_hour", 1.0),
        reason=row["reason"],
        date=source["date"],
        source=source["citation"],
    )
