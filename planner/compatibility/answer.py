"""One combination in given versions: refused, broken, shown to run, documented, or untried."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from .refusing import met
from .table import Facts, Refusal, Trial, stated_facts, table
from .versions import Versions, hold, pinned


class Status(StrEnum):
    """What is known of a combination, the most certain knowledge first."""

    REFUSED = "refused"
    BROKEN = "broken"
    RUNS = "runs"
    DOCUMENTED = "documented"
    UNTRIED = "untried"


MEANING = {
    Status.RUNS: "trained here on a real engine, on the CPU; a test of the suite repeats it",
    Status.DOCUMENTED: "a source says that it runs; not run here",
    Status.UNTRIED: "nothing refuses it, and nothing shows that it runs",
    Status.REFUSED: "cannot work, does nothing, or was not shown to work: never planned",
    Status.BROKEN: "refused in these versions alone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is known of one combination, and the rows that say so."""

    facts: Facts
    versions: Versions
    status: Status
    refusals: tuple[Refusal, ...] = ()
    trials: tuple[Trial, ...] = ()  # of this combination, in these versions
    elsewhere: tuple[Trial, ...] = ()  # of this combination, in other versions
    parts: tuple[dict[str, object], ...] = ()  # largest combinations within it that are shown to run

    @property
    def legal(self) -> bool:
        """Whether nothing refuses it."""
        return not self.refusals


def answer(facts: Facts, *, versions: Versions | None = None) -> Answer:
    """What is known of a combination.

    Args:
        facts: stated by strategies, with a zero_stage; what is not stated is as usual.
        versions: by package; left out, the pinned ones.

    >>> answer({"zero_stage": 1, "offload_optimizer": "nvme"}).status
    <Status.REFUSED: 'refused'>
    >>> answer({"zero_stage": 3, "method": "qlora"}).status
    <Status.RUNS: 'runs'>
    """
    versions = pinned() if versions is None else versions
    hits = tuple(row for row in met({**table().usual, **facts}) if not row.versions or hold(row.versions, versions))
    if hits:
        limited = all(row.versions for row in hits)
        status = Status.BROKEN if limited else Status.REFUSED
        return Answer(facts=facts, versions=versions, status=status, refusals=hits)
    about = tuple(trial for trial in table().trials if trial.shows(facts))
    here = tuple(trial for trial in about if _known_for(trial, facts, versions))
    return Answer(
        facts=facts,
        versions=versions,
        status=_status(here),
        trials=here,
        elsewhere=tuple(trial for trial in about if trial not in here),
        parts=() if here else _parts(facts, versions),
    )


def _known_for(trial: Trial, facts: Facts, versions: Versions) -> bool:
    """Whether the trial was of these versions; what runs here runs with the pinned ones."""
    exact = {package: f"=={version}" for package, version in pinned().items() if _matters(package, facts)}
    return hold(trial.versions or exact, versions)


def _matters(package: str, facts: Facts) -> bool:
    """Whether a combination runs code of a package.

    >>> _matters("peft", {"zero_stage": 3}), _matters("peft", {"method": "lora"}), _matters("torch", {})
    (False, True, True)
    """
    needed = table().needed
    return package not in needed or any(facts.get(key) in values for key, values in needed[package].items())


def _status(trials: Iterable[Trial]) -> Status:
    found = {trial.status for trial in trials}
    return next((s for s in (Status.RUNS, Status.DOCUMENTED) if s in found), Status.UNTRIED)


def _parts(facts: Facts, versions: Versions) -> tuple[dict[str, object], ...]:
    """The largest combinations within these facts that run, with what they leave out."""
    found = [
        part
        for trial in table().trials
        for part in trial.parts_of(facts)
        if trial.status == Status.RUNS and _known_for(trial, part, versions)
    ]
    largest = max((len(stated_facts(part)) for part in found), default=0)
    unique = {tuple(sorted(part.items())): part for part in found if len(stated_facts(part)) == largest > 0}
    return tuple(unique.values())
