"""Which machines a request may use: the catalog's offers with what the user adds, or the user's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from . import catalog
from .efficiency import value
from .errors import InputError
from .hardware import Gpu, Node, Offer, Tier, calibrated
from .prices import read_prices
from .request import Request
from .units import GBIT_BYTES, GIB

OWN_GPUS_PER_NODE = 8
_COUNTED = re.compile(r"([0-9]{1,6})x(.+)")


def parse_gpus(text: str) -> tuple[tuple[str, ...], int | None]:
    """Names of accelerators, and a count where the user fixed one.

    Raises:
        InputError: nothing named, an unknown name, a count with several types, or a count of zero.

    >>> parse_gpus("a100-80,h100"), parse_gpus("8xa100-80"), parse_gpus("any")
    ((('a100-80', 'h100'), None), (('a100-80',), 8), (('any',), None))
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    counted = [_COUNTED.fullmatch(part) for part in parts]
    if not parts:
        raise InputError(
            "--gpus: empty; allowed are names, a count x name, or any; for example a100-80,h100 or 8xa100-80"
        )
    if any(counted) and len(parts) > 1:
        raise InputError(f"--gpus {text[:60]}: a fixed count goes with one type; write for example --gpus 8xa100-80")
    if counted[0]:
        number = int(counted[0][1])
        if number < 1:
            raise InputError(f"--gpus {text[:60]}: zero GPUs; allowed is 1 or more; write for example 8xa100-80")
        return (catalog.find_gpu(counted[0][2]).name,), number
    if "any" in (part.lower() for part in parts):
        return ("any",), None
    return tuple(dict.fromkeys(catalog.find_gpu(part).name for part in parts)), None


def offers_for(request: Request) -> tuple[Offer, ...]:
    """Priced nodes of a request: the user's own, or those of the price list, else of the built-in offers.

    Raises:
        InputError: there is no price of this kind.
    """
    if request.owns:
        return (_own_machines(request),)
    among = None if request.prices is None else read_prices(request.prices)
    found = catalog.select_offers(
        request.gpus, tier=request.tier, cloud=request.cloud, region=request.region, among=among
    )
    if not found:
        raise InputError(_no_price(request))
    nodes: dict[Node, Node] = {}
    return tuple(_stated(offer, request, nodes) for offer in _cheapest_of_each(found))


def _no_price(request: Request) -> str:
    """Why there is no offer, and how to bring one."""
    what = " ".join(filter(None, (",".join(request.gpus), request.tier.value, request.cloud, request.region)))
    if request.prices is not None:
        return f"{request.prices}: no price for {what}; see trainplan offers list --prices {request.prices}; add a row"
    why = "" if request.tier in (Tier.ON_DEMAND, Tier.SPOT) else f", whose sources state no {request.tier.value} price"
    return (
        f"offers: the catalog has none for {what}{why}; see trainplan offers list; "
        f"state your own with --prices FILE or --price USD_PER_GPU_HOUR"
    )


