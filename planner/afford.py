"""What a budget and a deadline buy: the largest model, the most tokens, the longest context.

Each question asks for the largest size that the program still finds a plan for. Whether a plan exists need not be
monotone in a size (batches divide for one context and not for the next), so what is searched is part of the answer,
and the size found and the next one are both solved afresh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from .candidate import Candidate
from .decide import Search, short_of
from .documents import summary
from .efficiency import Figure
from .errors import InputError
from .model import Model
from .rebill import rebilled
from .request import LARGEST, Request
from .sizes import batches, between, last, sizes
from .units import HOUR_S, count
from .workload import Method

UNIT = 1024  # tokens by which a context is refined
MODEL, TOKENS, CONTEXT = "largest model", "most tokens", "longest context"

Searcher = Callable[[Model, Request, bool], Search]  # ..., whether to leave out what must break a limit
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The largest size of one kind that fits under one method, and what stops the next."""

    question: str
    method: Method
    candidate: Candidate | None  # the plan at the size found; None: not even the smallest fits
    stops: str  # what the next larger is short of, or why there is none
    next_size: str = ""  # the next larger, which has no plan
    tokens_note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        c = self.candidate
        row: dict[str, Any] = {"question": self.question, "method": self.method.value, "plan": None}
        if c is not None:
            workload = c.setting.workload
            row |= {
                "plan": summary(c),
                "model": workload.model.name,
                "parameters": workload.model.parameter_count,
                "mixture": _mixture(workload.model),
                "tokens": workload.tokens,
                "seq_len": workload.seq_len,
                "global_batch": workload.global_batch,
            }
        return row | {"next": self.next_size, "stops": self.stops, "tokens_note": self.tokens_note}


def _mixture(model: Model) -> bool:
    return any(block.mlp is not None and bool(block.mlp.experts) for block, _ in model.distinct_blocks)


@dataclass(frozen=True, kw_only=True)
class Afford:
    """Every answer to one budget."""

    request: Request
    model: Model | None
    answers: tuple[Answer, ...]
    skipped: tuple[str, ...] = ()  # models that cannot take sequences of this length

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema_version": 1,
            "status": "answered",
            "model": self.model.name if self.model else None,
            "answers": [answer.to_dict() for answer in self.answers],
            "batch_tokens": self.request.sequences * self.request.seq_len,
            "skipped": list(self.skipped),
            "tokens_rule": asdict(tokens_per_parameter()),
            "request": self.request.to_dict(),
        }


@cache
def tokens_per_parameter() -> Figure:
    """Tokens that a model trained from nothing is taken to need: configs/rules.toml.

    >>> tokens_per_parameter().value
    20.0
    """
    import tomllib
    from importlib.resources import files

    text = files("trainplan.configs").joinpath("rules.toml").read_text(encoding="utf-8")
    return Figure(**tomllib.loads(text)["tokens_per_parameter"]["compute_optimal"])


def check(wanted: Request) -> None:
    """An inverse question needs an amount of dollars.

    Raises:
        InputError: there is none.
    """
    if not math.isfinite(wanted.budget_usd):
        given = "no amount" if wanted.budget is None else wanted.budget
        raise InputError(f"--budget: got {given}; an amount of dollars is needed; write for example --budget 50000")


def afford_model(models: Sequence[Model], wanted: Request, searcher: Searcher, progress: Progress) -> Afford:
    """The largest of some models under each allowed method."""
    by_size = sorted(models, key=lambda m: -m.parameter_count)
    usable = [m for m in by_size if not m.max_positions or m.max_positions >= wanted.seq_len]
    answers = tuple(largest_model(usable, wanted, method, searcher, progress) for method in wanted.allowed)
    skipped = tuple(m.name for m in by_size if m not in usable)
    return Afford(request=wanted, model=None, answers=answers, skipped=skipped)


def afford_job(model: Model, wanted: Request, searcher: Searcher, progress: Progress) -> Afford:
    """The most tokens and the longest context of one model under each allowed method."""
    tokens = (most_tokens(model, wanted, method, searcher, progress) for method in wanted.allowed)
    contexts = (longest_context(model, wanted, method, searcher, progress) for method in wanted.allowed)
    return Afford(request=wanted, model=model, answers=(*tokens, *contexts))


def largest_model(
    models: Sequence[Model], wanted: Request, method: Method, searcher: Searcher, progress: Progress
) -> Answer:
    """The first model with a plan, from the largest down.

    Args:
        models: the largest first.
        wanted: budget, deadline, machines; tokens unless the rule gives them.
        method: what is trained.
        searcher: explores a model's request.
        progress: told of each model.
    """
    larger: Model | None = None
    for model in models:
        progress(f"largest model, {method.value}: {model.name}")
        asked = asked_of(model, wanted, method)
        found = searcher(model, asked, True).cheapest()
        if found:
            break
        larger = model
    else:
        found = None
    stops, next_size = "no larger model is in the catalog", ""
    if larger is not None:
        stops = short_of(searcher(larger, asked_of(larger, wanted, method), False)).brief
        next_size = f"{larger.name} ({count(larger.parameter_count)})"
    ruled = _by_rule(wanted, method)
    return Answer(
        question=MODEL,
        method=method,
        candidate=found[0] if found else None,
        stops=stops,
        next_size=next_size,
        tokens_note=f"{tokens_per_parameter().value:g} per parameter" if ruled else "",
    )


