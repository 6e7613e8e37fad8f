"""Parquet and CSV hold the frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

import resmon
from resmon.formats import tables
from tests.formats.conftest import STEPS


def test_parquet_holds_the_frames_to_the_last_bit(attempt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "AT_ONCE", 5)
    flight = resmon.load(attempt)
    written = {path.stem: path for path in tables.write(flight, tmp_path / "out", "parquet")}
    assert set(written) == {"steps", "blocks", "groups", "scalars", "bins"} - ({"bins"} if flight.bins().empty else set())
    for name in ("steps", "blocks", "groups", "scalars"):
        expected = getattr(flight, name)()
        found = pyarrow.parquet.read_table(written[name]).to_pandas(types_mapper=pd.ArrowDtype)
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_exact=True)
    # Null is what was not measured, NaN is a value.
    blocks = pyarrow.parquet.read_table(written["blocks"]).to_pandas(types_mapper=pd.ArrowDtype).set_index(["step", "block"])
    assert blocks.loc[(7, "h.2"), "gradient_norm"] is pd.NA
    assert np.isnan(blocks.loc[(7, "h.0"), "branch_rms"])
    assert np.isinf(blocks.loc[(7, "h.1"), "skip_rms"])


def test_csv_holds_the_same_numbers(attempt: Path, tmp_path: Path) -> None:
    flight = resmon.load(attempt)
    written = {path.stem: path for path in tables.write(flight, tmp_path / "out", "csv")}
    found = pd.read_csv(written["blocks"], keep_default_na=False, dtype=str).set_index(["step", "block"])
    assert len(found) == 3 * STEPS
    assert found.loc[("7", "h.2"), "gradient_norm"] == ""
    assert found.loc[("7", "h.0"), "branch_rms"] == "nan"
    assert found.loc[("7", "h.1"), "skip_rms"] == "inf"
    ratios = flight.blocks().set_index(["step", "block"])["branch_skip_ratio"]
    assert float(found.loc[("3", "h.1"), "branch_skip_ratio"]) == ratios.loc[(3, "h.1")]


def test_a_file_that_is_cut_short_replaces_nothing(attempt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flight = resmon.load(attempt)
    (tmp_path / "steps.parquet").write_text("what was there")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        list(tables.write(flight, tmp_path, "parquet"))
    assert (tmp_path / "steps.parquet").read_text() == "what was there"
