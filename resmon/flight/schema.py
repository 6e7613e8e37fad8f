"""A row of a flight: at once an Arrow IPC message and a numpy record of fixed size.

An Arrow record batch of one row whose lists have fixed lengths always has the same bytes but for its values, validity bitmaps and
null counts. So a segment is a schema message followed by records of one size, and this module gives their numpy dtype. The writer
fills one preallocated record in place; the reader checks a record's checksum and looks at thousands at once; neither trusts a
length, an offset or a type that stands in a file. Any other reader sees an ordinary Arrow stream.

The message's metadata (a flatbuffer) is laid out here and not by pyarrow, so that rows do not depend on the version that wrote
them. Layout: Arrow's format/Message.fbs and Schema.fbs, metadata version V5. Nothing here needs pyarrow: who reads live
flights does without it (preamble.py).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from resmon.records import (
    BLOCK_COUNTS,
    BLOCK_VALUES,
    DURATION_COLUMNS,
    GROUP_VALUES,
    MAGNITUDE_COLUMNS,
    PHASES,
    RUN_VALUES,
    Bools,
    ResidualSite,
    SiteKind,
)

FORMAT = 1

Kind = Literal["steps", "scalars", "bins", "scalarbins"]
Records = npt.NDArray[np.void]

TEXT = 128  # bytes of a logged scalar's name
STATISTICS = ("min", "max", "sum", "count")
# What a bin summarises of a block: its values and, as minima and maxima of it cannot be had from theirs, the ratio of each step.
BINNED_BLOCK_VALUES = (*BLOCK_VALUES, "branch_skip_ratio")


@dataclass(frozen=True, slots=True)
class Column:
    """A column: one value a row or, where `length` is given, one list of that length."""

    name: str
    type: Literal["int", "float", "time", "bool", "text", "checksum"] = "float"
    length: int | None = None
    nullable: bool = False


def columns(kind: Kind, sites: int, groups: int) -> tuple[Column, ...]:
    """The columns of a segment's rows, the checksum last."""
    match kind:
        case "steps":
            middle = (
                Column("step", "int"),
                Column("time", "time"),
                Column("complete", "bool"),
                Column("skipped", "bool"),
                *(Column(name, nullable=True) for name in RUN_VALUES),
                *(Column(f"group_{name}", length=groups, nullable=True) for name in GROUP_VALUES),
                *(Column(f"block_{name}", length=sites, nullable=True) for name in BLOCK_VALUES),
                *(Column(f"block_{name}", "int", sites) for name in BLOCK_COUNTS),
                *_counters(sites),
            )
        case "bins":
            middle = (
                Column("first_step", "int"),
                Column("last_step", "int"),
                Column("steps", "int"),
                Column("first_time", "time"),
                Column("last_time", "time"),
                *(_statistic(name, statistic, None) for name in RUN_VALUES for statistic in STATISTICS),
                *(_statistic(f"group_{name}", statistic, groups) for name in GROUP_VALUES for statistic in STATISTICS),
                *(_statistic(f"block_{name}", statistic, sites) for name in BINNED_BLOCK_VALUES for statistic in STATISTICS),
                *(Column(f"block_{name}_sum", "int", sites) for name in BLOCK_COUNTS),
                *_counters(sites),
            )
        case "scalars":
            middle = (Column("step", "int"), Column("time", "time"), Column("name", "text"), Column("value"))
        case "scalarbins":
            middle = (
                Column("first_step", "int"),
                Column("last_step", "int"),
                Column("first_time", "time"),
                Column("last_time", "time"),
                Column("name", "text"),
                *(_statistic("value", statistic, None) for statistic in STATISTICS),
            )
    return (*middle, Column("checksum", "checksum"))


def _statistic(name: str, statistic: str, length: int | None) -> Column:
    if statistic in ("min", "max"):
        return Column(f"{name}_{statistic}", length=length, nullable=True)  # null where the bin has no finite value
    return Column(f"{name}_{statistic}", "int" if statistic == "count" else "float", length)


