"""A profile is a small file that is not trusted; a plan says what of it was used."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import trainplan
from hypothesis import given, settings
from hypothesis import strategies as st
from trainplan.api import Estimate
from trainplan.cli.main import run_root
from trainplan.planner.calibrate import profile as profiles
from trainplan.planner.calibrate.parameters import Fitted, calibration_of, parameters
from trainplan.planner.calibrate.profile import Agreement, Profile, Source, read_profile, text_of
from trainplan.planner.calibration import AS_SHIPPED, Range
from trainplan.planner.errors import InputError

VERSION = trainplan.__version__
FIGURES = (
    Fitted(name="live", value=Range(0.0, 0.02, 0.05), rows=2, doubt_left=0.5),
    Fitted(name="context", value=Range(0.5, 0.8, 1.1), rows=2, doubt_left=0.6),
    Fitted(name="matmul", value=Range(0.8, 0.9, 1.0), rows=2, doubt_left=0.7),
    Fitted(name="inside", value=Range(0.7, 0.9, 1.2), rows=1, doubt_left=0.9),
)


def profile_of(gpu: str = "a100-80", **changes: Any) -> Profile:
    """A profile."""
    known: dict[str, Any] = {
        "gpu": gpu,
        "trainplan": VERSION,
        "date": "2026-11-26",
        "figures": FIGURES,
        "rows": (Source(label='a "row"', file="rows.csv", measured="step time"),),
        "errors": (
            Agreement(quantity="step time", rows=2, before_percent=9.0, after_percent=3.0, left_out_percent=None),
        ),
    }
    return Profile(**(known | changes))


def written(folder: Path, text: str) -> str:
    """A profile file."""
    path = folder / "p.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_profile_is_read_back_as_it_was(tmp_path: Path) -> None:
    """Write, read, write: the same text, and the same figures."""
    profile = profile_of()
    again = read_profile(written(tmp_path, text_of(profile)))
    assert again == profile
    assert text_of(again) == text_of(profile)
    assert again.calibration.matmul == 0.9
    assert again.calibration.overheads["context"] == Range(0.5, 0.8, 1.1)


ranges = st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))


@settings(max_examples=60, deadline=None)
@given(
    ends=st.dictionaries(st.sampled_from([p.name for p in parameters()]), ranges, min_size=1),
    label=st.text(max_size=400),
)
def test_any_profile_is_read_back(ends: dict[str, Any], label: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any figures within reach, any label: six digits stay, and no upper end comes back lower."""
    known = {p.name: p for p in parameters()}
    figures = []
    for name, shares in ends.items():
        least, most = known[name].allowed
        low, point, upper = sorted(least + share * (most - least) for share in shares)
        figures.append(Fitted(name=name, value=Range(low, point, upper), rows=1, doubt_left=0.5))
    profile = profile_of(figures=tuple(figures), rows=(Source(label=label, file="f", measured="m"),))
    again = read_profile(written(tmp_path_factory.mktemp("profile"), text_of(profile)))
    for before, after in zip(figures, again.figures, strict=True):
        assert after.value.upper >= before.value.upper
        assert after.value.point == pytest.approx(before.value.point, abs=1e-6)
    assert all(row.label.isprintable() for row in again.rows)


