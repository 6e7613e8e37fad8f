"""What can be tuned of a detector: for all blocks, and for those whose names match a pattern.

A detector names its thresholds in a subclass of `Options`, with a default and a description each; `Tuned` holds what is in force.
Values come as settings have them:

    {"exploding_gradients": {"factor": 30, "sites": {"h.0.*": {"factor": 100}, "head": {"enabled": False}}}}

Patterns are fnmatch's, over the block's name; of several that match, the last one wins for each threshold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resmon.errors import nearest
from resmon.records import ResidualSite

SITES = "sites"  # the key under which patterns stand


class Wrong(NamedTuple):
    """Something that cannot be used, and the keys that lead to it: detector, option; or detector, "sites", pattern, option."""

    path: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.message}"


class Options(BaseModel):
    """What every detector has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    enabled: bool = Field(default=True, description="whether it says anything")


Chosen = TypeVar("Chosen", bound=Options)


class Tuned(Generic[Chosen]):
    """The options of one detector that are in force. They are no part of its state."""

    def __init__(self, everywhere: Chosen, sites: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.everywhere = everywhere
        self._patterns = {
            pattern: type(everywhere).model_validate(everywhere.model_dump() | dict(values))
            for pattern, values in (sites or {}).items()
        }
        self._given = {pattern: tuple(values) for pattern, values in (sites or {}).items()}
        self._columns: dict[str, tuple[tuple[ResidualSite, ...], npt.NDArray[Any]]] = {}

    def at(self, block: str, name: str) -> Any:
        """A threshold as it is for that block."""
        value = getattr(self.everywhere, name)
        for pattern, options in self._patterns.items():
            if name in self._given[pattern] and fnmatchcase(block, pattern):
                value = getattr(options, name)
        return value

    def column(self, name: str, sites: Sequence[ResidualSite]) -> npt.NDArray[Any]:
        """A threshold for each of the sites, [S]."""
        known = self._columns.get(name)
        if known is None or known[0] is not sites:
            made = np.array([self.at(site.name, name) for site in sites], type(getattr(self.everywhere, name)))
            known = self._columns[name] = (tuple(sites) if not isinstance(sites, tuple) else sites, made)
        return known[1]

    @property
    def is_on(self) -> bool:
        """Whether it says anything of any block."""
        return self.everywhere.enabled or any(options.enabled for options in self._patterns.values())


def tune(types: Mapping[str, type[Options]], values: Mapping[str, Any]) -> tuple[dict[str, Tuned[Any]], list[Wrong]]:
    """The options of each detector, by name, and what is wrong with `values`; what is wrong is left at its default."""
    made = {name: Tuned(kind()) for name, kind in types.items()}
    wrong = [Wrong((str(name),), f"there is no such detector{nearest(str(name), types)}") for name in values if name not in types]
    for name, kind in types.items():
        given = values.get(name, {})
        if not isinstance(given, Mapping):
            wrong.append(Wrong((name,), f"must be a table of its options (got {given!r:.80})"))
            continue
        sites = given.get(SITES, {})
        if not isinstance(sites, Mapping):
            wrong.append(Wrong((name, SITES), f"must be a table of patterns, each with a table of options (got {sites!r:.80})"))
            sites = {}
        usual, nits = _sound(kind, {key: value for key, value in given.items() if key != SITES}, (name,))
        wrong += nits
        patterns = {}
        for pattern, options in sites.items():
            if not isinstance(options, Mapping):
                wrong.append(Wrong((name, SITES, str(pattern)), f"must be a table of options (got {options!r:.80})"))
                continue
            patterns[str(pattern)], nits = _sound(kind, options, (name, SITES, str(pattern)))
            wrong += nits
        try:
            made[name] = Tuned(kind(**usual), patterns)
        except ValidationError as error:  # each is right by itself, and together they are not
            wrong += [Wrong((name,), f"{each['msg']}; the defaults are in force") for each in error.errors()]
    return made, wrong


def _sound(kind: type[Options], given: Mapping[str, Any], path: tuple[str, ...]) -> tuple[dict[str, Any], list[Wrong]]:
    """Those of the given options that can be used, and what is wrong with the others, each looked at alone."""
    sound: dict[str, Any] = {}
    wrong: list[Wrong] = []
    for key, value in given.items():
        messages = list(_nits(kind, str(key), value))
        wrong += [Wrong((*path, str(key)), message) for message in messages]
        if not messages:
            sound[str(key)] = value
    return sound, wrong


def _nits(kind: type[Options], key: str, value: Any) -> Iterator[str]:
    if key not in kind.model_fields:
        yield f"there is no such option{nearest(key, kind.model_fields)}"
        return
    try:
        kind(**{key: value})
    except ValidationError as error:
        for each in error.errors():
            message = re.sub(r"^(Value error,|Input|String) ", "", each["msg"])
            yield f"{message} (got {value!r:.80})"
