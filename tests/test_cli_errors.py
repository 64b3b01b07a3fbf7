"""Whatever is typed, an error is one line that says where, what and what to do; nothing is left half-written."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trainplan.cli.main import run_root

EIGHT_B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
SMALL = ["--model", "SmolLM2-135M", "--gpus", "1xh100", "--tokens", "10M"]
NUMBERS = [
    "--tokens",
    "--seq-len",
    "--global-batch",
    "--deadline",
    "--price",
    "--gpus-per-node",
    "--host-memory-gib",
    "--internode-gbps",
    "--lora-rank",
    "--max-gpus",
    "--nodes",
    "--budget",
    "--layers",
    "--hidden",
    "--vocab",
]
ABSURD = ("0", "-1", "nan", "inf", "1e400", "abc", "", "9" * 30, "0x10", "1;2", "\x1b[31m")
STRIDE = 6  # each place meets every sixth of these, its neighbours the others
HOSTILE: tuple[object, ...] = (None, "x", -1, 0, 1e300, True, [], {}, [[]], 10**30, 0.5, "\x00\n\x1b[31m")


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs a command in an empty folder and returns its one line on stderr."""
    monkeypatch.chdir(tmp_path)

    def check(*arguments: str, code: int = 2) -> str:
        found = run_root(list(arguments))
        out, error = capsys.readouterr()
        assert found == code, error
        assert out == ""
        assert error.startswith("trainplan: ")
        assert error.count("\n") == 1
        assert error.rstrip("\n").isprintable()
        assert "internal error" not in error
        return error.removeprefix("trainplan: ").rstrip("\n")

    return check


