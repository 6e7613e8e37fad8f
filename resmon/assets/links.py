"""Where an alert leads: its runbook and its dashboard, by one rule each.

runbook_url is <runbooks>/<page>.md, the page being that of the finding or of the failure. dashboard_url is <dashboards>/<uid> with
the alert's labels as the dashboard's variables and the time from an hour before the alert began until now: resmon-block where the
alert is of a block, else resmon-run. The time at which an alert began is what Prometheus records of it in ALERTS_FOR_STATE; in its
first evaluation, when nothing is recorded yet, it is that evaluation's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from resmon.rules import Places

# The dashboards, resmon/assets/dashboards.
TAG = "resmon-"
RUN_BOARD, BLOCK_BOARD, SLO_BOARD = "resmon-run", "resmon-block", "resmon-slo"

BEFORE = 3600  # seconds that are shown of the time before an alert: what led to it


@dataclass(frozen=True, slots=True)
class Links(Places):
    """Where the alerts of a run lead."""

    def runbook(self, page: str) -> str:
        return f"{self.runbooks}/{page}.md"

    def dashboard(self, alert: str, labels: Collection[str]) -> str:
        """A template of Prometheus': labels and values are those of the alert that fires."""
        run = f"var-run={_of('run')}&" if "run" in labels else ""
        since = f"from={_began(alert, labels)}&to=now"
        if "block" not in labels:
            return f"{self.dashboards}/{RUN_BOARD}?{run}{since}"
        uid = _if_block(BLOCK_BOARD.removeprefix(TAG), RUN_BOARD.removeprefix(TAG))
        block = _if_block(f"var-model={_of('model')}&var-block={_of('block')}&")
        return f"{self.dashboards}/{TAG}{uid}?{run}{block}{since}"


def _if_block(text: str, otherwise: str = "") -> str:
    """Findings of the run itself have no block."""
    return f"{{{{ if $labels.block }}}}{text}{f'{{{{ else }}}}{otherwise}' if otherwise else ''}{{{{ end }}}}"


def _of(label: str) -> str:
    return f"{{{{ $labels.{label} | urlquery }}}}"


def _began(alert: str, labels: Collection[str]) -> str:
    """Milliseconds since 1970, an hour before the alert began."""
    matchers = "".join(f",{label}=%q" for label in labels)
    values = " ".join(f"$labels.{label}" for label in labels)
    query = f'(min(ALERTS_FOR_STATE{{alertname="{alert}"{matchers}}}) or floor(vector(time()))) - {BEFORE}'
    escaped = query.replace('"', r"\"")
    return f'{{{{ with printf "{escaped}" {values} | query }}}}{{{{ . | first | value | printf "%.0f000" }}}}{{{{ end }}}}'
