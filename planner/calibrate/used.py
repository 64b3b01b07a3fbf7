"""Which figures of an answer come from a profile, and why others do not: rows of its assumptions, and a warning."""

from __future__ import annotations

import importlib.metadata

from ..hardware import Gpu
from ..request import Request
from .parameters import FACTOR, Fitted
from .profile import Profile, read_profile

FROM = "profile"
UNUSED = ("fragmentation_native", "fragmentation_varying")  # every plan's launch command sets expandable segments


def profile_assumptions(request: Request, gpu: Gpu) -> list[tuple[str, str, str]]:
    """Name, value and origin: the file, then each of its figures."""
    if request.profile is None:
        return []
    found = read_profile(request.profile)
    if found.gpu != gpu.name:
        return [("profile", f"{_named(request)} is of {found.gpu}: not applied to {gpu.name}", FROM)]
    rows = f"{len(found.rows)} row{'' if len(found.rows) == 1 else 's'}"
    head = ("profile", f"{_named(request)}, {rows} measured on {found.gpu}, {found.date}", FROM)
    return [head, *((f"  {f.parameter.label}", _text(f), FROM) for f in found.figures if f.name not in UNUSED)]


def profile_warnings(request: Request, gpu: Gpu) -> tuple[str, ...]:
    """What of a profile must be known before trusting the plan."""
    if request.profile is None:
        return ()
    found = read_profile(request.profile)
    if found.gpu != gpu.name:
        return (f"--profile {_named(request)}: measured on {found.gpu}, not applied: the plan is for {gpu.name}",)
    return _of_another_version(found, _named(request))


def _of_another_version(found: Profile, name: str) -> tuple[str, ...]:
    version = importlib.metadata.version("trainplan")
    if found.trainplan == version:
        return ()
    return (
        f"--profile {name}: written by trainplan {found.trainplan}, this is {version}: its factors are on the rates "
        f"that its own version shipped; calibrate again",
    )


def _text(f: Fitted) -> str:
    low, point, upper = f.value.low, f.value.point, f.value.upper
    if f.parameter.unit == FACTOR:
        return f"{point:.2f} x the shipped rate ({low:.2f} to {upper:.2f})"
    unit = " GiB" if f.parameter.unit == "GiB" else ""
    return f"{point:.3f}{unit} ({low:.3f} to {upper:.3f}; shipped {f.shipped:.3f})"


def _named(request: Request) -> str:
    name = (request.profile or "").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c if c.isprintable() else "?" for c in name[:100])
