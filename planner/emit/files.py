"""Write files whole or not at all, and never over something that is not ours.

A folder that trainplan wrote holds ``.trainplan.json`` with the SHA-256 digests of every file: of its present text and
of the one before. It is renamed into place first, so that a crash between two files leaves each of them ours. A file is
replaced only while it has one of these digests; whatever somebody changed, or brought, stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError

MANIFEST = ".trainplan.json"
LARGEST_MANIFEST_BYTES = 1_000_000


def write_files(folder: Path, files: Mapping[str, str]) -> tuple[Path, ...]:
    """Write all files into a folder, each atomically; refuse before the first write if one would be lost.

    Raises:
        InputError: the folder cannot be written, or holds a file of somebody else's.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(folder, files)
        before = _digests(folder)
        digests = {name: [*before.get(name, ())][:1] for name in (*before, *files)}
        digests |= {name: [_digest(text), *digests[name]] for name, text in files.items()}
        manifest = json.dumps({"files": digests}, indent=2, sort_keys=True) + "\n"
        _write_all(folder, {MANIFEST: manifest, **files})
    except OSError as error:
        raise InputError(
            f"--out {str(folder)[:200]}: cannot write, {error.strerror or error}; a folder you may write to, on a disk "
            f"with room, is needed; choose another --out"
        ) from error
    return tuple(folder / name for name in files)


def changed(path: Path) -> bool:
    """Whether a file that trainplan wrote is no longer what it wrote; one of which nothing is known is not.

    >>> changed(Path("no such folder/plan.json"))
    False
    """
    known = _digests(path.parent).get(path.name, ())
    try:
        return bool(known) and hashlib.sha256(path.read_bytes()).hexdigest() not in known
    except OSError:
        return False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digests(folder: Path) -> dict[str, tuple[str, ...]]:
    """What we wrote here, the newest first; anything unreadable counts as nothing."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > LARGEST_MANIFEST_BYTES:
            return {}
        found = json.loads(path.read_text(encoding="utf-8")).get("files", {})
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(name): tuple(map(str, texts)) for name, texts in found.items() if isinstance(texts, list)}


def _refuse_foreign(folder: Path, files: Mapping[str, str]) -> None:
    ours = _digests(folder)
    for name in files:
        path = folder / name
        if not path.exists() and not path.is_symlink():
            continue
        ours_still = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() in ours.get(name, ())
        if path.is_symlink() or not ours_still:
            raise InputError(
                f"--out {folder}: {name} is there and trainplan did not write it, or somebody changed it; only our "
                f"own untouched files are replaced; choose another --out or move it away"
            )


def _write_all(folder: Path, files: Mapping[str, str]) -> None:
    """Write all of them beside, then rename all: a full disk or Ctrl-C leaves what was there, readers see no part."""
    beside: dict[str, Path] = {}
    try:
        for name, text in files.items():
            _write_beside(folder / name, text, beside)
        for temporary, path in beside.items():
            os.replace(temporary, path)
    except BaseException:
        for temporary in beside:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise


def _write_beside(path: Path, text: str, beside: dict[str, Path]) -> None:
    """One temporary file in the same folder, noted in ``beside`` before its first byte."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    beside[name] = path
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o644)


def write_new(path: Path, text: str, *, force: bool = False, option: str = "--out") -> None:
    """Write one file whole or not at all; never over another, but where that is asked for.

    Args:
        path: the file.
        text: what it will hold.
        force: over another.
        option: that named it, for messages.

    Raises:
        InputError: it is there already, or cannot be written.
    """
    beside: dict[str, Path] = {}
    try:
        if path.is_dir():
            raise InputError(f"{option} {str(path)[:200]}: a folder; a file's name is needed; choose another {option}")
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_beside(path, text, beside)
        (temporary,) = beside
        if force:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # fails where something is there, and leaves it alone
    except FileExistsError:
        other = ", or add --force" if option == "--out" else ""
        raise InputError(f"{option} {str(path)[:200]}: is there already; choose another {option}{other}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{option} {str(path)[:200]}: cannot write, {reason}; choose another {option}") from None
    finally:
        for name in beside:
            with contextlib.suppress(OSError):
                os.unlink(name)
