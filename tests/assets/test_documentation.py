"""docs/alerts.md says of every rule what it is, and of no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from resmon.assets.findings import TOLD
from resmon.assets.machines import MERGED
from resmon.assets.runs import NUMBERS
from resmon.rules import metrics

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "alerts.md").read_text()


def alerts() -> Iterator[str]:
    """The table's lines."""
    severities = {told.alert: told.severity for told in TOLD}
    for group in yaml.safe_load((ROOT / "alerts" / "resmon.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            if "alert" not in rule:
                continue
            name, labels, runbook = rule["alert"], rule.get("labels", {}), rule["annotations"]["runbook_url"].rpartition("/")[2]
            finding = re.search(r'finding="(\w+)"', rule["expr"])
            outcome = labels.get("outcome")
            read = ", ".join(f"`{metric}`" for metric in sorted(metrics(rule["expr"])))
            reads = f"finding `{finding[1]}`" if finding else f"outcome `{outcome}`" if outcome else read
            severity = labels.get("severity") or severities.get(name, "as found")
            yield (
                f"| {name} | {reads} | {rule.get('for', '0')} | {rule.get('keep_firing_for', '0')} | {severity} "
                f"| [{runbook.removesuffix('.md')}](../runbooks/{runbook}) |"
            )


def numbers() -> Iterator[str]:
    for name, number in NUMBERS.items():
        yield f"| {name.replace('_', ' ')} | {number.value:g} | {number.reason} |"


def merged() -> Iterator[str]:
    for each in MERGED:
        yield f"| `{each.record}` | {each.holds} |"


def rows(heading: str) -> list[str]:
    """Of the table below those column names."""
    below = PAGE.split(f"| {heading} |\n", 1)[1].split("\n\n", 1)[0]
    return below.splitlines()[1:]


def test_the_tables_are_the_rules() -> None:
    assert rows("alert | reads | for | kept | severity | runbook") == list(alerts())
    assert rows("number | is | because") == list(numbers())
    assert rows("series | is") == list(merged())


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / link).is_file(), link
