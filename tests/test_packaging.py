"""The wheel carries the packages and their data, and nothing else that lies in the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE_FOLDERS = ("planner", "strategies", "api", "cli", "configs")
NOT_COPIED = shutil.ignore_patterns(
    ".*", "build", "dist", "*.egg-info", "__pycache__", "plans"
)  # what .gitignore names: a stale build/ would end up in the wheel


@pytest.fixture(scope="module")
def wheel_members(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """Names in the wheel that is built from the sdist of a copy of the tree."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "tree", ignore=NOT_COPIED)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "tree")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return frozenset(name for name in archive.namelist() if ".dist-info/" not in name)


def expected_members() -> frozenset[str]:
    """Every module of the packages, every data file of configs, the root's own modules and the typing marker."""
    root = set(ROOT.glob("*.py")) | {ROOT / "py.typed"}
    modules = {path for folder in PACKAGE_FOLDERS for path in (ROOT / folder).rglob("*.py")}
    data = set((ROOT / "configs").rglob("*.toml"))
    return frozenset(f"trainplan/{path.relative_to(ROOT).as_posix()}" for path in root | modules | data)


def test_wheel_and_tree_agree(wheel_members: frozenset[str]) -> None:
    """No module or data file is forgotten, and no test, page or build product is shipped."""
    assert wheel_members == expected_members()


def test_no_stray_module_at_the_root() -> None:
    """Whatever Python file lies at the root is shipped, so only the package's own may lie there."""
    assert {path.name for path in ROOT.glob("*.py")} <= {"__init__.py", "__main__.py"}


def test_changelog_names_the_version() -> None:
    """The version stands in pyproject.toml alone, and the changelog has a heading for it or for what is to come."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{version}]" in changelog or "## [Unreleased]" in changelog


def test_constraints_pin_what_the_project_names() -> None:
    """Each exact version in pyproject.toml is the one that constraints.txt installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    pinned = {line.strip().lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {requirement.lower() for requirement in extras if "==" in requirement} <= pinned