def _cheapest_of_each(offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """Of one machine under the same terms the cheapest region alone: no other can be part of a cheaper plan."""
    least: dict[object, Offer] = {}
    for offer in offers:
        node = offer.node
        shape = (node.gpu.name, node.gpus, node.host_memory_bytes, node.vcpus, node.nvme_bytes)
        key = (offer.name, offer.terms, shape, node.internode_bytes_per_s, node.fabric)
        if key not in least or offer.usd_per_hour < least[key].usd_per_hour:
            least[key] = offer
    return tuple(least.values())


def _own_machines(request: Request) -> Offer:
    per_node, own = request.gpus_per_node or min(OWN_GPUS_PER_NODE, request.gpu_count or request.max_gpus), None
    price = request.price_usd_per_gpu_hour
    if price is None:
        own = request.ownership
        assert own is not None, "the request has checked that one of both is there"
        price = own.usd_per_node_hour / per_node
    gpu = on_a_desktop(catalog.find_gpu(request.gpus[0]), per_node)
    offer = catalog.owned_offer(gpu, gpus_per_node=per_node, usd_per_gpu_hour=price)
    return _stated(replace(offer, source=own.text() if own else offer.source), request, {})


def _stated(offer: Offer, request: Request, nodes: dict[Node, Node]) -> Offer:
    """The offer with what the user states; offers of one node share the completed one, since caches are keyed by it."""
    node = nodes.get(offer.node) or nodes.setdefault(offer.node, _completed(offer.node, request))
    if request.storage_gib is None and request.egress_gib is None:
        return replace(offer, node=node)
    terms = replace(offer.terms, storage_gib=request.storage_gib, egress_gib=request.egress_gib)
    return replace(offer, node=node, terms=terms)


def _completed(node: Node, request: Request) -> Node:
    """What the user states fills what the catalog does not know."""
    ram, net = request.host_memory_gib, request.internode_gbps
    if ram is not None and node.host_memory_bytes is None:
        node = replace(node, host_memory_bytes=int(ram * GIB))
    if net is not None and node.internode_bytes_per_s is None:
        node = replace(node, internode_bytes_per_s=net * GBIT_BYTES)
    if request.fabric is not None and node.fabric is None:
        node = replace(node, fabric=request.fabric)
    return node if request.profile is None else _as_measured(node, request.profile)


def _as_measured(node: Node, path: str) -> Node:
    """The node with the figures of a profile, where it is of this GPU; of another nothing is known."""
    from .calibrate.profile import read_profile  # here: few requests have one

    profile = read_profile(path)
    if profile.gpu != node.gpu.name:
        return node
    return replace(node, gpu=calibrated(node.gpu, profile.calibration))


def makes_up(node: Node, gpus: int) -> bool:
    """Whether one node, or several on a known network, have exactly so many GPUs."""
    return gpus == node.gpus or (gpus % node.gpus == 0 and node.internode_bytes_per_s is not None)


def machines_for(request: Request, gpus: int, preferred: str = "", *, known_host: bool = False) -> tuple[Offer, ...]:
    """Offers whose nodes make up exactly so many GPUs and one of which is the cheapest: the preferred one alone.

    Of those billed pro rata only that with the lowest rate can be; of the others the bill must tell. ``known_host``
    leaves out nodes whose RAM is unknown, where others are there: on them nobody can say whether an offload fits.

    Raises:
        InputError: no offer does; several nodes need a network that somebody knows.
    """
    found = offers_for(request)
    fitting = [offer for offer in found if makes_up(offer.node, gpus)]
    if not fitting:
        sizes = ", ".join(map(str, sorted({o.node.gpus for o in found})))
        raise InputError(
            f"--gpus {gpus}x{request.gpus[0]}: no offer makes up that count, its nodes have {sizes} GPUs, and several "
            f"nodes need a known network; state your own machines with --price, --gpus-per-node and --internode-gbps"
        )
    if known_host:
        fitting = [offer for offer in fitting if offer.node.host_memory_bytes is not None] or fitting
    if kept := next((offer for offer in fitting if offer.name == preferred), None):
        return (kept,)
    by_rate = sorted(fitting, key=lambda o: (o.usd_per_hour * (gpus // o.node.gpus), o.name))
    plain = [offer for offer in by_rate if offer.terms.states_nothing]
    return (*plain[:1], *(offer for offer in by_rate if not offer.terms.states_nothing))


GEFORCE = re.compile(r"RTX-\d0[789]0")  # full names of the catalog: RTX-3090-24GB


def on_a_desktop(gpu: Gpu, gpus: int) -> Gpu:
    """A GeForce card of a small machine: several share a desktop board, whose second slot has fewer lanes.

    >>> on_a_desktop(catalog.find_gpu("3090"), 2).host_link_bytes_per_s < catalog.find_gpu("3090").host_link_bytes_per_s
    True
    """
    is_desktop = GEFORCE.match(gpu.full_name) and 1 < gpus <= value("host_link", "desktop_gpus")
    return _narrowed(gpu, value("host_link", "desktop")) if is_desktop else gpu


@lru_cache(maxsize=64)
def _narrowed(gpu: Gpu, bytes_per_s: float) -> Gpu:
    """One value for equal cards: caches are keyed by identity."""
    rate = min(gpu.host_link_bytes_per_s, bytes_per_s)
    return replace(gpu, host_link_bytes_per_s=rate, link_bytes_per_s=min(gpu.link_bytes_per_s, rate))
