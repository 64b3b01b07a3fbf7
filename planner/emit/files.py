"""Write files whole or not at all, and never over something that is not ours.

A folder that trainplan wrote holds ``.trainplan.json`` with the SHA-256 of every file. A file is replaced only while it
still has that digest; whatever somebody changed, or brought, stays.
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
        digests = {**_digests(folder), **{name: _digest(text) for name, text in files.items()}}
        paths = tuple(_write(folder / name, text) for name, text in files.items())
        _write(folder / MANIFEST, json.dumps({"files": digests}, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise InputError(
            f"--out {folder}: cannot write, {error.strerror or error}; a folder you may write to, on a disk with room, is "
            f"needed; choose another --out"
        ) from error
    return paths


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    """What we wrote here before; anything unreadable counts as nothing."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > LARGEST_MANIFEST_BYTES:
            return {}
        found = json.loads(path.read_text(encoding="utf-8")).get("files", {})
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _refuse_foreign(folder: Path, files: Mapping[str, str]) -> None:
    ours = _digests(folder)
    for name in files:
        path = folder / name
        if not path.exists() and not path.is_symlink():
            continue
        if path.is_symlink() or not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != ours.get(name):
            raise InputError(
                f"--out {folder}: {name} is there and trainplan did not write it, or somebody changed it since; only our own "
                f"untouched files are replaced; choose another --out or move it away"
            )


def _write(path: Path, text: str) -> Path:
    """Write beside, then rename over: readers see the old file or the new one, never a part."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    return path
