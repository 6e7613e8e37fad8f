"""The metadata of a segment's schema message, as pyarrow reads it and without."""

from __future__ import annotations

import random
from contextlib import suppress

import pyarrow as pa
import pytest

from resmon.flight.header import header
from resmon.flight.preamble import MOST, metadata
from resmon.flight.schema import Kind, row_format
from tests import synthetic


@pytest.mark.parametrize("count", [0, 1, 7, 300])
@pytest.mark.parametrize("kind", ["steps", "bins", "scalars", "scalarbins"])
def test_it_is_what_pyarrow_reads(kind: Kind, count: int) -> None:
    form = row_format(kind, synthetic.sites(count), ("all", "the rest"))
    message = header(form)
    assert metadata(message[8:]) == pa.ipc.read_schema(pa.py_buffer(message)).metadata
    assert {key.decode(): value.decode() for key, value in metadata(message[8:]).items()} == form.metadata


@pytest.mark.parametrize("told", [{}, {b"": b""}, {b"a": b"", b"b": bytes(300), b"c": "ä".encode()}])
def test_any_schema_is_read(told: dict[bytes, bytes]) -> None:
    message = pa.schema([pa.field("x", pa.int64(), metadata={"y": "z"})], told).serialize().to_pybytes()
    assert metadata(message[8:]) == told
    bare = pa.schema([pa.field("x", pa.int64())]).serialize().to_pybytes()
    with pytest.raises(ValueError, match="field 2 is missing"):
        metadata(bare[8:])


def test_what_is_no_schema_is_refused() -> None:
    batch = pa.record_batch([pa.array([1, 2])], ["x"]).serialize().to_pybytes()
    many = pa.schema([], {str(i): "" for i in range(MOST + 1)}).serialize().to_pybytes()
    for message in (b"", b"\0", bytes(64), b"\xff" * 64, batch[8:], many[8:]):
        with pytest.raises(ValueError, match="not a schema message"):
            metadata(message)


def test_damage_raises_one_error_and_costs_no_time() -> None:
    """Wherever it strikes: offsets that lead out, back into the message, or around in it."""
    message = header(row_format("steps", synthetic.sites(3)))[8:]
    chance = random.Random(1)
    refused = 0
    for size in range(0, len(message), 7):
        with suppress(ValueError):
            metadata(message[:size])
    for _ in range(3000):
        damaged = bytearray(message)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(message))] = chance.choice((0, 1, 4, 0x7F, 0x80, 0xFF))
        try:
            metadata(bytes(damaged))
        except ValueError:
            refused += 1
    assert refused
