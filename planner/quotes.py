"""What a user may state about other ways to pay: prices that no catalog knows."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError

YEAR_H = 365.25 * 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotes:
    """Prices that the catalog does not know; None is not given."""

    spot_usd_per_gpu_hour: float | None = None
    reserved_usd_per_gpu_hour: float | None = None
    term_h: float = YEAR_H  # of the commitment, paid whether used or not
    capital_per_node: float | None = None  # USD
    years: float | None = None  # until an owned node is worth nothing
    node_kw: float | None = None  # drawn in use, cooling included
    usd_per_kwh: float | None = None

    def check(self) -> None:
        """Amounts above 0 and below what nobody quotes.

        Raises:
            InputError: all that are not.
        """
        bounds = {
            "spot_usd_per_gpu_hour": 1e4,
            "reserved_usd_per_gpu_hour": 1e4,
            "term_h": 20 * YEAR_H,
            "capital_per_node": 1e9,
            "years": 50,
            "node_kw": 1e4,
            "usd_per_kwh": 1e3,
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
