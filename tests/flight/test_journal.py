from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.flight.journal import AT_ONCE, Lines, append


def number(values: Any) -> int:
    made = values["n"]
    if not isinstance(made, int):
        raise ValueError(f"{made!r:.20} is no number")
    return made


def lines(path: Path) -> Lines[int]:
    return Lines(path, number, "a number")


def test_each_line_is_read_once_as_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    reader = lines(path)
    assert reader.poll() == []
    for i in range(5):
        append(path, {"n": i})
        assert reader.poll() == [i]
        assert reader.poll() == []
    assert lines(path).poll(ended=True) == list(range(5))
    assert reader.skips == []
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": ')
    reader, other = lines(path), lines(path)
    assert reader.poll() == [1]
    assert (other.poll(ended=True), len(other.skips)) == ([1], 1)
    with path.open("ab") as file:
        file.write(b"2}\n")
    assert reader.poll() == [2]
    assert reader.skips == []


@given(
    st.lists(st.binary(max_size=40) | st.sampled_from([b"null", b"[]", b'{"n": "x"}', b"[" * 2000, b'{"n": ' + b"9" * 30 + b"}"]))
)
@settings(deadline=None)
def test_damage_costs_the_damaged_lines_and_is_described(tmp_path_factory: pytest.TempPathFactory, damage: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("journal") / "x.jsonl"
    content = b"".join(b'{"n": %d}\n%s\n' % (i, bad) for i, bad in enumerate(damage)) + b'{"n": 1000}\n'
    path.write_bytes(content)
    reader = lines(path)
    found = reader.poll(ended=True)
    assert [n for n in found if n < len(damage)] == list(range(len(damage)))
    assert found[-1] == 1000
    assert len(found) + sum(skip.rows for skip in reader.skips) == sum(map(len, [content.splitlines()]))
    for skip in reader.skips:
        assert content[skip.offset : skip.offset + skip.bytes].endswith((b"\n", b"\r"))
        assert skip.reason.startswith("not a number: ")


def test_a_line_without_end_does_not_stop_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"x" * (AT_ONCE + 5) + b'\n{"n": 3}\n')
    assert lines(path).poll() == [3]


def test_what_is_no_file_is_no_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        reader = lines(tmp_path / name)
        assert reader.poll() == reader.poll() == []
        assert len(reader.skips) == 1, name


def test_a_line_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append(path, {"n": 1})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
        with pytest.raises(OSError, match=str(path)):
            append(path, {"n": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_bytes() == before
    append(path, {"n": 3})
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 3]
