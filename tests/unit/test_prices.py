"""planner/prices.py and price_csv.py: a user's own list as TOML and CSV, what is wrong with it and on which line."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainplan.planner.catalog import find_gpu, offers
from trainplan.planner.errors import InputError
from trainplan.planner.hardware import Tier
from trainplan.planner.price_csv import FIELDS, read_csv, write_csv
from trainplan.planner.prices import LARGEST_PRICES_BYTES, read_prices
from trainplan.planner.terms import Terms

from .test_billing import MINE

HEADER = "cloud,instance,gpu,gpus,tier,usd_per_hour,region,date,source"
ROW = "x,big,h100,8,on-demand,20,here,2026-11-01,a quote"


def test_the_built_in_offers_survive_csv() -> None:
    """Written and read back, every offer is what it was."""
    again = read_csv(write_csv(offers()), where="x.csv", find=find_gpu)
    assert len(again) == len(offers())
    for before, after in zip(offers(), again, strict=True):
        assert {k: getattr(before.node, k) for k in before.node.__slots__} == pytest.approx(
            {k: getattr(after.node, k) for k in after.node.__slots__}
        )
        assert replace(after, node=before.node) == before


@given(
    terms=st.builds(
        Terms,
        billing_step_hours=st.sampled_from([1.0, 24.0]),
        maximum_hours=st.none() | st.floats(1, 1e6),
        minimum_nodes=st.integers(1, 9),
        upfront=st.booleans(),
        egress_usd_per_gib=st.none() | st.floats(0.001, 10),
        source=st.sampled_from(["", "a page, dated"]),
    ),
    usd=st.floats(0.01, 1e6),
)
def test_terms_survive_csv(terms: Terms, usd: float) -> None:
    """Whatever the terms."""
    offer = replace(offers()[0], tier=Tier.CAPACITY_BLOCK, terms=terms, usd_per_hour=usd)
    (again,) = read_csv(write_csv([offer]), where="x.csv", find=find_gpu)
    assert (again.terms, again.usd_per_hour, again.tier) == (terms, usd, Tier.CAPACITY_BLOCK)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "mine.csv: line 1: no column cloud, instance"),
        (HEADER + ",price\n", "line 1: unknown column price"),
        (HEADER + ",gpu\n", "line 1: twice gpu"),
        (f"{HEADER}\n{ROW.replace('h100', 'h1000')}", "line 2: gpu: not in the catalog, got 'h1000'"),
        (
            f"{HEADER}\n{ROW}\n{ROW.replace(',20,', ',0,')}",
            "line 3: usd_per_hour: got 0.0; allowed is a",
        ),
        (f"{HEADER}\n{ROW.replace(',20,', ',free,')}", "line 2: usd_per_hour: got 'free'"),
        (f"{HEADER}\n{ROW.replace(',20,', ',nan,')}", "line 2: usd_per_hour: got nan"),
        (f"{HEADER}\n{ROW.replace(',8,', ',0.5,')}", "line 2: gpus: got '0.5'"),
        (f"{HEADER}\n{ROW.replace('2026-11-01', '')}", "line 2: date is missing"),
        (f"{HEADER}\n{ROW},more", "line 2: unknown key '10 cells for 9 columns'"),
        (f"{HEADER}\n{ROW.replace('on-demand', 'reserved')}", "line 2: a reserved price needs terms with commitment"),
        (f"{HEADER}\n{ROW.replace('on-demand', 'gift')}", "line 2: tier: got 'gift'; allowed is on-demand, spot"),
        (f"{HEADER},currency\n{ROW},EUR", "line 2: currency: got 'EUR'; allowed is USD"),
        (f'{HEADER}\n"{ROW}', "not CSV"),
        (HEADER, "no offers; at least one price is needed"),
    ],
)
def test_csv_refuses_with_the_line(tmp_path: Path, text: str, problem: str) -> None:
    """One line that names the file, its line, what is there and what is allowed."""
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_prices(str(path))
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            'terms = "month"',
            'terms = "monht"',
            "line 15, offers 1 ('p5e.48xlarge'): reserved_terms 'monht' is",
        ),
        ('reserved_terms = "month"', "", "a reserved price needs terms with commitment_hours"),
        ('"aws-capacity-block"', '"month"', "a capacity block's price needs terms with billing_step_hours"),
        ("maximum_nodes = 4", "maximum_nodes = 1", "terms.short: maximum_nodes 1 is below minimum_nodes 2"),
        ("commitment_hours = 720", "long_after_hours = 5", "terms.month: long_after_hours, long_step_hours and"),
        ("commitment_hours = 720", "comitment_hours = 720", "unknown key 'comitment_hours'; did you mean commitment"),
        ('cloud = "aws"', "", "cloud: got None"),
        ("\n[sources.quote]", 'currency = "EUR"\n[sources.quote]', "currency: got 'EUR'; allowed is USD"),
        ("gpus = 8", "gpus = = 8", "not TOML"),
        ('reserved_region = "us-east-2"', "", "reserved_usd_per_hour needs reserved_region"),
    ],
)
def test_toml_refuses_with_the_line(tmp_path: Path, old: str, new: str, problem: str) -> None:
    """As configs/offers, with the line on which the row begins."""
    path = tmp_path / "mine.toml"
    assert old in MINE
    path.write_text(MINE.replace(old, new))
    with pytest.raises(InputError) as caught:
        read_prices(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    """Missing, a folder, not text, too large."""
    for path, problem in (
        (tmp_path / "gone.toml", "cannot be read, No such file"),
        (tmp_path, "not a file"),
        (tmp_path / "binary.toml", "cannot be read, not UTF-8"),
        (tmp_path / "large.toml", "larger than"),
    ):
        if path.name == "binary.toml":
            path.write_bytes(b"\xff\xfe")
        if path.name == "large.toml":
            with path.open("wb") as file:
                os.truncate(file.fileno(), LARGEST_PRICES_BYTES + 1)
        with pytest.raises(InputError, match=problem):
            read_prices(str(path))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """What is kept of a file is kept for one state of it."""
    path = tmp_path / "mine.csv"
    path.write_text(f"{HEADER}\n{ROW}\n")
    assert read_prices(str(path))[0].usd_per_hour == 20
    path.write_text(f"{HEADER}\n{ROW.replace(',20,', ',21.5,')}\n")
    assert read_prices(str(path))[0].usd_per_hour == 21.5


def test_every_column_is_known() -> None:
    """What is written is what is read."""
    header = write_csv([]).strip().split(",")
    assert set(FIELDS) < set(header)
