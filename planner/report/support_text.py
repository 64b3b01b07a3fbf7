"""The answers of `trainplan support` as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from textwrap import fill
from typing import Any

from ..compatibility import MEANING, STAGES, Answer, Line, Refusal, Status, Trial, Versions, table, words
from .table import table as text_table

WIDTH = 120  # columns of a paragraph


def matrix_text(lines: Iterable[Line], versions: Versions) -> str:
    """Features against stages, the legend, and what is known of single versions."""
    everything = tuple(lines)
    untried = [line.name for line in everything if all(a.status is Status.UNTRIED for a in line.answers)]
    known = [line for line in everything if line.name not in untried]
    rows = [(line.name, *(answer.status.value for answer in line.answers)) for line in known]
    header = ("", *(f"ZeRO {stage}" for stage in STAGES))
    legend = text_table((status.value, meaning) for status, meaning in MEANING.items())
    parts = (
        versions_text(versions),
        text_table(rows, header=header),
        _wrapped(f"untried at every stage: {', '.join(untried)}", indent=""),
        legend,
        f"Known of single versions:\n{known_text()}",
        "One combination, with reason and source: trainplan support zero-3 qlora",
    )
    return "\n\n".join(parts)


def versions_text(versions: Versions) -> str:
    """What the answer is for.

    >>> versions_text({"deepspeed": "0.19.8", "torch": "2.13.0"})
    'deepspeed 0.19.8, torch 2.13.0; without transformers, accelerate, peft, bitsandbytes, datasets'
    """
    missing = [package for package in table().pinned if package not in versions]
    named = ", ".join(f"{package} {version}" for package, version in versions.items())
    return f"{named or 'nothing'}; without {', '.join(missing)}" if missing else named


def known_text() -> str:
    """What holds in some versions alone, refusals first; their sources are in `matrix_document`."""
    refused = [f"{_limits(row.versions)}: {row.what()}: {row.reason}; use {row.instead}" for row in _limited()]
    changed = [f"{row.package} {row.versions}: {row.what}; {row.advice}" for row in table().changes]
    return "\n".join(_wrapped(line) for line in (*refused, *changed))


def _wrapped(line: str, indent: str = "  ") -> str:
    """A paragraph of lines that fit a window, hanging."""
    return fill(line, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)


def _limited() -> list[Refusal]:
    return [row for row in table().refusals if row.versions]


def _limits(versions: Mapping[str, str]) -> str:
    """Specifiers for people.

    >>> _limits({"peft": "<0.10"})
    'peft <0.10'
    """
    return ", ".join(f"{package} {specifier}" for package, specifier in versions.items())


def answer_text(name: str, answer: Answer) -> str:
    """One combination: the verdict, and the rows that decided."""
    lines = [f"{name}: {answer.status.value}"]
    lines += [line for row in answer.refusals for line in _refusal_lines(row)]
    lines += [_wrapped(_trial_line(row)) for row in answer.trials]
    lines += [_wrapped(f"{_trial_line(row)}; not in these versions") for row in answer.elsewhere]
    if answer.status is Status.UNTRIED:
        lines.append(_wrapped(MEANING[Status.UNTRIED]))
        lines += [_wrapped(f"part of it runs: {facts_text(part)}") for part in answer.parts]
    return "\n".join(lines)


def _refusal_lines(row: Refusal) -> tuple[str, ...]:
    reason = _wrapped(f"{row.what()}{row.known_for()}: {row.reason}")
    return (reason, *(_wrapped(line, indent="    ") for line in (f"source: {row.source}", f"instead: {row.instead}")))


def _trial_line(row: Trial) -> str:
    limits = f" ({_limits(row.versions)})" if row.versions else ""
    proof = f"; {row.proof[0]}" if row.proof else ""
    return f"{row.status}: {row.source}, {row.date}{limits}{proof}"


def facts_text(facts: Mapping[str, object]) -> str:
    """Facts for people.

    >>> facts_text({"zero_stage": 3, "method": "qlora"})
    'zero stage 3, method qlora'
    """
    return ", ".join(words(key, (value,)) for key, value in facts.items())


def answer_document(name: str, answer: Answer) -> dict[str, Any]:
    """One combination as JSON."""
    return {
        "combination": name,
        "facts": dict(answer.facts),
        "status": answer.status.value,
        "legal": answer.legal,
        "refusals": [refusal_document(row) for row in answer.refusals],
        "trials": [trial_document(row) for row in answer.trials],
        "other_versions": [trial_document(row) for row in answer.elsewhere],
        "parts_that_run": [dict(part) for part in answer.parts],
    }


def refusal_document(row: Refusal) -> dict[str, Any]:
    """One refusal as JSON."""
    texts = {"reason": row.reason, "source": row.source, "instead": row.instead}
    return {"combination": row.what(), "versions": dict(row.versions), **texts}


def trial_document(row: Trial) -> dict[str, Any]:
    """One trial as JSON."""
    return {
        "status": row.status,
        "versions": dict(row.versions) or dict(table().pinned),
        "source": row.source,
        "date": row.date,
        "proof": list(row.proof),
    }


def matrix_document(lines: Iterable[Line], versions: Versions) -> dict[str, Any]:
    """Everything as JSON."""
    return {
        "schema_version": 1,
        "versions": dict(versions),
        "matrix": [
            {"name": line.name, **{f"zero-{s}": a.status.value for s, a in zip(STAGES, line.answers, strict=True)}}
            for line in lines
        ],
        "known": [refusal_document(row) for row in _limited()],
        "changes": [
            {
                "package": row.package,
                "versions": row.versions,
                "what": row.what,
                "advice": row.advice,
                "source": row.source,
            }
            for row in table().changes
        ],
    }
