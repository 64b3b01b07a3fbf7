"""From what a user typed to a model, and the commands that show one."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from trainplan.cli.models import command
from trainplan.planner import models
from trainplan.planner.computation import Adapters
from trainplan.planner.errors import InputError
from trainplan.planner.models import (
    LARGEST_FILE_BYTES,
    adapter_parameters,
    catalog,
    catalog_model,
    describe_by_hand,
    find_model,
    load_model,
    parse_config,
    spelling,
)

FILES = Path(__file__).parents[1] / "data" / "model_configs"
PUBLISHED = tomllib.loads((FILES / "published_counts.toml").read_text(encoding="utf-8"))


def refusal(reference: str) -> str:
    """The message that refuses a reference."""
    with pytest.raises(InputError) as caught:
        load_model(reference)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_counts_are_the_published_ones(name: str, count: int) -> None:
    """To the last parameter, as another implementation states them."""
    assert catalog_model(name).parameter_count == count


def test_no_name_means_two_models() -> None:
    """Each spelling belongs to one row."""
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for row in catalog().values():
        for name in row.names:
            owners[spelling(name)].add(row.name)
    assert {name: rows for name, rows in owners.items() if len(rows) > 1} == {}


def test_no_name_is_written_twice() -> None:
    """A row does not list an alias that its name or another alias already covers."""
    for row in catalog().values():
        written = [spelling(name) for name in (row.name, *row.aliases, *row.hub)]
        assert len(set(written)) == len(written), row.name


def test_every_row_has_a_source() -> None:
    """Where its keys were read."""
    assert all(len(row.source) > 10 for row in catalog().values())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("7b", "Llama-2-7B"),
        ("8B", "Llama-3.1-8B"),
        ("13b", "Llama-2-13B"),
        ("70b", "Llama-3.1-70B"),
        ("405b", "Llama-3.1-405B"),
        ("llama-3-70b", "Llama-3-70B"),
        ("Llama 3 8B", "Llama-3-8B"),
        ("llama_3.1_8b", "Llama-3.1-8B"),
        ("meta-llama/Llama-3.1-70B", "Llama-3.1-70B"),
        ("meta-llama/Llama-3.1-70B-Instruct", "Llama-3.1-70B"),
        ("META-LLAMA/llama-3.1-70b-instruct", "Llama-3.1-70B"),
        ("Llama-3.1-70B-Instruct", "Llama-3.1-70B"),
        ("Qwen/Qwen2.5-7B", "Qwen2.5-7B"),
        ("gpt2", "GPT-2"),
        ("mixtral", "Mixtral-8x7B"),
        ("deepseek-r1", "DeepSeek-V3"),
    ],
)
def test_aliases(typed: str, meant: str) -> None:
    """Short forms and hub ids mean one catalog model, whatever their case, dashes and blanks."""
    assert load_model(typed).name == meant


def test_a_short_form_says_what_it_means() -> None:
    """The caller can print which model was taken; a full name needs no note."""
    assert find_model("70b").note == "70b means Llama-3.1-70B"
    assert find_model("llama-3.1-70b").note == ""


def test_the_catalog_gives_one_object() -> None:
    """Caches are keyed by the model's identity."""
    assert load_model("70b") is load_model("Llama-3.1-70B")


def test_generations_of_llama_differ_in_their_positions() -> None:
    """Llama-3-70B and Llama-3.1-70B have the same tensors and other lengths."""
    old, new = load_model("llama-3-70b"), load_model("llama-3.1-70b")
    assert old.parameters == new.parameters
    assert (old.max_positions, new.max_positions) == (8192, 131072)


def test_a_file_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path to a file, or to a folder with a config.json, comes before every name of the catalog."""
    folder = tmp_path / "70b"
    folder.mkdir()
    (folder / "config.json").write_bytes((FILES / "llama.json").read_bytes())
    from_file, from_folder = load_model(str(FILES / "llama.json")), load_model(str(folder))
    assert (from_file.name, from_folder.name) == ("llama", "70b")
    assert from_file.parameters == from_folder.parameters
    assert from_folder.source == str(folder / "config.json")
    monkeypatch.chdir(tmp_path)
    assert load_model("70b").parameters == from_file.parameters
    monkeypatch.chdir(folder)
    assert load_model("70b").name == "Llama-3.1-70B"
    assert load_model("config.json").parameters == from_file.parameters


def test_unknown_names_are_refused_with_a_hint() -> None:
    """The message names what was given, what is close, and what to do."""
    message = refusal("lama-3.1-70b")
    assert "got 'lama-3.1-70b'; did you mean llama-3.1-70b" in message
    assert "trainplan models list" in message
    for odd in ("", "   ", "x" * 5000, "a\0b", "\n", "../../../nowhere", "a/b/c"):
        refusal(odd)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not JSON"),
        (b"[1, 2]", "not a JSON object, got list"),
        (b"null", "not a JSON object"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"hidden_size": NaN}', "NaN"),
        (b'{"hidden_size": -Infinity}', "Infinity"),
        (b'{"vocab_size": 1, "vocab_size": 2}', "'vocab_size' twice"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' twice"),
        (b'{"a": ' * 40 + b"1" + b"}" * 40, "nested too deep"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_hostile_json_is_refused(data: bytes, said: str) -> None:
    """Broken, ambiguous and bottomless files end in one line."""
    with pytest.raises(InputError) as caught:
        parse_config(data, where="config.json")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_weights_is_refused_unread(tmp_path: Path) -> None:
    """No more than a mebibyte is read."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b" " * (LARGEST_FILE_BYTES + 1))
    assert "larger than 1,048,576 bytes" in refusal(str(weights))


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's reason is given."""
    path = tmp_path / "config.json"
    path.write_text("{}")

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", closed)
    assert "cannot be read: Permission denied" in refusal(str(path))


