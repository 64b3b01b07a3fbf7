"""planner/dsconfig: reading and editing a configuration's text; nothing of it is lost, nothing else is touched."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainplan.planner.dsconfig.changing import changed
from trainplan.planner.dsconfig.editing import REMOVE, edited, unified
from trainplan.planner.dsconfig.reading import LARGEST_BYTES, from_mapping, from_text, read
from trainplan.planner.dsconfig.syntax import DEEPEST, SyntaxProblem, parse
from trainplan.planner.errors import InputError

COMMENTED = """\
{
    # precision
    "bf16": {"enabled": true},  // as the card can
    "zero_optimization": {
        "stage": 3, /* everything cut */
        "overlap_comm": true,
    },
    "gradient_clipping": 1.0
}
"""
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.text(max_size=8),
                   st.floats(allow_nan=False, allow_infinity=False))  # fmt: skip
KEYS = st.text(
    st.characters(codec="utf-8", exclude_characters='.\\"', exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=4)


@given(DOCUMENTS, st.sampled_from((None, 2, 4)))
def test_json_is_read_as_json(document: dict[str, Any], indent: int | None) -> None:
    """Whatever json writes is read as json reads it."""
    text = json.dumps(document, indent=indent)
    assert parse(text)[0].value == json.loads(text)


PATHS = st.lists(KEYS, min_size=1, max_size=3).map(".".join)


@given(DOCUMENTS, st.dictionaries(PATHS, LEAVES | st.just(REMOVE), max_size=3), st.sampled_from((None, 2)))
def test_edits_of_the_text_are_edits_of_the_values(
    document: dict[str, Any], changes: dict[str, Any], indent: int | None
) -> None:
    """The edited text holds what the changed document holds, wherever paths do not run into each other."""
    paths = [path.split(".") for path in changes]
    if any(a != b and b[: len(a)] == a for a in paths for b in paths):
        return
    text = edited(json.dumps(document, indent=indent), changes)
    assert parse(text)[0].value == changed(document, {**_sets(changes), **_removals(changes)})


def _sets(changes: dict[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in changes.items() if value != REMOVE}


def _removals(changes: dict[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in changes.items() if value == REMOVE}


def test_comments_and_commas_are_read() -> None:
    """The values; that accelerate cannot read it; that places are known."""
    found = from_text(COMMENTED, name="x")
    assert found.values["zero_optimization"] == {"stage": 3, "overlap_comm": True}
    assert (found.strict, found.placed) == (False, True)


def test_edits_leave_the_rest_alone() -> None:
    """One value, one key gone, one new: three lines change, comments stay."""
    changes = {"zero_optimization.stage": 2, "gradient_clipping": REMOVE, "bf16.check_grad_overflow": False}
    after = edited(COMMENTED, changes)
    assert after == COMMENTED.replace('"stage": 3', '"stage": 2').replace(
        ',\n    "gradient_clipping": 1.0\n', "\n"
    ).replace('{"enabled": true}', '{"enabled": true, "check_grad_overflow": false}').replace("    },\n}", "    }\n}")
    assert parse(after)[0].value == changed(from_text(COMMENTED, name="x").values, changes)
    assert "# precision" in after
    assert "/* everything cut */" in after


def test_a_diff_is_unified() -> None:
    """As diff -u writes it; empty where nothing changed."""
    before = '{\n  "a": 1\n}\n'
    assert unified(before, edited(before, {"a": 2}), "x", "y").splitlines() == [
        "--- x", "+++ y", "@@ -1,3 +1,3 @@", " {", '-  "a": 1', '+  "a": 2', " }",
    ]  # fmt: skip
    assert unified(before, before, "x", "y") == ""


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "line 1 column 1: no JSON value, got the end of the file"),
        ("{", "line 1 column 2: a quoted key or } is needed"),
        ('{"a": NaN}', "line 1 column 7: no JSON value, got NaN"),
        ('{"a": Infinity}', "got Infinity"),
        ('{"a": 01}', "got 01"),
        ('{"a": 1 "b": 2}', "line 1 column 8: one comma or } is needed"),
        ('{"a": 1,, "b": 2}', "one comma or } is needed"),
        ('{"a" 1}', "a colon is needed"),
        ('{"a": "x}', "no JSON value"),
        ('{"a": 1} {"b": 2}', "more than one value"),
        ('{"a":\n [1, tru]}', "line 2 column 6: no JSON value, got tru"),
        ('{"a": "\\q"}', "a string with an unknown escape"),
        ('{"a": ' + "1" * 5_000 + "}", "line 1 column 7: a number of 5,000 characters"),
        ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "nested deeper"),
        ("[" * 100_000, "nested deeper"),
    ],
    ids=lambda value: value[:20],
)
def test_no_json_is_said_with_its_place(text: str, where: str) -> None:
    """Line, column, what is there and what is needed."""
    with pytest.raises(SyntaxProblem) as raised:
        parse(text)
    assert where in str(raised.value)


def test_more_keys_than_any_configuration_has_are_refused_at_once() -> None:
    """Each would be judged, and a check would take minutes."""
    text = "{" + ", ".join(f'"k{i}": 1' for i in range(50_000)) + "}"
    with pytest.raises(InputError, match=r"^x: more than 500 keys, DeepSpeed knows some 250; give a ds_config.json$"):
        from_text(text, name="x")


def test_keys_that_stand_twice_are_named() -> None:
    """With their paths."""
    assert parse('{"a": {"b": 1, "b": 2}, "a": {}}')[1] == ("a.b", "a")


def test_hjson_is_read_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare keys are DeepSpeed's own; without hjson the problem of the text is said."""
    text = "{bf16: {enabled: true}}"
    pytest.importorskip("hjson")
    found = from_text(text, name="x")
    assert found.values == {"bf16": {"enabled": True}}
    assert not found.placed
    monkeypatch.setattr(importlib, "import_module", _missing)
    with pytest.raises(InputError, match=r"^x: line 1 column 2: a quoted key or } is needed"):
        from_text(text, name="x")


def _missing(name: str) -> None:
    raise ImportError(name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[1, 2]", "list at the top, an object is needed"),
        (b'"x"', "str at the top"),
        (b'{"a": "\xff"}', "not UTF-8, at byte 7"),
        (b" " * (LARGEST_BYTES + 1), "more than 1,000,000 bytes"),
        (b"{" * 1000, "a quoted key"),
    ],
)
def test_bad_files_are_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    """Name, what is wrong, what is needed."""
    path = tmp_path / "ds_config.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read(str(path))
    assert str(raised.value).startswith(f"{path}: ")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", ["nowhere.json", ".", "a\0b"])
def test_files_that_cannot_be_read(path: str) -> None:
    """The system's reason, and what to give."""
    with pytest.raises(InputError, match=r"cannot be read, .*; give a ds_config\.json"):
        read(path)


def test_a_mapping_must_be_json() -> None:
    """NaN and objects of Python are refused."""
    with pytest.raises(InputError, match="no JSON"):
        from_mapping({"gradient_clipping": float("nan")})
    with pytest.raises(InputError, match="no JSON"):
        from_mapping({"a": {1, 2}})
