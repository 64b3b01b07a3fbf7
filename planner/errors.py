"""Everything trainplan raises on purpose.

    TrainplanError                exit 1
    ├─ InputError                 exit 2   the user's file or flag: all problems of a file at once
    ├─ NoPlan                     exit 3   nothing fits: the closest candidate and the binding constraint
    ├─ SolverError                exit 4   PuLP or HiGHS failed or timed out
    ├─ TooSmall                   exit 3   this machine cannot hold what is to be run
    └─ EngineFailed               exit 1   a process that runs a plan failed or did not end

Law of messages: where: what is wrong, what was given; what is allowed; what to do. One line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class TrainplanError(Exception):
    """Base of every error a user may meet; ``exit_code`` is what the command line returns."""

    exit_code = 1


class InputError(TrainplanError):
    """Something the user wrote is wrong: a flag, a file, a key, a value."""

    exit_code = 2


class NoPlan(TrainplanError):
    """Nothing fits the request; the message names the binding constraint and the cheapest way out."""

    exit_code = 3


class SolverError(TrainplanError):
    """The solver failed or ran out of time."""

    exit_code = 4


class TooSmall(TrainplanError):
    """The machine at hand cannot hold what is to be run, however small it is made."""

    exit_code = 3


class EngineFailed(TrainplanError):
    """A process that runs a plan failed, or did not end."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``'; did you mean X?'``, or nothing where no known name is close.

    >>> did_you_mean("h10", ["h100", "a100-80"])
    '; did you mean h100?'
    >>> did_you_mean("zzz", ["h100"])
    ''
    """
    close = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


MOST_LISTED = 15  # problems that one message spells out


def listed(problems: Sequence[str]) -> str:
    """All problems of a file on one line, not without end.

    >>> listed(["a: wrong", "b: wrong"])
    '2 problems: a: wrong; b: wrong'
    """
    if len(problems) == 1:
        return problems[0]
    more = len(problems) - MOST_LISTED
    shown = "; ".join(problems[:MOST_LISTED]) + (f"; and {more} more" if more > 0 else "")
    return f"{len(problems)} problems: {shown}"
