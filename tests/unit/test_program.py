"""planner/program.py: a program small enough to solve by hand, its certificate, its refusals."""

from __future__ import annotations

import math

import pytest
from trainplan.planner import program
from trainplan.planner.errors import SolverError
from trainplan.planner.program import Box, Column, Limits, Line, Objective, Part, Row, Status, shortage, solve


def column(key: int, *, gpus: int, usd_per_s: float, limit: float = 100.0, groups: int = 0) -> Column:
    """10 GiB less 2 a layer and 1 a sub-group; 5 s and 1 more a layer and 3 a sub-group."""
    return Column(
        key=key,
        gpus=gpus,
        simplicity=1,
        usd_per_s=usd_per_s,
        run_s_per_s=10.0,
        box=Box(0, 4, 0, groups),
        rows=(Row("gpu", Line(10.0, -2.0, -1.0), limit),),
        parts=(Part(1, (Line(5.0, 1.0, 3.0),)),),
    )


def yes(*_: int) -> bool:
    """The exact ledger agrees."""
    return True


def test_the_fewest_layers_that_fit() -> None:
    """10 - 2 k <= 5 needs k = 3: 5 + 3 s at 2 dollars a second."""
    choice = solve([column(0, gpus=1, usd_per_s=2.0, limit=5.0)], Limits(), yes)
    assert choice is not None
    assert (choice.layers, choice.groups) == (3, 0)
    assert choice.certificate.value == pytest.approx(2.0 * (5 + 3))


def test_layers_before_dearer_groups() -> None:
    """Two layers free 4 GiB for 2 s, two groups 2 GiB for 6 s: 10 - 2 k - g <= 1 takes four layers and one group."""
    choice = solve([column(0, gpus=1, usd_per_s=1.0, limit=1.0, groups=5)], Limits(), yes)
    assert choice is not None
    assert (choice.layers, choice.groups) == (4, 1)


def test_the_cheaper_column_wins_and_time_wins_when_asked() -> None:
    """Same seconds, other prices; a deadline leaves the one that needs no layers."""
    slow, fast = column(0, gpus=1, usd_per_s=1.0, limit=5.0), column(1, gpus=8, usd_per_s=3.0)
    chosen = {
        objective: found.key
        for objective in Objective
        if (found := solve([slow, fast], Limits(), yes, objective)) is not None
    }
    assert chosen == {Objective.COST: 0, Objective.TIME: 1, Objective.GPUS: 0}
    hurried = solve([slow, fast], Limits(deadline_s=10 * 6.0), yes)
    assert hurried is not None
    assert hurried.key == 1


def test_a_refuted_point_is_cut_off() -> None:
    """The exact ledger refuses k = 3; the next best is k = 4, and the certificate says there was a cut."""
    asked: list[int] = []

    def dispose(_key: int, layers: int, _groups: int) -> bool:
        asked.append(layers)
        return layers != 3

    choice = solve([column(0, gpus=1, usd_per_s=1.0, limit=5.0)], Limits(), dispose)
    assert choice is not None
    assert asked == [3, 4]
    assert choice.layers == 4
    assert choice.certificate.cuts == 1


def test_all_points_refuted_is_no_plan() -> None:
    """Five values of k, none of them true."""
    assert solve([column(0, gpus=1, usd_per_s=1.0)], Limits(), lambda *_: False) is None


def test_too_many_refutations_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program gives up aloud, not silently with a wrong answer."""
    monkeypatch.setattr(program, "MAX_CUTS", 2)
    with pytest.raises(SolverError, match="refuted"):
        solve([column(0, gpus=1, usd_per_s=1.0)], Limits(), lambda *_: False)


def test_limits_are_hard() -> None:
    """A cent below the least cost there is no plan; nor with fewer GPUs than the column has."""
    only = [column(0, gpus=4, usd_per_s=2.0)]
    assert solve(only, Limits(budget_usd=9.99), yes) is None
    assert solve(only, Limits(budget_usd=10.01), yes) is not None
    assert solve(only, Limits(max_gpus=3), yes) is None


def test_the_certificate() -> None:
    """Optimal, no gap, counted."""
    choice = solve([column(k, gpus=1, usd_per_s=1.0 + k) for k in range(3)], Limits(), yes, considered=70)
    assert choice is not None
    certificate = choice.certificate
    assert certificate.status is Status.OPTIMAL
    assert certificate.solver == "HiGHS"
    assert certificate.bound == pytest.approx(certificate.value)
    assert (certificate.columns, certificate.in_program, certificate.cuts) == (70, 3, 0)


def test_shortage_names_the_constraint() -> None:
    """Even four layers leave 2 GiB where 1 is allowed: 1 GiB short; half the dollars: the budget is."""
    tight = shortage([column(0, gpus=1, usd_per_s=1.0, limit=1.0)], Limits())
    assert tight is not None
    assert (tight.constraint, tight.limit) == ("gpu", 1.0)
    assert tight.short == pytest.approx(1.0)
    poor = shortage([column(0, gpus=1, usd_per_s=2.0)], Limits(budget_usd=5.0))
    assert poor is not None
    assert poor.constraint == "budget"
    assert poor.short == pytest.approx(2.0 * 5 - 5.0)


def test_the_solver_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output belongs to the plan: JSON may be read from it."""
    solve([column(0, gpus=1, usd_per_s=1.0)], Limits(), yes)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_the_scale_of_money_changes_nothing(scale: float) -> None:
    """Cents and billions choose alike."""
    space = [column(0, gpus=1, usd_per_s=2.0 * scale, limit=5.0), column(1, gpus=2, usd_per_s=3.0 * scale)]
    choice = solve(space, Limits(), yes)
    assert choice is not None
    assert choice.key == 1  # 3 x 5 < 2 x 8
    assert math.isclose(choice.certificate.value, 15 * scale, rel_tol=1e-6)
