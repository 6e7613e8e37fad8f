"""Detectors of the user's own: named by the user, imported by who runs them, and never because a flight says so.

A name is `package.module:Class`. The module is looked for among what is installed and then in the user's folders. Where an agent
follows runs of several projects for days, a module of a project is imported anew for each run: it may have been edited, and another
project may call its own the same.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resmon.detectors.bank import DETECTORS
from resmon.detectors.detector import Detector
from resmon.detectors.options import Options, Tuned

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
_imported_here: set[str] = set()  # outermost packages and modules


class OwnError(Exception):
    """What is named is no detector that can be run; why, as the end of a sentence."""


def load(name: str, folders: Sequence[str]) -> type[Detector]:
    """The class of that name. Runs the module's code. Raises OwnError."""
    module, _, attribute = name.partition(":")
    outermost = module.split(".")[0]
    if outermost in _imported_here:
        for each in [each for each in sys.modules if each.split(".")[0] == outermost]:
            del sys.modules[each]
    known = outermost in sys.modules
    try:
        with _among_paths(folders):
            kind = getattr(importlib.import_module(module), attribute)
    except AttributeError as error:
        raise OwnError(f"{name}: {error}") from error
    except (Exception, SystemExit) as error:
        raise OwnError(f"{name} cannot be imported: {error!r:.300}") from error
    finally:
        if not known and outermost in sys.modules:
            _imported_here.add(outermost)
    _check(name, kind)
    return kind  # type: ignore[no-any-return]


def load_all(names: Sequence[str], folders: Sequence[str]) -> tuple[list[type[Detector]], list[str]]:
    """Those of the names that can be run, and what is wrong with the others."""
    kinds: list[type[Detector]] = []
    wrong: list[str] = []
    for name in dict.fromkeys(names):
        try:
            kind = load(name, folders)
            if any(kind.name == other.name for other in kinds):
                raise OwnError(f"{name}: another one of yours is called {kind.name!r}")
            kinds.append(kind)
        except OwnError as error:
            wrong.append(str(error))
    return kinds, wrong


def _check(name: str, kind: Any) -> None:
    if Detector not in getattr(kind, "__mro__", ()):
        raise OwnError(f"{name} is no subclass of resmon.detectors.Detector")
    called = getattr(kind, "name", None)
    if not isinstance(called, str) or not _NAME.fullmatch(called):
        raise OwnError(f"{name}: its `name` must be a word of small letters, digits and _ (it is {called!r:.80})")
    if called in {other.name for other in DETECTORS}:
        raise OwnError(f"{name}: resmon has a detector that is called {called!r}; give yours another `name`")
    if not isinstance(kind.options, type) or not issubclass(kind.options, Options):
        raise OwnError(f"{name}: its `options` must be a subclass of resmon.detectors.Options")
    try:
        kind(Tuned(kind.options()))
    except Exception as error:
        raise OwnError(f"{name} cannot be made: {error!r:.300}") from error


@contextmanager
def _among_paths(folders: Sequence[str]) -> Iterator[None]:
    """With the folders at the end of the path, so that nothing there hides what is installed."""
    added = [folder for folder in dict.fromkeys(folders) if Path(folder).is_absolute() and folder not in sys.path]
    sys.path.extend(added)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in added:
            if folder in sys.path:
                sys.path.remove(folder)
