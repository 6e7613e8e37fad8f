"""Columns of Arrow, and frames of them in pandas, which is imported when the first is made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from resmon.flight.schema import nanoseconds
from resmon.records import Bools, Finding, Incident, Ints

if TYPE_CHECKING:
    import pandas as pd

Event = TypeVar("Event", Finding, Incident)


def column(values: npt.NDArray[Any], there: Bools) -> pa.Array:
    return pa.array(np.ascontiguousarray(values), mask=~there)


def labels(codes: Ints, names: Sequence[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(names, pa.string())).cast(pa.string())


def utf8(values: Iterable[str]) -> pa.Array:
    """Texts from files of JSON, which can hold what no UTF-8 can."""
    return pa.array([value.encode("utf-8", "replace").decode() for value in values], pa.string())


def times(values: Iterable[float | None]) -> pa.Array:
    numbers = [None if value is None else nanoseconds(value) for value in values]
    return pa.array(numbers, pa.int64()).cast(pa.timestamp("ns", "UTC"))


def of_values(kind: type[Event], values: Sequence[Event]) -> pd.DataFrame:
    """One row each, one column per field."""
    rows = [asdict(value) | {"evidence": json.dumps(value.evidence)} for value in values]
    types = {"int": pa.int64(), "int | None": pa.int64(), "float": pa.float64()}
    fields = {name: types.get(str(field.type), pa.string()) for name, field in kind.__dataclass_fields__.items()}
    return frame({name: pa.array([row[name] for row in rows], type_) for name, type_ in fields.items()})


def frame(columns: dict[str, pa.Array]) -> pd.DataFrame:
    return as_pandas(pa.table(columns))


def as_pandas(table: pa.Table) -> pd.DataFrame:
    import pandas as pd

    frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
    return frame