def asked_of(model: Model, wanted: Request, method: Method) -> Request:
    """The request of one model: tokens by the rule where all of it is trained and the user gave none."""
    asked = replace(wanted, methods=(method,))
    if not _by_rule(wanted, method):
        return asked
    return replace(asked, tokens=round(tokens_per_parameter().value * model.parameter_count))


def _by_rule(wanted: Request, method: Method) -> bool:
    return method is Method.FULL and "tokens" not in wanted.given


def most_tokens(model: Model, wanted: Request, method: Method, searcher: Searcher, progress: Progress) -> Answer:
    """The most whole optimizer steps that fit, as tokens: bisection on the explored space, then both ends afresh."""
    batch = wanted.sequences * wanted.seq_len
    most = LARGEST["tokens"] // batch

    def asked(steps: int) -> Request:
        return replace(wanted, methods=(method,), tokens=steps * batch)

    progress(f"most tokens, {method.value}")
    start = _steps_paid(searcher(model, replace(wanted, methods=(method,)), False), most)
    space = searcher(model, asked(max(1, start)), False)
    if start:
        start = last(lambda steps: _again(space, asked(steps), model).cheapest() is not None, start, most)

    @cache
    def afresh(steps: int) -> Candidate | None:
        progress(f"most tokens, {method.value}: {count(steps * batch)}")
        found = searcher(model, asked(steps), True).cheapest()
        return found[0] if found else None

    steps = last(lambda n: afresh(n) is not None, max(1, start), most)
    if steps == most:
        return Answer(question=TOKENS, method=method, candidate=afresh(steps), stops="no larger number is searched")
    return Answer(
        question=TOKENS,
        method=method,
        candidate=afresh(steps) if steps else None,
        stops=short_of(searcher(model, asked(steps + 1), False)).brief,
        next_size=f"{(steps + 1) * batch:,}",
    )


def _again(search: Search, wanted: Request, model: Model) -> Search:
    """The explored space with other tokens, of which the best plan is nearly the best there is: a place to look."""
    return replace(search, request=wanted, space=rebilled(search.space, wanted.workload(model)))


def _steps_paid(search: Search, most: int) -> int:
    """About how many steps the limits pay for, at the rate of the cheapest plan; where a bisection begins."""
    found = search.cheapest(limits=replace(search.any_money, deadline_s=math.inf))
    if not found:
        return 0
    cost, limits, steps = found[0].cost, search.limits, found[0].setting.workload.steps
    paid = min(limits.budget_usd / cost.usd if cost.usd else math.inf, limits.deadline_s / HOUR_S / cost.hours)
    return int(max(1, min(most, paid * steps)))


def longest_context(model: Model, wanted: Request, method: Method, searcher: Searcher, progress: Progress) -> Answer:
    """The longest sequence that fits: powers of two from the largest down, then multiples of 1,024 above the first."""
    batch = wanted.sequences * wanted.seq_len
    longest = min(model.max_positions or batch, batch, LARGEST["seq_len"])

    def asked(seq_len: int) -> list[Request]:
        same = replace(wanted, methods=(method,), seq_len=seq_len)
        return [replace(same, global_batch=number) for number in batches(batch, seq_len)]

    @cache
    def at(seq_len: int) -> Candidate | None:
        progress(f"longest context, {method.value}: {seq_len:,}")
        found = (_plan_for(model, each, searcher) for each in asked(seq_len))
        return next((candidate for candidate in found if candidate), None)

    found = next((size for size in sizes(longest) if at(size)), 0)
    if found == longest:
        reached = model.max_positions == longest
        stops = f"{model.name} has no more positions" if reached else "one sequence is a whole batch"
        return Answer(question=CONTEXT, method=method, candidate=at(found), stops=stops)
    larger = min(min(s for s in sizes(longest) if s > found), longest)
    if found and found % UNIT == 0:
        units = between(lambda n: at(n * UNIT) is not None, found // UNIT, -(-larger // UNIT))
        found, larger = units * UNIT, min((units + 1) * UNIT, larger)
    return Answer(
        question=CONTEXT,
        method=method,
        candidate=at(found) if found else None,
        stops=_short_at(model, asked(larger)[-1], searcher),
        next_size=f"{larger:,}",
    )


def _plan_for(model: Model, asked: Request, searcher: Searcher) -> Candidate | None:
    try:
        found = searcher(model, asked, True).cheapest()
    except InputError:  # a fixed number of GPUs that such batches do not fill
        return None
    return found[0] if found else None


def _short_at(model: Model, asked: Request, searcher: Searcher) -> str:
    try:
        return short_of(searcher(model, asked, False)).brief
    except InputError as error:
        return str(error)
