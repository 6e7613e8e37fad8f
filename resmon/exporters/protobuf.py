"""The messages that Prometheus' protobuf exposition is made of (io.prometheus.client, in the client model's metrics.proto).

Metrics of one family follow each other as fields of a message whose length stands before it. A metric's labels are encoded once and
used again; a family of gauges is then one join. A native histogram carries classic buckets, too: a server takes the native ones if
it knows how, and the classic ones where it does not or is told to.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from resmon.exporters.exponential import Exponential

CONTENT_TYPE = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"

# Fields, as their number and wire type make them: 0 is a varint, 1 is a double, 2 is bytes with their length before them.
_VARINT, _DOUBLE, _BYTES = 0, 1, 2


def _tag(field: int, wire: int) -> bytes:
    return bytes((field << 3 | wire,))


_NAME, _HELP, _TYPE, _METRIC = _tag(1, _BYTES), _tag(2, _BYTES), _tag(3, _VARINT), _tag(4, _BYTES)  # of a MetricFamily
_LABEL, _LABEL_NAME, _LABEL_VALUE = _tag(1, _BYTES), _tag(1, _BYTES), _tag(2, _BYTES)  # of a Metric, of a LabelPair
_HISTOGRAM = _tag(7, _BYTES)  # of a Metric
_COUNT, _SUM, _BUCKET = _tag(1, _VARINT), _tag(2, _DOUBLE), _tag(3, _BYTES)  # of a Histogram
_SCHEMA, _ZERO_THRESHOLD, _ZERO_COUNT = _tag(5, _VARINT), _tag(6, _DOUBLE), _tag(7, _VARINT)
_POSITIVE_SPAN, _POSITIVE_DELTA = _tag(12, _BYTES), _tag(13, _BYTES)
_BELOW, _EDGE = _tag(1, _VARINT), _tag(2, _DOUBLE)  # of a Bucket: the cumulative count and the upper bound
_OFFSET, _LENGTH = _tag(1, _VARINT), _tag(2, _VARINT)  # of a BucketSpan

_TYPES = {"counter": b"\x00", "gauge": b"\x01", "histogram": b"\x04"}
# A Gauge and a Counter are messages of one double, so that all of a value but the double is always the same.
_VALUES = {kind: _tag(field, _BYTES) + b"\x09" + _tag(1, _DOUBLE) for kind, field in {"gauge": 2, "counter": 3}.items()}
_VALUE_SIZE = 2 + 9
_GAP = 3  # empty buckets from which on two spans are shorter than their zeros


Edges = Sequence[tuple[int, float]]
"""Upper edges of classic buckets, rising: the power of two, and the edge that it is."""


def varint(value: int) -> bytes:
    """An unsigned whole number, seven bits a byte."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _zigzag(value: int) -> bytes:
    """A signed whole number: 0, -1, 1, -2 are 0, 1, 2, 3."""
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _double(value: float) -> bytes:
    return struct.pack("<d", value)


def _sized(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content


def labels(of: Mapping[str, str]) -> bytes:
    """The labels of a metric, in the order given."""
    return b"".join(
        _sized(_LABEL, _sized(_LABEL_NAME, name.encode()) + _sized(_LABEL_VALUE, value.encode())) for name, value in of.items()
    )


def family(name: str, help_: str, kind: str, metrics: Iterable[bytes]) -> bytes:
    """A family of metrics, with its length before it; nothing where there are none."""
    content = b"".join(metrics)
    if not content:
        return b""
    content = _sized(_NAME, name.encode()) + _sized(_HELP, help_.encode()) + _TYPE + _TYPES[kind] + content
    return varint(len(content)) + content


def head(kind: str, labelled: bytes) -> bytes:
    """All of a gauge or a counter but the eight bytes of its value, which follow."""
    return _METRIC + varint(len(labelled) + _VALUE_SIZE) + labelled + _VALUES[kind]


def values(heads: Sequence[bytes], numbers: bytes) -> bytes:
    """The metrics of which these are the heads, and the doubles, little-endian."""
    return b"".join([part for i, each in enumerate(heads) for part in (each, numbers[8 * i : 8 * i + 8])])


def histogram(labelled: bytes, of: Exponential, edges: Edges, *, native: bool = True) -> bytes:
    """A metric with classic buckets at `edges`, and with native ones."""
    content = b"".join((_COUNT + varint(of.count), _SUM + _double(of.sum), *_classic(of, edges), *(_native(of) if native else ())))
    return _sized(_METRIC, labelled + _sized(_HISTOGRAM, content))


def _classic(of: Exponential, edges: Edges) -> Iterator[bytes]:
    below, taken = of.zero_count, 0
    for power, edge in edges:
        upto = max(0, power + 1 - of.first)
        below += sum(of.counts[taken:upto])
        taken = upto
        yield _sized(_BUCKET, _BELOW + varint(below) + _EDGE + _double(edge))


def _native(of: Exponential) -> Iterator[bytes]:
    """Schema, zero bucket, and of the buckets that are not empty their spans and the differences between neighbours."""
    yield _SCHEMA + _zigzag(0)
    yield _ZERO_THRESHOLD + _double(of.zero_threshold)
    yield _ZERO_COUNT + varint(of.zero_count)
    filled = [i for i, count in enumerate(of.counts) if count]
    if not filled:
        return
    gaps = [(earlier, later) for earlier, later in pairwise(filled) if later - earlier > _GAP]
    begins, ends = [filled[0], *(later for _, later in gaps)], [*(earlier for earlier, _ in gaps), filled[-1]]
    deltas, before, after = [], 0, -of.first  # the first span's offset is its first bucket's index, that of others the gap
    for begin, end in zip(begins, ends, strict=True):
        yield _sized(_POSITIVE_SPAN, _OFFSET + _zigzag(begin - after) + _LENGTH + varint(end + 1 - begin))
        for count in of.counts[begin : end + 1]:
            deltas.append(_zigzag(count - before))
            before = count
        after = end + 1
    yield _sized(_POSITIVE_DELTA, b"".join(deltas))