def test_a_hub_id_needs_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without huggingface_hub the message says how to get it, and the way without."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    message = refusal("someone/some-model")
    assert "trainplan[hub]" in message
    assert "give the path" in message


def test_a_hub_id_is_fetched_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config.json is all that is needed."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(models, "_download", lambda _: (FILES / "llama.json").read_bytes())
    model = load_model("nobody-of-that-name/tiny")
    assert (model.name, model.source) == ("tiny", "huggingface.co/nobody-of-that-name/tiny")


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the library raises."""
    hub = pytest.importorskip("huggingface_hub")

    def unreachable() -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "get_session", unreachable)
    message = refusal("nobody-of-that-name/tiny")
    assert "ConnectionError" in message
    assert "give the path" in message


@pytest.mark.parametrize("params", [13e9, 7e9, 1.5e9, 70e9])
def test_by_hand_comes_as_near_as_the_width_allows(params: float) -> None:
    """64 more units of MLP width are 192 h L parameters: the count is within half of that."""
    layers, hidden = 40, 2560
    model = describe_by_hand(params, layers, hidden)
    assert abs(model.parameter_count - params) <= 64 * 3 * layers * hidden / 2
    assert model.blocks[0].mlp is not None
    assert params < 5e9 or model.blocks[0].mlp.intermediate % 64 == 0
    assert (model.layers, model.hidden, model.vocab) == (layers, hidden, 32000)
    assert model.source.startswith("by hand")


def test_by_hand_of_a_known_model_is_that_model() -> None:
    """Llama-2-13B described by its numbers has Llama-2-13B's tensors."""
    known = load_model("Llama-2-13B")
    assert describe_by_hand(known.parameter_count, 40, 5120).parameters == known.parameters
    full = describe_by_hand(13e9, 40, 5120, heads=40, kv_heads=40, intermediate=13824, vocab=32000)
    assert full.parameters == known.parameters


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((1e6, 40, 5120), "before any MLP"),
        ((float("nan"), 40, 5120), "--params"),
        ((-1.0, 40, 5120), "--params"),
        ((13e9, 0, 5120), "num_hidden_layers"),
        ((13e9, 40, -5), "hidden_size"),
        ((13e9, 40, 5120, 7), "num_attention_heads"),
        ((13e9, 40, 5120, 40, 40, 100), "leave the MLP width out"),
    ],
)
def test_by_hand_refuses_the_impossible(arguments: tuple[Any, ...], said: str) -> None:
    """One line that names what is wrong."""
    with pytest.raises(InputError) as caught:
        describe_by_hand(*arguments)
    assert said in str(caught.value)


def test_adapters_by_hand() -> None:
    """r (in + out) for each of Llama-2-7B's seven projections in 32 layers."""
    layer = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    assert adapter_parameters(load_model("7b"), Adapters(rank=16)) == 32 * 16 * layer


def run(*arguments: str) -> str:
    """What a command prints."""
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_list_and_search() -> None:
    """A line for each model below one of titles; as JSON, stable names."""
    assert len(run("list").splitlines()) == len(catalog()) + 1
    rows = json.loads(run("list", "--json"))
    assert [row["name"] for row in rows] == list(catalog())
    assert {"name", "architecture", "parameters", "layers", "hidden", "aliases", "hub", "source"} == set(rows[0])
    assert [row["name"] for row in json.loads(run("search", "mixtral 8x22b", "--json"))] == ["Mixtral-8x22B"]
    assert {row["architecture"] for row in json.loads(run("search", "qwen3_moe", "--json"))} == {"qwen3_moe"}


def test_search_without_a_find_is_refused() -> None:
    """With a hint."""
    result = CliRunner().invoke(command, ["search", "lamma"])
    assert isinstance(result.exception, InputError)
    assert "did you mean" in str(result.exception)


def test_show() -> None:
    """Exact counts, per part, and where they come from."""
    facts = json.loads(run("show", "70b", "--json"))
    assert facts["parameters"] == facts["trainable_parameters"] == 70_553_706_496
    assert sum(facts["parts"].values()) == facts["parameters"]
    assert facts["note"] == "70b means Llama-3.1-70B"
    text = run("show", "70b")
    assert text.startswith("70b means Llama-3.1-70B\n")
    assert "70,553,706,496" in text


def test_show_counts_adapters() -> None:
    """trainable_parameters are the adapters' under LoRA and QLoRA."""
    layer = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    for method in ("lora", "qlora"):
        facts = json.loads(run("show", "7b", "--method", method, "--lora-rank", "8", "--json"))
        assert facts["trainable_parameters"] == 32 * 8 * layer
        assert facts["parameters"] == 6_738_415_616


def test_show_warns_where_peft_does_otherwise() -> None:
    """peft adapts Mixtral's experts with all-linear; the count says that it does not."""
    assert "warning" in run("show", "mixtral", "--method", "lora")
    assert "warning" not in run("show", "mixtral")


def test_show_takes_a_path() -> None:
    """As --model does everywhere; of a multimodal model the text part."""
    assert "text part only" in run("show", str(FILES / "gemma3_multimodal.json"))
