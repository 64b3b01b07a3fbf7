"""Accelerate's own loader reads accelerate.yaml, and its launcher accepts the command that stands in the script."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

import pytest

from .cases import files_of, shown

pytestmark = pytest.mark.oracle
config_args = pytest.importorskip("accelerate.commands.config.config_args")
launch = pytest.importorskip("accelerate.commands.launch")


def launched(text: str) -> list[str]:
    """The words after ``accelerate launch`` of a script, with its variables filled in."""
    command = text.replace("\\\n", " ").partition("exec accelerate launch ")[2]
    filled = command.replace("$NODE_RANK", "0").replace("$MASTER_ADDR", "first").replace("$MASTER_PORT", "29500")
    return shlex.split(filled)


@pytest.mark.parametrize("name", shown())
def test_accelerate_reads_its_config(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No unknown key; so many machines and processes; DeepSpeed by the plan's file; the launcher agrees."""
    monkeypatch.chdir(tmp_path)
    files, d = files_of("accelerate", name), shown()[name]["decision"]
    (tmp_path / "accelerate.yaml").write_text(files["accelerate.yaml"], encoding="utf-8")
    (tmp_path / "ds_config.json").write_text(json.dumps(shown()[name]["ds_config"]))
    (tmp_path / "train.py").write_text("")
    config = config_args.load_config_from_file("accelerate.yaml")
    assert (config.num_machines, config.num_processes) == (d["nodes"], d["gpus"])
    assert config.distributed_type.value == "DEEPSPEED"
    assert config.deepspeed_config["deepspeed_config_file"] == "ds_config.json"
    arguments: argparse.Namespace = launch.launch_command_parser().parse_args(launched(files["accelerate.sh"]))
    arguments, _, _ = launch._validate_launch_command(arguments)
    assert arguments.use_deepspeed
    assert (arguments.num_machines, arguments.num_processes) == (d["nodes"], d["gpus"])
    assert arguments.training_script == "train.py"
    assert arguments.deepspeed_config_file == "ds_config.json"
    assert arguments.training_script_args[0] == "--plan=plan.json"
