"""Whatever a path is called, the program that a script starts is given that path: run by bash, with stubs on PATH."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from trainplan.planner.emit.job import Job, job_of
from trainplan.planner.emit.shell import option
from trainplan.planner.emit.start import Emitted, Start
from trainplan.planner.emit.targets import emit_for
from trainplan.planner.emit.targets.kubernetes import literal
from trainplan.planner.errors import InputError

from ..launch_cases import plans

PROGRAMS = ("deepspeed", "torchrun", "srun", "accelerate", "axolotl", "llamafactory-cli", "python")
STUB = "#!/bin/sh\nprintf '%s\\0' \"$@\"\n"
SCRIPTS = {
    "deepspeed": "deepspeed.sh",
    "torchrun": "torchrun.sh",
    "slurm": "job.sbatch",
    "accelerate": "accelerate.sh",
    "transformers": "transformers.sh",
}
NASTY = (
    "it's",
    '"',
    "$HOME",
    "`id`",
    "$(id)",
    "-x",
    "--data",
    "a b",
    "\\",
    "*",
    "!",
    "~",
    "é",
    "{a,b}",
    "a;b",
    "#",
    "'",
)
paths = st.one_of(
    st.sampled_from(NASTY), st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40)
)
printable = paths.filter(lambda text: text.isprintable() and bool(text.strip()))
JOB = next(job for job in map(job_of, plans().values()) if not job.several_nodes and job.pins_memory)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs that print what they were given."""
    folder = tmp_path_factory.mktemp("bin")
    for name in PROGRAMS:
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    return folder


