"""Price catalogs that other programs keep on the user's disk, read into trainplan's own price list."""

from .gpuhunt import find_gpuhunt, read_gpuhunt
from .listed import Imported, Noted, Reason
from .skypilot import find_skypilot, read_skypilot
from .write import price_list

__all__ = [
    "Imported",
    "Noted",
    "Reason",
    "find_gpuhunt",
    "find_skypilot",
    "price_list",
    "read_gpuhunt",
    "read_skypilot",
]
