"""Scripts that a plan comes with: text of the installed package, copied as it stands."""

from __future__ import annotations

from importlib.resources import files


def job_script(name: str) -> str | None:
    """The text of a script of ``planner.job``; None where this installation has none of that name.

    >>> job_script("no_such.py") is None
    True
    """
    try:
        return files("trainplan.planner.job").joinpath(name).read_text(encoding="utf-8")
    except (FileNotFoundError, ModuleNotFoundError):
        return None
