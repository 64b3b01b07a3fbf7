"""shellcheck and bash find nothing wrong with any script of any target."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from trainplan.planner.emit.start import Start

from ..launch_cases import START, emitted, plans

SHELLCHECK = Path(sys.executable).with_name("shellcheck")
PLANS = plans()
# One node and several, offload, NVMe; data given and not.
CASES = [name for name in PLANS if name.startswith("plain")][::7]


def scripts(name: str, folder: Path, start: Start) -> list[Path]:
    """Every script, those inside of YAML files too."""
    found = []
    for target, made in emitted(PLANS[name], start)[1].items():
        for file, text in made.files.items():
            if text.startswith("#!"):
                found.append((file, text))
            elif file == "sky.yaml":
                task = yaml.safe_load(text)
                found += [("sky-run", task["run"]), ("sky-setup", task["setup"])]
            elif file == "trainjob.yaml":
                found.append(("pod", yaml.safe_load(text)["spec"]["trainer"]["command"][2]))
        found.append((f"{target}-command", made.command))
    paths = [folder / f"{file}.bash" for file, _ in found]
    for path, (_, text) in zip(paths, found, strict=True):
        path.write_text(text if text.startswith("#!") else f"#!/usr/bin/env bash\nset -e\n{text}\n", encoding="utf-8")
    return paths


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("start", [START, Start(folder="it's $HOME")], ids=["given", "asked"])
def test_scripts_are_clean(name: str, start: Start, tmp_path: Path) -> None:
    """No warning, no note; DATA, MODEL and the like come from the environment, which shellcheck is told."""
    paths = scripts(name, tmp_path, start)
    for path in paths:
        assert subprocess.run(["bash", "-n", path], timeout=60).returncode == 0
    told = "--exclude=SC2154,SC2016"  # variables of the environment; a $ in single quotes, which is meant
    ran = subprocess.run([SHELLCHECK, told, "--shell=bash", *paths], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout
