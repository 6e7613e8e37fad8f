"""YAML as anybody may have written it: every line is known, and nothing in it does harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.errors import ConfigurationError
from resmon.settings.document import DEEPEST, LARGEST, dotted, parse, read

TEXT = """\
a: 1
b:
  - x: yes
    y: ~
  -
    x: 0.20
"""


def test_values_are_texts_and_their_lines_are_known() -> None:
    (document,) = parse(TEXT.encode(), "f")
    assert document.content == {"a": "1", "b": [{"x": "yes", "y": None}, {"x": "0.20"}]}
    assert {dotted(keys): line for keys, line in document.lines.items() if keys} == {
        "a": 1,
        "b": 2,
        "b[0]": 3,
        "b[0].x": 3,
        "b[0].y": 4,
        "b[1]": 6,
        "b[1].x": 6,
    }
    assert document.line_of(("b", 1, "z", "deep")) == 6


def test_a_file_may_hold_several_documents() -> None:
    first, second = parse(b"---\na: 1\n---\nb: 2\n", "f")
    assert (first.content, first.line, second.content, second.line) == ({"a": "1"}, 2, {"b": "2"}, 4)


def test_what_stands_twice_is_named() -> None:
    (document,) = parse(b"a: 1\nb: 2\na: 3\n[1, 2]: x\n<<: {c: 1}\n", "f.yaml")
    assert document.content == {"a": "1", "b": "2"}
    assert list(map(str, document.nits)) == [
        "f.yaml, line 3, a: stands twice; first in line 1",
        "f.yaml, line 4: a key must be a word",
        "f.yaml, line 5: << is not read; write out the keys that it takes in",
    ]


def test_an_alias_is_what_it_stands_for() -> None:
    (document,) = parse(b"a: &one {x: 1}\nb: *one\n", "f")
    assert document.content == {"a": {"x": "1"}, "b": {"x": "1"}}


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join([*lines, *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("# nothing\n---\n---\n", "is empty"),
        ("a: [1\nb: 2", "line 2, column 2, is no YAML"),
        ("a: 'x", "is no YAML"),
        ("\x00", "is no YAML"),
        ("a: *b", "is no YAML: found undefined alias"),
        (bomb(), "more than 50,000 values"),
        ("a: &a [*a]", f"nested more than {DEEPEST} deep"),
        ("[" * 20_000, "nested too deeply"),
        ("a: " + "x" * LARGEST, "is larger than"),
    ],
    ids=["empty", "documents of nothing", "open", "quote", "nul", "alias", "bomb", "itself", "deep", "large"],
)
def test_a_file_that_is_no_use_says_why(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^f\.yaml") as caught:
        parse(text.encode(), "f.yaml")
    assert why in str(caught.value)


def test_a_tag_makes_no_object(tmp_path: Path) -> None:
    (document,) = parse(f"a: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']".encode(), "f")
    assert document.content == {"a": [str(tmp_path / "made")]}
    assert not (tmp_path / "made").exists()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read(tmp_path / "missing.yaml")
    with pytest.raises(ConfigurationError, match="Is a directory"):
        read(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: ä".encode("latin-1"))
    with pytest.raises(ConfigurationError, match="byte 3 is not UTF-8"):
        read(tmp_path / "latin.yaml")


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#\n ,?%@~<", max_size=60))
@settings(deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        documents = parse(text.encode(), "f")
    except ConfigurationError:
        pass
    else:
        assert all(document.line_of(()) >= 1 for document in documents)
