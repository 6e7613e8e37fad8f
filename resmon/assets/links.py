"""Where an alert leads: its runbook and its dashboard, by one rule each.

runbook_url is <runbooks>/<page>.md, the page being that of the finding or of the failure. dashboard_url is <dashboards>/<uid> with
the alert's labels as the dashboard's variables: resmon-block where the alert is of a block, else resmon-run.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

RUNBOOKS = "https://github.com/resmon/resmon/blob/main/runbooks"
DASHBOARDS = "http://localhost:3000/d"

VARIABLES = ("run", "model", "block")


@dataclass(frozen=True, slots=True)
class Links:
    """The places below which runbooks and dashboards are; without a slash at the end."""

    runbooks: str = RUNBOOKS
    dashboards: str = DASHBOARDS

    def runbook(self, page: str) -> str:
        return f"{self.runbooks}/{page}.md"

    def dashboard(self, labels: Collection[str]) -> str:
        """A template of Prometheus': the values are those of the alert that fires."""
        uid = "resmon-block" if "block" in labels else "resmon-run"
        variables = "&".join(f"var-{name}={{{{ $labels.{name} | urlquery }}}}" for name in VARIABLES if name in labels)
        return f"{self.dashboards}/{uid}" + (f"?{variables}" if variables else "")
