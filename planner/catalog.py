"""Accelerators and prices by name: the only reader of configs/gpus.toml and configs/offers/*.toml."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from .catalog_files import LONGEST_NAME, MOST_GPUS, Rejected, gpu_key, read_gpus, read_offers
from .errors import InputError, did_you_mean
from .hardware import Gpu, Node, Offer, Tier
from .staleness import OWN

ANY = "any"
LARGEST_USD_PER_GPU_HOUR = 10_000.0
LISTED_NAMES = 40  # names an error message lists at most


@cache
def gpus() -> tuple[Gpu, ...]:
    """Every accelerator of the catalog, in its order.

    >>> len(gpus()) > 30
    True
    """
    return read_gpus(_shipped("gpus.toml"), where="configs/gpus.toml")


def find_gpu(name: str) -> Gpu:
    """The accelerator of a name or alias; case, spaces, ``_`` and ``-`` do not matter.

    Raises:
        InputError: no such accelerator.

    >>> find_gpu("A100 80GB").name, find_gpu("nvidia h100_80gb-hbm3").name
    ('a100-80', 'h100')
    """
    found = _gpus_by_key().get(gpu_key(name))
    if found is None:
        known = _listed([g.name for g in gpus()])
        close = did_you_mean(name[:LONGEST_NAME], [g.name for g in gpus()])
        raise InputError(
            f"gpu: not in the catalog, got {name[:LONGEST_NAME]!r}; known are {known}{close}; see trainplan gpus list"
        )
    return found


@cache
def offers() -> tuple[Offer, ...]:
    """Every priced node of the catalog, by cloud; one row with two prices gives two offers."""
    return tuple(offer for priced, _ in _price_lists() for offer in priced)


@cache
def rejected_offers() -> tuple[Rejected, ...]:
    """What the sources list and this catalog does not offer, with the reason."""
    return tuple(row for _, rejected in _price_lists() for row in rejected)


def find_offers(name: str, among: Sequence[Offer] | None = None) -> tuple[Offer, ...]:
    """The offers of one machine, one for each way to pay; case does not matter.

    Args:
        name: as in the first column of trainplan offers list.
        among: a user's own price list; the built-in offers where None.

    Raises:
        InputError: no such machine.

    >>> [o.tier.value for o in find_offers("aws/p5.48xlarge")]
    ['on-demand', 'spot']
    """
    pool = offers() if among is None else among
    found = tuple(o for o in pool if o.name.lower() == name.lower())
    if not found:
        close = did_you_mean(name[:LONGEST_NAME], {o.name.lower() for o in pool})
        raise InputError(
            f"offer: not in the catalog, got {name[:LONGEST_NAME]!r}; allowed are names such as "
            f"aws/p5.48xlarge{close}; see trainplan offers list"
        )
    return found


def select_offers(
    gpu_names: Sequence[str],
    *,
    tier: Tier,
    cloud: str | None = None,
    region: str | None = None,
    among: Sequence[Offer] | None = None,
) -> tuple[Offer, ...]:
    """Offers of some accelerators at one tier, the cheapest GPU-hour first; none is an answer.

    Args:
        gpu_names: names or aliases; "any" (alone or among them) means every accelerator.
        tier: how nodes are paid for; the built-in offers are on-demand and spot alone.
        cloud: only this cloud.
        region: only this region, as the price list writes it; prices of all regions are in region "all".
        among: a user's own price list; the built-in offers where None.

    Raises:
        InputError: an accelerator, cloud or region that the catalog does not have.

    >>> [o.name for o in select_offers(["a100-80"], tier=Tier.ON_DEMAND, cloud="aws")]
    ['aws/p4de.24xlarge']
    """
    names = (gpu_names,) if isinstance(gpu_names, str) else gpu_names
    wanted = None if ANY in names else {find_gpu(name).name for name in names}
    pool = _of(offers() if among is None else among, cloud, lambda o: o.cloud, "cloud")
    pool = _of(pool, region, lambda o: o.region, f"region of {cloud}" if cloud else "region")
    chosen = (o for o in pool if o.tier is tier and (wanted is None or o.node.gpu.name in wanted))
    return tuple(sorted(chosen, key=lambda o: (usd_per_gpu_hour(o), o.name)))


def usd_per_gpu_hour(offer: Offer) -> float:
    """Price of one GPU of the node for an hour, in USD."""
    return offer.usd_per_hour / offer.node.gpus


def owned_offer(
    gpu: Gpu,
    *,
    gpus_per_node: int,
    usd_per_gpu_hour: float,
    host_memory_bytes: int | None = None,
    vcpus: int | None = None,
    nvme_bytes: int | None = None,
    internode_bytes_per_s: float | None = None,
) -> Offer:
    """The user's own machines at the user's own price.

    Args:
        gpu: the accelerator in them.
        gpus_per_node: how many in one machine.
        usd_per_gpu_hour: USD for one GPU-hour; 0 where hours are free.
        host_memory_bytes: RAM of one machine; None is unknown.
        vcpus: processors of one machine.
        nvme_bytes: local NVMe of one machine.
        internode_bytes_per_s: network of one machine, one direction.

    Raises:
        InputError: a count or a price out of bounds.

    >>> owned_offer(find_gpu("4090"), gpus_per_node=4, usd_per_gpu_hour=0.5).usd_per_hour
    2.0
    """
    if not 1 <= gpus_per_node <= MOST_GPUS:
        raise InputError(f"gpus per node: got {gpus_per_node}; allowed are 1 to {MOST_GPUS}; give a machine's count")
    if not 0 <= usd_per_gpu_hour <= LARGEST_USD_PER_GPU_HOUR:
        raise InputError(
            f"price: not a price, got {usd_per_gpu_hour}; allowed are 0 to {LARGEST_USD_PER_GPU_HOUR:g} USD per "
            f"GPU-hour; give the price of one GPU, not of a node"
        )
    node = Node(
        gpu=gpu,
        gpus=gpus_per_node,
        host_memory_bytes=host_memory_bytes,
        vcpus=vcpus,
        nvme_bytes=nvme_bytes,
        internode_bytes_per_s=internode_bytes_per_s,
    )
    instance = f"{gpus_per_node} x {gpu.name}"
    return Offer(
        name=f"own/{instance}",
        cloud="own",
        instance=instance,
        node=node,
        usd_per_hour=usd_per_gpu_hour * gpus_per_node,
        tier=Tier.OWNED,
        region="own",
        date=OWN,
        source="the user's price per GPU-hour",
    )


@cache
def _gpus_by_key() -> dict[str, Gpu]:
    return {gpu_key(name): g for g in gpus() for name in (g.name, g.full_name, *g.aliases)}


@cache
def _price_lists() -> tuple[tuple[tuple[Offer, ...], tuple[Rejected, ...]], ...]:
    """Every file of configs/offers, in order of name."""
    return tuple(
        read_offers(_shipped("offers", name), where=f"configs/offers/{name}", find=find_gpu)
        for name in _shipped_names("offers")
    )


def _shipped(*path: str) -> str:
    from importlib.resources import files

    from .. import configs

    return files(configs).joinpath(*path).read_text(encoding="utf-8")


def _shipped_names(folder: str) -> list[str]:
    from importlib.resources import files

    from .. import configs

    return sorted(f.name for f in files(configs).joinpath(folder).iterdir() if f.name.endswith(".toml"))


def _of(pool: Sequence[Offer], wanted: str | None, name: Callable[[Offer], str], what: str) -> Sequence[Offer]:
    """The offers of one cloud or region; an unknown one is an error that lists what exists."""
    if wanted is None:
        return pool
    chosen = [o for o in pool if name(o).lower() == wanted.lower()]
    if not chosen:
        known = sorted({name(o) for o in pool})
        close = did_you_mean(wanted[:LONGEST_NAME], known)
        raise InputError(
            f"{what}: no prices, got {wanted[:LONGEST_NAME]!r}; known are {_listed(known)}{close}; "
            f"see trainplan offers list"
        )
    return chosen


def _listed(names: Sequence[str]) -> str:
    """Names for a message, not without end."""
    more = len(names) - LISTED_NAMES
    return ", ".join(names[:LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")
