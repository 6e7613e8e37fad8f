"""Names and units in OpenTelemetry."""

from __future__ import annotations

import re

import pytest

from resmon.catalogue import CATALOGUE
from resmon.exporters.conventions import CONVENTIONS, COUNTED, SUBJECTS, UTILIZATION, Convention

# Of OpenTelemetry's rules for Prometheus ("Metric metadata" of the compatibility specification, and the collector's translator).
SUFFIXES = {"s": "seconds", "By": "bytes", "Cel": "celsius", "W": "watts"}


def in_prometheus(convention: Convention) -> str:
    """What a collector calls it: dots become underscores, then the unit, where the name does not have it, and `_total`."""
    words = re.split("[^a-zA-Z0-9]+", convention.name)
    suffix = SUFFIXES.get(convention.unit)
    if suffix and suffix not in words:
        words.append(suffix)
    if convention.unit == "1" and convention.metric.kind == "gauge":
        words = [word for word in words if word != "ratio"] + ["ratio"]
    if convention.metric.kind == "counter":
        words = [word for word in words if word != "total"] + ["total"]
    return "_".join(words)


@pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=CONVENTIONS)
def test_through_a_collector_a_metric_has_the_catalogues_name(convention: Convention) -> None:
    """So that dashboards, alerts and objectives hold for it."""
    assert in_prometheus(convention) == convention.metric.name


def test_names_are_as_the_conventions_have_them() -> None:
    names = [convention.name for convention in CONVENTIONS.values()]
    assert len(set(names)) == len(names) == len(CATALOGUE)
    assert all(re.fullmatch(r"resmon(\.[a-z][a-z0-9]*(_[a-z0-9]+)*)+", name) for name in names)
    assert not [name for name in names for other in names if other.startswith(f"{name}.")]  # no name is a namespace of others
    counters = [convention.name for convention in CONVENTIONS.values() if convention.metric.kind == "counter"]
    assert counters and not [name for name in counters if name.endswith("_total")]


def test_units_are_ucums() -> None:
    for name, convention in CONVENTIONS.items():
        assert convention.unit in ("", "1", *SUFFIXES) or re.fullmatch(r"\{[a-z_]+\}", convention.unit), name
        assert (convention.unit in SUFFIXES) == bool(convention.metric.unit), name


def test_the_tables_hold_nothing_that_is_gone() -> None:
    assert set(COUNTED) | set(UTILIZATION) <= set(CONVENTIONS)
    used = {convention.name.split(".")[1] for convention in CONVENTIONS.values() if convention.name.count(".") > 1}
    assert used == set(SUBJECTS)


def test_what_is_counted_has_a_unit_that_says_so() -> None:
    assert not [name for name, convention in CONVENTIONS.items() if convention.metric.kind == "counter" and not convention.unit]
