"""What the schema message of a segment says besides of its columns, read without pyarrow.

Who follows live flights needs no more of it than the sites and groups that stand in its metadata, and an agent that needs no
pyarrow is a quarter smaller. No offset or length from a file is trusted here. The rest of the message, which tells other readers
what the columns are, is not looked at: a row's checksum proves what it was written under.

Layout: Arrow's format/Message.fbs and Schema.fbs, and FlatBuffers' internals (flatbuffers.dev/internals): a table begins with the
distance back to its vtable, which has the place of each field in it, or 0 where it is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

# Fields of the tables by their place, and what a message's header may be.
_HEADER_TYPE, _HEADER = 1, 2
_METADATA = 2
_KEY, _VALUE = 0, 1
_SCHEMA = 1
MOST = 64  # pairs of metadata


def metadata(message: bytes) -> dict[bytes, bytes]:
    """What a schema message, without the eight bytes before it, says besides of its columns. Raises ValueError where it is none."""
    try:
        return dict(_pairs(message))
    except struct.error as error:
        raise ValueError(f"not a schema message: {error}") from error


def _pairs(message: bytes) -> Iterator[tuple[bytes, bytes]]:
    root = _Table(message, _unsigned(message, 0))
    place = root.field(_HEADER_TYPE)
    if place is None or message[place] != _SCHEMA:
        raise ValueError("not a schema message")
    pairs = root.table(_HEADER).reference(_METADATA)
    count = _unsigned(message, pairs)
    if count > MOST:
        raise ValueError(f"not a schema message: {count} pairs of metadata")
    for place in range(pairs + 4, pairs + 4 + 4 * count, 4):
        pair = _Table(message, place + _unsigned(message, place))
        yield pair.text(_KEY), pair.text(_VALUE)


class _Table:
    """A table of a flatbuffer. What is beyond the message raises ValueError or struct.error."""

    def __init__(self, message: bytes, begin: int) -> None:
        self._message, self._begin = message, begin
        self._fields = begin - struct.unpack_from("<i", message, begin)[0]
        if self._fields < 0:
            raise ValueError("not a schema message: a table's fields begin before it")
        self._size = struct.unpack_from("<H", message, self._fields)[0]

    def field(self, number: int) -> int | None:
        """Where a field stands; None where it is left out."""
        entry = 4 + 2 * number
        if entry + 2 > self._size:
            return None
        distance = struct.unpack_from("<H", self._message, self._fields + entry)[0]
        place = self._begin + distance
        return place if distance and place < len(self._message) else None

    def reference(self, number: int) -> int:
        """Where that stands which a field refers to."""
        place = self.field(number)
        if place is None:
            raise ValueError(f"not a schema message: field {number} is missing")
        return place + _unsigned(self._message, place)

    def table(self, number: int) -> _Table:
        return _Table(self._message, self.reference(number))

    def text(self, number: int) -> bytes:
        begin = self.reference(number)
        end = begin + 4 + _unsigned(self._message, begin)
        if end > len(self._message):
            raise ValueError("not a schema message: a text is longer than it")
        return self._message[begin + 4 : end]


def _unsigned(message: bytes, place: int) -> int:
    value: int = struct.unpack_from("<I", message, place)[0]
    return value