TEXT = text_of(profile_of())
WRONG: dict[str, tuple[str, str]] = {
    "no TOML": ("=", "not TOML"),
    "empty": ("", "schema_version is None; this trainplan reads 1"),
    "another version": (TEXT.replace("schema_version = 1", "schema_version = 2"), "schema_version is 2"),
    "unknown key": (TEXT.replace("gpu =", "speed = 3\ngpu ="), "unknown key 'speed'; allowed are schema_version, gpu"),
    "unknown figure": (
        TEXT.replace("[figures.matmul]", "[figures.magic]"),
        "figures: unknown 'magic'; allowed are live",
    ),
    "unknown key of a figure": (TEXT.replace("doubt_left = 0.5", "doubt = 1"), "figures.live: unknown key 'doubt'"),
    "missing": (TEXT.replace("doubt_left = 0.5\n", ""), "figures.live: doubt_left is missing"),
    "a text for a number": (TEXT.replace("value = 0.9\n", 'value = "x"\n', 1), "value is 'x', not a number"),
    "infinite": (TEXT.replace("value = 0.9\n", "value = inf\n", 1), "value is inf, not a number"),
    "a flag": (TEXT.replace("value = 0.9\n", "value = true\n", 1), "value is True, not a number"),
    "beyond belief": (
        TEXT.replace("value = 0.9\nlow = 0.8", "value = 0.1\nlow = 0.05"),
        "matmul: value is 0.1; allowed is",
    ),
    "not ascending": (TEXT.replace("low = 0.8\n", "low = 0.95\n"), "are 0.95, 0.9, 1, not ascending"),
    "a wide range": (TEXT.replace("upper = 1.1\n", "upper = 900.0\n"), "wider than any that rows give"),
    "no figures": ('schema_version = 1\ngpu = "x"\ntrainplan = "1"\ndate = "d"\n', "figures: none"),
    "figures are a list": ("figures = [1]\n" + TEXT.split("[figures")[0], "figures: none"),
    "rows are a table": (TEXT.replace("[[rows]]", "[rows]"), "errors or rows: no tables"),
    "escape": (TEXT.replace('gpu = "a100-80"', 'gpu = "\\u001b[31m"'), "not a text"),
    "deep": ("x = " + "[" * 5000, "not TOML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_profile_is_one_line(case: str, tmp_path: Path) -> None:
    """Where, what is wrong, what to do."""
    text, words = WRONG[case]
    assert text != TEXT
    with pytest.raises(InputError) as caught:
        read_profile(written(tmp_path, text))
    assert words in str(caught.value)
    assert "trainplan calibrate" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_profile_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file is refused before it is parsed; so are a folder and what is not there."""
    monkeypatch.setattr(profiles, "LARGEST_BYTES", 100)
    with pytest.raises(InputError, match="larger than 100 bytes"):
        read_profile(written(tmp_path, TEXT + "# more"))
    for path in (str(tmp_path), str(tmp_path / "none"), "a\x00b"):
        with pytest.raises(InputError, match="a profile is needed"):
            read_profile(path)


def estimate(**options: Any) -> Estimate:
    """A configuration on 8 GPUs."""
    asked: dict[str, Any] = {"gpus": "8xa100-80", "price_usd_per_gpu_hour": 1, "host_memory_gib": 2000}
    return trainplan.estimate("llama-3-8b", **(asked | {"checkpointing": "full"} | options))


def test_a_plan_uses_the_figures_of_its_gpu(tmp_path: Path) -> None:
    """Slower multiplications, more context, larger activations: time, memory and bound follow; exact lines stay."""
    path = written(tmp_path, text_of(profile_of()))
    plain, own = estimate().candidate, estimate(profile=path).candidate
    assert own.time.step_s > plain.time.step_s
    assert own.gpu.device_bytes > plain.gpu.device_bytes
    for before, after in zip(plain.ledger.entries, own.ledger.entries, strict=True):
        if before.certainty.value == "exact" or before.device.value != "gpu":
            assert after == before
        else:
            assert after.bytes == round(1.02 * before.bytes)
            assert after.upper_bytes >= before.upper_bytes + 0.05 * before.bytes
            assert after.why.endswith(", x 1.020 (profile)")
    matmul = next(t for t in own.time.terms if t.limited_by == "matmul")
    assert matmul.ground.figure.endswith(" x 0.900 (profile)")


def test_a_profile_of_another_gpu_is_not_applied(tmp_path: Path) -> None:
    """Not a number changes, and it is said twice: among the assumptions, and as a note."""
    path = written(tmp_path, text_of(profile_of("h100")))
    plain, other = estimate(), estimate(profile=path)
    assert other.candidate.gpu == plain.candidate.gpu
    assert other.candidate.time == plain.candidate.time
    assert other.candidate.offer.node.gpu.calibration is AS_SHIPPED
    assert "--profile p.toml: measured on h100, not applied: the plan is for a100-80" in other.to_dict()["warnings"]


def test_another_versions_profile_is_said(tmp_path: Path) -> None:
    """Factors are on the rates of the version that wrote it."""
    path = written(tmp_path, text_of(profile_of(trainplan="0.0.9")))
    (note,) = [w for w in estimate(profile=path).to_dict()["warnings"] if "profile" in w]
    assert "written by trainplan 0.0.9" in note
    assert "calibrate again" in note


def test_a_plan_with_a_profile(tmp_path: Path) -> None:
    """The search runs on the profile's figures; the document names them; a plan without one is what it was."""
    path = written(tmp_path, text_of(profile_of("h100")))
    options: dict[str, Any] = {"gpus": "8xh100", "method": "lora", "tokens": "10M"}
    plain, own = trainplan.plan("llama-3-8b", **options), trainplan.plan("llama-3-8b", profile=path, **options)
    assert own.candidate.cost.hours > plain.candidate.cost.hours
    assert own.to_dict()["request"]["profile"] == path
    named = {row["name"].strip(): row for row in own.to_dict()["assumptions"] if row["from"] == "profile"}
    assert set(named) == {"profile", *(f.parameter.label for f in FIGURES)}
    assert named["matrix multiplications"]["value"] == "0.90 x the shipped rate (0.80 to 1.00)"
    assert not [row for row in plain.to_dict()["assumptions"] if row["from"] == "profile"]
    confirmed = own.candidate
    assert confirmed.gpu.fits
    assert confirmed.setting.live == Range(0.0, 0.02, 0.05)


ZERO_2 = {"train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}


def checked(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The document of `trainplan check`."""
    config = folder / "ds_config.json"
    config.write_text(json.dumps(ZERO_2), encoding="utf-8")
    machine = ("--model", "llama-3-8b", "--gpus", "8xa100-80", "--price", "1", "--host-memory-gib", "2000")
    assert run_root(["check", str(config), *machine, "--checkpointing", "full", "--json", *arguments]) in (0, 5)
    return dict(json.loads(capsys.readouterr().out))


def test_a_check_uses_the_figures_of_its_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds, dollars and bytes of an existing configuration are the profile's; another GPU's only warns."""
    own = written(tmp_path, text_of(profile_of()))
    plain, profiled = checked(tmp_path, capsys), checked(tmp_path, capsys, "--profile", own)
    assert profiled["time"]["step_s"] > plain["time"]["step_s"]
    assert profiled["cost"]["usd"] > plain["cost"]["usd"]
    for size in ("reserved_bytes", "device_bytes", "upper_bound_bytes"):
        assert profiled["memory"]["gpu"][size] > plain["memory"]["gpu"][size]
    changed = {key for key, value in profiled["configuration"].items() if value != plain["configuration"][key]}
    assert changed == {"hours", "cost_usd"}

    other = checked(tmp_path, capsys, "--profile", written(tmp_path, text_of(profile_of("h100"))))
    (note,) = set(other["warnings"]) - set(plain["warnings"])
    assert note == "--profile p.toml: measured on h100, not applied: the plan is for a100-80"
    assert {**other, "warnings": plain["warnings"]} == plain


def test_every_parameter_has_its_place() -> None:
    """No parameter is fitted that the models do not read: moving it alone makes another calibration."""
    for p in parameters():
        x = p.shown(p.start + p.deviation)
        moved = calibration_of({p.name: Range(x, x, x)})
        same = (getattr(moved, p.name, None), moved.overheads) == (
            getattr(AS_SHIPPED, p.name, None),
            AS_SHIPPED.overheads,
        )
        assert not same, p.name


def test_the_text_is_toml() -> None:
    """Any reader of TOML reads it."""
    table = tomllib.loads(TEXT)
    assert table["rows"][0]["label"] == 'a "row"'
    assert table["figures"]["context"]["unit"] == "GiB"
