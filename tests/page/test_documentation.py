"""What docs/page.md says is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from resmon.page.address import address
from resmon.page.sight import ROOM

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "page.md").read_text()


def test_addresses_look_like_that(tmp_path: Path) -> None:
    shown = re.search(r"seen at (\S+)", PAGE)
    assert shown is not None
    assert re.sub("[0-9a-f]{8}$", "", shown[1]) == re.sub("[0-9a-f]{8}$", "", address("http://127.0.0.1:9699", tmp_path / "digits"))


def test_pictures_and_commands_are_there() -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE)
    assert pictures == ["page.png", "page-broken.png", "page-phone.png"]
    assert all((ROOT / "docs" / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert "\npicture: wheel" in (ROOT / "Makefile").read_text()
    assert f"share {ROOM >> 20} MiB" in PAGE


@pytest.mark.slow
def test_a_long_run_is_looked_at_as_quickly_as_it_says(tmp_path: Path) -> None:
    """Within a few times what was measured, on a machine that others use, and with a run that is not as long."""
    assert "`python -m benchmarks.page`" in PAGE
    command = [sys.executable, "-m", "benchmarks.page", "--steps", "12000", "--runs", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    said = {line[:22].strip(): line[22:] for line in result.stdout.splitlines()[1:]}
    first, sent = (float(each.replace(",", "")) for each in re.findall(r"([\d,.]+) (?:ms|KiB)", said["first look"]))
    assert first < 3000 and sent < 400
    before, after, most = (float(each.replace(",", "")) for each in re.findall(r"\d[\d,]*", said["memory"]))
    assert after - before < 80 and most - before < 160, "and memory is bounded"
