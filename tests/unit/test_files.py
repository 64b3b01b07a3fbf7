"""planner/emit/files.py: whole or not at all, and never over what is somebody else's."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from trainplan.planner.emit.files import LARGEST_MANIFEST_BYTES, MANIFEST, write_files
from trainplan.planner.errors import InputError

FILES = {"ds_config.json": '{"a": 1}\n', "plan.json": '{"b": "ä"}\n'}


def contents(folder: Path) -> dict[str, str]:
    """Every file but the manifest."""
    return {p.name: p.read_text(encoding="utf-8") for p in folder.iterdir() if p.name != MANIFEST}


def test_a_folder_is_made_and_filled(tmp_path: Path) -> None:
    """Parents too; the paths come back in the order given; everybody may read them."""
    folder = tmp_path / "a" / "b"
    assert write_files(folder, FILES) == (folder / "ds_config.json", folder / "plan.json")
    assert contents(folder) == FILES
    assert (folder / "plan.json").stat().st_mode & 0o777 == 0o644


def test_our_own_files_are_replaced(tmp_path: Path) -> None:
    """A second plan into the same folder."""
    write_files(tmp_path, FILES)
    write_files(tmp_path, {"plan.json": "new\n"})
    write_files(tmp_path, {"plan.json": "newer\n", "ds_config.json": "other\n"})
    assert contents(tmp_path) == {"plan.json": "newer\n", "ds_config.json": "other\n"}


@pytest.mark.parametrize("name", FILES)
def test_a_foreign_file_stays(tmp_path: Path, name: str) -> None:
    """Nothing is written, not even the files that were free."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name}.*did not write it") as caught:
        write_files(tmp_path, FILES)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == {name: "mine"}


def test_a_changed_file_stays(tmp_path: Path) -> None:
    """One character by hand makes it the user's."""
    write_files(tmp_path, FILES)
    (tmp_path / "ds_config.json").write_text('{"a": 2}\n')
    with pytest.raises(InputError, match="somebody changed it"):
        write_files(tmp_path, {**FILES, "plan.json": "new\n"})
    assert contents(tmp_path) == {"ds_config.json": '{"a": 2}\n', "plan.json": FILES["plan.json"]}


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Neither to a file elsewhere nor to nothing."""
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(FILES["plan.json"])
    folder = tmp_path / "out"
    folder.mkdir()
    for target in (elsewhere, tmp_path / "missing"):
        link = folder / "plan.json"
        link.symlink_to(target)
        with pytest.raises(InputError, match=r"plan\.json"):
            write_files(folder, FILES)
        link.unlink()
    assert elsewhere.read_text() == FILES["plan.json"]


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        '{"files": 3}',
        '{"files": {"plan.json": 1}}',
        "\x00",
        "[" * 100_000,
        "x" * (LARGEST_MANIFEST_BYTES + 1),
    ],
)
def test_a_manifest_that_cannot_be_read_owns_nothing(tmp_path: Path, manifest: str) -> None:
    """What it does not vouch for is foreign."""
    write_files(tmp_path, FILES)
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(InputError):
        write_files(tmp_path, FILES)
    assert contents(tmp_path) == FILES


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """The write of any of the three files may fail: the old ones are whole, no half file is left, and one may go on."""
    write_files(tmp_path, FILES)
    calls = iter(range(100))
    real = os.fsync

    def full(handle: int) -> None:
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left") as caught:
        write_files(tmp_path, dict.fromkeys(FILES, "new\n"))
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == FILES
    monkeypatch.undo()
    write_files(tmp_path, dict.fromkeys(FILES, "new\n"))
    assert contents(tmp_path) == dict.fromkeys(FILES, "new\n")


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is no OSError and goes on to the caller."""

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_files(tmp_path, FILES)
    assert list(tmp_path.iterdir()) == []


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    """--out names a file."""
    (tmp_path / "out").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        write_files(tmp_path / "out", FILES)


@pytest.mark.parametrize("renames", [1, 2])
def test_a_crash_between_two_renames_leaves_every_file_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """The manifest goes first and knows the old texts too: the next run may replace whatever it finds."""
    write_files(tmp_path, FILES)
    real, done = os.replace, list[Path]()

    def crash(source: str, target: Path) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_files(tmp_path, {"ds_config.json": "new\n", "plan.json": "new\n"})
    monkeypatch.setattr(os, "replace", real)
    write_files(tmp_path, {"ds_config.json": "newer\n", "plan.json": "newer\n"})
    assert contents(tmp_path) == {"ds_config.json": "newer\n", "plan.json": "newer\n"}
