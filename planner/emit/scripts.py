"""Scripts that a plan comes with: text of the installed package, copied as it stands."""

from __future__ import annotations

from importlib.resources import files


def job_script(name: str) -> str:
    """The text of a script of ``planner.job``.

    >>> "Train as plan.json says" in job_script("train.py")
    True
    """
    return files("trainplan.planner.job").joinpath(name).read_text(encoding="utf-8")
