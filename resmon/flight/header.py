"""The schema message that a segment begins with, as pyarrow makes it: by it any reader of Arrow knows what the columns are."""

from __future__ import annotations

from functools import lru_cache

import pyarrow as pa

from resmon.flight.schema import Column, RowFormat

_TYPES = {
    "int": pa.int64(),
    "float": pa.float64(),
    "time": pa.timestamp("ns", "UTC"),
    "bool": pa.bool_(),
    "text": pa.utf8(),
    "checksum": pa.uint32(),
}


@lru_cache(maxsize=16)
def header(form: RowFormat) -> bytes:
    """The message for a segment of such rows."""
    fields = [pa.field(column.name, _type(column), column.nullable and column.length is None) for column in form.columns]
    message: bytes = pa.schema(fields, form.metadata).serialize().to_pybytes()
    return message


def _type(column: Column) -> pa.DataType:
    value = _TYPES[column.type]
    return value if column.length is None else pa.list_(pa.field("item", value, column.nullable))
