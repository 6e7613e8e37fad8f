"""What W&B has written offline, as its own package reads it."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from resmon.formats.story import Story
from resmon.records import MAGNITUDE_NONFINITE
from tests.formats.test_story import everything

pytestmark = pytest.mark.slow  # its service takes some seconds to start and to end


def records(data: bytes) -> Iterator[bytes]:
    """The records of its file, a log as LevelDB writes it: blocks of 32 KiB, each part with checksum, length and kind before it."""
    whole, at = b"", 7  # after the file's own header
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def history(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Its rows, and the configuration."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    rows, configuration = [], {}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item})
        if record.WhichOneof("record_type") == "run":
            configuration |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return rows, configuration


def test_an_offline_run_has_every_value(attempt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from resmon.formats.wandb import Wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    told = Story(attempt)
    moments = everything(told)
    sink = Wandb(tmp_path, told.info)
    for moment in moments:
        sink.add(moment, blocks=moment.step % 4 == 3)
    sink.close()
    deadline = time.monotonic() + 30
    while len(history(tmp_path)[0]) < len(moments):  # its service writes the rest by and by
        assert time.monotonic() < deadline
        time.sleep(0.2)
    rows, configuration = history(tmp_path)
    assert configuration["host"] == told.info.host
    assert configuration["models"] == {"": "Net"}
    assert [row["_step"] for row in rows] == [moment.step for moment in moments]
    for row, moment in zip(rows, moments, strict=True):
        expected = moment.values() | (moment.blocks() if moment.step % 4 == 3 else {})
        for tag, value in expected.items():
            found = float(row[tag])  # NaN and infinity are texts there
            assert found == value or (math.isnan(found) and math.isnan(value)), tag
    counts, bins = (rows[7][f"activation_magnitude/h.1/{part}"] for part in ("values", "bins"))
    assert sum(counts) == (moments[7].magnitudes[1] - moments[3].magnitudes[1])[:MAGNITUDE_NONFINITE].sum()
    assert len(bins) == len(counts) + 1
