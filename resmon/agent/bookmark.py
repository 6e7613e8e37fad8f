"""Where an agent is in a rank's flight and what its detectors have learnt until there, so that the next agent goes on from there.

Without it a new agent reads a flight from its first step. That takes long, and where older steps were thinned meanwhile its
detectors would see another run than those before. A bookmark lies in the runtime folder, which is the user's alone. It is of one
flight, one version of resmon and one set of detectors with their settings; one that is not, or is damaged, is of no use, which is
said once, and the flight is read from its first step.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import resmon
from resmon.flight import layout
from resmon.flight.reader import Position
from resmon.records import Floats, RunInfo, ScalarRecord

LARGEST = 64 << 20  # bytes of a bookmark; a state that needs more is not kept
FORMAT = 2
PIECE = 3 << 18  # bytes of an array that are made into text at once: base64 makes four letters of three bytes


class BookmarkError(Exception):
    """What is there is no bookmark that can be used."""


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Of one rank."""

    step: int  # the last one that the detectors were told of
    position: Position  # behind it
    again: tuple[int, int]  # where to begin reading for what is shown of the last minute: segment of steps and offset
    skipped: int  # damaged rows until there
    nonfinite: int  # non-finite steps until there
    open: tuple[str, ...]  # ids of the findings that are open in this rank
    scores: Mapping[str, tuple[int, float]]  # newest logged value by name, and its step
    losses: tuple[tuple[float, float], ...]  # second, largest loss in it
    gaps: Mapping[str, Any]
    bank: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path, heading: Mapping[str, Any], bank: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """With the parts of a bank, which are taken one by one and put on file at once: the agent shares its machine's memory with
        the training. Raises OSError, and BookmarkError where it is too large."""
        held = [[record.step, record.time, record.values] for record in self.position.held]
        content = {
            "heading": heading,
            "step": self.step,
            "steps": self.position.steps,
            "scalars": self.position.scalars,
            "held": held,
            "last_step": self.position.last_step,
            "again": self.again,
            "skipped": self.skipped,
            "nonfinite": self.nonfinite,
            "open": self.open,
            "scores": self.scores,
            "losses": self.losses,
            "gaps": self.gaps,
        }
        layout.write_parts(path, _bounded(_written(content, bank)))


def _written(content: Mapping[str, Any], bank: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """One JSON object in pieces: the content, and under "bank" the parts, object by object."""
    yield f'{json.dumps(content)[:-1]}, "bank": {{'
    comma = ""
    for name, part in bank:
        yield f'{comma}{json.dumps(name)}: {{"attributes": {json.dumps(part["attributes"])}, "objects": ['
        for i, each in enumerate(part["objects"]):
            yield ", " if i else ""
            yield from _object(each)
        yield "]}"
        comma = ", "
    yield "}}"


def left(array: Floats) -> Floats:
    """What a bank gives in the place of an array's bytes, so that they are made into text only as they are written."""
    return array


def _object(written: Mapping[str, Any]) -> Iterator[str]:
    array = written.get("array")
    if not isinstance(array, np.ndarray):
        yield json.dumps(written)
        return
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    yield '{"array": "'
    for start in range(0, len(data), PIECE):
        yield base64.b64encode(data[start : start + PIECE].tobytes()).decode()
    rest = {key: value for key, value in written.items() if key != "array"}
    yield f'", {json.dumps(rest)[1:]}'


def _bounded(pieces: Iterable[str]) -> Iterator[str]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > LARGEST:
            raise BookmarkError(f"what the detectors have learnt takes more than {LARGEST:,} bytes and is not kept")
        yield piece


def heading(info: RunInfo, own: Sequence[str]) -> dict[str, Any]:
    """What a bookmark must be of to be used."""
    return {
        "format": FORMAT,
        "resmon": resmon.__version__,
        "launch": info.launch,
        "boot_id": info.boot_id,
        "run": info.run,
        "attempt": info.attempt,
        "rank": info.rank,
        "detectors": info.detectors,
        "own_detectors": list(own),
    }


def read(path: Path, of: Mapping[str, Any]) -> Bookmark | None:
    """The bookmark there; None where there is none. Raises BookmarkError."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(min(LARGEST, os.fstat(file.fileno()).st_size) + 1))  # room is made for so many bytes
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise BookmarkError(f"it cannot be read: {error!r:.200}") from error
    try:
        if content["heading"] != of:
            differing = sorted(name for name in of if content["heading"].get(name) != of[name])
            raise BookmarkError(f"it is of another {', '.join(differing) or 'form'}")
        held = [ScalarRecord(_whole(step), _number(time), _values(values)) for step, time, values in content["held"]]
        last_step = content["last_step"]
        return Bookmark(
            step=_whole(content["step"]),
            position=Position(
                _place(content["steps"]), _place(content["scalars"]), tuple(held), None if last_step is None else _whole(last_step)
            ),
            again=_place(content["again"]),
            skipped=_whole(content["skipped"]),
            nonfinite=_whole(content["nonfinite"]),
            open=tuple(map(str, content["open"])),
            scores={str(name): (_whole(step), _number(value)) for name, (step, value) in content["scores"].items()},
            losses=tuple((_number(second), _number(loss)) for second, loss in content["losses"]),
            bank=dict(content["bank"]),
            gaps=dict(content["gaps"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BookmarkError(f"it is damaged: {error!r:.200}") from error


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value < 1 << 62:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is no number")
    return float(value)


def _place(value: Any) -> tuple[int, int]:
    segment, offset = value
    return _whole(segment), max(0, _whole(offset))


def _values(values: Any) -> dict[str, float]:
    return {str(name): _number(value) for name, value in values.items()}
