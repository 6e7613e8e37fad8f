"""docs/metrics.md says of every metric which question it answers; that each has its row is held by test_architecture.py."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from resmon.catalogue import CATALOGUE

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_every_metric_answers_one_question() -> None:
    section = PAGE.partition("## Why each of them is there")[2].partition("\n## ")[0]
    rows = [row.split(" | ") for row in section.splitlines() if "`resmon_" in row]
    named = Counter(name for row in rows for name in re.findall(r"`(resmon_\w+)`", row[1]))
    assert named == Counter(metric.name for metric in CATALOGUE)
    assert all(row[0].endswith("?") and len(row) == 3 for row in rows)
