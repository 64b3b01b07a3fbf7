"""`trainplan check`: whole answers, exit codes, bad input, and the file that --write writes."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from trainplan.cli.main import run_root

CHECKS = Path(__file__).parent / "checks"
CODES = {"does-not-fit": 3, "everything-wrong": 5, "hf-zero3-auto": 0, "offload-with-defaults": 0}
WIDEST = 120
COMMON = ["--model", "llama-3.2-1b", "--gpus", "8xa100-80", "--price", "2", "--host-memory-gib", "2000"]
PLAIN: dict[str, Any] = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 1,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-5}},
    "zero_optimization": {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 4_194_304},
}


def command(case: str) -> list[str]:
    """A case's command, without the program's name."""
    return shlex.split((CHECKS / case / "command.txt").read_text(encoding="utf-8"))[1:]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_case_has_its_code() -> None:
    """No golden case without an exit code."""
    assert sorted(CODES) == sorted(path.name for path in CHECKS.iterdir())


@pytest.mark.parametrize("case", CODES)
def test_golden(case: str, update_golden: bool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole answer is what it was; ``pytest --update-golden`` rewrites it."""
    shutil.copy(CHECKS / case / "ds_config.json", folder)
    assert run_root(command(case)) == CODES[case]
    out, error = capsys.readouterr()
    assert error == ""
    assert [path.name for path in folder.iterdir()] == ["ds_config.json"]
    if update_golden:
        (CHECKS / case / "answer.txt").write_text(out, encoding="utf-8")
    assert out == (CHECKS / case / "answer.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CODES)
def test_lines_fit(case: str) -> None:
    """No line but the verdict is wider than a reader's window; a diff's lines are as long as the file's."""
    answer = (CHECKS / case / "answer.txt").read_text(encoding="utf-8").partition("\n--- ")[0]
    first, *lines = answer.splitlines()
    assert first
    assert [line for line in lines if len(line) > WIDEST] == []


@pytest.mark.parametrize("case", CODES)
def test_json_says_what_the_text_says(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict, the exit code, and every finding."""
    shutil.copy(CHECKS / case / "ds_config.json", folder)
    assert run_root([*command(case), "--json"]) == CODES[case]
    document = json.loads(capsys.readouterr().out)
    text = (CHECKS / case / "answer.txt").read_text(encoding="utf-8")
    assert document["status"] == "checked"
    assert document["exit_code"] == CODES[case]
    assert text.startswith(document["verdict"])
    assert all(finding["key"] in text for finding in document["findings"])
    assert all(finding["rule"] and finding["why"] and finding["source"] for finding in document["findings"])
    if document["better"]:
        assert document["better"]["diff"] in text + "\n"


def written(folder: Path, config: dict[str, Any]) -> str:
    """A configuration on disk."""
    path = folder / "ds_config.json"
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("changes", "code", "verdict"),
    [
        ({}, 0, "fits: "),
        ({"typo": 1}, 0, "fits: "),
        ({"amp": {}}, 5, "will not run: "),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "zenflow": {"topk_ratio": 0.1}}},
            5,
            "cannot be judged: ",
        ),
        ({"tensor_parallel": {"autotp_size": 2}}, 5, "cannot be judged: "),
        (
            {
                "optimizer": {"type": "AdamW", "params": {"lr": 1e-5, "torch_adam": True}},
                "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
            },
            5,
            "fits, but harmful (1): ",
        ),
    ],
)
def test_exit_codes(
    changes: dict[str, Any], code: int, verdict: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0: fits and harms nothing; 5: will not run, harms, or what is not modelled may need more."""
    assert run_root(["check", written(folder, {**PLAIN, **changes}), *COMMON, "--checkpointing", "full"]) == code
    assert capsys.readouterr().out.startswith(verdict)


@pytest.mark.parametrize("name", ["Muon", "MuAdam", "MuAdamW", "MuSGD"])
def test_an_optimizer_that_is_not_modelled_never_fits(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its sizes are not known, so AdamW's say nothing: it is named, exit 5, and nothing better is claimed."""
    config = {**PLAIN, "optimizer": {"type": name, "params": {"lr": 1e-5}}, "zero_allow_untested_optimizer": True}
    asked = ["check", written(folder, config), *COMMON, "--checkpointing", "full"]
    assert run_root(asked) == 5
    text = capsys.readouterr().out
    assert text.startswith("cannot be judged: ")
    assert f"optimizer.type: the memory and time of {name} are not known" in " ".join(text.split())
    assert run_root([*asked, "--json"]) == 5
    document = json.loads(capsys.readouterr().out)
    assert [(each["key"], each["value"]) for each in document["not_modelled"]] == [("optimizer.type", name)]
    assert document["better"] is None


def test_write_writes_the_better_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is there, its diff is what was printed, and it is itself found good; the original stays."""
    wasteful = {**PLAIN, "activation_checkpointing": {"cpu_checkpointing": True}}
    path = written(folder, wasteful)
    before = Path(path).read_bytes()
    arguments = [*COMMON, "--checkpointing", "full"]
    assert run_root(["check", path, *arguments, "--write", "better.json"]) == 0
    out, error = capsys.readouterr()
    assert error == "better.json: written\n"
    assert '-  "activation_checkpointing"' in out
    assert Path(path).read_bytes() == before
    assert "activation_checkpointing" not in json.loads(Path("better.json").read_text(encoding="utf-8"))
    assert run_root(["check", "better.json", *arguments, "--write", "again.json"]) == 0
    out, error = capsys.readouterr()
    assert error == "again.json: not written, nothing better was found\n"
    assert "Nothing better was found on these GPUs" in out
    assert not Path("again.json").exists()


def test_write_never_overwrites(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the file itself nor another: one line, exit 2, nothing lost."""
    path = written(folder, {**PLAIN, "activation_checkpointing": {"cpu_checkpointing": True}})
    before = Path(path).read_bytes()
    assert run_root(["check", path, *COMMON, "--checkpointing", "full", "--write", path]) == 2
    error = capsys.readouterr().err
    assert error.startswith("trainplan: --write ")
    assert "is there already; choose another --write\n" in error
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("{", COMMON, "line 1 column 2: "),
        ("[]", COMMON, "list at the top"),
        ('{"a": NaN}', COMMON, "no JSON value, got NaN"),
        ("{}", ["--model", "llama-3.2-1b", "--gpus", "a100-80"], "--gpus: no count"),
        ("{}", ["--gpus", "8xa100-80"], "--model: missing"),
        ("{}", [*COMMON, "--checkpointing", "99"], "--checkpointing: not a number of layers"),
        ("{}", [*COMMON, "--checkpointing", "many"], "--checkpointing: not a number of layers"),
        ("{}", [*COMMON, "--micro-batch", "0"], "--micro-batch: "),
        ("{}", [*COMMON, "--require", "zero-9"], "--require: no strategy"),
        ("{}", [*COMMON, "--zero", "3"], "--zero: no such option"),
        ('{"train_batch_size": 64}', [*COMMON, "--global-batch", "128"], "--global-batch 128: the file says"),
        ('{"train_micro_batch_size_per_gpu": 2}', [*COMMON, "--micro-batch", "1"], "--micro-batch 1: the file says"),
        ('{"train_batch_size": 99999999999}', COMMON, "out of range"),
    ],
    ids=lambda value: " ".join(value[6:]) if isinstance(value, list) else "",
)
def test_wrong_input(
    text: str, arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit 2, nothing on stdout."""
    (folder / "ds_config.json").write_text(text, encoding="utf-8")
    assert run_root(["check", "ds_config.json", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("trainplan: ")
    assert words in error
    assert error.count("\n") == 1


def test_a_missing_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line."""
    assert run_root(["check", "nowhere.json", *COMMON]) == 2
    assert capsys.readouterr().err == (
        "trainplan: nowhere.json: cannot be read, No such file or directory; give a ds_config.json\n"
    )
