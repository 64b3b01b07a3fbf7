"""Versions of the packages that a job runs with: pinned, installed, or given; and specifiers of PEP 440 about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from ..errors import InputError, did_you_mean
from .table import table

Versions = Mapping[str, str]
LONGEST = 40  # characters of what was given that a message repeats


def pinned() -> Versions:
    """What plans are made for and tests run with.

    >>> "deepspeed" in pinned()
    True
    """
    return table().pinned


def installed() -> Versions:
    """Versions of what is installed here, by their metadata alone; a package that is not is left out."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in pinned():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def given(texts: Iterable[str], *, where: str = "--with") -> Versions:
    """Versions as typed: package=version.

    Raises:
        InputError: no such package, one given twice, or no version of PEP 440.

    >>> given(["deepspeed=0.19.6", "bitsandbytes==0.42"])
    {'deepspeed': '0.19.6', 'bitsandbytes': '0.42'}
    """
    pairs = [_given(text, where) for text in texts]
    names = [package for package, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        both = " and ".join(version for name, version in pairs if name == twice)
        raise InputError(f"{where} {twice}: given twice, as {both}; one version is allowed; ask once for each")
    return dict(pairs)


def _given(text: str, where: str) -> tuple[str, str]:
    from packaging.version import InvalidVersion, Version

    package, _, version = text.replace("==", "=").partition("=")
    package = package.strip().lower()
    if package not in pinned():
        raise InputError(
            f"{where}: no package {package[:LONGEST]!r} in the table; known are {', '.join(pinned())}"
            f"{did_you_mean(package[:LONGEST], pinned())}; write for example deepspeed=0.19.6"
        )
    try:
        Version(version)
    except InvalidVersion:
        raise InputError(
            f"{where} {package}: not a version, got {version[:LONGEST]!r}; allowed are versions such as "
            f"{pinned()[package]}; write {package}={pinned()[package]}"
        ) from None
    return package, version.strip()


def hold(specifiers: Mapping[str, str], versions: Versions) -> bool:
    """Whether each package is there in a version that its specifier takes in.

    >>> hold({"deepspeed": ">=0.19.7,<=0.19.8"}, {"deepspeed": "0.19.8"}), hold({"peft": "<1"}, {})
    (True, False)
    """
    return all(p in versions and _contains(text, versions[p]) for p, text in specifiers.items())


@lru_cache(maxsize=1024)
def _contains(specifier: str, version: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)
