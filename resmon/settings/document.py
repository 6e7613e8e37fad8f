"""YAML that anybody may have written, read with the line of everything in it, so that what is wrong can be named by its line.

A file is bounded before it is parsed (its size) and while it is read (depth, and values where aliases repeat them); no tag makes an
object. Every value comes as the text that stands in the file, a list, a mapping or None, and who reads it says what it is to be:
`0.2` is as good a label as `"0.2"`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from resmon.errors import ConfigurationError

LARGEST = 256 << 10  # bytes: some hundreds of objectives
DEEPEST = 30
MOST = 50_000  # values, each counted as often as aliases repeat it

Keys = tuple[str | int, ...]  # that lead to a value: ("slos", 0, "name")


class Nit(NamedTuple):
    """Something that cannot be used: the keys that lead to it, and the line it stands in."""

    keys: Keys
    message: str
    line: int
    path: str = ""

    def __str__(self) -> str:
        where = f"{self.path}, line {self.line}" if self.path else f"line {self.line}"
        return f"{where}, {dotted(self.keys)}: {self.message}" if self.keys else f"{where}: {self.message}"


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document. `lines` has the line of every key and every item, by the keys that lead there."""

    path: str
    content: Any
    line: int
    lines: Mapping[Keys, int]
    nits: tuple[Nit, ...] = ()  # of the YAML itself: what stands twice, or cannot be a key

    def line_of(self, keys: Keys) -> int:
        """Of the value, or of the nearest above it that is there."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, self.line)

    def nit(self, keys: Keys, message: str) -> Nit:
        return Nit(keys, message, self.line_of(keys), self.path)


def dotted(keys: Keys) -> str:
    """slos[0].name"""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def refused(what: str, nits: list[Nit]) -> ConfigurationError:
    """All of them in one error, in the order in which they stand."""
    ordered = sorted(dict.fromkeys(nits), key=lambda nit: (nit.path, nit.line))
    return ConfigurationError("\n  ".join([f"{what} cannot be used:", *map(str, ordered)]))


def read(path: Path) -> list[Document]:
    """The documents of a file. Raises ConfigurationError where it is not there, too large, no YAML or empty."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}. Name a YAML file.") from error
    return parse(raw, str(path))


def parse(raw: bytes, path: str) -> list[Document]:
    if len(raw) > LARGEST:
        raise ConfigurationError(f"{path} is larger than {LARGEST:,} bytes, which no specification needs. Split it.")
    try:
        nodes = [node for node in yaml.compose_all(raw.decode("utf-8-sig"), Loader=yaml.SafeLoader) if node is not None]
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is no text: byte {error.start:,} is not UTF-8.") from error
    except RecursionError:
        raise ConfigurationError(f"{path} is nested too deeply to be read.") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}{_place(error)} is no YAML: {_problem(error)}.") from error
    documents = [_Reading(path).document(node) for node in nodes]
    if not any(document.content for document in documents):
        raise ConfigurationError(f"{path} is empty.")
    return documents


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}, column {mark.column + 1}," if mark is not None else ""


def _problem(error: yaml.YAMLError) -> str:
    said = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return " ".join(str(said).split())


@dataclass(slots=True)
class _Reading:
    """From nodes to values."""

    path: str
    lines: dict[Keys, int] = field(default_factory=dict)
    nits: list[Nit] = field(default_factory=list)
    left: int = MOST

    def document(self, node: yaml.Node) -> Document:
        content = self._value(node, (), _line(node))
        return Document(self.path, content, _line(node), self.lines, tuple(self.nits))

    def _value(self, node: yaml.Node, keys: Keys, line: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ConfigurationError(f"{self.path} has more than {MOST:,} values, aliases written out. Split it.")
        if len(keys) > DEEPEST:
            raise ConfigurationError(f"{self.path}, line {_line(node)}, is nested more than {DEEPEST} deep.")
        self.lines[keys] = line
        if isinstance(node, yaml.MappingNode):
            return dict(self._pairs(node, keys))
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*keys, i), _line(item)) for i, item in enumerate(node.value)]
        return None if node.tag == "tag:yaml.org,2002:null" else str(node.value)

    def _pairs(self, node: yaml.MappingNode, keys: Keys) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = _line(key)
            if not isinstance(key, yaml.ScalarNode):
                self.nits.append(Nit(keys, "a key must be a word", line, self.path))
                continue
            name = str(key.value)
            if key.tag == "tag:yaml.org,2002:merge":
                self.nits.append(Nit(keys, "<< is not read; write out the keys that it takes in", line, self.path))
                continue
            if name in seen:
                self.nits.append(Nit((*keys, name), f"stands twice; first in line {seen[name]}", line, self.path))
                continue
            seen[name] = line
            yield name, self._value(value, (*keys, name), line)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
