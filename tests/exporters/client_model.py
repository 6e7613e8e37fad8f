"""Prometheus' client model (metrics.proto) as Google's library reads it, from a description of our own: an independent reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.decoder import _DecodeVarint32  # type: ignore[attr-defined]
from google.protobuf.unknown_fields import UnknownFieldSet

PACKAGE = "io.prometheus.client"

# Of each message its fields: name, number, type, and whether there may be several.
MESSAGES: dict[str, list[tuple[str, int, str, bool]]] = {
    "LabelPair": [("name", 1, "string", False), ("value", 2, "string", False)],
    "Gauge": [("value", 1, "double", False)],
    "Counter": [("value", 1, "double", False)],
    "Bucket": [("cumulative_count", 1, "uint64", False), ("upper_bound", 2, "double", False)],
    "BucketSpan": [("offset", 1, "sint32", False), ("length", 2, "uint32", False)],
    "Histogram": [
        ("sample_count", 1, "uint64", False),
        ("sample_sum", 2, "double", False),
        ("bucket", 3, "Bucket", True),
        ("schema", 5, "sint32", False),
        ("zero_threshold", 6, "double", False),
        ("zero_count", 7, "uint64", False),
        ("positive_span", 12, "BucketSpan", True),
        ("positive_delta", 13, "sint64", True),
    ],
    "Metric": [
        ("label", 1, "LabelPair", True),
        ("gauge", 2, "Gauge", False),
        ("counter", 3, "Counter", False),
        ("histogram", 7, "Histogram", False),
    ],
    "MetricFamily": [
        ("name", 1, "string", False),
        ("help", 2, "string", False),
        ("type", 3, "int32", False),
        ("metric", 4, "Metric", True),
    ],
}


def _family() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="metrics.proto", package=PACKAGE, syntax="proto2")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for called, number, kind, several in fields:
            of = f".{PACKAGE}.{kind}" if kind in MESSAGES else None
            message.field.add(
                name=called,
                number=number,
                label=field.LABEL_REPEATED if several else field.LABEL_OPTIONAL,
                type=field.TYPE_MESSAGE if of else getattr(field, f"TYPE_{kind.upper()}"),
                type_name=of,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.MetricFamily"))


Family = _family()


def families(content: bytes) -> Iterator[Any]:
    """The families of a delimited exposition, in which every field must be one of the model's."""
    position = 0
    while position < len(content):
        size, position = _DecodeVarint32(content, position)
        family = Family.FromString(content[position : position + size])
        assert len(content) >= position + size, "cut"
        assert not _unknown(family)
        yield family
        position += size


def _unknown(message: Any) -> int:
    """How many fields of a message, and of those in it, the model has not."""
    inside = 0
    for field, value in message.ListFields():
        if field.message_type is not None:
            inside += sum(map(_unknown, value)) if field.is_repeated else _unknown(value)
    return len(UnknownFieldSet(message)) + inside


def buckets(histogram: Any) -> dict[int, int]:
    """The counts of native buckets by index, as spans and deltas say."""
    found: dict[int, int] = {}
    index, count, deltas = 0, 0, iter(histogram.positive_delta)
    for span in histogram.positive_span:
        index += span.offset
        for _ in range(span.length):
            count += next(deltas)
            found[index] = count
            index += 1
    assert next(deltas, None) is None
    return found
