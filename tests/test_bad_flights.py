"""Whatever state a run's files are in, whoever wrote them: every command that reads them answers or says why it cannot."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from resmon.cli import application
from resmon.errors import FlightError, FlightVersionError, ResmonError
from resmon.flight import layout
from resmon.flight.frames import load
from resmon.handbook import diagnosis as runbook
from resmon.handbook import pages as handbook
from resmon.records import Incident, RunEnd
from tests import synthetic
from tests.flight.flights import begin, write

HOSTILE = "<script>alert(1)</script> **b** [x](http://e.vil) ![i](j) `c` | # \x1b[31m"
ODD = {HOSTILE: HOSTILE, "memory": [5, [HOSTILE, 1, 2]], "blocks": [{"block": HOSTILE}], "x_bytes": "y"}


def record(directory: Path, run: str = "digits", steps: int = 30, names: tuple[str, ...] = (), **said: object) -> Path:
    """A run that failed; the folder of its rank."""
    folder, writer = begin(directory, run=run)
    sites = synthetic.sites(3)
    if names:
        sites = tuple(replace(site, name=name, module=name) for site, name in zip(sites, names, strict=True))
    if steps:
        write(writer, synthetic.Training(sites), steps)
    incident = Incident(f"failed-{steps}", "failed", 5.0, steps - 1 if steps else None, "it failed", runbook="failed")
    writer.incident(replace(incident, **said))  # type: ignore[arg-type]
    writer.end(RunEnd("failed", 9.0, steps - 1 if steps else None))
    return folder


def spoil(name: str, spoiled: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = next(folder.glob(name), folder / name)
        path.write_bytes(spoiled(path.read_bytes() if path.exists() else b""))

    return apply


def newer(data: bytes) -> bytes:
    return json.dumps(json.loads(data) | {"format": 99}).encode()


def as_folder(folder: Path) -> None:
    (folder / layout.INCIDENTS).unlink()
    (folder / layout.INCIDENTS).mkdir()


def with_pipes(folder: Path) -> None:
    """Whoever opens one in the usual way waits for ever."""
    for name in (layout.END, layout.STOPPED, layout.STACK, layout.CHECKPOINTS, layout.REACHED, f"../{layout.FINDINGS}"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    os.mkfifo(folder / "steps-000000000031.arrow")


def info_a_pipe(folder: Path) -> None:
    (folder / layout.INFO).unlink()
    os.mkfifo(folder / layout.INFO)


def folder_as_segment(folder: Path) -> None:
    (folder / "steps-000000000031.arrow").mkdir()
    (folder / "scalars-000000000031.arrow").mkdir()


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "incidents that are none": spoil(layout.INCIDENTS, lambda _: b'{"id": 5}\n\xff\xfe\x00no\n[]\nnull\n"x"\n{"id": "a"}'),
    "incidents cut off": spoil(layout.INCIDENTS, lambda data: data[: len(data) // 2]),
    "incidents a folder": as_folder,
    "info cut off": spoil(layout.INFO, lambda data: data[:7]),
    "info null": spoil(layout.INFO, lambda _: b"null"),
    "steps cut off": spoil("steps-*.arrow", lambda data: data[: len(data) // 2 + 13]),
    "steps partly zero": spoil("steps-*.arrow", lambda data: data[:30_000] + bytes(20_000) + data[50_000:]),
    "steps at random": spoil("steps-*.arrow", lambda _: os.urandom(5000)),
    "findings that are none": spoil(f"../{layout.FINDINGS}", lambda _: b'{"id": 5}\n\xff\n'),
    "end that is none": spoil(layout.END, lambda _: b"\xff{"),
    "pipes": with_pipes,
    "info a pipe": info_a_pipe,
    "segments that are folders": folder_as_segment,
    "a newer version": spoil(layout.INFO, newer),
    "nothing": empty,
}
UNREADABLE = {"a newer version": FlightVersionError, "nothing": FlightError}
COMMANDS = ("incidents RUN", "tail RUN --once", "postmortem RUN -f markdown", "postmortem RUN -f json", "diff good RUN")


def said(directory: Path, command: str, run: str = "digits") -> tuple[str, Exception | None]:
    """What a command printed, and the error that it ended with."""
    words = [run if word == "RUN" else word for word in command.split()]
    result = CliRunner().invoke(application(), [*words, "-d", str(directory)])
    error = result.exception
    assert error is None or isinstance(error, (ResmonError, SystemExit)), (command, error)
    return result.stdout, error if isinstance(error, ResmonError) else None


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_read_as_far_as_it_goes(damage: str, tmp_path: Path) -> None:
    record(tmp_path, "good")
    DAMAGES[damage](record(tmp_path))
    for command in COMMANDS:
        printed, error = said(tmp_path, command)
        if damage in UNREADABLE and not (damage == "nothing" and command.startswith("incidents")):
            assert isinstance(error, UNREADABLE[damage]), command
        elif error is None:
            assert printed
        else:  # what it cannot do without
            assert isinstance(error, FlightError) and damage.split()[0] in ("info", "steps"), (command, error)
    printed, error = said(tmp_path, "ls")
    assert error is None and "digits" in printed and "good" in printed
    if damage not in UNREADABLE:
        trouble = runbook.Trouble.of(load(tmp_path / "digits"))
        assert trouble.runbook == "failed"
        assert next(runbook.page(handbook.runbook("failed"), trouble)).startswith("# Failed run")


def test_a_run_without_a_step(tmp_path: Path) -> None:
    record(tmp_path, "good")
    record(tmp_path, steps=0)
    for command in COMMANDS[:-1]:
        printed, error = said(tmp_path, command)
        assert error is None and "digits" in printed + command, command
    printed, error = said(tmp_path, "diff good RUN")
    assert error is not None and "no whole step" in str(error)


def test_names_and_texts_are_nothing_but_text(tmp_path: Path) -> None:
    names = tuple(f"{HOSTILE}{i}" for i in range(3))
    texts = dict.fromkeys(("summary", "block", "module", "operation", "line", "advice", "checkpoint", "origin"), HOSTILE)
    record(tmp_path, "good")
    folder = record(tmp_path, HOSTILE, names=names, capsule="../../../../etc/passwd", evidence=ODD, **texts)
    for command in COMMANDS:
        printed, error = said(tmp_path, command, folder.parent.parent.name)
        assert error is None, (command, error)
        assert "\x1b" not in printed, command
        if "markdown" in command:
            assert not re.search(r"<script|(?<!\\)\]\(http|(?<!\\)`c", printed), command
    assert "\x1b" not in said(tmp_path, "ls")[0]
    page = tmp_path / "page.html"
    assert said(tmp_path, f"postmortem RUN -o {page}", folder.parent.parent.name)[1] is None
    assert "<script>alert(1)" not in page.read_text()
    trouble = runbook.Trouble.of(load(folder.parent))
    book = handbook.runbook("failed")
    text = "".join(runbook.page(replace(book, text=handbook.COMMAND.sub("", book.text)), trouble))
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\(|\x1b", text)
