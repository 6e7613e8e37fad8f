"""What somebody sees who waits for the set-up."""

from __future__ import annotations

import os
import pty
import re
import subprocess

from tests.checkout import CHECKOUT
from tests.terminals import rest

PROGRESS = CHECKOUT / ".ci" / "progress"


def test_what_takes_long_says_what_is_under_way_and_ends_as_its_command_does() -> None:
    found = subprocess.run(["bash", PROGRESS, "building: an hour", "sh", "-c", "echo out; exit 3"], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (3, "out\n", "building: an hour\n")


def test_in_a_terminal_the_seconds_go_by() -> None:
    master, slave = pty.openpty()
    subprocess.run(["bash", PROGRESS, "building", "sleep", "2.5"], stderr=slave, check=True)
    os.close(slave)
    said = rest(master).decode()
    assert said.startswith("building\r\n") and "\r  1 s" in said and said.endswith("\r\x1b[K")


def test_no_installation_is_silent() -> None:
    """Each that makes anybody wait has a line before it."""
    for name in ("Makefile", ".ci/packages"):
        text = (CHECKOUT / name).read_text()
        for install in re.finditer(r"pip install|apt-get (install|update)", text):
            line = text[text.rfind("\n", 0, install.start()) + 1 : install.end()]
            before = "\n".join(text[: install.start()].splitlines()[-2:])
            if not line.lstrip().startswith(("#", "echo")):
                assert "progress" in before, (name, before)
