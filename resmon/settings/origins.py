"""Where settings come from: resmon.toml, RESMON_* environment variables, a call's arguments.

For each place there is a function that gives what stands there, key by key with its origin, and a nit for whatever has the wrong
form: a key that is no setting, one key under two spellings, a file that is no TOML. Which values are right is for resolution.py to
say. Nothing here raises.
"""

from __future__ import annotations

import os
import re
import tomllib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from resmon.quantities import printable

FILE = "resmon.toml"
PREFIX = "RESMON_"

# Variables with the prefix that are no settings, and what each is for.
VARIABLES: Mapping[str, str] = {
    "RESMON_RUNTIME_DIR": "folder where this user's agent is found: on a local disk, writable by you alone",
    "RESMON_ATTEMPT": "set for on_incident's command, as RESMON_RUN and RESMON_DIRECTORY are: the attempt that it is about",
    "RESMON_RANK": "likewise, its rank",
    "RESMON_INCIDENT": "likewise, what broke: failed, nonfinite, killed, stalled, ...",
    "RESMON_ALERTMANAGER_USER": "name with which Alertmanager is asked, by basic authentication",
    "RESMON_ALERTMANAGER_PASSWORD": "likewise, the password",
    "RESMON_ALERTMANAGER_TOKEN": "bearer token with which it is asked instead",
    "RESMON_ALERTMANAGER_CA": "file of the authority that signed its certificate, in PEM form; the system's unless named",
    "RESMON_ALERTMANAGER_CERTIFICATE": "file of the certificate to show it, with the key or beside it",
    "RESMON_ALERTMANAGER_KEY": "likewise, the key's own file",
    "RESMON_PROMETHEUS_USER": "as for Alertmanager, of Prometheus",
    "RESMON_PROMETHEUS_PASSWORD": "likewise, the password",
    "RESMON_PROMETHEUS_TOKEN": "bearer token with which it is asked instead",
    "RESMON_PROMETHEUS_CA": "file of the authority that signed its certificate",
    "RESMON_PROMETHEUS_CERTIFICATE": "file of the certificate to show it",
    "RESMON_PROMETHEUS_KEY": "likewise, the key's own file",
    "RESMON_REPLACED": "set for the agent: the variables that it was started with other values of, as JSON",
}

# What the parser raises, also of numbers and nested lists that are too long for Python.
NO_TOML = (ValueError, RecursionError)

# What Kubernetes puts into every container beside a Service that is called resmon or resmon-something. RESMON_PORT is such a one
# only if it holds an address. https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
KUBERNETES = re.compile(
    r"RESMON(_\w+)?_(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=.*|PORT(_\d+_(TCP|UDP|SCTP))?=\w+://.*|PORT_\d+_\w+=.*)"
)


@dataclass(frozen=True, slots=True)
class Origin:
    """The place that a value comes from; `name` is the key as it is spelt there."""

    kind: Literal["argument", "environment", "file", "default"]
    name: str = ""
    path: str | None = None
    line: int | None = None

    @property
    def place(self) -> str:
        """The same in short, where the key and the folder are known."""
        if self.kind == "environment":
            return printable(self.name)
        return f"{FILE}, line {self.line}" if self.kind == "file" else self.kind

    def __str__(self) -> str:
        name = printable(self.name)
        if self.kind == "file":
            return ", ".join(filter(None, (self.path, f"line {self.line}" if self.line else "", name)))
        return f"argument {name}" if self.kind == "argument" else self.place


@dataclass(frozen=True, slots=True)
class Given:
    """A value that stands somewhere for a setting. Whether it is a right one is not known yet."""

    setting: str
    value: Any
    origin: Origin
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)  # where what lies within it stands, by its path

    def at(self, path: tuple[str, ...]) -> Origin:
        """The place of what lies within it; its own where that is not known."""
        found = next((path[:length] for length in range(len(path), 0, -1) if path[:length] in self.lines), ())
        if not found:
            return self.origin
        return replace(self.origin, name=".".join((self.origin.name, *path)), line=self.lines[found])


@dataclass(frozen=True, slots=True)
class Nit:
    """Something that is wrong, and where it stands."""

    origin: Origin
    message: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.message}"


