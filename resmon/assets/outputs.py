"""The table of files that are written from tables, and what tells a file that is not as it would be written now."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

from resmon.assets import cases, kubernetes
from resmon.assets.findings import finding_alerts
from resmon.assets.links import Links
from resmon.assets.machines import MERGED
from resmon.assets.runs import run_alerts
from resmon.errors import ConfigurationError
from resmon.objectives import generation
from resmon.objectives.generation import Made
from resmon.objectives.rules import Addresses
from resmon.rules import Case, Group, rule_file, unit_test_file

HEADER = "Written by `resmon assets` from the tables in resmon/assets, and not by hand: the next one writes it anew."
RULES = "alerts/resmon.yaml"
FOLDERS = ("alerts", "dashboards", "deploy")


def groups(links: Links) -> list[Group]:
    """The rules of alerts/resmon.yaml."""
    return [
        Group("resmon-machines", [merged.rule() for merged in MERGED]),
        Group("resmon-findings", finding_alerts(links)),
        Group("resmon-runs", run_alerts(links)),
    ]


def _rules(links: Links) -> str:
    return rule_file(
        groups(links), f"{HEADER}\nAlerts and aggregates of resmon for Prometheus 2.42 or newer; docs/alerts.md has them all."
    )


def _tests(made: Callable[[Links], list[Case]]) -> Callable[[Links], str]:
    return lambda links: unit_test_file(
        ["../resmon.yaml"], made(links), f"{HEADER}\nRun with promtool test rules.", order=[group.name for group in groups(links)]
    )


@cache
def _objectives(links: Links) -> Made:
    """The shipped ones; `resmon slo generate` makes the same of a user's own."""
    return generation.make(None, addresses=Addresses(links.runbooks, links.dashboards))


def _pod_monitor(_: Links) -> str:
    return kubernetes.file([kubernetes.pod_monitor()], f"{HEADER}\nPods with a port `resmon` are scraped; deploy/README.md.")


def _prometheus_rules(links: Links) -> str:
    made = [
        kubernetes.prometheus_rule("resmon", groups(links)),
        kubernetes.prometheus_rule("resmon-slo", _objectives(links).groups),
    ]
    return kubernetes.file(made, f"{HEADER}\nThe rules of alerts/resmon.yaml and alerts/slo.yaml for Prometheus' operator.")


def _dashboard(name: str) -> Callable[[Links], str]:
    """The SDK is imported where a dashboard is made, and not by who only looks at this table."""

    def made(links: Links) -> str:
        try:
            from resmon.assets import dashboards
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "grafana_foundation_sdk":
                raise
            raise ConfigurationError(
                "Dashboards are made with Grafana's SDK, which is not installed: pip install 'resmon[assets]'. With --only alerts "
                "and --only deploy the other files are written without it."
            ) from error
        return dashboards.text(dashboards.BOARDS[name](links))

    return made


# What is written, below the folder that is given. A file more is a row more.
OUTPUTS: dict[str, Callable[[Links], str]] = {
    RULES: _rules,
    "alerts/tests/findings.yaml": _tests(cases.of_findings),
    "alerts/tests/runs.yaml": _tests(cases.of_runs),
    "alerts/tests/machines.yaml": _tests(cases.of_machines),
    "alerts/slo.yaml": lambda links: _objectives(links).files[generation.RULES],
    "alerts/tests/slo.yaml": lambda links: _objectives(links).files[generation.TESTS],
    "deploy/kubernetes/podmonitor.yaml": _pod_monitor,
    "deploy/kubernetes/rules.yaml": _prometheus_rules,
    "dashboards/resmon-executive.json": _dashboard("executive"),
    "dashboards/resmon-oncall.json": _dashboard("oncall"),
    "dashboards/resmon-debug.json": _dashboard("debug"),
}


def rendered(links: Links, folders: Collection[str] = FOLDERS) -> dict[str, str]:
    """Every file below these folders by its path, as it would be written now. Raises ConfigurationError where the SDK lacks."""
    return {path: make(links) for path, make in OUTPUTS.items() if path.partition("/")[0] in folders}


def write(directory: Path, links: Links, folders: Collection[str] = FOLDERS) -> list[str]:
    """Write what is not as it should be; the paths of what was written. Raises OSError, and ConfigurationError as `rendered`."""
    files = rendered(links, folders)
    changed = [path for path, text in files.items() if _content(directory / path) != text.encode()]
    for path in changed:
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(files[path].encode())
    return changed


def differing(directory: Path, links: Links, folders: Collection[str] = FOLDERS) -> list[str]:
    """The paths of files that are not there, or not as they would be written now. Raises ConfigurationError as `rendered`."""
    return [path for path, text in rendered(links, folders).items() if _content(directory / path) != text.encode()]


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
