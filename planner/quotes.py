"""What a user may state about other ways to pay: prices that no catalog knows."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotes:
    """Prices that the catalog does not know, named as their options; None is not given."""

    spot_usd_per_gpu_hour: float | None = None
    reserved_usd_per_gpu_hour: float | None = None
    term_h: float | None = None  # of the commitment, paid whether used or not
    capital: float | None = None  # USD of one node
    years: float | None = None  # until it is worth nothing
    power_kw: float | None = None  # drawn by one in use, without cooling
    pue: float | None = None  # power of the building over its machines'
    usd_per_kwh: float | None = None
    hosting_usd: float | None = None  # space, staff, network: per node and year; None: not counted, and said so

    def check(self) -> None:
        """Amounts above 0 and below what nobody quotes.

        Raises:
            InputError: all that are not.
        """
        bounds = {
            "spot_usd_per_gpu_hour": 1e4,
            "reserved_usd_per_gpu_hour": 1e4,
            "term_h": 2e5,
            "capital": 1e9,
            "years": 50,
            "power_kw": 1e4,
            "pue": 10,
            "usd_per_kwh": 1e3,
            "hosting_usd": 1e9,
        }
        wrong = [
            f"{flag(name)}: out of range, got {got:g}; allowed is above 0 up to {most:g}; change it"
            for name, most in bounds.items()
            if (got := getattr(self, name)) is not None and not 0 < got <= most
        ]
        if wrong:
            raise InputError("; ".join(wrong))


def flag(name: str) -> str:
    """The option that states a quote."""
    return "--" + name.removesuffix("_h").replace("_", "-")
