"""Thinned history as tables: which bins to take, and what they hold (bins.py makes them)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from resmon.flight import arrow
from resmon.flight.schema import STATISTICS, Records, RowFormat, present, texts
from resmon.records import GROUP_VALUES, RUN_VALUES, Bools, Ints


def finest(levels: Sequence[tuple[Ints, Ints]]) -> list[Bools]:
    """Which bins of each level to take so that they cover as much as they can, without overlap, as finely as they can.

    Bins nest, and of the finer ones the oldest went: so the newest part is taken from the finest level, what lies before its first
    bin from the next, and of the finer one that which such a coarser bin holds as well is left out.
    """
    keep: list[Bools] = []
    covered = np.iinfo(np.int64).max  # from here on
    for first, last in levels:
        take = first < covered
        if take.any():
            held = last[take].max()
            for finer, (begin, _) in zip(keep, levels, strict=False):
                finer &= begin > held
            covered = int(first[take].min())
        keep.append(take)
    return keep


def bins(records: Records, names: Sequence[str], **more: pa.Array) -> pa.Table:
    """The bins' values that there is one of each of."""
    columns = {name: pa.array(records[name].copy()) for name in ("first_step", "last_step")}
    for name in ("first_time", "last_time"):
        columns[name] = pa.array(records[name].copy()).cast(pa.timestamp("ns", "UTC"))
    if "steps" in (records.dtype.names or ()):
        columns["steps"] = pa.array(records["steps"].copy())
    columns |= more
    for name in names:
        for statistic in STATISTICS:
            field = f"{name}_{statistic}"
            columns[field] = arrow.column(records[field].copy(), present(records, field))
    return pa.table(columns)


def of_run(_: RowFormat, records: Records) -> pa.Table:
    return bins(records, RUN_VALUES)


def of_groups(form: RowFormat, records: Records) -> pa.Table:
    return pa.table(of_lists(records, "group", form.groups, GROUP_VALUES))


def of_lists(records: Records, of: str, labels: Sequence[str], names: Sequence[str]) -> dict[str, pa.Array]:
    """One row per bin and item of lists: the columns."""
    table = bins(records, ()).take(pa.array(np.repeat(np.arange(len(records)), len(labels))))
    columns = {name: table[name] for name in table.column_names}
    columns[of] = arrow.labels(np.tile(np.arange(len(labels)), len(records)), labels)
    for name in names:
        for statistic in STATISTICS:
            field = f"{of}_{name}_{statistic}"
            columns[f"{name}_{statistic}"] = arrow.column(records[field].reshape(-1), present(records, field).reshape(-1))
    return columns


def of_scalars(_: RowFormat, records: Records) -> pa.Table:
    return bins(records, ("value",), name=pa.array(texts(records, "name"), pa.string()))


def placed(table: pa.Table, rank: int, level: int) -> pa.Table:
    rows = table.num_rows
    table = table.add_column(0, "level", pa.array(np.full(rows, level)))
    return table.add_column(0, "rank", pa.array(np.full(rows, rank)))
