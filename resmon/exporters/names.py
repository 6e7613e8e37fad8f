"""Label values: what an exposition can carry, and one label set for each row of a run's tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from resmon.exporters.view import Row, RunView

# Halves of surrogate pairs are not UTF-8 at all; Prometheus' text parser ends at a NUL.
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


def writable(value: str) -> str:
    """A label value without what no exposition can carry."""
    return _UNWRITABLE.sub("\ufffd", value)


def distinct(rows: Sequence[Row], models: Mapping[str, str]) -> tuple[Row, ...]:
    """The rows, renamed where two would have one label set: Prometheus would refuse the whole scrape.

    Distinct names can become the same where unwritable characters are replaced, or where two models were given one label.
    """
    seen: set[tuple[str, str]] = set()
    found = []
    for row in rows:
        model = writable(models.get(row.model, row.model))
        name = plain = writable(row.name)
        again = 2
        while (model, name) in seen:
            name = f"{plain}#{again}"
            again += 1
        seen.add((model, name))
        found.append(row if name == row.name else replace(row, name=name))
    return tuple(found)


def row_labels(run: RunView, rows: Sequence[Row]) -> list[dict[str, str]]:
    """Of each row of a run's table, those that all metrics of blocks share."""
    models = run.info.models
    return [
        {"run": writable(run.run), "model": writable(models.get(row.model, row.model)), "block": row.name}
        for row in distinct(rows, models)
    ]