def _counters(sites: int) -> tuple[Column, ...]:
    return (
        Column("steps_total", "int"),
        Column("skipped_total", "int"),
        Column("clipped_total", "int"),
        Column("errors_total", "int"),
        Column("samples_total", "int"),
        Column("duration_total"),
        Column("phase_totals", length=len(PHASES)),
        Column("duration_buckets", "int", DURATION_COLUMNS),
        Column("nonfinite_steps", "int", sites),
        Column("magnitude_buckets", "int", sites * MAGNITUDE_COLUMNS),
        Column("magnitude_sum", length=sites),
    )


class RowFormat:
    """The bytes of one kind of row for given sites and parameter groups.

    `metadata` is what the schema of a segment says besides, `template` a row of zeros and no nulls, `prefix` the bytes that every
    row begins with, `dtype` the row as numpy sees it. A field is called as its column; `name?` is its validity bitmap, `name#`
    its count of nulls, `name@` the length of a text.
    """

    def __init__(self, kind: Kind, sites: Sequence[ResidualSite], groups: Sequence[str]) -> None:
        self.kind = kind
        self.sites = tuple(sites)
        self.groups = tuple(groups)
        self.columns = columns(kind, len(self.sites), len(self.groups))
        texts = {"resmon.sites": sites_to_json(self.sites), "resmon.groups": json.dumps(self.groups)}
        self.metadata = {"resmon.format": str(FORMAT), **texts}
        # A row's checksum goes on from here, so that a row is never read under other sites than those it was written for.
        self.seed = zlib.crc32("\n".join(self.metadata.values()).encode())

        nodes: list[int] = []  # the length of each node
        buffers: list[tuple[int, int]] = []  # offset in the body and length
        fields: list[tuple[str, Any, int]] = []  # name, dtype, offset in the body
        null_counts: list[tuple[str, int]] = []  # name, node
        offsets: list[tuple[int, int]] = []  # where a list's or text's end stands, and what it is
        end = 0

        def buffer(length: int, *field: Any) -> None:
            nonlocal end
            if field:
                fields.append((*field, end))
            buffers.append((end, length))
            end += -(-length // 8) * 8

        for column in self.columns:
            values, nullable = 1, column.nullable
            if column.length is not None:
                nodes.append(1)
                buffer(0)
                offsets.append((end + 4, column.length))
                buffer(8)
                values = column.length
            if nullable and values:
                null_counts.append((f"{column.name}#", len(nodes)))
                buffer(-(-values // 8), f"{column.name}?", (np.uint8, (-(-values // 8),)))
            else:
                buffer(0)
            nodes.append(values)
            shape = () if column.length is None else (values,)
            match column.type:
                case "int" | "time":
                    buffer(8 * values, column.name, ("<i8", shape))
                case "float":
                    buffer(8 * values, column.name, ("<f8", shape))
                case "bool":
                    buffer(1, column.name, "u1")
                case "text":
                    buffer(8, f"{column.name}@", ("<i4", (2,)))
                    buffer(TEXT, column.name, (np.uint8, (TEXT,)))
                case "checksum":
                    # Four bytes and their padding, read and written as one number, so that damage to the padding shows too.
                    buffer(4, column.name, "<u8")
        metadata_bytes = _message(nodes, buffers, end)
        body = 8 + len(metadata_bytes)
        names = [name for name, _, _ in fields]
        formats = [kind_ for _, kind_, _ in fields]
        positions = [body + offset for _, _, offset in fields]
        names += [name for name, _ in null_counts]
        formats += ["<i8"] * len(null_counts)
        positions += [8 + _NODES + 16 * node + 8 for _, node in null_counts]
        self.size = body + end
        self.dtype = np.dtype({"names": names, "formats": formats, "offsets": positions, "itemsize": self.size})
        template = bytearray(struct.pack("<Ii", 0xFFFFFFFF, len(metadata_bytes)) + metadata_bytes + bytes(end))
        for position, length in offsets:
            struct.pack_into("<i", template, body + position, length)
        for column in self.columns:
            if f"{column.name}?" in names:
                bitmap = np.frombuffer(template, self.dtype, 1)[f"{column.name}?"]
                bitmap[0] = np.packbits(np.ones(column.length or 1, bool), bitorder="little")
        self.template = bytes(template)
        self.prefix = self.template[: 8 + _NODES]

    def row(self) -> Row:
        """A new row to fill."""
        return Row(self)

    def is_whole(self, data: memoryview, position: int) -> bool:
        """Whether a whole, undamaged row stands at `position`."""
        end = position + self.size
        if end > len(data):
            return False
        return zlib.crc32(data[position : end - 8], self.seed) == int.from_bytes(data[end - 8 : end], "little")


class Row:
    """One row's bytes and the numpy views into them; filled and sealed again for every step, nothing is allocated."""

    def __init__(self, form: RowFormat) -> None:
        self.bytes = bytearray(form.template)
        record = np.frombuffer(self.bytes, form.dtype, 1)
        self._dtype = form.dtype
        # A view of one dimension each: a list's items, or the one value.
        self.fields: dict[str, npt.NDArray[Any]] = {name: record[name].reshape(-1) for name in form.dtype.names or ()}
        self._covered = memoryview(self.bytes)[:-8]
        self._checksum = self.fields["checksum"]
        self._seed = form.seed

    def together(self, names: Sequence[str]) -> npt.NDArray[Any]:
        """One view of fields of one type that lie at equal distances, so that all are set at once."""
        places: Mapping[str, Any] = self._dtype.fields or {}
        first = places[names[0]]
        distance = places[names[1]][1] - first[1]
        if any(places[name][:2] != (first[0], first[1] + i * distance) for i, name in enumerate(names)):
            raise ValueError(f"{names} do not lie at equal distances")
        item = first[0].base
        shape, strides = (len(names), *first[0].shape), (distance, *(item.itemsize for _ in first[0].shape))
        return np.ndarray(shape, item, self.bytes, first[1], strides)

    def validity(self, name: str, present: Bools) -> None:
        """Say which values of a nullable column are there."""
        if present.size:
            self.fields[f"{name}?"][:] = np.packbits(present, bitorder="little")
            self.fields[f"{name}#"][0] = present.size - np.count_nonzero(present)

    def text(self, name: str, value: bytes) -> None:
        """Set a text of at most TEXT bytes."""
        field = self.fields[name]
        field[: len(value)] = np.frombuffer(value, np.uint8)
        field[len(value) :] = 0
        self.fields[f"{name}@"][1] = len(value)

    def seal(self) -> bytearray:
        """The row with its checksum set."""
        self._checksum[0] = zlib.crc32(self._covered, self._seed)
        return self.bytes


@lru_cache(maxsize=16)
def row_format(kind: Kind, sites: tuple[ResidualSite, ...] = (), groups: tuple[str, ...] = ()) -> RowFormat:
    """The format of a kind of row for these sites and parameter groups."""
    return RowFormat(kind, sites, groups)


def present(records: Records, name: str) -> Bools:
    """Which values of a nullable column are there: one truth a record, or a row of them where the column holds lists."""
    values = records[name]
    if f"{name}?" not in (records.dtype.names or ()):
        return np.ones(values.shape, bool)
    count = values.shape[1] if values.ndim == 2 else 1
    bits = np.unpackbits(np.ascontiguousarray(records[f"{name}?"]), axis=1, count=count, bitorder="little").astype(bool)
    return bits.reshape(values.shape)


def texts(records: Records, name: str) -> list[str]:
    """The values of a text column."""
    return [
        bytes(value[: max(0, length)]).decode("utf-8", "replace")
        for value, length in zip(np.ascontiguousarray(records[name]), records[f"{name}@"][:, 1].tolist(), strict=True)
    ]


# The flatbuffer of a record batch message, at fixed places: the root offset, Message's vtable and table, RecordBatch's vtable and
# table, then the vector of nodes (whose items begin at _NODES) and that of buffers.
_NODES = 80


def _message(nodes: Sequence[int], buffers: Iterable[tuple[int, int]], body: int) -> bytes:
    """The metadata of a record batch of one row; null counts are zero."""
    buffers = list(buffers)
    head = struct.pack(
        "<I 6H iIqhB5x 5H6x iIqI",
        16,  # where the Message table begins
        *(12, 24, 16, 18, 4, 8),  # vtable: its size, the table's size, version, header type, header, body length
        *(12, 56 - 20, body, 4, 3),  # table: back to the vtable, on to RecordBatch, body length, V5, RecordBatch
        *(10, 20, 8, 4, 16),  # vtable: its size, the table's size, length, nodes, buffers
        *(16, _NODES - 4 - 60, 1, 84 + 16 * len(nodes) - 72),  # table: back to the vtable, on to nodes, one row, on to buffers
    )
    return b"".join(
        (
            head,
            struct.pack("<I", len(nodes)),
            *(struct.pack("<qq", length, 0) for length in nodes),
            struct.pack("<xxxxI", len(buffers)),
            *(struct.pack("<qq", *buffer) for buffer in buffers),
        )
    )


_OPERATIONS = ("operations", "skip_operations", "following")


def sites_to_json(sites: Sequence[ResidualSite]) -> str:
    """The sites as they stand in a segment's schema. Where no operations are known there are none, as in flights of before."""
    items = [{name: value for name, value in asdict(site).items() if value or name not in _OPERATIONS} for site in sites]
    return json.dumps(items, separators=(",", ":"))


def sites_from_json(text: str | bytes) -> tuple[ResidualSite, ...]:
    """The sites that `sites_to_json` wrote. Raises ValueError for everything else."""
    try:
        return tuple(_site(item) for item in json.loads(text))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a list of sites: {error}") from error


def groups_from_json(text: str | bytes) -> tuple[str, ...]:
    """The names of a segment's parameter groups. Raises ValueError for everything else."""
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"not a list of names: {names!r:.200}")
    return tuple(names)


def _site(item: dict[str, Any]) -> ResidualSite:
    site = ResidualSite(
        name=item["name"],
        module=item["module"],
        kind=item["kind"],
        branch=tuple(item["branch"]),
        skip=tuple(item["skip"]),
        shape=tuple(item["shape"]),
        parameters=tuple(item["parameters"]),
        model=item["model"],
        observed=item["observed"],
        absent=tuple(item["absent"]),
        **{name: tuple(item.get(name, ())) for name in _OPERATIONS},
    )
    words = (site.name, site.module, site.model, site.observed, *site.branch, *site.skip, *site.parameters, *site.absent)
    words += (*site.operations, *site.skip_operations, *site.following)
    if not all(isinstance(word, str) for word in words) or site.kind not in get_args(SiteKind):
        raise ValueError(f"not a site: {item!r:.200}")
    if not all(isinstance(size, int) for size in site.shape):
        raise ValueError(f"not a shape: {site.shape!r:.200}")
    return site


def nanoseconds(seconds: float) -> int:
    """Unix seconds as an Arrow timestamp, exact enough that `seconds` gives the same float back."""
    if not abs(seconds) < 9e9:  # beyond what a timestamp holds, or not a number
        return 0
    whole = int(seconds)
    return whole * 10**9 + round((seconds - whole) * 1e9)


def seconds(nanoseconds: int) -> float:
    """An Arrow timestamp as Unix seconds."""
    return nanoseconds / 10**9