def in_arguments(arguments: Mapping[str, Any], settings: Collection[str]) -> Iterator[Given | Nit]:
    """What a call was given. An argument that is None counts as not given."""
    for name, value in arguments.items():
        origin = Origin("argument", name)
        if name not in settings:
            yield Nit(origin, _no_setting(name, settings))
        elif value is not None:
            yield Given(name, value, origin)


def in_environment(settings: Collection[str]) -> Iterator[Given | Nit]:
    """What the environment holds; resmon_run is RESMON_RUN."""
    names = [*settings, *(variable.removeprefix(PREFIX).lower() for variable in VARIABLES)]
    before: dict[str, str] = {}
    for name, value in sorted(os.environ.items()):
        if not name.lower().startswith(PREFIX.lower()) or name in VARIABLES or KUBERNETES.fullmatch(f"{name}={value}"):
            continue
        setting, origin = name[len(PREFIX) :].lower(), Origin("environment", name)
        if setting not in settings:
            yield Nit(origin, _no_setting(setting, names, lambda near: PREFIX + near.upper()))
        elif setting in before:
            yield Nit(origin, f"{before[setting]} sets the same; unset one of the two")
        else:
            before[setting] = name
            yield Given(setting, value, origin)


def in_file(settings: Collection[str], tables: Collection[str] = ()) -> Iterator[Given | Nit]:
    """What stands in the current folder's resmon.toml, if there is one. `tables` are the settings that are tables there."""
    try:
        path = Path(FILE).absolute()
        text = path.read_bytes().decode()
        keys = tomllib.loads(text)
    except FileNotFoundError:
        return
    except OSError as error:
        yield Nit(Origin("file", path=error.filename or FILE), f"this cannot be read ({error.strerror}); mend or remove it")
        return
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        yield Nit(Origin("file", path=str(path), line=line), "this is not UTF-8, so no TOML; save the file as UTF-8")
        return
    except NO_TOML as error:
        origin = Origin("file", path=str(path), line=_broken_line(text))
        yield Nit(origin, f"this is no TOML: {error}. Each key stands there once, and text in quotes.")
        return
    lines = _lines(text)
    for key, value in keys.items():
        origin = Origin("file", key, str(path), lines[key,])
        if isinstance(value, dict) and key not in tables:
            yield Nit(origin, "this is a table; settings stand at the top of the file, outside of tables")
        elif key not in settings:
            yield Nit(origin, _no_setting(key, settings))
        else:
            yield Given(key, value, origin, {within[1:]: line for within, line in lines.items() if within[0] == key and within[1:]})


def _no_setting(name: str, names: Collection[str], spelt: Callable[[str], str] = str) -> str:
    nearest = get_close_matches(name.lower(), names, n=1)
    return "there is no such setting" + "".join(f"; the nearest is {spelt(near)}" for near in nearest)


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """The line on which each key first stands, by its path from the outermost table, in a text that is TOML."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()  # whose header came last
    for line, statement, keys in _statements(text):
        is_header = statement.lstrip().startswith("[")
        paths = [path if is_header else (*table, *path) for path in _paths(keys)]
        for path in paths:
            for length in range(1, len(path) + 1):
                lines.setdefault(path[:length], line)
        if is_header:
            table = max(paths, key=len)
    return lines


def _paths(keys: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key, also of those within tables."""
    for key, value in keys.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from _paths(value, (*before, key))


def _broken_line(text: str) -> int:
    """The first line of the statement with which a text ceases to be TOML."""
    statements = list(_statements(text))

    def is_broken(count: int) -> bool:
        return _parsed("".join(statement for _, statement, _ in statements[:count])) is None

    return statements[bisect_left(range(1, len(statements)), True, key=is_broken)][0]


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """First line, text and keys of every statement; the last one, without keys, is what makes none.

    The parser tells no lines. But a statement is TOML by itself and the beginning of one is not, so lines are added until they are.
    """
    statement, first = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        statement += f"{line}\n"
        keys = _parsed(statement)
        if keys is not None:
            yield first, statement, keys
            statement, first = "", number + 1
    if statement:
        yield first, statement, {}


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except NO_TOML:
        return None
