"""A flight's tables as files: Parquet, or CSV for what reads nothing else.

One file a table, in the columns of `resmon.load`; what is nested there is JSON. In Parquet null is what was not measured and NaN is
NaN; in CSV these are an empty field and `nan`, and infinity is `inf`. Blocks are written a thousand steps at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from resmon.flight.frames import Flight

if TYPE_CHECKING:
    import pandas as pd

AT_ONCE = 1000  # steps

TABLES: tuple[tuple[str, Callable[[Flight], pd.DataFrame]], ...] = (
    ("steps", Flight.steps),
    ("groups", Flight.groups),
    ("scalars", Flight.scalars),
    ("findings", Flight.findings),
    ("incidents", Flight.incidents),
    ("checkpoints", Flight.checkpoints),
    ("targets", Flight.targets),
    ("bins", Flight.bins),
)


def write(flight: Flight, folder: Path, form: Literal["parquet", "csv"]) -> Iterator[Path]:
    """Write all tables that have a row into `folder`; gives each file when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = flight.steps()["step"].to_numpy(np.int64)
    pieces = (flight.blocks(steps=steps[i : i + AT_ONCE]) for i in range(0, len(steps), AT_ONCE))
    tables: list[tuple[str, Iterator[pd.DataFrame]]] = [("blocks", pieces)]
    tables += [(name, iter([table(flight)])) for name, table in TABLES]
    for name, frames in tables:
        path = folder / f"{name}.{form}"
        if _write(frames, path, form):
            yield path


def _write(frames: Iterator[pd.DataFrame], path: Path, form: Literal["parquet", "csv"]) -> bool:
    """Whether there was a row. A file that was there before is replaced when the new one is whole."""
    partial = path.with_name(f".{path.name}.part")
    writer: Any = None
    for frame in frames:
        if frame.empty:
            continue
        table = pa.Table.from_pandas(frame.assign(**{name: _json(frame[name]) for name in _nested(frame)}), preserve_index=False)
        if writer is None:
            make = pyarrow.parquet.ParquetWriter if form == "parquet" else pyarrow.csv.CSVWriter
            schema = table.schema
            writer = make(partial, schema)
        writer.write_table(table.cast(schema))
    if writer is None:
        return False
    writer.close()
    partial.replace(path)
    return True


def _nested(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame if any(isinstance(value, (dict, list, tuple)) for value in frame[name].iloc[:1])]


def _json(column: pd.Series) -> list[str]:
    return [json.dumps(value, default=str) for value in column]