@pytest.mark.parametrize("option", NUMBERS)
def test_absurd_numbers_are_refused(option: str, fails: Any) -> None:
    """Every option that takes a number refuses zero, negative, infinite, absurd and no numbers, and names itself."""
    for value in ABSURD:
        error = fails("--model", "8b", "--gpus", "h100", option, value)
        assert error.startswith((option, value[:2])), (
            value,
            error,
        )  # -1 after --budget is read as an option of its own


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nope"], "model: unknown, got 'nope'"),
        (["--model", ""], "got ''"),
        (["--model", "8b", "--gpus", ""], "--gpus: empty"),
        (["--model", "8b", "--gpus", ","], "--gpus: empty"),
        (["--model", "8b", "--gpus", "0xa100-80"], "zero GPUs"),
        (["--model", "8b", "--gpus", "99999xh100"], "--max-gpus"),
        (["--model", "8b", "--gpus", "8xh100,a100-80"], "one type"),
        (["--model", "8b", "--gpus", "h1000"], "did you mean h100"),
        (["--model", "8b", "--tokens", "1k"], "less than one global batch"),
        (["--model", "8b", "--price", "2"], "--gpus any"),
        (["--model", "8b", "--gpus", "h100", "--price", "2", "--cloud", "aws"], "drop --cloud"),
        (["--model", "8b", "--params", "8e9"], "contradicts --model"),
        (["--params", "8e9", "--layers", "32"], "--hidden: missing"),
        (["--params", "nan", "--layers", "32", "--hidden", "4096"], "--params"),
        (["--json"], "--model: missing"),
        (["--model", "8b", "--gpus", "h100", "--cloud", "nowhere"], "cloud: no prices, got 'nowhere'"),
        (["--model", "8b", "--gpus", "h100", "--tier", "free"], "--tier: 'free' is not one of"),
        (["--model", "8b", "--require", "zero-9"], "--require: no strategy 'zero-9'"),
        (["--model", "8b", "--require", "zero-3", "--forbid", "zero-3"], "not both"),
        (["--model", "8b", "--require", "zero-1", "--require", "zero-2"], "contradicts"),
        (["--model", "8b", "--method", "full", "--require", "zero-0", "--require", "offload-optimizer-cpu"], "stage 0"),
        (["--model", "8b", "--method", "lora", "--lora-targets", ","], "--lora-targets: no names"),
        (["--model", "8b", "--budget", "-5"], "a negative number"),
        (["--model", "8b", "models", "list"], "--model: stands before models"),
        (["--json", "gpus", "list"], "--json: stands before gpus"),
        (["plans"], "did you mean plan"),
        (["plan", "70b"], "unexpected extra argument (70b)"),
        (["--modle", "8b"], "did you mean --model"),
        (["models", "show"], "NAME: missing"),
        (["models", "search", "zzzz"], "nothing found"),
        (["gpus", "search", "zzzz"], "nothing found"),
        (["offers", "search", "zzzz"], "nothing found"),
        (["gpus", "show", "zzzz"], "not in the catalog"),
        (["offers", "show", "zzzz"], "not in the catalog"),
        (["completion", "ksh"], "'ksh' is not one of"),
        (["estimate", "--model", "8b"], "--gpus: no count"),
        (["estimate", "--model", "8b", "--gpus", "8xh100", "--zero", "4"], "--zero: 4 is not in the range"),
        (["estimate", "--model", "8b", "--gpus", "8xh100", "--checkpointing", "99"], "0 to 32"),
        (["estimate", "--model", "8b", "--gpus", "8xh100", "--offload-ratio", "nan"], "--offload-ratio"),
        (["estimate", "--model", "8b", "--gpus", "8xh100", "--require", "zero-1"], "--require zero-1: contradicts"),
        (["estimate", "--model", "8b", "--gpus", "8xh100", "--forbid", "zero-3"], "--forbid zero-3: contradicts"),
        (["explain", "nowhere"], "cannot be read"),
        (["why-not", "nowhere"], "at least one of --num-gpus"),
        ([*SMALL, "--out", ""], "--out: not a folder's name"),
        ([*SMALL, "--out", "two\nlines"], "--out: not a folder's name"),
        ([*SMALL, "--out", "a" * 5000], "--out"),
        ([*SMALL, "--out", "/dev/full"], "cannot write"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said(arguments: list[str], words: str, fails: Any) -> None:
    """Unknown names, contradictions and misplaced options each get their own words."""
    assert words in fails(*arguments)


def hostile_configs() -> dict[str, bytes]:
    """Files that are no config.json."""
    return {
        "huge": b"\0" * (2**20 + 1),
        "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
        "binary": bytes(range(256)),
        "empty": b"",
        "list": b"[]",
        "number": b'{"model_type":' + b"9" * 100_000 + b"}",
        "type": json.dumps(EIGHT_B | {"hidden_size": "x"}).encode(),
        "infinite": b'{"model_type": "llama", "hidden_size": 1e400}',
        "layers": json.dumps(EIGHT_B | {"num_hidden_layers": 10**12}).encode(),
        "width": json.dumps(EIGHT_B | {"hidden_size": 10**23}).encode(),
        "family": json.dumps(EIGHT_B | {"model_type": ["llama"]}).encode(),
        "none": json.dumps({"hidden_size": 4096}).encode(),
        "twice": b'{"model_type": "llama", "model_type": "llama"}',
    }


@pytest.mark.parametrize("name", hostile_configs())
def test_hostile_model_files(name: str, fails: Any, tmp_path: Path) -> None:
    """A config.json that is huge, deep, binary, of wrong types or values is one line that names the file."""
    (tmp_path / "config.json").write_bytes(hostile_configs()[name])
    assert fails("--model", "config.json", "--gpus", "h100").startswith("config.json: ")


def test_no_files_at_all(fails: Any, tmp_path: Path) -> None:
    """Folders, devices and pipes are no model and no plan, and nothing waits for them."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "/dev/zero", ".", ".."):
        assert fails("--model", name, "--gpus", "h100").startswith("model: unknown")
        assert fails("explain", name)


def test_foreign_files_stay(fails: Any, tmp_path: Path) -> None:
    """A ds_config.json that trainplan did not write, or that was changed, is not replaced; nor is a file a folder."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "ds_config.json").write_text("{}")
    assert "trainplan did not write it" in fails(*SMALL, "--out", "mine")
    assert os.listdir(tmp_path / "mine") == ["ds_config.json"]
    assert "cannot write" in fails(*SMALL, "--out", "mine/ds_config.json")
    assert (tmp_path / "mine" / "ds_config.json").read_text() == "{}"


def test_a_full_disk_leaves_nothing(fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the second file cannot be written, the first one is not there either, and no temporary file is left."""
    written = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in fails(*SMALL, "--out", "plan")
    assert os.listdir(tmp_path / "plan") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(fails: Any, tmp_path: Path) -> None:
    """A read-only folder is an error of --out."""
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot write" in fails(*SMALL, "--out", "locked/plan")


@pytest.fixture(scope="module")
def plan_document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A plan to be tampered with."""
    folder = tmp_path_factory.mktemp("plan")
    assert run_root([*SMALL, "--out", str(folder / "x")]) == 0
    document: dict[str, Any] = json.loads((folder / "x" / "plan.json").read_text())
    return document


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON document can be tampered with: every key, and the first item of every list."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    return [found for key, child in inner for found in places(child, (*path, key))] + ([path] if path else [])


def tampered(document: dict[str, Any], path: tuple[Any, ...], bad: Any) -> str:
    """The document's text with one value replaced."""
    changed = copy.deepcopy(document)
    at: Any = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = bad
    return json.dumps(changed)


def test_tampered_plans(plan_document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any value of a plan.json replaced by any other gives an answer or one line, never a fault of ours."""
    folder = str(tmp_path)
    for number, path in enumerate(places(plan_document)):
        for bad in HOSTILE[number % STRIDE :: STRIDE]:
            (tmp_path / "plan.json").write_text(tampered(plan_document, path, bad))
            for arguments in (
                ["explain", folder],
                ["explain", folder, "--line", "logits"],
                ["why-not", folder, "--zero", "2"],
            ):
                code = run_root(arguments)
                out, error = capsys.readouterr()
                assert code in (0, 2, 3), (path, bad, error)
                assert error.count("\n") == (code != 0), (path, bad, error)
                assert not {"\x1b", "\0"} & set(out + error), (path, bad)


def process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "trainplan", *arguments], stderr=subprocess.PIPE, text=True, **options
    )


def test_a_full_stdout_is_an_error() -> None:
    """What cannot be printed is said in one line, with exit code 1."""
    with open("/dev/full", "w") as full:
        running = process("models", "list", stdout=full)
        _, error = running.communicate(timeout=60)
    assert running.returncode == 1
    assert error == "trainplan: system: No space left on device; see to it and start again\n"


def test_a_reader_that_left_is_none() -> None:
    """``trainplan ... | head -1`` ends in silence."""
    reader, writer = os.pipe()
    os.close(reader)
    running = process("models", "list", stdout=writer)
    os.close(writer)
    _, error = running.communicate(timeout=60)
    assert (running.returncode, error) == (0, "")


def test_any_terminal_will_do() -> None:
    """A terminal whose letters are not ours shows ? for them; names that are no UTF-8 are an error like any other."""
    environment = os.environ | {"PYTHONIOENCODING": "koi8-r", "PYTHONUTF8": "0"}
    running = process("estimate", *SMALL, stdout=subprocess.PIPE, env=environment)
    out, error = running.communicate(timeout=60)
    assert (running.returncode, error) == (0, "")
    assert " ?F1 " in out
    running = process("--model", os.fsdecode(b"\xff\xfe"), stdout=subprocess.PIPE)
    out, error = running.communicate(timeout=60)
    assert (running.returncode, out, error.count("\n")) == (2, "", 1)


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C during the search is one line and exit code 130, and leaves no files."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trainplan.api.searching.explore", interrupt)
    assert run_root(["--model", "70b", "--gpus", "any", "--budget", "--out", "x"]) == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.strip() == "trainplan: interrupted; nothing was left half-written; start again"
    assert not os.listdir(tmp_path)
