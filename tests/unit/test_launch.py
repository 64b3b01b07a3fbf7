"""planner/emit/launch.py: a line that a shell runs as it is meant."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainplan.planner.emit.launch import ALLOCATOR, launch_command


@given(st.text(min_size=1).filter(lambda s: "\0" not in s))
def test_a_path_is_one_word(config: str) -> None:
    """Whatever a folder is called, the shell hands it over unchanged and runs nothing of it."""
    words = shlex.split(launch_command(nodes=1, gpus_per_node=8, config=config))
    assert words == [ALLOCATOR, "deepspeed", "--num_gpus", "8", "train.py", "--deepspeed", config]


@pytest.mark.parametrize(("nodes", "named"), [(1, False), (2, True), (16, True)])
def test_several_nodes_need_a_hostfile(nodes: int, named: bool) -> None:
    """One machine needs none."""
    command = launch_command(nodes=nodes, gpus_per_node=4, config="ds_config.json")
    assert (f"--hostfile hostfile --num_nodes {nodes}" in command) is named
    assert "--num_gpus 4" in command
