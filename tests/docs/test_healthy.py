"""docs/healthy.md names quantities and findings that there are."""

from __future__ import annotations

import re
from pathlib import Path

from resmon.assets.findings import TOLD
from resmon.catalogue import BY_NAME
from resmon.statistics import STATISTICS

PAGE = (Path(__file__).parents[2] / "docs" / "healthy.md").read_text()
LOGGED = {"loss", "val_loss"}


def test_what_it_names_is_there() -> None:
    rows = [row.split("|")[1:-1] for row in PAGE.splitlines() if row.startswith(("| `", "| activations'"))]
    assert len(rows) == 12
    for looked_at, _, _, findings in rows:
        for name in re.findall(r"`(\w+)`", looked_at):
            known = name in STATISTICS or name in LOGGED or f"resmon_gradient_{name}" in BY_NAME
            assert known, name
        named = re.findall(r"`(\w+)`", findings)
        assert named
        assert set(named) <= {told.finding for told in TOLD}, named
