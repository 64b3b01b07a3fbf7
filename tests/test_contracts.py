"""The arrows between folders hold, and each contract fails when a module breaks it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("__init__.py", "__main__.py", "pyproject.toml", "planner", "strategies", "api", "cli", "configs")

VIOLATIONS = {
    "cli -> api -> strategies -> planner -> configs": ("planner/units.py", "from ..strategies import zero"),
    "strategies do not know each other": ("strategies/zero.py", "from . import lora"),
    "only the program imports PuLP": ("planner/units.py", "import pulp"),
    "planning needs no torch": ("strategies/zero.py", "import torch"),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package that may be broken."""
    package = tmp_path / "trainplan"
    package.mkdir()
    for name in filter(lambda name: (ROOT / name).exists(), COPIED):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, package / name)
    return package


def lint_imports(package: Path) -> tuple[int, str]:
    """Exit status and output of import-linter on a copy of the package."""
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    command = [
        str(Path(sys.executable).with_name("lint-imports")),
        "--no-cache",
        "--config",
        "trainplan/pyproject.toml",
    ]
    done = subprocess.run(command, cwd=package.parent, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_tree_keeps_every_contract(tree: Path) -> None:
    """Imports go from cli to configs, strategies are independent, one module solves, and nothing needs torch."""
    code, output = lint_imports(tree)
    assert code == 0, output
    for contract in VIOLATIONS:
        assert f"{contract} KEPT" in " ".join(output.split())


@pytest.mark.parametrize("contract", VIOLATIONS)
def test_each_contract_bites(contract: str, tree: Path) -> None:
    """One forbidden import at the end of a module breaks the contract that forbids it."""
    file, statement = VIOLATIONS[contract]
    with (tree / file).open("a") as module:
        module.write(f"\n{statement}\n")
    code, output = lint_imports(tree)
    assert code != 0
    assert f"{contract} BROKEN" in " ".join(output.split()), output