def words(script: Path, stubs: Path, **variables: str) -> list[str]:
    """What the program at the end of a script is given."""
    environment = {"PATH": f"{stubs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **variables}
    ran = subprocess.run(["bash", script], env=environment, capture_output=True, timeout=60, cwd=script.parent)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.decode().split("\0")[:-1]


def write(found: Emitted, folder: Path) -> None:
    """The files of a target, beside a plan."""
    for name, text in {**found.files, "plan.json": "{}"}.items():
        (folder / name).write_text(text, encoding="utf-8")


@settings(max_examples=12)
@given(data=printable, model=printable)
@pytest.mark.parametrize("target", SCRIPTS)
def test_the_program_is_given_the_very_words(
    target: str, tmp_path_factory: pytest.TempPathFactory, stubs: Path, data: str, model: str
) -> None:
    """Quotes, dollars, backticks, blanks, leading dashes: nothing is expanded, split, or taken for an option."""
    folder = tmp_path_factory.mktemp("job")
    write(emit_for(target, JOB, Start(folder="x", data=data, model=model)), folder)
    assert subprocess.run(["bash", "-n", folder / SCRIPTS[target]], timeout=60).returncode == 0
    given_words = words(folder / SCRIPTS[target], stubs)
    assert given_words[-3:] == [f"--data={data}", f"--model={model}", "--out=checkpoints"]


@settings(max_examples=6)
@given(data=printable, model=printable, out=printable)
@pytest.mark.parametrize("target", SCRIPTS)
def test_variables_are_words_too(
    target: str, tmp_path_factory: pytest.TempPathFactory, stubs: Path, data: str, model: str, out: str
) -> None:
    """What the environment says when the job is started is handed on as it stands."""
    folder = tmp_path_factory.mktemp("job")
    write(emit_for(target, JOB, Start(folder="x")), folder)
    given_words = words(folder / SCRIPTS[target], stubs, DATA=data, MODEL=model, OUT=out)
    assert given_words[-3:] == [f"--data={data}", f"--model={model}", f"--out={out}"]


@settings(max_examples=12)
@given(folder=printable.filter(lambda text: "/" not in text and text not in (".", "..") and len(text) < 40))
def test_the_printed_command_finds_the_folder(
    tmp_path_factory: pytest.TempPathFactory, stubs: Path, folder: str
) -> None:
    """What the answer prints can be pasted, whatever the folder is called; relative data is the user's own."""
    root = tmp_path_factory.mktemp("root")
    (root / folder).mkdir()
    (root / "d.txt").write_text("text")
    found = emit_for("torchrun", JOB, Start(folder=folder, model="m"))
    write(found, root / folder)
    command = found.command.replace("PATH_OR_DATASET", "d.txt")
    ran = subprocess.run(
        ["bash", "-c", command],
        cwd=root,
        env={"PATH": f"{stubs}:{os.environ['PATH']}"},
        capture_output=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    assert f"--data={(root / 'd.txt').resolve()}" in ran.stdout.decode().split("\0")


@settings(max_examples=40)
@given(data=printable, model=printable)
def test_yaml_holds_the_very_words(data: str, model: str) -> None:
    """Files of values read back as what was written."""
    start = Start(folder="x", data=data, model=model)
    sky = yaml.safe_load(emit_for("skypilot", JOB, start).files["sky.yaml"])
    assert (sky["envs"]["DATA"], sky["envs"]["MODEL"]) == (data, model)
    axolotl = yaml.safe_load(emit_for("axolotl", JOB, start).files["axolotl.yaml"])
    assert (axolotl["datasets"][0]["path"], axolotl["base_model"]) == (data, model)
    factory = yaml.safe_load(emit_for("llamafactory", JOB, start).files["llamafactory.yaml"])
    assert factory["model_name_or_path"] == model
    trainer = yaml.safe_load(emit_for("kubernetes", JOB, start).files["trainjob.yaml"])["spec"]["trainer"]
    assert trainer["env"][0] == {"name": "DATA", "value": literal(data)}


@given(data=printable)
def test_kubernetes_expands_nothing(data: str) -> None:
    """$$ is a dollar and $(NAME) a reference in its values; read by these rules, ours is what was given."""
    text, read = literal(data), ""
    while text:
        if text.startswith("$$"):
            read, text = read + "$", text[2:]
        else:
            assert not text.startswith("$(")
            read, text = read + text[0], text[1:]
    assert read == data


def test_the_run_of_skypilot_and_kubernetes(tmp_path: Path, stubs: Path) -> None:
    """Their commands are read by bash too: values come by the environment."""
    start = Start(folder="x", data="it's $HOME", model="-m")
    sky = yaml.safe_load(emit_for("skypilot", JOB, start).files["sky.yaml"])["run"]
    pod = yaml.safe_load(emit_for("kubernetes", JOB, start).files["trainjob.yaml"])["spec"]["trainer"]["command"][2]
    (tmp_path / "plan.json").write_text("{}")
    for name, text in (("sky", sky), ("pod", pod.replace("cd /job", "true"))):
        (tmp_path / name).write_text(text)
        given_words = words(tmp_path / name, stubs, DATA="it's $HOME", MODEL="-m", OUT=str(tmp_path / "out"))
        start_of = given_words.index("train.py")
        wanted = ["train.py", "--plan=plan.json", "--data=it's $HOME", "--model=-m", f"--out={tmp_path}/out"]
        assert given_words[start_of : start_of + 5] == wanted


@given(text=st.text(max_size=20))
def test_what_is_not_printable_is_refused(text: str) -> None:
    """No line break or escape sequence reaches a file; everything else does."""
    if text.strip() and text.isprintable():
        Start(folder=text, data=text, model=text)
        return
    for values in ({"folder": text}, {"folder": "x", "data": text}, {"folder": "x", "model": text}):
        with pytest.raises(InputError):
            Start(**values)


def test_missing_values_stop_the_script(tmp_path: Path, stubs: Path) -> None:
    """One line that says what to set, before anything is started."""
    for target, script in SCRIPTS.items():
        write(emit_for(target, JOB, Start(folder="x")), tmp_path)
        ran = subprocess.run(
            ["bash", tmp_path / script],
            env={"PATH": f"{stubs}:{os.environ['PATH']}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode != 0
        assert "set DATA to a text file" in ran.stderr
        assert ran.stdout == ""


def several() -> Job:
    """A job over several nodes."""
    return next(job for job in map(job_of, plans().values()) if job.several_nodes)


def test_several_nodes_meet(tmp_path: Path, stubs: Path) -> None:
    """On Slurm at the first host of the list, elsewhere at MASTER_ADDR, without which nothing starts."""
    (stubs / "scontrol").write_text("#!/bin/sh\necho node-1\necho node-2\n")
    (stubs / "scontrol").chmod(0o755)
    start = Start(folder="x", data="d", model="m")
    for target in ("slurm", "torchrun", "accelerate"):
        write(emit_for(target, several(), start), tmp_path)
    batch = words(tmp_path / "job.sbatch", stubs, SLURM_JOB_NODELIST="node-[1-2]", SLURM_JOB_ID="12345")
    assert "--rdzv-endpoint=node-1:22345" in batch
    assert "--rdzv-id=12345" in batch
    run = words(tmp_path / "torchrun.sh", stubs, MASTER_ADDR="first")
    assert "--rdzv-endpoint=first:29500" in run
    launched = words(tmp_path / "accelerate.sh", stubs, MASTER_ADDR="first", NODE_RANK="1")
    assert {"--main_process_ip=first", "--machine_rank=1", "--main_process_port=29500"} <= set(launched)
    with pytest.raises(AssertionError, match="set MASTER_ADDR"):
        words(tmp_path / "torchrun.sh", stubs)


def test_ssh_is_handed_nothing_that_a_shell_reads(tmp_path: Path, stubs: Path) -> None:
    """The script of several nodes refuses what DeepSpeed's launcher would hand to ssh unquoted, and asks for hosts."""
    write(emit_for("deepspeed", several(), Start(folder="x", model="m")), tmp_path)
    with pytest.raises(AssertionError, match="hostfile: missing"):
        words(tmp_path / "deepspeed.sh", stubs, DATA="d")
    (tmp_path / "hostfile").write_text("a slots=4\n")
    assert "--data=d" in words(tmp_path / "deepspeed.sh", stubs, DATA="d")
    for bad in ("a b", "$(id)", "a;b", "`id`", "a'b"):
        with pytest.raises(AssertionError, match="cannot carry"):
            words(tmp_path / "deepspeed.sh", stubs, DATA=bad)


def test_one_word(stubs: Path) -> None:
    """A value that begins with a dash stays the value of its option."""
    assert option("data", "-x", "DATA") == "--data=-x"
