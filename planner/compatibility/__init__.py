"""What can be combined, in which versions: configs/compatibility.toml, which names the source of every row.

refused     for a search: the refusal that facts meet, in any version
answer      for people: refused, broken, runs, documented or untried, with the rows that decide
matrix      answers of features at ZeRO 0 to 3
"""

from __future__ import annotations

from .answer import MEANING, Answer, Status, answer
from .matrix import STAGES, Line, matrix
from .refusing import refusals, refused
from .table import Change, Feature, Refusal, Trial, stated_facts, table, words
from .versions import Versions, given, installed, pinned

__all__ = [
    "MEANING",
    "STAGES",
    "Answer",
    "Change",
    "Feature",
    "Line",
    "Refusal",
    "Status",
    "Trial",
    "Versions",
    "answer",
    "given",
    "installed",
    "matrix",
    "pinned",
    "refusals",
    "refused",
    "stated_facts",
    "table",
    "words",
]
