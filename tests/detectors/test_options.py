"""What can be tuned, and what is said of values that cannot be used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from resmon.detectors import DETECTORS, Options
from resmon.detectors.bank import Bank, options
from resmon.detectors.options import Tuned, tune
from tests import synthetic


class Thresholds(Options):
    factor: float = Field(default=3.0, gt=0, description="times the usual")
    windows: int = Field(default=4, ge=1, le=100, description="in a row")

    @model_validator(mode="after")
    def _together(self) -> Thresholds:
        if self.factor > 50 and self.windows > 50:
            raise ValueError("factor and windows cannot both be above 50")
        return self


TYPES = {"loud": Thresholds, "still": Options}


def test_what_is_not_given_is_at_its_default() -> None:
    made, wrong = tune(TYPES, {"loud": {"factor": 5}})
    assert wrong == []
    assert (made["loud"].everywhere.factor, made["loud"].everywhere.windows, made["still"].is_on) == (5.0, 4, True)


def test_of_several_patterns_the_last_that_matches_wins_for_each_threshold() -> None:
    sites = {"h.*": {"factor": 10}, "h.1": {"windows": 2}, "h.[12]": {"factor": 20}, "H.0": {"factor": 99}}
    tuned = tune(TYPES, {"loud": {"windows": 7, "sites": sites}})[0]["loud"]
    blocks = synthetic.sites(4)
    assert tuned.column("factor", blocks).tolist() == [10.0, 20.0, 20.0, 10.0]
    assert tuned.column("windows", blocks).tolist() == [7, 2, 7, 7]
    assert tuned.column("enabled", blocks).tolist() == [True] * 4
    assert [tuned.column(name, blocks).dtype.kind for name in ("factor", "windows", "enabled")] == ["f", "i", "b"]
    assert tuned.column("factor", blocks[:1]).tolist() == [10.0]  # other sites, asked for later


def test_off_everywhere_but_for_a_pattern_is_on() -> None:
    made, _ = tune(TYPES, {"loud": {"enabled": False, "sites": {"h.3": {"enabled": True}}}, "still": {"enabled": "no"}})
    assert made["loud"].is_on and not made["still"].is_on
    assert made["loud"].column("enabled", synthetic.sites(4)).tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lod": {}}, ["lod: there is no such detector; the nearest is loud"]),
        ({"zzz": {}}, ["zzz: there is no such detector; there are loud, still"]),
        ({"loud": 3}, ["loud: must be a table of its options (got 3)"]),
        ({"loud": {"factr": 3}}, ["loud.factr: there is no such option; the nearest is factor"]),
        ({"loud": {"factor": -1}}, ["loud.factor: should be greater than 0 (got -1)"]),
        ({"loud": {"factor": float("nan")}}, ["loud.factor: should be a finite number (got nan)"]),
        ({"loud": {"sites": 3}}, ["loud.sites: must be a table of patterns, each with a table of options (got 3)"]),
        ({"loud": {"sites": {"h.*": 3}}}, ["loud.sites.h.*: must be a table of options (got 3)"]),
        ({"loud": {"sites": {"h.*": {"sites": {}}}}}, ["loud.sites.h.*.sites: there is no such option; there are enabled"]),
        ({"loud": {"factor": 60, "windows": 60}}, ["loud: Value error, factor and windows cannot both be above 50; the defaults"]),
        (
            {"loud": {"windows": 0, "sites": {"a": {"windows": "x"}}}, "quiet": {}},
            ["quiet: there is", "loud.windows: should be", "loud.sites.a.windows: should be a valid integer"],
        ),
    ],
)
def test_all_that_is_wrong_is_told_at_once_and_left_at_its_default(values: dict[str, Any], expected: list[str]) -> None:
    made, wrong = tune(TYPES, values)
    assert len(wrong) == len(expected)
    assert all(str(one).startswith(start) for one, start in zip(wrong, expected, strict=True)), wrong
    assert made["loud"].everywhere == Thresholds()


def test_what_is_right_beside_what_is_wrong_is_in_force() -> None:
    made, _ = tune(TYPES, {"loud": {"factor": 5, "windows": 0, "sites": {"h.0": {"factor": 6, "x": 1}, "h.1": 3}}})
    assert made["loud"].everywhere == Thresholds(factor=5)
    assert made["loud"].column("factor", synthetic.sites(2)).tolist() == [6.0, 5.0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from([make.name for make in DETECTORS]) | st.text(max_size=5),
        JSON | st.dictionaries(st.sampled_from(["enabled", "sites", "ratio", "windows"]), JSON),
    )
)
def test_whatever_a_flight_says_a_bank_is_made_of_it(values: dict[str, Any]) -> None:
    bank = Bank(json.loads(json.dumps(values)))
    assert all(str(each) for each in bank.wrong)
    assert bank.step(synthetic.Training(synthetic.sites(2)).step(), synthetic.sites(2)) == []


@pytest.mark.parametrize("make", DETECTORS, ids=lambda make: make.name)
def test_every_option_of_every_detector_says_what_it_is_for(make: Any) -> None:
    fields = make.options.model_fields
    assert all(field.description for field in fields.values())
    made, wrong = options({make.name: {name: field.default for name, field in fields.items()}})
    assert wrong == []
    assert made[make.name].everywhere == make.options()
    assert isinstance(made[make.name], Tuned)
    assert made[make.name].column("enabled", synthetic.sites(2)).tolist() == [fields["enabled"].default] * 2
