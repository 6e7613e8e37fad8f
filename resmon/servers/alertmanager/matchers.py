"""Matchers: what a silence or a filter says of one label, and what it matches.

https://prometheus.io/docs/alerting/latest/configuration/#matcher: a label that an alert lacks counts as empty, and an expression
must match a value from its beginning to its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from resmon.errors import ConfigurationError

_FORM = re.compile(r"\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*(.*?)\s*", re.DOTALL)
_NAME = re.compile("[a-zA-Z_][a-zA-Z0-9_]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


@dataclass(frozen=True, slots=True)
class Matcher:
    """`name="value"`, or with =~, != or !~."""

    name: str
    value: str
    is_regex: bool = False
    is_equal: bool = True

    @classmethod
    def parse(cls, text: str) -> Matcher:
        """From `a="b"`, `a=b`, `a=~"b.*"`, `a!="b"` or `a!~"b.*"`. Raises ConfigurationError for what is none."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise ConfigurationError(
                f"{text!r} is no matcher; write LABEL=VALUE, or with =~, != or !~, such as 'block=~\"h[.].*\"'."
            )
        name, operator, value = match.groups()
        if value.startswith('"'):
            quoted = _QUOTED.fullmatch(value)
            if quoted is None:
                raise ConfigurationError(f'{text!r} is no matcher: its value begins with a " that does not end it.')
            value = re.sub(r"\\.", lambda escape: _ESCAPES.get(escape[0], escape[0]), quoted[1], flags=re.DOTALL)
        return cls(name, value, operator.endswith("~"), not operator.startswith("!"))

    @property
    def operator(self) -> str:
        if self.is_regex:
            return "=~" if self.is_equal else "!~"
        return "=" if self.is_equal else "!="

    @property
    def has_usual_name(self) -> bool:
        """Whether every Alertmanager takes the name; newer ones take any, in silences that others made."""
        return _NAME.fullmatch(self.name) is not None

    def __str__(self) -> str:
        escaped = self.value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'{self.name}{self.operator}"{escaped}"'

    def fits(self, value: str) -> bool:
        """Whether it matches a label of that value. Raises ConfigurationError where the expression cannot be read here."""
        if not self.is_regex:
            return (value == self.value) == self.is_equal
        try:
            found = re.fullmatch(self.value, value, re.ASCII)
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigurationError(f"{self}: {self.value!r} is no expression that can be read here ({error}).") from error
        return (found is not None) == self.is_equal


def matches(matchers: Iterable[Matcher], labels: Mapping[str, str]) -> bool:
    """Whether all of them match an alert with these labels."""
    return all(matcher.fits(labels.get(matcher.name, "")) for matcher in matchers)
