"""The examples in docstrings run, through the imported modules: by path, a module would exist twice."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import pytest
import trainplan

PACKAGES = ("trainplan.planner", "trainplan.strategies", "trainplan.api", "trainplan.cli", "trainplan.configs")


def modules() -> Iterator[str]:
    """Names of all modules of the package; its root is walked by name, as tests and builds lie beside it."""
    yield "trainplan"
    for name in PACKAGES:
        yield name
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, prefix=f"{name}."):
            yield module.name


@pytest.mark.parametrize("name", list(modules()))
def test_examples_in_docstrings_run(name: str) -> None:
    """Each example prints what its docstring says it prints."""
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failures == 0, f"{name}: {failures} examples differ; see the output above"


def test_the_examples_are_found() -> None:
    """The walk sees the modules that hold examples: an empty walk would pass as well."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {name for name in modules() for test in finder.find(importlib.import_module(name)) if test.examples}
    assert {"trainplan.planner.ledger", "trainplan.planner.model"} <= found
    assert trainplan.__all__
